"""A finished run of an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clnp.cli.run_folder import RunFolder, read_json

MACHINE = "machine.json"


@dataclass(frozen=True)
class Run:
    """A contender with one seed.

    Attributes:
        contender: its name.
        seed: which.
        folder: the run folder.
        metrics: as `RunFolder.read_metrics` gives them.
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
        run = RunFolder(folder)
        seconds = [row["total"] for row in run.read_table("timing.csv")]
        facts = read_json(folder / MACHINE)
        return cls(contender, seed, folder, run.read_metrics(), seconds, facts)
