"""Images stored as bytes and converted to floats per batch, in a quarter of float32's memory."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError

# (mean, standard deviation) per channel of pixels in [0, 1], over the training images.
CONSTANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# Bytes of pixels that are summed at a time.
PIECE = 1 << 24

Constants = tuple[tuple[float, ...], tuple[float, ...]]


class ImageSet(Dataset[tuple[Tensor, Tensor]]):
    """A data set of images of one size, stored as bytes.

    Items are (x [C, H, W] float32, y [] int64) with x = (pixel / 255 - mean) / std. With `augment`,
    x is a random crop, mirrored half of the time, drawn from torch's global CPU generator, which a
    learner seeds per epoch; so a resumed run draws the same crops. Otherwise x is the centre.

    Arguments:
        labels: [N] integer class labels from 0.
        constants: (mean, std), each with one number per channel, for pixels in [0, 1].
        size: (H, W) of x; None uses that of the stored images.
        augment: random crops and mirror images, for training.
        padding: black pixels added on every side of a stored image before a random crop.

    Raises:
        DataError: an argument is invalid, naming it.
    """

    def __init__(
        self,
        labels: Tensor,
        constants: Constants,
        *,
        size: tuple[int, int] | None = None,
        augment: bool = False,
        padding: int = 4,
    ) -> None:
        mean, std = (torch.tensor(v, dtype=torch.float32).reshape(-1, 1, 1) for v in constants)
        if mean.shape != std.shape or not bool((std > 0).all()):
            raise DataError(
                "constants: expected (mean, std) with one number per channel each and std above 0, "
                f"got {constants}"
            )
        self.labels = labels.long()
        self.mean, self.std = 255 * mean, 255 * std
        self.size, self.augment, self.padding = size, augment, padding

    @abstractmethod
    def pixels(self, rows: Tensor) -> Tensor:
        """Return the stored images [B, C, H', W'] uint8 of rows [B] int64."""

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x [B, C, H, W] float32, y [B] int64) of rows [B] int64."""
        images = self.pixels(rows)
        size = self.size or (images.shape[-2], images.shape[-1])
        images = random_crops(images, size, self.padding) if self.augment else centre(images, size)
        mean, std = self.mean.to(images.device), self.std.to(images.device)
        return images.float().sub_(mean).div_(std), self.labels[rows.to(self.labels.device)]

    @property
    def targets(self) -> Tensor:
        """All labels, [N] int64."""
        return self.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        x, y = self.batch(torch.tensor([index % len(self)]))
        return x[0], y[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Return several items at once, the method a DataLoader prefers."""
        x, y = self.batch(torch.as_tensor(indices))
        return list(zip(x, y, strict=True))


class Images(ImageSet):
    """Images in memory.

    Arguments:
        images: [N, C, H, W] uint8.
        labels, constants, size, augment, padding: as in `ImageSet`.

    Raises:
        DataError: an argument has another shape or dtype.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        constants: Constants,
        *,
        size: tuple[int, int] | None = None,
        augment: bool = False,
        padding: int = 4,
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8 or not len(images):
            raise DataError(
                "images: expected [N, C, H, W] torch.uint8 with N of at least 1, got shape "
                f"{list(images.shape)} {images.dtype}"
            )
        if labels.ndim != 1 or len(labels) != len(images):
            raise DataError(
                f"labels: expected [{len(images)}], one per image, got shape {list(labels.shape)}"
            )
        if int(labels.min()) < 0:
            raise DataError(f"labels: expected labels from 0, got {int(labels.min())}")
        super().__init__(labels, constants, size=size, augment=augment, padding=padding)
        if len(self.mean) != images.shape[1]:
            raise DataError(
                f"constants: expected {images.shape[1]} channels, as the images have, got "
                f"{len(self.mean)}"
            )
        self.images = images

    def pixels(self, rows: Tensor) -> Tensor:
        return self.images[rows.to(self.images.device)]

    def to(self, device: str | torch.device) -> Images:
        """Return the same images stored on a device, which then makes their batches.

        Random crops are still drawn by the CPU's generator.
        """
        moved = copy.copy(self)
        moved.images, moved.labels = self.images.to(device), self.labels.to(device)
        moved.mean, moved.std = self.mean.to(device), self.std.to(device)
        return moved


def random_crops(images: Tensor, size: tuple[int, int], padding: int) -> Tensor:
    """Crop every image at random and mirror half of them, using torch's global CPU generator.

    Arguments:
        images: [B, C, H', W'] uint8.
        size: (H, W) of the crops; at most that of the padded images.
        padding: zeros added on every side if the images have the size of the crops.

    Returns:
        [B, C, H, W] uint8.
    """
    number = len(images)
    height, width = size
    if images.shape[-2:] == (height, width):
        images = F.pad(images, (padding,) * 4)
    top = torch.randint(images.shape[-2] - height + 1, (number, 1))
    left = torch.randint(images.shape[-1] - width + 1, (number, 1))
    mirrored = torch.rand(number, 1) < 0.5
    across = torch.arange(width).expand(number, width)
    across = torch.where(mirrored, width - 1 - across, across)
    rows = (top + torch.arange(height)).to(images.device)
    columns = (left + across).to(images.device)
    which = torch.arange(number, device=images.device)
    windows = images[which[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return windows.movedim(-1, 1).contiguous()


def centre(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop every image to its centre: [B, C, H', W'] -> [B, C, H, W]."""
    top, left = (images.shape[-2] - size[0]) // 2, (images.shape[-1] - size[1]) // 2
    return images[:, :, top : top + size[0], left : left + size[1]]


def channel_constants(images: Tensor) -> Constants:
    """Compute (mean, std) per channel of images [N, C, H, W] uint8, for pixels in [0, 1].

    Sums are in float64. A constant channel gets std 1.
    """
    rows = max(1, PIECE // max(1, images[0].numel()))
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for piece in images.split(rows):
        values = piece.double()
        total += values.sum(dim=(0, 2, 3)).cpu()
        squares += values.square().sum(dim=(0, 2, 3)).cpu()
    number = images.numel() // images.shape[1]
    mean = total / number
    std = (squares / number - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 1e-6, std, torch.full_like(std, 255.0))
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def constants_for(normalise: Any, known: str, images: Tensor) -> Constants:
    """Return the (mean, std) for the argument `normalise` of the streams.

    Arguments:
        normalise: "constants" (of the data set `known`), "train" (of the task's training images),
            "none" (pixels stay in [0, 1]), or (mean, std).
        known: key of `CONSTANTS`.
        images: training images [N, C, H, W] uint8.

    Raises:
        DataError: another value of `normalise`.
    """
    channels = images.shape[1]
    if normalise == "constants":
        return CONSTANTS[known]
    if normalise == "train":
        return channel_constants(images)
    if normalise == "none":
        return (0.0,) * channels, (1.0,) * channels
    if isinstance(normalise, (tuple, list)) and len(normalise) == 2:
        return tuple(normalise[0]), tuple(normalise[1])
    raise DataError(
        f"normalise: expected 'constants', 'train', 'none' or (mean, std), got {normalise!r}"
    )


def held_out(labels: Tensor, fraction: float, seed: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Set aside a fraction of every class, at least one example, drawn by the seed.

    Arguments:
        labels: [N] int64.
        fraction: above 0 and below 1.
        seed: non-negative integers.

    Returns:
        kept rows and rows set aside, both ascending int64; the same on every machine.

    Raises:
        DataError: a fraction outside (0, 1), or a class with one example.
    """
    if not 0 < fraction < 1:
        raise DataError(f"validation: expected a fraction above 0 and below 1, got {fraction!r}")
    # numpy guarantees the raw bits of a bit generator in all versions.
    raw = np.random.PCG64(np.random.SeedSequence(list(seed))).random_raw(len(labels))
    shuffled = torch.from_numpy(np.argsort(raw, kind="stable"))
    aside = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        rows = shuffled[labels[shuffled] == label]
        if len(rows) < 2:
            raise DataError(
                f"class {label}: expected at least 2 examples to split, got {len(rows)}"
            )
        aside[rows[: min(max(1, round(fraction * len(rows))), len(rows) - 1)]] = True
    return (~aside).nonzero()[:, 0], aside.nonzero()[:, 0]
