"""From a user's dense network to a masked one."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clnp.errors import ConvertError
from clnp.graph import WITH_WEIGHTS, Graph, Node, fuse_relu
from clnp.lowering import lower
from clnp.model import Model


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        masked: (layer, text) for every layer that became masked.
        left_alone: (node, reason) for every operation that did not.
    """

    masked: tuple[tuple[str, str], ...]
    left_alone: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"{len(self.masked)} layer(s) masked:"]
        lines += [f"  {name}: {text}" for name, text in self.masked]
        if self.left_alone:
            lines.append("left alone:")
            lines += [f"  {name}: {reason}" for name, reason in self.left_alone]
        return "\n".join(lines)


@torch.inference_mode(False)
def convert(net: nn.Module, example_input: Tensor, *, verbose: bool = True) -> Model:
    """Rebuilds a dense network from masked layers that compute the same function.

    The network is copied, never changed. Supported: Linear, Conv2d (dense or depthwise), BatchNorm,
    the common activations, pooling, Dropout, Flatten, sums and products of hidden values, and any
    module built of these whose forward torch.fx can trace. The last layer has to be a Linear that
    gives the logits.

    Arguments:
        net: the dense network.
        example_input: a batch [B, ...], B >= 1, that it accepts; only its shape and dtype matter.
        verbose: print what was converted and what was left alone; also available as
            `model.conversion`.

    Returns:
        the masked network; `model(x)` equals `net(x)`.

    Raises:
        ConvertError: naming the module that can't be converted exactly, and why.
    """
    if not isinstance(net, nn.Module):
        raise ConvertError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
    if isinstance(net, Model):
        raise ConvertError("net is already a converted network")
    if not isinstance(example_input, Tensor):
        raise ConvertError(f"example_input: expected a tensor, got {type(example_input).__name__}")
    if example_input.dim() < 2 or example_input.shape[0] < 1:
        raise ConvertError(
            "example_input: expected a batch [B, ...] with B >= 1, got shape "
            f"{list(example_input.shape)}"
        )
    training = net.training
    net = copy.deepcopy(net)
    if type(net).__module__.startswith("torch.nn") and not isinstance(net, nn.Sequential):
        net = nn.Sequential(net)
    graph = lower(net, example_input)
    if not graph.layers:
        raise ConvertError("the network has no layer to convert")
    model = Model(graph, {node.name: net.get_submodule(node.name) for node in graph.weighted})
    model.train(training)
    model.conversion = _describe(graph, model)
    _check_same(net, model, example_input)
    if verbose:
        print(f"clnp.convert: {model.conversion}")
    return model


def _describe(graph: Graph, model: Model) -> Conversion:
    fused = fuse_relu(graph)
    kept = {node.name for node in fused.nodes}
    masked, left = [], []
    for node in graph.nodes:
        name = node.name
        if name == model.groups.head:
            classes = node.attrs["out_features"]
            left.append((name, f"output layer with {classes} classes: becomes the head"))
        elif node.role in WITH_WEIGHTS:
            relu = ", ReLU fused" if "activation" in fused[name].attrs else ""
            whole = ", frozen whole with the first task: it is added to the network's input"
            note = "" if model.groups.of(name).prunable else whole
            masked.append((name, f"{_text(node)}{relu}{note}"))
        elif node.role != "input" and name in kept:
            left.append((name, f"{node.op}: has no weights, works on every width"))
    return Conversion(tuple(masked), tuple(left))


def _text(node: Node) -> str:
    """What a node with weights is, in a few words."""
    a = node.attrs
    if node.op == "linear":
        return f"Linear {a['in_features']} -> {a['out_features']}"
    if node.op.startswith("batch_norm"):
        return f"BatchNorm of {a['num_features']} channels"
    kind = "Conv2d" if node.op == "conv2d" else "depthwise Conv2d"
    kernel = "x".join(map(str, a["kernel_size"]))
    return f"{kind} {a['in_channels']} -> {a['out_channels']}, {kernel}"


def _check_same(net: nn.Module, model: Model, x: Tensor) -> None:
    """A last line of defence: the converted network must give the numbers of the dense one."""
    modes = net.training, model.training
    net.eval(), model.eval()
    with torch.no_grad():
        expected, got = net(x), model(x)
    net.train(modes[0]), model.train(modes[1])
    if expected.shape != got.shape or not torch.allclose(
        expected, got, rtol=1e-4, atol=1e-5, equal_nan=True
    ):
        raise ConvertError(
            "the converted network does not give the logits of the original one; "
            "does its forward depend on something other than its input and weights?"
        )
