"""`clnp tune`: times, the decision, memory, time, Ctrl-C; with an interpreted GPU and its clock."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clnp_kernels import chooser
from clnp_kernels.tune import __main__ as command
from clnp_kernels.tune import environment, first_use, measure
from clnp_kernels.tune.cases import Layer
from clnp_kernels.tune.plan import Job, layers_of_file, measurements
from clnp_kernels.tune.stored import open_store
from clnp_kernels.tune.table import Measured
from tests.clnp_kernels.tune.conftest import CARD

LAYER = Layer(16, 8, 8, 8, 8)
RELU_GRAD = Job("masked_linear_relu_grad", LAYER, "float32", "eager")
AGAIN = measure.AGAIN


@pytest.mark.parametrize(
    ("times", "default", "best"),
    [
        ({"torch": 1.0, "triton": 0.9}, "torch", "triton"),
        ({"torch": 1.0, "triton": 0.98}, "torch", "torch"),  # within 3 %
        ({"torch": 1.0, "triton": 0.9, AGAIN: 1.06}, "torch", "torch"),  # within twice the noise
        ({"torch": 1.0, "triton": 0.9, AGAIN: 1.04}, "torch", "triton"),
        ({"torch": 1.0, "triton": 1.01}, "triton", "triton"),  # a tie stays with the default
        ({"torch": 1.0, "triton": 1.2}, "triton", "torch"),
        ({"torch": 1.0, "triton": 0.8, "cuda": 0.7}, "torch", "cuda"),
        ({"torch": 1.0, "triton": 0.8, "triton 64x64x32x4x3": 0.7}, "torch", "triton 64x64x32x4x3"),
        ({"torch": 1.0, "dense": 0.1}, "torch", "torch"),  # for information
    ],
)
def test_the_decision(times: dict[str, float], default: str, best: str) -> None:
    rounds = {name: [9 * ms, ms, ms] for name, ms in {AGAIN: times["torch"], **times}.items()}
    chosen, reason = measure.decide(rounds, default)
    assert chosen == best
    assert all(name in reason for name in times if name != AGAIN)


def tune(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch, times: dict[str, float], **faults: str
) -> list[str]:
    """Measure with these times; what was said."""
    said: list[str] = []
    monkeypatch.setenv("CLNP_TEST_TIMES", json.dumps(times))
    monkeypatch.setenv("CLNP_TEST_FAULTS", json.dumps(faults))
    command.tune(CARD, jobs, False, said.append)
    return said


def rows() -> list[Measured]:
    return [entry for entry in open_store(CARD).read() if isinstance(entry, Measured)]


def test_measured_by_its_clock_and_kept(
    verdicts: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    said = tune([RELU_GRAD], monkeypatch, {"torch": 1.0, "triton": 0.5})
    (row,) = rows()
    assert (row.implementation, row.key) == ("triton", RELU_GRAD.key)
    assert row.times == {"torch": [1.0] * 7, "triton": [0.5] * 7, AGAIN: [1.0] * 7}
    assert "2.00 times as fast as torch" in row.reason
    assert "1 kinds of calls are measured; our kernels serve in 1 of them" in said[-1]
    table = first_use.qualify(card=CARD)
    assert table is not None
    assert "measured on this card: triton in 1 of 1 cases" in table.explain(RELU_GRAD.operator)[1]
    # what is known is not measured again
    assert "measuring 0 kinds of calls, 1 are known" in tune([RELU_GRAD], monkeypatch, {})[0]


def test_a_wrong_kernel_is_not_measured(
    verdicts: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fast: nor one that passed its check and goes wrong at this size."""
    pytest.importorskip("triton")
    jobs = [RELU_GRAD, Job("masked_linear_wgrad", LAYER, "float32", "graph")]
    faults = {"masked_linear_relu_grad": "wrong", "masked_linear_wgrad": "raise"}
    tune(jobs, monkeypatch, {"torch": 1.0, "triton": 0.01}, **faults)
    for row in rows():
        assert row.implementation == "torch"
        assert "triton" not in row.times
    reasons = {row.key.operator: row.reason for row in rows()}
    assert "triton dropped: wrong numbers" in reasons["masked_linear_relu_grad"]
    assert "triton dropped: RuntimeError: no compiler" in reasons["masked_linear_wgrad"]


def test_memory_that_runs_out(verdicts: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    large = Job("masked_linear_relu_grad", Layer(256, 8, 8, 8, 8), "float32", "eager")
    said = tune([large], monkeypatch, {"triton": 0.5}, masked_linear_relu_grad="memory")
    assert [f"trying {n} rows" in line for n, line in zip((128, 64, 32), said[1:], strict=False)]
    assert sum("memory ran out, trying" in line for line in said) == 3
    (row,) = rows()
    assert row.key.sizes == (10, 8)  # 32 rows, 16 channels


def test_a_crash_ends_one_measurement(verdicts: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    crashes = Job("masked_linear_wgrad", LAYER, "float32", "eager")
    said = tune([crashes, RELU_GRAD], monkeypatch, {}, masked_linear_wgrad="crash")
    assert any("not measured: crashed (SIGSEGV)" in line for line in said)
    assert [row.key.operator for row in rows()] == ["masked_linear_relu_grad"]


def test_time_is_up(verdicts: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "QUICK", -1.0)
    said = tune([RELU_GRAD], monkeypatch, {})
    assert "time is up, 1 are left; call again to go on" in said
    assert rows() == []


STOPPED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
from clnp_kernels import ops
from clnp_kernels.tune import environment, first_use, __main__ as command, plan
from clnp_kernels.tune.cases import Layer
from tests.clnp_kernels.tune.conftest import CARD
import torch
torch.cuda.is_available, torch.backends.cudnn.version = lambda: True, lambda: 90100
environment.card_of = lambda device: CARD
first_use.jobs_of_check = lambda: []
jobs = [plan.Job(name, Layer(16, 8, 8, 8, 8), "float32", "eager")
        for name in ("masked_linear_relu_grad", "masked_linear_wgrad")]
command.measurements = lambda layers, full: jobs
sys.exit(command.main([]))
"""


def test_ctrl_c_keeps_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 90100)  # as in that process
    faults = {"masked_linear_wgrad": "hang"}
    variables = {**os.environ, "CLNP_TEST_FAULTS": json.dumps(faults)}
    process = subprocess.Popen([sys.executable, "-c", STOPPED], env=variables,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "relu_grad float32 eager" in line:
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130, rest
    assert "stopped; what is measured is kept in" in rest
    assert "Traceback" not in rest
    assert [row.key.operator for row in rows()] == ["masked_linear_relu_grad"]


def test_what_can_not_be_tuned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 2
    assert "torch finds no GPU" in capsys.readouterr().err
    assert command.main(["--device", "cpu"]) == 2
    assert "--device: expected a CUDA device, got cpu" in capsys.readouterr().err
    monkeypatch.setenv("CLNP_TUNE", "off")
    assert command.main([]) == 2
    assert "CLNP_TUNE: expected auto or require, got off" in capsys.readouterr().err


def test_the_whole_command(
    verdicts: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """With a network's file and a table to take away."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 90100)
    monkeypatch.setattr(environment, "card_of", lambda device: CARD)
    measured: list[Job] = []

    def answer(self: Any, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        job = next(job for job in jobs if job.message(every_tile=False) == message)
        measured.append(job)
        return {"entry": asdict(Measured(job.key, "triton", (), "fast", {"torch": [1.0]}))}

    monkeypatch.setattr(command.Worker, "answer", answer)
    model, out = tmp_path / "model.safetensors", tmp_path / "out" / "table.json"
    shapes = {"a.active_weight": (8, 8), "a.free_weight": (24, 64), "a.free_bias": (24,)}
    shapes |= {"b.weight": (16, 4, 3, 3)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, model)
    jobs = measurements(layers_of_file(model), full=False)
    assert command.main(["--model", str(model), "--out", str(out)]) == 0
    assert measured == jobs
    assert {(job.layer.outputs, job.layer.inputs, job.layer.side) for job in jobs} == {
        (32, 64, 0), (16, 4, 16),
    }  # fmt: skip
    data = json.loads(out.read_text())
    assert len(data["entries"]) == len(jobs) + len(verdicts)
    assert data["facts"]["gpu"] == CARD.name
    monkeypatch.setenv("CLNP_KERNEL_TABLE", str(out))
    monkeypatch.setenv("CLNP_CACHE_DIR", str(tmp_path / "other"))
    first_use.forget()
    table = first_use.qualify(card=CARD)
    assert table is not None
    assert len(table.measured) == len(jobs)
    assert chooser.table_of(None) is table


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x02" + b"\0" * 7 + b"[]"])
def test_a_file_that_is_no_network(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "network.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="--model: expected"):
        layers_of_file(file)


def test_the_commands_of_clnp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    """`clnp tune`, and `clnp run --tune`, which says what is wrong before it works."""
    from clnp.cli import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "run"
    for words in (
        ["tune"],
        ["run", "permuted-digits", "--tasks", "1", "--tune", "--out", str(out)],
    ):
        assert main(words) == 2
        assert "clnp: error: --device: torch finds no GPU" in capsys.readouterr().err
    assert not (out / "metrics.json").exists()
    monkeypatch.setattr(command, "command", lambda options, *_: options.full and 7)
    assert main(["tune", "--full"]) == 7
