"""Reading a user's forward with torch.fx, in both modes, and every tensor's shape."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from clnp.errors import ConvertError

DROPOUTS = {F.dropout: "dropout", F.dropout2d: "dropout2d"}


@dataclass(frozen=True)
class Traced:
    """What was read from a forward.

    Attributes:
        module: the trace in training mode.
        shapes: fx node name -> shape of its tensor.
        off: names of the functional dropouts that are off in training mode too.
    """

    module: fx.GraphModule
    shapes: dict[str, tuple[int, ...]]
    off: frozenset[str]


def read(net: nn.Module, example_input: Tensor) -> Traced:
    """Traces `net`, which is not changed.

    Arguments:
        net: the module.
        example_input: a batch [B, ...] that it accepts.

    Raises:
        ConvertError: what can't be read exactly, and why.
    """
    _refuse_hidden_state(net)
    training, shapes = _symbolic(net, example_input, train=True)
    evaluating, _ = _symbolic(net, example_input, train=False)
    return Traced(training, shapes, _compare_modes(training, evaluating))


def _refuse_hidden_state(net: nn.Module) -> None:
    for name, module in net.named_modules():
        where = f"{name or 'the network'} ({type(module).__name__})"
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if any(getattr(module, kind) for kind in hooks):
            raise ConvertError(f"{where} has hooks, which conversion would lose; remove them first")
        if parametrize.is_parametrized(module):
            raise ConvertError(
                f"{where} is parametrized; call "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
    if any(
        isinstance(m, (nn.DataParallel, nn.parallel.DistributedDataParallel)) for m in net.modules()
    ):
        raise ConvertError(
            "the network is wrapped for parallel training; pass the inner module (.module)"
        )


class _Tracer(fx.Tracer):
    """Looks into every module but torch's own, and knows which module it was in when it stopped."""

    where: str = ""

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.where = f"{self.path_of_module(m)!r} ({type(m).__name__})"
        return super().call_module(m, forward, args, kwargs)


def _symbolic(
    net: nn.Module, example: Tensor, train: bool
) -> tuple[fx.GraphModule, dict[str, tuple[int, ...]]]:
    """Traces in one mode and runs the trace in evaluation mode to learn every tensor's shape."""
    modes = {name: module.training for name, module in net.named_modules()}
    tracer = _Tracer()
    try:
        net.train(train)
        traced = fx.GraphModule(net, tracer.trace(net))
    except Exception as error:
        inside = f", in {tracer.where}" if tracer.where else ""
        raise ConvertError(
            f"{type(net).__name__} can't be traced with torch.fx{inside}: {first_line(error)}. "
            "Control flow that depends on the data, and inputs other than one tensor, can't be "
            "converted"
        ) from error
    finally:
        for name, module in net.named_modules():
            module.training = modes[name]
    if sum(node.op == "placeholder" for node in traced.graph.nodes) != 1:
        raise ConvertError(f"{type(net).__name__} takes more than one input; one tensor is wanted")
    traced.eval()
    recorder = _Recorder(traced)
    with torch.no_grad():
        try:
            recorder.run(example)
        except Exception as error:
            raise ConvertError(
                f"{type(net).__name__} does not accept example_input of shape "
                f"{list(example.shape)}, {example.dtype}, at {recorder.at}: {first_line(error)}"
            ) from error
        finally:
            for name, module in net.named_modules():
                module.training = modes[name]
    return traced, recorder.shapes


class _Recorder(fx.Interpreter):
    """Runs a trace and notes the shape of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.at = "its input"

    def run_node(self, n: fx.Node) -> Any:
        self.at = repr(str(n.target) if n.op == "call_module" else n.name)
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape)
        return value


def first_line(error: Exception) -> str:
    """What went wrong, without the traceback that torch.fx appends."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of a call, given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def place_of(node: fx.Node) -> str:
    """The name of a call, and the module that it stands in."""
    if node.op == "call_module":
        return repr(str(node.target))
    inside = [path for path in node.meta.get("nn_module_stack", ()) if path]
    return repr(node.name) + (f" in {inside[-1]!r}" if inside else "")


def is_stochastic_depth(node: fx.Node) -> bool:
    """Whether the node is torchvision's function, which is not imported for this question."""
    return getattr(node.target, "__module__", None) == "torchvision.ops.stochastic_depth"


def _switch(node: fx.Node) -> tuple[int, bool] | None:
    """(position, default) of the argument `training` of a functional dropout; None for others."""
    if node.op != "call_function":
        return None
    if is_stochastic_depth(node):
        return 3, True
    return (2, True) if node.target in DROPOUTS else None


def _compare_modes(training: fx.GraphModule, evaluating: fx.GraphModule) -> frozenset[str]:
    """The two traces may differ in `F.dropout(training=...)` only; returns the dropouts that are
    off in both.
    """
    first, second = list(training.graph.nodes), list(evaluating.graph.nodes)
    for a, b in itertools.zip_longest(first, second):
        if a is None or b is None or (a.op, str(a.target)) != (b.op, str(b.target)):
            at = " and ".join(place_of(n) for n in (a, b) if n is not None)
            raise ConvertError(
                "the network's forward takes another path in training than in evaluation mode: "
                f"they part at {at}"
            )
    off = set()
    for a, b in zip(first, second, strict=True):
        switch = _switch(a)
        if switch is None:
            continue
        position, default = switch
        if argument(b, position, "training", default):
            raise ConvertError(
                f"{a.name!r}: F.{getattr(a.target, '__name__', 'dropout')} is on in evaluation "
                "mode too; pass training=self.training, or use nn.Dropout"
            )
        if not argument(a, position, "training", default):
            off.add(a.name)
    return frozenset(off)
