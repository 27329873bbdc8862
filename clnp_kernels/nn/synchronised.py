"""Statistics of a batch that is spread over the processes of `torch.distributed`.

Letters: B this process's batch, C channels, Ca active (frozen), Cf free, n values per channel.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class LostPeerError(RuntimeError):
    """A message to or from another process did not arrive."""


def shared_statistics(
    x: Tensor,  # [B, C, H, W]
    free: int,
    eps: float,
    group: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and variance of the last `free` channels over the batches of all processes, with
    their gradient.

    Normalising the returned `x` by the returned statistics as constants has the value and the
    gradient of batch normalisation over all processes (Ioffe & Szegedy 2015): the share of the
    gradient that flows through mean and variance is added where it flows into `x`.

    Arguments:
        x: B may differ between processes and be 0.
        free: Cf.
        eps: what the normalisation will add to the variance.
        group: the processes; all have to call.

    Returns:
        x [B, C, H, W]; mean [Cf] and variance [Cf], divided by n; n [] over all processes; float32,
        or float64 for float64. The same bits on every process.

    Raises:
        LostPeerError: another process is gone.
    """
    return _SharedStatistics.apply(x, free, eps, group)


class _SharedStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, free: int, eps: float, group: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = _free(x, free)
        count = values.new_tensor(values[:, :1].numel() if free else x.numel())
        mean = values.sum((0, 2, 3)) / count.clamp(min=1)
        squares = (values - _wide(mean)).square().sum((0, 2, 3))
        rows = torch.stack(_gathered(torch.cat([mean, squares, count[None]]), group))
        means, squares, counts = rows[:, :free], rows[:, free:-1], rows[:, -1:]
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        # Chan, Golub & LeVeque 1979: squares around the common mean
        var = (squares + counts * (means - mean).square()).sum(0) / total
        ctx.save_for_backward(x, mean, var, total)
        ctx.free, ctx.eps, ctx.group = free, eps, group
        ctx.mark_non_differentiable(mean, var, total)
        return x.view_as(x), mean, var, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        x, mean, var, total = ctx.saved_tensors
        free = _free(grad, ctx.free)
        centred = _free(x, ctx.free) - _wide(mean)
        sums = torch.cat([free.sum((0, 2, 3)), (free * centred).sum((0, 2, 3))])
        _checked(dist.all_reduce, sums, group=ctx.group)
        straight, along = (sums / total).split(ctx.free)
        free = free - _wide(straight) - centred * _wide(along / (var + ctx.eps))
        active = grad[:, : grad.shape[1] - ctx.free]
        return torch.cat([active, free.to(grad.dtype)], 1), None, None, None


def _free(x: Tensor, free: int) -> Tensor:
    """The last channels, in float32 or float64."""
    return x[:, x.shape[1] - free :].to(torch.promote_types(x.dtype, torch.float32))


def _wide(vector: Tensor) -> Tensor:
    return vector[:, None, None]


def _gathered(row: Tensor, group: Any) -> list[Tensor]:
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size(group))]
    _checked(dist.all_gather, rows, row, group=group)
    return rows


def _checked(message: Any, *arguments: Any, **options: Any) -> None:
    try:
        message(*arguments, **options)
    except RuntimeError as error:
        raise LostPeerError(str(error)) from error
