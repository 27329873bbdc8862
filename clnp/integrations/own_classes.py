"""A loss that looks at the classes of one task, whatever the layout of the logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, DataError

Criterion = Callable[[Tensor, Tensor], Tensor]


class OwnClasses:
    """A criterion (logits [B, C], targets [B] int64) -> scalar that gets the C classes of a task
    only, numbered from 0. Label smoothing then spreads over these, and class weights are those of
    these.

    Arguments:
        criterion: a function, or a module such as `torch.nn.CrossEntropyLoss`, whose `weight`, if
            it has one, holds a number for every class of the benchmark.
        absent: logit of a class that a task does not have. An example of such a class costs
            -absent.
    """

    def __init__(self, criterion: Criterion, absent: float) -> None:
        self.criterion, self.absent = criterion, absent

    def check(self, classes: Sequence[int], like: Tensor) -> None:
        """Tries the criterion on logits of a task, before there is any work to lose.

        Arguments:
            classes: of the task, ascending.
            like: has the dtype and device of the logits.

        Raises:
            ConfigError: it fails, returns no scalar, or has no weight for a class.
        """
        weight = _class_weights(self.criterion)
        if weight is not None and len(weight) <= classes[-1]:
            raise ConfigError(
                f"criterion: its class weights are for {len(weight)} classes, but there is a class "
                f"{classes[-1]}; give it one for every class of the benchmark, [0, 1, ...]"
            )
        logits = like.new_zeros(2, len(classes), requires_grad=True)
        targets = torch.zeros(2, dtype=torch.int64, device=like.device)
        what = f"criterion: of logits [2, {len(classes)}] and targets [2] expected a scalar, got"
        try:
            loss = self._of(classes)(logits, targets)
        except Exception as error:  # it is the user's
            raise ConfigError(f"{what} {type(error).__name__}: {error}") from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigError(f"{what} {shape}; reduction='mean' makes one of it")

    def trained(self, logits: Tensor, targets: Tensor, classes: Sequence[int]) -> Tensor:
        """The loss of a task in training.

        Arguments:
            logits: [B, W], those of class c in column c.
            targets: classes [B].
            classes: of the task, ascending.

        Raises:
            DataError: a target that is not one of the classes.
        """
        places, known = _places(targets, classes)
        if not bool(known.all()):
            raise DataError(
                f"minibatch: class {int(targets[~known][0])} is not one of this experience's, so "
                "no output is trained on it; take plugins that add examples of other experiences "
                "(replay) out"
            )
        return self._of(classes)(logits[:, list(classes)], places)

    def evaluated(self, logits: Tensor, targets: Tensor, classes: Sequence[int]) -> Tensor:
        """The loss of examples that one task answers, some perhaps of classes that it does not
        have; arguments as of `trained`.
        """
        places, known = _places(targets, classes)
        loss = logits.new_tensor(-self.absent * int((~known).sum()))
        if bool(known.any()):
            own = self._of(classes)(logits[known][:, list(classes)], places[known])
            loss = loss + own * (1 if self.sums else int(known.sum()))
        return loss if self.sums else loss / len(targets)

    @property
    def sums(self) -> bool:
        """Whether the loss of a batch is the sum of those of its examples; else it is their
        mean.
        """
        return getattr(self.criterion, "reduction", "mean") == "sum"

    def _of(self, classes: Sequence[int]) -> Criterion:
        """The criterion with the class weights of a task."""
        weight = _class_weights(self.criterion)
        if weight is None:
            return self.criterion
        own: Any = copy.copy(self.criterion)
        own._buffers = {**own._buffers, "weight": weight[list(classes)]}
        return own


def _class_weights(criterion: Any) -> Tensor | None:
    """The weights of classes [W] that torch's losses keep as a buffer, if there are any."""
    weight = criterion._buffers.get("weight") if isinstance(criterion, nn.Module) else None
    return weight if isinstance(weight, Tensor) and weight.dim() == 1 else None


def _places(targets: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Places of targets [B] among ascending classes, [B] int64, and which targets are among them,
    [B] bool.
    """
    own = torch.tensor(classes, device=targets.device)
    places = torch.searchsorted(own, targets).clamp(max=len(classes) - 1)
    return places, own[places] == targets
