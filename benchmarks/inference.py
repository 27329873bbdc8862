"""Suite "inference": the extracted network of every task against the dense network, and one pass
that yields every task's logits against one pass for each.

Without a run (``--run``, a folder of ``clnp run`` or a checkpoint) the networks have learned tasks
with random channels, so many for each as fill nine tenths of the network in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import clnp
from benchmarks.cases import DTYPES, NETWORKS, SEED, Size
from benchmarks.checks import WrongResultError
from benchmarks.harness import processes, race
from benchmarks.record import Row, Table, rows_of
from benchmarks.state import freeze
from clnp.graph.graph import build
from clnp.models.networks import seeded_weights

FILLED = 0.9  # of the channels of every group, after the last task
TOGETHER = ("one pass per task", "all tasks at once")


@dataclass(frozen=True)
class Served:
    """A network that has learned tasks, and a batch for it.

    Attributes:
        network: key of `NETWORKS`.
        scale, tasks: factor on its widths, number of tasks; without meaning where there is a run.
        batch, dtype, device: of the batch; bf16 is autocast.
        run: a run folder or checkpoint, instead of random tasks.
    """

    network: str
    scale: float
    tasks: int
    batch: int
    dtype: str
    device: str
    run: str = ""

    @property
    def name(self) -> str:
        """The network's name, with its factor if that is not 1, or the name of the run."""
        if self.run:
            return Path(self.run).name
        return self.network if self.scale == 1 else f"{self.network} x {self.scale:g}"


def learned(served: Served) -> clnp.Model:
    """The network after its last task."""
    if served.run:
        return clnp.Learner.load(served.run).model.to(served.device)
    network = NETWORKS[served.network]
    with seeded_weights(SEED):
        model = clnp.convert(
            network.make(served.scale), torch.randn(1, *network.shape), verbose=False
        )
        for k in range(served.tasks):
            freeze(model, FILLED * (k + 1) / served.tasks, torch.randn(16, *network.shape))
    if model.is_convolutional:
        model.to(memory_format=torch.channels_last)
    return model.eval().to(served.device)


def batch_of(served: Served, model: clnp.Model) -> Tensor:
    """Random examples [B, ...]."""
    shape = model.graph.nodes[0].attrs["shape"][1:]
    x = torch.randn(served.batch, *shape, generator=torch.Generator().manual_seed(SEED))
    x = x.to(served.device)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def dense_network(model: clnp.Model) -> nn.Module:
    """The plain network of the model's full widths."""
    layers = {name: module.to_dense() for name, module in model.masked.items()}
    head = nn.Linear(model.inputs(model.groups.head), model.head.classes)
    return build(model.narrow_graph, {**layers, model.groups.head: head}).eval()


def network_of(model: clnp.Model, name: str) -> Callable[[Tensor], Any]:
    """The forward pass of a contender."""
    tasks = range(len(model.tasks))
    if name == TOGETHER[0]:
        return lambda x: [model(x, task=k) for k in tasks]
    if name == TOGETHER[1]:
        return model.all_tasks
    if name == "dense":
        dense = dense_network(model).to(model.device)
        return dense.to(memory_format=torch.channels_last) if model.is_convolutional else dense
    return clnp.extract(model, task=int(name.split()[1]))


def names_of(model: clnp.Model) -> list[str]:
    """The contenders."""
    together = TOGETHER if hasattr(model, "all_tasks") else TOGETHER[:1]
    return ["dense", *(f"task {k}" for k in range(len(model.tasks))), *together]


def make(served: Served, name: str) -> Callable[[], Any]:
    """A forward pass."""
    model = learned(served)
    x, network = batch_of(served, model), network_of(model, name)

    def step() -> Any:
        enabled = DTYPES[served.dtype] == torch.bfloat16
        with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=enabled):
            return network(x)

    return step


@torch.no_grad()
def check(model: clnp.Model, x: Tensor) -> None:
    """Checks the networks that are to be timed, in the model's own dtype.

    Raises:
        WrongResultError: an extracted network's logits are not the model's, bit for bit, or those
            of the one pass for all tasks are not, to rounding.
    """
    expected = [model(x, task=k) for k in range(len(model.tasks))]
    for k, logits in enumerate(expected):
        if not torch.equal(network_of(model, f"task {k}")(x), logits):
            raise WrongResultError(f"task {k}: the extracted network's logits differ, so no times")
    if TOGETHER[1] in names_of(model):
        pairs = zip(network_of(model, TOGETHER[1])(x), expected, strict=True)
        if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs):
            raise WrongResultError("all_tasks: logits differ from those of the tasks, so no times")


def multiply_adds(network: nn.Module, x: Tensor) -> int:
    """Multiply-adds of a forward pass over a batch."""
    return clnp.footprint(network, x[:1], repeats=1).multiply_adds * len(x)


def run(
    tables: Mapping[str, Table],
    size: Size,
    device: str,
    networks: Sequence[str] = (),
    fractions: Sequence[float] = (),
    run: str = "",
) -> None:
    """Measures; arguments as of `benchmarks.step.run`, and a run to take the network from."""
    with processes() as pool:
        for dtype, table in tables.items():
            for network in [run] if run else networks or size.networks:
                case = size.case("mlp" if run else network, 0.0, dtype, device)
                served = Served(
                    "" if run else network, case.scale, size.tasks, case.batch, dtype, device, run
                )
                model = learned(served)
                x = batch_of(served, model)
                check(model, x)
                results = race(pool, make, served, names_of(model), size)
                table.add(_rows(served, model, x, rows_of(results, {}, "dense")))


def _rows(served: Served, model: clnp.Model, x: Tensor, rows: list[Row]) -> list[Row]:
    """Rows with the columns of the case: `ratio` says by how much faster than dense."""
    whole = multiply_adds(dense_network(model).to(x.device), x)
    common = {"suite": "inference", "case": served.name, "batch": served.batch}
    common |= {"dtype": served.dtype, "device": served.device}
    for row in rows:
        network = network_of(model, row["contender"])
        row |= {**common, "ratio": 1 / row["ratio"]}
        if isinstance(network, nn.Module):
            work = multiply_adds(network, x)
            row |= {"bound": whole / work, "gflop": 2e-9 * work}
        if row["contender"].startswith("task "):
            row["task"] = int(row["contender"].split()[1])
    return rows
