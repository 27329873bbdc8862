"""Tables of tensors on the device, which let one launch of an optimizer work on all of them.

Addresses travel as arguments of a small kernel that writes them into a table, so that a CUDA graph
holds them and nothing is copied from the host. Its program i also computes the numbers of a step
of tensor i. The launch that follows reads both.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _launch

TENSORS = 32  # that one launch writes into a table: its arguments have to stay below 4 KB
CHUNK = 2048  # elements of a tensor for one program
READ = {"HOST": False, "DOUBLE": False}  # rates are float32 on the device
# Rows of a table: the first program of each tensor, its elements, and the addresses from STATE on.
COUNT, STATE = tl.constexpr(1), tl.constexpr(2)
BASE = tl.constexpr(1 << 32)


@triton.jit
def entry(values, i):
    """values[i] of a tuple."""
    found = values[0]
    for k in tl.static_range(1, len(values)):
        found = tl.where(i == k, values[k], found)
    return found


@triton.jit
def integer(values, i):
    """The integer i of a tuple that `coded` made."""
    return (entry(values, i) >> 1) - BASE


@triton.jit
def real(address, DOUBLE: tl.constexpr):
    """The number at an address, as float64."""
    if DOUBLE:
        value = tl.load(address.to(tl.pointer_type(tl.float64), bitcast=True))
    else:
        value = tl.load(address.to(tl.pointer_type(tl.float32), bitcast=True)).to(tl.float64)
    return value


@triton.jit
def rate_of(rates, i, DOUBLE: tl.constexpr, HOST: tl.constexpr):
    """The learning rate of tensor i, float64."""
    return entry(rates, i).to(tl.float64) if HOST else real(integer(rates, i), DOUBLE)


@triton.jit
def write_row(table, place, i, start, count, state, found_inf, WIDTH: tl.constexpr):
    """Column `place` of the table for tensor i; returns whether it is stepped."""
    go = True
    if found_inf is not None:  # without elements nothing is changed
        go = tl.load(found_inf) == 0.0
    tl.store(table + place, integer(start, i))
    tl.store(table + (COUNT * WIDTH + place), tl.where(go, integer(count, i), 0))
    for row in tl.static_range(len(state)):
        tl.store(table + ((STATE + row) * WIDTH + place), integer(state[row], i))
    return go


@triton.jit
def factor_of(grad_scale, sign):
    """Factor on the gradients: the sign of the ascent and the scale of torch.amp.GradScaler."""
    factor = tl.full([], 1.0, tl.float64) * sign
    if grad_scale is not None:
        factor /= tl.load(grad_scale).to(tl.float64)
    return factor


@triton.jit
def column_of(table, tensors, WIDTH: tl.constexpr):
    """The tensor that this program works on: the last one that starts at or before it."""
    k = tl.arange(0, WIDTH)
    starts = tl.load(table + k, mask=k < tensors, other=9223372036854775807)
    return tl.sum((starts <= tl.program_id(0)).to(tl.int32), 0) - 1


@triton.jit
def elements_of(table, i, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """This program's elements of tensor i, and how many of them exist."""
    first = (tl.program_id(0) - tl.load(table + i)) * CHUNK
    return first + tl.arange(0, CHUNK), tl.load(table + (COUNT * WIDTH + i)) - first


@triton.jit
def read(pointer, exists, WHOLE: tl.constexpr):
    """Elements in float32. WHOLE: all of them exist. A mask would forbid to load 16 bytes at once,
    as the compiler does not know where it ends.
    """
    value = tl.load(pointer) if WHOLE else tl.load(pointer, mask=exists, other=0.0)
    return value.to(tl.float32)


@triton.jit
def write(pointer, value, exists, WHOLE: tl.constexpr):
    """Write elements, as `read` reads them."""
    if WHOLE:
        tl.store(pointer, value.to(pointer.dtype.element_ty))
    else:
        tl.store(pointer, value.to(pointer.dtype.element_ty), mask=exists)


@triton.jit
def pointers(table, row, i, at, like, WIDTH: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to elements of tensor i, whose address is in a row of the table."""
    address = tl.load(table + ((STATE + row) * WIDTH + i))
    first = address.to(tl.pointer_type(like.dtype.element_ty), bitcast=True)
    if ALIGNED:
        first = tl.multiple_of(first, 16)
    return first + at


@triton.jit
def penalised(w, grad, factor, decay, l1):
    """The gradient with the subgradient of the penalties, as in csrc/step.h."""
    sign = tl.where(w > 0.0, l1, tl.where(w < 0.0, -l1, 0.0))
    return grad * factor + decay * w + sign


def coded(values: Sequence[int]) -> tuple[int, ...]:
    """Integers that triton compiles once for: within a tuple it specialises on the value 1, on
    multiples of 16 and on 32 bits, whatever `do_not_specialize` says.
    """
    return tuple(2 * (value + BASE.value) + 1 for value in values)


class Together(NamedTuple):
    """Tensors that one launch steps: alike in dtype, and all or none at multiples of 16 bytes.

    Attributes:
        places: their places in the lists of the operator.
        state: the tensors as runs of memory, [tensor][list].
        aligned: all of them are at multiples of 16 bytes.
    """

    places: list[int]
    state: list[list[Tensor]]
    aligned: bool


def together(lists: Sequence[Sequence[Tensor]]) -> Iterator[Together]:
    """Sort lists of tensors, one entry for each parameter, by what a launch takes."""
    found: dict[tuple[torch.dtype, bool], Together] = {}
    for place, tensors in enumerate(zip(*lists, strict=True)):
        runs = _runs(tensors)
        aligned = all(t.data_ptr() % 16 == 0 for t in runs)
        one = found.setdefault((tensors[0].dtype, aligned), Together([], [], aligned))
        one.places.append(place)
        one.state.append(runs)
    yield from found.values()


def _runs(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of one parameter as runs of memory in the same order: themselves, or copies."""
    if all(t.is_contiguous() for t in tensors):
        return list(tensors)
    last = torch.channels_last
    if tensors[0].ndim == 4 and all(t.is_contiguous(memory_format=last) for t in tensors):
        return list(tensors)
    return [t.contiguous() for t in tensors]


def step(
    group: Together,
    lists: Sequence[Sequence[Tensor]],
    prepare: Callable[[list[int], dict[str, Any]], None],
    kernel: Any,
    columns: int,
    options: dict[str, Any],
) -> None:
    """Fill a table, launch the kernel that steps its tensors, and write copies back.

    Arguments:
        group: the tensors.
        lists: the operator's, of which all but the gradients (the second) are changed.
        prepare: launches the kernel that writes the table, for the tensors at some places.
        kernel: of the step.
        columns: numbers of the step that a tensor has.
        options: arguments of `kernel`.
    """
    first, count = group.state[0][0], len(group.places)
    width = max(triton.next_power_of_2(count), TENSORS)
    table = first.new_empty(STATE.value + len(lists), width, dtype=torch.int64)
    numbers = first.new_empty(columns, width, dtype=torch.float32)
    start, starts = 0, []
    for tensors in group.state:
        starts.append(start)
        start += triton.cdiv(tensors[0].numel(), CHUNK)
    for at in range(0, count, TENSORS):
        chosen = [*range(at, min(at + TENSORS, count))]
        padded = chosen + chosen[-1:] * (TENSORS - len(chosen))
        arguments = {
            "table": table,
            "numbers": numbers,
            "at": at,
            "start": coded([starts[k] for k in padded]),
            "count": coded([group.state[k][0].numel() for k in padded]),
            "state": tuple(
                coded([group.state[k][row].data_ptr() for k in padded]) for row in range(len(lists))
            ),
            "WIDTH": width,
        }
        prepare([group.places[k] for k in padded], arguments)
    common = {"table": table, "numbers": numbers, "like": first, "tensors": count}
    constants = {"WIDTH": width, "CHUNK": CHUNK, "ALIGNED": group.aligned}
    if start:
        _launch.launch(kernel, (start,), first, common | options | constants)
    for k, place in enumerate(group.places):
        for row, given in enumerate(lists):
            run = group.state[k][row]
            if row != 1 and run.data_ptr() != given[place].data_ptr():
                given[place].copy_(run)


def prepared(
    kernel: Any,
    like: Tensor,
    options: Any,
    rates: Sequence[Tensor],
    kinds: dict[str, bool],
    own: Callable[[list[int]], dict[str, Any]],
) -> Callable[[list[int], dict[str, Any]], None]:
    """The function that `step` calls to fill a table: a launch with a program for each tensor.

    Arguments:
        kernel: writes the table.
        like: a parameter.
        options: the operator's, with `l1`, `maximize`, `grad_scale` and `found_inf`.
        rates, kinds: as `rates_of` returns them.
        own: further arguments for the tensors at some places.
    """

    def prepare(places: list[int], table: dict[str, Any]) -> None:
        arguments = {
            "rates": _rate_arguments([rates[k] for k in places], kinds["HOST"]),
            "l1": tuple(float(options.l1[k]) for k in places),
            "sign": -1.0 if options.maximize else 1.0,
            "grad_scale": options.grad_scale,
            "found_inf": options.found_inf,
        }
        programs = (len(dict.fromkeys(places)),)
        _launch.launch(kernel, programs, like, table | arguments | own(places) | kinds)

    return prepare


def rates_of(rates: Sequence[Tensor], like: Tensor) -> tuple[list[Tensor], dict[str, bool]]:
    """Learning rates that a kernel can read, and the constants that say how."""
    if all(not rate.is_cuda for rate in rates) and like.is_cuda:
        return list(rates), {"HOST": True, "DOUBLE": False}
    dtypes = {rate.dtype for rate in rates}
    if any(rate.device != like.device for rate in rates) or not dtypes <= {torch.float32}:
        if dtypes == {torch.float64}:
            return [rate.to(like.device) for rate in rates], {"HOST": False, "DOUBLE": True}
        return [rate.to(like.device, torch.float32) for rate in rates], READ
    return list(rates), READ


def _rate_arguments(rates: Sequence[Tensor], host: bool) -> tuple[Any, ...]:
    """Rates of the tensors of a launch, as `rate_of` reads them."""
    if host:
        return tuple(float(rate) for rate in rates)
    return coded([rate.data_ptr() for rate in rates])
