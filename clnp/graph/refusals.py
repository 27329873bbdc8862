"""Refusals of networks that conversion would change, and the copy that conversion works on."""

from __future__ import annotations

import copy
import inspect
import itertools
import keyword
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from clnp_kernels.torch_private import MODULE_HOOKS, TENSOR_HOOKS, pre_hooks

from ..errors import ConvertError, first_line
from .graph import NAME

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
# Modules of hooks that compute a weight before every call; conversion starts with its numbers.
FOLDED = ("torch.nn.utils.prune", "torch.nn.utils.weight_norm")
SPECTRAL = (
    "a spectral norm changes its own state in every call of training; make the weight permanent "
    "first with torch.nn.utils.{}"
)
MODAL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def inner(net: nn.Module) -> nn.Module:
    """Return the module inside wrappers: compiled, parallel or averaged."""
    while True:
        if _is_compiled(net):
            net = net._orig_mod  # type: ignore[assignment]
        elif isinstance(net, WRAPPERS):
            net = net.module
        else:
            return net


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch._dynamo") and hasattr(module, "_orig_mod")


def _named(name: str, module: nn.Module) -> str:
    return f"{name!r} ({type(module).__name__})" if name else f"the network {type(module).__name__}"


def check_example(example: Any) -> None:
    """Check that the example is a batch of numbers.

    Raises:
        ConvertError: it is not a dense floating-point tensor [B, ...].
    """
    if not isinstance(example, Tensor):
        raise ConvertError(f"example_input: expected a tensor, got {type(example).__name__}")
    if example.dim() < 2 or example.shape[0] < 1:
        raise ConvertError(
            f"example_input: expected a batch [B, ...] with B >= 1, got shape {list(example.shape)}"
        )
    known = example.is_floating_point() or example.dtype == torch.int64
    if not known or example.layout != torch.strided:
        raise ConvertError(
            "example_input: expected a dense tensor of floating-point numbers, or int64 for an "
            f"embedding, got {example.dtype}, {example.layout}"
        )


def check_module(net: nn.Module, example: Tensor) -> None:
    """Refuse modules that a copy of the layers would lose or change; `net` is not changed.

    Raises:
        ConvertError: naming the module, the reason, and the way out.
    """
    _check_tensors(net, example)
    for name, module in net.named_modules():
        where = _named(name, module)
        _check_name(name)
        _check_kind(module, where)
        _check_hooks(module, where)
        forward = vars(module).get("forward")
        own = inspect.ismethod(forward) and forward.__self__ is module  # the copy gets its own
        if forward is not None and not own and not _is_compiled(module):
            raise ConvertError(
                f"{where} has a forward in its instance attributes, which a copy would lose; "
                "define it in a class"
            )
    for name, module in net.named_modules():
        if module.training != net.training and _depends_on_mode(module):
            raise ConvertError(
                f"{_named(name, module)} is in {_mode(module.training)} mode, the network in "
                f"{_mode(net.training)} mode; a converted network has one mode, so call "
                "net.train() or net.eval() first"
            )


def _mode(training: bool) -> str:
    return "training" if training else "evaluation"


def _depends_on_mode(module: nn.Module) -> bool:
    """Return whether the flag `training` of this module itself may change its results."""
    return isinstance(module, MODAL) or not type(module).__module__.startswith("torch.nn")


def _check_name(name: str) -> None:
    """Refuse names that a checkpoint doesn't accept, or that torch.fx can't write into its code."""
    parts = name.split(".")
    reserved = hasattr(fx.GraphModule, parts[0]) or parts[0] in ("_graph", "self")
    if name and (not NAME.fullmatch(name) or reserved or any(map(keyword.iskeyword, parts))):
        raise ConvertError(
            f"module {name!r}: expected a name of letters, digits, '_' and '-' that doesn't begin "
            f"with '__' and isn't reserved by Python or torch.fx, got {parts[-1]!r}; rename it"
        )


def _check_kind(module: nn.Module, where: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise ConvertError(
            f"{where} is TorchScript, whose forward can't be traced; pass the original module"
        )


def _check_hooks(module: nn.Module, where: str) -> None:
    spectral = [p for ps in getattr(module, "parametrizations", {}).values() for p in ps]
    if any("SpectralNorm" in type(p).__name__ for p in spectral):
        remove = "parametrize.remove_parametrizations(layer, name)"
        raise ConvertError(f"{where} is parametrized; {SPECTRAL.format(remove)}")
    for kind in MODULE_HOOKS:
        for hook in getattr(module, kind).values():
            owner = type(hook).__module__
            if owner.endswith(".spectral_norm"):
                raise ConvertError(
                    f"{where} computes its weight; {SPECTRAL.format('remove_spectral_norm(layer)')}"
                )
            if owner not in FOLDED:
                raise ConvertError(
                    f"{where} has hooks, which conversion would lose; remove them first"
                )
    for name, parameter in module.named_parameters(recurse=False):
        if any(getattr(parameter, kind, None) for kind in TENSOR_HOOKS):
            raise ConvertError(
                f"{where}: its {name} has gradient hooks, which conversion would lose; remove "
                "them first"
            )


def _check_tensors(net: nn.Module, example: Tensor) -> None:
    """Check that tensors have values, the device of the example and, if parameters, its dtype."""
    tensors = [*net.named_parameters(), *net.named_buffers()]
    for name, tensor in tensors:
        if is_lazy(tensor):
            raise ConvertError(
                f"{name!r} has no shape yet (lazy module); run the network on one batch first"
            )
        if tensor.is_meta:
            raise ConvertError(
                f"{name!r} is on the meta device and has no values; use "
                "net.to_empty(device=...) and load_state_dict first"
            )
        if tensor.device != example.device:
            raise ConvertError(
                f"example_input: expected a tensor on {tensor.device}, as {name!r}, got "
                f"{example.device}; move the network and the example to one device"
            )
        numbers = example.is_floating_point()
        if numbers and isinstance(tensor, nn.Parameter) and tensor.dtype != example.dtype:
            raise ConvertError(
                f"example_input: expected {tensor.dtype}, as {name!r}, got {example.dtype}; "
                "convert one of them"
            )
    if example.is_meta:
        raise ConvertError(
            "example_input: expected a tensor with values, got one on the meta device; pass one on "
            "the CPU"
        )


def copied(net: nn.Module) -> nn.Module:
    """Return a deep copy.

    Raises:
        ConvertError: naming the attribute that can't be copied.
    """
    # A weight that a hook computed can't be copied, and is computed anew.
    memo: dict[int, Any] = {}
    for module in net.modules():
        if any(type(hook).__module__ in FOLDED for hook in pre_hooks(module)):
            values = [v for v in vars(module).values() if isinstance(v, Tensor)]
            memo |= {id(value): value.detach().clone() for value in values}
    try:
        return copy.deepcopy(net, memo)
    except Exception as error:
        for name, module in net.named_modules():
            for key, value in vars(module).items():
                if key != "_modules" and not _can_copy(value):
                    raise ConvertError(
                        f"{_named(name, module)}: its attribute {key!r} ({type(value).__name__}) "
                        f"can't be copied: {first_line(error)}. Delete it before conversion"
                    ) from error
        raise ConvertError(f"the network can't be copied: {first_line(error)}") from error


def _can_copy(value: Any) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:
        return False
    return True


def check_modes(net: nn.Module) -> None:
    """Refuse modules that don't follow `net.train(mode)`; changes the modes of `net`."""
    for mode in (True, False):
        try:
            net.train(mode)
        except Exception as error:
            raise ConvertError(
                f"{type(net).__name__}.train({mode}) fails: {first_line(error)}"
            ) from error
        for name, module in net.named_modules():
            if module.training != mode and _depends_on_mode(module):
                raise ConvertError(
                    f"{_named(name, module)} stays in {_mode(not mode)} mode after "
                    f"net.train({mode}), because train() is overridden. A converted network would "
                    "change its mode; use the usual train(), and leave freezing to consolidate"
                )


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, also those that have several names."""
    parameters = net.named_parameters(remove_duplicate=False)
    return dict([*parameters, *net.named_buffers(remove_duplicate=False)])


def check_own_tensors(tensors: Mapping[str, Tensor], used: list[tuple[str, str]]) -> None:
    """Refuse layers that share a parameter or buffer, as one tensor or as overlapping memory.

    Arguments:
        tensors: name -> parameter or buffer of the original network; a copy would no longer share
            memory.
        used: (layer, name of a tensor).
    """
    spans = [(*_span(tensors[name]), name) for _, name in used if tensors[name].numel()]
    spans.sort()
    for (first, stop, name), (second, _, other) in itertools.pairwise(spans):
        if first[0] == second[0] and second[1] < stop:
            raise ConvertError(
                f"{name!r} and {other!r} are one tensor (tied), which can't be pruned separately; "
                "give each layer its own"
            )


def _span(tensor: Tensor) -> tuple[tuple[int, int], int]:
    """Return ((storage, first byte), byte after the last)."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr()
    stop = first + (last + 1) * tensor.element_size()
    return (tensor.untyped_storage().data_ptr(), first), stop
