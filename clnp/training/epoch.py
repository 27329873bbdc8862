"""One epoch of training, for CLNP and for the other methods: schedule, sums, checks, reports."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..errors import DataError
from ..objectives.losses import Loss
from ..objectives.shapes import CLASSES

REPORT_SECONDS = 0.2

# (mean loss, mean metric, examples seen, examples in all)
OnBatch = Callable[[float, float, int, int], None]


def step_factor(epoch: int, epochs: int) -> float:
    """1, then 0.2 from 60 % and 0.04 from 85 % of the epochs on."""
    return 0.2 ** ((epoch >= 0.6 * epochs) + (epoch >= 0.85 * epochs))


def cosine_factor(epoch: int, epochs: int) -> float:
    """Half a cosine from 1 towards 0."""
    return 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))


# Name -> (epoch, epochs) -> factor on the learning rate
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda epoch, epochs: 1.0,
    "step": step_factor,
    "cosine": cosine_factor,
}


def run_epoch(
    steps: Iterable[tuple[int, Tensor, Tensor]],
    total: int,
    device: torch.device,
    *,
    on_batch: OnBatch,
    check_loss: Callable[[float], None],
    shape: tuple[int, ...] = (),
    read_early: bool = True,
    sums: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Run the training steps of an epoch and add up their losses.

    Arguments:
        steps: iterator that takes a step and yields (examples, mean loss, sum of the metric over
            the examples); loss and sum have `shape`.
        total: examples that `on_batch` counts up to.
        device: of the losses.
        on_batch: called a few times a second, and at the end.
        check_loss: called with the sum of the losses so far; raises where it is not finite.
        shape: of a step's loss: () or [P], one for each of P networks.
        read_early: let a GPU check the loss a few times a second, which waits for the device; False
            checks at the end only.
        sums: of losses and of the metric, which the steps add up by themselves; None: they are
            added up here.

    Returns:
        sum of the losses and of the metric, float64 of `shape`, and the number of examples.
    """
    losses, metrics = sums or zero_sums(shape, device)
    seen, last = 0, time.monotonic()

    def report(count: int) -> None:
        examples = max(seen, 1)
        on_batch(float(losses.mean()) / examples, float(metrics.mean()) / examples, count, total)

    for size, loss, metric in steps:
        if sums is None:
            losses += loss * size
            metrics += metric
        seen += size
        now = time.monotonic()
        due = now - last > REPORT_SECONDS
        if device.type == "cpu" or (due and read_early):
            check_loss(float(losses.sum()))
        if due and seen < total:
            report(seen)
            last = now
    check_loss(float(losses.sum()))
    report(total)
    return losses, metrics, seen


def zero_sums(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Sums of losses and of the metric of no steps yet, float64."""
    return (
        torch.zeros(shape, dtype=torch.float64, device=device),
        torch.zeros(shape, dtype=torch.float64, device=device),
    )


def record(epoch: int, loss: float, train: float, validation: float, lr: float) -> dict[str, float]:
    """Record of an epoch in a history."""
    return {
        "epoch": epoch,
        "loss": loss,
        "train_metric": train,
        "validation_metric": validation,
        "lr": lr,
    }


def check_labels(y: Tensor, outputs: int, loss: Loss) -> None:
    """Raise DataError for a class outside the head: a lazy Dataset shows its labels here first."""
    if loss.targets != CLASSES:
        return
    wrong = (y < 0) | (y >= outputs)
    dropped = loss.dropped(y)
    outside = y[wrong if dropped is None else wrong & ~dropped]
    if outside.numel():
        raise DataError(
            f"train: expected labels from 0 to {outputs - 1}, as the head has, got {outside[0]}"
        )
