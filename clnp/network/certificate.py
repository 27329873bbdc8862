"""Certificate that learned tasks are unchanged: hashes of frozen tensors and of logits."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..files.checkpoint import dtype_name, dtype_of, tensor_bytes
from .conditions import conditions_of, differences, fixed
from .model import Model
from .narrow import frozen_tensors

PROBE_ROWS = 64
PROBE_BYTES = 4 << 20
NAMED = 8  # number of tensors named in a note


@dataclass(frozen=True)
class Entry:
    """Record of a learned task.

    Attributes:
        task: index of the task.
        name: name of the task.
        digest: SHA-256 of its logits on the probe batch (dtype, shape and bytes).
        conditions: conditions that affect the bits of the logits; see `conditions_of`.
        random: SHA-256 of its logits on seeded random numbers.
        tensors: tensor of the task's network -> dtype and SHA-256 of its frozen values.
    """

    task: int
    name: str
    digest: str
    conditions: dict[str, Any]
    random: str
    tensors: dict[str, str]


@dataclass(frozen=True)
class Verdict:
    """Result of verifying one entry.

    Attributes:
        task, name: index and name of the task.
        identical: whether the task's frozen tensors and its logits have the same bits.
        note: reason of a difference.
        moved: tensors of the task's network with other bits, by their names in the converted
            network.
        conditions: conditions that differ from the recorded ones, as "threads 1 -> 2"; they explain
            other logits of the same tensors.
    """

    task: int
    name: str
    identical: bool
    note: str = ""
    moved: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()


def probe_from(x: Tensor, most: int = PROBE_ROWS) -> Tensor:
    """Copy the first rows of x to the CPU: at least one, at most `most` and at most 4 MiB."""
    row = max(1, x[:1].numel() * x.element_size())
    rows = max(1, min(most, PROBE_BYTES // row))
    return x[:rows].detach().cpu().clone(memory_format=torch.contiguous_format)


def logits_digest(logits: Tensor) -> str:
    """Return the SHA-256 of dtype, shape and bytes of a tensor."""
    sha = hashlib.sha256(f"{logits.dtype}|{tuple(logits.shape)}|".encode())
    sha.update(tensor_bytes(logits))
    return sha.hexdigest()


class Certificate:
    """Hashes of each learned task's frozen tensors, and of its logits on probe and random batches.

    Tensors are compared under any conditions. Logits are bit-identical for the same batch, dtype,
    device, number of threads and torch build; elsewhere matrix products may round differently, and
    `verify` reports the conditions that differ. It switches autocast off and uses deterministic
    algorithms of cuDNN.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.probes: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        names = ", ".join(repr(entry.name) for entry in self.entries[:NAMED])
        more = ", ..." if len(self.entries) > NAMED else ""
        return f"<Certificate of {len(self)} task{'s' * (len(self) != 1)}: {names}{more}>"

    def record(self, model: Model, x: Tensor) -> Entry:
        """Record the first task that is not recorded yet.

        Arguments:
            model: the network.
            x: [B, ...], examples of the task; the first rows are kept as the probe.

        Raises:
            ConfigError: every learned task has been recorded.
            DataError: x doesn't fit the network.
        """
        recorded = {entry.task for entry in self.entries}
        missing = [k for k in model.present if k not in recorded]
        if not missing:
            raise ConfigError(
                f"record(): expected a task that is not recorded yet, but {len(recorded)} of "
                f"{len(model.present)} learned tasks are recorded; call it once after every "
                "consolidate()"
            )
        task = missing[0]
        if isinstance(x, Tensor) and x.dim():
            x = probe_from(x).to(model.device)
        model.check_input(x)
        probe = x.cpu()
        logits, noise = _logits(model, task, probe)
        entry = Entry(
            task,
            model.tasks[task].name,
            logits_digest(logits),
            _conditions(model),
            logits_digest(noise),
            _digests(model, task),
        )
        self.entries.append(entry)
        self.probes.append(probe)
        return entry

    def verify(self, model: Model) -> list[Verdict]:
        """Recompute every entry from the network's current frozen buffers and compare all bits."""
        now = _conditions(model)
        return [
            _verdict(model, entry, probe, differences(entry.conditions, now))
            for entry, probe in zip(self.entries, self.probes, strict=True)
        ]

    def cut(self, task: int) -> None:
        """Drop the entries of the tasks from the given one on."""
        count = sum(entry.task < task for entry in self.entries)
        del self.entries[count:], self.probes[count:]

    def probe(self, task: int) -> Tensor:
        """Return the probe batch of a recorded task."""
        return self.probes[[entry.task for entry in self.entries].index(task)]

    def forget(self, model: Model, tasks: Collection[int]) -> None:
        """Drop the entries and probes of forgotten tasks. Hashes of tensors in which the others'
        channels stay and unread ones became zero are taken anew.

        Arguments:
            model: the network after `Model.forget`.
            tasks: indices of the forgotten tasks.
        """
        kept = [k for k, entry in enumerate(self.entries) if entry.task not in tasks]
        self.probes = [self.probes[k] for k in kept]
        self.entries = [
            replace(entry, tensors=_digests(model, entry.task))
            for entry in (self.entries[k] for k in kept)
        ]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the entries for JSON; probes are saved as tensors."""
        return [asdict(entry) for entry in self.entries]

    @classmethod
    def from_json(cls, data: list[dict[str, Any]], probes: list[Tensor]) -> Certificate:
        """Rebuild from `to_json` and the probes; raises TypeError or KeyError for other data."""
        certificate = cls()
        certificate.entries = [
            Entry(
                int(e["task"]),
                str(e["name"]),
                str(e["digest"]),
                dict(e["conditions"]),
                str(e["random"]),
                {str(name): str(digest) for name, digest in e["tensors"].items()},
            )
            for e in data
        ]
        certificate.probes = list(probes)
        return certificate


def _verdict(model: Model, entry: Entry, probe: Tensor, changed: tuple[str, ...]) -> Verdict:
    if entry.task >= len(model.tasks):
        note = f"the network has learned {len(model.tasks)} task(s), and not this one"
        return Verdict(entry.task, entry.name, False, note, conditions=changed)
    moved = _moved(frozen_tensors(model, entry.task), entry.tensors)
    logits, noise = _logits(model, entry.task, probe)
    same = (logits_digest(logits), logits_digest(noise)) == (entry.digest, entry.random)
    note = _note(moved, same, changed)
    return Verdict(entry.task, entry.name, same and not moved, note, moved, changed)


def _note(moved: Sequence[str], same: bool, changed: Sequence[str]) -> str:
    """Distinguish changed tensors, other conditions, and a fault."""
    conditions = "recorded under other conditions: " + ", ".join(changed)
    if moved:
        names = ", ".join(moved[:NAMED])
        more = f" and {len(moved) - NAMED} more" if len(moved) > NAMED else ""
        return f"weights moved: {names}{more}" + (f"; {conditions}" if changed else "")
    if same:
        return ""
    if changed:
        return f"same weights, other bits of the logits; {conditions}"
    return "same weights and conditions, other logits: a fault of the hardware or of an operator"


def _digests(model: Model, task: int) -> dict[str, str]:
    """Return the hashes of a task's frozen tensors."""
    found = frozen_tensors(model, task)
    return {name: _tensor_digest(parts, parts[0].dtype) for name, parts in found.items()}


def _moved(now: Mapping[str, Sequence[Tensor]], recorded: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of tensors with another hash, also of missing and new ones."""

    def same(name: str) -> bool:
        digest = recorded.get(name, "")
        dtype = dtype_of(digest.partition(" ")[0]) if digest else None
        return name in now and dtype is not None and _tensor_digest(now[name], dtype) == digest

    return tuple(name for name in {**recorded, **now} if not same(name))


def _tensor_digest(parts: Sequence[Tensor], dtype: torch.dtype) -> str:
    """Hash tensors after a cast to `dtype`, as "float32 0a1b..."; a cast that rounds is noted."""
    sha = hashlib.sha256()
    for part in parts:
        cast = part.to(dtype)
        if cast is not part and not torch.equal(cast.to(part).nan_to_num(), part.nan_to_num()):
            return f"{dtype_name(part.dtype)} rounded"
        sha.update(f"|{tuple(part.shape)}|".encode())
        sha.update(tensor_bytes(cast))
    return f"{dtype_name(dtype)} {sha.hexdigest()}"


def _logits(model: Model, task: int, probe: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the logits of a task on its probe and on seeded random numbers."""
    # Copy the frozen buffers anew: an earlier copy would agree with itself whatever has happened.
    network = model.subnetwork(task, fresh=True)
    like = model.head.free_weight
    with torch.inference_mode(), fixed(like.device):
        inputs = (x.to(like.device, model.input_dtype) for x in (probe, _noise(model, task)))
        logits, noise = (network(x) for x in inputs)
    return logits, noise


def _noise(model: Model, task: int) -> Tensor:
    """Draw examples [B, ...] on the CPU, always the same for a task.

    They are float32 between -2 and 2, or integers that every embedding knows.
    """
    shape = model.graph.nodes[0].attrs["shape"][1:]
    row = 4 * max(1, torch.Size(shape).numel())
    rows = max(1, min(PROBE_ROWS, PROBE_BYTES // row))
    generator = torch.Generator("cpu").manual_seed(task)
    if model.vocabulary:
        return torch.randint(model.vocabulary, (rows, *shape), generator=generator, device="cpu")
    return 4 * torch.rand(rows, *shape, generator=generator, dtype=torch.float32, device="cpu") - 2


def _conditions(model: Model) -> dict[str, Any]:
    weight = model.head.free_weight
    return conditions_of(weight.dtype, weight.device)
