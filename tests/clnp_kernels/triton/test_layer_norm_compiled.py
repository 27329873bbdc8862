"""The Triton kernels of partial_layer_norm, compiled ahead of time. As test_compiled.py."""

import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels can't be compiled", allow_module_level=True)

from clnp_kernels.triton_kernels import _launch, _layer_norm, partial_layer_norm
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


def launches(n: int, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each launch for blocks that end at n, 2 n and 4 n."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(_launch, "launch", lambda *args: seen.append(args[-1]))
    x = torch.empty(64, 4 * n, dtype=torch.bfloat16, device="meta")
    rstd, weight = torch.empty(64, device="meta"), torch.empty(2 * n, device="meta")
    norm = partial_layer_norm
    norm.partial_layer_norm_fwd(x, [n, 2 * n, 4 * n], *[weight] * 4, 1e-5, False, False, False)
    norm.partial_layer_norm_bwd(x[:, 2 * n :], x, rstd, rstd, weight, False, True)
    return seen


def test_one_binary_for_an_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boundaries at multiples of 8 are told apart from odd ones, and from nothing else."""
    units = {
        n: [launch["ALIGN"] for launch in launches(n, monkeypatch)] for n in (1000, 1008, 1001)
    }
    assert units[1000] == units[1008] == [8] * 3
    assert max(units[1001]) < 8
    assert [launches(n, monkeypatch)[0]["C"] for n in (1000, 1001)] == [4000 // 8, 4004]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.fn.__name__)
def test_one_binary_serves_all_sizes(kernel: object) -> None:
    """Else a wide and a narrow network could add up in different orders."""
    numbers = {"blocks", "rows", "C", "Ca", "Cf", "skipped", "x_row", "y_row", "grad_row", "tiles"}
    for parameter in kernel.params:
        assert parameter.do_not_specialize == (parameter.name in numbers), parameter.name
