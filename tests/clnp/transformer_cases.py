"""Small transformers for the tests of `clnp`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, VOCABULARY = 12, 3, 11


class Mlp(nn.Module):
    """A residual branch behind a norm."""

    def __init__(self, norm: nn.Module | None = None, hidden: int = 20) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH) if norm is None else norm
        self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Attention(nn.Module):
    """Queries, keys and values of one layer, in the usual ways to divide them.

    Arguments:
        way: "unbind", "index" and "chunk" divide [B, T, 3 * C]; "hand" also writes the softmax.
    """

    def __init__(self, way: str = "unbind", bias: bool = True) -> None:
        super().__init__()
        self.way, self.dropout = way, nn.Dropout(0.1)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias), nn.Linear(WIDTH, WIDTH)

    def divided(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, t, _ = x.shape
        if self.way == "chunk":
            q, k, v = (
                part.view(b, t, HEADS, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
            )
            return q, k, v
        if self.way == "innermost":  # as in GPT-NeoX: [heads, 3 * D]
            q, k, v = self.qkv(x).view(b, t, HEADS, -1).transpose(1, 2).chunk(3, dim=-1)
            return q, k, v
        qkv = self.qkv(x).reshape(b, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        if self.way == "index":
            return qkv[0], qkv[1], qkv[2]
        q, k, v = qkv.unbind(0)
        return q, k, v

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.way == "hand":
            weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            return self.dropout(weights.softmax(dim=-1)) @ v
        if self.way == "einsum":
            products = torch.einsum("bhtd,bhsd->bhts", q, k) / q.shape[-1] ** 0.5
            return torch.einsum("bhts,bhsd->bhtd", products.softmax(-1), v)
        p = 0.1 if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        y = self.attended(*self.divided(x))
        return self.proj(y.transpose(1, 2).reshape(b, t, c))


class Masked(Attention):
    """Causal by a mask that forward makes."""

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        t = q.shape[-2]
        seen = torch.ones(t, t, dtype=torch.bool).tril()
        products = (q @ k.transpose(-2, -1)).masked_fill(~seen, float("-inf"))
        return products.softmax(-1) @ v


class Causal(Attention):
    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Biased(Attention):
    """A learned bias per head and pair of places, from a table."""

    def __init__(self, way: str = "unbind", places: int = 7) -> None:
        super().__init__(way)
        self.table = nn.Parameter(torch.randn(2 * places - 1, HEADS))
        at = torch.arange(places)
        self.register_buffer("index", at[:, None] - at + places - 1)

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = self.table[self.index].permute(2, 0, 1).unsqueeze(0)
        if self.way == "hand":
            return ((q @ k.transpose(-2, -1)) + bias).softmax(-1) @ v
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class Rotary(Attention):
    """Rotated queries and keys, which are normalised within each head."""

    def __init__(self) -> None:
        super().__init__("unbind")
        self.norm = nn.LayerNorm(WIDTH // HEADS)

    @staticmethod
    def rotated(x: Tensor) -> Tensor:
        t, d = x.shape[-2:]
        angles = torch.outer(torch.arange(t), 10.0 ** -torch.arange(d // 2)).to(x.dtype)
        cos, sin = (f(torch.cat([angles, angles], -1)) for f in (torch.cos, torch.sin))
        left, right = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-right, left], dim=-1) * sin

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = self.rotated(self.norm(q)), self.rotated(k)
        return super().attended(q, k, v)


class Grouped(nn.Module):
    """Two heads of queries for each head of keys and values."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.q, self.k, self.v = nn.Linear(WIDTH, 24), nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 12)
        self.proj = nn.Linear(24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (f(x).view(b, t, -1, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.way == "repeated":
            k, v = (part.repeat_interleave(2, dim=1) for part in (k, v))
        elif self.way == "expanded":
            k, v = (part[:, :, None].expand(b, 3, 2, t, 4).reshape(b, 6, t, 4) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.way == "shared")
        return self.proj(y.transpose(1, 2).flatten(2))


class Pytorch(nn.Module):
    """nn.MultiheadAttention of one value, or of several."""

    def __init__(self, several: bool = False, causal: bool = False, **options: bool) -> None:
        super().__init__()
        self.several, self.causal = several, causal
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.1, **options)
        self.other = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.other(x) if self.several else x
        mask = torch.ones(7, 7, dtype=torch.bool).triu(1) if self.causal else None
        return self.attention(x, y, y, need_weights=False, attn_mask=mask)[0]


class Sum(nn.Module):
    """A residual branch behind a norm."""

    def __init__(self, inner: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH) if norm is None else norm
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.norm(x))


class Tokens(nn.Module):
    """Layers between an embedding of [B, 7, 5] and an output layer of the mean token."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.embed, self.layers = nn.Linear(5, WIDTH), nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.embed(x))).mean(dim=1))


class Patches(nn.Module):
    """Patches of images, a class token in front, register tokens behind, positions."""

    def __init__(self, *layers: nn.Module, size: int = 8, classes: int = 3) -> None:
        super().__init__()
        patches = (size // 4) ** 2
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.registers = nn.Parameter(torch.randn(1, 2, WIDTH))
        self.positions = nn.Parameter(0.2 * torch.randn(1, patches + 1, WIDTH))
        self.layers, self.scale = nn.Sequential(*layers), nn.Parameter(torch.rand(WIDTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        x = torch.cat([x, self.registers.repeat(x.shape[0], 1, 1)], dim=1)
        return self.head(self.norm(self.layers(x) * self.scale)[:, 0])


class Language(nn.Module):
    """Logits of the next token: [B, T] int64 -> [B, T, V]."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(7, WIDTH)
        self.layers = nn.Sequential(Sum(Causal()), Mlp(), Sum(Causal("chunk")), Mlp())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        return self.head(self.norm(self.layers(y)))


class Bag(nn.Module):
    """The mean vector of several words."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag, self.hidden = nn.EmbeddingBag(VOCABULARY, 8, mode=mode), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.bag(x))))


class Encoded(nn.Module):
    """Positions that a convolution computes without the input."""

    def __init__(self) -> None:
        super().__init__()
        self.encoding = nn.Conv2d(2, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        at = torch.arange(14, dtype=x.dtype).view(1, 2, 7, 1)
        return x + self.encoding(at.sin()).flatten(2).transpose(1, 2)


class Unprojected(Attention):
    """Heads that are added to the stream without a layer between."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        return self.attended(*self.divided(x)).transpose(1, 2).reshape(b, t, c)


class Mixer(nn.Module):
    """MLPs over tokens, whose weights all channels share, and over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(WIDTH), Mlp()
        self.up, self.down = nn.Linear(7, 9), nn.Linear(9, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).transpose(1, 2)
        return self.mlp(x + self.down(F.gelu(self.up(y))).transpose(1, 2))


class Merging(nn.Module):
    """Pairs of tokens become one of twice the channels, as the patches of a Swin transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.reduced = nn.LayerNorm(2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :6].reshape(x.shape[0], 3, 2, WIDTH).flatten(2)
        return self.reduced(self.norm(x))


def attending(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A network with one attention and one MLP."""
    return lambda: Tokens(Sum(make()), Mlp())


def encoder(**options: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 20, batch_first=True, **options)
    return Tokens(nn.TransformerEncoder(layer, 4, enable_nested_tensor=False))


TOKENS, WORDS = (7, 5), (7,)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer norm": (lambda: Tokens(Mlp()), TOKENS),
    "norm without bias": (lambda: Tokens(Mlp(nn.LayerNorm(WIDTH, bias=False))), TOKENS),
    "norm without weights": (
        lambda: Tokens(Mlp(nn.LayerNorm(WIDTH, elementwise_affine=False))),
        TOKENS,
    ),
    "RMS norm": (lambda: Tokens(Mlp(nn.RMSNorm(WIDTH))), TOKENS),
    **{
        f"attention by {way}": (attending(lambda way=way: Attention(way)), TOKENS)
        for way in ("unbind", "index", "chunk", "hand", "einsum", "innermost")
    },
    "causal": (attending(Causal), TOKENS),
    "mask": (attending(Masked), TOKENS),
    "bias per head": (attending(Biased), TOKENS),
    "bias per head, by hand": (attending(lambda: Biased("hand")), TOKENS),
    "rotary": (attending(Rotary), TOKENS),
    **{
        f"grouped queries, {way}": (attending(lambda way=way: Grouped(way)), TOKENS)
        for way in ("shared", "repeated", "expanded")
    },
    "MultiheadAttention": (attending(lambda: Pytorch(batch_first=True)), TOKENS),
    "MultiheadAttention, batch second": (
        lambda: Swapped(Sum(Pytorch(causal=False)), Mlp()),
        TOKENS,
    ),
    "MultiheadAttention, causal": (
        attending(lambda: Pytorch(causal=True, batch_first=True)),
        TOKENS,
    ),
    "MultiheadAttention of two values": (
        attending(lambda: Pytorch(several=True, batch_first=True)),
        TOKENS,
    ),
    "tokens and positions": (lambda: Patches(Sum(Attention()), Mlp()), (3, 8, 8)),
    "language": (Language, WORDS),
    "computed positions": (lambda: Tokens(Encoded(), Mlp()), TOKENS),
    "heads in the stream": (attending(Unprojected), TOKENS),
    "mixer": (lambda: Tokens(Mixer(), Mixer()), TOKENS),
    "merged tokens": (lambda: Tokens(Mlp(), Merging(), Mlp()), TOKENS),
    "bag of words": (lambda: Bag("mean"), WORDS),
    "largest of words": (lambda: Bag("max"), WORDS),
    "TransformerEncoder": (encoder, TOKENS),
    "TransformerEncoder, norm first": (lambda: encoder(norm_first=True), TOKENS),
}


class Swapped(Tokens):
    """Layers on [T, B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(self.embed(x).transpose(0, 1)).transpose(0, 1)
        return self.head(self.norm(y).mean(dim=1))


def inputs(shape: tuple[int, ...], rows: int = 5) -> Tensor:
    """Random numbers, or random words."""
    if shape == WORDS:
        return torch.randint(VOCABULARY, (rows, *shape))
    return torch.randn(rows, *shape, dtype=torch.float64)
