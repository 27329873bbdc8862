"""Graceful forgetting: the sparsest network within a margin of the best, over a grid of settings
(paper, Sec. 2.2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..ranges import by_name


@dataclass(frozen=True)
class GridPoint:
    """One setting of the grid.

    Attributes:
        l1: layer name -> alpha.
        lr: learning rate xi.
    """

    l1: dict[str, float]
    lr: float


def candidates(values: Sequence[Any], floor: Any) -> list[int]:
    """Indices of the grid points whose trained networks are no worse than the floor, which is
    within the margin of the best one.
    """
    return [i for i, value in enumerate(values) if value >= floor]


def sparsest(costs: Sequence[float]) -> int:
    """Index of the smallest cost, the first of equals."""
    return min(range(len(costs)), key=lambda i: costs[i])


def per_layer(l1: Any, layers: Sequence[str], what: str = "l1") -> dict[str, float]:
    """Brings an L1 setting into the form layer name -> alpha.

    Arguments:
        l1: one alpha for all layers, one per layer in execution order (the head last), or {layer
            name: alpha} where layers that are not named get 0.
        layers: names of all layers.
        what: the setting's name in errors.

    Raises:
        ConfigError: a wrong number of alphas, an unknown layer, or an alpha that is negative or not
            finite.
    """
    given = by_name(l1, layers, what)
    alphas = {name: given.get(name, 0.0) for name in layers}
    for name, alpha in alphas.items():
        if (
            isinstance(alpha, bool)
            or not isinstance(alpha, (int, float))
            or not 0 <= alpha < math.inf
        ):
            raise ConfigError(f"{what} of layer {name!r}: expected a number >= 0, got {alpha!r}")
    return {name: float(alpha) for name, alpha in alphas.items()}


def grid_points(grid: Any, l1: Any, lr: float, layers: Sequence[str]) -> list[GridPoint]:
    """All combinations of the grid's alphas and learning rates; one point without a grid.

    Arguments:
        grid: None, or {"l1": [settings as `per_layer` takes], "lr": [...]}; an entry that is
            missing takes the value given by `l1` or `lr`.

    Raises:
        ConfigError: unknown keys, empty lists, or values out of range.
    """
    grid = grid or {}
    if not isinstance(grid, dict) or set(grid) - {"l1", "lr"}:
        raise ConfigError(f'grid: expected {{"l1": [...], "lr": [...]}}, got {grid!r}')
    alphas, rates = grid.get("l1", [l1]), grid.get("lr", [lr])
    for name, values in (("l1", alphas), ("lr", rates)):
        if not isinstance(values, (list, tuple)) or not values:
            raise ConfigError(
                f"grid[{name!r}]: expected a list with at least one value, got {values!r}"
            )
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise ConfigError(f"lr: expected a number > 0, got {rate!r}")
    return [
        GridPoint(per_layer(alpha, layers), float(rate))
        for alpha, rate in itertools.product(alphas, rates)
    ]
