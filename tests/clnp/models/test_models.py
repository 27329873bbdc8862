"""Networks by name: shapes, seeds, refusals; weights from files."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from clnp import models
from clnp.errors import ConfigError


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_narrow_is_table_2():
    net = models.narrow(10, seed=0)
    convolutions = [m for m in net if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        (3, 32),
        (32, 32),
        (32, 64),
        (64, 64),
    ]
    assert [m.p for m in net if isinstance(m, nn.Dropout)] == [0.25, 0.25, 0.5]
    assert net.dense.weight.shape == (512, 64 * 8 * 8)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    # "95% of the parameters are concentrated in the dense layer" (Sec. 3.2)
    assert net.dense.weight.numel() / parameters(net) > 0.95


def test_wide_is_table_3():
    net = models.wide(10, seed=0)
    convolutions = [m for m in net if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [128, 256, 512, 1024, 2048]
    assert [c.stride[0] for c in convolutions] == [1, 2, 1, 2, 1]
    assert [c.padding[0] for c in convolutions] == [1, 0, 0, 1, 0]
    assert all(c.kernel_size == (3, 3) for c in convolutions)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 24, 37)])
def test_the_end_of_wide_is_a_convolution_and_an_average_pool(shape):
    """Equal to Table 3: a 3 x 3 convolution without padding, then the mean over its outputs."""
    net = models.wide(4, shape, scale=1 / 32, seed=0).double().eval()
    x = torch.rand(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hidden = net[: list(dict(net.named_children())).index("pool")](x)
    last = nn.Conv2d(hidden.shape[1], 4, 3).double()
    with torch.no_grad():
        last.weight.copy_(net.head.weight.view(4, -1, 3, 3))
        last.bias.copy_(net.head.bias)
    assert hidden.shape[2:] == (5, 5) or shape != (3, 32, 32)
    torch.testing.assert_close(net(x), last(hidden).mean((2, 3)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("inputs", "width"), [(12, 5), (12, 30)])
def test_an_orthogonal_mlp_begins_with_features_that_differ(inputs, width):
    net = models.mlp(inputs, width, seed=0, init="orthogonal")
    weight = net.fc1.weight.detach()
    assert not net.fc1.bias.any()
    for rows in weight.split(inputs):
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-5, rtol=0)
    assert torch.equal(
        net.fc1.weight, models.mlp(inputs, width, seed=0, init="orthogonal")[0].weight
    )
    assert not torch.equal(
        net.fc1.weight, models.mlp(inputs, width, seed=1, init="orthogonal")[0].weight
    )
    plain = models.mlp(inputs, width, seed=0)
    assert torch.equal(net.fc2.weight, plain.fc2.weight)
    with pytest.raises(ConfigError, match=r"init: expected .* got 'ortho'"):
        models.mlp(init="ortho")


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 23), (4, 1, 1)])
def test_narrow_takes_any_image(shape):
    net = models.narrow(3, shape, scale=1 / 8, dropout=0)
    assert net(torch.zeros(2, *shape)).shape == (2, 3)
    assert not any(isinstance(m, nn.Dropout) for m in net)


def test_resnet18_small():
    net = models.resnet18_small(7, seed=1)
    reference = pytest.importorskip("torchvision").models.resnet18(num_classes=7)
    assert net.conv1.weight.shape == (64, 3, 3, 3)
    assert isinstance(net.maxpool, nn.Identity)
    same = {k: v.shape for k, v in reference.state_dict().items() if k != "conv1.weight"}
    assert {k: v.shape for k, v in net.state_dict().items() if k != "conv1.weight"} == same
    small = models.resnet18_small(7, (1, 16, 16), scale=1 / 8, seed=1)
    assert set(small.state_dict()) == set(reference.state_dict())
    assert small.fc.in_features == 64
    assert small(torch.zeros(2, 1, 16, 16)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("mlp", (1, 8, 8), {"width": 12, "depth": 1}),
        ("narrow", (3, 16, 16), {"scale": 0.125}),
        ("wide", (3, 24, 24), {"scale": 0.03}),
        ("resnet18_small", (3, 16, 16), {"scale": 0.125}),
        ("mnasnet0_5", (3, 32, 32), {"dropout": 0.1}),
    ],
)
def test_seeds_and_names(name, shape, options):
    before = torch.get_rng_state()
    first = models.make(name, 5, shape, seed=3, **options)
    again = models.make(name, 5, shape, seed=3, **options)
    other = models.make(name, 5, shape, seed=4, **options)
    assert torch.equal(before, torch.get_rng_state())
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert any(
        not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)
    )
    assert first.eval()(torch.zeros(1, *shape)).shape == (1, 5)


BAD = {
    "unknown": (("resnet_18", 2, (3, 8, 8)), {}, "got 'resnet_18'; similar ones are .*resnet18"),
    "far": (("qqqqqqqqqq", 2, (3, 8, 8)), {}, "expected one of mlp, narrow.* got 'qqqqqqqqqq'$"),
    "a detector": (("fasterrcnn_resnet50_fpn", 2, (3, 8, 8)), {}, "expected one of"),
    "option": (
        ("narrow", 2, (3, 8, 8)),
        {"depth": 3},
        "expected options out of scale, dropout, got depth",
    ),
    "flat": (("narrow", 2, (64,)), {}, r"expected \(C, H, W\)"),
    "grey": (("resnet18", 2, (1, 32, 32)), {}, r"expected examples \[3, H, W\]"),
    "small": (("wide", 2, (3, 16, 16)), {}, "at least 24"),
    "scale": (("narrow", 2, (3, 8, 8)), {"scale": 0.0}, "scale: expected .* got 0.0"),
    "classes": (("narrow", 0, (3, 8, 8)), {}, "classes: expected at least 1, got 0"),
    "dropout": (("narrow", 2, (3, 8, 8)), {"dropout": 0.5}, "dropout, doubled .* got 1.0"),
    "torchvision's own complaint": (("resnet18", 2, (3, 32, 32)), {"scale": 2.0}, "resnet18"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case):
    arguments, options, fragment = BAD[case]
    with pytest.raises(ConfigError, match=fragment):
        models.make(*arguments, **options)


def test_names_are_all_of_them():
    names = models.names()
    assert names[:4] == ["mlp", "narrow", "wide", "resnet18_small"]
    assert {"vgg11_bn", "mobilenet_v3_small", "efficientnet_b0"} <= set(names)


def test_weights_from_files(tmp_path):
    source = models.narrow(4, scale=1 / 16, seed=1)
    state = source.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "b.pt"
    )
    for name in ("a.safetensors", "b.pt"):
        net = models.narrow(4, scale=1 / 16, seed=2)
        assert models.load_weights(net, tmp_path / name) == []
        assert all(torch.equal(net.state_dict()[k], v) for k, v in state.items())
    other = models.narrow(6, scale=1 / 16, seed=2)
    with pytest.raises(ConfigError, match=r"head.weight: expected \[6, 32\], got \[4, 32\]"):
        models.load_weights(other, tmp_path / "b.pt")
    kept = other.head.weight.clone()
    assert models.load_weights(other, tmp_path / "b.pt", head=False) == ["head.weight", "head.bias"]
    assert torch.equal(other.head.weight, kept)
    assert torch.equal(other.conv3.weight, source.conv3.weight)


class Evil:
    def __reduce__(self):
        return (print, ("code was run",))


def test_weights_that_do_not_fit(tmp_path, capsys):
    net = models.narrow(4, scale=1 / 16, seed=1)
    with pytest.raises(ConfigError, match="no such file"):
        models.load_weights(net, tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("text.pt", "text.safetensors", "evil.pt", "list.pt"):
        with pytest.raises(ConfigError, match=name):
            models.load_weights(net, tmp_path / name)
    assert capsys.readouterr().out == ""
    torch.save(models.wide(4, scale=1 / 32).state_dict(), tmp_path / "wide.pt")
    with pytest.raises(ConfigError, match=r"conv1.bias is missing.*and \d+ more"):
        models.load_weights(net, tmp_path / "wide.pt")
