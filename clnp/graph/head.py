"""A convolution of single pixels that gives the logits, as a Linear of each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from .graph import Node

PLAIN = {"kernel_size": [1, 1], "stride": [1, 1], "padding": [0, 0], "groups": 1}


def is_linear_per_pixel(node: Node) -> bool:
    """Return whether a node is a dense convolution of single pixels."""
    return node.op == "conv2d" and all(node.attrs[key] == value for key, value in PLAIN.items())


def with_linear(nodes: Sequence[Node], name: str, sides: Sequence[str]) -> list[Node]:
    """Replace a convolution by a Linear between two permutations of the axes.

    Arguments:
        nodes: all nodes, in execution order.
        name: the convolution.
        sides: names of the permutations before and behind it.
    """
    before, after = sides
    at = next(i for i, node in enumerate(nodes) if node.name == name)
    conv = nodes[at]
    inputs, outputs = conv.attrs["in_channels"], conv.attrs["out_channels"]
    attrs = {"in_features": inputs, "out_features": outputs, "bias": conv.attrs["bias"]}
    rest = [
        replace(node, inputs=tuple(after if n == name else n for n in node.inputs))
        for node in nodes[at + 1 :]
    ]
    return [
        *nodes[:at],
        Node(before, "permute", conv.inputs, {"dims": [0, 2, 3, 1]}),
        Node(name, "linear", (before,), attrs),
        Node(after, "permute", (name,), {"dims": [0, 3, 1, 2]}),
        *rest,
    ]


def linear_of(conv: nn.Module) -> nn.Linear:
    """Return a Linear that shares memory with the weight of a convolution, and its bias."""
    assert isinstance(conv, nn.Conv2d)
    with torch.device("meta"):
        linear = nn.Linear(conv.in_channels, conv.out_channels, conv.bias is not None)
    linear.weight = nn.Parameter(conv.weight.detach().view(conv.out_channels, conv.in_channels))
    linear.bias = conv.bias  # type: ignore[assignment]
    return linear.train(conv.training)
