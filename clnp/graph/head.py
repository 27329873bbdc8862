"""The output layer: a convolution of single pixels as a Linear, a sum of two layers as one."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .graph import Node

AXES = {"conv2d": 2, "conv3d": 3}
PLAIN = {"kernel_size": 1, "stride": 1, "padding": 0}  # along every axis


def is_linear_per_pixel(node: Node) -> bool:
    """Return whether a node is a dense convolution of single pixels."""
    axes = AXES.get(node.op)
    return axes is not None and all(node.attrs[k] == [v] * axes for k, v in PLAIN.items())


def with_linear(nodes: Sequence[Node], name: str, sides: Sequence[str]) -> list[Node]:
    """Replace a convolution by a Linear between two permutations of the axes.

    Arguments:
        nodes: all nodes, in execution order.
        name: the convolution.
        sides: names of the permutation before it, of its result in order in memory, and of the
            permutation behind it.
    """
    moved, before, after = sides
    at = next(i for i, node in enumerate(nodes) if node.name == name)
    conv = nodes[at]
    axes = AXES[conv.op]
    inputs, outputs = conv.attrs["in_channels"], conv.attrs["out_channels"]
    attrs = {"in_features": inputs, "out_features": outputs, "bias": conv.attrs["bias"]}
    rest = [
        replace(node, inputs=tuple(after if n == name else n for n in node.inputs))
        for node in nodes[at + 1 :]
    ]
    return [
        *nodes[:at],
        Node(moved, "permute", conv.inputs, {"dims": [0, *range(2, axes + 2), 1]}),
        # One product, whether gradients are needed or not; else PyTorch chooses by that.
        Node(before, "contiguous", (moved,)),
        Node(name, "linear", (before,), attrs),
        Node(after, "permute", (name,), {"dims": [0, axes + 1, *range(1, axes + 1)]}),
        *rest,
    ]


def linear_of(conv: nn.Module) -> nn.Linear:
    """Return a Linear that shares memory with the weight of a convolution, and its bias."""
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    with torch.device("meta"):
        linear = nn.Linear(conv.in_channels, conv.out_channels, conv.bias is not None)
    linear.weight = nn.Parameter(conv.weight.detach().view(conv.out_channels, conv.in_channels))
    linear.bias = conv.bias  # type: ignore[assignment]
    return linear.train(conv.training)


def sum_of_heads(nodes: Sequence[Node], key: str) -> Node | None:
    """Return a sum of two output layers, the first of which is `key`; None if there is none.

    Both are a Linear, or both a convolution of single pixels, and nothing else reads them.
    """
    known = {node.name: node for node in nodes}
    readers = Counter(name for node in nodes for name in node.inputs)
    for node in nodes:
        parts = [known[name] for name in node.inputs]
        if node.op != "add" or len(parts) != 2 or key not in node.inputs:
            continue
        alone = all(readers[part.name] == 1 for part in parts) and parts[0] != parts[1]
        pixels = all(map(is_linear_per_pixel, parts))
        if alone and (pixels or all(part.op == "linear" for part in parts)):
            return node
    return None


def with_one_head(
    nodes: Sequence[Node], joined: Node, name: str, dim: int, concat: str
) -> list[Node]:
    """Replace a sum of two output layers by one that reads the inputs of both.

    Arguments:
        nodes: all nodes, in execution order.
        joined: the sum.
        name: name of the new layer, that of one of the two.
        dim: axis of the inputs of both.
        concat: name of the concatenation of their inputs.
    """
    known = {node.name: node for node in nodes}
    parts = [known[part] for part in joined.inputs]
    key = "in_features" if parts[0].op == "linear" else "in_channels"
    sizes = [part.attrs[key] for part in parts]
    attrs = {"dim": dim, "sizes": sizes}
    bias = any(part.attrs["bias"] for part in parts)
    made = [
        Node(concat, "concat", tuple(part.inputs[0] for part in parts), attrs),
        Node(name, parts[0].op, (concat,), {**parts[0].attrs, key: sum(sizes), "bias": bias}),
    ]
    found: list[Node] = []
    for node in nodes:
        if node == joined:
            found += made
        elif node not in parts:
            inputs = tuple(name if n == joined.name else n for n in node.inputs)
            found.append(replace(node, inputs=inputs))
    return found


def one_head(first: nn.Module, second: nn.Module) -> nn.Module:
    """Return the layer whose outputs are the sums of those of two layers."""
    made = copy.deepcopy(first)
    weights: list[Any] = [first.weight, second.weight]
    biases: list[Any] = [b for b in (first.bias, second.bias) if b is not None]
    made.weight = nn.Parameter(torch.cat([w.detach() for w in weights], dim=1))
    made.bias = nn.Parameter(sum(b.detach() for b in biases)) if biases else None
    if isinstance(made, nn.Conv2d | nn.Conv3d):
        made.in_channels = made.weight.shape[1]
    elif isinstance(made, nn.Linear):
        made.in_features = made.weight.shape[1]
    return made
