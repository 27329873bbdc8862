"""Networks as users write them: the same function in both modes, and bits that stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import clnp
from clnp.errors import ConfigError, ConvertError
from clnp.graph.equivalence import _SureDropout
from clnp.graph.registry import unregister
from clnp_kernels.nn import Dropout
from tests.clnp.conv_cases import randomise_norms

IMAGES, VECTORS = (3, 8, 8), (12,)


class Given(nn.Module):
    """A forward and the modules that it uses."""

    def __init__(self, forward: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        assert x.dim() > 1, "a batch"
        return self.run(self, x if mask is None else x * mask)


def images(forward: Callable[..., Tensor], **parts: Any) -> nn.Module:
    """A forward between a convolution `a` [B, 8, 8, 8] and a Linear `out` of 6 inputs."""
    own = {"a": nn.Conv2d(3, 8, 3, padding=1), "b": nn.Conv2d(8, 6, 3), "out": nn.Linear(6, 3)}
    return Given(forward, **{**own, **parts})


def vectors(forward: Callable[..., Tensor], **parts: Any) -> nn.Module:
    """A forward between the layers `a` 12 -> 8, `b` 8 -> 8 and `out` 8 -> 3."""
    own = {"a": nn.Linear(12, 8), "b": nn.Linear(8, 8), "out": nn.Linear(8, 3)}
    return Given(forward, **{**own, **parts})


def between(*modules: nn.Module, width: int = 8) -> nn.Module:
    """Modules that work on images of 8 channels, before the mean and the output layer."""
    body = [nn.Conv2d(3, 8, 3, padding=1), *modules]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


def with_vectors(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(12, 8), *modules, nn.Linear(8, 3))


class OwnLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, bias=self.bias)


class NormAndActivation(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        training = self.training or self.running_mean is None
        args = (self.running_mean, self.running_var, self.weight, self.bias)
        return F.silu(F.batch_norm(x, *args, training, self.momentum, self.eps), inplace=True)


class SameConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        size, stride = self.kernel_size[0], self.stride[0]
        pad = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
        x = F.pad(x, [pad // 2, pad - pad // 2, pad // 2, pad - pad // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class LayerScale(nn.Module):
    def __init__(self, channels: int, images: bool = True) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels, 1, 1) if images else torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 0.75
        noise = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * noise.div_(keep)


def spatial_mask(net: Any, x: Tensor) -> Tensor:
    seen = x.mean(1, keepdim=True)
    return net.out(net.b(net.a(x) * torch.sigmoid(seen)).mean((2, 3)))


def to_tokens(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).flatten(2).transpose(1, 2)  # [B, T, C]
    y = F.gelu(net.mlp(y)) + y
    return net.out2(y.mean(dim=1))


def batch_and_time(net: Any, x: Tensor) -> Tensor:
    y = x.view(x.size(0), 3, 4).reshape(-1, 4)
    y = torch.relu(net.first(y)).view(x.shape[0], -1, 8)
    return net.out(y.amax(1))


def halves_of_pixels(net: Any, x: Tensor) -> Tensor:
    left, right = net.a(x).chunk(2, dim=3)
    first = net.b(left * right[..., :4])
    top, *_ = first.unbind(2)
    return net.out(top.mean(-1))


def elementwise(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y = (1 - y) * 0.5 + y**2 - y.abs() / 3
    y = torch.clamp(y, -2, 2).exp().float().to(x.dtype) if False else torch.clamp(y, -2, 2).exp()
    return net.out(net.b(y.clamp(min=0.1).log())) / 4


def loop_on_shapes(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    while y.size(-1) > 4:
        y = F.avg_pool2d(y, 2)
    y = net.b(y)
    return net.out(F.avg_pool2d(y, y.size(3)).squeeze(-1).squeeze(-1))


def channels_last(net: Any, x: Tensor) -> Tensor:
    y = net.a(x.permute(0, 3, 1, 2).contiguous())
    y = net.mlp(torch.movedim(y, 1, -1)).permute(0, 3, 1, 2)
    return net.out(net.b(y).mean([2, 3]))


def resized(net: Any, x: Tensor) -> Tensor:
    y = F.interpolate(net.a(x), scale_factor=2, mode="bilinear", align_corners=False)
    y = F.pad(torch.roll(y, (1, 2), (2, 3)), (1, 0, 2, 1), mode="reflect")[:, :, 1:-1, ::2]
    return net.out(net.b(y).sum(dim=(-2, -1)) / 100)


def normalised_input(net: Any, x: Tensor) -> Tensor:
    x = (x - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1).to(x)) / 0.25
    return net.out(net.b(net.a(x)).mean((2, 3)))


def matrix_product(net: Any, x: Tensor) -> Tensor:
    return net.out(torch.relu(net.a(x) @ net.matrix))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "own linear": (lambda: with_vectors(OwnLinear(8, 8), nn.ReLU()), VECTORS),
    "norm and activation": (lambda: between(NormAndActivation(8)), IMAGES),
    "padded convolution": (lambda: between(SameConv(8, 8, 3, stride=2)), IMAGES),
    "standardised": (lambda: between(StandardisedConv(8, 8, 3), nn.ReLU()), IMAGES),
    "matrix": (lambda: vectors(matrix_product, matrix=nn.Parameter(torch.randn(8, 8))), VECTORS),
    "synchronised": (lambda: between(nn.SyncBatchNorm(8), nn.ReLU()), IMAGES),
    "norm of sequences": (
        lambda: nn.Sequential(
            *(nn.Unflatten(1, (3, 4)), nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)),
            *(nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(16, 3)),
        ),
        VECTORS,
    ),
    "reflection": (lambda: between(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")), IMAGES),
    "transposed": (
        lambda: between(nn.ConvTranspose2d(8, 6, 3, 2, 1, 1), nn.ReLU(), width=6),
        IMAGES,
    ),
    "transposed by its kernel": (lambda: between(nn.ConvTranspose2d(8, 6, 2, 2), width=6), IMAGES),
    "slope": (lambda: between(nn.PReLU()), IMAGES),
    "slopes": (lambda: between(nn.PReLU(8)), IMAGES),
    "layer scale": (lambda: between(LayerScale(8), nn.ReLU()), IMAGES),
    "layer scale of vectors": (lambda: with_vectors(LayerScale(8, False), nn.Tanh()), VECTORS),
    "instances": (lambda: between(nn.InstanceNorm2d(8, affine=True), nn.ReLU()), IMAGES),
    "group per channel": (lambda: between(nn.GroupNorm(8, 8), nn.ReLU()), IMAGES),
    "drop path": (lambda: between(DropPath(), nn.ReLU()), IMAGES),
    "mask of the input": (lambda: images(spatial_mask), IMAGES),
    "tokens": (lambda: images(to_tokens, mlp=nn.Linear(8, 8), out2=nn.Linear(8, 3)), IMAGES),
    "batch and time": (lambda: vectors(batch_and_time, first=nn.Linear(4, 8)), VECTORS),
    "parts of pixels": (lambda: images(halves_of_pixels, b=nn.Conv2d(8, 6, 3, padding=1)), IMAGES),
    "elementwise": (lambda: vectors(elementwise), VECTORS),
    "loop on shapes": (lambda: images(loop_on_shapes), IMAGES),
    "channels last": (lambda: images(channels_last, mlp=nn.Linear(8, 8)), (8, 8, 3)),
    "resized": (lambda: images(resized), IMAGES),
    "normalised input": (lambda: images(normalised_input), IMAGES),
    "view as image": (
        lambda: nn.Sequential(nn.Unflatten(1, (3, 2, 2)), *between(nn.ReLU())),
        VECTORS,
    ),
    "head of pixels": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        ),
        IMAGES,
    ),
    "weight norm": (
        lambda: with_vectors(parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU()),
        VECTORS,
    ),
    "pruned": (
        lambda: with_vectors(prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5), nn.ReLU()),
        VECTORS,
    ),
}


def check_same(net: nn.Module, model: nn.Module, x: Tensor) -> None:
    for module in model.modules():
        if isinstance(module, Dropout):
            module.eval()
    with torch.no_grad(), _SureDropout():
        expected, got = net(x.clone()), model(x)
    scale = float(expected.abs().max())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10 * scale)


def force_three_tasks(model: clnp.Model, x: Tensor) -> None:
    """Learned tasks keep the bits of their logits, and their narrow networks say the same."""
    logits: list[Tensor] = []
    for k in range(3):
        model.begin_task(generator=torch.Generator().manual_seed(k))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            model.train()(x)
        keep = {g.name: torch.arange((model.free(g) + 1) // 2) for g in model.groups.prunable}
        pruned = model.pruned_network(keep)(x)
        model.eval().consolidate(keep)
        logits.append(model(x, task=k))
        assert torch.equal(pruned, logits[k])
        for task, before in enumerate(logits):
            assert torch.equal(model.subnetwork(task, fresh=True)(x), before)
    for got, expected in zip(model.all_tasks(x), logits, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("name", CASES)
def test_same_function_and_bits_that_stay(name: str) -> None:
    torch.manual_seed(0)
    make, shape = CASES[name]
    net = randomise_norms(make().double())
    x = torch.randn(5, *shape, dtype=torch.float64)
    model = clnp.convert(net, torch.zeros(1, *shape, dtype=torch.float64), verbose=False)
    check_same(net.eval(), model.eval(), x)
    net.train()
    model.begin_task()
    check_same(net, model.train(), x)
    model.cancel_task()
    force_three_tasks(clnp.convert(net.eval(), x, verbose=False), x)


@pytest.mark.parametrize("name", ["slopes", "layer scale", "head of pixels", "norm of sequences"])
def test_state_structure_and_extraction(name: str) -> None:
    make, shape = CASES[name]
    net = randomise_norms(make().double()).eval()
    x = torch.randn(4, *shape, dtype=torch.float64)
    model = clnp.convert(net, x, verbose=False)
    force_three_tasks(model, x)
    again = clnp.Model.from_structure(model.structure()).double()
    again.load_state_dict(model.state_dict())
    for task in range(3):
        assert torch.equal(again(x, task=task), model(x, task=task))
        assert torch.equal(clnp.extract(model, task)(x), model(x, task=task))


# Wrappers


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        torch.compile,
        lambda net: nn.Sequential(torch.compile(net)),
    ],
)
def test_wrappers_are_left_out(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = with_vectors(nn.ReLU())
    x = torch.randn(4, 12)
    model = clnp.convert(wrap(net), x, verbose=False)
    assert torch.equal(model(x), net(x))


def test_a_lazy_layer_after_its_first_call() -> None:
    net = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))
    x = torch.randn(4, 12)
    net(x)
    assert torch.equal(clnp.convert(net, x, verbose=False)(x), net(x))


# Modules of one's own


class Squash(nn.Module):
    def __init__(self, power: int) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.erfc(x) ** self.power


class Doubled(nn.Module):
    """Refused as it is: one layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) + self.layer(x)) / 2


def test_registered_operation() -> None:
    net = with_vectors(Squash(3)).double()
    x = torch.randn(4, 12, dtype=torch.float64)
    with pytest.raises(ConvertError, match="erfc"):
        clnp.convert(net, x, verbose=False)
    clnp.graph.register(Squash, role="elementwise", attrs=lambda m: {"power": m.power})
    try:
        model = clnp.convert(net, x, verbose=False)
        assert torch.equal(model(x), net(x))
        force_three_tasks(model, x)
        again = clnp.Model.from_structure(model.structure())
        assert again.graph == model.graph
    finally:
        unregister(Squash)
    with pytest.raises(clnp.CheckpointError, match="register first"):
        clnp.Model.from_structure(model.structure())


@pytest.mark.parametrize("right", [True, False])
def test_registered_equivalent(right: bool) -> None:
    net = with_vectors(Doubled()).double()
    x = torch.randn(4, 12, dtype=torch.float64)
    with pytest.raises(ConvertError, match="called twice"):
        clnp.convert(net, x, verbose=False)
    clnp.graph.register(
        Doubled, equivalent=lambda m: m.layer if right else nn.Sequential(m.layer, nn.ReLU())
    )
    try:
        if right:
            model = clnp.convert(net, x, verbose=False)
            torch.testing.assert_close(model(x), net(x), rtol=1e-12, atol=1e-12)
        else:
            with pytest.raises(ConvertError, match="other logits than the original"):
                clnp.convert(net, x, verbose=False)
    finally:
        unregister(Doubled)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (3, {"role": "elementwise"}, "kind: expected a subclass"),
        (nn.Linear, {"role": "elementwise"}, "a class of your own"),
        (Squash, {}, "expected one of them"),
        (Squash, {"role": "layer"}, "role: expected one of"),
        (Squash, {"equivalent": 3}, "expected a function"),
    ],
)
def test_bad_registrations(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clnp.graph.register(kind, **options)


# Refusals


def interleaved(net: Any, x: Tensor) -> Tensor:
    return net.out(net.a(x).permute(0, 2, 3, 1).flatten(1)[:, :6])


def constants(net: Any, x: Tensor) -> Tensor:
    return net.out(net.b(net.a(x) * torch.arange(8.0).view(8, 1, 1)).mean((2, 3)))


def noise(net: Any, x: Tensor) -> Tensor:
    return net.out(net.b(net.a(x) + torch.randn(8, 8)).mean((2, 3)))


def by_size_of_batch(net: Any, x: Tensor) -> Tensor:
    return net.out(net.b(net.a(x)).mean((2, 3)) / x.shape[0])


def by_numbers(net: Any, x: Tensor) -> Tensor:
    return net.out(net.b(net.a(x) if float(x.sum()) > 0 else -net.a(x)).mean((2, 3)))


REFUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "channels of one pixel": (interleaved, "nothing reads the outputs of .*some of them"),
    "constants per channel": (constants, "'mul'.*constants per channel"),
    "noise": (noise, "random numbers that forward draws"),
    "size of the batch": (by_size_of_batch, "'div'.*arguments differ.*with the batch size"),
    "numbers": (by_numbers, "can't be traced.*'float' reads numbers that depend on the input"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name: str) -> None:
    forward, message = REFUSED[name]
    with pytest.raises(ConvertError, match=message):
        clnp.convert(images(forward), torch.zeros(2, *IMAGES), verbose=False)
