"""A task's narrow network as a file that needs no clnp to be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..deploy.export_check import runner
from ..deploy.exporting import export
from ..deploy.extraction import extract, footprint


def write(learner: Any, task: int, path: Path, *, fold_batch_norm: bool = False) -> str:
    """Writes the sub-network of a task, for any batch size, whole or not at all.

    Arguments:
        learner: a `clnp.Learner` that learned the task.
        task: from 0.
        path: the file, .pt2, .onnx or .safetensors (see `clnp.deploy.exporting.export`).
        fold_batch_norm: see `clnp.extract`.

    Returns:
        a line about the file: widths, parameters, bytes; memory, work and time of the network on
        the task's probe batch; but for .onnx the largest difference of its logits there.

    Raises:
        ConfigError: a package for ONNX is missing.
        ExportError: the format can't express the network.
        CheckpointError: the file can't be written.
    """
    narrow = extract(learner.model, task, fold_batch_norm=fold_batch_norm).eval()
    probe = learner.certificate.probe(task).to(next(narrow.parameters()).device)
    names = learner.reports[task].class_names
    if names is not None and len(names) != learner.model.tasks[task].classes:
        names = None  # a single head with outputs that the task does not use
    export(narrow, path, probe, class_names=names)
    layers = [m for m in narrow.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Conv3d))]
    widths = [str(layer.weight.shape[0]) for layer in layers]
    if len(widths) > 8:
        widths[4:-3] = ["..."]
    cost = footprint(narrow, probe)
    shape = " x ".join(map(str, probe.shape[1:]))
    name = f"task {task + 1} of {len(learner.reports)}, {learner.reports[task].name}"
    return (
        f"{path}: {name}, {shape} -> {' -> '.join(widths)}, {cost.parameters} parameters, "
        f"{path.stat().st_size} bytes; in memory {cost.bytes} bytes, {cost.multiply_adds} "
        f"multiply-adds an example, {1000 * cost.seconds:.3g} ms for {len(probe)} examples"
        + _difference(learner, task, path, probe)
    )


def _difference(learner: Any, task: int, path: Path, probe: torch.Tensor) -> str:
    if path.suffix == ".onnx":
        return ""
    run = runner(path, path.suffix)
    with torch.inference_mode():
        difference = (run(probe) - learner.model(probe, task=task)).abs().max()
    return f"; logits differ by at most {float(difference):.2g} from the network's"
