"""Folders of images as tasks: files found, refusals, and pixel values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from clnp.data import Folders, folder_task
from clnp.data.images import CONSTANTS
from clnp.data.layout import find_images
from clnp.data.pictures import read_image, stored_side
from clnp.errors import DataError

Image = pytest.importorskip("PIL.Image")

COLOURS = {"blue": (0, 0, 250), "green": (0, 250, 0), "red": (250, 0, 0)}


def tree(root, number=10, size=(20, 16), classes=COLOURS):
    """Make root/CLASS/k.png, each of one colour."""
    for name, colour in classes.items():
        (root / name).mkdir(parents=True)
        for k in range(number):
            Image.new("RGB", size, colour).save(root / name / f"{k}.png")
    return root


def labels_by_colour(split):
    """Map the largest channel of every image to its label, checked to be one to one."""
    pairs = {(int(x.mean((1, 2)).argmax()), int(y)) for x, y in split}
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_classes_are_folders_in_alphabetical_order(tmp_path):
    task = folder_task(tree(tmp_path / "things"), image_size=8, normalise="none")
    assert task.name == "things"
    assert task.num_classes == 3
    assert task.sample_shape == (3, 8, 8)
    # 20 % of 10 are the test split, then 10 % of 8 the validation split.
    assert [task.size(s) for s in ("train", "validation", "test")] == [21, 3, 6]
    for split in (task.train, task.validation, task.test):
        assert labels_by_colour(split) == {2: 0, 1: 1, 0: 2}
    paths = [p for s in (task.train, task.validation, task.test) for p in s.paths]
    assert sorted(paths) == sorted((tmp_path / "things").rglob("*.png"))


def test_seed_draws_the_splits(tmp_path):
    tree(tmp_path)
    a, again, b = (folder_task(tmp_path, image_size=8, seed=s) for s in (0, 0, 1))
    assert a.test.paths == again.test.paths
    assert a.test.paths != b.test.paths


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        (("train",), [21, 3, 6]),
        (("train", "test"), [27, 3, 30]),
        (("train", "val"), [27, 3, 30]),
        (("train", "valid", "test"), [30, 30, 30]),
    ],
)
def test_splits_that_are_there_are_taken(tmp_path, splits, sizes):
    for split in splits:
        tree(tmp_path / split)
    task = folder_task(tmp_path, image_size=8)
    assert [task.size(s) for s in ("train", "validation", "test")] == sizes
    assert all(p.parts[-3] == splits[-1] for p in task.test.paths) or len(splits) == 1


def test_images_are_scaled_and_cut_in_the_middle(tmp_path):
    # Left half black, right half white, and a red frame that the cut removes.
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 40:] = 255
    pixels[:, :12] = pixels[:, -12:] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", 20)
    assert image.shape == (3, 20, 20)
    assert image.dtype == torch.uint8
    assert image[:, :, :9].max() == 0
    assert image[:, :, 11:].min() == 255
    assert stored_side(32) == 32
    assert stored_side(224) == 256
    assert read_image(tmp_path / "a.png", 224).shape == (3, 256, 256)
    assert read_image(tmp_path / "a.png", 8, channels=1, convert=True).shape == (1, 8, 8)


def test_constants_are_those_of_imagenet(tmp_path):
    task = folder_task(tree(tmp_path), image_size=8)
    x, y = task.test[0]
    colour = list(COLOURS.values())[int(y)]
    for c in range(3):
        mean, std = (v[c] for v in CONSTANTS["imagenet"])
        assert float(x[c, 0, 0]) == pytest.approx((colour[c] / 255 - mean) / std, abs=1e-5)


def test_grey_images_and_palettes(tmp_path):
    tree(tmp_path, 4)
    Image.new("L", (9, 9), 100).save(tmp_path / "red" / "grey.png")
    Image.new("P", (9, 9), 1).save(tmp_path / "red" / "palette.png")
    assert folder_task(tmp_path, image_size=8).num_classes == 3
    for path in tmp_path.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    task = folder_task(tmp_path, image_size=8, channels=1)
    assert task.sample_shape == (1, 8, 8)
    assert 0 <= float(task.train[0][0].min()) <= float(task.train[0][0].max()) <= 1


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_workers_and_memory_change_nothing(tmp_path, cache_bytes):
    tree(tmp_path)
    one = folder_task(tmp_path, image_size=8, workers=1)
    many = folder_task(tmp_path, image_size=8, workers=3, cache_bytes=cache_bytes)
    for _ in range(2):
        for (a, la), (b, lb) in zip(
            DataLoader(one.train, 4), DataLoader(many.train, 4), strict=True
        ):
            assert torch.equal(a, b)
            assert torch.equal(la, lb)
    rows = torch.tensor([3, 3, 0])
    assert torch.equal(many.train.batch(rows)[0], one.train.batch(rows)[0])


def test_a_kept_image_is_read_once(tmp_path):
    tree(tmp_path)
    task = folder_task(tmp_path, image_size=8)
    before = [x.clone() for x, _ in task.test]
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    assert all(torch.equal(x, y) for (x, _), y in zip(task.test, before, strict=True))
    with pytest.raises(DataError, match="can't be read as an image"):
        list(task.train)


def break_tree(root, what):
    if what == "empty class":
        (root / "violet").mkdir()
    elif what == "unreadable":
        (root / "red" / "5.png").write_bytes(b"no image")
    elif what == "transparent":
        Image.new("RGBA", (4, 4)).save(root / "red" / "5.png")
    elif what == "single image":
        for k in range(1, 10):
            (root / "red" / f"{k}.png").unlink()


@pytest.mark.parametrize(
    ("what", "fragment"),
    [
        ("empty class", "violet: expected images of the class .* got none"),
        ("unreadable", "red/5.png: can't be read as an image"),
        ("transparent", "red/5.png: expected Pillow mode .* got RGBA; .*--convert-images"),
        ("single image", "class red: expected at least 3 training images.* got 1"),
    ],
)
def test_bad_trees_are_refused(tmp_path, what, fragment):
    tree(tmp_path)
    break_tree(tmp_path, what)
    with pytest.raises(DataError, match=fragment):
        folder_task(tmp_path, image_size=8)


def test_other_refusals(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        folder_task(tmp_path / "none")
    with pytest.raises(DataError, match="got no folders"):
        folder_task(tmp_path)
    tree(tmp_path / "train")
    tree(tmp_path / "test", classes={"red": (1, 1, 1)})
    with pytest.raises(
        DataError, match=r"test: expected the classes of .*, got others: blue, green missing"
    ):
        folder_task(tmp_path)
    for options, fragment in (
        ({"image_size": 0}, "image_size: expected .* got 0"),
        ({"workers": 0}, "workers: expected .* got 0"),
        ({"channels": 2}, "channels: expected 3 or 1, got 2"),
        ({"normalise": "train"}, "would read every image"),
        ({"validation": 2.0, "image_size": 8}, "validation: expected .* got 2.0"),
        ({}, "expected square images .* got 20 x 16"),
    ):
        with pytest.raises(DataError, match=fragment):
            folder_task(tmp_path / "train", **options)
    Image.new("RGBA", (4, 4)).save(tmp_path / "train" / "red" / "5.png")
    assert folder_task(tmp_path / "train", image_size=8, convert=True).num_classes == 3


def test_folders_are_a_stream(tmp_path):
    a, b = tree(tmp_path / "x" / "things"), tree(tmp_path / "y" / "things")
    c = tree(tmp_path / "others")
    stream = Folders([a, b, c], image_size=8, seed=3)
    assert [task.name for task in stream] == ["x/things", "y/things", "others"]
    assert stream[0].test.paths == Folders([a], image_size=8, seed=3)[0].test.paths
    with pytest.raises(DataError, match="expected every path once"):
        Folders([a, tmp_path / "x" / ".." / "x" / "things"])
    with pytest.raises(DataError, match="got none"):
        Folders([])


def test_a_stream_looks_into_a_folder_once(tmp_path, monkeypatch):
    stream = Folders([tree(tmp_path / "a", 4)], image_size=8)
    first = stream[0]
    monkeypatch.setattr("clnp.data.found.find_images", None)
    again = stream[0]
    assert again.train.paths == first.train.paths
    assert torch.equal(again.test[0][0], first.test[0][0])
    with pytest.raises(DataError, match="no such folder"):
        Folders([tmp_path / "none"])[0]


def test_hidden_and_other_files_are_left_out(tmp_path):
    tree(tmp_path, 4)
    (tmp_path / ".git").mkdir()
    (tmp_path / "red" / "notes.txt").write_text("hello")
    (tmp_path / "red" / ".hidden.png").write_text("hello")
    (tmp_path / "red" / "deeper").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "red" / "deeper" / "A.JPG")
    layout = find_images(tmp_path)
    assert layout.classes == ("blue", "green", "red")
    assert [p.name for p, label in layout.items["train"] if label == 2] == [
        "0.png",
        "1.png",
        "2.png",
        "3.png",
        "A.JPG",
    ]
    assert layout.notes == ("1 file not recognised as images: red/notes.txt",)
