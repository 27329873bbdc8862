"""A process that checks and measures kernels, one job a line, so that no kernel can harm its
parent: `python -m clnp_kernels.tune.worker`, started by `supervise`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from importlib import import_module
from typing import Any

import torch

from . import check, measure
from .cases import Layer
from .environment import Card


def answer(job: dict[str, Any], card: Card) -> dict[str, Any]:
    """Do a job.

    Returns:
        {"reason": "" or what is wrong} of a check, {"entry": ...} of a measurement, {"memory":
        reason} where memory ran out, {"error": reason} for anything else that was raised.
    """
    kind = job.pop("kind")
    try:
        if kind == "check":
            return {"reason": check.verdict(**job, card=card)}
        layer = Layer(**job.pop("layer"))
        return {"entry": asdict(measure.measure(layer=layer, card=card, **job))}
    except torch.OutOfMemoryError as error:
        return {"memory": one_line(error)}
    except Exception as error:  # whatever a compiler or a kernel raises
        return {"error": one_line(error)}


def one_line(error: BaseException) -> str:
    """The kind and the first line of an error."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:300]


def main() -> None:
    """Answer the jobs of standard input, after a line that describes the card."""
    # Compilers print what they like; answers have a file of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(data: dict[str, Any]) -> None:
        answers.write(json.dumps(data) + "\n")
        answers.flush()

    card = Card(**json.loads(sys.stdin.readline()))
    if card.plugin:
        import_module(card.plugin)
    import_module("clnp_kernels.ops")  # registers the operators
    torch.set_num_threads(1)
    if torch.device(card.device).type == "cuda":
        torch.cuda.set_device(card.device)
    say({"ready": True})
    for line in sys.stdin:
        say(answer(json.loads(line), card))


if __name__ == "__main__":
    main()
