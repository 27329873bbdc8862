"""Structured SDP: sharpness-aware Frank-Wolfe training whose sparsity is whole channels.

The oracle picks output channels instead of single weights (`polytope.channel_vertex`), so useless
weights fade row by row. Pruning then removes whole channels, which saves time on masked layers. [D:
a combination of EsaCL's SDP with CLNP that has not been published; the oracle is the group norm's
form of the K-sparse polytope.]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from clnp_kernels.optim import AdamL1

from ..data.inputs import Split
from ..network.model import Model
from ..objectives.objective import Objective
from ..ranges import number
from .fit import Fit, FitSettings, FitState
from .frank_wolfe import RANGES, FrankWolfe, perturbed, still_statistics

PREFIX = "wolfe."


@dataclass(frozen=True)
class SDPSettings:
    """Settings of structured SDP.

    Attributes:
        rho: length of the sharpness-aware perturbation; 0: none.
        lr: length of a Frank-Wolfe step in units of the momentum.
        momentum: of the Frank-Wolfe steps.
        k: K, as a share of a layer's free channels.
        radius: the polytope's vertices are this many initial norms away.

    Raises:
        ConfigError: a number out of range.
    """

    rho: float = 0.05
    lr: float = 2.0
    momentum: float = 0.9
    k: float = 0.2
    radius: float = 15.0

    def __post_init__(self) -> None:
        for name, values in {"rho": number(), **RANGES}.items():
            values.check(f"sdp {name}", getattr(self, name))


class StructuredFit(Fit):
    """A `Fit` that makes channels sparse by structured SDP instead of an L1 penalty.

    The free weights of hidden layers take Frank-Wolfe steps in their channel polytopes; biases,
    norms and the head take Adam's steps with the same, sharpness-aware gradients. The schedule
    scales both.

    Arguments:
        model, train, validation, settings, seed, on_batch, objective: as for `Fit`; `settings.l1`
            is not used.
        sdp: of the Frank-Wolfe steps.
    """

    def __init__(
        self,
        model: Model,
        train: Split,
        validation: Split,
        settings: FitSettings,
        seed: int,
        on_batch: Callable[[float, float, int, int], None] | None = None,
        objective: Objective | None = None,
        *,
        sdp: SDPSettings | None = None,
    ) -> None:
        super().__init__(model, train, validation, settings, seed, on_batch, objective)
        self.sdp = sdp or SDPSettings()
        rows = [] if settings.head_only else hidden_weights(model)
        chosen = {id(w) for w in rows}
        self.wolfe: FrankWolfe | None = None
        if rows:
            s = self.sdp
            self.wolfe = FrankWolfe(rows, s.lr, s.momentum, s.k, s.radius, "channels")
        rest = [p for p in self.parameters if id(p) not in chosen]
        self.optimizer = AdamL1(rest, lr=settings.lr)

    capturable = False  # the Frank-Wolfe steps read numbers back

    def _step(self, x: Tensor, y: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.cache.rows = rows
        loss, metric = self._gradients(x, y)
        if self.sdp.rho:
            with perturbed(self.parameters, self.sdp.rho), still_statistics(self.model):
                self._gradients(x, y)
        if self.wolfe is not None:
            factor = float(self.optimizer.param_groups[0]["lr"]) / self.settings.lr
            for group in self.wolfe.param_groups:
                group["lr"] = self.sdp.lr * factor
            self.wolfe.step()
        self.optimizer.step()
        return loss, metric

    def snapshot(self) -> FitState:
        state = super().snapshot()
        if self.wolfe is not None:
            for i, values in enumerate(self.wolfe.state.values()):
                for name, value in values.items():
                    state.optimizer[f"{PREFIX}{i}.{name}"] = value.detach().cpu().clone()
        return state

    def resume(self, state: FitState) -> None:
        own = {k: v for k, v in state.optimizer.items() if not k.startswith(PREFIX)}
        super().resume(FitState(state.epoch, state.history, state.parameters, own))
        if self.wolfe is not None:
            for i, values in enumerate(self.wolfe.state.values()):
                for name, value in values.items():
                    value.copy_(state.optimizer[f"{PREFIX}{i}.{name}"])


def hidden_weights(model: Model) -> list[nn.Parameter]:
    """The free weights [Of, I, ...] of hidden layers whose channels can be pruned."""
    groups = model.groups
    return [
        model.layer_weight(name)
        for name in groups.makes
        if any(groups[group].prunable for group, _ in groups.makes[name])
        and model.layer_weight(name).numel()
    ]
