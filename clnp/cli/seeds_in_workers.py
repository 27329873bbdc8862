"""Whole runs side by side: each in a worker, its lines on this console with its name in front."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from ..parallel import Workers, tell
from . import report
from .config import Config
from .run_folder import Places

Trial = tuple[Path, Config, Places]


class Lines:
    """A file that tells whole lines to the process that started this trial."""

    def __init__(self) -> None:
        self.rest = ""

    def write(self, text: str) -> int:
        """Takes text; its last line stays here until it is whole."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            tell("line", line)
        return len(text)

    def flush(self) -> None:
        """Nothing: lines go when they are whole."""


def run(
    function: Any, trials: Mapping[str, Trial], places: Places, console: Console
) -> dict[str, Any]:
    """Runs `function(folder, settings with one seed, places, console)` for every trial, as many at
    a time as there are workers: name -> what it returned.

    Raises:
        TrialError: some failed twice; the others ran to their ends.
    """

    def on_event(name: str, event: str, text: str) -> None:
        retry = f"{text}; trying again" if event == "on_retry" else text
        report.show_line(console, f"{name} | {retry}")

    threads = next(iter(trials.values()))[1].threads
    with Workers(places.workers, executor=places.executor, threads=threads) as workers:
        orders = {
            name: (function, folder, config, dataclasses.replace(places, workers=1))
            for name, (folder, config, places) in trials.items()
        }
        return workers.run(_quietly, orders, on_event)


def _quietly(function: Any, folder: Path, config: Config, places: Places) -> Any:
    console = Console(file=Lines(), width=160)  # type: ignore[arg-type]
    return function(folder, config, places, console)
