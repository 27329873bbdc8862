"""Output layers with frozen weights per task on a shared network (paper, Sec. 2.1 and Fig. 2).

While a task is learned, its output weights are the parameters `free_weight [C, I]` and `free_bias
[C]`. When it ends, they become buffers.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clnp_kernels import ops

LEARNED = ("weight_", "bias_", "frozen_")  # prefixes of the buffers of learned heads


class Head(nn.Module):
    """Base of both kinds of output layer.

    Arguments:
        weight: [C, I] output weights of the dense network, for C classes and I inputs from the last
            hidden group.
        bias: [C] or None.
    """

    kind: ClassVar[str]
    free_weight: nn.Parameter  # [C, I]
    active_weight: Tensor  # [0, Ia]: no output is frozen, the first Ia inputs take no gradient

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.has_bias = bias is not None
        self.free_weight = nn.Parameter(weight.detach().clone())
        self.free_bias = nn.Parameter(bias.detach().clone()) if bias is not None else None
        self.register_buffer("active_weight", weight.new_empty(0, 0))

    @property
    def classes(self) -> int:
        """Number of outputs C of the current task."""
        return self.free_weight.shape[0]

    def select(self, columns: Tensor) -> None:
        """Keep only the given input columns of the current output weights."""
        self.free_weight = nn.Parameter(self.free_weight.detach()[:, columns])

    def task_weights(self, k: int, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Return weights [C_k, I'] and bias [C_k] of learned task k.

        Its new channels in the last hidden group have the columns start to stop.
        """
        raise NotImplementedError

    def current_bias(self) -> Tensor | None:
        """Return the bias [C] of the current task."""
        return self.free_bias

    def _outputs(self, x: Tensor, bias: Tensor | None) -> Tensor:
        none = None if bias is None else bias.new_empty(0)
        logits = ops.masked_linear(x, self.active_weight, self.free_weight, none, bias)
        assert isinstance(logits, Tensor)
        return logits

    def freeze(self) -> None:
        """Turn the current output weights into buffers."""
        raise NotImplementedError

    def place(self, classes: int, active: int, total: int) -> None:
        """Make zero output weights for the next task; `active` of the `total` inputs are frozen."""
        raise NotImplementedError

    def reset_free_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the current output weights and trained bias in place, as `torch.nn.Linear` does."""
        bound = 1.0 / math.sqrt(max(self.free_weight.shape[1], 1))
        with torch.no_grad():
            _uniform(self.free_weight, bound, generator)
            if self.free_bias is not None:
                _uniform(self.free_bias, bound, generator)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Adopt the saved shapes, since heads grow with every learned task."""
        for key, value in state_dict.items():
            name = key.removeprefix(prefix)
            if not key.startswith(prefix) or "." in name or not isinstance(value, Tensor):
                continue
            like = self.free_weight
            fresh = torch.empty(value.shape, dtype=like.dtype, device=like.device)
            if name in ("free_weight", "free_bias"):
                own = getattr(self, name)
                # Keep a parameter of the right shape, because an optimizer may hold it.
                if own is None or own.shape != value.shape:
                    setattr(self, name, nn.Parameter(fresh))
            elif name.startswith((*LEARNED, "active_weight")):
                self.register_buffer(name, fresh)
        if prefix + "free_bias" not in state_dict:
            self.free_bias = None
        for name, buffer in list(self.named_buffers(recurse=False)):
            if buffer is not None and prefix + name not in state_dict and name.startswith(LEARNED):
                # This head was learned after the state was saved.
                self.register_buffer(name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _uniform(tensor: Tensor, bound: float, generator: torch.Generator | None) -> None:
    """Fill in place with numbers drawn on the CPU, which don't depend on the device."""
    draw = torch.empty(tensor.shape, dtype=torch.float32, device="cpu")
    draw.uniform_(-bound, bound, generator=generator)
    tensor.copy_(draw)


class MultiHead(Head):
    """A new output layer per task, over all channels of the last hidden group.

    Paper, Fig. 2, left.
    Learned heads are the buffers `weight_k [C_k, I_k]` and `bias_k [C_k]`. Tasks may have different
    numbers of classes.
    """

    kind = "multi"

    def forward(self, x: Tensor) -> Tensor:  # [..., I] -> [..., C]
        return self._outputs(x, self.free_bias)

    def learned(self) -> int:
        """Return the number of frozen heads."""
        return sum(name.startswith("weight_") for name, _ in self.named_buffers(recurse=False))

    def freeze(self) -> None:
        k = self.learned()
        self.register_buffer(f"weight_{k}", self.free_weight.detach().clone())
        if self.free_bias is not None:
            self.register_buffer(f"bias_{k}", self.free_bias.detach().clone())

    def place(self, classes: int, active: int, total: int) -> None:
        old = self.free_weight
        self.active_weight = old.new_empty(0, active)
        self.free_weight = nn.Parameter(old.new_zeros(classes, total))
        self.free_bias = nn.Parameter(old.new_zeros(classes)) if self.has_bias else None

    def task_weights(self, k: int, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        bias = getattr(self, f"bias_{k}", None)
        return getattr(self, f"weight_{k}"), bias


class SingleHead(Head):
    """One output layer for all tasks; a task uses only its new channels of the last hidden group.

    Paper, Fig. 2, right. Learned columns are the buffer `frozen_weight [C, A]`, in the order of the
    tasks. The bias is learned by the first task and is then the buffer `frozen_bias [C]`.
    """

    kind = "single"
    frozen_weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.register_buffer("frozen_weight", weight.new_empty(weight.shape[0], 0))
        self.register_buffer("frozen_bias", None)

    def current_bias(self) -> Tensor | None:
        return self.free_bias if self.free_bias is not None else self.frozen_bias

    def forward(self, x: Tensor) -> Tensor:  # [..., A + I] or [..., I] -> [..., C]
        # Channels of earlier tasks come first, if they are computed at all.
        others = x.shape[-1] - self.free_weight.shape[1]
        x = x[..., others:] if others else x
        return self._outputs(x, self.current_bias())

    def freeze(self) -> None:
        self.frozen_weight = torch.cat([self.frozen_weight, self.free_weight.detach()], dim=1)
        if self.free_bias is not None:
            bias = self.free_bias.detach().clone()
            self.free_bias = None
            self.frozen_bias = bias

    def place(self, classes: int, active: int, total: int) -> None:
        self.free_weight = nn.Parameter(self.free_weight.new_zeros(classes, total - active))

    def task_weights(self, k: int, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        return self.frozen_weight[:, start:stop], self.frozen_bias


HEADS: dict[str, type[Head]] = {"multi": MultiHead, "single": SingleHead}
