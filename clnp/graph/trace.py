"""Two records of a user's forward, in training and in evaluation mode, at two batch sizes."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..errors import ConvertError, first_line
from .calls import RecordError
from .recorder import Recorder, Run, stochastic_depth
from .statics import Static

DROPOUTS: dict[Any, str] = {F.dropout: "dropout", F.dropout2d: "dropout2d"}
NORMS = (F.batch_norm, F.instance_norm)
# Functions and methods whose arguments may name the batch size; their results are compared instead.
SHAPES = (
    *("view", "reshape", "expand", "unflatten", "repeat", "narrow", "resize", "new_zeros"),
    *(torch.reshape, torch.unflatten, torch.narrow, operator.getitem, torch.broadcast_to),
)
BATCHES = (2, 3)  # examples of the records in evaluation and in training mode
Leaf = Callable[[nn.Module, Any], bool]


@dataclass(frozen=True)
class Traced:
    """A traced forward.

    Attributes:
        graph: the operations, in training mode.
        run: shapes and memory of their values, with a batch of `BATCHES[1]` examples.
        batched: node -> axes whose size is the batch size or a multiple of it.
        off: names of the functional dropouts that are off in training mode too.
        x: random numbers [BATCHES[0], ...] of the example's shape.
    """

    graph: fx.Graph
    run: Run
    batched: dict[str, tuple[int, ...]]
    off: frozenset[str]
    x: Tensor


def read(net: nn.Module, draw: Callable[[int], Tensor], leaf: Leaf) -> Traced:
    """Record `net` without changing its tensors.

    Arguments:
        net: the module.
        draw: number of examples B -> random batch [B, ...] of the shape that it accepts.
        leaf: (module, arguments) -> whether its call is one operation.

    Raises:
        ConvertError: naming the part that can't be recorded exactly, and the reason.
    """
    x = draw(BATCHES[0])
    evaluating = _recorded(net, x, leaf, train=False)
    training = _recorded(net, draw(BATCHES[1]), leaf, train=True)
    off, batched = _compare(training, evaluating)
    return Traced(training.graph, training.run, batched, off, x)


@contextlib.contextmanager
def _undisturbed(net: nn.Module) -> Iterator[None]:
    """Restore all buffers and attributes of modules afterwards, also what a forward stores.

    Plain numbers keep their new value, so that a forward that counts its calls differs in the next
    record and is refused.
    """
    saved = []
    learned = [p for p in net.parameters() if p.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    for module in net.modules():
        state = dict(vars(module))
        state |= {key: state[key].copy() for key in ("_parameters", "_buffers", "_modules")}
        saved.append((module, state))
    try:
        for parameter in learned:  # autograd forbids some writes that are fine without it
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
        for module, state in saved:
            numbers = {k: v for k, v in vars(module).items() if type(v) in (int, float)}
            vars(module).clear()
            vars(module).update(state | numbers)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _recorded(net: nn.Module, x: Tensor, leaf: Leaf, train: bool) -> Recorder:
    recorder = Recorder(net, leaf)
    net.train(train)
    try:
        with _undisturbed(net):
            recorder.record(net, x.clone())
    except RecordError as error:
        inside = f", in {recorder.where}" if recorder.where else ""
        raise ConvertError(f"{type(net).__name__} can't be traced{inside}: {error}") from error
    except ConvertError:
        raise
    except Exception as error:
        raise _failure(net, recorder, x, error) from error
    return recorder


def _failure(net: nn.Module, recorder: Recorder, x: Tensor, error: Exception) -> ConvertError:
    try:
        inspect.signature(net.forward).bind(x)
    except TypeError:
        return ConvertError(f"{type(net).__name__}.forward: expected one tensor as its only input")
    for node in recorder.graph.nodes:
        if "refusal" in node.meta:
            return ConvertError(f"{place_of(node)} can't be converted: {node.meta['refusal']}")
    inside = f"; {recorder.where} fails" if recorder.where else ""
    return ConvertError(
        f"{type(net).__name__} does not accept example_input of shape {list(x.shape)}, "
        f"{x.dtype}{inside}: {first_line(error)}. Its forward must accept batches of any size"
    )


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """Return an argument of a call, given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def place_of(node: fx.Node) -> str:
    """Name a call, and the module it is in, for messages."""
    if node.op == "call_module":
        return repr(str(node.target))
    inside = [path for path in node.meta.get("nn_module_stack", ()) if path]
    return repr(node.name) + (f" in {inside[-1]!r}" if inside else "")


def _switch(node: fx.Node) -> tuple[int, bool] | None:
    """(position, default) of the argument for the mode of dropouts and norms; None for others."""
    if node.op != "call_function":
        return None
    if node.target in NORMS:
        return 5, node.target is F.instance_norm
    if node.target is F.multi_head_attention_forward:
        return 13, True
    if node.target is F.scaled_dot_product_attention:
        return 4, False
    return (2, True) if node.target in DROPOUTS else None


def _compare(training: Recorder, evaluating: Recorder) -> tuple[frozenset[str], Any]:
    """Check that two records differ in dropouts, modes of norms and the batch size only.

    Returns:
        names of the functional dropouts that are off in both, and the axes with the batch.
    """
    numbers: dict[fx.Node, str] = {}
    off, batched = set(), {}
    first = [n for n in _live(training) if n.target is not stochastic_depth]
    for a, b in itertools.zip_longest(first, _live(evaluating)):
        if a is None or b is None or (a.op, str(a.target)) != (b.op, str(b.target)):
            at = " and ".join(place_of(n) for n in (a, b) if n is not None)
            raise ConvertError(
                "the network's forward takes different paths in training and in evaluation mode: "
                f"they part at {at}"
            )
        numbers[a] = numbers[b] = f"%{len(numbers)}"
        for drop in a.users:
            if drop.target is stochastic_depth:
                numbers[drop] = numbers[a]
        axes = _batch_axes(training.run.shapes.get(a.name), evaluating.run.shapes.get(b.name))
        switch = _switch(a)
        differ = _arguments(a, numbers, switch) != _arguments(b, numbers, switch)
        if axes is None or (differ and a.target not in SHAPES) or not _same_static(a, b):
            a.meta["refusal"] = (
                "its arguments differ between training and evaluation mode, with the batch size, "
                "or from call to call"
            )
        batched[a.name] = axes or ()
        if a.target in DROPOUTS and _is_off(a, b):
            off.add(a.name)
        if b.target is F.scaled_dot_product_attention and argument(b, 4, "dropout_p", 0.0):
            raise ConvertError(
                f"{place_of(b)}: its dropout is active in evaluation mode too; pass "
                "dropout_p=p if self.training else 0.0"
            )
    batched |= {n.name: (0,) for n in training.graph.nodes if n.target is stochastic_depth}
    return frozenset(off), batched


def _live(recorder: Recorder) -> list[fx.Node]:
    """Return the nodes that the result depends on, also by a change of memory, in their order.

    Others, as an auxiliary head, may differ between the modes.
    """
    run, nodes = recorder.run, recorder.graph.nodes
    live: set[fx.Node] = set()
    memory: set[int] = set()
    stack = [n for n in nodes if n.op in ("placeholder", "output")]
    while stack:
        while stack:
            node = stack.pop()
            if node not in live:
                live.add(node)
                memory |= run.storages.get(node.name, frozenset())
                stack.extend(node.all_input_nodes)
        stack = [
            n for n in nodes if n not in live and run.changed.get(n.name, frozenset()) & memory
        ]
    return [node for node in nodes if node in live]


def _is_off(a: fx.Node, b: fx.Node) -> bool:
    if argument(b, 2, "training", True):
        raise ConvertError(
            f"{a.name!r}: F.{getattr(a.target, '__name__', 'dropout')} is active in evaluation "
            "mode too; pass training=self.training, or use nn.Dropout"
        )
    return not argument(a, 2, "training", True)


def _batch_axes(a: tuple[int, ...] | None, b: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Axes that grow with the batch; None if the shapes differ in another way."""
    if a is None or b is None or len(a) != len(b):
        return () if a == b else None
    axes = tuple(i for i, (m, n) in enumerate(zip(a, b, strict=True)) if m != n)
    grows = all(a[i] * BATCHES[0] == b[i] * BATCHES[1] for i in axes)
    return axes if grows else None


def _same_static(a: fx.Node, b: fx.Node) -> bool:
    """Return whether two nodes stand for the same numbers, if they don't depend on the input."""
    one, two = a.meta.get("static"), b.meta.get("static")
    if not isinstance(one, Static) or not isinstance(two, Static):
        return one is two
    if one.name or two.name or one.random or two.random:
        return one.name == two.name and one.random == two.random
    m, n = one.value, two.value
    if m.dim() == n.dim():  # a tensor that was expanded to the batch has equal rows
        m, n = _first_rows(m), _first_rows(n)
    return m.shape == n.shape and m.dtype == n.dtype and torch.equal(m, n)


def _first_rows(value: Tensor) -> Tensor:
    if value.dim() and len(value) in BATCHES and bool((value == value[:1]).all()):
        return value[:1]
    return value


def _arguments(node: fx.Node, names: dict[fx.Node, str], switch: tuple[int, bool] | None) -> str:
    """Format the arguments of a call, without the mode of a dropout or norm."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: names[n])
    if switch:
        args = (*args[: switch[0]], *args[switch[0] + 1 :])
        left = ("training", "use_input_stats", "dropout_p")
        kwargs = {key: value for key, value in kwargs.items() if key not in left}
    return repr((args, sorted(kwargs.items())))
