"""The copy that conversion reads: without wrappers, with equivalents of registered modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

from torch import nn

from ..errors import ConvertError, first_line
from .refusals import inner
from .registry import EQUIVALENTS


class _AnyBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A synchronised batch norm that runs in one process, for values of any number of axes."""

    def _check_input_dim(self, input: object) -> None:
        pass


def without_wrappers(net: nn.Module) -> nn.Module:
    """Change a copy of a network in place and return it.

    Wrapped modules take the place of their wrappers, and synchronised batch norms become ordinary
    ones.
    """
    net = _each(net, inner)
    for module in net.modules():
        if type(module) is nn.SyncBatchNorm:
            module.__class__ = cast(Any, _AnyBatchNorm)
    return net


def with_equivalents(net: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Replace modules of registered classes by their equivalents, in place.

    Returns:
        the changed network, and one as before that shares all tensors with it.

    Raises:
        ConvertError: a registered equivalent fails, or isn't a module.
    """
    if not any(type(module) in EQUIVALENTS for module in net.modules()):
        return net, net
    tensors = [*net.parameters(), *net.buffers()]
    before = copy.deepcopy(net, {id(tensor): tensor for tensor in tensors})
    return _each(net, _equivalent), before


def _each(net: nn.Module, replaced: Callable[[nn.Module], nn.Module]) -> nn.Module:
    for parent in list(net.modules()):
        for key, child in list(parent.named_children()):
            setattr(parent, key, replaced(child))
    return replaced(net)


def _equivalent(module: nn.Module) -> nn.Module:
    make = EQUIVALENTS.get(type(module))
    if make is None:
        return module
    try:
        made = make(module)
    except Exception as error:
        raise ConvertError(
            f"the registered equivalent of {type(module).__name__} fails: {first_line(error)}"
        ) from error
    if not isinstance(made, nn.Module):
        raise ConvertError(
            f"the registered equivalent of {type(module).__name__}: expected a module, got "
            f"{type(made).__name__}"
        )
    return made.train(module.training)
