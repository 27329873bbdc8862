"""Cases of the GPU suite: calls of single operators, and whole training steps of networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.state import LR, make_state
from clnp.training.step_graph import StepGraph
from clnp_kernels import ops as _ops  # noqa: F401  (registers the operators)

FRACTIONS = (0.0, 0.5, 0.75)
# batch, channels, side: layers as those of the paper's networks
CONVOLUTIONS = ((256, 32, 32), (256, 64, 16), (128, 256, 15), (256, 1024, 7))
Function = Callable[[], Any]


@dataclass(frozen=True)
class Call:
    """One operator on given tensors.

    Attributes:
        op, case: names.
        fraction: of the channels that are active.
        flop, byte: the least work and traffic of the call.
        ours: calls the operator.
        dense: the same layer without masks by one vendor call, or None.
    """

    op: str
    case: str
    fraction: float
    flop: float
    byte: float
    ours: Function
    dense: Function | None = None


def linear_calls(
    rows: int, width: int, fraction: float, dtype: torch.dtype, device: str
) -> Iterator[Call]:
    """The products of a square layer."""
    active, case = round(width * fraction), f"{rows} x {width} x {width}"
    free, size = width - active, torch.empty((), dtype=dtype).element_size()

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    x, active_weight, free_weight = randn(rows, width), randn(active, active), randn(free, width)
    biases, dense, grad = (randn(active), randn(free)), randn(width, width), randn(rows, width)
    bias, part = randn(width), grad[:, active:].contiguous()
    op, weights = torch.ops.clnp_kernels, active * active + free * width
    yield Call(
        "masked_linear_fwd", case, fraction, 2.0 * rows * weights,
        size * (2 * rows * width + weights),
        lambda: op.masked_linear_fwd(x, active_weight, free_weight, *biases, "relu", True),
        lambda: F.linear(x, dense, bias).relu_(),
    )  # fmt: skip
    yield Call(
        "masked_linear_relu_grad", case, fraction, 0, size * 3 * rows * free,
        lambda: op.masked_linear_relu_grad(grad, x, active, True),
    )  # fmt: skip
    yield Call(
        "masked_linear_dgrad", case, fraction, 2.0 * rows * free * free,
        size * (rows * free + free * free + rows * width),
        lambda: op.masked_linear_dgrad(part, free_weight, active),
        lambda: grad @ dense,
    )  # fmt: skip
    yield Call(
        "masked_linear_wgrad", case, fraction, 2.0 * rows * free * width,
        size * (rows * (free + width) + free * width),
        lambda: op.masked_linear_wgrad(part, x, False),
        lambda: grad.t() @ x,
    )  # fmt: skip


def conv_calls(
    batch: int, channels: int, side: int, fraction: float, dtype: torch.dtype, device: str
) -> Iterator[Call]:
    """The products of a 3 x 3 layer with as many inputs as outputs, in channels_last."""
    active, case = round(channels * fraction), f"{batch} x {channels} x {side}^2, 3 x 3"
    free, size = channels - active, torch.empty((), dtype=dtype).element_size()
    last = torch.channels_last

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype).contiguous(memory_format=last)

    x, grad = randn(batch, channels, side, side), randn(batch, channels, side, side)
    active_weight, free_weight = randn(active, active, 3, 3), randn(free, channels, 3, 3)
    dense, part = randn(channels, channels, 3, 3), grad[:, active:].contiguous(memory_format=last)
    op, geometry = torch.ops.clnp_kernels, ([1, 1], [1, 1], [1, 1], False)
    pixels, weights = batch * side * side, 9 * (active * active + free * channels)
    convolution = torch.ops.aten.convolution_backward
    rest = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    yield Call(
        "masked_conv2d_fwd", case, fraction, 2.0 * pixels * weights,
        size * (2 * pixels * channels + weights),
        lambda: op.masked_conv2d_fwd(x, active_weight, free_weight, None, None, *geometry, "relu",
                                     False),
        lambda: F.conv2d(x, dense, padding=1).relu_(),
    )  # fmt: skip
    yield Call(
        "masked_conv2d_dgrad", case, fraction, 18.0 * pixels * free * free,
        size * (pixels * (free + channels) + 9 * free * free),
        lambda: op.masked_conv2d_dgrad(part, x, free_weight, active, *geometry),
        lambda: convolution(grad, x, dense, None, *rest, [True, False, False]),
    )  # fmt: skip
    yield Call(
        "masked_conv2d_wgrad", case, fraction, 18.0 * pixels * free * channels,
        size * (pixels * (free + channels) + 9 * free * channels),
        lambda: op.masked_conv2d_wgrad(part, x, [3, 3], *geometry, False),
        lambda: convolution(grad, x, dense, None, *rest, [False, True, False]),
    )  # fmt: skip


def norm_calls(
    batch: int, channels: int, side: int, fraction: float, dtype: torch.dtype, device: str
) -> Iterator[Call]:
    """Batch normalisation in training with ReLU, and the activity of its output."""
    active, case = round(channels * fraction), f"{batch} x {channels} x {side}^2"
    free, size = channels - active, torch.empty((), dtype=dtype).element_size()
    shape = (batch, channels, side, side)
    x, grad = (
        torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    vectors = [torch.rand(n, device=device) + 0.5 for n in (active, active, free, free)]
    affine = [torch.rand(n, device=device) for n in (active, free, active, free)]
    whole, op = torch.rand(4, channels, device=device) + 0.5, torch.ops.clnp_kernels
    image, part = x.numel() * size, x.numel() // max(channels, 1) * free * size
    rest = (vectors[2], vectors[3], affine[1], True, 1e-5)
    yield Call(
        "partial_batch_norm_fwd", case, fraction, 0, 2 * image,
        lambda: op.partial_batch_norm_fwd(x, *vectors, *affine, True, 1e-5, "relu", False),
        lambda: F.batch_norm(x, whole[0], whole[1], whole[2], whole[3], True).relu_(),
    )  # fmt: skip
    yield Call(
        "partial_batch_norm_bwd", case, fraction, 0, 3 * part + image,
        lambda: op.partial_batch_norm_bwd(grad, x, x, *rest),
    )  # fmt: skip
    if fraction == 0:
        yield Call("channel_activity", case, fraction, 0, image, lambda: op.channel_activity(x, 1))


def optimizer_calls(count: int, elements: int, device: str) -> Iterator[Call]:
    """One step of tensors of these sizes, float32."""
    state = [[torch.randn(elements, device=device).abs_() for _ in range(count)] for _ in range(4)]
    steps = [torch.ones((), device=device) for _ in range(count)]
    lr, l1 = [torch.tensor(1e-9, device=device)] * count, [1e-5] * count
    op = torch.ops.clnp_kernels
    case, total = f"{count} x {elements}", 4.0 * count * elements
    leaves = [t.clone().requires_grad_() for t in state[0]]
    for leaf, grad in zip(leaves, state[1], strict=True):
        leaf.grad = grad
    capturable = device != "cpu"
    fused = torch.optim.Adam(leaves, lr=1e-9, fused=True, capturable=capturable)
    yield Call(
        "adam_l1", case, 0.0, 0, 7 * total,
        lambda: op.adam_l1(*state, steps, lr, l1, 0.9, 0.999, 1e-8, 0.0, False, None, None),
        fused.step,
    )  # fmt: skip
    yield Call(
        "sgd_l1", case, 0.0, 0, 5 * total,
        lambda: op.sgd_l1(state[0], state[1], state[2], [False] * count, lr, l1, 0.9, 0.0, False,
                          0.0, False, None, None),
    )  # fmt: skip


def calls(dtype: torch.dtype, device: str, dry: bool) -> Iterator[Call]:
    """All calls that are timed, one case at a time; tiny ones for a rehearsal."""
    for fraction in FRACTIONS[:2] if dry else FRACTIONS:
        for rows, width in ((8, 16),) if dry else ((256, 2000), (256, 2048), (4096, 4096)):
            yield from linear_calls(rows, width, fraction, dtype, device)
        for size in ((2, 8, 4),) if dry else CONVOLUTIONS:
            yield from conv_calls(*size, fraction, dtype, device)
        for size in ((2, 8, 4),) if dry else ((256, 128, 32), (256, 512, 7)):
            yield from norm_calls(*size, fraction, dtype, device)
    lists = ((3, 100),) if dry else ((6, 1_000_000), (100, 20_000), (2, 100_000_000))
    for count, elements in lists:
        yield from optimizer_calls(count, elements, device)


def step_functions(
    network: str, fraction: float, dtype: str, device: str, dry: bool
) -> Iterator[tuple[str, Function]]:
    """Training steps of a network: name and a function that makes one.

    The contenders of the step suite, and the captured ones: the whole step as one CUDA graph.
    """
    scale, batch = (0.02, 8) if dry else (1.0, 256)
    case = Case(network, scale, batch, fraction, dtype, device)
    for name, make in CONTENDERS.items():
        if "compiled" not in name or not dry:
            yield name, make(make_state(case)).step
    for name in ("ours",) if dry else ("ours", "dense", "compiled"):
        contender = CONTENDERS[name](make_state(case))
        if name != "ours":
            parameters = contender.network.parameters()
            contender.optimizer = torch.optim.Adam(
                parameters, lr=LR, fused=True, capturable=not dry
            )
        yield f"{name} captured", _captured(contender, device)


def _captured(contender: Contender, device: str) -> Function:
    x, labels = contender.state.x, contender.state.labels
    graph = StepGraph(
        lambda x, labels: (contender.step(x, labels),), contender.optimizer, torch.device(device)
    )
    return lambda: graph(x, labels)
