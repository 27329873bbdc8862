"""Time of the extracted networks of a run: ``python -m benchmarks.inference RUN``.

Every task's narrow network against the dense network of the full widths, taking turns within one
run. Each narrow network is first checked against the model's own logits of that task. The work is
counted in multiply-adds of the layers.
"""

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import clnp
from clnp.graph import build
from clnp.plain import plain_module


def dense_network(model: clnp.Model) -> nn.Module:
    """A network of the model's full widths with random weights."""
    layers: dict[str, nn.Module] = {}
    for node in model.graph.layers:
        read, made = model.groups.reads[node.name], model.groups.makes.get(node.name)
        group = model.groups[read]
        inputs = model.sizes[read] if group.prunable else node.attrs["in_features"]
        outputs = model.sizes[made] if made else node.attrs["out_features"]
        bias = torch.randn(outputs) if node.attrs["bias"] else None
        layers[node.name] = plain_module(
            "linear", {}, {"weight": torch.randn(outputs, inputs) / inputs**0.5, "bias": bias}
        )
    return build(model.graph, layers).eval()


def multiply_adds(network: nn.Module) -> int:
    """Multiply-adds per example: the weights of all linear layers."""
    return sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Linear))


def milliseconds(network: nn.Module, x: Tensor) -> float:
    """Time of one forward pass."""
    start = time.perf_counter()
    network(x)
    return (time.perf_counter() - start) * 1e3


@torch.inference_mode()
def measure(model: clnp.Model, batch: int, rounds: int) -> list[dict[str, float]]:
    """One row per task: widths, multiply-adds and milliseconds against the dense network."""
    shape = model.graph.nodes[0].attrs["shape"][1:]
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))
    dense = dense_network(model)
    narrow = [clnp.extract(model, task=k) for k in range(len(model.tasks))]
    for k, network in enumerate(narrow):
        if not torch.equal(network(x), model(x, task=k)):
            raise SystemExit(f"task {k}: the extracted network's logits differ; no time is printed")
    times: list[list[float]] = [[] for _ in (dense, *narrow)]
    for _ in range(rounds):
        for contender, found in zip((dense, *narrow), times, strict=True):
            found.append(milliseconds(contender, x))
    whole = statistics.median(times[0])
    rows = []
    for k, network in enumerate(narrow):
        median = statistics.median(times[k + 1])
        work = multiply_adds(network) / multiply_adds(dense)
        rows.append(
            {
                "task": k,
                "work": round(work, 4),
                "ms": round(median, 4),
                "dense_ms": round(whole, 4),
                "time": round(median / whole, 4),
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; writes it as CSV if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder or checkpoint")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args(arguments)
    rows = measure(clnp.Learner.load(options.run).model, options.batch, options.rounds)
    print(f"batch {options.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'task':>4} {'work':>8} {'time':>8} {'ms':>9} {'dense ms':>9}")
    for row in rows:
        shares = f"{row['work']:8.3f} {row['time']:8.3f}"
        print(f"{row['task']:4.0f} {shares} {row['ms']:9.3f} {row['dense_ms']:9.3f}")
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
