"""`MaskedEmbedding`: `torch.nn.Embedding` whose first channels are frozen."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ._masked import Masked, _on_device_of, check_added, check_boundary


class MaskedEmbedding(Masked):
    """A vector of C channels for each of V numbers; the first Ca channels are frozen.

    Plain PyTorch on every device: two tables, the frozen one without gradient. Tables are stored
    channel by channel:

    - `active_weight` [Ca, V]: buffer, frozen
    - `free_weight` [Cf, V]: parameter

    Arguments:
        num_embeddings: V.
        embedding_dim: C.
        padding_idx: a number whose vector gets no gradient.
        active: Ca. Frozen tensors start as zeros.
        std: standard deviation of new vectors.
        device, dtype: of all tensors.

    Attributes:
        skip_active: if set, `forward` computes and returns the free channels only.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: a size is negative, or the boundary exceeds it.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        active: int = 0,
        std: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__("none", False)
        check_boundary("active", active, "embedding_dim", embedding_dim)
        check_boundary("num_embeddings", 0, "num_embeddings", num_embeddings)
        self.padding_idx, self.std = padding_idx, std
        columns = num_embeddings if active else 0
        free = embedding_dim - active, num_embeddings
        self._fill((active, columns), free, (), False, {"device": device, "dtype": dtype})

    @property
    def num_embeddings(self) -> int:
        """V."""
        return self.inputs

    @property
    def embedding_dim(self) -> int:
        """C, active and free."""
        return self.outputs

    @classmethod
    def from_dense(cls, embedding: nn.Embedding, *, active: int = 0) -> "MaskedEmbedding":
        """A layer with copies of the vectors of `embedding`; new ones get their spread.

        Raises:
            ValueError: as the constructor.
        """
        weight = embedding.weight.detach().t()
        sizes = embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx
        std = 1.0 if weight.is_meta or weight.numel() < 2 else float(weight.double().std())
        layer = cls(*sizes, active=active, std=std, device="meta")
        like = nn.Linear(*sizes[:2], False, device="meta")
        like.weight = nn.Parameter(weight, embedding.weight.requires_grad)
        return layer._copy(like.train(embedding.training))

    def to_dense(self) -> nn.Embedding:
        """A `torch.nn.Embedding` with copies of all vectors."""
        dense = nn.Embedding(self.inputs, self.outputs, self.padding_idx, device="meta")
        parts = [part for part in (self.active_weight, self.free_weight.detach()) if len(part)]
        weight = torch.cat(parts) if parts else self.free_weight.detach()
        dense.weight = nn.Parameter(weight.t().contiguous())
        return dense.train(self.training)

    @torch.no_grad()
    def reset_free_parameters(
        self, generator: torch.Generator | None = None, scale: float = 1.0
    ) -> None:
        """Draw the free vectors anew in place, as normal numbers.

        Arguments:
            generator: source of the random numbers, on any device; None: the global one.
            scale: factor on the numbers.
        """
        if self.free_weight.numel():
            drawn = _on_device_of(generator, self.free_weight)
            drawn.normal_(0, self.std * scale, generator=generator)
            self.free_weight.copy_(drawn)

    def _call(self, x: Tensor, activity: bool) -> Tensor | tuple[Tensor, Tensor]:
        y = F.embedding(x, self.free_weight.t(), self.padding_idx)
        if len(self.active_weight) and not self.skip_active:
            y = torch.cat([F.embedding(x, self.active_weight.t()), y], dim=-1)
        return (y, ops.channel_activity(y, dim=-1)) if activity else y

    def expand(self, out_features: int = 0, in_features: int = 0) -> None:
        """Add free channels, at the end and filled with zeros; no numbers can be added.

        The parameter is replaced: build a new optimizer.

        Raises:
            ValueError: a number is negative.
        """
        check_added(out_features=out_features, in_features=in_features)
        self._grow(out_features, in_features)

    def extra_repr(self) -> str:
        """Sizes and boundary."""
        return f"{self.inputs}, {self.outputs}, active={self.active_out}"
