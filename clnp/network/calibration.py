"""A classifier of the task, fitted on a few examples of every task.

The outputs of different heads are not comparable: each was trained on its own classes only. A
linear classifier of the task, fitted on a small batch per task that no head was trained on, makes
them so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from .inference import RULES

if TYPE_CHECKING:
    from .network import Network

DECAY = 1e-2  # L2 penalty on standardised features
STEPS = 200  # of L-BFGS


@dataclass(frozen=True)
class Calibration:
    """A linear classifier of the task; a rule of `clnp.network.inference.choose`.

    Attributes:
        tasks: indices of the tasks it knows.
        mean, scale: [F] of the features on the batches it was fitted on, float64.
        weight: [F, T], and `bias` [T], float64.
        energies: task -> log-sum-exp of its own logits on its batch, ascending [N].
    """

    tasks: tuple[int, ...]
    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    energies: Mapping[int, Tensor]

    @torch.no_grad()
    def confidences(self, logits: Sequence[Tensor]) -> Tensor:
        """Log-probability [B, T] of every known task, from the logits [B, C] of every task."""
        standard = (features(logits) - self.mean) / self.scale
        return (standard @ self.weight + self.bias).log_softmax(-1)

    def refused(self, logits: Sequence[Tensor], task: Tensor, fraction: float) -> Tensor:
        """True for an example that is less sure of its task than that fraction of the task's own
        batch, [B] bool: log-sum-exp of the task's logits (Liu et al. 2020, "Energy-based
        out-of-distribution detection").

        Arguments:
            logits: [B, C] of every task.
            task: [B] int64, chosen task of each example.
            fraction: of the batch, in [0, 1).
        """
        least = torch.full((len(logits),), -torch.inf, dtype=torch.float64, device=task.device)
        for k, own in self.energies.items():
            least[k] = own.quantile(fraction)
        energy = torch.stack([part.double().logsumexp(-1) for part in logits])
        return energy.gather(0, task[None])[0] < least[task]


def features(logits: Sequence[Tensor]) -> Tensor:
    """Return [B, F] float64: per task its logits and the confidence by every rule."""
    parts = []
    for part in logits:
        if part.shape[-1]:  # else forgotten
            wide = part.double()
            parts += [wide, *(rule(wide)[:, None] for rule in RULES.values())]
    return torch.cat(parts, dim=1)


@torch.enable_grad()
def calibrated(network: Network, batches: Mapping[int, Tensor]) -> Calibration:
    """Fit a classifier of the task by multinomial logistic regression.

    Arguments:
        network: a `clnp.Model` between tasks.
        batches: index of every learned task -> examples of it [N, ...] that it was not trained on.

    Raises:
        ConfigError: a batch is missing or empty. DataError: it does not fit the network.
    """
    tasks = tuple(network.present)
    missing = [k for k in tasks if k not in batches or not len(batches[k])]
    if missing or not tasks:
        raise ConfigError(
            f"batches: expected examples of tasks {list(tasks)}, got none of {missing}"
        )
    with torch.inference_mode(False), torch.no_grad():
        outputs = {k: network.all_tasks(batches[k].to(network.device)) for k in tasks}
        x = torch.cat([features(outputs[k]) for k in tasks])
        mean, scale = x.mean(0), x.std(0, correction=0).clamp_min(1e-6)
        x = (x - mean) / scale
        energies = {k: outputs[k][k].double().logsumexp(-1).sort().values for k in tasks}
        y = torch.cat([torch.full((len(batches[k]),), i) for i, k in enumerate(tasks)]).to(x.device)
    with torch.inference_mode(False):
        weight = x.new_zeros(x.shape[1], len(tasks), requires_grad=True)
        bias = x.new_zeros(len(tasks), requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(x @ weight + bias, y) + DECAY * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
    return Calibration(tasks, mean, scale, weight.detach(), bias.detach(), energies)
