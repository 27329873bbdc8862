"""Tracing of a user's forward with torch.fx, in training and in evaluation mode."""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..errors import ConvertError, first_line
from .recorder import Recorder, Run

WRITES: tuple[Callable[..., Any], ...] = (
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv),
    *(operator.imod, operator.ipow, operator.imatmul, operator.iand, operator.ior, operator.ixor),
    *(operator.ilshift, operator.irshift),
)
DROPOUTS = {F.dropout: "dropout", F.dropout2d: "dropout2d"}


@dataclass(frozen=True)
class Traced:
    """A traced forward.

    Attributes:
        module: the trace in evaluation mode.
        run: record of one run of it on `x`.
        x: random numbers of the example's shape [B, ...].
        off: names of the functional dropouts that are off in training mode too.
    """

    module: fx.GraphModule
    run: Run
    x: Tensor
    off: frozenset[str]


def read(net: nn.Module, x: Tensor) -> Traced:
    """Trace `net` without changing its tensors.

    Arguments:
        net: the module.
        x: a batch [B, ...] that it accepts.

    Raises:
        ConvertError: naming the part that can't be traced exactly, and the reason.
    """
    training = _symbolic(net, train=True)
    evaluating = _symbolic(net, train=False)
    off = _compare_modes(training, evaluating)
    return Traced(evaluating, _run(net, evaluating, x), x, off)


class _Writes:
    """In-place writes of a torch.fx proxy.

    torch.fx itself records `x += y` as `x = x + y`, ignores `x.data = y`, and refuses `x[i] = y`.
    """

    def __setitem__(self, index: Any, value: Any) -> None:
        args = (self, index, value)
        self.tracer.create_proxy("call_function", operator.setitem, args, {})  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "_node", "root", "attr"):
            raise TypeError(f"it sets the attribute {name!r} of a tensor")
        super().__setattr__(name, value)


def _write(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _function in WRITES:
    setattr(_Writes, f"__{_function.__name__}__", _write(_function))


class _Proxy(_Writes, fx.Proxy):
    def __getattr__(self, name: str) -> Any:
        return _Attribute(self, name)


class _Attribute(_Writes, fx.proxy.Attribute):
    pass


class _Tracer(fx.Tracer):
    """Tracer that enters every module but torch's own and remembers the last one it called."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def __init__(self) -> None:
        super().__init__()
        self.where = ""
        self.autocast = _autocast()

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.where = f"{self.path_of_module(m)!r} ({type(m).__name__})"
        return super().call_module(m, forward, args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        if not torch.is_grad_enabled():
            node.meta["refusal"] = (
                "it runs under torch.no_grad(), which conversion would lose; remove that"
            )
        elif _autocast() != self.autocast:
            node.meta["refusal"] = (
                "it runs under torch.autocast, which conversion would lose; put autocast around "
                "the calls of the network"
            )
        return node


def _autocast() -> list[bool]:
    return [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")]


@contextlib.contextmanager
def _undisturbed(net: nn.Module) -> Iterator[None]:
    """Restore the attributes of all modules afterwards: modes, and values that a forward stores.

    Plain numbers keep their new value, so that a forward that counts its calls differs in the next
    trace and is refused.
    """
    saved = []
    for module in net.modules():
        state = dict(vars(module))
        state |= {key: state[key].copy() for key in ("_parameters", "_buffers", "_modules")}
        saved.append((module, state))
    try:
        yield
    finally:
        for module, state in saved:
            numbers = {k: v for k, v in vars(module).items() if type(v) in (int, float)}
            vars(module).clear()
            vars(module).update(state | numbers)


def _symbolic(net: nn.Module, train: bool) -> fx.GraphModule:
    tensors = dict([*net.named_parameters(), *net.named_buffers()])
    versions = {name: tensor._version for name, tensor in tensors.items()}
    tracer = _Tracer()
    with _undisturbed(net):
        net.train(train)
        try:
            traced = fx.GraphModule(net, tracer.trace(net))
        except Exception as error:
            inside = f", in {tracer.where}" if tracer.where else ""
            raise ConvertError(
                f"{type(net).__name__} can't be traced with torch.fx{inside}: {first_line(error)}. "
                "Remove control flow that depends on the data, and inputs other than one tensor"
            ) from error
    for name, tensor in tensors.items():
        if tensor._version != versions[name]:
            raise ConvertError(
                f"forward changes {name!r}; a network that changes its own tensors in every call "
                "can't be converted"
            )
    if sum(node.op == "placeholder" for node in traced.graph.nodes) != 1:
        raise ConvertError(f"{type(net).__name__}.forward: expected one tensor as its only input")
    return traced


def _run(net: nn.Module, traced: fx.GraphModule, x: Tensor) -> Run:
    with _undisturbed(net), torch.no_grad():
        traced.eval()
        recorder = Recorder(traced)
        try:
            recorder.run(x.clone())
        except Exception as error:
            raise ConvertError(
                f"{type(net).__name__} does not accept example_input of shape {list(x.shape)}, "
                f"{x.dtype}; {recorder.at} fails: {first_line(error)}"
            ) from error
    return recorder.record


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


def is_stochastic_depth(node: fx.Node) -> bool:
    """Return whether the node calls torchvision's stochastic depth, without importing it."""
    return getattr(node.target, "__module__", None) == "torchvision.ops.stochastic_depth"


def _switch(node: fx.Node) -> tuple[int, bool] | None:
    """(position, default) of the argument `training` of a functional dropout; None for others."""
    if node.op != "call_function":
        return None
    if is_stochastic_depth(node):
        return 3, True
    return (2, True) if node.target in DROPOUTS else None


def _compare_modes(training: fx.GraphModule, evaluating: fx.GraphModule) -> frozenset[str]:
    """Check that the two traces differ in `F.dropout(training=...)` only.

    Returns:
        names of the functional dropouts that are off in both.
    """
    first, second = (_numbered(traced) for traced in (training, evaluating))
    off = set()
    for a, b in itertools.zip_longest(first, second):
        if a is None or b is None or (a.op, str(a.target)) != (b.op, str(b.target)):
            at = " and ".join(place_of(n) for n in (a, b) if n is not None)
            raise ConvertError(
                "the network's forward takes different paths in training and in evaluation mode: "
                f"they part at {at}"
            )
        switch = _switch(a)
        if _arguments(a, first, switch) != _arguments(b, second, switch):
            b.meta["refusal"] = (
                "its arguments differ between training and evaluation mode, or from call to call"
            )
        if switch is None:
            continue
        position, default = switch
        if argument(b, position, "training", default):
            raise ConvertError(
                f"{a.name!r}: F.{getattr(a.target, '__name__', 'dropout')} is active in evaluation "
                "mode too; pass training=self.training, or use nn.Dropout"
            )
        if not argument(a, position, "training", default):
            off.add(b.name)
    return frozenset(off)


def _numbered(traced: fx.GraphModule) -> dict[fx.Node, str]:
    return {node: f"%{i}" for i, node in enumerate(traced.graph.nodes)}


def _arguments(node: fx.Node, names: dict[fx.Node, str], switch: tuple[int, bool] | None) -> str:
    """Format the arguments of a call, without the mode of a functional dropout."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: names[n])
    if switch:
        args = (*args[: switch[0]], *args[switch[0] + 1 :])
        kwargs = {key: value for key, value in kwargs.items() if key != "training"}
    return repr((args, sorted(kwargs.items())))
