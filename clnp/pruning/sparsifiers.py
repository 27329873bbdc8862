"""Ways to make a task sparse: its training, and the scores that rank its channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.inputs import Split
from ..network.model import Model
from ..training.fit import Fit
from ..training.sdp_fit import StructuredFit
from .activity import measure_activity, measure_contribution
from .norms import channel_scores

Scores = Callable[[Model, Split, torch.device], dict[str, Tensor]]


@dataclass(frozen=True)
class Sparsifier:
    """One way.

    Attributes:
        fit: makes a `Fit` of the arguments of `Fit`.
        scores: (model, training split, device) -> group -> [channels] float64, active channels
            first; what the threshold search ranks channels by.
    """

    fit: Callable[..., Fit]
    scores: Scores


def sparsifier(name: str) -> Sparsifier:
    """A sparsifier by its name.

    - "activity": L1 penalty, mean activity of the channels (paper, Algorithm 1)
    - "contribution": L1 penalty, what the channels add to the layers that read them
    - "sdp": sharpness-aware Frank-Wolfe steps on whole channels, norm of their weights; see
      `clnp.training.sdp_fit`
    """
    if name == "activity":
        return Sparsifier(Fit, measure_activity)
    if name == "contribution":
        return Sparsifier(Fit, measure_contribution)

    def scores(model: Model, *_: Any) -> dict[str, Tensor]:
        return channel_scores(model)

    return Sparsifier(StructuredFit, scores)
