"""The committed list of compiled kernels is whole."""

from benchmarks import compiled
from clnp_kernels import chooser
from clnp_kernels.tune.calls import runs

# They read vectors, tables and numbers of channels, not images.
SMALL = {"forward_numbers_kernel", "backward_numbers_kernel", "advance_kernel", "prepare_kernel"}


def test_every_operator_is_listed() -> None:
    offered = {name for name, offers in chooser.OFFERS.items() if "triton" in offers}
    rows = compiled.read()
    assert {int(row["architecture"]) for row in rows} == set(compiled.ARCHITECTURES)
    persistent = {int(r["architecture"]) for r in rows if r["kernel"] == "persistent_kernel"}
    assert persistent == {n for n in compiled.ARCHITECTURES if runs("triton-persistent", n)}
    for architecture in {row["architecture"] for row in rows}:
        for boundary in map(str, compiled.BOUNDARIES):
            here = [
                r for r in rows if (r["architecture"], r["boundary"]) == (architecture, boundary)
            ]
            assert {row["operator"] for row in here} == offered


def test_sixteen_bytes_at_once() -> None:
    """What was recorded: at multiples of 8 every pass over matrices or images loads 16 bytes."""
    rows = [r for r in compiled.read() if r["boundary"] != "1001"]
    narrow = {(r["operator"], r["kernel"]) for r in rows if r["widest"] not in ("16", "tma")}
    assert {kernel for _, kernel in narrow} <= SMALL
    assert not [row for row in rows if int(row["local"]) > 64]
