"""Reservoir of earlier examples (Vitter 1985; Rolnick et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Reservoir:
    """A uniform sample of fixed size of everything that was ever offered.

    Arguments:
        size: examples kept.

    Attributes:
        seen: examples offered so far.
        rows: name -> [n, ...] tensors, n <= size; row i of each belongs to example i.
    """

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, 0
        self.rows: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(next(iter(self.rows.values()))) if self.rows else 0

    def offer(self, generator: torch.Generator | None = None, **new: Tensor) -> None:
        """Offers examples; each of the n seen so far is in the sample with probability size / n.

        Arguments:
            generator: CPU generator; default torch's global one.
            new: name -> [B, ...], the same names each time.
        """
        count = len(next(iter(new.values())))
        room = max(0, min(self.size - len(self), count))
        # One draw for each example beyond the first `size`, in the order of Vitter's algorithm R.
        late = torch.arange(self.seen + room, self.seen + count)
        places = (
            torch.rand(len(late), generator=generator, dtype=torch.float64) * (late + 1)
        ).long()
        for name, values in new.items():
            values = values.detach()
            if name not in self.rows:
                self.rows[name] = values[:0].clone()
            held = self.rows[name]
            if values.shape[1:] != held.shape[1:]:  # logits of tasks with other numbers of classes
                held, values = _widened(held, values)
            if room:
                held = torch.cat([held, values[:room]])
            taken = (places < self.size).nonzero().squeeze(1).to(values.device)
            for i in taken.tolist():
                held[int(places[i])] = values[room + i]
            self.rows[name] = held
        self.seen += count

    def sample(self, count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """`count` different examples at random, or all if there are fewer: name -> [n, ...]."""
        chosen = torch.randperm(len(self), generator=generator)[:count]
        return {name: values[chosen.to(values.device)] for name, values in self.rows.items()}

    def state(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return {**self.rows, "seen": torch.tensor(self.seen)}

    def load_state(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Load the result of `state`."""
        self.rows = {name: t.to(device) for name, t in state.items() if name != "seen"}
        self.seen = int(state["seen"]) if "seen" in state else 0


def _widened(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two [n, C] tensors with as many columns as the wider one; new columns are NaN."""
    width = max(a.shape[1], b.shape[1])
    grown = []
    for t in (a, b):
        wide = t.new_full((len(t), width), torch.nan)
        wide[:, : t.shape[1]] = t
        grown.append(wide)
    return grown[0], grown[1]
