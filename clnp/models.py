"""Networks of the paper, as plain torch modules."""

from __future__ import annotations

import torch
from torch import nn

from clnp.errors import ConfigError


def mlp(
    inputs: int = 784,
    width: int = 2000,
    depth: int = 2,
    classes: int = 10,
    *,
    dropout: float = 0.0,
    seed: int | None = None,
) -> nn.Sequential:
    """Multi-layer perceptron with ReLU; the defaults are the network of the permuted-MNIST
    experiment (Sec. 3.1).

    Arguments:
        inputs: features of one example.
        width: channels of every hidden layer.
        depth: number of hidden layers.
        classes: outputs.
        dropout: probability of dropping a hidden activation; 0 adds no layer.
        seed: seeds the weights without touching torch's global generator; None draws from that
            generator.

    Returns:
        a module x [B, inputs] -> logits [B, classes], layers named fc1, fc2, ..., head.

    Raises:
        ConfigError: a size below 1 or dropout outside [0, 1).
    """
    for name, value in (
        ("inputs", inputs),
        ("width", width),
        ("depth", depth),
        ("classes", classes),
    ):
        if value < 1:
            raise ConfigError(f"{name}={value}: expected at least 1")
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout={dropout}: expected a probability in [0, 1)")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        net = nn.Sequential()
        for i in range(1, depth + 1):
            net.add_module(f"fc{i}", nn.Linear(inputs if i == 1 else width, width))
            net.add_module(f"relu{i}", nn.ReLU())
            if dropout:
                net.add_module(f"drop{i}", nn.Dropout(dropout))
        net.add_module("head", nn.Linear(width, classes))
    return net
