"""Record of one call of a module: the operations it runs, their shapes, memory and changes.

The module runs on real tensors under a `TorchFunctionMode`, which sees every operation of PyTorch
that Python calls. Everything else is ordinary Python: control flow on shapes, default arguments,
assertions, containers. Two other ways were weighed:

- `torch.fx` passes proxies instead of tensors, so `x.size(3)` as an argument, `x.dim()` tests and
  `forward(x, mask=None)` fail, and every class that isn't PyTorch's needs its own rule.
- `torch.export` lowers to ATen. It loses the names of modules and in-place changes, its
  decompositions depend on the version of PyTorch, and dropout, batch norms and symbolic shapes need
  a pass each to be undone. It takes seconds where this takes two forward passes.

A batch size that forward reads is a plain number here. `trace.read` therefore records two calls, at
different batch sizes.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from clnp_kernels.torch_private import pre_hooks

from .calls import (
    FRESH,
    NORMS,
    NUMBERS,
    TEMPLATED,
    Call,
    RecordError,
    call_of,
    is_in_place,
    name_of,
    tensors_of,
)
from .statics import Static, result_of

CONVOLUTIONS = frozenset(
    function
    for axes in "123"
    for name in (f"conv{axes}d", f"conv_transpose{axes}d")
    for function in (getattr(torch, name), getattr(F, name))
)
Place = tuple[int, int, tuple[int, ...], tuple[int, ...], torch.dtype]


def stochastic_depth(x: Tensor, p: float, mode: str) -> Tensor:
    """Stand in a record for the product of x and scaled random bits, one per example or batch."""
    raise NotImplementedError


@dataclass
class Run:
    """Record of a call; keys are names of fx nodes.

    Attributes:
        shapes: shape of every tensor.
        places: (storage, offset, shape, strides, dtype) of every tensor; tensors of equal place
            are the same numbers.
        storages: storages of all tensors in a value, which may be a tuple.
        changed: storages that a node wrote to.
        result: return value of the module.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    storages: dict[str, frozenset[int]] = field(default_factory=dict)
    changed: dict[str, frozenset[int]] = field(default_factory=dict)
    result: Any = None


class Recorder(TorchFunctionMode):
    """Context in which calls of a module are recorded.

    Operations that depend on the input become nodes of `graph`. What forward computes without it is
    a `Static`, in the `meta["static"]` of a `get_attr` node where it is used.

    Arguments:
        net: the module.
        leaf: (module, arguments) -> whether its call is recorded as one node.

    Attributes:
        graph: the recorded operations.
        run: shapes and memory of their values.
        where: the module that was entered last, for messages.
    """

    def __init__(self, net: nn.Module, leaf: Callable[[nn.Module, Any], bool]) -> None:
        super().__init__()
        self.graph, self.run, self.where = fx.Graph(), Run(), ""
        self._leaf, self._thread, self._modes = leaf, threading.get_ident(), _autocast()
        self._paths = {id(module): path for path, module in reversed([*net.named_modules()])}
        self._computed: set[int] = set()
        self._stack = [""]
        self._inside = 0  # number of modules entered within a leaf, with the leaf
        self._nodes: dict[int, fx.Node] = {}  # id of a tensor -> its node
        self._statics: dict[int, Static] = {}  # id of a tensor -> its description
        self._alive: list[Any] = []  # so that no id or storage is used twice
        self._own: dict[int, str] = {}  # storage -> parameter or buffer
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            learned = [name] if isinstance(tensor, nn.Parameter) else []
            self._statics[id(tensor)] = Static(tensor, name, frozenset(learned))
            self._own[self._storage(tensor)] = name

    def record(self, net: nn.Module, x: Tensor) -> None:
        """Call `net(x)` and record it."""
        self._register(self.graph.placeholder("x"), x)
        handles = []
        for module in net.modules():
            if parametrize.is_parametrized(module) or pre_hooks(module):
                self._computed.add(id(module))  # before its call, so the call isn't one operation
            options: dict[str, bool] = {"prepend": True, "with_kwargs": True}
            handles.append(module.register_forward_pre_hook(self._enter, **options))
            handles.append(module.register_forward_hook(self._leave, **options))
        try:
            with self:
                self.run.result = net(x)
        finally:
            for handle in handles:
                handle.remove()
        self.graph.output(self._argument(self.run.result))

    # Modules

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        path = self._paths[id(module)]
        self.where = f"{path!r} ({type(module).__name__})" if path else ""
        self._stack.append(path)
        if self._inside or self._is_leaf(module, (*args, *kwargs.values())):
            self._inside += 1

    def _is_leaf(self, module: nn.Module, args: tuple[Any, ...]) -> bool:
        return id(module) not in self._computed and self._leaf(module, args)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
        if threading.get_ident() != self._thread:
            return None
        path = self._stack.pop()
        if not self._inside:
            return None
        try:  # what follows is not recorded either
            return self._add_module(path, module, args, kwargs, result)
        finally:
            self._inside -= 1

    def _add_module(self, path: str, module: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
        if self._inside > 1:
            return None
        call = Call("call_module", path, args, kwargs)
        given = [*tensors_of((args, kwargs))]
        if any(self._depends(tensor) for tensor in given):
            written = given[:1] if getattr(module, "inplace", False) else []
            return self._add(call, result, written)
        parameters = [self._static(p) for p in module.parameters()]
        for tensor in tensors_of(result):
            statics = [*map(self._static, given), *parameters]
            self._describe(tensor, result_of(call, path, tensor, statics))
        return None

    # Operations

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if threading.get_ident() != self._thread:
            return func(*args, **kwargs)
        if self._inside:
            return self._result(func, args, kwargs)
        call = call_of(func, args, kwargs)
        if call is None:
            return func(*args, **kwargs)
        given = [*tensors_of((args, kwargs))]
        numbers = given[:1] if name_of(func) in TEMPLATED else given
        depends = any(self._depends(tensor) for tensor in numbers)
        if depends and name_of(func) in NUMBERS:
            raise RecordError(
                f"{name_of(func).strip('_')!r} reads numbers that depend on the input, for "
                "example to decide what to do next"
            )
        before = [tensor._version for tensor in given]
        result = self._result(func, args, kwargs)
        written = [t for t, v in zip(given, before, strict=True) if t._version != v]
        if is_in_place(func, args, kwargs) and given and not _among(given[0], written):
            written.append(given[0])  # it may leave the numbers as they are in this mode only
        if func in NORMS:  # the statistics belong to the layer
            written = [tensor for tensor in written if tensor is args[0]]
        if depends and name_of(func) not in FRESH:
            no_tensor = next(tensors_of(result), None) is None
            return result if no_tensor and not written else self._add(call, result, written)
        self._add_static(func, call, result, written)
        return result

    def _result(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation; numbers that don't depend on the input are needed later."""
        depends = any(self._depends(tensor) for tensor in tensors_of((args, kwargs)))
        return _run(func, args, kwargs) if depends else func(*args, **kwargs)

    def _depends(self, tensor: Tensor) -> bool:
        node = self._nodes.get(id(tensor))
        return node is not None and "static" not in node.meta

    def _add(self, call: Call, result: Any, written: list[Tensor]) -> Any:
        """Record a call that depends on the input; return its result."""
        call = self._as_drop(call) or call
        given = [*tensors_of((call.args, call.kwargs))]
        args, kwargs = self._argument(call.args), self._argument(call.kwargs)
        node = self.graph.create_node(call.op, call.target, args, kwargs)
        node.meta["nn_module_stack"] = dict.fromkeys(self._stack)
        refusal = self._refusal(given)
        if refusal:
            node.meta["refusal"] = refusal
        self.run.changed[node.name] = frozenset(map(self._storage, written))
        result = _own_objects(result, [t for t in given if not _among(t, written)])
        for tensor in written:
            if not self._depends(tensor):  # later reads of this object see the change
                self._nodes[id(tensor)] = node
        self._register(node, result)
        return result

    def _refusal(self, given: list[Tensor]) -> str:
        if any(self._static(t).random for t in given if not self._depends(t)):
            return "it uses random numbers that forward draws; use nn.Dropout"
        if not torch.is_grad_enabled():
            return "it runs under torch.no_grad(), which conversion would lose; remove that"
        if _autocast() != self._modes:
            return (
                "it runs under torch.autocast, which conversion would lose; put autocast around "
                "the calls of the network"
            )
        return ""

    def _as_drop(self, call: Call) -> Call | None:
        """Recognise x * noise, where noise is bits of probability q divided by q, per example."""
        if call.target != "mul" or len(call.args) != 2 or call.kwargs:
            return None
        x, noise = call.args if self._depends(call.args[0]) else call.args[::-1]
        if not isinstance(noise, Tensor) or self._depends(noise) or noise.dim() != x.dim():
            return None
        keep = self._static(noise).keep
        if keep is None or not keep[1] or noise[0].numel() != 1:
            return None
        mode = "row" if len(noise) == len(x) > 1 else "batch"
        return Call("call_function", stochastic_depth, (x, round(1 - keep[0], 12), mode), {})

    # Values

    def _add_static(self, func: Any, call: Call, result: Any, written: list[Tensor]) -> None:
        given = [self._static(tensor) for tensor in tensors_of((call.args, call.kwargs))]
        counter = f"{self._stack[-1]}.num_batches_tracked".lstrip(".")
        for tensor in written:
            name = self._own.get(self._storage(tensor))
            if name is not None and name != counter:
                raise RecordError(
                    f"{name_of(func)!r} changes {name!r} in place; a network that changes its own "
                    "tensors in every call can't be converted"
                )
        for tensor in [*tensors_of(result), *written]:
            if not self._static(tensor).name:  # a parameter stays what it is
                self._describe(tensor, result_of(call, func, tensor, given))

    def _static(self, tensor: Tensor) -> Static:
        return self._statics.get(id(tensor)) or Static(tensor)

    def _describe(self, tensor: Tensor, static: Static) -> None:
        self._statics[id(tensor)] = static
        self._nodes.pop(id(tensor), None)
        self._alive.append(tensor)

    def _argument(self, value: Any) -> Any:
        """Replace tensors in the arguments of a call by nodes."""
        if isinstance(value, Tensor):
            return self._nodes.get(id(value)) or self._node_of(value)
        if isinstance(value, list | tuple):
            parts = [self._argument(part) for part in value]
            return tuple(parts) if isinstance(value, tuple) else parts
        if isinstance(value, dict):
            return {str(key): self._argument(part) for key, part in value.items()}
        if isinstance(value, slice):
            return slice(*map(self._argument, (value.start, value.stop, value.step)))
        if isinstance(value, fx.node.base_types) or value in (None, Ellipsis):
            return value
        return int(value) if hasattr(value, "__index__") else str(value)

    def _node_of(self, tensor: Tensor) -> fx.Node:
        """Add a node for a tensor that doesn't depend on the input."""
        static = self._static(tensor)
        node = self.graph.create_node("get_attr", static.name or "_made")
        node.meta["static"] = static.copied()
        self._register(node, tensor)
        return node

    def _register(self, node: fx.Node, value: Any) -> None:
        """Note shapes and memory of a node's value, and which tensors are it."""
        run = self.run
        run.changed.setdefault(node.name, frozenset())
        run.storages[node.name] = frozenset(map(self._storage, tensors_of(value)))
        self._alive.append(value)
        if isinstance(value, Tensor):
            self._nodes[id(value)] = node
            shape, offset = tuple(value.shape), int(value.storage_offset())
            run.shapes[node.name] = shape
            strides = tuple(value.stride())
            run.places[node.name] = (self._storage(value), offset, shape, strides, value.dtype)
        elif isinstance(value, list | tuple) and node.op != "placeholder":
            for i, part in enumerate(value):
                if isinstance(part, Tensor):
                    item = self.graph.call_function(operator.getitem, (node, i))
                    item.meta = {"nn_module_stack": node.meta.get("nn_module_stack", {})}
                    self._register(item, part)

    def _storage(self, tensor: Tensor) -> int:
        if tensor.layout != torch.strided or tensor.is_meta:
            return id(tensor)
        reference = StorageWeakRef(tensor.untyped_storage())
        self._alive.append(reference)
        return int(reference.cdata)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation; of a convolution only the shape counts, so its numbers are zeros."""
    if func not in CONVOLUTIONS:
        return func(*args, **kwargs)
    device = next(tensors_of((args, kwargs))).device
    shape = func(*map(_on_meta, args), **{key: _on_meta(value) for key, value in kwargs.items()})
    return torch.zeros_like(shape, device=device)


def _on_meta(value: Any) -> Any:
    return value.detach().to("meta") if isinstance(value, Tensor) else value


def _autocast() -> list[bool]:
    return [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")]


def _among(tensor: Tensor, others: list[Tensor]) -> bool:
    return any(tensor is other for other in others)


def _own_objects(result: Any, unchanged: list[Tensor]) -> Any:
    """Give a result that is one of the arguments an object of its own, with the same memory."""
    if isinstance(result, Tensor):
        return result.view_as(result) if _among(result, unchanged) else result
    if type(result) in (list, tuple):
        return type(result)(_own_objects(part, unchanged) for part in result)
    return result
