"""Grouped convolutions whose first groups are frozen."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clnp_kernels.nn import MaskedGroupedConv2d


def dense(bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(8, 12, 3, 2, 1, groups=4, bias=bias).double()


def batch() -> Tensor:
    return torch.randn(2, 8, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("active", [0, 1, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_dense_layer(active: int, bias: bool) -> None:
    conv, x = dense(bias), batch().requires_grad_()
    layer = MaskedGroupedConv2d.from_dense(conv, active_groups=active, activation="relu")
    expected = F.relu(conv(x))
    y, activity = layer.forward_with_activity(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(activity, expected.abs().sum((0, 2, 3)))
    (own,) = torch.autograd.grad(expected.sum(), x, retain_graph=True)
    if active < 4:
        got, weight = torch.autograd.grad(y.sum(), (x, layer.free_weight))
        assert not got[:, : 2 * active].any()
        torch.testing.assert_close(got[:, 2 * active :], own[:, 2 * active :])
        (wide,) = torch.autograd.grad(expected.sum(), conv.weight)
        torch.testing.assert_close(weight, wide[3 * active :])
    back = layer.to_dense()
    assert torch.equal(back.weight, conv.weight)
    assert (back.groups, back.bias is None) == (4, not bias)


def test_groups_are_kept_frozen_and_added() -> None:
    conv, x = dense(), batch()
    layer = MaskedGroupedConv2d.from_dense(conv)
    expected = conv(x)
    rows = torch.tensor([9, 10, 11, 3, 4, 5])
    layer.keep_free(rows, rows)
    assert (layer.inputs, layer.outputs) == (4, 6)
    chosen = x[:, [6, 7, 2, 3]]
    torch.testing.assert_close(layer(chosen), expected[:, rows])
    everything = torch.arange(6)
    layer.freeze(everything, everything)
    layer.expand(3, 3)
    assert (layer.active_in, layer.active_out, layer.inputs, layer.outputs) == (4, 6, 6, 9)
    torch.testing.assert_close(layer(torch.cat([chosen, x[:, :2]], 1))[:, :6], expected[:, rows])
    layer.skip_active = True
    assert layer(x[:, :2]).shape[1] == 3
    other = MaskedGroupedConv2d.from_dense(conv)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.active_weight, layer.active_weight)


@pytest.mark.parametrize("rows", [[0, 1], [0, 2, 1], [1, 2, 3]])
def test_parts_of_groups_are_refused(rows: list[int]) -> None:
    layer = MaskedGroupedConv2d.from_dense(dense())
    with pytest.raises(ValueError, match="whole groups of 3 outputs"):
        layer.keep_free(torch.tensor(rows), torch.tensor(rows))


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="in_channels: expected a multiple of groups = 3"):
        MaskedGroupedConv2d(8, 9, 3, groups=3)
    with pytest.raises(ValueError, match="whole groups of 3 outputs"):
        MaskedGroupedConv2d.from_dense(dense()).expand(2, 2)
    state = MaskedGroupedConv2d.from_dense(dense()).state_dict()
    state["free_weight"] = state["free_weight"][:4]
    with pytest.raises(RuntimeError, match="whole groups of 3 outputs"):
        MaskedGroupedConv2d.from_dense(dense()).load_state_dict(state)
