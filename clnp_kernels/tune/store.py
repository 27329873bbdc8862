"""Entries of a table on disk: a folder per environment, a JSON file per entry, written atomically.

`$CLNP_CACHE_DIR` or `~/.cache/clnp/kernels`, then schema and digest of the environment. Processes
may share it: each file is replaced as a whole, and all write the same entries.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .environment import SCHEMA
from .table import Entry, entry_from


def root() -> Path:
    """The folder of all environments."""
    given = os.environ.get("CLNP_CACHE_DIR", "")
    return Path(given) if given else Path.home() / ".cache" / "clnp" / "kernels"


class Store:
    """Entries of one environment.

    Arguments:
        facts: the manifest of the environment.
        environment: its digest.

    Attributes:
        folder: where entries are.
        ignored: files that can't be used, with the reason.
        problem: why nothing can be written; "" while it can.
    """

    def __init__(self, facts: Mapping[str, Any], environment: str) -> None:
        self.facts, self.environment = facts, environment
        self.folder = root() / str(SCHEMA) / environment
        self.ignored: list[str] = []
        self.problem = ""

    def read(self) -> list[Entry]:
        """The entries; damaged ones, and those of another environment, are noted in `ignored`."""
        found = []
        for file in sorted([*self.folder.glob("check-*.json"), *self.folder.glob("measured-*")]):
            try:
                found.append(self._entry(file))
            except (OSError, LookupError, TypeError, ValueError) as error:
                self.ignored.append(f"{file.name}: {error}")
        return found

    def _entry(self, file: Path) -> Entry:
        data = json.loads(file.read_text())
        if data["environment"] != self.environment:
            raise ValueError(f"made in another environment, {data['environment']}")
        if data["sha256"] != _digest(data["entry"]):
            raise ValueError("damaged")
        return entry_from(data["entry"])

    def write(self, entry: Entry) -> None:
        """Write an entry; where that fails, `problem` says why and the entry is kept nowhere."""
        data = asdict(entry)
        record = {"environment": self.environment, "entry": data, "sha256": _digest(data)}
        if not (self.folder / "manifest.json").exists():
            self.write_json("manifest", self.facts)
        self.write_json(entry.name, record)

    def write_json(self, name: str, data: Any) -> None:
        """Write a file of the folder as a whole."""
        if self.problem:
            return
        try:
            write_text(self.folder / f"{name}.json", json.dumps(data, indent=1) + "\n")
        except OSError as error:
            self.problem = f"{self.folder}: {error.strerror or error}"

    def read_json(self, name: str) -> Any:
        """The contents of a file of the folder, None where there is none or it is damaged."""
        try:
            return json.loads((self.folder / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole, or leave it as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
