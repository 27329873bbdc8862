"""A finished run of an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clnp.cli import results
from clnp.cli import run_folder as runs

MACHINE = "machine.json"


@dataclass(frozen=True)
class Run:
    """A contender with one seed.

    Attributes:
        contender: its name.
        seed: which.
        folder: the run folder.
        metrics: as `clnp.cli.results.read` gives them.
        seconds: of each task.
        machine: date, revision, hardware and versions.
    """

    contender: str
    seed: int
    folder: Path
    metrics: dict[str, Any]
    seconds: list[float]
    machine: dict[str, Any]

    @classmethod
    def read(cls, contender: str, seed: int, folder: Path) -> Run:
        """A run that has learned at least one task. Raises RunError where it has not."""
        seconds = [row["total"] for row in results.read_seconds(folder)]
        facts = runs.read_json(folder / MACHINE)
        return cls(contender, seed, folder, results.read(folder), seconds, facts)
