"""nn.Dropout: ours on the CPU in training, PyTorch's elsewhere."""

import pytest
import torch

from clnp_kernels import nn, ops


def test_training_and_evaluation() -> None:
    x = torch.randn(30, 40)
    module = nn.Dropout(0.25)
    torch.manual_seed(3)
    want = ops.dropout(x, 0.25)
    torch.manual_seed(3)
    assert torch.equal(module(x), want)
    assert module.eval()(x) is x
    assert nn.Dropout(0.0)(x) is x
    assert int(nn.Dropout(1.0)(x).count_nonzero()) == 0


@pytest.mark.parametrize(
    "x",
    [
        torch.ones(2, 3, 8, 8).contiguous(memory_format=torch.channels_last),
        torch.ones(40, 50, dtype=torch.float64).T,
        torch.empty(40, 50, device="meta"),
    ],
    ids=["channels last", "transposed", "meta"],
)
def test_other_inputs_are_for_pytorch(x: torch.Tensor) -> None:
    torch.manual_seed(0)
    want = torch.nn.functional.dropout(x, 0.5)
    torch.manual_seed(0)
    y = nn.Dropout(0.5)(x)
    assert y.stride() == want.stride()
    assert y.device.type == "meta" or torch.equal(y, want)
