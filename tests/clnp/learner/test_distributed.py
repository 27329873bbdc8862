"""Two processes that train one network on gloo, against one process that does it alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import clnp
from clnp.errors import ConfigError, DataError, TrainingError
from tests.clnp.learner import distributed_cases as cases
from tests.clnp.parallel.ranks import together

LONG = bool(os.environ.get("CLNP_LONG_TESTS"))
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)


def assert_same_bits(results: list[dict[str, Any]]) -> None:
    first, *others = results
    for other in others:
        assert other["structure"] == first["structure"]
        assert other["reports"] == first["reports"]
        assert other["numbers"].keys() == first["numbers"].keys()
        for name, value in first["numbers"].items():
            assert np.array_equal(other["numbers"][name], value), name


def assert_close(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Equal but for the order of float64 sums: 1e-10 of each tensor's largest number."""
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name].shape == value.shape, name
        if value.size:
            assert np.abs(got[name] - value).max() <= 1e-10 * max(np.abs(value).max(), 1), name


@pytest.mark.parametrize(
    ("net", "ranks", "settings"),
    [
        ("mlp", 2, {"grid": {"l1": [1e-4, 1e-3]}, "fine_tune": {"epochs": 1, "lr": 1e-3}}),
        ("norms", 2, {}),
        ("norms", 3, {"batch_size": 29, "epochs": 1}),  # 60 = 29 + 29 + 2: a rank has nothing to do
        pytest.param(
            *("residual", 2, {"sparsifier": "sdp", "head": "single"}),
            marks=pytest.mark.skipif(not LONG, reason="CLNP_LONG_TESTS=1: seconds more"),
        ),
    ],
    ids=["mlp", "norms", "empty-share", "sdp"],
)
def test_ranks_learn_what_one_process_learns(
    net: str, ranks: int, settings: dict[str, Any]
) -> None:
    results = together(cases.learned, net, 2, None, settings, ranks=ranks)
    alone = cases.learned(net, 2, None, settings)
    assert_same_bits(results)
    for result in results:
        assert result["identical"] == [True, True]
        assert result["structure"] == alone["structure"]
        assert_close(result["numbers"], alone["numbers"])
        for own, wanted in zip(result["reports"], alone["reports"], strict=True):
            for key in ("row", "validation", "validation_before", "capacity", "reuse", "lr", "l1"):
                assert own[key] == wanted[key], key
            assert own["thresholds"] == pytest.approx(wanted["thresholds"], rel=1e-9)
            for a, b in zip(own["history"], wanted["history"], strict=True):
                assert a == pytest.approx(b, rel=1e-9)


def test_every_rank_draws_its_own_dropout() -> None:
    first, second = together(cases.masks)
    assert first.shape == second.shape
    assert not np.array_equal(first, second)


def test_a_lost_rank_ends_in_an_error_and_the_run_resumes(tmp_path: Path) -> None:
    """80 examples in batches of 17 are 5 steps: three epochs of a task are 15."""
    undisturbed = together(cases.learned, "mlp", 2, tmp_path / "undisturbed", {})
    error, code = together(cases.killed, "mlp", tmp_path / "killed", 15 + 8)
    assert code == -signal.SIGKILL
    assert isinstance(error, TrainingError)
    assert "lost another process" in str(error)
    assert (tmp_path / "killed" / "progress" / "point-0.safetensors").exists()
    resumed = together(cases.learned, "mlp", 2, tmp_path / "killed", {})
    assert_same_bits([*undisturbed, *resumed])
    names = {path.name for path in (tmp_path / "killed").iterdir()}
    assert names == {"checkpoint.safetensors"}
    assert [path.name for path in tmp_path.glob("*.html")] == ["page-of-rank-0.html"]


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("network", TrainingError, "the network of rank 1 differs"),
        ("settings", TrainingError, "the settings of rank 1 differs"),
        ("data", TrainingError, "task 0 of rank 1 differs"),
        ("weights", TrainingError, "the network's state of rank 1 differs"),
        (
            "batch",
            ConfigError,
            "batch_size: expected at least 2, one example for each process, got 1",
        ),
    ],
)
def test_ranks_that_do_not_fit_are_refused(what: str, error: type, words: str) -> None:
    for raised in together(cases.with_other, what):
        assert isinstance(raised, error), raised
        assert words in str(raised)


def test_what_one_rank_refuses_all_refuse() -> None:
    first, second = together(cases.with_other, "shape")
    assert isinstance(second, DataError)
    assert isinstance(first, TrainingError)
    assert "failed on rank 1: DataError" in str(first)


def test_the_first_rank_alone_tells_callbacks() -> None:
    assert together(cases.told) == [[0, 0], []]


@pytest.mark.parametrize("sizes", [[4, 3], [7, 0]])
def test_batch_norm_over_all_ranks(sizes: list[int]) -> None:
    first, second = together(cases.normalised, sizes)
    alone = cases.normalised(sizes)
    joined = {name: np.concatenate([first[name], second[name]]) for name in ("y", "x.grad")}
    for name in ("weight.grad", "bias.grad"):
        joined[name] = first[name] + second[name]
    for name in ("mean", "var"):
        assert np.array_equal(first[name], second[name])
        joined[name] = first[name]
    assert_close(joined, {name: alone[name] for name in joined})


@pytest.mark.parametrize("broadcast_buffers", [False, True])
def test_a_loop_of_ones_own_in_distributed_data_parallel(broadcast_buffers: bool) -> None:
    first, second = together(cases.own_loop, broadcast_buffers)
    alone = cases.own_loop(broadcast_buffers)
    for name, value in first["numbers"].items():
        assert np.array_equal(second["numbers"][name], value), name
    assert_close(first["numbers"], alone["numbers"])
    for name, value in first["before"].items():
        if ".active_" in name:  # the frozen corner of a larger one by now
            corner = tuple(slice(size) for size in value.shape)
            assert np.array_equal(first["numbers"][name][corner], value), name


@pytest.mark.parametrize("when", ["before", "begin", "in task"])
def test_sharded_parameters_are_refused(when: str) -> None:
    for raised in together(cases.sharded, when):
        assert isinstance(raised, ConfigError), raised
        assert "got a DTensor" in str(raised)


def test_distributed_needs_a_process_group() -> None:
    with pytest.raises(ConfigError, match="init_process_group"):
        clnp.Learner(cases.converted("mlp"), distributed=True)


RUN = ["--tasks", "2", "--epochs", "2", "--width", "24", "--threads", "1"]


def test_the_command_line_in_several_processes(tmp_path: Path) -> None:
    words = ["run", "permuted-digits", "--out", str(tmp_path / "run"), *RUN]
    (code, printed), (other_code, other_printed) = together(cases.command, tmp_path, words)
    assert (code, other_code) == (0, 0), printed + other_printed
    assert "certificate" in printed
    assert other_printed == ""
    learner = clnp.Learner.load(tmp_path / "run")
    assert len(learner.reports) == 2
    assert all(verdict.identical for verdict in learner.verify())
    again = together(cases.command, tmp_path, words)
    assert [code for code, _ in again] == [2, 2]
    assert "holds a run" in again[0][1]


@pytest.mark.skipif(not LONG, reason="CLNP_LONG_TESTS=1: torchrun imports torch three times")
def test_torchrun_starts_a_killed_run_again(tmp_path: Path) -> None:
    """A worker kills itself once; torchrun restarts both, and the run ends as if nothing was."""
    kill = tmp_path / "kill.py"
    kill.write_text(
        "import os, signal, sys\n"
        "from clnp import cli\n"
        "from clnp.training.fit import Fit\n"
        f"marker, steps, whole = {str(tmp_path / 'killed')!r}, 0, Fit._step\n"
        "def step(self, *arguments):\n"
        "    global steps\n"
        "    steps += 1\n"
        "    if steps == 40 and os.environ['RANK'] == '1' and not os.path.exists(marker):\n"
        "        open(marker, 'w').close()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return whole(self, *arguments)\n"
        "Fit._step = step\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    for name, program in (("calm", ["-m", "clnp"]), ("killed-run", [str(kill)])):
        words = ["run", "permuted-digits", "--resume", "--out", str(tmp_path / name), *RUN]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*torchrun, "--nproc-per-node=2", "--max-restarts=1", *program, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    for file in ("metrics.json", "accuracy.csv", "capacity.csv", "history.csv"):
        assert (tmp_path / "calm" / file).read_bytes() == (
            tmp_path / "killed-run" / file
        ).read_bytes()
    tensors = [clnp.Learner.load(tmp_path / n).model.state_dict() for n in ("calm", "killed-run")]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
