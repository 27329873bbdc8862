"""A task's narrow network as a file that needs torch alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from clnp.checkpoint import replacing
from clnp.errors import CheckpointError
from clnp.extract import extract


def write(learner: Any, task: int, path: Path) -> str:
    """Writes the sub-network of a task with `torch.export`, for any batch size, whole or not at
    all.

    Read it with `torch.export.load(path).module()(x)`; no clnp is needed, weights and graph are all
    in the file.

    Arguments:
        learner: a `clnp.Learner` that learned the task.
        task: from 0.
        path: the file, by custom .pt2.

    Returns:
        a line about the file: widths, parameters, bytes, and the largest difference of its logits
        from the network's on the task's probe batch.

    Raises:
        CheckpointError: the file can't be written.
    """
    narrow = extract(learner.model, task).eval()
    probe = learner.certificate.probes[task].to(next(narrow.parameters()).device)
    example = probe[:1].repeat(
        4, *[1] * (probe.ndim - 1)
    )  # a batch of 1 would be taken for a constant
    program = torch.export.export(
        narrow, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    try:
        with replacing(path) as temporary:
            # torch insists on the ending.
            named = temporary.with_suffix(".pt2")
            torch.export.save(program, named)
            named.replace(temporary)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be written ({error})") from error
    with torch.inference_mode():
        difference = (
            (torch.export.load(path).module()(probe) - learner.model(probe, task=task)).abs().max()
        )
    widths = [
        layer.out_features for layer in narrow.modules() if isinstance(layer, torch.nn.Linear)
    ]
    parameters = sum(p.numel() for p in narrow.parameters())
    return (
        f"{path}: task {task}, {probe.shape[1]} -> {' -> '.join(map(str, widths))}, {parameters} "
        "parameters, "
        f"{path.stat().st_size} bytes; logits differ by at most {float(difference):.2g} from the "
        "network's"
    )
