"""Tensors as planes of channels, for the kernels that sum over everything else."""

from torch import Tensor


def as_planes(x: Tensor, dim: int) -> Tensor:
    """`x` as [P, C, Q], a view where there is one whose last or middle stride is 1, else a copy.

    Any order of the summed elements will do, so the dimensions are sorted by their strides first.
    """
    channel = x.movedim(dim, 0)
    others = sorted(range(1, x.ndim), key=channel.stride, reverse=True)
    sorted_x = channel.permute(0, *others)
    if sorted_x.stride(0) == 1 or x.ndim == 1:
        rows = sorted_x.movedim(0, -1)
        return rows.reshape(-1, x.shape[dim])[:, :, None]
    for split in range(1, x.ndim):
        try:
            planes = sorted_x.view(
                x.shape[dim], sorted_x.shape[1:split].numel(), sorted_x.shape[split:].numel()
            )
        except RuntimeError:  # not a view
            continue
        return planes.movedim(0, 1)
    return sorted_x.reshape(x.shape[dim], 1, -1).movedim(0, 1)
