"""The diagonal of the Fisher information, per example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ..data.batches import batches, count
from ..data.inputs import Split
from ..errors import ConfigError
from ..training.evaluation import evaluating
from .method import chosen

LABELS = ("exact", "empirical", "sampled")
ROWS = 256  # of a batch where per-example gradients need not be stored
NUMBERS = 1 << 25  # at most so many per-example gradients at a time where they are stored


def diagonal_fisher(
    net: nn.Module,
    split: Split,
    parameters: Mapping[str, nn.Parameter],
    *,
    labels: str = "exact",
    examples: int = 0,
) -> dict[str, Tensor]:
    """F_i = mean over x of E_y [(d log p(y | x) / d theta_i)^2], in evaluation mode.

    Arguments:
        net: x [B, ...] -> logits [B, C].
        split: where x is from.
        parameters: name (within `net`) -> parameter to give F of.
        labels: "exact" takes the expectation over the network's own p(y | x), all C labels;
            "sampled" draws one label from it (by torch's global generator); "empirical" takes the
            data's label.
        examples: evenly spaced examples of the split; 0 takes all.

    Returns:
        name -> F, shaped and typed as the parameter.

    Raises:
        ConfigError: unknown `labels`.
    """
    if labels not in LABELS:
        raise ConfigError(f"fisher: expected one of {list(LABELS)}, got {labels!r}")
    if not parameters:
        return {}
    total = count(split)
    if 0 < examples < total:
        split = chosen(split, torch.arange(examples) * total // examples)
        total = examples
    device = next(net.parameters()).device
    fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
    layers = _plain_layers(net, parameters)
    # Evaluation mode, but with gradients.
    with evaluating(net), torch.enable_grad():
        for x, y in batches(split, ROWS, device):
            if layers is not None:
                _add_of_linear(net, layers, fisher, x, y, labels)
            else:
                _add_of_any(net, fisher, x, y, labels)
    return {name: value / total for name, value in fisher.items()}


def _targets(logits: Tensor, y: Tensor, labels: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (labels [B], weights [B]) whose weighted sum is the expectation over labels."""
    p = logits.detach().softmax(dim=-1)
    if labels == "exact":
        for label in range(p.shape[-1]):
            yield torch.full_like(y, label), p[:, label]
        return
    if labels == "sampled":
        y = torch.multinomial(p.cpu(), 1).squeeze(1).to(y.device)
    yield y, torch.ones_like(p[:, 0])


def _plain_layers(
    net: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> dict[str, nn.Linear] | None:
    """Module name -> Linear layer, if all the parameters belong to Linear layers; else None."""
    layers = {}
    for name in parameters:
        owner = name.rpartition(".")[0]
        layer = net.get_submodule(owner)
        if type(layer) is not nn.Linear:
            return None
        layers[owner] = layer
    return layers


def _add_of_linear(
    net: nn.Module,
    layers: Mapping[str, nn.Linear],
    fisher: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    labels: str,
) -> None:
    """For a layer that each example passes once as a vector, the squared gradient of its weight is
    an outer product: sum_n (g_n a_n^T)^2 = (g^2)^T (a^2), without storing any example's gradient.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    calls: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            # An activation in place may overwrite `out`; its gradient is also that of this zero.
            zero = torch.zeros_like(out, requires_grad=True)
            seen[name] = (args[0].detach(), zero)
            calls.append(name)
            return out + zero

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        logits = net(x)
    finally:
        for handle in handles:
            handle.remove()
    if any(a.dim() != 2 for a, _ in seen.values()) or len(calls) > len(seen):
        _add_of_any(net, fisher, x, y, labels)
        return
    outputs = [zero for _, zero in seen.values()]
    for target, weight in _targets(logits, y, labels):
        loss = F.cross_entropy(logits, target, reduction="sum")
        grads = torch.autograd.grad(loss, outputs, retain_graph=True)
        for (name, (a, _)), g in zip(seen.items(), grads, strict=True):
            g2 = g.square() * weight[:, None]
            for entry, value in ((f"{name}.weight", (g2, a)), (f"{name}.bias", (g2, None))):
                if entry in fisher:
                    left, right = value
                    fisher[entry] += left.sum(0) if right is None else left.T @ right.square()


def _add_of_any(
    net: nn.Module, fisher: dict[str, Tensor], x: Tensor, y: Tensor, labels: str
) -> None:
    """Per-example gradients of any network, some examples at a time."""
    named = {n: p.detach() for n, p in net.named_parameters() if n in fisher}
    rest = {n: t.detach() for n, t in net.state_dict().items() if n not in fisher}
    size = sum(p.numel() for p in named.values())
    rows = max(1, NUMBERS // max(size, 1))

    def nll(parameters: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(net, {**rest, **parameters}, (one[None],))
        return F.cross_entropy(logits, label[None])

    each = vmap(grad(nll), in_dims=(None, 0, 0), randomness="different")
    for start in range(0, len(x), rows):
        part, part_y = x[start : start + rows], y[start : start + rows]
        with torch.no_grad():
            logits = net(part)
        for target, weight in _targets(logits, part_y, labels):
            for name, g in each(named, part, target).items():
                scale = weight.reshape(-1, *[1] * (g.dim() - 1))
                fisher[name] += (g.square() * scale).sum(0)
