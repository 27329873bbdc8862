"""Convolutions of volumes with a frozen block."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clnp_kernels.nn import MaskedConv3d


def dense(bias: bool = True) -> nn.Conv3d:
    torch.manual_seed(0)
    return nn.Conv3d(5, 6, (3, 2, 1), (1, 2, 1), (1, 0, 0), bias=bias).double()


def batch() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 5, 3, 4, 4, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("active_in", "active_out"), [(0, 0), (2, 3), (0, 3), (5, 6), (2, 0)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_values_and_gradients_are_those_of_the_dense_layer(
    active_in: int, active_out: int, bias: bool, full: bool
) -> None:
    conv, x = dense(bias), batch().requires_grad_()
    layer = MaskedConv3d.from_dense(
        conv, active_in=active_in, active_out=active_out, activation="relu"
    )
    layer.full_input_grad = full
    with torch.no_grad():
        conv.weight[:active_out, active_in:] = 0
    expected = F.relu(conv(x))
    y, activity = layer.forward_with_activity(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(activity, expected.abs().sum((0, 2, 3, 4)))
    back = layer.to_dense()
    assert torch.equal(back.weight, conv.weight)
    assert (back.stride, back.bias is None) == ((1, 2, 1), not bias)
    if active_out == 6:
        assert y.requires_grad == full  # nothing is left to learn
        return
    draw = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))
    got, weight = torch.autograd.grad((y * draw).sum(), (x, layer.free_weight))
    wide_draw = draw if full else torch.cat([0 * draw[:, :active_out], draw[:, active_out:]], 1)
    own, wide = torch.autograd.grad((expected * wide_draw).sum(), (x, conv.weight))
    torch.testing.assert_close(weight, wide[active_out:])
    first = 0 if full else active_in
    torch.testing.assert_close(got[:, first:], own[:, first:])
    assert not got[:, :first].any()


def test_channels_are_kept_frozen_and_added() -> None:
    conv, x = dense(), batch()
    layer = MaskedConv3d.from_dense(conv)
    expected = conv(x)
    rows, columns = torch.tensor([4, 1]), torch.tensor([3, 0, 2, 1, 4])
    layer.keep_free(rows, columns)
    torch.testing.assert_close(layer(x[:, columns]), expected[:, rows])
    layer.freeze(torch.arange(2), torch.arange(5))
    layer.expand(3, 1)
    assert (layer.active_in, layer.active_out, layer.inputs, layer.outputs) == (5, 2, 6, 5)
    wide = torch.cat([x[:, columns], x[:, :1]], 1)
    torch.testing.assert_close(layer(wide)[:, :2], expected[:, rows])
    layer.skip_active = True
    assert layer(wide).shape[1] == 3
    other = MaskedConv3d.from_dense(conv)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.active_weight, layer.active_weight)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size: expected one number or three, at least 1"):
        MaskedConv3d(4, 4, (3, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="padding: expected one number or three, at least 0"):
        MaskedConv3d(4, 4, 3, padding=-1)
    with pytest.raises(ValueError, match="groups: expected 1"):
        MaskedConv3d.from_dense(nn.Conv3d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match="padding: expected a number of zeros"):
        MaskedConv3d.from_dense(nn.Conv3d(4, 4, 3, padding="same"))
    with pytest.raises(ValueError, match="channels to add, at least 0"):
        MaskedConv3d(4, 4, 3).expand(-1)
