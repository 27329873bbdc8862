"""Dropping free channels, the one-dimensional batch norm, and what skipping takes."""

from typing import Any

import pytest
import torch
from torch import nn

from clnp_kernels.nn import MaskedConv2d, MaskedLinear, PartialBatchNorm1d, PartialBatchNorm2d


def filled(module: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module


def test_linear_keeps_the_rows_and_columns_named() -> None:
    layer = filled(MaskedLinear(6, 7, active_in=2, active_out=3))
    before = layer.free_weight.detach().clone()
    frozen = layer.active_weight.clone()
    layer.keep_free(torch.tensor([3, 0]), torch.tensor([1, 3]))
    assert torch.equal(layer.free_weight, before[[3, 0]][:, [0, 1, 3, 5]])
    assert torch.equal(layer.active_weight, frozen)
    assert isinstance(layer.free_weight, nn.Parameter)
    assert layer.free_bias.shape == (2,)


@pytest.mark.parametrize("depthwise", [False, True])
def test_convolution_keeps_layout_through_empty_free_parts(depthwise: bool) -> None:
    groups = 6 if depthwise else 1
    layer = filled(MaskedConv2d(6, 6, 3, groups=groups, active_in=2, active_out=2))
    layer.to(memory_format=torch.channels_last)
    dense = layer.to_dense()
    layer.keep_free(torch.tensor([0, 2]), torch.tensor([0, 2]))
    assert layer.outputs == layer.inputs == 4
    rows = [0, 1, 2, 4]
    expected = dense.weight[rows] if depthwise else dense.weight[rows][:, rows]
    assert torch.equal(layer.to_dense().weight, expected)
    everything = torch.arange(2)
    layer.freeze(everything, everything)
    layer.expand(3, 3)
    if not depthwise:  # one column: both formats are the same
        assert layer.free_weight.is_contiguous(memory_format=torch.channels_last)
        assert layer.active_weight.is_contiguous(memory_format=torch.channels_last)


def test_fresh_weights_do_not_depend_on_the_layout() -> None:
    layers = [MaskedConv2d(4, 5, 3), MaskedConv2d(4, 5, 3).to(memory_format=torch.channels_last)]
    for layer in layers:
        layer.reset_free_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(layers[0].free_weight, layers[1].free_weight)


def test_batch_norm_keeps_the_channels_named() -> None:
    norm = filled(PartialBatchNorm2d(6, active=2))
    before = {name: getattr(norm, f"free_{name}").detach().clone() for name in ("mean", "weight")}
    norm.keep_free(torch.tensor([3, 1]))
    assert norm.num_features == 4
    for name, value in before.items():
        assert torch.equal(getattr(norm, f"free_{name}"), value[[3, 1]])


@pytest.mark.parametrize("index", [torch.tensor([4]), torch.tensor([0, 0]), torch.tensor([0.0])])
def test_bad_indices_change_nothing(index: torch.Tensor) -> None:
    layer, norm = filled(MaskedLinear(6, 7, active_in=2, active_out=3)), PartialBatchNorm2d(4)
    before = layer.free_weight.detach().clone()
    with pytest.raises((TypeError, ValueError), match="keep_out"):
        layer.keep_free(index, torch.tensor([0]))
    with pytest.raises((TypeError, ValueError), match="keep_in"):
        layer.keep_free(torch.tensor([0]), index)
    with pytest.raises((TypeError, ValueError), match="keep"):
        norm.keep_free(index)
    assert torch.equal(layer.free_weight, before)


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_of_vectors(training: bool) -> None:
    dense = filled(nn.BatchNorm1d(5)).double().train(training)
    norm = PartialBatchNorm1d.from_dense(dense)
    x = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(norm(x), dense(x), rtol=1e-10, atol=1e-12)
    y, activity = norm.eval().forward_with_activity(x)
    torch.testing.assert_close(activity, y.abs().sum(0), rtol=1e-10, atol=1e-12)
    assert isinstance(norm.to_dense(), nn.BatchNorm1d)
    torch.testing.assert_close(norm.free_mean, dense.running_mean)
    with pytest.raises(ValueError, match=r"\[B, C\]"):
        norm(torch.zeros(2, 5, 1))


def test_skipping_takes_all_channels_or_the_free_ones() -> None:
    norm = filled(PartialBatchNorm2d(6, active=2)).eval()
    conv = filled(MaskedConv2d(6, 6, 3, groups=6, active_in=2, active_out=2))
    x = torch.randn(2, 6, 5, 5)
    for module in (norm, conv):
        whole = module(x)[:, 2:]
        module.skip_active = True
        torch.testing.assert_close(module(x), whole)
        assert torch.equal(module(x[:, 2:]), module(x))
