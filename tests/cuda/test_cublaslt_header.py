"""What csrc/cuda declares of cuBLASLt is what NVIDIA's header says, and its library takes it."""

import subprocess
from pathlib import Path

import pytest
import torch

from clnp_kernels import cublaslt, cuda_kernels, ops  # noqa: F401  (loads the libraries)
from tests.cuda.emulated import COMPILER, ROOT

# Where the headers are that it includes; triton brings some for its own launcher.
PACKAGES = Path(torch.__file__).parents[1]
COMPILERS = [*PACKAGES.glob("triton/backends/nvidia/include/crt/host_defines.h")]
HEADERS = [
    folder
    for pattern in ("nvidia/cu*/include", "nvidia/cublas/include")
    for folder in PACKAGES.glob(pattern)
    if (folder / "cublasLt.h").is_file()
]
# ours -> NVIDIA's
SAME = {
    **{"kSuccess": "CUBLAS_STATUS_SUCCESS", "kNotSupported": "CUBLAS_STATUS_NOT_SUPPORTED"},
    **{"kFloat": "CUDA_R_32F", "kHalf": "CUDA_R_16F", "kBFloat16": "CUDA_R_16BF"},
    **{"kCompute": "CUBLAS_COMPUTE_32F", "kComputeTf32": "CUBLAS_COMPUTE_32F_FAST_TF32"},
    **{"kPlain": "CUBLAS_OP_N", "kTransposed": "CUBLAS_OP_T"},
    **{"kTransA": "CUBLASLT_MATMUL_DESC_TRANSA", "kTransB": "CUBLASLT_MATMUL_DESC_TRANSB"},
    "kEpilogue": "CUBLASLT_MATMUL_DESC_EPILOGUE",
    "kBias": "CUBLASLT_MATMUL_DESC_BIAS_POINTER",
    "kWorkspace": "CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES",
    "kReduction": "CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK",
    **{f"kAlign{m}": f"CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_{m}_BYTES" for m in "ABCD"},
    **{"kDefault": "CUBLASLT_EPILOGUE_DEFAULT", "kRelu": "CUBLASLT_EPILOGUE_RELU"},
    **{"kWithBias": "CUBLASLT_EPILOGUE_BIAS", "kBiasGradient": "CUBLASLT_EPILOGUE_BGRADB"},
    "(kWithBias | kRelu)": "CUBLASLT_EPILOGUE_RELU_BIAS",
    "kInOrder": "CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE",
    "sizeof(Algorithm)": "sizeof(cublasLtMatmulAlgo_t)",
    "sizeof(Heuristic)": "sizeof(cublasLtMatmulHeuristicResult_t)",
    **{
        f"offsetof(Heuristic, {ours})": f"offsetof(cublasLtMatmulHeuristicResult_t, {theirs})"
        for ours, theirs in (("workspace", "workspaceSize"), ("status", "state"))
    },
}


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.skipif(not (HEADERS and COMPILERS), reason="no header of cuBLASLt")
def test_declarations(tmp_path: Path) -> None:
    # The types of 2 bytes need headers that no package but nvcc's brings; nothing here needs them.
    lines = ["#define __CUDA_FP16_H__", "#define __CUDA_BF16_H__", "struct __half;"]
    lines.append("struct __nv_bfloat16;")
    lines += ["#include <cublasLt.h>", f'#include "{ROOT}/csrc/cuda/cublaslt.h"']
    lines.append("using namespace clnp::cuda::lt;")
    for ours, theirs in SAME.items():
        lines.append(f"static_assert(int64_t({ours}) == int64_t({theirs}));")
    source = tmp_path / "same.cpp"
    source.write_text("\n".join(lines))
    folders = (HEADERS[0], COMPILERS[0].parents[1])
    headers = [part for folder in folders for part in ("-isystem", str(folder))]
    command = [str(COMPILER), "-std=c++17", "-fsyntax-only", *headers, str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.skipif(not cuda_kernels.available(), reason="the CUDA library is not built")
@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
def test_library_of_this_torch() -> None:
    """It is the one in use, and new enough; nothing of it needs a GPU so far."""
    name = cublaslt.library_of(torch.version.cuda or "")
    assert name in Path("/proc/self/maps").read_text()
    assert cublaslt.load() == ""
    assert torch.ops.clnp_kernels_cuda.cublaslt_load(name) >= 120000
