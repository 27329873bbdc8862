"""Definition of `dropout`."""

import torch
from torch import Tensor

from .channel_activity import accumulator

# Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011).
MULTIPLIERS, STEPS, ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10
WORD = 0xFFFFFFFF
BLOCKS = 16  # of four words, of which each serves two elements
PARTS = 1 << 16


def dropout(x: Tensor, seed: Tensor, p: float) -> Tensor:
    """`x` with elements zeroed with probability `p`, the others divided by `1 - p`."""
    threshold = min(round(p * PARTS), PARTS - 1)
    stays = random_bits(int(seed), x.numel(), x.device).view(x.shape) >= threshold
    wide = x.contiguous().to(accumulator(x.dtype))
    return torch.where(stays, wide * (1 / (1 - threshold / PARTS)), 0.0).to(x.dtype)


def random_bits(seed: int, count: int, device: torch.device) -> Tensor:
    """Numbers of 16 bits, int64 [count]. Of every 128 the first 16 are the low halves of the first
    words of 16 blocks, the next 16 their high halves, then follow the second words.
    """
    groups = -(-count // (8 * BLOCKS))
    block = torch.arange(groups * BLOCKS, device=device).view(groups, BLOCKS)
    zero = torch.zeros_like(block)
    words, key = [block & WORD, block >> 32, zero, zero], [seed & WORD, seed >> 32 & WORD]
    for _ in range(ROUNDS):
        high_a, low_a = _product(words[0], MULTIPLIERS[0])
        high_b, low_b = _product(words[2], MULTIPLIERS[1])
        words = [high_b ^ words[1] ^ key[0], low_b, high_a ^ words[3] ^ key[1], low_a]
        key = [(part + step) & WORD for part, step in zip(key, STEPS, strict=True)]
    halves = [half for word in words for half in (word & (PARTS - 1), word >> 16)]
    return torch.stack(halves, 1).flatten()[:count]


def _product(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low word of a product of words."""
    return ((a >> 16) * b + ((a & (PARTS - 1)) * b >> 16)) >> 16, a * b & WORD
