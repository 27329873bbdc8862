"""Every suite runs, with complete rows, plots and a page; a regression check between revisions."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import memory, plots, run
from benchmarks.cases import TINY
from benchmarks.op_cases import OPERATORS
from benchmarks.pages import __main__ as pages
from benchmarks.pages import suites
from benchmarks.record import COLUMNS, Row, read

ROOT = Path(__file__).parents[2]
FILLED = ("suite", "case", "batch", "dtype", "device", "contender", "quantity", "unit", "median")
FACTS = ("copy_gbs", "gemm_gflops", "date", "hardware", "threads", "python", "torch")
CONTENDERS = {"eager-masked", "dense", "slices", "ours"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of all suites at the smallest size."""
    folder = tmp_path_factory.mktemp("results")
    arguments = ["--size", "tiny", "--dtype", "fp32", "--out", str(folder)]
    assert run.main([*arguments, "--suite", *run.SUITES]) == 0
    return folder


def rows(results: Path, suite: str) -> list[Row]:
    return read(results / f"{suite}.csv")


@pytest.mark.parametrize("suite", [*run.SUITES])
def test_rows_are_complete(results: Path, suite: str) -> None:
    found = rows(results, suite)
    assert found
    for row in found:
        assert list(row) == list(COLUMNS)
        assert row["suite"] == suite
        assert all(row[name] != "" for name in (*FILLED, *FACTS))
        if row["quantity"] == "time":
            assert row["median"] > 0
        if row["quantity"] == "time" and suite != "end-to-end":
            assert row["p10"] <= row["p25"] <= row["median"] <= row["p75"] <= row["p90"]


@pytest.mark.parametrize("suite", ["step", "scaling"])
def test_every_contender_in_every_case(results: Path, suite: str) -> None:
    cases: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in rows(results, suite):
        key = (row["case"], row["batch"], row["fraction"])
        cases.setdefault(key, {})[row["contender"]] = row
    for key, contenders in cases.items():
        mlp = key[0] == "mlp x 0.05"
        assert set(contenders) == CONTENDERS | ({"ours cached"} if mlp else set())
        assert contenders["ours"]["ratio"] == 1
        for row in contenders.values():
            assert row["ratio"] == pytest.approx(row["median"] / contenders["ours"]["median"], 1e-4)
            assert 1 < row["bound"] < 3


def test_memory_is_within_its_bound(results: Path) -> None:
    assert memory.within_bound(rows(results, "memory"))


def test_sequences_have_every_task(results: Path) -> None:
    found = [row for row in rows(results, "end-to-end") if row["quantity"] == "total"]
    held: dict[object, list[float]] = {}
    for row in found:
        if row["contender"] == "ours":
            held.setdefault(row["case"], []).append(row["median"])
    free, limited = held.values()
    assert len(free) == len(limited) == TINY.tasks
    assert free[1] < free[0]  # frozen channels have no gradients and no moments
    assert limited[0] < free[0]  # nor have those that a task may not train


def test_inference_has_every_task(results: Path) -> None:
    found = [r for r in rows(results, "inference") if str(r["contender"]).startswith("task ")]
    works = [row["gflop"] for row in found if row["case"] == found[0]["case"]]
    assert len(works) == TINY.tasks
    assert works == sorted(works)


def test_plots(results: Path) -> None:
    drawn = plots.draw(results)
    assert [path.stem for path in drawn] == list(plots.PLOTS)
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in drawn)


def test_tables_have_the_ratios_of_the_files(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pages.main([str(results)]) == 0
    text = capsys.readouterr().out
    assert all(f"## {title}" in text for title, _ in suites.SECTIONS.values())
    (slices,) = (
        r for r in rows(results, "step") if r["contender"] == "slices" and r["case"][:3] == "mlp"
    )
    assert f"| against slices | {slices['ratio']:.2f} x |" in text


def test_tables_need_results(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected CSV files"):
        suites.text([tmp_path], tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fractions", "1"], "from 0 to below 1"),
        (["--tolerance", "-1"], "at least 0"),
        (["--device", "nonsense"], "--device nonsense"),
        (["--against", "HEAD", "--suite", "memory"], "expected of"),
        (["--against", "no-such-revision"], "no-such-revision"),
    ],
)
def test_nonsense_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        run.main(arguments)


def test_operators_under_pytest_benchmark() -> None:
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-k", "fp32 and 0.5 and ours"]
    done = subprocess.run(
        [*command, "--benchmark-disable", "-p", "no:cacheprovider"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(OPERATORS)} passed" in done.stdout
