"""Arrays from files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clnp.data import ArrayFiles, Images
from clnp.data.check import check_tasks
from clnp.data.files import read_splits
from clnp.data.images import channel_constants
from clnp.errors import DataError


def numbers(n=20, shape=(5,), dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == np.uint8:
        return rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    return rng.standard_normal((n, *shape)).astype(dtype)


def good(shape=(5,), dtype=np.float32, seed=0):
    return {
        "x_train": numbers(20, shape, dtype, seed),
        "y_train": np.arange(20) % 4,
        "x_test": numbers(8, shape, dtype, seed + 1),
        "y_test": np.arange(8, dtype=np.uint8) % 2,
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_npz_of_numbers(tmp_path, dtype):
    np.savez(tmp_path / "mine.npz", **good(dtype=dtype))
    task = ArrayFiles([tmp_path / "mine.npz"], validation=0.2)[0]
    assert task.name == "mine"
    assert task.num_classes == 4
    assert task.dtype == torch.float32
    assert [task.size(s) for s in ("train", "validation", "test")] == [16, 4, 8]
    np.testing.assert_array_equal(
        task.test[0].numpy(), good(dtype=dtype)["x_test"].astype(np.float32)
    )
    assert sorted(task.validation[1].tolist()) == [0, 1, 2, 3]


def test_other_names_and_npy_folders(tmp_path):
    data = good()
    names = {"train_x": "x_train", "train_y": "y_train", "test_images": "x_test"}
    names |= {"test_labels": "y_test", "val_x": "x_test", "val_y": "y_test"}
    (tmp_path / "a").mkdir()
    for new, old in names.items():
        np.save(tmp_path / "a" / f"{new}.npy", data[old])
    task = ArrayFiles([tmp_path / "a"])[0]
    assert [task.size(s) for s in ("train", "validation", "test")] == [20, 8, 8]
    assert torch.equal(task.validation[0], task.test[0])


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((6, 7), (1, 6, 7)), ((6, 7, 3), (3, 6, 7)), ((3, 6, 7), (3, 6, 7)), ((6, 7, 1), (1, 6, 7))],
)
def test_images_in_any_layout(tmp_path, shape, wanted):
    for name, seed in (("a", 0), ("b", 5)):
        np.savez(tmp_path / f"{name}.npz", **good(shape, np.uint8, seed))
    stream = ArrayFiles([tmp_path / "a.npz", tmp_path / "b.npz"], augment=True)
    tasks = [stream[1], stream[0]]
    for task in tasks:
        assert isinstance(task.train, Images)
        assert (task.train.augment, task.test.augment) == (True, False)
        assert task.sample_shape == wanted
    raw = torch.from_numpy(good(shape, np.uint8)["x_train"]).reshape(20, *wanted)
    if shape[-1] == 3:
        raw = torch.from_numpy(good(shape, np.uint8)["x_train"]).permute(0, 3, 1, 2)
    mean = torch.tensor(channel_constants(raw)[0])
    for task in tasks:
        torch.testing.assert_close(task.test.mean.flatten() / 255, mean)
    own = ArrayFiles([tmp_path / "a.npz", tmp_path / "b.npz"], normalise="train")
    assert not torch.equal(own[0].test.mean, own[1].test.mean)


def test_what_is_refused(tmp_path):
    file = tmp_path / "a.npz"
    with pytest.raises(DataError, match="no such file"):
        ArrayFiles([file])
    with pytest.raises(DataError, match="expected one file per task, got none"):
        ArrayFiles([])
    data = good()
    for change, fragment in (
        ({"x_test": None}, "expected x_test for the test split, got x_train, y_test, y_train"),
        (
            {"x_test": None, "y_test": None},
            r"expected a test split \(test_images and test_labels, x_test and",
        ),
        ({"y_test": data["y_test"][1:]}, r"got \[8, 5\] and \[7\]"),
        ({"y_train": data["y_train"] - 1}, "expected labels from 0, got -1 at index 0"),
        ({"y_train": data["y_train"] * 1.5}, r"expected integer labels \(int64\), got float64"),
        ({"y_train": data["y_train"][:, None]}, r"convert with y.squeeze\(1\)"),
        (
            {"y_train": data["y_train"] * 2, "y_test": data["y_test"] * 2},
            "expected labels 0 to 3 without gaps, got 0, 2, 4, 6",
        ),
        ({"x_train": data["x_train"].astype(float) * 1e300}, r"inf at index \[0, 0\]"),
        ({"x_train": data["x_train"].astype(str)}, "expected numbers, got <U"),
        ({"x_train": np.zeros((20, 5), np.uint8)}, r"expected images \[N, H, W\]"),
    ):
        changed = {k: v for k, v in {**data, **change}.items() if v is not None}
        np.savez(file, **changed)
        with pytest.raises(DataError, match=fragment):
            ArrayFiles([file])[0]
    np.save(tmp_path / "b.npy", np.array([{}], dtype=object), allow_pickle=True)
    for path, content in ((file, b"PK"), (tmp_path / "b.npy", None)):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match="can't be read as arrays"):
            ArrayFiles([path])[0]


def test_layouts_that_could_be_two_things_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **good((3, 6, 3), np.uint8))
    with pytest.raises(DataError, match=r"could be \[N, C, H, W\] or \[N, H, W, C\]"):
        ArrayFiles([tmp_path / "a.npz"])[0]


@pytest.mark.parametrize("word", ["VAL", "valid", "Validation", "dev"])
def test_words_for_splits_in_any_case(tmp_path, word):
    data = good()
    np.savez(
        tmp_path / "a.npz", **data, **{f"X_{word}": data["x_test"], f"y_{word}": data["y_test"]}
    )
    splits = read_splits(tmp_path / "a.npz")
    np.testing.assert_array_equal(splits["validation"][0].numpy(), data["x_test"])


def test_names_of_tasks(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "data.npz", **good())
    np.savez(tmp_path / "more.npz", **good())
    paths = [tmp_path / "one" / "data.npz", tmp_path / "two" / "data.npz", tmp_path / "more.npz"]
    assert [task.name for task in ArrayFiles(paths)] == ["one/data", "two/data", "more"]
    with pytest.raises(DataError, match="expected every path once"):
        ArrayFiles([paths[0], tmp_path / "one" / ".." / "one" / "data.npz"])


def test_class_names(tmp_path):
    names = np.array([b"a", b"caf\xe9", b"c", b"d", b"e"])
    np.savez(tmp_path / "a.npz", **good(), class_names=names)
    task = ArrayFiles([tmp_path / "a.npz"])[0]
    assert task.class_names == ("a", r"caf\xe9", "c", "d", "e")
    assert task.num_classes == 5


def test_objects_are_refused_only_where_they_are_asked_for(tmp_path):
    """Other arrays of a file aren't read."""
    extra = np.array([{}], dtype=object)
    np.savez(tmp_path / "a.npz", **good(), extra=extra)
    assert ArrayFiles([tmp_path / "a.npz"])[0].num_classes == 4
    np.savez(tmp_path / "a.npz", **{**good(), "x_test": extra})
    with pytest.raises(DataError, match="x_test: can't be read as arrays"):
        ArrayFiles([tmp_path / "a.npz"])[0]


def test_bad_rows_have_the_numbers_of_the_file(tmp_path):
    """Errors name rows of the file, not rows after the validation split is drawn."""
    data = good()
    data["x_train"][17, 2] = np.nan
    np.savez(tmp_path / "a.npz", **data)
    with pytest.raises(DataError, match=r"a.npz, train x.*nan at index \[17, 2\]"):
        ArrayFiles([tmp_path / "a.npz"], validation=0.4)[0]


@pytest.mark.parametrize("order", ["vectors first", "images first"])
def test_streams_of_two_kinds_are_refused(tmp_path, order):
    np.savez(tmp_path / "vectors.npz", **good())
    np.savez(tmp_path / "images.npz", **good((3, 6, 7), np.uint8))
    paths = [tmp_path / "vectors.npz", tmp_path / "images.npz"]
    stream = ArrayFiles(paths if order == "vectors first" else paths[::-1])
    with pytest.raises(DataError, match=r"expected images \(uint8\)|sample_shape"):
        check_tasks(stream)
