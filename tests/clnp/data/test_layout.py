"""Random layouts of image folders: the intended reading, or an error that lists the contents."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clnp.data.layout import EXTENSIONS, SPLITS, find_images
from clnp.data.names import shown
from clnp.errors import DataError

CLASSES = ("cat", "Dog", "owl 2", "Äffchen", "日本", os.fsdecode(b"caf\xe9"), "a\tb", "0")
NOISE = (".git", ".ipynb_checkpoints", "__MACOSX", "Thumbs.db", ".DS_Store", "@eaDir")


def in_any_case(rng: random.Random, name: str) -> str:
    return "".join(rng.choice((c.lower(), c.upper())) for c in name)


class Tree:
    """A legal tree: splits (or none: ""), classes, images of each."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.rng = root, random.Random(seed)
        rng = self.rng
        self.classes = sorted(rng.sample(CLASSES, rng.randint(2, 4)))
        self.splits = {"train": ""}
        if rng.random() < 0.75:
            others = [s for s in ("validation", "test") if rng.random() < 0.5]
            self.splits = {s: in_any_case(rng, rng.choice(SPLITS[s])) for s in ("train", *others)}
        self.numbers: Counter[tuple[str, str]] = Counter()
        self.outside = self.others = 0
        for split, folder in self.splits.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for name in self.classes:
                self.add_class(split, name)
            self.noise(root / folder)

    def place(self, split: str) -> Path:
        return self.root / self.splits[split]

    def add_class(self, split: str, name: str) -> None:
        """Add a folder of images or a link to one, sometimes with images in a subfolder."""
        place = self.place(split) / name
        if self.rng.random() < 0.2:
            elsewhere = Path(tempfile.mkdtemp(dir=self.root.parent))
            place.symlink_to(elsewhere)
        else:
            place.mkdir()
        for k in range(self.rng.randint(1, 3)):
            (place / f"{k}{in_any_case(self.rng, self.rng.choice(EXTENSIONS))}").touch()
            self.numbers[split, name] += 1
        if self.rng.random() < 0.2:
            (place / "deeper").mkdir()
            (place / "deeper" / "x.png").touch()
            self.numbers[split, name] += 1
        self.noise(place)

    def noise(self, place: Path) -> None:
        """Add files that are not data; some are mentioned in notes."""
        for name in NOISE:
            if self.rng.random() < 0.1:
                (place / name).mkdir()
                (place / name / "x.png").touch()
        if self.rng.random() < 0.2:
            (place / "._0.png").touch()
        if self.rng.random() < 0.2:
            (place / "notes.txt").touch()
            self.others += 1
        if place.name not in self.classes and self.rng.random() < 0.2:
            (place / "loose.jpg").touch()
            self.outside += 1


@pytest.fixture
def fresh(tmp_path: Path):
    """Return a function that makes a new empty folder at every call."""

    def make(name: str = "task") -> Path:
        return Path(tempfile.mkdtemp(dir=tmp_path)) / name

    return make


SEEDS = st.integers(0, 2**32)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_legal_layouts_are_what_they_mean(seed):
    with tempfile.TemporaryDirectory() as above:
        tree = Tree(Path(above, "task"), seed)
        layout = find_images(tree.root)
        assert layout.classes == tuple(tree.classes)
        assert layout.folders == tree.splits
        found = Counter(
            (split, tree.classes[label]) for split, items in layout.items.items()
            for _, label in items
        )  # fmt: skip
        assert found == tree.numbers
        paths = [path for items in layout.items.values() for path, _ in items]
        assert len(set(paths)) == len(paths)
        assert all(path.is_file() for path in paths)
        told = " ".join(layout.notes)
        for number, text in (
            (tree.outside, "outside the folders"),
            (tree.others, "not recognised"),
        ):
            assert (text in told) == bool(number)
            assert not number or f"{number} " in told


def second_split(tree: Tree) -> list[str]:
    split = tree.rng.choice(list(tree.splits))
    if not tree.splits[split]:
        return wrong_split_beside(tree)
    other = next(n for n in SPLITS[split] if n != tree.splits[split].lower())
    shutil.copytree(tree.place(split), tree.root / other)
    return [tree.splits[split], other, "image"]


def wrong_split_beside(tree: Tree) -> list[str]:
    """Add an unknown folder of images beside splits, or a split beside classes."""
    name = "extra" if tree.splits["train"] else "test"
    (tree.root / name).mkdir()
    (tree.root / name / "x.png").touch()
    return [name, "image"]


def class_missing(tree: Tree) -> list[str]:
    split = tree.rng.choice(list(tree.splits))
    name = tree.rng.choice(tree.classes)
    place = tree.place(split) / name
    if len(tree.splits) == 1:
        return class_empty(tree)
    place.unlink() if place.is_symlink() else shutil.rmtree(place)
    return [shown(name), "expected the classes of"]


def class_empty(tree: Tree) -> list[str]:
    split = tree.rng.choice(list(tree.splits))
    place = tree.place(split) / "nothing"
    place.mkdir()
    (place / "readme.md").touch()
    return ["nothing: expected images of the class", "got readme.md"]


def class_more(tree: Tree) -> list[str]:
    if len(tree.splits) == 1:
        return class_empty(tree)
    split = tree.rng.choice([s for s in tree.splits if s != "train"])
    tree.add_class(split, "zebra")
    return ["got others: zebra too many"]


def other_case(tree: Tree) -> list[str]:
    if len(tree.splits) == 1 or "cat" not in tree.classes:
        return class_empty(tree)
    split = tree.rng.choice([s for s in tree.splits if s != "train"])
    (tree.place(split) / "cat").rename(tree.place(split) / "CAT")
    return ["cat missing", "CAT too many", "some differ only in case"]


def single_class(tree: Tree) -> list[str]:
    for split in tree.splits:
        for name in tree.classes[1:]:
            place = tree.place(split) / name
            place.unlink() if place.is_symlink() else shutil.rmtree(place)
    return ["at least two classes, got one", shown(tree.classes[0])]


def wrapped(tree: Tree) -> list[str]:
    """Pass the parent of the intended folder; the error names the intended one."""
    right, tree.root = tree.root, tree.root.parent / "around"
    tree.root.mkdir()
    right.rename(tree.root / "inner")
    return ["inner"]


def class_first(tree: Tree) -> list[str]:
    name = tree.rng.choice(tree.classes)
    place = tree.place("train") / name
    for split in ("train", "Test"):
        (place / split).mkdir()
        (place / split / "x.png").touch()
    return [shown(name), "train (1 image)", "Test (1 image)"]


def no_train(tree: Tree) -> list[str]:
    if not tree.splits["train"]:
        return wrong_split_beside(tree)
    tree.place("train").rename(tree.root / "dev-set")
    return ["dev-set"] if len(tree.splits) > 1 else ["two classes, got one, dev-set"]


def loop(tree: Tree) -> list[str]:
    place = tree.place("train") / tree.rng.choice(tree.classes)
    (place / "around").symlink_to(tree.root)
    return ["around: expected a folder, got a link to a folder above it"]


def dangling(tree: Tree) -> list[str]:
    place = tree.place("train") / tree.rng.choice(tree.classes)
    (place / "gone.jpeg").symlink_to(tree.root / "nowhere")
    return ["gone.jpeg: expected a file, got a broken link or a device"]


def same_folder_twice(tree: Tree) -> list[str]:
    split = tree.rng.choice(list(tree.splits))
    for each in tree.splits:
        if each != split:
            tree.add_class(each, "zz")
    (tree.place(split) / "zz").symlink_to(tree.place(split) / tree.classes[0])
    return ["zz", "expected separate folders, got a link to"]


def deeper_only(tree: Tree) -> list[str]:
    for split in tree.splits:
        for name in tree.classes:
            place = tree.place(split) / name
            (place / "group").mkdir()
            for path in place.iterdir():
                if path.is_file():
                    path.rename(place / "group" / path.name)
    return ["either level could be the classes", "group"]


ILLEGAL = (
    second_split, wrong_split_beside, class_missing, class_empty, class_more, other_case,
    single_class, wrapped, class_first, no_train, loop, dangling, same_folder_twice, deeper_only,
)  # fmt: skip


@pytest.mark.parametrize("spoil", ILLEGAL, ids=lambda f: f.__name__)
def test_illegal_layouts_are_refused_by_name(spoil):
    @settings(max_examples=8, deadline=None)
    @given(SEEDS)
    def refused(seed):
        with tempfile.TemporaryDirectory() as above:
            tree = Tree(Path(above, "task"), seed)
            parts = spoil(tree)
            with pytest.raises(DataError) as caught:
                find_images(tree.root)
            text = str(caught.value)
            text.encode()  # whatever the names are, it can be printed
            assert [part for part in parts if part not in text] == [], text

    refused()


@pytest.mark.parametrize(
    ("spelling", "split"), [(name, split) for split, names in SPLITS.items() for name in names]
)
@pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
def test_names_of_splits(fresh, spelling, split, change):
    root = fresh()
    for folder in {change(spelling), "train" if split != "train" else change(spelling)}:
        for name in ("a", "b"):
            (root / folder / name).mkdir(parents=True)
            (root / folder / name / "0.jfif").touch()
    assert find_images(root).folders[split] == change(spelling)


def test_what_a_folder_lacks(fresh):
    root = fresh()
    root.mkdir()
    with pytest.raises(DataError, match="got no folders, but 0 images"):
        find_images(root)
    (root / "x.png").touch()
    with pytest.raises(DataError, match=r"got no folders, but 1 image$"):
        find_images(root)
    for name in ("val", "test"):
        (root / name / "a").mkdir(parents=True)
        (root / name / "a" / "0.png").touch()
    with pytest.raises(
        DataError, match=r"expected a folder train beside test, val, .* got no train split"
    ):
        find_images(root)
    # Without labels, as in many competitions.
    unlabelled = fresh()
    for name in ("a", "b"):
        (unlabelled / "train" / name).mkdir(parents=True)
        (unlabelled / "train" / name / "0.png").touch()
    (unlabelled / "test").mkdir()
    (unlabelled / "test" / "0.png").touch()
    with pytest.raises(
        DataError,
        match="test: expected one folder of images per class, got no folders, but 1 image",
    ):
        find_images(unlabelled)


def test_folders_without_images_beside_splits_are_told_of(fresh):
    root = fresh()
    for name in ("a", "b"):
        (root / "train" / name).mkdir(parents=True)
        (root / "train" / name / "0.png").touch()
    (root / "annotations").mkdir()
    (root / "annotations" / "0.xml").touch()
    notes = find_images(root).notes
    assert notes == (
        "folders without images skipped: annotations",
        "1 file not recognised as images: annotations/0.xml",
    )


def test_a_link_to_itself_and_a_deep_tree(fresh):
    root = fresh()
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        (root / name / "0.png").touch()
    (root / "a" / "self").symlink_to(root / "a" / "self")
    with pytest.raises(DataError, match="self: can't be read"):
        find_images(root)
    (root / "a" / "self").unlink()
    (root / "a" / Path(*["d"] * 40)).mkdir(parents=True)
    with pytest.raises(DataError, match="levels of folders"):
        find_images(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(fresh):
    root = fresh()
    (root / "a").mkdir(parents=True)
    (root / "a").chmod(0)
    try:
        with pytest.raises(DataError, match="a: can't be read"):
            find_images(root)
    finally:
        (root / "a").chmod(0o700)


def test_a_folder_that_can_not_be_read(fresh, monkeypatch):
    root = fresh()
    root.mkdir()

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match=r"task: can't be read \(Permission denied\)"):
        find_images(root)
