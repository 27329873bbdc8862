"""Loss over the classes of one task, for logits of all classes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, DataError

Criterion = Callable[[Tensor, Tensor], Tensor]


class OwnClasses:
    """A criterion applied to the C classes of a task only, numbered from 0.

    Label smoothing and class weights then refer to these classes.

    Arguments:
        criterion: (logits [B, C], targets [B] int64) -> scalar; a function, or a module such as
            `torch.nn.CrossEntropyLoss`. Its `weight`, if any, has a number for every class of the
            benchmark.
        absent: logit of a class that a task lacks. An example of such a class costs -absent.
    """

    def __init__(self, criterion: Criterion, absent: float) -> None:
        self.criterion, self.absent = criterion, absent

    def check(self, classes: Sequence[int], like: Tensor) -> None:
        """Try the criterion on logits of a task before training.

        Arguments:
            classes: classes of the task, ascending.
            like: a tensor with the dtype and device of the logits.

        Raises:
            ConfigError: it fails, doesn't return a scalar, or has no weight for a class.
        """
        weight = _class_weights(self.criterion)
        if weight is not None and len(weight) <= classes[-1]:
            raise ConfigError(
                f"criterion: expected a class weight for class {classes[-1]}, got weights of "
                f"{len(weight)} classes; pass one for every class of the benchmark, [0, 1, ...]"
            )
        logits = like.new_zeros(2, len(classes), requires_grad=True)
        targets = torch.zeros(2, dtype=torch.int64, device=like.device)
        what = f"criterion: expected a scalar for logits [2, {len(classes)}] and targets [2], got"
        try:
            loss = self._of(classes)(logits, targets)
        except Exception as error:  # a user's criterion may raise anything
            raise ConfigError(f"{what} {type(error).__name__}: {error}") from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigError(f"{what} {shape}; use reduction='mean'")

    def trained(self, logits: Tensor, targets: Tensor, classes: Sequence[int]) -> Tensor:
        """Compute the loss of a task in training.

        Arguments:
            logits: [B, W], with class c in column c.
            targets: classes [B].
            classes: classes of the task, ascending.

        Raises:
            DataError: a target is not one of the classes.
        """
        outputs, known = _outputs(targets, classes)
        if not bool(known.all()):
            raise DataError(
                "minibatch: expected classes of this experience, got "
                f"{int(targets[~known][0])}, which has no output; remove plugins that add examples "
                "of other experiences (replay)"
            )
        return self._of(classes)(logits[:, list(classes)], outputs)

    def evaluated(self, logits: Tensor, targets: Tensor, classes: Sequence[int]) -> Tensor:
        """Compute the loss of examples evaluated by one task, which may lack their classes.

        Arguments as of `trained`.
        """
        outputs, known = _outputs(targets, classes)
        loss = logits.new_tensor(-self.absent * int((~known).sum()))
        if bool(known.any()):
            own = self._of(classes)(logits[known][:, list(classes)], outputs[known])
            loss = loss + own * (1 if self.sums else int(known.sum()))
        return loss if self.sums else loss / len(targets)

    @property
    def sums(self) -> bool:
        """True if the loss of a batch is the sum over its examples rather than the mean."""
        return getattr(self.criterion, "reduction", "mean") == "sum"

    def _of(self, classes: Sequence[int]) -> Criterion:
        weight = _class_weights(self.criterion)
        if weight is None:
            return self.criterion
        own: Any = copy.copy(self.criterion)
        own._buffers = {**own._buffers, "weight": weight[list(classes)]}
        return own


def _class_weights(criterion: Any) -> Tensor | None:
    weight = criterion._buffers.get("weight") if isinstance(criterion, nn.Module) else None
    return weight if isinstance(weight, Tensor) and weight.dim() == 1 else None


def _outputs(targets: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the index [B] of each target among ascending classes, and whether it is one, [B]."""
    own = torch.tensor(classes, device=targets.device)
    outputs = torch.searchsorted(own, targets).clamp(max=len(classes) - 1)
    return outputs, own[outputs] == targets
