"""The order of tables, the defaults, and what a failed check takes away."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from clnp_kernels.tune import stored
from clnp_kernels.tune.calls import ALIGNMENTS, OPERATORS, Call, call_of
from clnp_kernels.tune.cases import Layer, Maker
from clnp_kernels.tune.table import DEFAULTS, Check, Measured, Table, entry_from, nearest
from tests.clnp_kernels.tune.conftest import CARD

IMPLEMENTATIONS = ("triton", "cuda", "cublaslt")


def checks(reason: str = "", **but: str) -> list[Check]:
    """Checks of everything that pass; `but` gives the reasons of an implementation."""
    return [
        Check(operator, name, dtype, alignment, but.get(name, reason))
        for operator in OPERATORS
        for name in IMPLEMENTATIONS
        for dtype in ("float32", "bfloat16")
        for alignment in ALIGNMENTS
    ]


def call(operator: str, mode: str = "eager", width: int = 32, dtype: str = "float32") -> Call:
    side = 4 if "conv2d" in operator or "norm" in operator else 0
    layer = Layer(8, width // 2, width // 2, width // 2, width // 2, side)
    made = Maker(layer, getattr(torch, dtype), "meta")
    return call_of(operator, made.arguments(operator), mode)


def measured(call: Call, implementation: str, tile: tuple[int, ...] = ()) -> Measured:
    return Measured(call.key, implementation, tile, "2.00 times as fast", {"torch": [1.0]})


def test_nothing_serves_without_a_check() -> None:
    for table in (Table("e", []), Table("e", checks("wrong numbers"))):
        for operator in OPERATORS:
            for mode in ("eager", "graph"):
                assert table.choose(call(operator, mode)).implementation == "torch"


def test_defaults() -> None:
    table = Table("e", checks())
    served = {
        mode: {op for op in OPERATORS if table.choose(call(op, mode)).implementation != "torch"}
        for mode in ("eager", "graph")
    }
    norms = {"partial_layer_norm_fwd", "partial_layer_norm_bwd"}
    assert served["eager"] == {"adam_l1", "sgd_l1", "channel_activity"} | norms
    captured = {"masked_linear_fwd", "masked_linear_relu_grad", "masked_conv2d_relu_grad"}
    captured |= {"partial_batch_norm_fwd", "partial_batch_norm_bwd"}
    assert served["graph"] == served["eager"] | captured
    assert table.choose(call("adam_l1")).implementation == "cuda"
    assert "default by byte count, checked on this card" in table.choose(call("sgd_l1")).reason


def test_optimizers_serve_without_the_cuda_library() -> None:
    """A wheel without it has them in Triton."""
    found = [check for check in checks() if check.implementation == "triton"]
    table = Table("e", found, absent={"cuda": "the CUDA library is not built"})
    for operator in ("adam_l1", "sgd_l1", "channel_activity"):
        assert table.choose(call(operator)).implementation == "triton"
        assert table.choose(call(operator)).missed == ""


def test_limits_of_the_default_product() -> None:
    """Up to 4 GFLOP, with boundaries at multiples of 8; above that the vendor's without a copy."""
    table = Table("e", checks())
    small = call("masked_linear_fwd", "graph", 1024)
    assert table.choose(small).implementation == "triton"
    assert table.choose(small._replace(alignment=4)).implementation == "torch"
    assert table.choose(small._replace(alignment=8)).implementation == "triton"
    large = small._replace(flop=4_000_000_001)
    assert table.choose(large).implementation == "cublaslt"
    assert table.choose(large._replace(fraction=0.0)).implementation == "torch"
    assert table.choose(large._replace(mode="eager")).implementation == "torch"
    assert table.choose(small._replace(mode="eager")).implementation == "torch"


@pytest.mark.parametrize("operator", ["partial_layer_norm_fwd", "partial_layer_norm_bwd"])
def test_layer_norms_serve_where_blocks_are_frozen(operator: str) -> None:
    """Without frozen blocks, PyTorch's own is one pass too."""
    table = Table("e", checks())
    for mode in ("eager", "graph"):
        for alignment in ALIGNMENTS:
            frozen = call(operator, mode)._replace(alignment=alignment)
            assert table.choose(frozen).implementation == "triton"
            assert table.choose(frozen._replace(fraction=0.0)).implementation == "torch"


def test_the_next_implementation_serves_where_one_failed() -> None:
    table = Table("e", checks(cuda="crashed (SIGSEGV)"))
    assert table.choose(call("channel_activity")).implementation == "triton"
    failed = Table("e", checks("crashed (SIGSEGV)")).choose(call("channel_activity"))
    assert failed.implementation == "torch"
    assert "cuda failed its check: crashed (SIGSEGV)" in failed.missed


def test_a_failure_disables_that_alone() -> None:
    bad = Check("channel_activity", "cuda", "float32", 16, "two runs differ")
    table = Table("e", [check for check in checks() if check.kernel != bad.kernel] + [bad])
    one = call("channel_activity")
    assert one.alignment == 16
    assert table.choose(one).implementation == "triton"
    assert table.choose(one._replace(dtype="bfloat16")).implementation == "cuda"
    assert table.choose(one._replace(alignment=8)).implementation == "cuda"
    assert table.choose(call("adam_l1")).implementation == "cuda"
    assert table.failed(one, "cuda")
    assert not table.failed(one, "triton")


def test_an_unchecked_dtype_is_a_reason() -> None:
    table = Table("e", checks())
    chosen = table.choose(call("channel_activity", dtype="float64"))
    assert chosen.implementation == "torch"
    assert "not checked for float64" in chosen.missed
    mixed = call("adam_l1")._replace(dtype="float32+float64")
    assert "not checked for float64" in table.choose(mixed).missed
    absent = Table("e", [], (), {"cuda": "the CUDA library is not built"})
    assert "the CUDA library is not built" in absent.choose(call("adam_l1")).missed


def test_order_of_tables() -> None:
    """User, this GPU, its architecture, defaults, PyTorch."""
    one = call("masked_linear_dgrad")
    gpu, architecture = (("for this", [measured(one, "triton")]), ("for sm_90", []))
    user = measured(one, "torch")
    assert Table("e", checks()).choose(one).implementation == "torch"
    found = Table("e", checks(), (gpu, architecture)).choose(one)
    assert (found.implementation, found.reason) == (
        "triton",
        "measured for this: 2.00 times as fast",
    )
    assert Table("e", [*checks(), user], (gpu,)).choose(one).implementation == "torch"
    late = Table("e", checks(), (("for this", []), ("for sm_90", [measured(one, "triton")])))
    assert "sm_90" in late.choose(one).reason
    # a measured kernel that failed its check here is passed over
    failed = Table("e", checks("two runs differ"), (gpu,)).choose(one)
    assert failed.implementation == "torch"
    # a measurement is over a default
    activity = call("channel_activity")
    slow = Table("e", [*checks(), measured(activity, "torch")])
    assert slow.choose(activity).implementation == "torch"


def test_the_nearest_measurement_holds() -> None:
    one = call("masked_linear_dgrad", width=1024)
    near = call("masked_linear_dgrad", width=1440)
    far = call("masked_linear_dgrad", width=4096)
    rows = [measured(one, "triton", (64, 64, 32, 8, 3))]
    assert nearest(rows, near.key) is rows[0]
    assert nearest(rows, far.key) is None
    assert nearest(rows, near._replace(alignment=1).key) is None
    assert nearest(rows, near._replace(mode="graph").key) is None
    assert Table("e", [*checks(), *rows]).choose(near).tile == (64, 64, 32, 8, 3)


def test_digest_is_of_decisions() -> None:
    one = call("masked_linear_dgrad")
    base = Table("e", [*checks(), measured(one, "torch")]).digest
    again = Measured(one.key, "torch", (), "other words", {"torch": [2.0]})
    assert Table("e", [again, *reversed(checks())]).digest == base
    others = [
        Table("f", [*checks(), measured(one, "torch")]),
        Table("e", [*checks(), measured(one, "triton")]),
        Table("e", [*checks(), measured(one, "torch", (1, 2, 3, 4, 5))]),
        Table("e", [*checks(cuda="wrong"), measured(one, "torch")]),
        Table("e", [*checks(), measured(one, "torch")], (("sm", [measured(one, "triton")]),)),
    ]
    assert len({base, *(table.digest for table in others)}) == 6


def test_entries_survive_json() -> None:
    for entry in (*checks("no"), measured(call("masked_conv2d_fwd", "graph"), "triton", (1, 2))):
        again = entry_from(json.loads(json.dumps(asdict(entry))))
        assert again == entry
        assert again.name == entry.name


@pytest.mark.parametrize("data", [{}, {"key": []}, {"operator": "a"}, {"key": None, "tile": 3}])
def test_other_data_is_refused(data: dict[str, object]) -> None:
    with pytest.raises((LookupError, TypeError, ValueError)):
        entry_from(data)


def test_info_has_every_reason() -> None:
    one = call("masked_linear_wgrad")
    bad = Check("masked_linear_fwd", "triton", "bfloat16", 1, "no answer within 60 seconds")
    rest = [check for check in checks() if check.kernel != bad.kernel]
    table = Table("e", [*rest, bad, measured(one, "triton")])
    assert table.explain("adam_l1") == ("cuda", "default by byte count, checked on this card")
    name, reason = table.explain("masked_linear_fwd")
    assert name == "torch"
    assert "in a captured step triton: default by byte count, checked on this card" in reason
    assert "failed: triton, bfloat16, boundaries at multiples of 1: no answer within" in reason
    assert "measured on this card: triton in 1 of 1 cases" in table.explain(one.operator)[1]


def test_shipped_tables(tmp_path: Path) -> None:
    """That of the GPU, then that of the architecture, or of the next older one."""
    one = call("masked_linear_dgrad")
    for name in ("Interpreter_100", "sm_80", "sm_86", "sm_100"):
        entries = [asdict(measured(one, "triton")), asdict(Check("adam_l1", "cuda", "float32", 1))]
        (tmp_path / f"{name}.json").write_text(json.dumps({"entries": entries}))
    found = stored.shipped(CARD, tmp_path)
    assert [source for source, _ in found] == ["for Interpreter 100", "for sm 86"]
    assert all(len(rows) == 1 for _, rows in found)
    assert stored.shipped(CARD, tmp_path / "none") == []


def test_tables_of_the_package_are_whole() -> None:
    for file in stored.SHIPPED.glob("*.json"):
        rows = [entry_from(entry) for entry in json.loads(file.read_text())["entries"]]
        assert rows, file
    assert set(DEFAULTS) <= set(OPERATORS)
