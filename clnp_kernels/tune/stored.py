"""The table of a GPU from what was stored, by a check here or in a file: no kernel is run."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import TuneWarning, message
from .environment import Card, card_of, differences, digest, manifest
from .store import Store
from .table import Entry, Measured, Table, entry_from

SHIPPED = Path(__file__).parent / "shipped"
VARIABLE = "CLNP_KERNEL_TABLE"


def stored(index: int | None) -> Table | None:
    """The table of a CUDA device, None where nothing is stored or the kernels don't run on it."""
    if index is None:
        return None
    try:
        card = card_of(torch.device("cuda", index))
    except ValueError:
        return None
    store = open_store(card)
    entries = read(card, store)
    return table(card, store.environment, entries) if entries else None


def open_store(card: Card) -> Store:
    """The store of the environment of a card."""
    facts = manifest(card)
    return Store(facts, digest(facts))


def read(card: Card, store: Store) -> list[Entry]:
    """The entries of the file that `CLNP_KERNEL_TABLE` names if it is of this environment, else
    those of the store.
    """
    given = os.environ.get(VARIABLE, "")
    entries = _given(Path(given), store.facts) if given else None
    if entries is None:
        entries = store.read()
        if store.ignored:
            first, count = store.ignored[0], len(store.ignored)
            warn(f"{count} file(s) of {store.folder} ignored and made again: {first}")
    return entries


def table(
    card: Card, environment: str, entries: Sequence[Entry], absent: Mapping[str, str] | None = None
) -> Table:
    """The table of these entries and of those that the package ships for a card, whose environment
    has a digest.
    """
    return Table(environment, entries, shipped(card), absent)


def _given(file: Path, facts: Mapping[str, Any]) -> list[Entry] | None:
    """The entries of a file; None, and a warning, where it was made in another environment.

    Raises:
        ValueError: it is no table.
    """
    try:
        data = json.loads(file.read_text())
        other = dict(data["facts"])
        entries = [entry_from(entry) for entry in data["entries"]]
    except (OSError, LookupError, TypeError, ValueError) as error:
        wanted = "a table that `clnp tune --out FILE` wrote"
        raise ValueError(message(VARIABLE, f"{file} ({error})", wanted)) from error
    changed = differences(other, facts)
    if changed:
        warn(f"{VARIABLE}: {file} ignored, it was made in another environment: {changed}")
        return None
    return entries


def shipped(card: Card, folder: Path = SHIPPED) -> list[tuple[str, list[Measured]]]:
    """Measurements that the package brings: for this GPU, then for its architecture or the next
    older one that has some.
    """
    names = [card.name.replace(" ", "_")]
    architectures = [int(file.stem[3:]) for file in folder.glob("sm_*.json")]
    names += [f"sm_{n}" for n in sorted(architectures, reverse=True) if n <= card.capability][:1]
    found = []
    for name in names:
        file = folder / f"{name}.json"
        if file.is_file():
            entries = [entry_from(entry) for entry in json.loads(file.read_text())["entries"]]
            rows = [entry for entry in entries if isinstance(entry, Measured)]
            found.append((f"for {name.replace('_', ' ')}", rows))
    return found


def warn(text: str) -> None:
    """Warn of something about tables."""
    warnings.warn(f"clnp_kernels: {text}", TuneWarning, stacklevel=3)
