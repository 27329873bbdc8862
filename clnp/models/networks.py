"""Networks of the paper, and a ResNet-18 for small images, as plain torch modules."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from ..errors import ConfigError

# Initialisations of an MLP's first layer.
INITS = ("default", "orthogonal")
# Golkar et al. 2019, Table 2: channels of the four convolutions and of the dense layer.
NARROW = (32, 32, 64, 64, 512)
# Golkar et al. 2019, Table 3: channels, stride and padding of the hidden convolutions, all 3 x 3.
WIDE = ((128, 1, 1), (256, 2, 0), (512, 1, 0), (1024, 2, 1), (2048, 1, 0))


def mlp(
    inputs: int = 784,
    width: int = 2000,
    depth: int = 2,
    classes: int = 10,
    *,
    dropout: float = 0.0,
    init: str = "default",
    seed: int | None = None,
) -> nn.Sequential:
    """Multi-layer perceptron with ReLU.

    The defaults are the network of the permuted-MNIST experiment (Sec. 3.1).

    Arguments:
        inputs: features of one example.
        width: channels of every hidden layer.
        depth: number of hidden layers.
        classes: number of outputs.
        dropout: probability of dropping a hidden activation; 0 adds no layer.
        init: initialisation of the first layer. "orthogonal" draws rows of unit length, orthogonal
            in blocks of `inputs` rows, with zero biases; different features serve later tasks
            better. "default" is that of torch's Linear.
        seed: seeds the weights without use of torch's global generator; None draws from that
            generator.

    Returns:
        a module x [B, inputs] -> logits [B, classes], with layers fc1, fc2, ..., head.

    Raises:
        ConfigError: a size below 1, dropout outside [0, 1), or an unknown `init`.
    """
    _check_counts(inputs=inputs, width=width, depth=depth, classes=classes)
    _check_dropout(dropout)
    if init not in INITS:
        raise ConfigError(f"init: expected one of {list(INITS)}, got {init!r}")
    with seeded_weights(seed):
        net = nn.Sequential()
        for i in range(1, depth + 1):
            net.add_module(f"fc{i}", nn.Linear(inputs if i == 1 else width, width))
            net.add_module(f"relu{i}", nn.ReLU())
            if dropout:
                net.add_module(f"drop{i}", nn.Dropout(dropout))
        net.add_module("head", nn.Linear(width, classes))
        if init == "orthogonal":
            _orthogonal(cast(nn.Linear, net[0]))
    return net


def _orthogonal(layer: nn.Linear) -> None:
    """Draw orthonormal rows, in blocks of as many rows as there are inputs."""
    for rows in layer.weight.detach().split(layer.in_features):
        nn.init.orthogonal_(rows)
    nn.init.zeros_(layer.bias)


def narrow(
    classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    *,
    scale: float = 1.0,
    dropout: float = 0.25,
    seed: int | None = None,
) -> nn.Sequential:
    """Narrow network of the split-CIFAR experiment (Table 2).

    3 x 3 convolutions of 32, 32, pool, 64, 64 channels, pool, and a dense layer of 512, each with
    ReLU.

    Arguments:
        classes: number of outputs.
        shape: (C, H, W) of one example.
        scale: factor on the channels of all hidden layers.
        dropout: probability after both pools, and twice that after the dense layer (.25 / .25 / .5
            in the paper); 0 adds no layers.
        seed: as in `mlp`.

    Returns:
        a module x [B, C, H, W] -> logits [B, classes]; layers conv1 to conv4, dense, head.

    Raises:
        ConfigError: a size below 1, a scale outside (0, 64], or dropout outside [0, 0.5).
    """
    channels, height, width = _checked_shape(shape)
    _check_counts(classes=classes)
    _check_dropout(2 * dropout, "dropout, doubled after the dense layer")
    sizes = [scaled(n, scale) for n in NARROW]
    with seeded_weights(seed):
        net = nn.Sequential()
        for i, size in enumerate(sizes[:4], start=1):
            net.add_module(f"conv{i}", nn.Conv2d(channels, size, 3, padding=1))
            net.add_module(f"relu{i}", nn.ReLU())
            channels = size
            if i % 2:
                continue
            net.add_module(f"pool{i // 2}", nn.MaxPool2d(3, stride=2, padding=1))
            height, width = (height + 1) // 2, (width + 1) // 2
            if dropout:
                net.add_module(f"drop{i // 2}", nn.Dropout(dropout))
        net.add_module("flatten", nn.Flatten())
        net.add_module("dense", nn.Linear(channels * height * width, sizes[4]))
        net.add_module("relu5", nn.ReLU())
        if dropout:
            net.add_module("drop3", nn.Dropout(2 * dropout))
        net.add_module("head", nn.Linear(sizes[4], classes))
    return net


def wide(
    classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    *,
    scale: float = 1.0,
    seed: int | None = None,
) -> nn.Sequential:
    """Wide network of the split-CIFAR experiment (Table 3).

    Five 3 x 3 convolutions of 128 to 2048 channels, each with batch norm and ReLU; a sixth with one
    channel per class; average pool.

    The sixth convolution and the average pool over its H x W outputs are linear. They are written
    as an equivalent average pool of H x W with stride 1, which gives 3 x 3 numbers per channel, and
    a Linear layer over these, so that the network ends in a Linear layer.

    Arguments:
        classes: number of outputs.
        shape: (C, H, W) of one example, with sides of at least 24.
        scale: factor on the channels of all hidden layers.
        seed: as in `mlp`.

    Returns:
        a module x [B, C, H, W] -> logits [B, classes]; layers conv1 to conv5, norm1 to norm5, head.

    Raises:
        ConfigError: a size below 1 or too small, or a scale outside (0, 64].
    """
    channels, height, width = _checked_shape(shape)
    _check_counts(classes=classes)
    if min(height, width) < 24:
        raise ConfigError(f"shape: expected sides of at least 24, got {tuple(shape)}")
    with seeded_weights(seed):
        net = nn.Sequential()
        for i, (size, stride, padding) in enumerate(WIDE, start=1):
            size = scaled(size, scale)
            # Batch norm would subtract a bias again.
            conv = nn.Conv2d(channels, size, 3, stride=stride, padding=padding, bias=False)
            net.add_module(f"conv{i}", conv)
            net.add_module(f"norm{i}", nn.BatchNorm2d(size))
            net.add_module(f"relu{i}", nn.ReLU())
            channels = size
            height, width = ((n + 2 * padding - 3) // stride + 1 for n in (height, width))
        net.add_module("pool", nn.AvgPool2d((height - 2, width - 2), stride=1))
        net.add_module("flatten", nn.Flatten())
        net.add_module("head", nn.Linear(9 * channels, classes))
    return net


def resnet18_small(
    classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    *,
    scale: float = 1.0,
    seed: int | None = None,
) -> nn.Module:
    """ResNet-18 of torchvision for images of about 32 x 32.

    It has a 3 x 3 stem of stride 1 and no max pool, as in He et al. 2016, Sec. 4.2.

    Arguments:
        classes: number of outputs.
        shape: (C, H, W) of one example.
        scale: factor on all channels (64 in the first stage).
        seed: as in `mlp`.

    Returns:
        a module x [B, C, H, W] -> logits [B, classes], with torchvision's names.

    Raises:
        ConfigError: a size below 1, a scale outside (0, 64], or no torchvision.
    """
    channels, _, _ = _checked_shape(shape)
    _check_counts(classes=classes)
    blocks = torchvision_models().resnet
    width = scaled(64, scale)
    with seeded_weights(seed):
        net: Any = blocks.resnet18(num_classes=classes)
        net.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
        if width != 64:
            net.bn1 = nn.BatchNorm2d(width)
            for i in range(4):
                inputs, outputs = width << max(i - 1, 0), width << i
                setattr(net, f"layer{i + 1}", _stage(blocks.BasicBlock, inputs, outputs))
            net.fc = nn.Linear(width << 3, classes)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return cast(nn.Module, net)


def _stage(block: Any, inputs: int, outputs: int) -> nn.Sequential:
    """Return two basic blocks; the first halves the image if it changes the channels."""
    if inputs == outputs:
        return nn.Sequential(block(inputs, outputs), block(outputs, outputs))
    shortcut = nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs)
    )
    return nn.Sequential(block(inputs, outputs, 2, shortcut), block(outputs, outputs))


def torchvision_models() -> types.ModuleType:
    """Import torchvision.models; raises ConfigError if that fails."""
    try:
        from torchvision import models
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError
        raise ConfigError(
            f"torchvision can't be imported ({error}); pip install torchvision, in the version for "
            f"torch {torch.__version__}"
        ) from error
    return models


@contextlib.contextmanager
def seeded_weights(seed: int | None) -> Iterator[None]:
    """Seed torch's CPU generator inside and restore it after; None changes nothing."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def scaled(channels: int, scale: float) -> int:
    """Return channels * scale, rounded, at least 1; raises ConfigError unless 0 < scale <= 64."""
    if not 0 < scale <= 64:
        raise ConfigError(f"scale: expected a factor above 0 and at most 64, got {scale}")
    return max(1, round(channels * scale))


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ConfigError(
            f"shape: expected (C, H, W), since this network needs images, got {tuple(shape)}"
        )
    channels, height, width = shape
    _check_counts(channels=channels, height=height, width=width)
    return channels, height, width


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name}: expected at least 1, got {value}")


def _check_dropout(probability: float, name: str = "dropout") -> None:
    if not 0.0 <= probability < 1.0:
        raise ConfigError(f"{name}: expected a probability in [0, 1), got {probability}")
