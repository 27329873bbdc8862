"""The check before the first use of a GPU, and the table that its process then follows.

Nothing of this happens inside an operator: `clnp.Learner`, `clnp run` and `clnp tune` call
`qualify`; a loop of your own may.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import torch

from .. import chooser, cublaslt, triton_kernels
from .._checks import FLOATING
from .._register import strict
from ..errors import MissingImplementationError
from . import environment
from .calls import ALIGNMENTS, LISTS, OPERATORS, name_of, runs, takes
from .environment import Card, differences
from .store import Store
from .stored import open_store, read, table, warn
from .supervise import run
from .table import Check, Entry, Table, entry_from

SECONDS = 60.0  # for the check of one kernel, in which it is compiled
WORKERS = 8  # processes at a time; each wakes the GPU and takes some of its memory
Say = Callable[[str], None]
__all__ = ["adopt", "differences", "digest_of", "facts_of", "forget", "leave", "qualify"]
_qualified: dict[int | None, Table | None] = {}  # fixed for the process


def say_on_stderr(text: str) -> None:
    """Print a line on standard error."""
    print(f"clnp: {text}", file=sys.stderr, flush=True)


def qualify(
    device: str | torch.device = "cuda",
    *,
    say: Say = say_on_stderr,
    wanted: str = "",
    card: Card | None = None,
) -> Table | None:
    """Check the kernels on a GPU unless this was done before, and let the process follow the table.

    The check runs in processes of its own, once per environment: 10 to 20 seconds. Its results, and
    measurements of `clnp tune`, are kept in `$CLNP_CACHE_DIR` or `~/.cache/clnp/kernels`.
    The first table of a device stays until the process ends.

    Arguments:
        device: a CUDA device.
        say: called with lines about what happens.
        wanted: digest of the table that a saved run took its steps with, which is taken again where
            it is kept here; "torch" for PyTorch's operators.
        card: the GPU itself, in tests.

    Returns:
        the table; None where PyTorch's operators serve: `CLNP_TUNE=off`, or a GPU that the kernels
        don't run on.

    Raises:
        MissingImplementationError: with `CLNP_TUNE=require` or `CLNP_STRICT=1`: the kernels don't
            run on this GPU; with `require`: none of them passed, or the check can't be run.
        ValueError: `CLNP_TUNE` or `CLNP_KERNEL_TABLE` is no good.
    """
    index = card.index if card else _index(torch.device(device))
    if chooser.tuning() == "off":
        _follow(index, None)
    elif index not in _qualified:
        _follow(index, _made(index, card, say, wanted))
    found = _qualified[index]
    now = found.digest if found else chooser.TORCH
    if wanted not in ("", now):
        warn(
            f"the saved run took its steps with the kernel table {wanted}, this process has {now}: "
            "the last bits of the numbers may differ"
        )
    return found


def _follow(index: int | None, found: Table | None) -> None:
    """Follow a table, or PyTorch's operators, from now on."""
    _qualified[index] = found
    chooser.use(index, found)


def _made(index: int | None, card: Card | None, say: Say, wanted: str) -> Table | None:
    """The table of a device that was not qualified in this process."""
    if wanted == chooser.TORCH and chooser.tuning() == "auto":
        say("the saved run took its steps with PyTorch's own operators, so they serve again")
        return None
    if card is None:
        try:
            card = environment.card_of(torch.device("cuda", index or 0))
        except ValueError as error:
            _refuse(str(error), index, say)
            return None
    return _table(card, say, wanted)


def _index(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def leave(device: str | torch.device, reason: str, say: Say = say_on_stderr) -> None:
    """Let PyTorch's operators serve on a device for the rest of the process, with the reason."""
    index = _index(torch.device(device))
    _refuse(reason, index, say)
    _follow(index, None)


def adopt(
    device: str | torch.device, data: dict[str, Any], card: Card | None = None
) -> Table | None:
    """Follow the table that another process of this run made: `Table.to_json`, or a digest
    of "torch" for PyTorch's operators.
    """
    index, found = card.index if card else _index(torch.device(device)), None
    if data["digest"] != chooser.TORCH:
        card = card or environment.card_of(torch.device(device))
        entries = [entry_from(entry) for entry in data["entries"]]
        facts = environment.manifest(card)
        found = table(card, environment.digest(facts), entries, chooser.absent)
    _follow(index, found)
    return found


def digest_of(device: str | torch.device) -> str:
    """Digest of the table that a device follows; "torch" where it was left to PyTorch's operators,
    "" before it was qualified.
    """
    index = _index(torch.device(device))
    found = _qualified.get(index)
    return found.digest if found else chooser.TORCH if index in _qualified else ""


def facts_of(device: str | torch.device) -> dict[str, Any]:
    """The manifest of a CUDA device, for a comparison of processes."""
    try:
        return environment.manifest(environment.card_of(torch.device(device)))
    except ValueError as error:
        return {"kernels": str(error)}


def forget() -> None:
    """Qualify anew at the next call. For tests."""
    _qualified.clear()
    chooser.forget()


def _refuse(reason: str, index: int | None, say: Say) -> None:
    """PyTorch's operators serve: an error if more was demanded, else a line."""
    if chooser.tuning() == "require" or strict():
        variable = "CLNP_STRICT=1" if strict() else "CLNP_TUNE=require"
        raise MissingImplementationError(f"{variable}: no kernel can serve on the GPU: {reason}")
    say(f"PyTorch's own operators serve on GPU {index}: {reason}")


def _table(card: Card, say: Say, wanted: str) -> Table:
    """The table of a card, after the checks that are missing."""
    store = open_store(card)
    entries = read(card, store)
    entries += check_missing(card, entries, store, say)
    found = table(card, store.environment, entries, chooser.absent)
    kept = _kept(card, store, wanted)
    if kept is not None and kept.digest == wanted != found.digest:
        say(f"following kernel table {wanted}, with which the saved run took its steps")
        found = kept
    if chooser.tuning() == "require" and not any(not c.reason for c in found.checks.values()):
        reasons = {c.reason for c in found.checks.values()} or {*chooser.absent.values()}
        raise MissingImplementationError(
            f"CLNP_TUNE=require: no kernel passed its check on {card.name}: "
            f"{'; '.join(sorted(reasons)) or 'the check could not be run'}"
        )
    store.write_json(f"table-{found.digest}", found.to_json())
    if store.problem:
        warn(
            f"the table of the GPU kernels can't be kept, so every process checks anew "
            f"({store.problem}); set CLNP_CACHE_DIR to a folder that can be written"
        )
    return found


def _kept(card: Card, store: Store, digest: str) -> Table | None:
    """The table of a digest, if one was in use here."""
    data = store.read_json(f"table-{digest}") if digest else None
    try:
        entries = [entry_from(entry) for entry in data["entries"]] if data else []
        return table(card, store.environment, entries, chooser.absent) if data else None
    except (LookupError, TypeError, ValueError):
        return None


def jobs_of_check() -> list[dict[str, Any]]:
    """One job per operator, implementation, dtype and alignment, for what is installed."""
    dtypes = {"cuda": FLOATING, "cublaslt": cublaslt.DTYPES}
    return [
        {
            "kind": "check",
            "operator": operator,
            "implementation": implementation,
            "dtype": name_of(dtype),
            "alignment": alignment,
        }
        # Equal kernels of several alignments are compiled once if they are not in turn.
        for alignment in ALIGNMENTS
        for operator in OPERATORS
        if alignment == 1 or operator not in LISTS
        for implementation in chooser.OFFERS[operator]
        if implementation != chooser.TORCH and implementation not in chooser.absent
        for dtype in dtypes.get(implementation, triton_kernels.DTYPES)
        if takes(implementation, dtype, alignment)
    ]


def check_missing(card: Card, entries: Sequence[Entry], store: Store, say: Say) -> list[Check]:
    """Run the checks that are not among the entries; each result is kept as soon as it is there."""
    known = {entry.kernel for entry in entries if isinstance(entry, Check)}
    jobs = [
        job
        for job in jobs_of_check()
        if (*[*job.values()][1:],) not in known and runs(job["implementation"], card.capability)
    ]
    if not jobs:
        return []
    say(
        f"checking {len(jobs)} kernels on {card.name}, once per version of driver, torch and "
        "triton: 10 to 20 seconds (CLNP_TUNE=off skips it)"
    )
    found, skipped = [], []
    with closing(run(card, jobs, SECONDS, workers_for(card))) as answers:
        for job, answer in answers:
            reason = answer.get("memory") or answer.get("skipped")
            if reason:
                skipped.append(str(reason))
                continue
            problem = answer["error"] if "error" in answer else answer["reason"]
            check = Check(**{k: v for k, v in job.items() if k != "kind"}, reason=problem)
            store.write(check)
            found.append(check)
    say(_summary(found, skipped))
    return found


def _summary(found: Sequence[Check], skipped: Sequence[str]) -> str:
    failed = [check for check in found if check.reason]
    text = f"{len(found) - len(failed)} kernels passed"
    if failed:
        text += f", {len(failed)} failed, where PyTorch's operators serve (`clnp info` has why)"
    if skipped:
        text += f", {len(skipped)} could not be checked and do not serve: {skipped[0]}"
    return text


def workers_for(card: Card) -> int:
    """Processes of a check: they compile, which keeps a core busy."""
    return 1 if card.device == "cpu" else max(1, min(WORKERS, (os.cpu_count() or 1) // 2))
