"""Plain `torch.nn` modules of a task's network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .block_norm import NORMS, NORMS_OPTIONAL, layer_norm, rms_norm


class StochasticDepth(nn.Module):
    """Drop a residual branch during training, and scale kept ones by 1 / (1 - p).

    Huang et al. 2016, "Deep networks with stochastic depth".

    Arguments:
        p: probability of dropping, 0 <= p < 1.
        mode: "row" draws once per example, "batch" once per batch.
    """

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        if not 0 <= p < 1 or mode not in ("row", "batch"):
            raise ValueError(
                f"p, mode: expected 0 <= p < 1 and 'row' or 'batch', got {p!r} and {mode!r}"
            )
        self.p, self.mode = p, mode

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        shape = [x.shape[0] if self.mode == "row" else 1, *[1] * (x.dim() - 1)]
        return x * torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1 - self.p).div_(
            1 - self.p
        )

    def extra_repr(self) -> str:
        return f"p={self.p}, mode={self.mode!r}"


@torch.inference_mode(False)
def plain_module(op: str, attrs: Mapping[str, Any], tensors: Mapping[str, Tensor | None]) -> Any:
    """Build a module that owns contiguous copies of the given tensors, in evaluation mode.

    It supports gradients even if it is made within `torch.inference_mode`.

    Arguments:
        op: "linear", "conv2d", "conv3d", "depthwise_conv2d", "grouped_conv2d", "batch_norm1d",
            "batch_norm2d", or a weight per channel: "scale", "shift" or "prelu".
        attrs: attributes of the node in the graph; sizes are taken from the tensors.
        tensors: weight [O, I, ...] and bias [O] (or None); for a batch norm, weight, bias, mean
            and var [C].
    """
    weight = tensors["weight"]
    if op in ("scale", "shift", "prelu", "before", "behind"):
        assert weight is not None
        copy = weight.detach().clone(memory_format=torch.contiguous_format)
        return nn.ParameterDict({"weight": copy}).eval()
    with torch.device("meta"):
        module: Any = _empty(op, attrs, tensors)
    for name, value in tensors.items():
        if value is None:
            continue
        copy = value.detach().clone(memory_format=torch.contiguous_format)
        if name in ("mean", "var"):
            setattr(module, f"running_{name}", copy)
        else:
            setattr(module, name, nn.Parameter(copy))
    if op.startswith("batch_norm"):
        module.num_batches_tracked = torch.zeros(
            (), dtype=torch.long, device=module.running_mean.device
        )
    return module.eval()


def _empty(op: str, attrs: Mapping[str, Any], tensors: Mapping[str, Tensor | None]) -> nn.Module:
    weight, bias = tensors["weight"], tensors["bias"]
    if op in NORMS:
        return _norm(op, attrs, weight)
    if op.startswith("batch_norm"):
        mean = tensors["mean"]
        assert mean is not None
        make = nn.BatchNorm1d if op == "batch_norm1d" else nn.BatchNorm2d
        return make(mean.shape[0], attrs["eps"], attrs["momentum"], weight is not None)
    assert weight is not None
    outputs, inputs = weight.shape[:2]
    kernel: Any = tuple(weight.shape[2:])
    if op == "embedding":
        return nn.Embedding(outputs, inputs, attrs["padding_idx"])
    if op == "linear":
        return nn.Linear(inputs, outputs, bias is not None)
    groups = 1
    if op in ("depthwise_conv2d", "grouped_conv2d"):
        groups = outputs * attrs["groups"] // attrs["out_channels"]
    make_conv: Any = nn.Conv3d if op == "conv3d" else nn.Conv2d
    return make_conv(
        inputs * groups,
        outputs,
        kernel,
        attrs["stride"],
        attrs["padding"],
        attrs["dilation"],
        groups,
        bias is not None,
    )


def _norm(op: str, attrs: Mapping[str, Any], weight: Tensor | None) -> nn.Module:
    """Build an empty norm over channels; without weights it has the size of its last block."""
    ends = attrs.get("ends") or [attrs["num_features"] if weight is None else weight.shape[0]]
    options = {name: attrs.get(name) for name in NORMS_OPTIONAL} | {"ends": ends}
    if op == "rms_norm":
        return rms_norm(ends[-1], attrs["eps"], attrs["affine"], **options)
    return layer_norm(ends[-1], attrs["eps"], attrs["affine"], attrs["bias"], **options)
