"""Running a function in two processes that `torch.distributed` joins.

The processes are forked from a server that has imported everything, so a pair costs well under a
second.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 120  # that a pair may take, and the longest wait for a message


def together(function: Callable[..., Any], *arguments: Any, ranks: int = 2) -> list[Any]:
    """Results of `function(*arguments)` in every process, by rank: plain data or tensors.

    A process that raised gives its exception, one that was killed its negative exit code.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "tests.clnp.learner.distributed_cases"])
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
        processes = [
            context.Process(
                target=_joined, args=(rank, ranks, folder, pipes[rank][1], function, arguments)
            )
            for rank in range(ranks)
        ]
        for process, (_, sender) in zip(processes, pipes, strict=True):
            process.start()
            sender.close()
        try:
            results = [
                _received(pipe, process)
                for (pipe, _), process in zip(pipes, processes, strict=True)
            ]
        finally:
            for process in processes:
                process.join(SECONDS)
                process.kill()
                process.join()
    return results


def _received(pipe: Any, process: Any) -> Any:
    try:
        if pipe.poll(SECONDS):
            return pipe.recv()
    except EOFError:
        pass
    process.join(SECONDS)
    return process.exitcode


def _joined(
    rank: int,
    ranks: int,
    folder: str,
    pipe: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    store = dist.FileStore(str(Path(folder) / "store"), ranks)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=SECONDS)
    )
    dist.barrier()  # one that ends at once must not leave while the other still connects
    try:
        result = function(*arguments)
    except Exception as error:
        result = error
    pipe.send(result)
    dist.destroy_process_group()
