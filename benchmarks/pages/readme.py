"""Tables of README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.documented import COMPARED
from benchmarks.pages.markdown import table
from benchmarks.pages.reproduced import PAPER
from benchmarks.plots import where
from benchmarks.record import OURS, Row, read

RESULTS = Path(__file__).parents[1] / "results"
REPRODUCED = RESULTS / "reproduce"
# Contenders that are no continual learning of one network: a network per task, all data at once.
BOUNDS = ("single-task SGD", "scratch", "joint")
PAPER_CAPACITY = "18 and 40"  # per cent of both layers, paper, Sec. 3.1
PAPER_TASKS = "about 25"  # paper, Fig. 3


def results() -> str:
    """Return the table of results: ours, the next best, and what the paper reports."""
    mnist, cifar = (_summary(name) for name in ("table1", "fig4"))
    ours, limited = mnist["CLNP"], cifar["CLNP, limited"]
    smaller = _summary("fig3")["CLNP, m = 1.6 %"]
    methods = {str(row["method"]): row for row in read(COMPARED / "methods.csv")}
    used = " and ".join(f"{100 * ours[f'used_{layer}_mean']:.0f}" for layer in ("fc1", "fc2"))
    fit = f"{smaller['tasks']:.0f}, not full, at {100 * smaller['acc_mean']:.2f} %"
    clnp, next_best = methods["clnp"], _next(methods)
    flops = [f"{methods[name]['flops_mean']:.2g}" for name in ("clnp", next_best)]
    lines = [
        ["permuted MNIST, 10 tasks: accuracy, %", *_pair(mnist, ours), PAPER["table1"]["CLNP"]],
        ["the same: channels used in both layers, %", used, "", PAPER_CAPACITY],
        ["permuted MNIST: number of smaller tasks that fit", fit, "", PAPER_TASKS],
        ["split CIFAR-10/100, 6 tasks: accuracy, %", *_pair(cifar, limited), "a figure"],
        ["permuted MNIST, 5 tasks, 784-800-800-10: accuracy, %", *_pair(methods, clnp), ""],
        ["the same: training FLOP", flops[0], f"{flops[1]} ({next_best})", ""],
        *_speeds(),
    ]
    return table(["", "ours", "next best", "the paper"], lines)


def _summary(experiment: str) -> dict[str, Row]:
    """Return contender -> its row of summary.csv."""
    rows = read(REPRODUCED / experiment / "summary.csv")
    return {str(row["contender"]): row for row in rows}


def _pair(known: Mapping[str, Row], ours: Row) -> list[str]:
    """Return the accuracies of ours and of the next best."""
    name = _next(known)
    return [_accuracy(ours), f"{_accuracy(known[name])} ({name})"]


def _next(known: Mapping[str, Row]) -> str:
    others = [n for n in known if not (n.upper().startswith("CLNP") or n in BOUNDS)]
    return max(others, key=lambda name: float(known[name]["acc_mean"]))


def _accuracy(row: Row) -> str:
    std, n = row["acc_std"], row.get("n", row.get("seeds"))
    spread = f" ± {100 * std:.2f}" if std != "" else ""
    return f"{100 * row['acc_mean']:.2f}{spread}, n = {n:.0f}"


def _speeds() -> list[list[str]]:
    step = where(read(RESULTS / "cpu-avx2" / "step.csv"), case="mlp", fraction=0.5)
    tasks = where(read(RESULTS / "cpu-avx2" / "end-to-end.csv"), quantity="time")
    limited = [row for row in tasks if row["case"].endswith("limited")]
    (first, *_) = read(RESULTS / "inference.csv")
    return [
        ["one training step, half the channels frozen: ms", *_race(step, 1)],
        ["training of ten limited tasks in sequence: s", *_race(limited, 1e-3)],
        [
            "inference with the first task's network: ms",
            f"{first['ms']:.1f}",
            f"dense {first['dense_ms']:.1f}",
            "",
        ],
    ]


def _race(rows: Sequence[Row], unit: float) -> list[str]:
    """Return the times of ours, and of the fastest other and dense PyTorch."""
    times: dict[str, float] = {}
    for row in rows:
        times[row["contender"]] = times.get(row["contender"], 0.0) + unit * row["median"]
    others = {name: t for name, t in times.items() if not name.startswith(OURS)}
    name = min(others, key=lambda n: others[n])
    return [f"{times[OURS]:.1f}", f"{name} {others[name]:.1f}, dense {times['dense']:.1f}", ""]


# line of the table -> (methods that were measured, forgetting where it was not, what is kept, what
# there is at the end)
PEERS: dict[str, tuple[tuple[str, ...], str, str, str]] = {
    "**CLNP**": (
        ("clnp",),
        "",
        "one network; gradients and optimizer state of the free part only",
        "a narrow network per task, smaller and faster than the whole",
    ),
    "PackNet": (
        ("packnet",),
        "",
        "one network, and the owner of each weight",
        "sparse weights at full width; faster with sparse hardware only",
    ),
    "EWC, SI": (
        ("ewc", "si"),
        "",
        "earlier weights and their importance",
        "one network; with one head no task id is needed",
    ),
    "replay (ER, DER++)": (
        ("er", "derpp"),
        "",
        "stored examples",
        "one network; with one head no task id is needed",
    ),
    "HAT": (
        (),
        "near 0, its gates close gradually",
        "one network, and gates per task",
        "a masked full-width network per task",
    ),
    "LoRA, adapters": (
        (),
        "0 while the base is frozen",
        "the base, and a small module per task",
        "a base with adapters; made for large pre-trained Transformers",
    ),
}


def peers() -> str:
    """Return the comparison of methods for users: measured numbers and known properties."""
    head = ("", "accuracy, %", "forgetting, points", "time", "memory", "what you get at the end")
    known = {row["method"]: row for row in read(COMPARED / "methods.csv")}
    lines = []
    for name, (measured, forgetting, memory, result) in PEERS.items():
        rows = [known[method] for method in measured]
        if rows:
            accuracy = _each(rows, "acc_mean", 100, 1)
            forgetting = _each(rows, "forgetting_mean", 100, 1)
            time = f"{_each(rows, 'flops_mean', 1e-12, 1)} TFLOP"
            if all(row["seconds_mean"] != "" for row in rows):
                time += f", {_each(rows, 'seconds_mean', 1, 0)} s"
            memory = f"{_each(rows, 'peak_memory_mean', 2**-20, 0)} MiB: {memory}"
        else:
            accuracy = time = "not measured here"
        lines.append([name, accuracy, forgetting, time, memory, result])
    return table(head, lines)


def _each(rows: Sequence[Row], key: str, factor: float, digits: int) -> str:
    return ", ".join(f"{factor * row[key]:.{digits}f}" for row in rows)
