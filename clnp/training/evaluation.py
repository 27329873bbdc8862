"""Accuracy of a network over a whole split, with the task known or inferred."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.batches import batches, count, evaluation_batch
from ..data.inputs import Split
from ..errors import TrainingError
from ..network.inference import CALIBRATED, MEASURES, RULES, Inferred, Rule, choose
from ..parallel.ranks import current


@contextlib.contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; restores every module's mode."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def count_correct(
    net: nn.Module,
    split: Split,
    device: torch.device,
    batch_size: int | None = None,
    at_least: int = 0,
) -> int:
    """Count the examples of a split that the network classifies correctly, in evaluation mode.
    Counting stops once `at_least` can't be reached any more. Ranks that share their work
    (`clnp.parallel.ranks.sharing`) classify a piece each.
    """
    ranks = current()
    size = batch_size or evaluation_batch(split)
    pieces = batches(split, size, device, ranks=ranks)
    return ranks.total(correct_of(net, pieces, count(split) - at_least))


def correct_of(net: nn.Module, pieces: Iterable[tuple[Tensor, Tensor]], most_wrong: int) -> int:
    """Count the examples of these batches that the network classifies correctly, in evaluation
    mode. Counting stops once more than `most_wrong` are wrong.

    Raises:
        TrainingError: an output is NaN.
    """
    correct = wrong = 0
    with evaluating(net):
        for x, y in pieces:
            logits = net(x)
            check_outputs(logits)
            hits = int((logits.argmax(dim=-1) == y).sum())
            correct, wrong = correct + hits, wrong + len(y) - hits
            if wrong > most_wrong:
                break
    return correct


def check_outputs(outputs: Tensor) -> None:
    """Raises TrainingError where an output of an evaluated network is NaN."""
    if bool(outputs.isnan().any()):
        raise TrainingError(
            "evaluation: expected numbers as outputs, got NaN; look for NaN or huge numbers in the "
            "inputs, or take a lower lr"
        )


def accuracy(
    net: nn.Module, split: Split, device: torch.device, batch_size: int | None = None
) -> float:
    """Fraction of a split that the network classifies correctly, in evaluation mode."""
    return count_correct(net, split, device, batch_size) / count(split)


def inferred_accuracies(
    model: Any, tests: Sequence[Split | None], device: torch.device, calibration: Rule | None = None
) -> Inferred:
    """Accuracy on the learned tasks' test examples with the task inferred, by every rule.

    Arguments:
        model: a `clnp.Model` that has learned as many tasks as there are `tests`.
        tests: the test split of every task, None where it is not at hand.
        device: where the model is.
        calibration: a fitted rule, whose name becomes "calibrated".

    Returns:
        {rule: {"task": the task is right, "class_incremental": the task and the class within it,
        "domain_incremental": the class, whichever the task}}, fractions of each task's split [T].
        NaN where a split is None; "domain_incremental" is NaN too where tasks differ in their
        number of classes, and means something only where a class means the same in every task.
    """
    shared = len({model.tasks[k].classes for k in model.present}) == 1
    rules: dict[str, str | Rule] = {name: name for name in RULES}
    if calibration is not None:
        rules = {CALIBRATED: calibration, **rules}
    columns = [_of_split(model, k, split, device, shared, rules) for k, split in enumerate(tests)]
    return {
        rule: {measure: [column[rule][measure] for column in columns] for measure in MEASURES}
        for rule in rules
    }


@torch.no_grad()
def _of_split(
    model: Any,
    task: int,
    split: Split | None,
    device: torch.device,
    shared: bool,
    rules: Mapping[str, str | Rule],
) -> dict[str, dict[str, float]]:
    """{rule: {measure: fraction}} of one split; ranks that share their work take a piece each."""
    if split is None:
        return {rule: dict.fromkeys(MEASURES, math.nan) for rule in rules}
    ranks = current()
    right = torch.zeros(len(rules), len(MEASURES), dtype=torch.int64, device=device)
    for x, y in batches(split, evaluation_batch(split), device, ranks=ranks):
        logits = model.all_tasks(x)
        for counts, rule in zip(right, rules.values(), strict=True):
            found, label = choose(logits, rule)
            same_task, same_label = found == task, label == y
            hits = (same_task, same_task & same_label, same_label)
            counts += torch.stack([hit.sum() for hit in hits])
    fractions = ranks.sum(right).double() / count(split)
    if not shared:
        fractions[:, MEASURES.index("domain_incremental")] = math.nan
    return {
        rule: dict(zip(MEASURES, row.tolist(), strict=True))
        for rule, row in zip(rules, fractions, strict=True)
    }
