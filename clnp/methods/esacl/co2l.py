"""The losses of Co2L (Cha, Lee, Shin 2021, arXiv:2106.14413), by the paper's formulas."""

from __future__ import annotations

import torch
from torch import Tensor


def asymmetric_contrast(
    z: Tensor, labels: Tensor, anchors: Tensor, temperature: float = 0.5
) -> Tensor:
    """Asymmetric supervised contrastive loss (Eq. 1): only examples of the current task are
    anchors; replayed ones are there to be told apart from.

        mean over anchors i with positives of
        -1 / |P(i)| sum_{j in P(i)} log( exp(z_i z_j / t) / sum_{k != i} exp(z_i z_k / t) )

    Arguments:
        z: [B, D], of length 1.
        labels: [B] int64; P(i) are the others with i's label.
        anchors: [B] bool.
        temperature: t.

    Returns:
        a scalar; 0 where no anchor has a positive.
    """
    self_mask = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similarity = (z @ z.T / temperature).masked_fill(self_mask, -torch.inf)
    log_p = similarity - similarity.logsumexp(dim=1, keepdim=True)
    positive = (labels[:, None] == labels[None, :]) & ~self_mask
    counts = positive.sum(dim=1)
    used = anchors & (counts > 0)
    if not bool(used.any()):
        return z.sum() * 0.0
    sums = torch.where(positive, log_p, 0.0).sum(dim=1)
    return -(sums[used] / counts[used]).mean()


def instance_distillation(
    z: Tensor, past: Tensor, temperature: float = 0.2, past_temperature: float = 0.01
) -> Tensor:
    """Instance-wise relation distillation (Eq. 3): who is near whom shall stay.

        mean over i of -sum_{k != i} p_i(past)_k log p_i(now)_k,
        p_i_k = exp(z_i z_k / t) / sum_{l != i} exp(z_i z_l / t)

    Arguments:
        z, past: [B, D], of length 1; of the network now and as the task before left it. No gradient
            flows into `past`.
        temperature, past_temperature: t of each (kappa and kappa*).
    """
    self_mask = torch.eye(len(z), dtype=torch.bool, device=z.device)
    now = (z @ z.T / temperature).masked_fill(self_mask, -torch.inf).log_softmax(dim=1)
    before = past.detach() @ past.detach().T / past_temperature
    target = before.masked_fill(self_mask, -torch.inf).softmax(dim=1)
    # 0 * -inf on the diagonal would be NaN.
    return -(target * now.masked_fill(self_mask, 0.0)).sum(dim=1).mean()
