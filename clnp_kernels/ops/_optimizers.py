"""Checks that `adam_l1` and `sgd_l1` share."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .._checks import check_list, check_lists, check_number, check_scalar, check_tensor
from ..errors import message


def check_step(
    lists: Mapping[str, Sequence[Tensor]],
    l1: Sequence[float],
    weight_decay: float,
    lr: float | Tensor | Sequence[float | Tensor],
    scalars: Mapping[str, Tensor | None],
) -> list[Tensor]:
    """Raise unless the common arguments of a step fit together.

    Arguments:
        lists: name -> tensors; the first list is that of the parameters.
        l1, weight_decay, lr: as in the operators.
        scalars: what may be None.

    Returns:
        the learning rate of each parameter as a tensor without dimensions: a number becomes
        float64. What is one rate for several parameters stays one tensor.
    """
    check_lists(tuple(lists), tuple(lists.values()))
    params = next(iter(lists.values()))
    check_length("l1", l1, len(params))
    for i, alpha in enumerate(l1):
        check_number(f"l1[{i}]", alpha)
    check_number("weight_decay", weight_decay)
    rates = _rates(lr, params)
    for name, value in scalars.items():
        if params and value is not None:
            check_scalar(name, value, params[0])
    return rates


def _rates(lr: float | Tensor | Sequence[float | Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    """The learning rate of each parameter."""
    if not isinstance(lr, (list, tuple)):
        return [_as_rate("lr", lr, params)] * len(params)
    check_length("lr", lr, len(params))
    made: dict[object, Tensor] = {}
    for i, rate in enumerate(lr):
        key = id(rate) if isinstance(rate, Tensor) else rate
        if key not in made:
            made[key] = _as_rate(f"lr[{i}]", rate, params)
    return [made[id(rate) if isinstance(rate, Tensor) else rate] for rate in lr]


def check_length(name: str, value: object, count: int) -> None:
    """Raise unless `value` is a list of `count` entries, one for each parameter."""
    check_list(name, value)
    assert isinstance(value, Sequence)
    if len(value) != count:
        raise ValueError(message(f"len({name})", len(value), f"{count}, as many as params"))


def _as_rate(name: str, lr: object, params: Sequence[Tensor]) -> Tensor:
    if not isinstance(lr, Tensor):
        check_number(name, lr)  # type: ignore[arg-type]
        return torch.tensor(lr, dtype=torch.float64)
    check_tensor(name, lr)
    if lr.numel() != 1:
        raise ValueError(message(f"{name}.shape", list(lr.shape), "one element"))
    if params:
        check_scalar(name, lr, params[0])
    return lr.reshape(())
