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
    lines = [*_accuracies(), *_speeds()]
    return table(["", "ours", "next best", "the paper"], lines)


def _accuracies() -> list[list[str]]:
    mnist, cifar = (read(REPRODUCED / name / "summary.csv") for name in ("table1", "fig4"))
    (ours,) = where(mnist, contender="CLNP")
    (limited,) = where(cifar, contender="CLNP, limited")
    (smaller,) = where(read(REPRODUCED / "fig3" / "summary.csv"), contender="CLNP, m = 1.6 %")
    methods = {row["method"]: row for row in read(COMPARED / "methods.csv")}
    clnp, other = (
        methods["clnp"],
        _best([r for m, r in methods.items() if m not in (*BOUNDS, "clnp")]),
    )
    used = " and ".join(f"{100 * ours[f'used_{layer}_mean']:.0f}" for layer in ("fc1", "fc2"))
    return [
        [
            "permuted MNIST, 10 tasks: accuracy, %",
            _accuracy(ours),
            _next(mnist),
            PAPER["table1"]["CLNP"],
        ],
        ["the same: channels used in both layers, %", used, "", PAPER_CAPACITY],
        [
            "permuted MNIST, smaller tasks: how many fit",
            f"{smaller['tasks']:.0f}, not full ({_accuracy(smaller)} %)",
            "",
            PAPER_TASKS,
        ],
        [
            "split CIFAR-10/100, 6 tasks: accuracy, %",
            _accuracy(limited),
            _next(cifar),
            "figure only",
        ],
        [
            "permuted MNIST, 5 small tasks: accuracy, %",
            _accuracy(clnp),
            f"{_accuracy(other)} ({other['method']})",
            "",
        ],
        [
            "the same: training FLOP",
            f"{clnp['flops_mean']:.2g}",
            f"{other['flops_mean']:.2g} ({other['method']})",
            "",
        ],
    ]


def _accuracy(row: Row) -> str:
    std = row["acc_std"]
    return f"{100 * row['acc_mean']:.2f}" + (f" ± {100 * std:.2f}" if std != "" else "")


def _best(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: float(row["acc_mean"]))


def _next(rows: Sequence[Row]) -> str:
    others = [
        r for r in rows if not r["contender"].startswith("CLNP") and r["contender"] not in BOUNDS
    ]
    best = _best(others)
    return f"{_accuracy(best)} ({best['contender']})"


def _speeds() -> list[list[str]]:
    step = where(read(RESULTS / "cpu-avx2" / "step.csv"), case="mlp", fraction=0.5)
    tasks = where(read(RESULTS / "cpu-avx2" / "end-to-end.csv"), quantity="time")
    limited = [row for row in tasks if row["case"].endswith("limited")]
    one, (first, *_) = _times(step), read(RESULTS / "inference.csv")
    ten = _times(limited)
    return [
        ["training step, half the channels frozen: ms", *_race(one, 1)],
        ["ten tasks in sequence: seconds", *_race({n: t / 1e3 for n, t in ten.items()}, 1)],
        [
            "inference, first task's network: ms",
            f"{first['ms']:.1f}",
            f"{first['dense_ms']:.1f} (dense)",
            "",
        ],
    ]


def _times(rows: Sequence[Row]) -> dict[str, float]:
    """Return contender -> sum of its times."""
    times: dict[str, float] = {}
    for row in rows:
        times[row["contender"]] = times.get(row["contender"], 0.0) + row["median"]
    return times


def _race(times: Mapping[str, float], digits: int) -> list[str]:
    others = {name: t for name, t in times.items() if not name.startswith(OURS)}
    name = min(others, key=lambda n: others[n])
    return [f"{times[OURS]:.{digits}f}", f"{others[name]:.{digits}f} ({name})", ""]


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
            memory = f"{_each(rows, 'peak_memory_mean', 2**-20, 0)} MiB: {memory}"
        else:
            accuracy = time = "not measured here"
        lines.append([name, accuracy, forgetting, time, memory, result])
    return table(head, lines)


def _each(rows: Sequence[Row], key: str, factor: float, digits: int) -> str:
    return ", ".join(f"{factor * row[key]:.{digits}f}" for row in rows)
