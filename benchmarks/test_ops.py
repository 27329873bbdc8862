"""Single operators under pytest-benchmark: ``pytest benchmarks``.

In one process, so for comparing revisions of one operator; ``benchmarks.run --suite ops`` compares
contenders.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.op_cases import LAYERS, OPTIMIZERS, OpCase, check, contenders, make

pytest.importorskip("pytest_benchmark", reason="needs pip install pytest-benchmark")

SIZES: dict[str, tuple[int, ...]] = {
    "masked_linear": (1024, 1024),
    "masked_conv2d": (64, 64, 3, 1, 16),
    "partial_batch_norm": (64, 16),
    "channel_activity": (64, 16),
    "dropout": (1024,),
    "adam_l1": (1024, 1024),
    "sgd_l1": (1024, 1024),
}
CASES = [
    OpCase(op, sizes, 64, fraction, dtype)
    for op, sizes in SIZES.items()
    for fraction in ((0.0, 0.5) if op in LAYERS else (0.5,))
    for dtype in (("fp32",) if op in OPTIMIZERS else ("fp32", "bf16"))
]
PAIRS = [(case, name) for case in CASES for name in contenders(case, compiled=False)]


@pytest.mark.parametrize(
    ("case", "name"), PAIRS, ids=[f"{c.name}, {c.dtype}, {c.fraction}, {n}" for c, n in PAIRS]
)
def test_op(case: OpCase, name: str, benchmark: Any) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = replace(case, device=device)
    check(case)
    step = make(case, name)

    def synchronous() -> None:
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{case.name}, {case.dtype}, {case.fraction} frozen"
    benchmark(synchronous)
