"""Misuse of a network in a training loop of one's own that would go unnoticed without these."""

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
    """Makes the parameters that a method of a module replaces say so to an optimizer that still
    holds them. The new ones can be trained even if it is called within `torch.inference_mode`.
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
    """Makes a training step on what is frozen say so; torch would only miss a gradient."""

    def refuse(grad: Tensor) -> None:
        raise ConfigError(
            "no task is in training, and what was learned does not change: call begin_task() "
            "before training, or model.eval() and torch.no_grad() for evaluation"
        )

    if torch.is_grad_enabled() and not logits.requires_grad:
        logits.requires_grad_().register_hook(refuse)


def check_parameters(modules: Mapping[str, nn.Module], what: str) -> None:
    """Raises ConfigError where free weights are computed from other parameters (a parametrization,
    weight norm): moving channels would not reach these.

    Arguments:
        modules: name -> module with free weights.
        what: what is about to be done.
    """
    for name, module in modules.items():
        for key in ("free_weight", "free_bias"):
            value = getattr(module, key)
            if value is not None and not isinstance(value, nn.Parameter):
                raise ConfigError(
                    f"{what}(): {key} of {name!r} is computed from other parameters; put its value "
                    "in place first, as torch.nn.utils.parametrize.remove_parametrizations(layer, "
                    f"{key!r}) does"
                )


def check_begin(model: Boundaries, classes: Any, generator: Any, most_new: Any) -> None:
    """Raises ConfigError where a task can't begin with these arguments of `Model.begin_task`."""
    if classes is not None and not _whole(classes):
        raise ConfigError(f"classes={classes!r}: expected an integer >= 1, or None")
    on_cpu = isinstance(generator, torch.Generator) and generator.device.type == "cpu"
    if generator is not None and not on_cpu:
        raise ConfigError(
            f"generator={generator!r}: expected a torch.Generator on the CPU, or None"
        )
    if most_new is None:
        return
    groups = [group.name for group in model.groups.prunable]
    if not isinstance(most_new, Mapping):
        raise ConfigError(f"most_new={most_new!r}: expected {{group: number of channels}}, or None")
    for group, most in most_new.items():
        if group not in groups:
            raise ConfigError(f"most_new: no group named {group!r}; there are {groups}")
        if not _whole(most):
            raise ConfigError(f"most_new of {group!r}: got {most!r}, expected an integer >= 1")


def check_name(name: Any) -> None:
    """Raises ConfigError for a task's name that is no text."""
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"name={name!r}: expected a string, or None for 'task k'")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
