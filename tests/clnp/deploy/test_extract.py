"""Extraction of narrow plain networks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import clnp
from clnp.errors import ConfigError
from clnp.network.model import Model
from tests.clnp.cases import Functional, Residual, convert, mlp, random_keep, some_steps


def learned(net: nn.Module, head: str, tasks: int = 3) -> Model:
    torch.manual_seed(0)
    model = convert(net, head=head)
    generator = torch.Generator().manual_seed(0)
    for _ in range(tasks):
        model.begin_task(generator=generator)
        some_steps(model)
        model.consolidate(random_keep(model, generator))
    return model


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("net", [lambda: mlp([40, 30], dropout=0.1), Functional, Residual])
def test_logits_and_widths(head: str, net: type[nn.Module]) -> None:
    dense = net()
    model = learned(dense, head)
    x = torch.randn(50, 12)
    size = sum(p.numel() for p in dense.parameters())
    for k in range(3):
        narrow = clnp.extract(model, task=k)
        assert torch.equal(narrow(x), model(x, task=k))
        assert sum(p.numel() for p in narrow.parameters()) < size
        assert all(type(m).__module__.startswith("torch.") or m is narrow for m in narrow.modules())
        assert not narrow.training


def test_the_copy_is_independent_and_trainable() -> None:
    model = learned(mlp([20]), "multi")
    x = torch.randn(5, 12)
    before = model(x, task=0)
    narrow = clnp.extract(model, task=0)
    narrow(x).sum().backward()
    with torch.no_grad():
        for parameter in narrow.parameters():
            assert parameter.grad is not None
            parameter.zero_()
    assert torch.equal(model(x, task=0), before)


def test_unknown_task() -> None:
    model = learned(mlp([20]), "multi", tasks=1)
    for task in (1, -2, True, "a", None):
        with pytest.raises(ConfigError, match="learned task"):
            clnp.extract(model, task)


def test_exported_file_runs_without_clnp(tmp_path: Path) -> None:
    model = learned(mlp([20, 10]), "single")
    narrow = clnp.extract(model, task=1)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(narrow, (torch.randn(4, 12),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "narrow.pt2")
    x = torch.randn(9, 12)
    torch.save((x, model(x, task=1)), tmp_path / "io.pt")
    code = (
        "import sys, torch\n"
        "sys.modules['clnp'] = sys.modules['clnp_kernels'] = None\n"
        "x, y = torch.load('io.pt')\n"
        "net = torch.export.load('narrow.pt2').module()\n"
        "torch.testing.assert_close(net(x), y)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_extracted_networks_compile() -> None:
    model = learned(mlp([20, 10]), "single")
    narrow = clnp.extract(model, task=2)
    compiled = torch.compile(narrow, backend="aot_eager", fullgraph=True)
    x = torch.randn(6, 12)
    torch.testing.assert_close(compiled(x), narrow(x))
