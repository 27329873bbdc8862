"""IDS: which examples a task is trained on.

Two stages [D, after EsaCL Sec. 4 and Eq. 14]:

- support example selection (SSE): the examples of highest loss, which make up most of the
  worst-case perturbation that sharpness-aware training looks for;
- redundant example elimination (ERE): of these, those leave whose removal would change the
  parameters least, by the influence function (Koh & Liang 2017).

The influence is that on a linear read-out of the last hidden features: its per-example gradient
(p - y) x features, projected at random to a few numbers, with the Gauss-Newton matrix G^T G.
Examples leave one after the other and the matrix is updated each time: of two copies of an example
the first changes little, for the other one still speaks for it, but then the other one counts in
full.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...data.batches import batches, count
from ...data.inputs import Split
from ...training.evaluation import evaluating
from ..network import TaskNet

ROWS = 1000
BLOCK = 4096
DIMENSIONS = 128
DAMPING = 1e-3
AT_ONCE = 32
TOUCH = 0.1  # shared leverage of two examples, as a share of what each leaves to the others


def support_examples(losses: Tensor, n: int) -> Tensor:
    """The n examples of highest loss (SSE): ascending indices [n] int64 into `losses` [N]."""
    return losses.argsort(descending=True, stable=True)[:n].sort().values


def gradient_embedding(features: Tensor, logits: Tensor, y: Tensor, projection: Tensor) -> Tensor:
    """Each example's gradient of the cross entropy in the output layer, projected: [N, C d].

    Arguments:
        features: [N, F], what the output layer reads.
        logits: [N, C].
        y: [N] int64.
        projection: [F, d].
    """
    error = logits.double().softmax(dim=-1)
    error[torch.arange(len(y)), y] -= 1
    return (error[:, :, None] * (features.double() @ projection.double())[:, None, :]).flatten(1)


def eliminate_redundant(
    gradients: Tensor,
    n: int,
    *,
    damping: float = DAMPING,
    block: int = BLOCK,
    at_once: int = AT_ONCE,
) -> Tensor:
    """Takes examples out one by one, always the one whose removal changes the parameters least,
    down to n (ERE).

    Leaving out example i moves the optimum by about H_i^-1 g_i, H_i being the Gauss-Newton matrix
    of the others, sum_j g_j g_j^T + damping * mean |g|^2 * 1.

    Arguments:
        gradients: [N, d], one row per example.
        n: how many stay.
        damping: relative to the mean squared norm of the rows.
        block: examples that are compared with each other; more are taken in pieces, because the
            work grows with N (N - n) d.
        at_once: so many may leave together where they hardly speak for each other; 1 takes them one
            by one.

    Returns:
        ascending indices [n] int64 of those that stay.
    """
    total = len(gradients)
    pieces = max(1, -(-total // block))
    kept, start = [], 0
    for piece in range(pieces):
        stop = total * (piece + 1) // pieces
        stay = n * (piece + 1) // pieces - n * piece // pieces
        kept.append(start + _eliminate(gradients[start:stop].double(), stay, damping, at_once))
        start = stop
    return torch.cat(kept)


def _eliminate(g: Tensor, n: int, damping: float, at_once: int) -> Tensor:
    """`eliminate_redundant` of one block, g [N, d] float64.

    Woodbury's formula takes examples r out of the inverse: H' = H + h (1 - g_r h)^-1 h^T with
    h = H g_r^T. Leverages g_i H g_i and lengths |H g_i| follow from products with g.
    """
    unit = float(g.square().sum(1).mean())
    alive = torch.arange(len(g), device=g.device)
    if unit == 0:
        return alive[:n].cpu()
    eye = torch.eye(g.shape[1], dtype=g.dtype, device=g.device)
    inverse = torch.linalg.inv(g.T @ g + damping * unit * eye)
    u = g @ inverse
    leverage, length = (g * u).sum(1), u.square().sum(1)
    gone = torch.zeros(len(g), dtype=torch.bool, device=g.device)
    left = len(g) - n
    while left:
        # Leaving one out: H_i^-1 g_i = H^-1 g_i / (1 - l_i).
        change = length / (1 - leverage).clamp_min(1e-12).square()
        least = change.masked_fill_(gone, torch.inf).topk(min(at_once, left), largest=False)
        leave = _apart(least.indices, g, inverse)
        gone[leave] = True
        left -= len(leave)
        h = inverse @ g[leave].T  # [d, r]
        between = torch.eye(len(leave), dtype=g.dtype, device=g.device) - g[leave] @ h
        both = g @ torch.cat([h, inverse @ h], dim=1)
        overlap, turned = both.split(len(leave), dim=1)  # [N, r] each
        turn = torch.linalg.solve(between, overlap.T).T
        length += 2 * (turn * turned).sum(1) + ((turn @ (h.T @ h)) * turn).sum(1)
        leverage += (turn * overlap).sum(1)
        inverse += h @ torch.linalg.solve(between, h.T)
    return alive[~gone].cpu()


def _apart(candidates: Tensor, g: Tensor, inverse: Tensor) -> Tensor:
    """Select candidates that hardly represent each other, the first one always: an example
    whose copy leaves now has to be looked at again.
    """
    rows = g[candidates]
    shared = (rows @ inverse @ rows.T).abs()
    own = (1 - shared.diagonal()).clamp_min(1e-12)
    close = (shared > TOUCH * torch.minimum(own[:, None], own[None, :])).cpu()
    taken = [0]
    for i in range(1, len(candidates)):
        if not bool(close[i, taken].any()):
            taken.append(i)
    return candidates[taken]


@torch.no_grad()
def select(
    net: TaskNet, task: int, split: Split, keep: float, support: float, generator: torch.Generator
) -> Tensor:
    """Both stages on a network as it stands; one forward pass over the split.

    Arguments:
        net: the network; `task` whose outputs it gives.
        split: N training examples.
        keep: share of them that stays.
        support: share that the first stage hands to the second; keep <= support <= 1.
        generator: CPU; of the random projection.

    Returns:
        ascending indices [round(keep N)] int64, on the CPU.
    """
    device = next(net.parameters()).device
    total = count(split)
    n = max(1, round(keep * total))
    m = min(total, max(n, round(support * total)))
    features, logits, labels = [], [], []
    with evaluating(net):
        for x, y in batches(split, ROWS, device):
            f, z = net.with_features(x, task)
            features.append(f.float())
            logits.append(z.float())
            labels.append(y)
    f, z, y = torch.cat(features), torch.cat(logits), torch.cat(labels)
    losses = torch.nn.functional.cross_entropy(z, y, reduction="none")
    best = support_examples(losses, m)
    each = max(1, DIMENSIONS // z.shape[1])
    projection = torch.randn(f.shape[1], each, generator=generator).to(device) / each**0.5
    g = gradient_embedding(f[best], z[best], y[best], projection)
    return best[eliminate_redundant(g, n).to(device)].cpu()
