"""The folder of a run: its files, the right to write into it, and reading it again."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.names import shown
from ..errors import ClnpError, ConfigError
from ..files.atomic import write_text
from ..files.csv_text import csv_text
from ..html.page import PAGE
from .config import Config, differences

FORMAT = "clnp-run"
COMPARISON = "clnp-compare"
MAX_JSON = 256 << 20
VERSION = 1
CONFIG, COMPARE, LOCK, LOG = "config.json", "compare.json", ".lock", "log.txt"
METRICS, ENVIRONMENT = "metrics.json", "environment.json"
CHECKPOINT, PROGRESS, PLOTS = "checkpoint.safetensors", "progress", "plots"
TABLES = ("timing.csv", "accuracy.csv", "capacity.csv", "history.csv", "cost.csv")
SUMMARIES = ("summary.json", "summary.csv", "configurations.json", "compare.csv", "methods.csv")
# All that a run writes; --overwrite deletes these names and no others.
FILES = (
    *(CONFIG, METRICS, CHECKPOINT, LOCK, LOG, ENVIRONMENT, PAGE, COMPARE),
    *(*TABLES, *SUMMARIES),
)
FOLDERS = (PLOTS, PROGRESS)
# Endings of the networks that `clnp export` writes beside them.
EXPORTS = ("pt2", "onnx", "safetensors")


@dataclass(frozen=True)
class Places:
    """Places of a run's data and weights, and its workers. They decide no number.

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
        """These places, with the old ones for those that are not given."""
        return dataclasses.replace(
            self,
            data_root=self.data_root or old.data_root,
            paths=self.paths or old.paths,
            pretrained=self.pretrained or old.pretrained,
        )


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


@dataclass(frozen=True)
class Run:
    """A run that is to be made: its folder, its settings, its data.

    Attributes:
        folder: may hold a part of it already.
        config: with one seed or several.
        places: of data and weights.
    """

    folder: RunFolder
    config: Config
    places: Places

    def seeds(self) -> dict[str, Run]:
        """ "seed 3" -> the run of that seed alone."""
        return {
            f"seed {seed}": Run(folder, self.config.for_seed(seed), self.places)
            for seed, folder in self.folder.seeds(self.config).items()
        }


class RunError(ClnpError, RuntimeError):
    """A run folder is missing, damaged, or in use."""


def write_json(path: Path, data: Any) -> None:
    """JSON in a fixed layout: same data, same bytes. NaN is refused. Raises OSError."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Returns the data that `write_json` wrote.

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


def write_csv(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A CSV file with a header line; floats keep all their digits, missing values are empty."""
    write_text(path, csv_text(fields, rows))


class RunFolder:
    """The folder of a run, of the runs of several seeds, or of a comparison of methods.

    Arguments:
        path: the folder, which need not exist; another `RunFolder` gives the same one.

    Attributes:
        path, name: of the folder.
        checkpoint, log, progress, plots, page: paths of the learner's file, of the text of the
            console, of the task in training, of the figures and of the HTML page.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = self.path.name
        self.checkpoint, self.log = self.path / CHECKPOINT, self.path / LOG
        self.progress, self.plots = self.path / PROGRESS, self.path / PLOTS
        self.page = self.path / PAGE

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def below(self, name: str) -> RunFolder:
        """The run of a seed or method inside this folder."""
        return RunFolder(self.path / name)

    # What it holds

    @property
    def is_run(self) -> bool:
        """True if a run began here."""
        return (self.path / CONFIG).is_file()

    @property
    def is_comparison(self) -> bool:
        """True if a comparison began here."""
        return (self.path / COMPARE).is_file()

    @property
    def is_empty(self) -> bool:
        """True if it holds at most the leavings of a run killed before its first file."""
        if not self.path.exists():
            return True
        return all(p.name in (LOCK, LOG) or p.name.endswith(".tmp") for p in self.path.iterdir())

    def has_learned(self, tasks: int) -> bool:
        """Returns whether this run of one seed learned all its tasks. Raises RunError."""
        path = self.path / METRICS
        return path.is_file() and bool(read_json(path)["tasks_learned"] == tasks)

    def seeds(self, config: Config | None = None) -> dict[int, RunFolder]:
        """Seed -> its run: this folder for one seed, seed-0, seed-1, ... below it for several.

        Arguments:
            config: of the run; None reads it.
        """
        seeds = (config or self.read_config()[0]).seeds
        return {s: self if len(seeds) == 1 else self.below(f"seed-{s}") for s in seeds}

    # Reading and writing

    def write_config(self, config: Config, places: Places) -> None:
        """config.json: the settings, and the places of data and weights."""
        data = {"format": FORMAT, "version": VERSION, "config": config.as_dict()}
        write_json(self.path / CONFIG, {**data, **dataclasses.asdict(places)})

    def read_config(self) -> tuple[Config, Places]:
        """(settings, places) of a run.

        Raises:
            RunError: no run folder, or from another version. ConfigError: settings that are
                nonsense.
        """
        path = self.path / CONFIG
        data = read_json(path)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise RunError(f"{path}: was not written by clnp")
        if data.get("version") != VERSION:
            raise RunError(f"{path}: expected version {VERSION}, got {data.get('version')!r}")
        names = (field.name for field in dataclasses.fields(Places) if field.name in data)
        with self.reading():
            places = Places.checked({name: data[name] for name in names})
            return Config.from_dict(data["config"]), places

    def read_metrics(self) -> dict[str, Any]:
        """metrics.json, NaN above the diagonal of the accuracy matrix again. Raises RunError."""
        path = self.path / METRICS
        metrics: dict[str, Any] = read_json(path)
        try:
            R = metrics["accuracy_matrix"]
            metrics["accuracy_matrix"] = [[math.nan if v is None else v for v in row] for row in R]
        except (TypeError, KeyError) as error:
            raise RunError(f"{path}: was not written by clnp ({error!r})") from error
        return metrics

    def read_table(self, name: str) -> list[dict[str, Any]]:
        """The rows of a CSV file of numbers per task, such as timing.csv; empty without it."""
        path = self.path / name
        if not path.is_file():
            return []
        with open(path, newline="") as file:
            return [
                {k: v if k == "name" else float(v) for k, v in row.items()}
                for row in csv.DictReader(file)
            ]

    def read_environment(self) -> dict[str, Any] | None:
        """environment.json; None without it. Raises RunError."""
        path = self.path / ENVIRONMENT
        return read_json(path) if path.is_file() else None

    def write_environment(self, found: Mapping[str, Any]) -> None:
        """Writes environment.json."""
        write_json(self.path / ENVIRONMENT, found)

    def read_methods(self) -> list[str]:
        """The methods of a comparison. Raises RunError."""
        methods: list[str] = read_json(self.path / COMPARE)["methods"]
        return methods

    def write_methods(self, names: Sequence[str]) -> None:
        """Writes compare.json."""
        write_json(self.path / COMPARE, {"format": COMPARISON, "methods": list(names)})

    @contextmanager
    def reading(self) -> Iterator[None]:
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
                f"{self}: its files are damaged, or not of this version of clnp "
                f"({type(error).__name__}: {error})"
            ) from error

    # The right to write

    def check_free(self, *, resume: bool, overwrite: bool) -> None:
        """Checks that a run may begin here. Nothing is written or deleted.

        Raises:
            ConfigError: it isn't empty and neither `resume` nor `overwrite` was asked for, it holds
                something else than a run, or it can't be written.
        """
        try:
            if self.path.exists() and not self.path.is_dir():
                raise ConfigError(f"--out: expected a folder, got the file {self}")
            self._check_writable()
            empty = self.is_empty
            str(self).encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"--out: the name {shown(self.path)} is no UTF-8, which checkpoints need; take "
                "another"
            ) from None
        except OSError as error:
            raise ConfigError(f"--out: {self} can't be used ({error.strerror})") from error
        if empty:
            return
        if not self.is_run:
            raise ConfigError(
                f"--out: {self} is not empty and holds no run of clnp; name another folder"
            )
        if not (resume or overwrite):
            raise ConfigError(
                f"--out: {self} holds a run; continue it with --resume, or replace it with "
                "--overwrite"
            )

    def check_same(self, config: Config) -> None:
        """Refuses to resume a run with other settings. Raises ConfigError, naming what differs."""
        found = differences(self.read_config()[0], config)
        if found:
            raise ConfigError(f"--resume: {self} was begun with other settings: {', '.join(found)}")

    def clear(self) -> None:
        """Deletes what runs write (FILES, FOLDERS, exports, seed folders with runs), nothing
        else.
        """
        for name in FILES:
            # config.json goes last: until then the folder still counts as a run, should this be
            # interrupted.
            if name not in (CONFIG, LOCK):
                (self.path / name).unlink(missing_ok=True)
        for name in FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for ending in EXPORTS:
            for export in self.path.glob(f"task-*.{ending}"):
                export.unlink()
        for below in map(RunFolder, self.path.glob("seed-*")):
            if below.is_run and not below.path.is_symlink():
                below.clear()
                if not any(p.name != LOCK for p in below.path.iterdir()):
                    shutil.rmtree(below)
        (self.path / CONFIG).unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing into the same run; the lock goes with the process,
        however it ends.

        Raises:
            RunError: another process holds it; a file of the run is a link. ConfigError: the folder
                can't be written.
        """
        self._check_links()
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigError(f"--out: {self} can't be written ({error})") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"{self} is in use by another clnp process; wait for it or name another --out"
                ) from None
            self._remove_leftovers()
            yield
        finally:
            os.close(handle)

    def _check_links(self) -> None:
        """A run folder from elsewhere must not lead what is written somewhere else."""
        own = (self.path / name for name in (*FILES, *FOLDERS))
        for path in (*own, *self.path.glob("seed-*")):
            if path.is_symlink():
                raise RunError(f"{path}: is a link, which a run does not write through; remove it")

    def _remove_leftovers(self) -> None:
        """Deletes half-written files of a killed process; only while holding the lock."""
        for place in (".", PLOTS, PROGRESS, "seed-*", f"seed-*/{PLOTS}", f"seed-*/{PROGRESS}"):
            for path in self.path.glob(f"{place}/.*.tmp"):
                path.unlink(missing_ok=True)

    def _check_writable(self) -> None:
        place = self.path
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise ConfigError(f"--out: {self} can't be made, {place} is a file")
        if not os.access(place, os.W_OK | os.X_OK):
            raise ConfigError(f"--out: {self} can't be written, no permission for {place}")
