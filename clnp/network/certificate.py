"""Proof that earlier tasks did not move: frozen tensors and logits on a fixed batch, bit by bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..files.checkpoint import tensor_bytes
from .conditions import conditions_of, differences, fixed
from .model import Model
from .narrow import frozen_tensors
from .restore import dtype_name, dtype_of

PROBE_ROWS = 64
PROBE_BYTES = 4 << 20
NAMED = 8  # tensors that a note names


@dataclass(frozen=True)
class Entry:
    """What was recorded when a task had been learned.

    Attributes:
        task: its index.
        name: its name.
        digest: SHA-256 of its logits on the probe batch (dtype, shape and bytes).
        conditions: what the bits of the logits depend on; see `conditions_of`.
        random: SHA-256 of its logits on seeded random numbers; "" if not recorded.
        tensors: tensor of the task's network -> dtype and SHA-256 of what is frozen of it; empty
            if not recorded.
    """

    task: int
    name: str
    digest: str
    conditions: dict[str, Any]
    random: str = ""
    tensors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Outcome of recomputing one entry.

    Attributes:
        task, name: which.
        identical: whether the task's frozen tensors and its logits are the same bits.
        note: why not, in words; or what could not be compared.
        moved: the tensors of the task's network that are other bits, by their names in the
            network that was converted.
        conditions: those that differ from the recorded ones, "threads 1 -> 2". They explain other
            logits of the same tensors.
    """

    task: int
    name: str
    identical: bool
    note: str = ""
    moved: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()


def probe_from(x: Tensor) -> Tensor:
    """The first rows of x: at most 64 and at most 4 MiB, at least one. Contiguous copy on the
    CPU.
    """
    row = max(1, x[:1].numel() * x.element_size())
    rows = max(1, min(PROBE_ROWS, PROBE_BYTES // row))
    return x[:rows].detach().cpu().clone(memory_format=torch.contiguous_format)


def logits_digest(logits: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor."""
    sha = hashlib.sha256(f"{logits.dtype}|{tuple(logits.shape)}|".encode())
    sha.update(tensor_bytes(logits))
    return sha.hexdigest()


class Certificate:
    """Per learned task the hashes of its frozen tensors, and of its logits on a probe batch and on
    random numbers.

    The tensors are compared under any conditions. The claim about the logits is exact for the same
    batch, dtype, device, number of threads and torch build; matrix products may round differently
    elsewhere, and `verify` says which condition differs. Autocast is off, and cuDNN chooses
    deterministic algorithms, whatever the caller has set.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.probes: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.entries)

    def record(self, model: Model, x: Tensor) -> Entry:
        """Records the task learned last. x [B, ...]: examples of it; the first few are kept as the
        probe.

        Raises:
            ConfigError: every learned task has been recorded.
            DataError: x does not fit the network.
        """
        task = len(self.entries)
        if task >= len(model.tasks):
            raise ConfigError(
                f"record: {task} of {len(model.tasks)} learned tasks are recorded; call it once "
                "after every consolidate()"
            )
        if isinstance(x, Tensor) and x.dim():
            x = probe_from(x).to(model.device)
        model.check_input(x)
        probe = x.cpu()
        logits, noise = _logits(model, task, probe)
        tensors = {
            name: _tensor_digest(parts, parts[0].dtype)
            for name, parts in frozen_tensors(model, task).items()
        }
        entry = Entry(
            task,
            model.tasks[task].name,
            logits_digest(logits),
            _conditions(model),
            logits_digest(noise),
            tensors,
        )
        self.entries.append(entry)
        self.probes.append(probe)
        return entry

    def verify(self, model: Model) -> list[Verdict]:
        """Recomputes every entry from the network's frozen buffers as they are now and compares bit
        by bit.
        """
        now = _conditions(model)
        return [
            _verdict(model, entry, probe, differences(entry.conditions, now))
            for entry, probe in zip(self.entries, self.probes, strict=True)
        ]

    def to_json(self) -> list[dict[str, Any]]:
        """The entries as JSON-able data; the probes travel as tensors."""
        return [asdict(entry) for entry in self.entries]

    @classmethod
    def from_json(cls, data: list[dict[str, Any]], probes: list[Tensor]) -> Certificate:
        """The inverse of `to_json`; raises TypeError or KeyError for other data. Entries without
        digests of tensors, of older files, are read.
        """
        certificate = cls()
        certificate.entries = [
            Entry(
                int(e["task"]),
                str(e["name"]),
                str(e["digest"]),
                dict(e["conditions"]),
                str(e.get("random", "")),
                {str(name): str(digest) for name, digest in e.get("tensors", {}).items()},
            )
            for e in data
        ]
        certificate.probes = list(probes)
        return certificate


def _verdict(model: Model, entry: Entry, probe: Tensor, changed: tuple[str, ...]) -> Verdict:
    if entry.task >= len(model.tasks):
        note = f"the network has learned {len(model.tasks)} task(s), and not this one"
        return Verdict(entry.task, entry.name, False, note, conditions=changed)
    moved = _moved(frozen_tensors(model, entry.task), entry.tensors) if entry.tensors else ()
    logits, noise = _logits(model, entry.task, probe)
    same = logits_digest(logits) == entry.digest and (
        not entry.random or logits_digest(noise) == entry.random
    )
    note = _note(entry, moved, same, changed)
    return Verdict(entry.task, entry.name, same and not moved, note, moved, changed)


def _note(entry: Entry, moved: Sequence[str], same: bool, changed: Sequence[str]) -> str:
    """The difference between tensors that moved, other conditions, and a fault."""
    conditions = "recorded under other conditions: " + ", ".join(changed)
    if moved:
        names = ", ".join(moved[:NAMED])
        more = f" and {len(moved) - NAMED} more" if len(moved) > NAMED else ""
        return f"weights moved: {names}{more}" + (f"; {conditions}" if changed else "")
    if not entry.tensors:
        only = "recorded without hashes of the weights, so only the logits are compared"
        return only if same or not changed else f"{only}; {conditions}"
    if same:
        return ""
    if changed:
        return f"same weights, other bits of the logits; {conditions}"
    return "same weights and conditions, other logits: a fault of the hardware or of an operator"


def _moved(now: Mapping[str, Sequence[Tensor]], recorded: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the tensors whose hash is another; those that are missing or new too."""

    def same(name: str) -> bool:
        digest = recorded.get(name, "")
        dtype = dtype_of(digest.partition(" ")[0]) if digest else None
        return name in now and dtype is not None and _tensor_digest(now[name], dtype) == digest

    return tuple(name for name in {**recorded, **now} if not same(name))


def _tensor_digest(parts: Sequence[Tensor], dtype: torch.dtype) -> str:
    """ "float32 0a1b...": the hash of tensors as numbers of the given dtype, unless that rounds."""
    sha = hashlib.sha256()
    for part in parts:
        cast = part.to(dtype)
        if cast is not part and not torch.equal(cast.to(part).nan_to_num(), part.nan_to_num()):
            return f"{dtype_name(part.dtype)} rounded"
        sha.update(f"|{tuple(part.shape)}|".encode())
        sha.update(tensor_bytes(cast))
    return f"{dtype_name(dtype)} {sha.hexdigest()}"


def _logits(model: Model, task: int, probe: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of a task on its probe and on seeded random numbers."""
    # Fresh copies of the frozen buffers: a copy kept from earlier would agree with itself whatever
    # happened since.
    network = model.subnetwork(task, fresh=True)
    like = model.head.free_weight
    with torch.inference_mode(), fixed(like.device):
        logits, noise = (network(x.to(like)) for x in (probe, _noise(model, task)))
    return logits, noise


def _noise(model: Model, task: int) -> Tensor:
    """Random examples [B, ...] between -2 and 2, float32 on the CPU, always the same for a task."""
    shape = model.graph.nodes[0].attrs["shape"][1:]
    row = 4 * max(1, torch.Size(shape).numel())
    rows = max(1, min(PROBE_ROWS, PROBE_BYTES // row))
    generator = torch.Generator("cpu").manual_seed(task)
    return 4 * torch.rand(rows, *shape, generator=generator, dtype=torch.float32, device="cpu") - 2


def _conditions(model: Model) -> dict[str, Any]:
    weight = model.head.free_weight
    return conditions_of(weight.dtype, weight.device)
