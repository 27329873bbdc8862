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
    scalars: Mapping[str, Tensor | float | None],
) -> Tensor:
    """Raise unless the common arguments of a step fit together.

    Arguments:
        lists: name -> tensors; the first list is that of the parameters.
        l1, weight_decay: as in the operators.
        scalars: "lr", and what may be None.

    Returns:
        the learning rate as a tensor without dimensions: a number becomes float64.
    """
    check_lists(tuple(lists), tuple(lists.values()))
    params = next(iter(lists.values()))
    check_length("l1", l1, len(params))
    for i, alpha in enumerate(l1):
        check_number(f"l1[{i}]", alpha)
    check_number("weight_decay", weight_decay)
    rate = _as_rate(scalars["lr"])
    for name, value in scalars.items():
        is_number = name == "lr" and not isinstance(value, Tensor)
        if params and value is not None and not is_number:
            check_scalar(name, value, params[0])
    return rate


def check_length(name: str, value: object, count: int) -> None:
    """Raise unless `value` is a list of `count` entries, one for each parameter."""
    check_list(name, value)
    assert isinstance(value, Sequence)
    if len(value) != count:
        raise ValueError(message(f"len({name})", len(value), f"{count}, as many as params"))


def _as_rate(lr: object) -> Tensor:
    if not isinstance(lr, Tensor):
        check_number("lr", lr)  # type: ignore[arg-type]
        return torch.tensor(lr, dtype=torch.float64)
    check_tensor("lr", lr)
    if lr.numel() != 1:
        raise ValueError(message("lr.shape", list(lr.shape), "one element"))
    return lr.reshape(())
