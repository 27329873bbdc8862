"""Guards against misuse in a custom training loop that would otherwise fail silently."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from clnp_kernels.nn import retire

from ..errors import ConfigError
from .boundaries import Boundaries

Method = TypeVar("Method", bound=Callable[..., Any])


def retiring(method: Method) -> Method:
    """Decorate a method that replaces parameters of its module.

    An optimizer that still holds a replaced parameter raises an error at its next step. The new
    parameters are trainable even if the method is called within `torch.inference_mode`.
    """

    @functools.wraps(method)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        before = list(self.parameters())
        try:
            with torch.inference_mode(False):
                return method(self, *args, **kwargs)
        finally:
            now = {id(parameter) for parameter in self.parameters()}
            for parameter in before:
                if id(parameter) not in now:
                    retire(parameter)

    return cast(Method, wrapper)


def refuse_backward(logits: Tensor) -> None:
    """Make `backward` through logits of frozen weights fail; torch would just miss gradients."""

    def refuse(grad: Tensor) -> None:
        raise ConfigError(
            "backward: expected a task in training, got none, and learned tasks don't change; call "
            "begin_task() before training, or model.eval() and torch.no_grad() for evaluation"
        )

    if torch.is_grad_enabled() and not logits.requires_grad:
        logits.requires_grad_().register_hook(refuse)


def check_parameters(modules: Mapping[str, nn.Module], what: str) -> None:
    """Refuse free weights that are computed from other parameters (parametrization, weight norm).

    Pruning and freezing channels would not change those parameters.

    Arguments:
        modules: name -> module with free weights.
        what: name of the calling method, for the message.

    Raises:
        ConfigError: naming the layer.
    """
    for name, module in modules.items():
        for key in ("free_weight", "free_bias"):
            value = getattr(module, key)
            if value is not None and not isinstance(value, nn.Parameter):
                raise ConfigError(
                    f"{what}(): {key} of {name!r} is computed from other parameters; make it a "
                    "parameter first, with torch.nn.utils.parametrize.remove_parametrizations("
                    f"layer, {key!r})"
                )


def check_begin(model: Boundaries, classes: Any, generator: Any, most_new: Any) -> None:
    """Raise ConfigError for invalid arguments of `Model.begin_task`."""
    if classes is not None and not _whole(classes):
        raise ConfigError(f"classes: expected an integer >= 1 or None, got {classes!r}")
    on_cpu = isinstance(generator, torch.Generator) and generator.device.type == "cpu"
    if generator is not None and not on_cpu:
        raise ConfigError(
            f"generator: expected a torch.Generator on the CPU or None, got {generator!r}"
        )
    if most_new is None:
        return
    groups = [group.name for group in model.groups.prunable]
    if not isinstance(most_new, Mapping):
        raise ConfigError(
            f"most_new: expected {{group: number of channels}} or None, got {most_new!r}"
        )
    for group, most in most_new.items():
        if group not in groups:
            raise ConfigError(f"most_new: expected groups out of {groups}, got {group!r}")
        if not _whole(most):
            raise ConfigError(f"most_new of {group!r}: expected an integer >= 1, got {most!r}")


def check_name(name: Any) -> None:
    """Raise ConfigError for a task name that is not a string."""
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"name: expected a string, or None for 'task k', got {name!r}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
