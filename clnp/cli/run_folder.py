"""The folder of a run: who may write into it, what is in it, how it is read again."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.names import shown
from ..errors import ClnpError, ConfigError
from ..files.atomic import write_text
from .config import Config, differences

FORMAT = "clnp-run"
MAX_JSON = 256 << 20
VERSION = 1
CONFIG = "config.json"
METRICS = "metrics.json"
CHECKPOINT = "checkpoint.safetensors"
PROGRESS = "progress"
LOCK = ".lock"
LOG = "log.txt"
# All that a run writes; --overwrite deletes these names and no others.
FILES = (
    CONFIG,
    METRICS,
    CHECKPOINT,
    LOCK,
    LOG,
    "summary.json",
    "environment.json",
    "timing.csv",
    "accuracy.csv",
    "capacity.csv",
    "history.csv",
    "cost.csv",
    "summary.csv",
    "configurations.json",
    "compare.json",
    "compare.csv",
    "methods.csv",
    "report.html",
)
FOLDERS = ("plots", PROGRESS)
# Endings of the networks that `clnp export` writes beside them.
EXPORTS = ("pt2", "onnx", "safetensors")


@dataclass(frozen=True)
class Places:
    """Where a run finds its data and weights, which decides nothing.

    Attributes:
        data_root: folder of the data files, or None to download them.
        paths: files or folders, one per task, of the experiments that have them.
        pretrained: file of weights, or None.
        image_threads: threads that read image files.
        workers, executor: as in `clnp.Workers`.
    """

    data_root: str | None = None
    paths: tuple[str, ...] = ()
    pretrained: str | None = None
    image_threads: int = 2
    workers: int = 1
    executor: str = "processes"

    @classmethod
    def of(cls, options: Any) -> Places:
        """From the command line, all paths absolute."""
        return cls(
            _absolute(options.data_root),
            tuple(str(Path(path).absolute()) for path in options.paths),
            _absolute(options.pretrained),
            options.image_threads or cls.image_threads,
            options.workers or cls.workers,
            options.executor or cls.executor,
        )

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Places:
        """From a file, which can hold anything. Raises TypeError or ValueError."""
        places = cls(**{**values, "paths": tuple(values.get("paths", ()))})
        texts = (places.data_root or "", places.pretrained or "", *places.paths)
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            raise TypeError(f"data_root, paths and pretrained: expected paths, got {texts}")
        for name in ("image_threads", "workers"):
            value = getattr(places, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a number from 1, got {value!r}")
        return places

    def over(self, old: Places) -> Places:
        """These places, and the old ones where there are none."""
        return Places(
            self.data_root or old.data_root,
            self.paths or old.paths,
            self.pretrained or old.pretrained,
            self.image_threads,
            self.workers,
            self.executor,
        )


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


class RunError(ClnpError, RuntimeError):
    """A run folder is missing, damaged, or in use."""


def write_json(path: Path, data: Any) -> None:
    """JSON in a fixed layout: same data, same bytes. NaN is refused. Raises OSError."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    Raises:
        RunError: no such file, or damaged.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise RunError(f"{path}: is larger than {MAX_JSON >> 20} MiB; clnp did not write it")
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{path}: no such file; is {path.parent} the folder of a run?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: can't be read ({error})") from error


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Around what takes numbers out of a run's files: JSON that is whole can hold anything.

    Raises:
        RunError: they hold something else than a run.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, ClnpError):
            raise
        raise RunError(
            f"{folder}: its files are damaged, or not of this version of clnp "
            f"({type(error).__name__}: {error})"
        ) from error


def write_config(folder: Path, config: Config, places: Places) -> None:
    """config.json: the settings, and where data and weights were found."""
    data = {
        "format": FORMAT,
        "version": VERSION,
        "config": config.as_dict(),
        **dataclasses.asdict(places),
    }
    write_json(folder / CONFIG, data)


def read_config(folder: Path) -> tuple[Config, Places]:
    """(settings, places) of a run.

    Raises:
        RunError: no run folder, or from another version. ConfigError: settings that are nonsense.
    """
    data = read_json(folder / CONFIG)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise RunError(f"{folder / CONFIG}: was not written by clnp")
    if data.get("version") != VERSION:
        raise RunError(
            f"{folder / CONFIG}: version {data.get('version')!r}, this clnp reads {VERSION}"
        )
    known = {
        field.name: data[field.name] for field in dataclasses.fields(Places) if field.name in data
    }
    with reading(folder):
        return Config.from_dict(data["config"]), Places.checked(known)


def is_run(folder: Path) -> bool:
    """Did a run begin in this folder?"""
    return (folder / CONFIG).is_file()


def is_empty(folder: Path) -> bool:
    """Is there nothing in it but what a run leaves that was killed before its first file?"""
    if not folder.exists():
        return True
    return all(p.name in (LOCK, LOG) or p.name.endswith(".tmp") for p in folder.iterdir())


def seed_folders(root: Path, config: Config) -> list[tuple[int, Path]]:
    """(seed, its folder): the run folder itself for one seed, seed-0, seed-1, ... below it for
    several.
    """
    if len(config.seeds) == 1:
        return [(config.seeds[0], root)]
    return [(seed, root / f"seed-{seed}") for seed in config.seeds]


def check_free(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """May a run begin in this folder? Nothing is written or deleted.

    Raises:
        ConfigError: it isn't empty and neither `resume` nor `overwrite` was asked for, it holds
            something else than a run, or it can't be written.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--out: {folder} is a file, wanted a folder")
        _check_writable(folder)
        empty = is_empty(folder)
        str(folder).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"--out: the name {shown(folder)} is no UTF-8, which checkpoints need; take another"
        ) from None
    except OSError as error:
        raise ConfigError(f"--out: {folder} can't be used ({error.strerror})") from error
    if empty:
        return
    if not is_run(folder):
        raise ConfigError(
            f"--out: {folder} is not empty and holds no run of clnp; name another folder"
        )
    if not (resume or overwrite):
        raise ConfigError(
            f"--out: {folder} holds a run; continue it with --resume, or replace it with "
            "--overwrite"
        )


def check_same(folder: Path, config: Config) -> None:
    """Refuses to resume a run with other settings.

    Raises:
        ConfigError: naming what differs.
    """
    found = differences(read_config(folder)[0], config)
    if found:
        raise ConfigError(f"--resume: {folder} was begun with other settings: {', '.join(found)}")


def clear(folder: Path) -> None:
    """Deletes what runs write (FILES, FOLDERS, exports, seed folders with runs), nothing else."""
    for name in FILES:
        # config.json goes last: until then the folder still counts as a run, should this be
        # interrupted.
        if name not in (CONFIG, LOCK):
            (folder / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for ending in EXPORTS:
        for export in folder.glob(f"task-*.{ending}"):
            export.unlink()
    for below in folder.glob("seed-*"):
        if is_run(below) and not below.is_symlink():
            clear(below)
            if not any(p.name != LOCK for p in below.iterdir()):
                shutil.rmtree(below)
    (folder / CONFIG).unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing into the same run; the lock goes with the process, however
    it ends.

    Raises:
        RunError: another process holds it; a file of the run is a link. ConfigError: the folder
            can't be written.
    """
    _check_links(folder)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(f"--out: {folder} can't be written ({error})") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(
                f"{folder} is in use by another clnp process; wait for it or name another --out"
            ) from None
        remove_leftovers(folder)
        yield
    finally:
        os.close(handle)


def _check_links(folder: Path) -> None:
    """A run folder from elsewhere must not lead what is written somewhere else."""
    for path in (*(folder / name for name in (*FILES, *FOLDERS)), *folder.glob("seed-*")):
        if path.is_symlink():
            raise RunError(f"{path}: is a link, which a run does not write through; remove it")


def remove_leftovers(folder: Path) -> None:
    """Deletes half-written files of a killed process; only while holding the lock."""
    for place in (".", "plots", PROGRESS, "seed-*", "seed-*/plots", f"seed-*/{PROGRESS}"):
        for path in folder.glob(f"{place}/.*.tmp"):
            path.unlink(missing_ok=True)


def _check_writable(folder: Path) -> None:
    place = folder
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"--out: {folder} can't be made, {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"--out: {folder} can't be written, no permission for {place}")
