"""Conversion of a dense network to a masked one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConvertError
from ..graph.equivalence import check_evaluation, check_training, draw_weights, random_like
from ..graph.graph import WITH_WEIGHTS, Node, fuse_relu
from ..graph.lowering import Lowered, lower
from ..graph.outputs import OneOutput, Output, check_output
from ..graph.preparing import with_equivalents, without_wrappers
from ..graph.recognised import is_leaf
from ..graph.refusals import (
    check_example,
    check_modes,
    check_module,
    check_own_tensors,
    copied,
    inner,
    tensors_of,
)
from ..graph.trace import Traced, read
from .model import Model


@dataclass(frozen=True)
class Conversion:
    """Report of `convert`.

    Attributes:
        masked: (layer, text) for every layer that became masked.
        left_alone: (node, reason) for every other operation.
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
def convert(
    net: nn.Module, example_input: Tensor, *, output: Output = None, verbose: bool = True
) -> Model:
    """Convert a dense network to masked layers that compute the same function.

    The network is copied, never changed. What counts is what its forward computes, not the classes
    of its modules; docs/models.md lists the operations, and `clnp.graph.register` teaches others.
    The logits must come from a Linear or a convolution of single pixels.

    Arguments:
        net: the dense network.
        example_input: a batch [B, ...], B >= 1, that it accepts; only shape, dtype and device are
            used.
        output: name or position of the logits in what the network returns, if that is a dictionary,
            a tuple or a named structure. By default the only one whose name doesn't begin with
            "aux". The other outputs, as auxiliary heads, are left out.
        verbose: print the report of the conversion, also available as `model.conversion`.

    Returns:
        the masked network; `model(x)` equals `net(x)`, or the chosen output of it.

    Raises:
        ConvertError: naming the module that can't be converted exactly, and the reason.
    """
    if not isinstance(net, nn.Module):
        raise ConvertError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
    if isinstance(net, Model):
        raise ConvertError("net: expected a dense network, got one that is already converted")
    check_example(example_input)
    check_output(output)
    whole = inner(net)
    check_module(whole, example_input)
    if type(whole).__module__.startswith("torch.nn") and not isinstance(whole, nn.Sequential):
        whole = nn.Sequential(whole)
    # Neither the caller's contexts (autocast, inference mode) nor torch's generators take part.
    devices = [example_input.device] if example_input.is_cuda else []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(example_input.device.type, enabled=False),
        torch.random.fork_rng(devices),
    ):
        model = _converted(whole, example_input, output)
    model.train(net.training)
    if verbose:
        print(f"clnp.convert: {model.conversion}")
    return model


def _converted(net: nn.Module, example: Tensor, output: Output) -> Model:
    """Convert, and compare the result with `net`; neither argument is changed."""
    twin = copied(net)
    pairs = zip(tensors_of(twin).values(), tensors_of(net).values(), strict=True)
    originals = {id(copy): original for copy, original in pairs}
    check_modes(twin)
    twin, original = with_equivalents(without_wrappers(twin))
    chosen = OneOutput(output)
    for copy in {id(twin): twin, id(original): original}.values():
        copy.register_forward_hook(chosen)
    traced, lowered = _read(twin, example)
    named = tensors_of(twin).items()
    own = {name: originals[id(tensor)] for name, tensor in named if id(tensor) in originals}
    check_own_tensors(own, lowered.tensors)
    model = Model(lowered.graph, lowered.layers)
    model.conversion = _describe(lowered, model, [*chosen.left_out])
    check_evaluation(model, original, traced.x)
    draw_weights(twin)
    if lowered.folded:  # these weights were computed before
        _, lowered = _read(twin, example)
    check_training(original, lowered, example)
    return model


def _read(net: nn.Module, example: Tensor) -> tuple[Traced, Lowered]:
    traced = read(net, lambda batch: random_like((batch, *example.shape[1:]), example), is_leaf)
    return traced, lower(net, traced)


def _describe(lowered: Lowered, model: Model, outputs: list[str | int]) -> Conversion:
    graph = lowered.graph
    fused = fuse_relu(graph)
    kept = {node.name for node in fused.nodes}
    masked, left = [], []
    for node in graph.nodes:
        name = node.name
        if name == model.groups.head:
            classes = node.attrs["out_features"]
            left.append((name, f"output layer with {classes} classes, becomes the head"))
        elif node.role in WITH_WEIGHTS:
            relu = ", ReLU fused" if "activation" in fused[name].attrs else ""
            whole = ", all frozen by the first task, since the network's input or a gate needs it"
            groups = [model.groups[group] for group, _ in model.groups.of(name)]
            note = "" if any(group.prunable for group in groups) else whole
            if name in model.groups.mixes:
                note = ", over tokens: shared by all channels and frozen by the first task"
            if name in lowered.folded:
                note += ", the weight that forward computes becomes a parameter"
            masked.append((name, f"{_text(node)}{relu}{note}"))
        elif node.role != "input" and name in kept:
            left.append((name, f"{node.op} without weights, works on any width"))
    left += [(str(key), "another output of the network, left out") for key in outputs]
    return Conversion(tuple(masked), tuple(left))


def _text(node: Node) -> str:
    a = node.attrs
    if node.op == "embedding":
        return f"Embedding of {a['in_features']} numbers in {a['out_features']} channels"
    if node.op == "linear":
        return f"Linear {a['in_features']} -> {a['out_features']}"
    if node.op.startswith("batch_norm"):
        return f"BatchNorm of {a['num_features']} channels"
    if node.role == "norm_across":
        kind = {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm"}[node.op]
        return f"{kind} of {a['num_features']} channels, block by block"
    if "channels" in a:
        return f"{node.op} of {a['channels']} channels"
    kinds = {"depthwise_conv2d": "depthwise ", "grouped_conv2d": f"{a['groups']} groups of "}
    kind = f"{kinds.get(node.op, '')}Conv{3 if node.op == 'conv3d' else 2}d"
    kernel = "x".join(map(str, a["kernel_size"]))
    return f"{kind} {a['in_channels']} -> {a['out_channels']}, {kernel}"
