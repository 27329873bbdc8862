"""Errors that can be known before training come before it: nothing is trained or written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from clnp import methods, models
from clnp.cli import run_folder
from clnp.cli.run_folder import RunFolder
from clnp.learner.learner import Learner
from tests.clnp.commands import clnp

Image = pytest.importorskip("PIL.Image")

SIDE = 8
SMALL = ["--threads", "1", "--epochs", "1", "--batch-size", "16", "--margin", "0.5"]
NET = ["--net", "mlp", "--width", "8", "--depth", "1", "--l1", "0", *SMALL]


def folder_of(root: Path, classes: tuple[str, ...], *, number: int = 6, bits: int = 8) -> Path:
    """root/{train,test}/CLASS/k.png, brighter from class to class."""
    for split in ("train", "test"):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for k in range(number):
                value = (label + 1) * (2**bits - 1) // len(classes)
                pixels = np.full((SIDE, SIDE), value, np.uint8 if bits == 8 else np.uint16)
                Image.fromarray(pixels).save(root / split / name / f"{k}.png")
    return root


def arrays_of(path: Path, classes: int, **more: np.ndarray) -> Path:
    y = np.arange(6 * classes) % classes
    x = np.eye(5, dtype=np.float32)[y]
    np.savez(path, **{"x_train": x, "y_train": y, "x_test": x, "y_test": y, **more})
    return path


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return (
        folder_of(tmp_path / "animals", ("cat", "dog")),
        folder_of(tmp_path / "fruit", ("apple", "fig")),
    )


@pytest.fixture(autouse=True)
def untrained(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Training at all fails a test that isn't marked to train."""
    if request.node.get_closest_marker("usefixtures"):
        return
    for cls in (Learner, methods.learner.MethodLearner):
        for name in ("learn", *(["adopt"] if cls is Learner else [])):
            monkeypatch.setattr(cls, name, lambda *_: pytest.fail("a task was trained"))


def assert_refused(capsys, tmp_path: Path, words: list[object], *parts: str) -> None:
    before = set(tmp_path.rglob("*"))
    code, out, err = clnp(capsys, "run", *words, "--out", tmp_path / "run")
    assert code == 2, err
    assert [part for part in parts if part not in err] == [], err
    assert err.startswith("clnp: error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert set(tmp_path.rglob("*")) == before


def spoil_nothing(a: Path, b: Path) -> list[str]:
    return []


def spoil_absent(a: Path, b: Path) -> list[str]:
    shutil.rmtree(b)
    return ["fruit: no such folder"]


def spoil_cut_test_image(a: Path, b: Path) -> list[str]:
    path = b / "test" / "fig" / "5.png"
    path.write_bytes(path.read_bytes()[:-20])
    return ["test/fig/5.png: can't be read as an image"]


def spoil_cut_training_image(a: Path, b: Path) -> list[str]:
    path = a / "train" / "dog" / "5.png"
    path.write_bytes(path.read_bytes()[:-20])
    return ["train/dog/5.png: can't be read as an image"]


def spoil_header(a: Path, b: Path) -> list[str]:
    (b / "test" / "fig" / "5.png").write_bytes(b"no image")
    return ["test/fig/5.png: can't be read as an image"]


def spoil_class(a: Path, b: Path) -> list[str]:
    (b / "test" / "fig").rename(b / "test" / "Fig")
    return ["fruit/test: expected the classes of ", "got others: fig missing; Fig too many"]


def spoil_size(a: Path, b: Path) -> list[str]:
    Image.new("L", (9, 9)).save(b / "test" / "fig" / "5.png")
    return [
        "image_size: expected images of one size in ",
        "got 2 sizes, from 8 x 8 to 9 x 9",
        "--image-size N",
    ]


def spoil_mode(a: Path, b: Path) -> list[str]:
    Image.new("RGBA", (8, 8)).save(b / "test" / "fig" / "5.png")
    return ["fig/5.png: expected Pillow mode ", "got RGBA", "--convert-images"]


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_absent, spoil_cut_test_image, spoil_cut_training_image, spoil_header, spoil_class,
        spoil_size, spoil_mode,
    ],
    ids=lambda f: f.__name__.removeprefix("spoil_"),
)  # fmt: skip
def test_folders(two, tmp_path, capsys, spoil):
    parts = spoil(*two)
    assert_refused(capsys, tmp_path, ["folder", *two, *NET], *parts)


def test_numbers_of_classes_with_a_single_head(two, tmp_path, capsys):
    three = folder_of(tmp_path / "three", ("a", "b", "c"))
    words = ["folder", two[0], three, "--head", "single", *NET]
    parts = ["--head: single expects as many classes", "got animals 2, three 3", "--head multi"]
    assert_refused(capsys, tmp_path, words, *parts)
    for k, classes in enumerate((3, 2)):
        arrays_of(tmp_path / f"{k}.npz", classes)
    words = ["arrays", tmp_path / "0.npz", tmp_path / "1.npz", "--head", "single", *NET]
    assert_refused(capsys, tmp_path, words, "0 3, 1 2", "--head multi")


def test_arrays(tmp_path, capsys):
    good = arrays_of(tmp_path / "a.npz", 3)
    x, y = np.eye(5, dtype=np.float32)[[0, 1, 2]], np.array([0, 1, 2])
    for number, (change, part) in enumerate(
        (
            ({"x_test": np.full((18, 5), np.nan, np.float32)}, "nan"),
            ({"x_test": x}, ", test: expected x [N, ...] and y [N], got [3, 5] and [18]"),
            ({"y_test": np.arange(18)}, "expected labels of the training split, got 3, 4, 5"),
            (
                {"x_test": np.zeros((18, 4), np.float32)},
                "test: expected samples [5] float32 as in the train split, got [4] float32",
            ),
            (
                {"x_val": x, "y_val": y, "x_valid": x, "y_valid": y},
                "expected one pair of arrays for the validation split, got ",
            ),
            ({"x_val": x}, "expected y_val for the validation split, got "),
            ({"test_x": x}, "for the test split, got x_test, y_test, test_x"),
            ({"X_Test": x}, "got X_Test and x_test; keep one"),
            (
                {"class_names": np.array(["a", "b"])},
                "expected labels below 2, the number of class_names, got 2",
            ),
            (
                {"class_names": np.array(["a", "b", "a"])},
                "class_names: expected distinct non-empty names, got a, b, a",
            ),
            (
                {"class_names": np.array([1, 2, 3])},
                "class_names: expected [C] strings, got [3] int",
            ),
        )
    ):
        bad = arrays_of(tmp_path / f"bad{number}.npz", 3, **change)
        assert_refused(capsys, tmp_path, ["arrays", good, bad, *NET], part)
    bad.write_bytes(good.read_bytes()[:-100])
    assert_refused(capsys, tmp_path, ["arrays", good, bad, *NET], "can't be read as arrays")
    other = arrays_of(tmp_path / "other.npz", 3)
    shutil.copy(other, tmp_path / "copy.npz")
    with np.load(other) as file:
        changed = {
            **file,
            "x_train": np.eye(6)[file["y_train"]],
            "x_test": np.eye(6)[y].repeat(6, 0),
        }
    np.savez(other, **changed)
    assert_refused(
        capsys,
        tmp_path,
        ["arrays", good, other, *NET],
        "task 'other': expected sample_shape (5,)",
        "got (6,)",
    )


def test_weights(two, tmp_path, capsys):
    nothing, words = tmp_path / "w.pt", ["folder", *two, *NET, "--pretrained"]
    assert_refused(capsys, tmp_path, [*words, nothing], "w.pt can't be read")
    nothing.write_bytes(b"no weights")
    # Before any data: the folder needn't even be there.
    words[1] = tmp_path / "nowhere"
    assert_refused(capsys, tmp_path, [*words, nothing], "w.pt: holds more than tensors, or is dam")
    words[1] = two[0]
    torch.save(models.mlp(5, 8, 1, 2).state_dict(), nothing)
    parts = [
        "w.pt: expected the weights of the network",
        "fc1.weight: expected [8, 192], got [8, 5]",
    ]
    assert_refused(capsys, tmp_path, [*words, nothing], *parts)


def test_settings_before_data(tmp_path, capsys):
    """No data are looked for: their folder isn't there."""
    nowhere = ["permuted-mnist", "--data-root", tmp_path / "nowhere"]
    for words, *parts in (
        (
            ["--net", "resnet_18"],
            "network: expected one of mlp, ",
            "got 'resnet_18'; similar ones are resnet18",
        ),
        (["--net-scale", "2"], "network 'mlp': expected options out of width, ", "got scale"),
        (["--growth", "3,4", "--epochs", "0"], "--epochs: expected an integer >= 1, got 0"),
        (["--method", "foo"], "--method: expected one of clnp, ", "got 'foo'"),
        (["--resume", "--pretrained", tmp_path / "none.pt"], "none.pt can't be read"),
    ):
        assert_refused(capsys, tmp_path, [*nowhere, *words], *parts)


def test_where_to(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    for out, part in (
        (tmp_path / "file", "--out: expected a folder, got the file "),
        (tmp_path / "file" / "below", "can't be made"),
        (tmp_path / ("x" * 300), "can't be used (File name too long)"),
        (tmp_path / os.fsdecode(b"run\xff"), r"run\xff is no UTF-8"),
    ):
        code, _, err = clnp(capsys, "run", "--out", out)
        assert (code, part in err) == (2, True), err
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        code, _, err = clnp(capsys, "run", "--out", tmp_path / "new")
    assert (code, "no permission for" in err) == (2, True), err
    code, _, err = clnp(capsys, "run", "--resume", "--out", tmp_path / "new")
    assert (code, "--resume: " in err, "holds no run" in err) == (2, True, True), err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_workers_on_ray_that_is_not_installed(two, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    words = ["folder", *two, *NET, "--workers", "2", "--executor", "ray"]
    assert_refused(
        capsys, tmp_path, words, "expected Ray to be installed; pip install", "clnp[ray]"
    )


# What is trained after all


@pytest.fixture
def trains() -> None:
    """Marks a test that trains."""


@pytest.mark.usefixtures("trains")
def test_the_table_of_the_data_comes_first(two, tmp_path, capsys):
    (two[0] / "train" / "cat" / "notes.txt").touch()
    code, out, err = clnp(capsys, "run", "folder", *two, *NET, "--out", tmp_path / "run")
    assert code == 0, err
    table = """\
task 1/2 animals: 2 classes, examples of 3 x 8 x 8
  class  train  validation  test
  0 cat      5           1     6
  1 dog      5           1     6
  all       10           2    12
"""
    assert table in out
    assert out.index(table) < out.index("task 2/2 fruit: 2 classes") < out.index(": 1 epoch")
    assert "note: animals: 1 file not recognised as images: train/cat/notes.txt" in out
    log = (tmp_path / "run" / run_folder.LOG).read_text()
    assert "  1 fig        5           1     6" in log
    assert RunFolder(tmp_path / "run").read_config()[0].image_size == SIDE


@pytest.mark.usefixtures("trains")
def test_the_range_of_a_run_is_kept(tmp_path, capsys, monkeypatch):
    """12 bits, then 16: one range for both tasks, and the same one when the run goes on."""
    a = folder_of(tmp_path / "a", ("x", "y"), bits=12)
    b = folder_of(tmp_path / "b", ("x", "y"), bits=12)
    words = ["folder", a, b, "--convert-images", *NET]
    assert clnp(capsys, "run", *words, "--out", tmp_path / "whole")[0] == 0
    config, _ = RunFolder(tmp_path / "whole").read_config()
    assert config.image_range == (0, 4095)
    learn = Learner.learn

    def once(learner, task):
        if learner.reports:
            raise KeyboardInterrupt
        return learn(learner, task)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", once)
        assert clnp(capsys, "run", *words, "--out", tmp_path / "killed")[0] == 130
    # Data that come later don't change the range.
    for path in (b / "train" / "x").glob("*.png"):
        Image.fromarray(np.full((SIDE, SIDE), 40000, np.uint16)).save(path)
    monkeypatch.setattr("clnp.data.found.measured_range", None)
    assert clnp(capsys, "run", "--resume", "--out", tmp_path / "killed")[0] == 0
    assert RunFolder(tmp_path / "killed").read_config()[0].image_range == (0, 4095)
    first, again = (
        RunFolder(tmp_path / run).read_metrics()["reports"][0] for run in ("whole", "killed")
    )
    assert first["history"] == again["history"]
    code, _, err = clnp(
        capsys, "run", "--resume", "--out", tmp_path / "killed", "--image-range", "0,65535"
    )
    assert code == 2
    assert "--image-range 0,65535 (was 0,4095)" in err


@pytest.mark.usefixtures("trains")
def test_names_that_are_no_text(tmp_path, capsys):
    """A name of bytes that are no UTF-8, everywhere a run writes or prints names."""
    odd = os.fsdecode(b"caf\xe9")
    task = folder_of(tmp_path / odd, (odd, "tea\n"))
    out = tmp_path / "run"
    code, printed, err = clnp(capsys, "run", "folder", task, *NET, "--out", out)
    assert code == 0, err
    assert r"0 caf\xe9" in printed
    assert r"1 tea\n" in printed
    assert RunFolder(out).read_metrics()["reports"][0]["name"] == r"caf\xe9"
    assert RunFolder(out).read_config()[1].paths == (str(task),)
    for words in (["report", out], ["verify", out], ["run", "--resume", "--out", out]):
        code, _, err = clnp(capsys, *words)
        assert code == 0, err
    for path in out.rglob("*"):
        if path.suffix in (".json", ".csv", ".html", ".txt"):
            path.read_text(encoding="utf-8")


@pytest.mark.usefixtures("trains")
def test_names_of_classes_of_arrays(tmp_path, capsys):
    file = arrays_of(tmp_path / "a.npz", 3, class_names=np.array(["red", "green", "blue", "none"]))
    code, out, err = clnp(capsys, "run", "arrays", file, *NET, "--out", tmp_path / "run")
    assert code == 0, err
    assert "a: 4 classes" in out
    assert "1 green" in out
