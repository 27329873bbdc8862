"""Numerical comparison of a converted network with the original, on random inputs."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ConvertError, first_line
from .graph import OPS, WITH_WEIGHTS
from .lowering import Lowered

SEED = 0
DROPOUTS = (
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d),
    *(F.alpha_dropout, F.feature_alpha_dropout),
)
DIFFERENT = (
    "the converted network gives other logits than the original in {mode} mode; make forward "
    "depend on its input and weights only"
)


def random_like(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Draw normal numbers of the given shape, with the dtype and device of `like`.

    Integers are drawn from those of `like`, as others may be none that the network knows. The
    global generators of torch are not used.
    """
    generator = torch.Generator().manual_seed(SEED)
    if not like.is_floating_point():
        known = like.detach().flatten()
        return known[torch.randint(len(known), shape, generator=generator).to(like.device)]
    drawn = torch.randn(shape, generator=generator, dtype=torch.float32)
    return drawn.to(device=like.device, dtype=like.dtype)


class _SureDropout(TorchFunctionMode):
    """Replace dropout in training mode by a factor of 1 + p, and other random drops by none.

    So two networks agree only if they apply dropout to the same values.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUTS:
            return _scaled(*args, **kwargs)
        if func is Tensor.bernoulli_:
            return args[0].fill_(1)
        if func in ATTENTIONS:
            return ATTENTIONS[func](func, args, kwargs)
        return func(*args, **kwargs)


def _sure_attention(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], scaled: bool = True
) -> Any:
    """Scale the result of an attention, or not, instead of dropping weights."""
    given = inspect.getcallargs(_attention_arguments, *args, **kwargs)
    p, given["dropout_p"] = given["dropout_p"], 0.0
    return func(**given) * (1 + p * scaled)


def _attention_arguments(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
) -> None:
    """Name the arguments of scaled_dot_product_attention, which has no signature."""


def _sure_heads(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], scaled: bool = True
) -> Any:
    """Scale the output weights of an attention, or not, instead of dropping weights."""
    bound = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    p, given["dropout_p"] = given["dropout_p"] if given["training"] else 0.0, 0.0
    given["out_proj_weight"] = given["out_proj_weight"] * (1 + p * scaled)
    return func(*bound.args, **bound.kwargs)


ATTENTIONS: dict[Any, Any] = {
    F.scaled_dot_product_attention: _sure_attention,
    F.multi_head_attention_forward: _sure_heads,
}


def _scaled(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training:
        return input
    return input.mul_(1 + p) if inplace else input * (1 + p)


def check_evaluation(model: nn.Module, net: nn.Module, x: Tensor) -> None:
    """Compare the model with the network in evaluation mode, with its own weights.

    Arguments:
        model: the converted network.
        net: a copy of the network.
        x: a batch [B, ...].

    Raises:
        ConvertError: the logits differ.
    """
    model.eval()
    net.eval()
    with torch.no_grad():
        expected = net(x.clone())
        try:
            got = model(x)
        except Exception as error:
            raise ConvertError(
                f"the converted network fails on a random batch: {first_line(error)}; the original "
                "does not, so this is an error of conversion, please report it"
            ) from error
    if not _close(expected, got):
        raise ConvertError(DIFFERENT.format(mode="evaluation"))


def check_training(net: nn.Module, lowered: Lowered, example: Tensor) -> None:
    """Compare the network in training mode with its graph, evaluated with the same layers.

    The batch has another size than the example, so that a fixed batch size is found. Large images
    are tried at half their size first.

    Arguments:
        net: a copy of the network; its weights and modes are changed.
        lowered: its graph, and layers that share its parameters.
        example: the batch [B, ...] it was traced with.

    Raises:
        ConvertError: the logits differ, or the network does not accept the batch.
    """
    net.train()
    for layer in lowered.layers.values():
        layer.train()
    batch, *shape = example.shape
    if len(shape) == 3 and min(shape[1:]) > 64:
        half = [shape[0], *(side // 2 for side in shape[1:])]
        try:
            if _agree(net, lowered, random_like((2 + (batch == 2), *half), example)):
                return
        except Exception:  # some networks accept a single image size only
            pass
    rows = min(8, max(2, 2**15 // max(example[0].numel(), 1)))
    x = random_like((rows + (rows == batch), *shape), example)
    try:
        same = _agree(net, lowered, x) or _agree(
            _double(net, lowered), lowered, x.double() if x.is_floating_point() else x
        )
    except Exception as error:
        raise ConvertError(
            f"{type(net).__name__} fails in training mode on a batch of {x.shape[0]} examples: "
            f"{first_line(error)}. Make its forward accept batches of any size"
        ) from error
    if not same:
        raise ConvertError(DIFFERENT.format(mode="training"))


def _double(net: nn.Module, lowered: Lowered) -> nn.Module:
    for layer in lowered.layers.values():
        layer.double()
    return net.double()


def _agree(net: nn.Module, lowered: Lowered, x: Tensor) -> bool:
    if x.element_size() < 4:  # rounding of 16-bit numbers would hide differences
        net, x = net.float(), x.float()
        for layer in lowered.layers.values():
            layer.float()
    with torch.no_grad(), _SureDropout():
        return _close(net(x.clone()), _computed(lowered, x))


def _computed(lowered: Lowered, x: Tensor) -> Tensor:
    """Evaluate a graph with its dense layers."""
    values: dict[str, Tensor] = {}
    for node in lowered.graph.nodes:
        op = OPS[node.op]
        inputs = [values[name] for name in node.inputs]
        attrs = {name: node.attrs[name] for name in op.attrs}
        if op.role == "input":
            values[node.name] = x
        elif op.role in WITH_WEIGHTS and op.function is not None:
            weight = lowered.layers[node.name].weight
            values[node.name] = op.function(*inputs, weight, attrs["axis"])
        elif op.role in WITH_WEIGHTS:
            values[node.name] = lowered.layers[node.name](*inputs)
        elif op.make is not None:
            values[node.name] = op.make(**attrs)(*inputs)
        else:
            assert op.function is not None
            values[node.name] = op.function(*inputs, **attrs)
    return values[lowered.graph.output]


def _close(expected: Tensor, got: Tensor) -> bool:
    """Return whether two tensors agree up to rounding, relative to their largest entry."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return False
    finite = expected[expected.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    atol = math.sqrt(torch.finfo(expected.dtype).eps) * scale
    return torch.allclose(expected, got, rtol=0, atol=atol, equal_nan=True)


def draw_weights(net: nn.Module) -> None:
    """Draw vectors anew, and tensors whose entries are all equal or not finite.

    So no zero hides what is behind it from a comparison.
    """
    generator = torch.Generator().manual_seed(SEED)
    for parameter in net.parameters():
        spread = float(parameter.detach().std()) if parameter.numel() > 1 else 0.0
        if parameter.dim() > 1 and math.isfinite(spread) and spread > 0:
            continue
        drawn = torch.empty(parameter.shape, dtype=torch.float32)
        drawn.uniform_(-0.5, 1.5, generator=generator)
        inputs = math.prod(parameter.shape[1:])
        parameter.data.copy_(drawn / math.sqrt(max(inputs, 1)))
