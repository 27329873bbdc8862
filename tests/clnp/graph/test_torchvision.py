"""torchvision's networks: converted, three tasks learned, taken out, saved and loaded; or refused.

Most run with CLNP_LONG_TESTS=1 only.
"""

import copy
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import clnp
from tests.clnp.conv_cases import convert, patterns, randomise_norms

torchvision = pytest.importorskip("torchvision")

SHAPE = (3, 64, 64)
LARGE = [
    "vgg11_bn",
    "vgg16",
    "alexnet",
    "resnet34",
    "mobilenet_v2",
    "mnasnet0_5",
    "resnet50",
    "efficientnet_b0",
]
SMALL = ["resnet18", "mobilenet_v3_small"]
LONG = bool(os.environ.get("CLNP_LONG_TESTS"))


def dense(name: str, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return randomise_norms(torchvision.models.get_model(name, weights=None, num_classes=classes))


@pytest.mark.parametrize("name", SMALL + (LARGE if LONG else []))
def test_converted_taught_taken_out_and_saved(name: str, tmp_path: Path) -> None:
    net = dense(name).double().eval()
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        expected = net(x)
        got = convert(net, shape=SHAPE)(x)
    assert float((got - expected).abs().max() / expected.abs().max()) <= 1e-10
    lt = clnp.Learner(convert(net.float(), shape=SHAPE), epochs=1, lr=1e-4, margin=0.2)
    tasks = [patterns(seed, rows=24, shape=SHAPE) for seed in range(3)]
    x = tasks[0].test[0]
    logits = []
    for k, task in enumerate(tasks):
        lt.learn(task)
        logits.append(lt.model(x, task=k))
    assert all(verdict.identical for verdict in lt.verify())
    lt.save(tmp_path / "a.safetensors")
    again = clnp.Learner.load(tmp_path / "a.safetensors").model
    state = copy.deepcopy(lt.model.state_dict())
    fresh = convert(net, shape=SHAPE)
    fresh.load_state_dict(state)
    for k, expected in enumerate(logits):
        for model in (lt.model, again, fresh):
            assert torch.equal(model(x, task=k), expected)
        narrow = clnp.extract(lt.model, k)
        assert torch.equal(narrow(x), expected)
        folded = clnp.extract(lt.model, k, fold_batch_norm=True)
        torch.testing.assert_close(folded(x), expected, rtol=1e-3, atol=1e-4)
        assert sum(p.numel() for p in narrow.parameters()) < sum(
            p.numel() for p in net.parameters()
        )
