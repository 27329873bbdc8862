"""Times of calls on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

CALLS = 10  # of a graph at least
TARGET = 4.0  # milliseconds of a timing


class CudaClock:
    """Times calls by events around replays of a graph, or by the host's clock around calls.

    Arguments:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._graphs: dict[tuple[str, str], tuple[torch.cuda.CUDAGraph, int]] = {}

    def milliseconds(self, call: Callable[[int], Any], sets: int, mode: str, name: str) -> float:
        """Time of `call(i)`, i from 0 to `sets - 1`, for one of them: of the GPU in a graph, with
        the launches from Python in eager mode.
        """
        if mode == "eager":
            return self._eager(call, sets)
        if (mode, name) not in self._graphs:
            self._graphs[mode, name] = self._capture(call, sets)
        graph, calls = self._graphs[mode, name]
        once = self._replays(graph, 1) / calls
        count = max(1, min(200, int(TARGET / max(once * calls, 1e-3))))
        return self._replays(graph, count) / count / calls

    def _eager(self, call: Callable[[int], Any], sets: int) -> float:
        rounds = -(-CALLS // sets)
        for i in range(sets):
            call(i)
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        for _ in range(rounds):
            for i in range(sets):
                call(i)
        torch.cuda.synchronize(self.device)
        return (time.perf_counter() - start) * 1e3 / (rounds * sets)

    def _capture(self, call: Callable[[int], Any], sets: int) -> tuple[torch.cuda.CUDAGraph, int]:
        """A graph of at least `CALLS` calls, and how many they are."""
        side, rounds = torch.cuda.Stream(self.device), -(-CALLS // sets)
        torch.cuda.synchronize(self.device)
        with torch.cuda.stream(side):
            for i in range(sets):
                call(i)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            for _ in range(rounds):
                for i in range(sets):
                    call(i)
        return graph, rounds * sets

    def _replays(self, graph: torch.cuda.CUDAGraph, count: int) -> float:
        """Milliseconds of `count` replays."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
