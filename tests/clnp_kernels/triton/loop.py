"""The smallest kernel with a loop: whether triton's interpreter works at all."""

import torch
import triton
import triton.language as tl


@triton.jit
def count_kernel(y, n):
    """Write n, counted one by one."""
    total = 0
    for _ in range(n):
        total += 1
    tl.store(y, total)


if __name__ == "__main__":
    y = torch.zeros(1, dtype=torch.int32)
    count_kernel[(1,)](y, 3)
    assert y.item() == 3
