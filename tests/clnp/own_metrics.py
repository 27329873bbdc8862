"""Scores of the user's, as the tests give them, and tasks with rare classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clnp.data import Task


def share_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Accuracy, by other means."""
    return (logits.argmax(1) == labels).double().mean()


def least_recall(logits: Tensor, labels: Tensor) -> float:
    """The lowest recall of any class."""
    hits = (logits.argmax(1) == labels).double()
    return min(float(hits[labels == c].mean()) for c in labels.unique())


def log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean log-likelihood, never above 0."""
    return -float(F.cross_entropy(logits, labels))


def rare(seed: int, every: int = 33, rows: int = 300) -> Task:
    """Two overlapping classes; one of `every` examples is of class 1."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.arange(rows) % every == 0).long()
    centres = torch.randn(2, 12, generator=generator)

    def part() -> tuple[Tensor, Tensor]:
        return centres[y] + 0.6 * torch.randn(rows, 12, generator=generator), y

    return Task(f"rare-{seed}", part(), part(), part(), classes=2)
