"""Suite "end-to-end": a sequence of tasks of the size of permuted MNIST, with fixed epochs.

Every contender trains the same tasks in the same order of examples and evaluates the validation
split after every epoch. After a task the same number of channels is frozen for all of them: those
that are most active in the network that ours has trained. So the networks are the same up to
rounding, and only the time differs. What comes between tasks (threshold search, freezing) is not
timed.

There are two sequences of the same capacity. In the first a task trains all channels that are free,
as in the paper: its time should fall as tasks are learned. In the second it trains no more channels
than the recipe allows: the others have weights of zero in dense networks, and are left out by those
that can.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import clnp
from benchmarks.cases import SEED, Case, Size
from benchmarks.checks import WrongResultError, check_steps
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.harness import ContenderError, forks
from benchmarks.memory import MIB
from benchmarks.record import OURS, Row, Table
from benchmarks.state import State, make_state
from clnp.cli.config import Config
from clnp.data import PermutedMNIST
from clnp.data.inputs import Split
from clnp.learner.budget import limits as limits_of
from clnp.network.keep import keep_first
from clnp.pruning.activity import measure_activity

# Whose settings and capacity are followed: those of the contender RECIPE with seed 0.
RESULTS = Path(__file__).parent / "results" / "reproduce" / "table1"
RECIPE = "CLNP"
BATCH = 256
VALIDATION = 0.2  # of as many examples as there are for training
# Ours last: when it has been timed, its process goes on to freeze channels for the next task.
NAMES = ("eager-masked", "dense", "compiled", "slices", "ours cached", "ours")


@dataclass(frozen=True)
class TaskSequence:
    """The learned sequence of tasks.

    Attributes:
        case: network, dtype, device; nothing frozen.
        tasks, epochs, examples: how many; `examples` of each task's training split.
        root: folder with MNIST's files; "" makes random data of its shape.
        limited: whether the recipe limits the channels that a task may train.
    """

    case: Case
    tasks: int
    epochs: int
    examples: int
    root: str = ""
    limited: bool = False

    @property
    def name(self) -> str:
        name = f"{self.case.name}, {self.tasks} tasks of {self.examples} x {self.epochs}"
        return f"{name}, limited" if self.limited else name


def task_data(sequence: TaskSequence, task: int) -> tuple[Split, Split]:
    """Training and validation split of a task: x [N, 784], y [N]."""
    if sequence.root:
        found = PermutedMNIST(sequence.root, tasks=sequence.tasks)[task]
        validation = _head(found.validation, round(VALIDATION * sequence.examples))
        return _head(found.train, sequence.examples), validation
    generator = torch.Generator().manual_seed(SEED)
    centres = torch.rand(10, 784, generator=generator)
    count = round(sequence.examples * (1 + VALIDATION))
    y = torch.randint(10, (count,), generator=generator)
    x = 0.5 * centres[y] + 0.5 * torch.rand(count, 784, generator=generator)
    order = torch.randperm(784, generator=torch.Generator().manual_seed(task))
    x = x[:, order]
    return (x[: sequence.examples], y[: sequence.examples]), (
        x[sequence.examples :],
        y[sequence.examples :],
    )


def _head(split: Split, count: int) -> Split:
    assert isinstance(split, tuple)
    return split[0][:count], split[1][:count]


def recipe() -> dict[str, Any]:
    """The settings of the run that is followed."""
    settings = json.loads((RESULTS / "settings.json").read_text())
    config: dict[str, Any] = settings["contenders"][RECIPE]["config"]
    return config


def fractions(tasks: int) -> list[dict[str, float]]:
    """After each task, the fraction of every layer that is frozen, as in the run that is followed;
    other numbers of tasks are spread over it.
    """
    with (RESULTS / "tasks.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if (r["contender"], r["seed"]) == (RECIPE, "0")]
    width = recipe()["width"]
    learned = [
        {key[5:]: int(row[key]) / width for key in row if key.startswith("used_")} for row in rows
    ]
    return [learned[(k + 1) * len(learned) // tasks - 1] for k in range(tasks)]


def limits(model: clnp.Model, sequence: TaskSequence, task: int) -> dict[str, int]:
    """Group -> how many channels a task may train, in proportion to the run that is followed;
    groups without a limit are left out.
    """
    if not sequence.limited:
        return {}
    config = Config.from_dict(recipe())
    sizes = {group.name: group.size for group in model.groups.prunable}
    name = "growth" if task else "first_growth"
    most = limits_of(config.learner_arguments()[name], list(sizes), name)
    assert config.width is not None
    return {name: max(1, round(n / config.width * sizes[name])) for name, n in most.items()}


def batches(split: Split, device: str, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Shuffled batches and where they stand; those of one seed are the same for all contenders."""
    assert isinstance(split, tuple)
    x, y = split
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    for rows in order.split(BATCH):
        yield x[rows].to(device), y[rows].to(device), rows


@torch.no_grad()
def accuracy(contender: Contender, split: Split, device: str) -> float:
    """Accuracy of the network in training, on a split."""
    contender.network.eval()
    assert isinstance(split, tuple)
    x, y = (tensor.to(device) for tensor in split)
    correct = sum(
        int((contender.logits(a).argmax(1) == b).sum())
        for a, b in zip(x.split(1000), y.split(1000), strict=True)
    )
    contender.network.train()
    return correct / len(y)


def learn(contender: Contender, sequence: TaskSequence, task: int) -> dict[str, float]:
    """Trains one task: seconds, validation accuracy, MiB held."""
    train, validation = task_data(sequence, task)
    device = sequence.case.device
    assert isinstance(train, tuple)
    start = time.perf_counter()
    contender.prepare(*train)
    for epoch in range(sequence.epochs):
        for x, y, rows in batches(train, device, task * sequence.epochs + epoch):
            contender.step(x, y, rows)
        correct = accuracy(contender, validation, device)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    held = sum(contender.held_bytes().values()) / MIB
    return {"seconds": seconds, "accuracy": correct, "held": held}


def first_state(sequence: TaskSequence) -> State:
    """The state at the beginning of the first task; the head is a single one, as in the paper's
    experiment.
    """
    state = make_state(sequence.case, head="single")
    state.model.compact(keep_first(state.model, limits(state.model, sequence, 0)))
    return state


def next_task(model: clnp.Model, sequence: TaskSequence, task: int) -> bytes:
    """Freezes the most active channels of task `task`, which has been trained, and begins the next
    with weights that depend on its number only; the model's state.
    """
    train, _ = task_data(sequence, task)
    activity = measure_activity(model, _head(train, 2048), torch.device(sequence.case.device))
    keep, shares = {}, fractions(sequence.tasks)[task]
    for group in model.groups.prunable:
        wanted = round(shares[group.name] * group.size)
        count = min(max(wanted - model.active(group), 1), model.free(group))
        free = activity[group.name][model.active(group) :]
        keep[group.name] = free.topk(count).indices.sort().values
    model.consolidate(keep)
    generator = torch.Generator().manual_seed(SEED + task)
    model.begin_task(generator=generator, most_new=limits(model, sequence, task + 1))
    model.train()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.getvalue()


def work(name: str, sequence: TaskSequence, pipe: Connection) -> None:
    """Life of a contender's process: gets the model's state before a task, sends what it measured
    and, if it is ours, the state before the next one.
    """
    state = first_state(sequence)
    warm = CONTENDERS[name](first_state(sequence))
    for _ in range(3):
        warm.step(state.x, state.labels)
    # torch.compile takes its time for evaluation too.
    accuracy(warm, task_data(sequence, 0)[1], sequence.case.device)
    del warm
    pipe.send("ready")
    for task in range(sequence.tasks):
        saved = pipe.recv()
        if saved is not None:
            state.model.load_state_dict(torch.load(io.BytesIO(saved)))
            state.model.train()
        contender = CONTENDERS[name](state)
        pipe.send(learn(contender, sequence, task))
        if name == OURS:
            last = task == sequence.tasks - 1
            pipe.send(None if last else next_task(state.model, sequence, task))


def measure(sequence: TaskSequence, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """For each task, contender -> what `learn` returns. They take turns task by task."""
    context = forks()
    pipes, processes = {}, []
    for name in names:
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(name, sequence, theirs)))
        processes[-1].start()
        theirs.close()
    try:
        for name, pipe in pipes.items():
            _receive(pipe, name)
        saved: Any = None
        for task in range(sequence.tasks):
            found = {}
            for name, pipe in pipes.items():
                pipe.send(saved)
                found[name] = _receive(pipe, name)
            saved = _receive(pipes[OURS], OURS)
            yield task, found
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join()


def _receive(pipe: Connection, name: str) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise ContenderError(f"{name}: its process ended; its message is above") from None


def check_accuracy(
    sequence: TaskSequence, task: int, found: Mapping[str, Mapping[str, float]]
) -> None:
    """All contenders that compute the method reach about the same accuracy.

    Raises:
        WrongResultError: one is more than 5 points off ours.
    """
    for name, values in found.items():
        off = abs(values["accuracy"] - found[OURS]["accuracy"])
        if CONTENDERS[name].exact and off > 0.05:  # type: ignore[attr-defined]
            raise WrongResultError(
                f"{name}, task {task} of {sequence}: accuracy {values['accuracy']:.3f}, ours "
                f"{found[OURS]['accuracy']:.3f}; wrong result, so no times"
            )


def rows(sequence: TaskSequence, task: int, found: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Time and memory of every contender."""
    case = sequence.case
    common: Row = {
        "suite": "end-to-end",
        "case": sequence.name,
        "batch": BATCH,
        "dtype": case.dtype,
    }
    common |= {"device": case.device, "task": task, "samples": 1}
    made = []
    for contender, values in found.items():
        ours = found[OURS]
        time_ms = {"quantity": "time", "unit": "ms", "median": values["seconds"] * 1e3}
        held = {"quantity": "total", "unit": "MiB", "median": values["held"]}
        for row, key in ((time_ms, "seconds"), (held, "held")):
            ratio = values[key] / ours[key]
            made.append({**common, "contender": contender, **row, "ratio": ratio})
    return made


def run(
    tables: Mapping[str, Table],
    size: Size,
    device: str,
    networks: Sequence[str] = (),
    fractions: Sequence[float] = (),
    root: str = "",
) -> None:
    """Measures; arguments as of `benchmarks.step.run`, and a folder with MNIST.

    The network is the MLP always; what is frozen, and what may be trained in the second sequence,
    follow `recipe`.
    """
    names = [name for name in NAMES if name != "compiled" or "mlp" in size.compiled]
    for dtype, table in tables.items():
        case = size.case("mlp", 0.0, dtype, device, BATCH)
        for fraction in (0.0, 0.5):
            here = replace(case, fraction=fraction)
            check_steps(here, names, head="single", dtypes=dict.fromkeys(["fp32", dtype]))
        for limited in (False, True):
            sequence = TaskSequence(
                case, size.tasks, size.epochs, size.examples, root, limited=limited
            )
            for task, found in measure(sequence, names):
                check_accuracy(sequence, task, found)
                table.add(rows(sequence, task, found))
