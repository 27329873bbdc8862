"""Small models of torchvision's families with attention or layer norms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import clnp
from tests.clnp.graph.test_any_network import force_three_tasks

models = pytest.importorskip("torchvision.models")


def vit() -> nn.Module:
    sizes = {"num_layers": 2, "num_heads": 3, "hidden_dim": 12, "mlp_dim": 20}
    return models.VisionTransformer(image_size=16, patch_size=8, num_classes=3, **sizes)


def convnext() -> nn.Module:
    Setting = models.convnext.CNBlockConfig
    return models.ConvNeXt([Setting(12, 16, 2), Setting(16, None, 1)], num_classes=3)


def swin(version: int) -> nn.Module:
    kinds = models.swin_transformer
    block, merging = (
        (kinds.SwinTransformerBlock, kinds.PatchMerging)
        if version == 1
        else (kinds.SwinTransformerBlockV2, kinds.PatchMergingV2)
    )
    return models.SwinTransformer(
        *([2, 2], 12, [2, 2], [3, 3], [4, 4]), num_classes=3, block=block, downsample_layer=merging
    )


def maxvit() -> nn.Module:
    return models.MaxVit(*((32, 32), 8, 2, [8, 16], [1, 1], 4, 0.1), num_classes=3)


CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (vit, 16),
    "convnext": (convnext, 32),
    "swin": (lambda: swin(1), 32),
    "swin v2": (lambda: swin(2), 32),
    "maxvit": (maxvit, 32),
}


@pytest.mark.parametrize("name", CASES)
def test_same_function_and_bits_that_stay(name: str) -> None:
    torch.manual_seed(0)
    make, size = CASES[name]
    net = make().double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1 or not bool(parameter.any()):
                parameter.uniform_(0.2, 1.2)
    x = torch.randn(3, 3, size, size, dtype=torch.float64)
    model = clnp.convert(net, x[:1], verbose=False).eval()  # compares both in training mode too
    expected = net(x)
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10 * scale)
    force_three_tasks(model, x)
