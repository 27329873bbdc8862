"""Copies of frozen weights in autocast's dtype: made once, and right after every change."""

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clnp_kernels import casts
from clnp_kernels.nn import MaskedConv2d, MaskedLinear

LAYERS: dict[str, Callable[[], Any]] = {
    "linear": lambda: MaskedLinear(6, 7, active_in=2, active_out=3, activation="relu"),
    "conv": lambda: MaskedConv2d(6, 7, 3, padding=1, active_in=2, active_out=3),
    "depthwise": lambda: MaskedConv2d(
        7, 7, 3, padding=1, groups=7, active_in=3, active_out=3, activation="relu"
    ),
}


def made(kind: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    layer = LAYERS[kind]()
    for tensor in layer.state_dict().values():
        tensor.normal_()
    return layer


def example(layer: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = () if layer.free_weight.ndim == 2 else (4, 5)
    return torch.randn(3, layer.inputs, *size, generator=generator, dtype=layer.free_weight.dtype)


def outputs(layer: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(example(layer))
    assert isinstance(y, Tensor)
    return y.detach()


def freeze(layer: Any) -> None:
    keep = torch.tensor([2, 0])
    layer.freeze(keep, keep)
    layer.reset_free_parameters(torch.Generator().manual_seed(5))


def in_place(layer: Any) -> None:
    with torch.no_grad():
        layer.active_weight.mul_(-3)
        layer.active_bias.add_(1)


def other_boundaries(layer: Any) -> None:
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state["active_weight"] = torch.randn(1, *layer.active_weight.shape[1:])
    state["active_bias"] = torch.randn(1)
    layer.load_state_dict(state)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda layer: None,
    "freeze": freeze,
    "keep_free": lambda layer: layer.keep_free(*[torch.tensor([3, 1])] * 2),
    "load": lambda layer: layer.load_state_dict(made_like(layer).state_dict()),
    "load assign": lambda layer: layer.load_state_dict(made_like(layer).state_dict(), assign=True),
    "other boundaries": other_boundaries,
    "in place": in_place,
    "bfloat16": lambda layer: layer.bfloat16(),
    "double": lambda layer: layer.double(),
    "there and back": lambda layer: layer.bfloat16().float(),
    "channels_last": lambda layer: (
        layer.to(memory_format=torch.channels_last) if layer.free_weight.ndim == 4 else None
    ),
    "skipped": lambda layer: setattr(layer, "skip_active", True),
}


def made_like(layer: Any) -> Any:
    other = copy.deepcopy(layer)
    for tensor in other.state_dict().values():
        tensor.normal_()
    return other


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", LAYERS)
def test_right_after_every_change(kind: str, change: str) -> None:
    """Bit for bit what a layer computes that has never been called."""
    layer = made(kind)
    before = outputs(layer)
    CHANGES[change](layer)
    after = outputs(layer)
    assert torch.equal(after, outputs(copy.deepcopy(layer)))
    assert after.dtype == (torch.float64 if change == "double" else torch.bfloat16)
    if change in ("freeze", "load", "load assign", "in place", "other boundaries"):
        assert not torch.equal(after, before)


def test_a_frozen_tensor_is_cast_once() -> None:
    weight = torch.randn(4, 3)
    first = casts.frozen(weight, torch.bfloat16)
    assert torch.equal(first, weight.to(torch.bfloat16))
    assert casts.frozen(weight, torch.bfloat16) is first
    assert casts.frozen(weight, torch.float32) is weight
    assert torch.equal(casts.frozen(weight, torch.float16), weight.half())
    weight += 1
    assert torch.equal(casts.frozen(weight, torch.bfloat16), weight.to(torch.bfloat16))


def test_what_is_trained_or_transformed_is_cast_every_time() -> None:
    kept = len(casts._copies)
    parameter = nn.Parameter(torch.randn(4, 3))
    casts.frozen(parameter, torch.bfloat16).sum().backward()
    assert torch.equal(parameter.grad, torch.ones(4, 3))
    with torch.inference_mode():
        casts.frozen(torch.randn(4, 3), torch.bfloat16)
    torch.func.vmap(lambda t: casts.frozen(t, torch.bfloat16))(torch.randn(2, 3))
    casts.frozen(torch.randn(0, 3), torch.bfloat16)
    assert len(casts._copies) == kept


def test_a_copy_goes_with_its_tensor() -> None:
    layer = made("linear")
    kept = len(casts._copies)
    outputs(layer)
    assert len(casts._copies) == kept + 2
    freeze(layer)
    outputs(layer)
    assert len(casts._copies) == kept + 2
    del layer
    gc.collect()
    assert len(casts._copies) == kept


def test_copies_are_no_part_of_a_module() -> None:
    layer = made("linear")
    names = set(layer.state_dict()), set(vars(layer))
    outputs(layer)
    assert (set(layer.state_dict()), set(vars(layer))) == names
