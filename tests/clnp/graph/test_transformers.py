"""Transformers: the same function in both modes, and bits that stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import clnp
from tests.clnp.deploy.test_export import needs_onnx
from tests.clnp.graph.test_any_network import check_same, force_three_tasks
from tests.clnp.transformer_cases import (
    CASES,
    HEADS,
    WIDTH,
    Attention,
    Language,
    Mlp,
    Pytorch,
    Sum,
    Tokens,
    inputs,
)


def with_random_vectors(net: nn.Module) -> nn.Module:
    """Norms and biases whose entries differ, so that none hides what is behind it."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return net


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = CASES[name]
    return with_random_vectors(make().double()), inputs(shape)


@pytest.mark.parametrize("name", CASES)
def test_same_function(name: str) -> None:
    net, x = made(name)
    model = clnp.convert(net, x[:1], verbose=False)
    check_same(net.eval(), model.eval(), x)
    net.train()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    model.begin_task()
    check_same(net, model.train(), x)


@pytest.mark.parametrize("name", CASES)
def test_bits_that_stay(name: str) -> None:
    net, x = made(name)
    model = clnp.convert(net.eval(), x, verbose=False)
    force_three_tasks(model, x)
    before = [model(x, task=k) for k in range(3)]
    model.begin_task()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    for task, logits in enumerate(before):
        assert torch.equal(model.subnetwork(task, fresh=True)(x), logits)
    model.cancel_task()
    again = clnp.Model.from_structure(model.structure()).double()
    again.load_state_dict(model.state_dict())
    for task, logits in enumerate(before):
        assert torch.equal(again(x, task=task), logits)
        with torch.no_grad():  # with gradients, PyTorch takes another kernel for attention
            assert torch.equal(clnp.extract(model, task)(x), logits)


@pytest.mark.parametrize("name", ["RMS norm", "attention by hand", "causal", "bias per head"])
def test_a_free_channel_reaches_no_earlier_one(name: str) -> None:
    """In the joint pass too, the stream of an earlier task moves by rounding only."""
    net, x = made(name)
    model = clnp.convert(net.eval(), x, verbose=False)
    force_three_tasks(model, x)
    model.begin_task()
    seen: list[Tensor] = []
    width = model.active("embed")
    norm = model.net.get_submodule("norm")
    norm.register_forward_hook(lambda module, args, y: seen.append(y[..., :width].clone()))
    model.eval()
    with torch.no_grad():
        model(x)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        model(x)
    assert seen[0].abs().max() > 0.1
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=1e-12)


def test_heads_are_units() -> None:
    net, x = made("attention by unbind")
    model = clnp.convert(net, x, verbose=False)
    group = model.groups["layers.0.inner.qkv"]
    assert group.size == HEADS
    assert (group.producers, group.consumers) == (("layers.0.inner.qkv",), ("layers.0.inner.proj",))
    assert dict(model.groups.makes["layers.0.inner.qkv"])[group.name] == 3 * WIDTH // HEADS
    assert dict(model.groups.reads["layers.0.inner.proj"])[group.name] == WIDTH // HEADS


def test_a_head_is_neutral_to_cut_and_a_channel_of_the_stream_is_not() -> None:
    """The other channels of a norm feel a cut channel; heads and hidden units don't touch it."""
    torch.manual_seed(0)
    net = Tokens(Sum(Attention()), Mlp()).double()
    x = torch.randn(3, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        net.layers[0].inner.proj.weight[:, :4] = 0  # type: ignore[union-attr, index]
        net.layers[1].down.weight[:, 5] = 0  # type: ignore[union-attr, index]
    model = clnp.convert(net, x, verbose=False).eval()
    model.begin_task()
    keep = {group.name: torch.arange(model.free(group)) for group in model.groups.prunable}
    heads, hidden = "layers.0.inner.qkv", "layers.1.up"
    narrow = {heads: keep[heads][1:], hidden: torch.tensor([i for i in range(20) if i != 5])}
    expected = model(x)
    torch.testing.assert_close(model.pruned_network({**keep, **narrow})(x), expected)
    cut = model.pruned_network({**keep, "embed": keep["embed"][1:]})(x)
    assert (cut - expected).abs().max() > 1e-3


def test_a_later_task_learns_through_a_mixer_that_stays() -> None:
    net, x = made("mixer")
    model = clnp.convert(net, x, verbose=False)
    model.begin_task()
    model.consolidate({g.name: torch.arange(2) for g in model.groups.prunable})
    model.begin_task(generator=torch.Generator().manual_seed(0))
    model.train()(x).square().sum().backward()
    assert model.layer_weight("layers.0.up").numel() == 0
    grad = model.layer_weight("embed").grad
    assert grad is not None
    assert float(grad.abs().min()) > 0


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "tied weights": (lambda: Language(tied=True), inputs((7,)), "'tokens.weight'.*tied|shared"),
    "words that are no integers": (Language, torch.zeros(2, 7).int(), "int64 for an embedding"),
    "norm over tokens and channels": (
        lambda: Tokens(nn.LayerNorm([7, WIDTH])),
        inputs((7, 5)).float(),
        "'layer_norm' in 'layers.0'.*channels and other axes at once.*normalise over the channels",
    ),
    "a single head without an axis": (
        lambda: Tokens(Single()),
        inputs((7, 5)).float(),
        "'matmul.*multiplies along the channels.*reshape the channels to heads first",
    ),
    "keys that attention adds": (
        lambda: Tokens(Pytorch(add_bias_kv=True)),
        inputs((7, 5)).float(),
        "argument 'bias_k' is not supported",
    ),
}


class Single(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.transpose(-2, -1)).softmax(-1) @ x


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name: str) -> None:
    make, x, message = REFUSED[name]
    with pytest.raises(clnp.ConvertError, match=message):
        clnp.convert(make(), x, verbose=False)


SUFFIXES = [".safetensors", ".pt2", pytest.param(".onnx", marks=needs_onnx)]


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["attention by unbind", "language"])
def test_extracted_networks_are_written(name: str, suffix: str, tmp_path: Any) -> None:
    net, x = made(name)
    x = x.float() if x.is_floating_point() else x
    model = clnp.convert(net.eval().float(), x, verbose=False)
    for k in range(2):
        model.begin_task(generator=torch.Generator().manual_seed(k))
        model.consolidate({g.name: torch.arange(1 + k) for g in model.groups.prunable})
    narrow = clnp.extract(model, 1)
    path = clnp.export(narrow, tmp_path / f"net{suffix}", x[:1])  # compares the logits
    if suffix == ".safetensors":
        assert torch.equal(clnp.load_network(path)(x), narrow(x))


def test_forgetting_keeps_what_a_norm_of_a_later_task_reads() -> None:
    """The statistics of a later task are those of all channels before it."""
    net, x = made("attention by unbind")
    model = clnp.convert(net.eval(), x, verbose=False)
    force_three_tasks(model, x)
    kept = [model(x, task=0), model(x, task=2)]
    forgotten = model.forget(1)
    assert forgotten.read["embed"] > 0
    assert forgotten.readers == (2,)
    assert torch.equal(model.subnetwork(0, fresh=True)(x), kept[0])
    assert torch.equal(model.subnetwork(2, fresh=True)(x), kept[1])
    model.forget(2)
    assert len(model.net.get_submodule("norm").boundaries) == 2
    assert torch.equal(model.subnetwork(0, fresh=True)(x), kept[0])
    model.begin_task()
    model.consolidate({g.name: torch.arange(1) for g in model.groups.prunable})
    assert torch.equal(model.subnetwork(0, fresh=True)(x), kept[0])
