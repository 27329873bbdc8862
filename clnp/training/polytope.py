"""K-sparse polytopes and their linear minimisation oracles.

C(K, tau) = {x: sum |x_i| <= tau K, max |x_i| <= tau}: the convex hull of the vectors with K entries
of +-tau and zeros elsewhere (EsaCL's constraint, "the intersection of an L1 ball and a hypercube";
formulas from Pokutta, Spiegel, Zimmer 2020 and Miao et al. 2022).

The channel form measures whole rows: {X: sum_r |X_r|_2 <= tau K, max_r |X_r|_2 <= tau}, whose
extreme points have at most K rows of norm tau [D: our own combination].
"""

from __future__ import annotations

import torch
from torch import Tensor


def vertex(m: Tensor, k: int, tau: float) -> Tensor:
    """argmin over C(K, tau) of <m, v>: -tau sign(m_i) at the k largest |m_i|, 0 elsewhere.

    Arguments:
        m: any shape; where fewer than k entries are not zero, fewer of v are.
        k: K, 1 <= k <= number of entries.
        tau: half width of the cube.
    """
    flat = m.flatten()
    chosen = flat.abs().topk(k, sorted=False).indices
    v = torch.zeros_like(flat)
    v[chosen] = -tau * flat[chosen].sign()
    return v.reshape(m.shape)


def in_polytope(x: Tensor, k: int, tau: float, slack: float = 1e-5) -> bool:
    """True if x is in C(k, tau), up to a relative slack."""
    size = x.abs().double()
    return bool(size.max() <= tau * (1 + slack)) and bool(size.sum() <= tau * k * (1 + slack))


def channel_vertex(m: Tensor, k: int, tau: float) -> Tensor:
    """argmin over the channel polytope of <m, v>: -tau m_r / |m_r| at the k rows of largest norm.

    Arguments:
        m: [O, ...], a row for each output channel.
        k, tau: as for `vertex`, in rows.
    """
    rows = m.reshape(m.shape[0], -1)
    norms = rows.norm(dim=1)
    chosen = norms.topk(k, sorted=False).indices
    v = torch.zeros_like(rows)
    tiny = torch.finfo(m.dtype).tiny
    v[chosen] = -tau * rows[chosen] / norms[chosen, None].clamp_min(tiny)
    return v.reshape(m.shape)


def in_channel_polytope(x: Tensor, k: int, tau: float, slack: float = 1e-5) -> bool:
    """True if x [O, ...] is in the channel polytope, up to a relative slack."""
    return in_polytope(x.reshape(x.shape[0], -1).norm(dim=1), k, tau, slack)
