"""Proof that earlier tasks did not move: their logits on a fixed batch, bit for bit."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from clnp.checkpoint import tensor_bytes
from clnp.errors import ConfigError
from clnp.model import Model

PROBE_ROWS = 64
PROBE_BYTES = 4 << 20


@dataclass(frozen=True)
class Entry:
    """What was recorded when a task had been learned.

    Attributes:
        task: its index.
        name: its name.
        digest: SHA-256 of its logits on the probe batch (dtype, shape and bytes).
        conditions: what the bits depend on: dtype, device, threads, torch version.
    """

    task: int
    name: str
    digest: str
    conditions: dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Outcome of recomputing one entry.

    Attributes:
        task, name: which.
        identical: whether the logits are the same bits.
        note: empty, or why a difference need not mean that the network moved (other threads,
            device, torch).
    """

    task: int
    name: str
    identical: bool
    note: str = ""


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
    """Per learned task a probe batch and the hash of its logits.

    The claim is exact under fixed conditions: the same batch, dtype, device, number of threads and
        torch build. Matrix
    products may round differently elsewhere, which `verify` reports as a note.
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
        """
        task = len(self.entries)
        if task >= len(model.tasks):
            raise ConfigError(
                f"record: {task} of {len(model.tasks)} learned tasks are recorded; call it once "
                "after every consolidate()"
            )
        probe = probe_from(x)
        entry = Entry(
            task, model.tasks[task].name, _digest_of(model, task, probe), _conditions(model)
        )
        self.entries.append(entry)
        self.probes.append(probe)
        return entry

    def verify(self, model: Model) -> list[Verdict]:
        """Recomputes every entry from the network's frozen buffers as they are now and compares bit
        by bit.
        """
        now = _conditions(model)
        verdicts = []
        for entry, probe in zip(self.entries, self.probes, strict=True):
            identical = (
                entry.task < len(model.tasks)
                and _digest_of(model, entry.task, probe) == entry.digest
            )
            changed = [
                f"{k} {entry.conditions.get(k)} -> {v}"
                for k, v in now.items()
                if entry.conditions.get(k) != v
            ]
            note = (
                ""
                if identical or not changed
                else "recorded under other conditions: " + ", ".join(changed)
            )
            verdicts.append(Verdict(entry.task, entry.name, identical, note))
        return verdicts

    def to_json(self) -> list[dict[str, Any]]:
        """The entries as JSON-able data; the probes travel as tensors."""
        return [asdict(entry) for entry in self.entries]

    @classmethod
    def from_json(cls, data: list[dict[str, Any]], probes: list[Tensor]) -> Certificate:
        """The inverse of `to_json`; raises TypeError or KeyError for other data."""
        certificate = cls()
        certificate.entries = [
            Entry(int(e["task"]), str(e["name"]), str(e["digest"]), dict(e["conditions"]))
            for e in data
        ]
        certificate.probes = list(probes)
        return certificate


def _digest_of(model: Model, task: int, probe: Tensor) -> str:
    # Fresh copies of the frozen buffers: a copy kept from earlier would agree with itself whatever
    # happened since.
    network = model.subnetwork(task, fresh=True)
    device = next(network.parameters()).device
    with torch.inference_mode():
        return logits_digest(network(probe.to(device)))


def _conditions(model: Model) -> dict[str, Any]:
    weight = model.head.free_weight
    device = weight.device
    hardware = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )
    return {
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": device.type,
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
