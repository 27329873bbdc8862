"""Algorithm 1 from end to end on small data, and what happens when something goes wrong in the
middle.
"""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import clnp
from clnp.data import Task
from clnp.errors import CapacityError, CheckpointError, ConfigError, DataError, TrainingError
from clnp.learner.base import CHECKPOINT
from clnp.learner.task_run import TaskRun
from clnp.pruning.search import ThresholdSearch
from clnp.training.fit import Fit
from clnp.training.frozen_cache import FrozenActivations
from tests.clnp.cases import Residual, blobs, convert, mlp

QUICK: dict[str, Any] = {"epochs": 6, "lr": 0.01, "batch_size": 32, "l1": 1e-4, "margin": 0.02}
QUICK |= {"growth": None, "first_growth": None}  # a task may take the whole network


def learner(net: nn.Module | None = None, **settings: Any) -> clnp.Learner:
    torch.manual_seed(0)
    return clnp.Learner(
        convert(net or mlp([40, 30], dropout=0.1)), **{"head": "single", **QUICK, **settings}
    )


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize(
    "net", [lambda: mlp([40, 30], dropout=0.1), Residual], ids=["mlp", "residual"]
)
def test_tasks_are_learned_and_never_move(head: str, net: Any) -> None:
    lt = learner(net(), head=head, margin=0.05)
    for k in range(3):
        report = lt.learn(blobs(k))
        assert report.test > 0.9
        assert report.validation >= report.best_validation - 0.05 - 1e-9
        assert not report.transfer_only
    R = lt.accuracy_matrix
    assert R.shape == (3, 3)
    assert np.isnan(R[0, 1:]).all()
    for j in range(3):
        assert (R[j:, j] == R[j, j]).all()
    assert [v.identical for v in lt.verify()] == [True] * 3
    assert all(
        p.row == [lt.reports[j].test for j in range(k + 1)] for k, p in enumerate(lt.reports)
    )


def test_capacity_adds_up() -> None:
    lt = learner(head="multi")
    for k in range(3):
        lt.learn(blobs(k))
    for group in ("0", "3"):
        used = 0
        for k, report in enumerate(lt.reports):
            row = report.capacity[group]
            used += row["new"]
            assert row["used"] == used
            assert row["free"] == row["size"] - used
            assert row["reused"] == sum(report.reuse[group]) <= used - row["new"]
            assert len(report.reuse[group]) == k


def test_same_seed_same_bits_other_seed_other_bits() -> None:
    states = []
    for seed in (0, 0, 1):
        lt = learner(seed=seed)
        lt.learn(blobs(0))
        lt.learn(blobs(1))
        states.append(lt.model.state_dict())
    same = [
        all(torch.equal(a[k], b[k]) for k in a if a[k].shape == b[k].shape)
        for a, b in ((states[0], states[1]), (states[0], states[2]))
    ]
    assert same == [True, False]


def test_learning_does_not_touch_the_global_generator() -> None:
    lt = learner()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    lt.learn(blobs(0))
    assert torch.equal(torch.rand(3), expected)


def test_grid_takes_the_sparsest_within_the_margin_of_the_best() -> None:
    lt = learner(grid={"l1": [0.0, 1e-3], "lr": [1e-5, 0.01]}, margin=0.03)
    report = lt.learn(blobs(0))
    rows = report.grid
    assert len(rows) == 4
    best = max(row["validation"] for row in rows)
    assert report.best_validation == best
    for row in rows:
        assert row["candidate"] == (row["validation"] >= best - 0.03 - 1e-9)
        assert (row["kept"] >= 0) == row["candidate"]
    chosen = [row for row in rows if row["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["kept"] <= min(row["kept"] for row in rows if row["candidate"]) + 1
    assert not any(row["candidate"] for row in rows if row["lr"] == 1e-5), (
        "an untrained network is no candidate"
    )
    assert (report.lr, report.l1) == (chosen[0]["lr"], chosen[0]["l1"])


def test_grid_on_the_first_task_only() -> None:
    lt = learner(grid={"lr": [1e-5, 0.01]}, grid_first_only=True)
    first, second = lt.learn(blobs(0)), lt.learn(blobs(1))
    assert len(first.grid) == 2
    assert [row["lr"] for row in second.grid] == [first.lr] == [0.01]


def test_a_grid_of_one_equals_no_grid() -> None:
    a = learner().learn(blobs(0))
    b = learner(grid={"l1": [1e-4], "lr": [0.01]}).learn(blobs(0))
    assert {**a.to_json(), "seconds": 0} == {**b.to_json(), "seconds": 0}


def test_fine_tuning_trains_only_survivors_and_helps() -> None:
    plain = learner(margin=0.3, fine_tune=None).learn(blobs(0))
    lt = learner(margin=0.3, fine_tune={"epochs": 10, "lr": 0.005})
    tuned = lt.learn(blobs(0))
    assert tuned.capacity == plain.capacity
    assert tuned.validation > plain.validation
    lt.learn(blobs(1))
    assert all(v.identical for v in lt.verify())


@pytest.mark.parametrize("epochs", [1, 4, 5, 10])
def test_auto_fine_tuning_is_part_of_the_epochs(epochs: int) -> None:
    """Two fifths of them, on a cosine from the rate of training; none where they are few."""
    seen: list[dict[str, Any]] = []

    class Recorder(clnp.callbacks.Callback):
        def on_epoch_end(self, learner: Any, record: Any) -> None:
            seen.append(dict(record))

    torch.manual_seed(0)
    lt = clnp.Learner(convert(mlp([20])), epochs=epochs, callbacks=[Recorder()], progress_bar=False)
    report = lt.learn(blobs(0))
    tuned = [record["lr"] for record in seen if record.get("fine_tune")]
    count = 0 if epochs < 5 else round(0.4 * epochs)
    assert len(seen) == epochs
    assert tuned == pytest.approx(
        [lt.settings.lr / 2 * (1 + np.cos(np.pi * e / count)) for e in range(count)]
    )
    assert report.epochs == epochs - count
    assert bool(report.fine_tuned) == bool(count)
    assert lt.costs([80])[0]["examples"] == 80 * epochs


def test_l1_makes_networks_sparser() -> None:
    used = [
        learner(l1=alpha, epochs=15).learn(blobs(0)).capacity["0"]["used"] for alpha in (0.0, 3e-3)
    ]
    assert used[1] < used[0]


def test_single_head_refuses_a_task_when_full_before_any_work() -> None:
    lt = learner(mlp([6, 3]), margin=0.0, l1=0.0)
    while not lt.model.is_full:
        lt.learn(blobs(len(lt.reports)))
    learned = len(lt.reports)
    with pytest.raises(
        CapacityError, match=r"'2': expected free channels .*got none of 3; .*expand\(\)"
    ):
        lt.learn(blobs(learned))
    assert len(lt.reports) == learned
    assert 1 <= learned <= 3
    assert len(lt.model.tasks) == learned
    assert all(v.identical for v in lt.verify())
    lt.expand("2", 4)
    assert lt.learn(blobs(9)).task == learned
    assert all(v.identical for v in lt.verify())


def test_multi_head_learns_by_transfer_when_full_and_says_so() -> None:
    lt = learner(mlp([6]), head="multi", margin=0.0, l1=0.0)
    while not lt.model.is_full:
        assert not lt.learn(blobs(len(lt.reports))).transfer_only
    before = len(lt.reports)
    with pytest.warns(clnp.CapacityWarning, match="final-layer transfer"):
        report = lt.learn(blobs(before))
    assert report.transfer_only
    assert report.capacity["0"]["new"] == 0
    assert report.test > 0.4
    assert all(v.identical for v in lt.verify())


class Noisy(Dataset[Any]):
    """Draws another example each time, as an augmented data set does."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y, self.classes = x, y, list(range(3))

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.x[i] + 0.01 * torch.randn(self.x.shape[1:]), int(self.y[i])


def test_true_data_sets_are_learned_too() -> None:
    source = blobs(0)
    task = Task("noisy", Noisy(*source.train), source.validation, Noisy(*source.test), classes=3)
    a, b = learner(), learner()
    assert a.learn(task).test > 0.8
    b.learn(task)
    assert torch.equal(
        a.model.masked_layers["0"].active_weight, b.model.masked_layers["0"].active_weight
    )


def test_labels_of_true_data_sets_are_checked_when_seen() -> None:
    source = blobs(0)
    bad = Noisy(source.train[0], source.train[1] + 3)
    task = Task("noisy", bad, source.validation, source.test, classes=3)
    lt = learner()
    with pytest.raises(
        DataError, match=r"task 'noisy', train: expected labels from 0 to 2, .*classes=3, got 3"
    ):
        lt.learn(task)
    assert lt.learn(blobs(0)).task == 0


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_schedules_are_recorded(schedule: str) -> None:
    report = learner(schedule=schedule, epochs=10, fine_tune=None).learn(blobs(0))
    rates = [record["lr"] for record in report.history]
    expected = {
        "constant": [0.01] * 10,
        "step": [0.01] * 6 + [0.002] * 3 + [0.0004],
        "cosine": [0.005 * (1 + np.cos(np.pi * e / 10)) for e in range(10)],
    }
    assert rates == pytest.approx(expected[schedule])


def test_bf16_trains_in_bf16_and_keeps_float32_weights() -> None:
    lt = learner(dtype="bf16")
    assert lt.learn(blobs(0)).test > 0.8
    assert lt.model.masked_layers["0"].active_weight.dtype == torch.float32


def test_float64_networks() -> None:
    lt = learner(mlp([20]).double())
    assert lt.learn(blobs(0, dtype=torch.float64)).test > 0.8


def test_callbacks_hear_everything() -> None:
    heard: list[str] = []

    class Listener:
        def on_task_begin(self, lt: clnp.Learner, index: int, name: str, epochs: int) -> None:
            heard.append(f"begin {index} {name} {epochs}")

        def on_epoch_end(self, lt: clnp.Learner, record: dict[str, float]) -> None:
            heard.append(f"epoch {record['epoch']}")

        def on_batch_end(
            self, lt: clnp.Learner, loss: float, correct: float, seen: int, total: int
        ) -> None:
            assert 0 <= correct <= 1
            assert 0 < seen <= total == 80

        def on_task_end(self, lt: clnp.Learner, report: clnp.TaskReport) -> None:
            assert lt.reports[-1] is report
            heard.append("end")

    learner(epochs=2, callbacks=[Listener(), object()]).learn(blobs(0))
    assert heard == ["begin 0 blobs-0 2", "epoch 0", "epoch 1", "end"]


# Saving, loading, going on


def test_save_and_load_go_on_bit_for_bit(tmp_path: Path) -> None:
    whole, parts = learner(), learner()
    for k in range(3):
        whole.learn(blobs(k))
    parts.learn(blobs(0))
    parts.save(tmp_path / "a.safetensors")
    for k in (1, 2):
        parts = clnp.Learner.load(tmp_path / "a.safetensors", tasks=[blobs(j) for j in range(k)])
        parts.learn(blobs(k))
        parts.save(tmp_path / "a.safetensors")
    assert np.array_equal(whole.accuracy_matrix, parts.accuracy_matrix, equal_nan=True)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[key])
    assert [e.digest for e in whole.certificate.entries] == [
        e.digest for e in parts.certificate.entries
    ]
    assert all(v.identical for v in parts.verify())


def test_without_test_data_the_matrix_has_gaps(tmp_path: Path) -> None:
    lt = learner(head="multi")
    lt.learn(blobs(0))
    lt.save(tmp_path / "a.safetensors")
    again = clnp.Learner.load(tmp_path / "a.safetensors")
    again.learn(blobs(1))
    assert np.isnan(again.accuracy_matrix[1, 0])
    assert again.accuracy_matrix[1, 1] > 0
    again.save(tmp_path / "b.safetensors")
    assert np.isnan(clnp.Learner.load(tmp_path / "b.safetensors").accuracy_matrix[1, 0])


def test_loading_with_other_tasks_is_refused(tmp_path: Path) -> None:
    lt = learner()
    lt.learn(blobs(0))
    lt.save(tmp_path / "a.safetensors")
    with pytest.raises(
        DataError, match=r"^tasks\[0\]: expected the learned task 'blobs-0', got 'blobs-5'"
    ):
        clnp.Learner.load(tmp_path / "a.safetensors", tasks=[blobs(5)])
    with pytest.raises(DataError, match=r"^tasks: expected the 1 learned tasks, got 0"):
        clnp.Learner.load(tmp_path / "a.safetensors", tasks=[])


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("at", range(1, 9))
def test_an_interrupted_task_goes_on_where_it_was(tmp_path: Path, at: int) -> None:
    """Stopping after any epoch of a grid and starting again gives the bits of an undisturbed
    run.
    """
    settings = {"grid": {"lr": [0.01, 0.003]}, "epochs": 4, "margin": 0.1}
    whole = learner(**settings)
    whole.learn(blobs(0))
    whole.learn(blobs(1))

    class Stopper:
        epochs = 0

        def on_epoch_end(self, *_: Any) -> None:
            self.epochs += 1
            if self.epochs == at:
                raise StoppedError

    first = learner(checkpoint_dir=tmp_path, **settings)
    first._progress.interval = 0.0
    first.learn(blobs(0))
    first.callbacks.append(Stopper())
    with pytest.raises(StoppedError):
        first.learn(blobs(1))
    assert list((tmp_path / "progress").glob("point-*.safetensors"))

    trained: list[int] = []

    class Counter:
        def on_epoch_end(self, *_: Any) -> None:
            trained.append(1)

    second = clnp.Learner.load(
        tmp_path, tasks=[blobs(0)], checkpoint_dir=tmp_path, callbacks=[Counter()]
    )
    second.learn(blobs(1))
    assert len(trained) == 8 - at
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key])
    assert not (tmp_path / "progress").exists()


def test_progress_of_other_settings_or_data_is_not_used(tmp_path: Path) -> None:
    class Stopper:
        def on_epoch_end(self, lt: clnp.Learner, record: dict[str, float]) -> None:
            if record["epoch"] == 3:
                raise StoppedError

    lt = learner(checkpoint_dir=tmp_path, callbacks=[Stopper()])
    lt._progress.interval = 0.0
    with pytest.raises(StoppedError):
        lt.learn(blobs(0))
    lt.callbacks.clear()
    other = blobs(1)
    swapped = Task("blobs-0", other.train, other.validation, other.test)
    expected = learner().learn(swapped)
    assert {**lt.learn(swapped).to_json(), "seconds": 0} == {**expected.to_json(), "seconds": 0}


def test_damaged_progress_is_trained_again(tmp_path: Path) -> None:
    class Stopper:
        def on_epoch_end(self, lt: clnp.Learner, record: dict[str, float]) -> None:
            raise StoppedError

    lt = learner(checkpoint_dir=tmp_path, callbacks=[Stopper()], epochs=1)
    with pytest.raises(StoppedError):
        lt.learn(blobs(0))
    file = tmp_path / "progress" / "point-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    lt.callbacks.clear()
    assert lt.learn(blobs(0)).to_json()["history"] == learner(epochs=1).learn(blobs(0)).history


# Failures leave the learner as it was


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("when", ["on_task_begin", "on_batch_end", "on_epoch_end"])
def test_a_failed_task_is_as_if_it_had_never_begun(head: str, when: str) -> None:
    undisturbed, lt = (learner(head=head) for _ in range(2))
    for k in range(3):
        undisturbed.learn(blobs(k))

    class Failing:
        pass

    def fail(*_: Any) -> None:
        raise StoppedError

    setattr(Failing, when, fail)
    for k in range(3):
        lt.callbacks = [Failing()]
        with pytest.raises(StoppedError):
            lt.learn(blobs(k))
        lt.callbacks = []
        lt.learn(blobs(k))
    for key, value in undisturbed.model.state_dict().items():
        assert torch.equal(value, lt.model.state_dict()[key])


def test_nan_loss_stops_and_keeps_what_was_learned(tmp_path: Path) -> None:
    lt = learner(checkpoint_dir=tmp_path)
    lt.learn(blobs(0))
    before = (tmp_path / CHECKPOINT).read_bytes()
    bad = blobs(1)
    huge = Task(
        "huge", (torch.full_like(bad.train[0], 3e38), bad.train[1]), bad.validation, bad.test
    )
    with pytest.raises(TrainingError, match="epoch 1"):
        lt.learn(huge)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert all(v.identical for v in lt.verify())
    assert lt.learn(blobs(1)).test > 0.8


# Refusals before any work


def changed(split: str, change: Any) -> Task:
    task = blobs(0)
    parts = {name: getattr(task, name) for name in ("train", "validation", "test")}
    parts[split] = change(*parts[split])
    return Task("changed", **parts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: blobs(0).train, "expected a clnp.data.Task"),
        (lambda: blobs(0, inputs=13), r"expected .* shape \[12\], .*got \[13\]"),
        (
            lambda: blobs(0, dtype=torch.float64),
            "expected inputs of .*float32, .*got .*float64; convert",
        ),
        (
            lambda: changed("train", lambda x, y: (x, y + 3)),
            "train: expected labels from 0 to 2, as the head has, got 5",
        ),
        (lambda: changed("test", lambda x, y: (x, y + 3)), "test: expected labels .*, got 5"),
        (lambda: changed("train", lambda x, y: (x * torch.nan, y)), "(?i)nan"),
        (lambda: changed("validation", lambda x, y: (x[:0], y[:0])), "validation"),
        (lambda: changed("train", lambda x, y: (x[:-1], y)), "train"),
        (lambda: changed("train", lambda x, y: (x, y - 1)), "(?i)negative|label"),
        (lambda: changed("train", lambda x, y: (x, y.float())), "(?i)int"),
    ],
)
def test_bad_tasks(make: Any, message: str) -> None:
    lt = learner()
    with pytest.raises(DataError, match=message):
        lt.learn(make())
    assert not lt.model.in_task


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": -0.1}, r"^margin: expected a fraction in \[0, 1\) of accuracy, got -0\.1"),
        ({"margin": 1.0}, "margin"),
        ({"margin": float("nan")}, "margin"),
        ({"epochs": 0}, "epochs: .*got 0"),
        ({"epochs": 2.5}, "epochs"),
        ({"epochs": True}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"lr": "fast"}, "lr"),
        ({"l1": [1.0]}, r"^l1: expected 3 numbers, one for each of .*, got \[1\.0\]"),
        ({"l1": {"nowhere": 1.0}}, r"^l1: expected names of .*, got \['nowhere'\]"),
        ({"l1": -1.0}, "l1"),
        ({"head": "double"}, "head: .*got 'double'"),
        ({"seed": -1}, "seed"),
        ({"schedule": "warp"}, "schedule"),
        ({"search": "random"}, "search"),
        ({"sparsifier": "luck"}, "sparsifier"),
        ({"dtype": "fp8"}, "dtype"),
        ({"granularity": 0}, "granularity"),
        ({"grid": {"lr": []}}, "grid"),
        ({"grid_first_only": 1}, "grid_first_only"),
        ({"fine_tune": {"epoch": 1}}, "fine_tune: expected some of epochs, lr.*epoch"),
        ({"fine_tune": {"epochs": 0}}, "fine_tune epochs"),
        ({"fine_tune": {"l1": [1.0]}}, "fine_tune l1"),
        ({"fine_tune": 3}, "fine_tune"),
        (
            {"learning_rate": 1},
            r"^settings: expected some of .*'batch_size'.*, got \['learning_rate'\]",
        ),
        ({"device": "quantum"}, "^device: expected a torch device, got 'quantum'"),
        ({"device": "meta"}, "^device: expected 'cpu' or 'cuda', got 'meta'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        learner(**settings)


def test_a_model_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"clnp\.convert"):
        clnp.Learner(mlp([8]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_cuda_without_gpu_says_so() -> None:
    with pytest.raises(
        ConfigError, match=r"^device: expected 'cpu', for torch finds no GPU, got 'cuda'"
    ):
        learner(device="cuda")


def test_reports_are_json(tmp_path: Path) -> None:
    lt = learner(head="multi")
    lt.learn(blobs(0))
    report = lt.learn(blobs(1))
    assert clnp.TaskReport(**json.loads(json.dumps(report.to_json()))) == report


ANOTHER = (
    r"^checkpoint_dir: expected a folder without another learner, got .*checkpoint\.safetensors; "
    r"continue with .*load"
)


def test_a_folder_with_another_learner_is_refused(tmp_path: Path) -> None:
    learner(checkpoint_dir=tmp_path).learn(blobs(0))
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(ConfigError, match=ANOTHER):
        learner(checkpoint_dir=tmp_path)
    other = learner()
    other.save(tmp_path / "other")
    with pytest.raises(ConfigError, match=ANOTHER):
        clnp.Learner.load(tmp_path / "other", checkpoint_dir=tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    again = clnp.Learner.load(tmp_path, checkpoint_dir=tmp_path)
    assert len(again.reports) == 1


def test_unwritable_checkpoint_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lt = learner(checkpoint_dir=tmp_path / "file")
    with pytest.raises(CheckpointError, match="can't be written"):
        lt.learn(blobs(0))


def test_structured_sdp_as_sparsifier(tmp_path: Path) -> None:
    """Channels are ranked by their weights; a killed run resumes; earlier tasks do not move."""
    settings = {"sparsifier": "sdp", "epochs": 3, "margin": 0.05}
    whole = learner(**settings)
    for seed in range(2):
        whole.learn(blobs(seed))
    assert all(verdict.identical for verdict in whole.verify())

    class Stopper:
        epochs = 0

        def on_epoch_end(self, *_: Any) -> None:
            self.epochs += 1
            if self.epochs == 2:
                raise StoppedError

    first = learner(checkpoint_dir=tmp_path, **settings)
    first._progress.interval = 0.0
    first.learn(blobs(0))
    first.callbacks.append(Stopper())
    with pytest.raises(StoppedError):
        first.learn(blobs(1))
    second = clnp.Learner.load(tmp_path, tasks=[blobs(0)], checkpoint_dir=tmp_path)
    assert second.settings.sparsifier == "sdp"
    second.learn(blobs(1))
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"grid": {"l1": [1e-5, 1e-4]}},
        {"search": "global", "fine_tune": clnp.FineTune(epochs=1, rounds=2)},
        {"grid": {"l1": [1e-5, 1e-4]}, "stack": "on"},
        {"sparsifier": "sdp"},
    ],
    ids=["joint", "grid", "global", "stacked", "sdp"],
)
def test_what_a_task_needed_is_freed_without_the_garbage_collector(
    settings: dict[str, Any],
) -> None:
    lt = learner(mlp([40, 30]), **{**QUICK, "epochs": 2, "margin": 0.05, **settings})
    lt.learn(blobs(0))
    gc.collect()
    gc.disable()
    try:
        task = blobs(1)
        inputs = [weakref.ref(x) for x in (task.train[0], task.validation[0])]
        lt.learn(task)
        del task
        kinds = (TaskRun, Fit, FrozenActivations, ThresholdSearch)
        left = {type(o).__name__ for o in gc.get_objects() if type(o) in kinds}
    finally:
        gc.enable()
    assert not left
    assert not any(ref() is not None for ref in inputs)


def test_a_network_whose_tasks_are_not_the_learners_is_refused() -> None:
    """Its certificate would be of other tasks."""
    lt = clnp.Learner(convert(mlp([20])), epochs=1)
    before = {name: value.clone() for name, value in lt.model.state_dict().items()}
    lt.learn(blobs(0))
    with pytest.raises(CheckpointError, match="unlearn=True"):
        lt.model.load_state_dict(before)
    assert all(v.identical for v in lt.verify())
    lt.model.load_state_dict(before, unlearn=True)
    assert not lt.verify()[0].identical
    with pytest.raises(
        ConfigError, match=r"^model: expected 1 learned task\(s\), .*got 0; .*Learner\.load"
    ):
        lt.learn(blobs(1))
    lt = clnp.Learner(convert(mlp([20])), epochs=1)
    lt.learn(blobs(0))
    with pytest.raises(
        ConfigError, match=r"^model: expected 0 learned task\(s\), .*got 1; .*Learner\.load"
    ):
        clnp.Learner(lt.model, epochs=1).learn(blobs(1))
