"""The Triton kernels of partial_layer_norm, compiled ahead of time. As test_compiled.py."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels can't be compiled", allow_module_level=True)

from clnp_kernels.triton_kernels import _layer_norm, partial_layer_norm
from tests.clnp_kernels.triton import aot
from tests.clnp_kernels.triton.test_compiled import ARCHITECTURES, EVERY_TILE

KERNELS = (_layer_norm.normal_kernel, _layer_norm.slope_kernel, _layer_norm.sums_kernel)


@pytest.mark.parametrize("rms", [False, True] if EVERY_TILE else [False])
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float32] if EVERY_TILE else [torch.bfloat16]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES if EVERY_TILE else (90,))
def test_kernels(architecture: int, dtype: torch.dtype, rms: bool) -> None:
    """768 channels in three blocks, of which two are frozen."""
    x = torch.empty(4096, 768, dtype=dtype, device="meta")
    mean = torch.empty(0 if rms else 4096, device="meta")
    rstd, weight = torch.empty(4096, device="meta"), torch.empty(384, device="meta")
    norm, ends = partial_layer_norm, [192, 384, 768]

    def calls() -> None:
        norm.partial_layer_norm_fwd(x, ends, *[weight] * 4, 1e-5, rms, False, False)
        norm.partial_layer_norm_bwd(x[:, 384:], x, mean, rstd, weight, rms, True)

    binaries = aot.compile_launches(architecture, calls)
    assert len(binaries) == 3
    for binary in binaries:
        aot.check_launchable(binary)
        aot.check_offsets(binary)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.fn.__name__)
def test_one_binary_serves_all_sizes(kernel: object) -> None:
    """Else a wide and a narrow network could add up in different orders."""
    numbers = {"blocks", "rows", "C", "Ca", "Cf", "skipped", "x_row", "y_row", "grad_row", "tiles"}
    for parameter in kernel.params:
        assert parameter.do_not_specialize == (parameter.name in numbers), parameter.name
