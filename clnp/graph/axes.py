"""Steps of reshapes, permutations and indices, judged by what happens to the axis of the channels.

Steps name neither the batch size nor the number of channels, so they hold for any of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from .calls import name_of
from .channels import Value
from .operations import Attrs
from .trace import argument

Step = tuple[str, Attrs]  # operation, attributes
Shape = Sequence[int]
APART = "the channels don't stay on an axis of their own"


class UnclearError(ValueError):
    """A step that mixes channels, or that is not supported; the text is the reason."""


def reshape_steps(
    before: Shape,
    after: Shape,
    value: Value,
    batch: tuple[Shape, Shape],
    is_divided: Callable[[int], bool] = lambda axis: False,
) -> list[Step]:
    """Divide a reshape into steps on single axes.

    Axes of equal prefix products of the shapes begin and end blocks, which are reshaped one by one.

    Arguments:
        before, after: the shapes.
        value: channels of the value that is reshaped.
        batch: axes of the batch before and after.
        is_divided: axis of the result -> whether its entries are used one by one afterwards.

    Raises:
        UnclearError: the channels would not stay on an axis of their own.
    """
    steps = []
    for (i, m), (j, n) in reversed(_blocks(before, after)):
        old = [(before[k], _role(k, value.axis, batch[0])) for k in range(i, m)]
        new = [(after[k], "batch" if k in batch[1] else "") for k in range(j, n)]
        if old != new:
            divided = {k - j for k in range(j, n) if is_divided(k)}
            steps += _block_steps(i, old, new, value.positions, divided)
    return steps


def _role(k: int, axis: int | None, batch: Shape) -> str:
    return "channels" if k == axis else "batch" if k in batch else ""


def _blocks(before: Shape, after: Shape) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Smallest ranges of axes, before and after, with equal products of sizes."""
    found = []
    i = j = 0
    while i < len(before) and j < len(after):
        m, n = i + 1, j + 1
        p, q = before[i], after[j]
        while p != q:
            if p < q:
                p, m = p * before[m], m + 1
            else:
                q, n = q * after[n], n + 1
        found.append(((i, m), (j, n)))
        i, j = m, n
    (i, m), (j, n) = found[-1]  # axes of size 1 at the end belong to the last block
    found[-1] = (i, len(before)), (j, len(after))
    return found


def _block_steps(
    start: int,
    old: list[tuple[int, str]],
    new: list[tuple[int, str]],
    positions: int,
    divided: set[int],
) -> list[Step]:
    steps: list[Step] = []
    gone = [k for k, (size, role) in enumerate(old) if size == 1 and not role]
    if len(gone) == len(old):
        gone = gone[1:]
    for k in reversed(gone):
        steps.append(("squeeze", {"dim": start + k}))
    kept = [part for k, part in enumerate(old) if k not in gone]
    roles = {role for _, role in kept if role}
    if "channels" in roles and len(roles) == 1 and kept[-1][1] == "channels" != kept[0][1]:
        return steps + _tiled_steps(start, kept, new, positions)
    if len(roles) > 1 or ("channels" in roles and kept[0][1] != "channels"):
        raise UnclearError(APART)
    whole = 1
    for size, _ in kept:
        whole *= size
    channels = kept[0][0] // positions if roles == {"channels"} else 0
    if len(kept) > 1:
        attrs: Attrs = {"start_dim": start, "end_dim": start + len(kept) - 1}
        steps.append(("flatten", attrs | ({"positions": whole // channels} if channels else {})))
    return steps + _split_steps(start, new, channels, divided)


def _tiled_steps(
    start: int, kept: list[tuple[int, str]], new: list[tuple[int, str]], positions: int
) -> list[Step]:
    """Steps from axes whose last has the channels to one, where each channel occurs repeatedly."""
    if sum(size > 1 for size, _ in new) > 1 or positions > 1:
        raise UnclearError(APART)
    steps: list[Step] = [("tiled", {"start": start, "end": start + len(kept) - 1})]
    steps[0][1]["times"] = math.prod(size for size, _ in kept[:-1])
    large = next(k for k, (size, _) in enumerate(new) if size > 1)
    return steps + [("insert_axis", {"dim": start + k}) for k in range(len(new)) if k != large]


def _split_steps(
    start: int, new: list[tuple[int, str]], channels: int, divided: set[int]
) -> list[Step]:
    """Steps from one axis to several; the channels, if any, go to the first of a size above 1.

    If that is smaller than the number of channels, it has heads of several channels each; if its
    entries are used one by one (queries, keys, values), the heads are on the next axis.
    """
    large = [k for k, (size, role) in enumerate(new) if size > 1 or role]
    large = large or [0]
    sizes = [-1 if new[k][1] else new[k][0] for k in large]
    attrs: Attrs = {"dim": start, "sizes": sizes}
    op = "unflatten"
    if channels:
        first = new[large[0]][0]
        sizes[0] = -1
        if first % channels == 0:
            attrs["positions"] = first // channels
        elif large[0] in divided and len(large) > 1:
            op, sizes[1] = "packed", first
        else:
            op = "heads"
    steps: list[Step] = [(op, attrs)] if len(large) > 1 else []
    steps += [("insert_axis", {"dim": start + k}) for k in range(len(new)) if k not in large]
    return steps


def permutation(node: Any, dims: int) -> list[int]:
    """Return the order of axes that a permute, transpose, movedim or `.T` gives.

    Raises:
        UnclearError: the arguments are not understood.
    """
    name = node.args[1] if node.target is getattr else getattr(node.target, "__name__", node.target)
    order = list(range(dims))
    if name in ("T", "t"):
        return order[::-1]
    if name in ("mT", "mH"):
        return [*order[:-2], order[-1], order[-2]]
    if name in ("transpose", "swapaxes", "swapdims"):
        names = (("dim0", "axis0"), ("dim1", "axis1"))
        a, b = (_axis(node, k + 1, names[k], dims) for k in range(2))
        order[a], order[b] = order[b], order[a]
        return order
    if name == "permute":
        given = node.args[1:] or (node.kwargs["dims"],)
        first: Any = given[0]
        return [int(d) % dims for d in (first if isinstance(first, list | tuple) else given)]
    source, target = argument(node, 1, "source", None), argument(node, 2, "destination", None)
    pairs = zip(*([v] if isinstance(v, int) else v for v in (source, target)), strict=True)
    moved = {int(b) % dims: int(a) % dims for a, b in pairs}
    rest = iter(d for d in order if d not in moved.values())
    return [moved[d] if d in moved else next(rest) for d in order]


def _axis(node: fx.Node, position: int, names: tuple[str, ...], dims: int) -> int:
    for name in names:
        found = argument(node, position, name, None)
        if isinstance(found, int):
            return found % dims
    raise UnclearError("its arguments aren't plain numbers")


def index_steps(index: Any, shape: Shape) -> list[Step]:
    """Divide x[index] into slices, selections and new axes.

    Raises:
        UnclearError: an index by a tensor or a list.
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    used = sum(part is not None and part is not Ellipsis for part in parts)
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (len(shape) - used)
    steps: list[Step] = []
    dim, source = 0, 0
    for part in parts:
        if part is None:
            steps.append(("insert_axis", {"dim": dim}))
            dim += 1
        elif isinstance(part, slice):
            start, stop, step = part.indices(shape[source])
            if (start, stop, step) != (0, shape[source], 1):
                steps.append(("slice", {"dim": dim, "start": start, "stop": stop, "step": step}))
            dim, source = dim + 1, source + 1
        elif isinstance(part, int) and not isinstance(part, bool):
            steps.append(("select", {"dim": dim, "index": part % shape[source]}))
            source += 1
        else:
            raise UnclearError("only indices by numbers and slices are supported")
    return steps


def parts_of(node: fx.Node, sizes: list[Shape], dim: int, index: int) -> list[Step]:
    """Steps of one result of a chunk, split or unbind along `dim`; `sizes` are all results'."""
    name = str(getattr(node.target, "__name__", node.target))
    if name == "unbind":
        return [("select", {"dim": dim, "index": index})]
    start = sum(size[dim] for size in sizes[:index])
    stop = start + sizes[index][dim]
    return [("slice", {"dim": dim, "start": start, "stop": stop, "step": 1})]


def is_divided(node: fx.Node, dims: int, axis: int) -> bool:
    """Return whether the entries of an axis of a value are used one by one, as queries and keys.

    Arguments:
        node: the value.
        dims: its number of axes.
        axis: one of them.
    """
    for user in node.users:
        name = name_of(user.target)
        at = axis
        if name in ("transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis"):
            at = permutation(user, dims).index(axis)
        elif name not in ("contiguous", "clone"):
            if _divides(user, name, dims, axis):
                return True
            continue
        if is_divided(user, dims, at):
            return True
    return False


def _divides(user: fx.Node, name: str, dims: int, axis: int) -> bool:
    """Return whether a call takes entries of an axis."""
    if name in ("unbind", "chunk", "split", "tensor_split", "split_with_sizes"):
        dim = argument(user, 1 if name == "unbind" else 2, "dim", 0)
        return isinstance(dim, int) and dim % dims == axis
    if name in ("select", "narrow"):
        dim = argument(user, 1, "dim", None)
        return isinstance(dim, int) and dim % dims == axis
    if name == "getitem":
        index = user.args[1]
        parts = list(index) if isinstance(index, tuple) else [index]
        if Ellipsis in parts:
            at = parts.index(Ellipsis)
            used = sum(part is not None and part is not Ellipsis for part in parts)
            parts[at : at + 1] = [slice(None)] * (dims - used)
        parts = [part for part in parts if part is not None]
        return axis < len(parts) and parts[axis] != slice(None)
    return False


def shuffle_before(
    last: fx.Node, shapes: dict[str, Any]
) -> tuple[fx.Node, int, list[fx.Node]] | None:
    """Recognise the end of view(B, G, C / G, ...), transpose(1, 2), view(B, C, ...).

    Returns:
        the value whose channels are shuffled, G, and the operations between; None for another call.
    """
    between: list[fx.Node] = []
    node = last
    for names in (RESHAPING, ("contiguous",), ("transpose", "swapaxes", "permute"), RESHAPING):
        name = getattr(node.target, "__name__", node.target)
        if name not in names:
            if names == ("contiguous",):
                continue
            return None
        between.append(node)
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.name not in shapes:
            return None
        node = source
    inner = [n for n in between if n is not last]
    before, wide, turned = (shapes[n.name] for n in (node, inner[-1], inner[-2]))
    split = len(wide) == len(before) + 1 and wide[3:] == before[2:] and len(before) > 1
    swapped = split and turned == (wide[0], wide[2], wide[1], *wide[3:])
    order = swapped and permutation(inner[-2], len(wide)) == [0, 2, 1, *range(3, len(wide))]
    if not order or shapes[last.name] != before or any(len(n.users) > 1 for n in inner):
        return None
    return node, int(wide[1]), inner


RESHAPING = ("view", "reshape", "flatten", "unflatten")
