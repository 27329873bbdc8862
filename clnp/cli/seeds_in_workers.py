"""Runs of seeds in worker processes; their lines are shown on this console after their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from ..parallel import Workers, tell
from . import report
from .run_folder import Run


class Lines:
    """A file that sends whole lines to the process that started this trial."""

    def __init__(self) -> None:
        self.rest = ""

    def write(self, text: str) -> int:
        """Takes text; its last line stays back until it is whole."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            tell("line", line)
        return len(text)

    def flush(self) -> None:
        """Nothing: lines go when they are whole."""


def run(
    function: Callable[[Run, Console], Any], runs: Mapping[str, Run], console: Console
) -> dict[str, Any]:
    """Calls `function(run, console)` for runs of one seed, as many at a time as there are workers:
    name -> result.

    Raises:
        TrialError: some failed twice; the others ran to their ends.
    """

    def on_event(name: str, event: str, text: str) -> None:
        retry = f"{text}; trying again" if event == "on_retry" else text
        report.show_line(console, f"{name} | {retry}")

    first = next(iter(runs.values()))
    places, threads = first.places, first.config.threads
    with Workers(places.workers, executor=places.executor, threads=threads) as workers:
        orders = {
            name: (
                function,
                dataclasses.replace(r, places=dataclasses.replace(r.places, workers=1)),
            )
            for name, r in runs.items()
        }
        return workers.run(_quietly, orders, on_event)


def _quietly(function: Callable[[Run, Console], Any], run: Run) -> Any:
    return function(run, Console(file=Lines(), width=160))  # type: ignore[arg-type]
