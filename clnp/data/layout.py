"""The layout of a folder of images: which of its folders are splits, which are classes.

What can be read in one way only is taken, whatever its names' case; anything else is refused with
what was found.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from .names import counted, listed, shown

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".tga", ".avif"),
)
# Names under which people keep a split, in any case.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
# What systems and tools leave behind, besides names that begin with a dot; in any case.
LEFT_BEHIND = (
    *("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information"),
    *("lost+found", "thumbs.db", "desktop.ini"),
)
# Folders within folders, from the task's own on.
DEEPEST = 32

Item = tuple[Path, int]


@dataclass(frozen=True)
class Layout:
    """The contents of a folder of images.

    Attributes:
        classes: names of the classes' folders, in alphabetical order.
        items: {"train" | "validation" | "test": (path, label) each}, of the splits that are there.
        folders: split -> the folder's name; "" where the task's own folder holds the classes.
        notes: sentences about what is left out.
    """

    classes: tuple[str, ...]
    items: dict[str, list[Item]]
    folders: dict[str, str]
    notes: tuple[str, ...]


@dataclass
class Place:
    """A folder, looked through: what it holds itself, and its folders."""

    path: Path
    identity: tuple[int, int]
    folders: list[Place] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.name

    def below(self) -> Iterator[Place]:
        """This folder and all in it."""
        yield self
        for folder in self.folders:
            yield from folder.below()

    def all_images(self) -> list[Path]:
        """Its images and those of all folders in it."""
        return sorted(path for place in self.below() for path in place.images)

    def holds_images(self) -> bool:
        return any(place.images for place in self.below())


def find_images(root: Path) -> Layout:
    """Finds the splits and classes of a folder. Nothing is opened.

    Raises:
        DataError: the folder can't be read, or its layout isn't one of those that
            `clnp.data.folder_task` describes; the message names what was found.
    """
    top = _looked_through(root, ())
    places, notes = _splits(top)
    classes = {split: _classes(place) for split, place in places.items()}
    _check_same_classes(places, classes)
    _check_several(classes["train"], places["train"], top)
    _check_apart(classes)
    items = {
        split: [(path, label) for label, p in enumerate(found) for path in p.all_images()]
        for split, found in classes.items()
    }
    outside = [path for place in {id(p): p for p in (top, *places.values())}.values()
               for path in place.images]  # fmt: skip
    if outside:
        notes.append(
            f"{counted(len(outside), 'image')} outside the classes' folders left out: "
            f"{listed(_inside(outside, root))}"
        )
    others = [path for place in top.below() for path in place.others]
    if others:
        notes.append(
            f"{counted(len(others), 'file')} not taken for images: {listed(_inside(others, root))}"
        )
    folders = {split: "" if p is top else p.name for split, p in places.items()}
    return Layout(tuple(p.name for p in classes["train"]), items, folders, tuple(notes))


def _looked_through(path: Path, above: tuple[tuple[int, int], ...]) -> Place:
    try:
        status = os.stat(path)
        place = Place(path, (status.st_dev, status.st_ino))
        if place.identity in above:
            raise DataError(
                f"{shown(path)}: is a link that leads back to a folder above it, "
                f"{shown(os.path.realpath(path))}; remove the link"
            )
        if len(above) > DEEPEST:
            raise DataError(f"{shown(path)}: lies more than {DEEPEST} folders deep")
        with os.scandir(path) as found:
            entries = sorted((e for e in found if not _hidden(e.name)), key=lambda e: e.name)
        for entry in entries:
            inside = path / entry.name
            if entry.is_dir():
                place.folders.append(_looked_through(inside, (*above, place.identity)))
            elif not entry.name.lower().endswith(EXTENSIONS):
                place.others.append(inside)
            elif entry.is_file():
                place.images.append(inside)
            else:
                raise DataError(f"{shown(inside)}: is no file, or a link that leads nowhere")
    except OSError as error:
        where = error.filename if isinstance(error.filename, (str, os.PathLike)) else path
        raise DataError(f"{shown(where)}: can't be read ({error.strerror or error})") from error
    return place


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def _inside(paths: Sequence[Path], root: Path) -> list[Path]:
    return [path.relative_to(root) for path in paths]


def _split_of(place: Place) -> str | None:
    return SPLIT_OF.get(place.name.lower())


def _splits(top: Place) -> tuple[dict[str, Place], list[str]]:
    """({split: its folder}, notes); the folder itself is the training split if it holds classes."""
    named: dict[str, list[Place]] = {}
    for folder in top.folders:
        split = _split_of(folder)
        if split is not None:
            named.setdefault(split, []).append(folder)
    if not named:
        return {"train": top}, []
    where, known = shown(top.path), listed(p.name for found in named.values() for p in found)
    rest = [p for p in top.folders if _split_of(p) is None]
    odd = [p for p in rest if p.holds_images()]
    if odd:
        raise DataError(
            f"{where}: holds {known}, which look like splits, and {_contents(odd)}; move what is "
            "neither training, validation nor test split elsewhere, or, where these are all "
            f"classes, put them into a folder {shown(top.path / 'train')}"
        )
    for split, found in named.items():
        if len(found) > 1:
            raise DataError(
                f"{where}: {listed(p.name for p in found)} could all be the {split} split "
                f"({_contents(found)}); keep one under that name"
            )
    if "train" not in named:
        raise DataError(
            f"{where}: holds {known} but no train split; wanted a folder train beside, or only "
            "classes"
        )
    notes = [f"folders without images left out: {listed(p.name for p in rest)}"] if rest else []
    return {split: named[split][0] for split in SPLITS if split in named}, notes


def _contents(places: Sequence[Place]) -> str:
    """ "a (3 images), b (5 images)"."""
    return listed(f"{shown(p.name)} ({counted(len(p.all_images()), 'image')})" for p in places)


def _classes(place: Place) -> list[Place]:
    """The folders of the classes in a split."""
    where, found = shown(place.path), place.folders
    if not found:
        raise DataError(
            f"{where}: holds no folders, but {counted(len(place.images), 'image')}; wanted one "
            "folder per class with its images in it"
        )
    for one in found:
        inner = [p for p in one.folders if _split_of(p) is not None and p.holds_images()]
        if inner:
            raise DataError(
                f"{where}: {shown(one.name)} holds {_contents(inner)}, which look like splits. "
                f"Where {shown(one.name)} is a class, wanted the split first, "
                f"{shown(Path(inner[0].name, one.name))}; where it is a task of its own, name it: "
                f"{shown(one.path)}"
            )
    for one in found:
        if not one.holds_images():
            others = [path.name for p in one.below() for path in p.others]
            raise DataError(
                f"{shown(one.path)}: the class has no images; wanted files that end in "
                f"{', '.join(EXTENSIONS)}" + (f", it holds {listed(others)}" if others else "")
            )
    if len(found) > 1 and not any(one.images for one in found):
        deep = [shown(Path(one.name, p.name)) for one in found for p in one.folders]
        raise DataError(
            f"{where}: no folder in it holds images itself, only those below do ({listed(deep)}), "
            "so the classes could be either; wanted the images directly in their class's folder"
        )
    return found


def _check_several(found: Sequence[Place], place: Place, top: Place) -> None:
    """A folder that wraps another one would be a single class, which is no task."""
    if len(found) > 1:
        return
    inner, where = [p for p in found[0].folders if p.holds_images()], shown(place.path)
    hint = f"; where {_contents(inner)} are the classes, " if inner else ""
    if inner and place is top:
        hint += f"name the folder that holds them, {shown(found[0].path)}"
    elif inner:
        hint += f"move them to {where}"
    raise DataError(f"{where}: holds one class, {_contents(found)}, wanted at least two{hint}")


def _check_same_classes(places: dict[str, Place], classes: dict[str, list[Place]]) -> None:
    """Every split has the classes of the training split."""
    wanted = {p.name for p in classes["train"]}
    train = shown(places["train"].path)
    for split, found in classes.items():
        names = {p.name for p in found}
        if names == wanted:
            continue
        lacks, more = sorted(wanted - names), sorted(names - wanted)
        alike = {_folded(n) for n in lacks} & {_folded(n) for n in more}
        raise DataError(
            f"{shown(places[split].path)}: classes differ from those of {train}: "
            + "; ".join(
                text
                for text in (
                    f"it lacks {listed(lacks)}" if lacks else "",
                    f"only it has {listed(more)}" if more else "",
                    "some differ only in upper and lower case or in how accents are written"
                    if alike
                    else "",
                )
                if text
            )
        )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _check_apart(classes: dict[str, list[Place]]) -> None:
    """No folder is two classes, or in two splits, by links."""
    seen: dict[tuple[int, int], Place] = {}
    for place in (p for found in classes.values() for one in found for p in one.below()):
        first = seen.setdefault(place.identity, place)
        if first is not place:
            raise DataError(
                f"{shown(place.path)}: is the same folder as {shown(first.path)}, by a link; its "
                "images would be in two classes or splits"
            )
