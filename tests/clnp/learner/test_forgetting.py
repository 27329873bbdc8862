"""A learner forgets on request: results, files and certificate follow the network."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clnp
from clnp.cli.commands import main
from clnp.errors import CertificateError, ConfigError
from clnp.files.checkpoint import tensor_bytes
from clnp.learner.base import CHECKPOINT
from tests.clnp.cases import blobs, convert, mlp

QUICK: dict[str, Any] = {"epochs": 4, "lr": 0.01, "batch_size": 32, "l1": 1e-4, "margin": 0.05}


def learned(tasks: int = 4, **settings: Any) -> clnp.Learner:
    torch.manual_seed(0)
    learner = clnp.Learner(
        convert(mlp([40, 30])), **{**QUICK, "tasks_expected": tasks + 1, **settings}
    )
    for k in range(tasks):
        learner.learn(blobs(k))
    return learner


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_each_task_in_turn(head: str, order: list[int], tmp_path: Path) -> None:
    learner = learned(head=head, checkpoint_dir=tmp_path)
    x = torch.randn(20, 12)
    logits = {k: learner.model(x, task=k) for k in range(4)}
    kept = set(range(4))
    for task in order:
        gone = learner.forget(f"blobs-{task}" if task % 2 else task)
        assert gone.tasks == (task,)
        kept.remove(task)
        assert all(verdict.identical for verdict in learner.verify())
        assert [verdict.task for verdict in learner.verify()] == sorted(kept)
        file = tmp_path / CHECKPOINT
        assert b"blobs-%d" % task not in file.read_bytes()
        again = clnp.Learner.load(file)
        for one in (learner, again):
            for k in kept:
                assert torch.equal(one.model(x, task=k), logits[k])
                assert one.reports[k].name == f"blobs-{k}"
            assert len(one.reports) == max(kept, default=-1) + 1


def test_the_file_has_no_byte_of_the_task(tmp_path: Path) -> None:
    learner = learned(checkpoint_dir=tmp_path)
    probe = learner.certificate.probe(3)
    head = learner.model.head.get_buffer("weight_3")
    active = learner.model.masked_layers["0"].active_weight
    rows = active[learner.model.tasks[2].active["0"] :]
    numbers = [bytes(tensor_bytes(t)) for t in (*probe, *head, *rows)]
    before = (tmp_path / CHECKPOINT).read_bytes()
    assert all(number in before for number in numbers)
    gone = learner.forget(3)
    assert gone.read == {}
    after = (tmp_path / CHECKPOINT).read_bytes()
    assert not any(number in after for number in numbers)
    assert len(after) < len(before)


def test_capacity_comes_back_and_a_new_task_is_learned() -> None:
    learner = learned(3)
    free = dict(learner.model.left)
    gone = learner.forget(1, cascade=True)
    assert gone.tasks == (1, 2)
    for group, count in gone.freed.items():
        assert learner.model.left[group] == free[group] + count
    assert learner.reports[-1].capacity["0"]["free"] == learner.model.left["0"]
    report = learner.learn(blobs(7))
    assert report.task == 1
    assert report.test > 0.9
    assert all(verdict.identical for verdict in learner.verify())


def test_results_of_what_is_kept() -> None:
    """Accuracies of a forgotten task are gone from every row and table."""
    learner = learned(3)
    matrix = learner.accuracy_matrix
    learner.forget(1)
    assert [report.forgotten for report in learner.reports] == [False, True, False]
    now = learner.accuracy_matrix
    assert np.isnan(now[:, 1]).all()
    assert (now[2, [0, 2]] == matrix[2, [0, 2]]).all()
    assert math.isnan(learner.reports[2].inferred["entropy"]["task"][1])
    assert "blobs-1" not in str(learner)
    report = learner.learn(blobs(5))
    assert [math.isnan(value) for value in report.row] == [False, True, False, False]
    assert set(learner.predict(blobs(0).test[0]).task.tolist()) <= {0, 2, 3}


def test_the_page_leaves_it_out(tmp_path: Path) -> None:
    learner = learned(3)
    learner.forget("blobs-1")
    text = learner.report(tmp_path).read_text()
    assert "blobs-1" not in text
    assert "blobs-2" in text


def test_test_data_of_kept_tasks_are_given_back(tmp_path: Path) -> None:
    learner = learned(3, checkpoint_dir=tmp_path)
    learner.forget(1)
    again = clnp.Learner.load(tmp_path, [blobs(0), None, blobs(2)])
    row = again.learn(blobs(3)).row
    assert [math.isnan(value) for value in row] == [False, True, False, False]


def test_changed_weights_are_found_before_anything_is_forgotten() -> None:
    learner = learned(2)
    state = {k: v.clone() for k, v in learner.model.state_dict().items()}
    learner.model.masked_layers["0"].active_weight[0, 0] += 1
    with pytest.raises(CertificateError, match="blobs-0"):
        learner.forget(1)
    assert len(learner.reports) == 2
    learner.model.load_state_dict(state)
    learner.forget(1)
    assert len(learner.reports) == 1


def test_refusals() -> None:
    learner = learned(1)
    with pytest.raises(ConfigError, match=r"task: expected one of \['blobs-0'\], or an index"):
        learner.forget("blobs-9")
    with pytest.raises(ConfigError, match="task: expected the index of a learned task"):
        learner.forget(3)
    assert len(learner.reports) == 1


def run(*words: Any) -> int:
    return main([str(word) for word in words])


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    small = ("--epochs", 2, "--width", 40, "--examples", 100, "--fine-tune-epochs", 0)
    assert run("run", "permuted-digits", "--tasks", 3, *small, "--out", out) == 0
    names = [r["name"] for r in json.loads((out / "metrics.json").read_text())["reports"]]
    assert run("export", out, "--task", 1, "--format", "safetensors") == 0
    assert run("report", out) == 0
    capsys.readouterr()
    assert run("forget", out, "--task", names[1]) == 0
    text = capsys.readouterr().out
    assert f"forgotten: task 2 {names[1]}" in text
    assert f"stay, read by task 3 {names[2]}" in text
    for file in ("metrics.json", "accuracy.csv", "report.html", CHECKPOINT):
        content = (out / file).read_bytes()
        assert names[1].encode() not in content
        assert names[2].encode() in content
    assert not (out / "task-1.safetensors").exists()
    assert run("verify", out) == 0
    assert "2/2" in capsys.readouterr().out
    assert run("report", out) == 0
    assert run("export", out, "--task", 2, "--format", "safetensors") == 0
    capsys.readouterr()
    assert run("forget", out, "--task", 0, "--cascade") == 0
    assert "nothing of it is left" in capsys.readouterr().out
    assert not (out / "metrics.json").exists()
    assert run("forget", out, "--task", 0) == 2


def test_command_line_on_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learned(3).save(path := tmp_path / "learner.safetensors")
    assert run("forget", path, "--task", 2) == 0
    assert "free again" in capsys.readouterr().out
    assert [report.name for report in clnp.Learner.load(path).reports] == ["blobs-0", "blobs-1"]
