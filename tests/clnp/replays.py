"""A stand-in for CUDA graphs on a CPU: a capture remembers the step, a replay calls it again."""

from collections.abc import Callable

import torch
from torch import Tensor

from clnp.training.step_graph import Step


class Replays:
    """Backend of `StepGraph` without a GPU.

    Arguments:
        fails: captures raise.

    Attributes:
        ran, captured, replayed, closed: number of steps at once, captures, replays, closings.
        waits: why the step can't be recorded, or "".
    """

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.ran, self.captured, self.replayed, self.closed = fails, 0, 0, 0, 0
        self.waits = ""

    def run(self, step: Step, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.ran += 1
        return step(*inputs)

    def rehearse(self, step: Step, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], str]:
        return self.run(step, inputs), self.waits

    def capture(
        self, step: Step, inputs: tuple[Tensor, ...]
    ) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        self.captured += 1
        outputs = (torch.zeros(()), torch.zeros((), dtype=torch.int64))

        def replay() -> None:
            self.replayed += 1
            for static, now in zip(outputs, step(*inputs), strict=True):
                static.copy_(now) if static.shape == now.shape else None

        return replay, outputs

    def close(self) -> None:
        self.closed += 1
