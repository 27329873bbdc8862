"""Time of a training step of a partly frozen MLP: ``python -m benchmarks.step``.

MLP 784-width-width-10, ReLU, cross entropy, L1 and Adam; a fraction of the channels of both hidden
layers is frozen. All contenders take turns within one run, each in its own process. Ours is first
checked: after a few steps its free weights must be as near to a float64 computation as the eager
ones are, or no time is printed.
"""

import argparse
import csv
import multiprocessing
import os
import resource
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contenders import CONTENDERS, EagerMasked, Ours, Problem, make_problem
from clnp_kernels import info

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Our error may be this many times the one of eager PyTorch, plus rounding of the weights
# themselves.
ERROR_RATIO = 2.0
ROUNDING = 1e-7
CHECKED_STEPS = 3
WARM_UP = 5
TURN = 4  # steps in a row
PAUSE = 0.03  # seconds


def exact_weights(problem: Problem, steps: int) -> list[Tensor]:
    """The free weights after some steps, computed in float64 by autograd on dense weights."""
    weights = [weight.double().requires_grad_() for weight in problem.weights]
    biases = [bias.double().requires_grad_() for bias in problem.biases]
    parameters = [*weights, *biases]
    kept = [parameter.detach().clone() for parameter in parameters]
    frozen = [active_out for _, active_out in problem.active] * 2
    optimizer = torch.optim.Adam(parameters, lr=problem.lr)
    for _ in range(steps):
        optimizer.zero_grad()
        y = problem.x.double()
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            y = F.linear(y if i == 0 else y.relu(), weight, bias)
        penalty = torch.stack([parameter.abs().sum() for parameter in parameters]).sum()
        (F.cross_entropy(y, problem.labels) + problem.l1 * penalty).backward()
        optimizer.step()
        with torch.no_grad():
            for parameter, old, rows in zip(parameters, kept, frozen, strict=True):
                parameter[:rows] = old[:rows]
    pairs = zip(weights, problem.active, strict=True)
    return [weight.detach()[active_out:] for weight, (_, active_out) in pairs]


def mean_error(weights: list[Tensor], exact: list[Tensor]) -> float:
    """Mean of |weight - exact| over all free weights."""
    pairs = list(zip(weights, exact, strict=True))
    total = sum(float((weight.double() - true).abs().sum()) for weight, true in pairs)
    return total / sum(true.numel() for true in exact)


def check(problem: Problem) -> None:
    """Exit with an error unless our free weights are right."""
    exact = exact_weights(problem, CHECKED_STEPS)
    ours, eager = Ours(problem), EagerMasked(problem)
    for _ in range(CHECKED_STEPS):
        ours.step()
        eager.step()
    error, allowed = mean_error(ours.free_weights(), exact), mean_error(eager.free_weights(), exact)
    if not error <= ERROR_RATIO * allowed + ROUNDING:
        sys.exit(
            f"wrong result, so no times: mean error {error:.3g}, PyTorch's own is {allowed:.3g}"
        )


def page_faults() -> int:
    """Pages that this process has had to be given since it started."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def work(name: str, problem: Problem, pipe: Connection) -> None:
    """Life of a contender's process: steps when asked for a number of them, 0 ends it."""
    contender = CONTENDERS[name](problem)
    for _ in range(WARM_UP):
        contender.step()
    pipe.send([])
    while count := pipe.recv():
        results = []
        for _ in range(count):
            pages, start = page_faults(), time.perf_counter()
            contender.step()
            results.append(((time.perf_counter() - start) * 1e3, page_faults() - pages))
        pipe.send(results)


def measure(problem: Problem, rounds: int) -> dict[str, Tensor]:
    """For each contender [steps, 2]: milliseconds and page faults of at least ``rounds`` steps.

    They take turns, each in a process of its own, as it would be in use: within one process, a
    contender's time depends on what memory the others have left in the allocator.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in CONTENDERS:
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(name, problem, theirs), daemon=True))
        processes[-1].start()
        pipes[name].recv()
    results: dict[str, list[tuple[float, int]]] = {name: [] for name in CONTENDERS}
    for _ in range(-(-rounds // (TURN - 1))):
        for name, pipe in pipes.items():
            # The threads of the last one stop spinning meanwhile; the first step fills the caches.
            time.sleep(PAUSE)
            pipe.send(TURN)
            results[name] += pipe.recv()[1:]
    for pipe in pipes.values():
        pipe.send(0)
    for process in processes:
        process.join()
    return {name: torch.tensor(values) for name, values in results.items()}


def rows_of(fraction: float, results: dict[str, Tensor]) -> list[dict[str, object]]:
    """One row of numbers for each contender."""
    ours = results["ours"][:, 0].quantile(0.5)
    rows = []
    for name, values in results.items():
        low, middle, high = values[:, 0].quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        row = {"fraction": fraction, "contender": name, "ms": middle, "q1": low, "q3": high}
        row |= {"page faults": int(values[:, 1].median())}
        rows.append({**row, "ours is faster by": float(middle / ours)})
    return rows


def show(rows: list[dict[str, object]]) -> None:
    """Print rows as a table."""
    form = "{fraction:8.2f}  {contender:14}{ms:8.2f} [{q1:7.2f}, {q3:7.2f}]"
    form += "{page faults:8}{ours is faster by:14.2f} x"
    for row in rows:
        print(form.format(**row))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--width", type=int, default=2000, help="channels of a hidden layer")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75])
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="bf16: autocast")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--csv", type=Path, help="append the rows, with versions, to this file")
    return parser.parse_args()


def append(path: Path, rows: list[dict[str, object]]) -> None:
    """Append rows to a CSV file, with a header if it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        if new:
            writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Check, measure, print, and append to the CSV file if there is one."""
    args = arguments()
    torch.manual_seed(0)
    settings = {"width": args.width, "batch": args.batch, "dtype": args.dtype, **info.versions()}
    print(", ".join(f"{key} {value}" for key, value in settings.items()))
    print(
        f"load of the machine: {os.getloadavg()[0]:.1f}; median [quartiles] of {args.rounds} steps"
    )
    print("fraction  contender           ms [quartiles]         faults  ours is faster by")
    for fraction in args.fractions:
        problem = make_problem(args.width, args.batch, fraction, DTYPES[args.dtype])
        check(problem)
        rows = rows_of(fraction, measure(problem, args.rounds))
        show(rows)
        if args.csv:
            append(args.csv, [{**row, **settings, "rounds": args.rounds} for row in rows])


if __name__ == "__main__":
    main()
