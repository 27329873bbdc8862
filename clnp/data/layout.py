"""Layout of a folder of images: its splits and classes.

Names count in any case. A layout with more than one reading is refused with a list of its folders.
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
# Common names of splits, in any case.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
# Files and folders of systems and tools, in any case; names that begin with a dot are ignored too.
LEFT_BEHIND = (
    *("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information"),
    *("lost+found", "thumbs.db", "desktop.ini"),
)
DEEPEST = 32  # levels of folders below the task's

Item = tuple[Path, int]


@dataclass(frozen=True)
class Layout:
    """Contents of a folder of images.

    Attributes:
        classes: names of the classes' folders, in alphabetical order.
        items: {"train" | "validation" | "test": (path, label) pairs}, for the splits found.
        folders: split -> name of its folder; "" if the task's own folder holds the classes.
        notes: sentences on skipped files.
    """

    classes: tuple[str, ...]
    items: dict[str, list[Item]]
    folders: dict[str, str]
    notes: tuple[str, ...]


@dataclass
class Place:
    """A folder, with the files and folders in it."""

    path: Path
    identity: tuple[int, int]
    folders: list[Place] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.name

    def below(self) -> Iterator[Place]:
        """Yield this folder and all folders in it."""
        yield self
        for folder in self.folders:
            yield from folder.below()

    def all_images(self) -> list[Path]:
        """Return its images and those of all folders in it."""
        return sorted(path for place in self.below() for path in place.images)

    def holds_images(self) -> bool:
        return any(place.images for place in self.below())


def find_images(root: Path) -> Layout:
    """Find the splits and classes of a folder, without opening files.

    Raises:
        DataError: the folder can't be read, or doesn't have a layout of `clnp.data.folder_task`;
            the message names its contents.
    """
    top = _read_folder(root, ())
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
            f"{counted(len(outside), 'image')} outside the folders of classes skipped: "
            f"{listed(_inside(outside, root))}"
        )
    others = [path for place in top.below() for path in place.others]
    if others:
        notes.append(
            f"{counted(len(others), 'file')} not recognised as images: "
            f"{listed(_inside(others, root))}"
        )
    folders = {split: "" if p is top else p.name for split, p in places.items()}
    return Layout(tuple(p.name for p in classes["train"]), items, folders, tuple(notes))


def _read_folder(path: Path, above: tuple[tuple[int, int], ...]) -> Place:
    try:
        status = os.stat(path)
        place = Place(path, (status.st_dev, status.st_ino))
        if place.identity in above:
            raise DataError(
                f"{shown(path)}: expected a folder, got a link to a folder above it, "
                f"{shown(os.path.realpath(path))}; remove the link"
            )
        if len(above) > DEEPEST:
            raise DataError(f"{shown(path)}: expected at most {DEEPEST} levels of folders")
        with os.scandir(path) as found:
            entries = sorted((e for e in found if not _hidden(e.name)), key=lambda e: e.name)
        for entry in entries:
            inside = path / entry.name
            if entry.is_dir():
                place.folders.append(_read_folder(inside, (*above, place.identity)))
            elif not entry.name.lower().endswith(EXTENSIONS):
                place.others.append(inside)
            elif entry.is_file():
                place.images.append(inside)
            else:
                raise DataError(f"{shown(inside)}: expected a file, got a broken link or a device")
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
    """Return split -> folder, and notes; a folder of classes is itself the training split."""
    named: dict[str, list[Place]] = {}
    for folder in top.folders:
        split = _split_of(folder)
        if split is not None:
            named.setdefault(split, []).append(folder)
    if not named:
        return {"train": top}, []
    where, known = shown(top.path), listed(p.name for found in named.values() for p in found)
    rest = [p for p in top.folders if _split_of(p) is None]
    extra = [p for p in rest if p.holds_images()]
    if extra:
        raise DataError(
            f"{where}: expected only splits ({known}) or only classes, got {_contents(extra)} too; "
            "move other folders elsewhere, or, if all are classes, put them into a folder "
            f"{shown(top.path / 'train')}"
        )
    for split, found in named.items():
        if len(found) > 1:
            raise DataError(
                f"{where}: expected one folder for the {split} split, got {_contents(found)}; "
                "rename all but one"
            )
    if "train" not in named:
        raise DataError(
            f"{where}: expected a folder train beside {known}, or only folders of classes, got no "
            "train split"
        )
    notes = [f"folders without images skipped: {listed(p.name for p in rest)}"] if rest else []
    return {split: named[split][0] for split in SPLITS if split in named}, notes


def _contents(places: Sequence[Place]) -> str:
    """Describe folders as "a (3 images), b (5 images)"."""
    return listed(f"{shown(p.name)} ({counted(len(p.all_images()), 'image')})" for p in places)


def _classes(place: Place) -> list[Place]:
    where, found = shown(place.path), place.folders
    if not found:
        raise DataError(
            f"{where}: expected one folder of images per class, got no folders, but "
            f"{counted(len(place.images), 'image')}"
        )
    for one in found:
        inner = [p for p in one.folders if _split_of(p) is not None and p.holds_images()]
        if inner:
            raise DataError(
                f"{where}: expected classes, got {shown(one.name)} with {_contents(inner)}, which "
                f"look like splits. If {shown(one.name)} is a class, put the split first, as in "
                f"{shown(Path(inner[0].name, one.name))}; if it is a task, pass {shown(one.path)}"
            )
    for one in found:
        if not one.holds_images():
            others = [path.name for p in one.below() for path in p.others]
            raise DataError(
                f"{shown(one.path)}: expected images of the class (files that end in "
                f"{', '.join(EXTENSIONS)}), got {listed(others) or 'none'}"
            )
    if len(found) > 1 and not any(one.images for one in found):
        deep = [shown(Path(one.name, p.name)) for one in found for p in one.folders]
        raise DataError(
            f"{where}: expected the images directly in the folder of their class, got images one "
            f"level deeper only ({listed(deep)}), so either level could be the classes"
        )
    return found


def _check_several(found: Sequence[Place], place: Place, top: Place) -> None:
    """Refuse a single class, often a folder around the actual one."""
    if len(found) > 1:
        return
    inner, where = [p for p in found[0].folders if p.holds_images()], shown(place.path)
    hint = f"; if {_contents(inner)} are the classes, " if inner else ""
    if inner and place is top:
        hint += f"pass their folder, {shown(found[0].path)}"
    elif inner:
        hint += f"move them to {where}"
    raise DataError(f"{where}: expected at least two classes, got one, {_contents(found)}{hint}")


def _check_same_classes(places: dict[str, Place], classes: dict[str, list[Place]]) -> None:
    expected = {p.name for p in classes["train"]}
    train = shown(places["train"].path)
    for split, found in classes.items():
        names = {p.name for p in found}
        if names == expected:
            continue
        lacks, more = sorted(expected - names), sorted(names - expected)
        alike = {_folded(n) for n in lacks} & {_folded(n) for n in more}
        raise DataError(
            f"{shown(places[split].path)}: expected the classes of {train}, got others: "
            + "; ".join(
                text
                for text in (
                    f"{listed(lacks)} missing" if lacks else "",
                    f"{listed(more)} too many" if more else "",
                    "some differ only in case or in the encoding of accents" if alike else "",
                )
                if text
            )
        )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _check_apart(classes: dict[str, list[Place]]) -> None:
    """Check that no folder is in two classes or splits by links."""
    seen: dict[tuple[int, int], Place] = {}
    for place in (p for found in classes.values() for one in found for p in one.below()):
        first = seen.setdefault(place.identity, place)
        if first is not place:
            raise DataError(
                f"{shown(place.path)}: expected separate folders, got a link to "
                f"{shown(first.path)}, whose images would be in two classes or splits"
            )
