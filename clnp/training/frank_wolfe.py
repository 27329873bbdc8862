"""SDP: training towards prunable weights in flat places, then one pruning and no retraining.

min over theta in C(K, tau) of max over |eps| <= rho of L(theta + eps)   [D: EsaCL Eq. 8 and 11]

- the inner maximum by one ascent step, eps = rho g / |g| (SAM, Foret et al. 2021, Eq. 2);
- the outer minimum by Frank-Wolfe steps with momentum along the polytope's vertices (settings of
  Miao et al. 2022);
- then every weight but the largest is set to zero, once.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clnp_kernels import torch_private as private

from ..ranges import choice, number
from .polytope import channel_vertex, vertex

RANGES = {
    "lr": number(above=True),
    "momentum": number(0, 1, below=True),
    "k": number(0, 1, above=True),
    "radius": number(above=True),
}
VERTICES: dict[str, Callable[[Tensor, int, float], Tensor]] = {
    "weights": vertex,
    "channels": channel_vertex,
}


@contextlib.contextmanager
def perturbed(parameters: Sequence[Tensor], rho: float) -> Iterator[Tensor]:
    """Inside, the parameters stand at theta + rho g / |g|, the norm being over all of them together
    (SAM, Eq. 2); afterwards they are what they were, bit for bit.

    Arguments:
        parameters: with `.grad`; those without are left alone.
        rho: length of the perturbation.

    Yields:
        |g|, a scalar; where it is 0 nothing moves.
    """
    moving = [p for p in parameters if p.grad is not None]
    with torch.no_grad():
        values = [p.detach() for p in moving]
        grads = [g for p in moving if (g := p.grad) is not None]
        saved = list(private.foreach_mul(values, 1.0)) if values else []
        norms = private.foreach_norm(grads) if grads else []
        norm = torch.stack(list(norms)).norm() if norms else torch.zeros(())
        if values:
            scale = torch.where(norm > 0, rho / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0.0)
            private.foreach_add_(values, private.foreach_mul(grads, scale))
    try:
        yield norm
    finally:
        with torch.no_grad():
            if values:
                private.foreach_copy_(values, saved)


@contextlib.contextmanager
def still_statistics(net: nn.Module) -> Iterator[None]:
    """Normalisations keep their running statistics and their count of batches: a second pass over
    a batch must not count twice.
    """
    norms = [m for m in net.modules() if hasattr(m, "num_batches_tracked")]
    kept = [(b, b.clone()) for m in norms for b in m.buffers(recurse=False)]
    try:
        yield
    finally:
        for now, before in kept:
            now.copy_(before)


class FrankWolfe(torch.optim.Optimizer):
    """Frank-Wolfe steps with momentum in the K-sparse polytope of each tensor.

        m <- mu m + (1 - mu) g          v = vertex(m)
        eta = clip(lr |m| / |theta - v|, 0, 1)        theta <- (1 - eta) theta + eta v

    so a step has length lr |m| and stays in the polytope, without a projection.

    Arguments:
        params: weights, each in its polytope.
        lr: step length in units of |m|.
        momentum: mu.
        k: K as a share of a tensor's entries (rows, with kind "channels").
        radius: tau sqrt(K) = radius * the tensor's norm when the optimizer is made: the polytope's
            vertices are so many times as far out as the weights.
        kind: "weights" or "channels".
        norms: the norms to measure `radius` in, one per tensor, instead.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1.0,
        momentum: float = 0.9,
        k: float = 0.05,
        radius: float = 15.0,
        kind: str = "weights",
        *,
        norms: Sequence[float] | None = None,
    ) -> None:
        values = {"lr": lr, "momentum": momentum, "k": k, "radius": radius}
        for name, value in values.items():
            RANGES[name].check(f"FrankWolfe {name}", value)
        choice(VERTICES).check("FrankWolfe kind", kind)
        super().__init__(params, {"lr": lr, "momentum": momentum, "k": k, "kind": kind})
        tensors = [p for group in self.param_groups for p in group["params"]]
        if norms is None:
            norms = [float(p.detach().double().norm()) for p in tensors]
        for p, norm in zip(tensors, norms, strict=True):
            tau = radius * norm / math.sqrt(_count(p, k, kind))
            self.state[p] = {"m": torch.zeros_like(p), "tau": torch.tensor(tau, dtype=p.dtype)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step; the loss that `closure` returns, or None."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if not moving:
                continue
            states = [self.state[p] for p in moving]
            m = [s["m"] for s in states]
            private.foreach_lerp_(m, [p.grad for p in moving], 1 - group["momentum"])
            oracle = VERTICES[group["kind"]]
            v = [
                oracle(mi, _count(mi, group["k"], group["kind"]), float(s["tau"]))
                for mi, s in zip(m, states, strict=True)
            ]
            away = private.foreach_norm(private.foreach_sub(v, [p.detach() for p in moving]))
            eta = [
                torch.clamp(group["lr"] * length / far.clamp_min(torch.finfo(far.dtype).tiny), 0, 1)
                for length, far in zip(private.foreach_norm(m), away, strict=True)
            ]
            private.foreach_lerp_([p.detach() for p in moving], v, eta)
        return loss


def _count(p: Tensor, k: float, kind: str) -> int:
    """K of a tensor."""
    return max(1, round(k * (p.shape[0] if kind == "channels" else p.numel())))


@torch.no_grad()
def prune_to(weights: Sequence[Tensor], sparsity: float, scope: str = "layer") -> list[Tensor]:
    """Sets the smallest |w| to zero, in place, once.

    Arguments:
        weights: tensors of any shape.
        sparsity: share of entries that become zero.
        scope: "layer": of every tensor alike; "global": of all together.

    Returns:
        a bool mask per tensor, True where the weight stays.
    """
    if scope == "global" and weights:
        sizes = [w.numel() for w in weights]
        together = torch.cat([w.abs().flatten() for w in weights])
        masks = [
            part.reshape(w.shape)
            for part, w in zip(largest(together, sparsity).split(sizes), weights, strict=True)
        ]
    else:
        masks = [largest(w.abs().flatten(), sparsity).reshape(w.shape) for w in weights]
    for w, mask in zip(weights, masks, strict=True):
        w.masked_fill_(~mask, 0)
    return masks


def largest(size: Tensor, sparsity: float) -> Tensor:
    """True at all but the `sparsity` smallest entries of a vector."""
    kept = size.numel() - round(sparsity * size.numel())
    mask = torch.zeros_like(size, dtype=torch.bool)
    mask[size.topk(kept, sorted=False).indices] = True
    return mask
