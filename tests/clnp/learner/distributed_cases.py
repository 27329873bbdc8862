"""Work of the processes of `test_distributed.py`; each function runs in every rank."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import clnp
from clnp import cli
from clnp.data import Task
from clnp.network.model import Model
from clnp.network.restore import EXTRA
from clnp.parallel.ranks import world
from clnp.plots import figures
from clnp.training.fit import Fit
from clnp_kernels.nn import PartialBatchNorm2d
from clnp_kernels.optim import AdamL1
from tests.clnp.cases import Residual, blobs, mlp, random_keep
from tests.clnp.conv_cases import SHAPE, Block, patterns

SETTINGS: dict[str, Any] = {
    "head": "multi",
    "epochs": 3,
    "lr": 0.01,
    "batch_size": 17,  # odd, and of 80 and 60 examples a smaller one is left
    "l1": 1e-4,
    "margin": 0.03,
    "schedule": "step",
}
NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp([24, 16]),
    "dropout": lambda: mlp([24, 16], dropout=0.2),
    "residual": Residual,
    # No biases before batch norms: their gradients are nothing but rounding, which Adam scales up.
    "norms": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        Block(5, 5, 1, norm=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(20, 11, bias=False),
        nn.BatchNorm1d(11),
        nn.GELU(),
        nn.Linear(11, 3),
    ),
}


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def converted(net: str, seed: int = 0) -> Model:
    """A float64 network with weights of its own on every rank."""
    torch.manual_seed(seed + rank())
    shape = SHAPE if net == "norms" else (12,)
    dense = NETS[net]().double()
    return clnp.convert(dense, torch.zeros(2, *shape, dtype=torch.float64), verbose=False)


def task_of(net: str, number: int) -> Task:
    task = patterns(number) if net == "norms" else blobs(number)
    wide = ((x.double(), y) for x, y in (task.train, task.validation, task.test))
    return Task(task.name, *wide, classes=task.classes)


def numbers(model: Model) -> dict[str, np.ndarray]:
    return {name: t.numpy().copy() for name, t in model.state_dict().items() if name != EXTRA}


def result(learner: clnp.Learner) -> dict[str, Any]:
    reports = [{**report.to_json(), "seconds": None} for report in learner.reports]
    return {
        "numbers": numbers(learner.model),
        "structure": learner.model.structure(),
        "reports": reports,
        "identical": [verdict.identical for verdict in learner.verify()],
    }


def learned(net: str, tasks: int, folder: Path | None, settings: dict[str, Any]) -> dict[str, Any]:
    """A learner after some tasks; in one process without, in several with `distributed`."""
    options: dict[str, Any] = {"checkpoint_dir": folder, "distributed": dist.is_initialized()}
    if folder is not None and (folder / "checkpoint.safetensors").exists():
        stream = [task_of(net, k) for k in range(tasks)]
        learner = clnp.Learner.load(folder, stream, **options)
    else:
        learner = clnp.Learner(converted(net), **options, **{**SETTINGS, **settings})
    for k in range(len(learner.reports), tasks):
        learner.learn(task_of(net, k))
    if folder is not None:
        learner.report(folder.parent / f"page-of-rank-{rank()}.html")
    return result(learner)


def killed(net: str, folder: Path, step: int) -> dict[str, Any]:
    """`learned`, but rank 1 dies at a step, counted over all tasks; every epoch is saved."""
    done = 0
    whole = Fit._step

    def counted(self: Fit, *arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == step and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, *arguments)

    Fit._step = counted  # this process is a child of the tests
    clnp.learner.progress.Progress.due = lambda self: self.folder is not None
    return learned(net, 2, folder, {})


def masks() -> np.ndarray:
    """Values that dropout let through in the first step of the first task."""
    model = converted("dropout")
    seen: list[Tensor] = []
    drop = next(m for m in model.modules() if isinstance(m, nn.Dropout))

    def note(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        if module.training:
            seen.append((y != 0) & (args[0] != 0))

    drop.register_forward_hook(note)
    clnp.Learner(model, distributed=True, **{**SETTINGS, "epochs": 1}).learn(task_of("mlp", 0))
    return seen[0][:8].numpy()


def with_other(what: str) -> None:
    """Ranks that don't fit together; raises."""
    own = rank()
    settings, task = dict(SETTINGS), task_of("mlp", 0)
    if what == "settings":
        settings["lr"] = 0.01 * (1 + own)
    if what == "data" and own:
        task = Task(task.name, task_of("mlp", 1).train, task.validation, task.test, 3)
    if what == "shape" and own:
        task = task_of("norms", 0)
    if what == "batch":
        settings["batch_size"] = 1
    net = "residual" if what == "network" and own else "mlp"
    learner = clnp.Learner(converted(net), distributed=True, **settings)
    if what == "weights" and own:
        with torch.no_grad():
            learner.model.head.free_weight[0, 0] += 1e-12
    learner.learn(task)


class Telling:
    """A callback that evaluates the network, which other ranks know nothing of."""

    def __init__(self) -> None:
        self.ranks: list[int] = []

    def on_epoch_end(self, learner: clnp.Learner, record: dict[str, Any]) -> None:
        x, y = task_of("mlp", 0).test
        clnp.training.evaluation.accuracy(learner.model, (x, y), torch.device("cpu"))
        self.ranks.append(rank())


def told() -> list[int]:
    """The rank of every call of a callback in this process."""
    callback = Telling()
    learner = clnp.Learner(
        converted("mlp"), distributed=True, callbacks=[callback], **{**SETTINGS, "epochs": 2}
    )
    learner.learn(task_of("mlp", 0))
    return callback.ranks


def normalised(sizes: list[int]) -> dict[str, np.ndarray]:
    """A batch norm with frozen channels over a batch that the ranks share in pieces of `sizes`."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(sum(sizes), 6, 3, 2, generator=generator, dtype=torch.float64) * 3 + 1
    coefficients = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    norm = PartialBatchNorm2d(6, active=2, activation="relu", dtype=torch.float64)
    with torch.no_grad():
        norm.free_weight.copy_(torch.linspace(0.5, 2, 4))
        norm.free_bias.copy_(torch.linspace(-1, 1, 4))
    own = slice(0, None)
    if dist.is_initialized():
        norm.process_group = dist.group.WORLD
        start = sum(sizes[: rank()])
        own = slice(start, start + sizes[rank()])
    piece = x[own].clone().requires_grad_()
    y = norm(piece)
    (y * coefficients[own]).sum().backward()
    gradients = [piece.grad, norm.free_weight.grad, norm.free_bias.grad]
    found = [y.detach(), *gradients, norm.free_mean, norm.free_var]
    names = ["y", "x.grad", "weight.grad", "bias.grad", "mean", "var"]
    return {name: value.numpy() for name, value in zip(names, found, strict=True)}


def own_loop(broadcast_buffers: bool) -> dict[str, Any]:
    """A loop of one's own in the second task: DistributedDataParallel in several processes."""
    model = converted("norms")
    if dist.is_initialized():
        world().broadcast(list(numbers_in_place(model)))
    generator = torch.Generator().manual_seed(3)
    model.begin_task(generator=generator)
    model.consolidate(random_keep(model, generator))
    before = numbers(model)
    clnp.begin_task(model, generator=generator)
    optimizer = AdamL1(clnp.parameter_groups(model, 1e-4), lr=0.01)
    x, y = task_of("norms", 1).train
    net: nn.Module = model.train()
    own = slice(0, 32)
    if dist.is_initialized():
        for norm in model.norms.values():
            norm.process_group = dist.group.WORLD
        net = DistributedDataParallel(model, broadcast_buffers=broadcast_buffers)
        own = slice(16 * rank(), 16 * rank() + 16)
    for _ in range(4):
        loss = F.cross_entropy(net(x[own]), y[own])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for norm in model.norms.values():
        norm.process_group = None
    model.consolidate(random_keep(model, generator))
    x = task_of("norms", 0).test[0]
    return {"before": before, "numbers": numbers(model), "logits": model(x, task=0).numpy()}


def numbers_in_place(model: Model) -> list[Tensor]:
    return [tensor for name, tensor in model.state_dict().items() if name != EXTRA]


def sharded(when: str) -> None:
    """A network whose parameters are DTensors; raises."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    model = converted("mlp")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if when == "before":
        fully_shard(model, mesh=mesh)
        clnp.Learner(model, distributed=True, **SETTINGS)
    if when == "begin":
        fully_shard(model, mesh=mesh)
        clnp.begin_task(model)
    if when == "in task":
        clnp.begin_task(model)
        fully_shard(model, mesh=mesh)
        clnp.consolidate(model)


def command(folder: Path, words: list[str]) -> tuple[int, str]:
    """`clnp WORDS` in joined processes -> exit code, what was printed."""
    path = folder / f"out-{rank()}.txt"
    with open(path, "w", encoding="utf-8") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        figures.DPI = 20  # small plots are drawn faster
        code = cli.main(words)
        sys.stdout.flush()
        sys.stderr.flush()
    return code, path.read_text()
