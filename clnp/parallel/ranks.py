"""Processes ("ranks") that share a piece of work: how it is divided, added up and agreed on.

Work is shared within `sharing(ranks)` only; `current()` tells the functions below a learner who
they share with. Elsewhere a process works alone.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clnp_kernels.nn import PartialBatchNorm2d
from clnp_kernels.nn.synchronised import LostPeerError

from ..errors import ConfigError, TrainingError

T = TypeVar("T")


class Ranks:
    """The processes that share a piece of work.

    Arguments:
        group: a process group; None stands for this process alone.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        group: moves gradients and statistics, on the network's device.
        control: moves small numbers between CPUs.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = self.control = group
        self.rank, self.size = 0, 1
        if group is None:
            return
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.size > 1 and "gloo" not in dist.get_backend_config(group):
            members = dist.get_process_group_ranks(group)
            self.control = cast(dist.ProcessGroup, dist.new_group(members, backend="gloo"))

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    # Dividing

    def rows(self, total: int) -> range:
        """This rank's share of `total` examples in order."""
        return range(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def part(self, chunk: Tensor) -> Tensor:
        """This rank's share of a batch's rows [B]; it may be empty."""
        return chunk.tensor_split(self.size)[self.rank]

    def seed(self, seed: int) -> int:
        """A seed for what each rank draws for its own examples (dropout, augmentation)."""
        if self.main:
            return seed
        text = f"{seed}/rank {self.rank}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")

    # Adding up

    def sum(self, values: Tensor) -> Tensor:
        """Sums over the ranks, on the CPU: the same bits on every rank."""
        values = values.detach().cpu().clone()
        if self.size > 1:
            with self.connected():
                dist.all_reduce(values, group=self.control)
        return values

    def total(self, count: int) -> int:
        """The sum of every rank's count."""
        return count if self.size == 1 else int(self.sum(torch.tensor(count)))

    def average(
        self, parameters: Sequence[Tensor], loss: Tensor, correct: Tensor, examples: int
    ) -> tuple[Tensor, Tensor]:
        """Makes gradients of sums over this rank's examples those of the mean over all ranks'
        examples, in one message.

        Arguments:
            parameters: in the same order on every rank; a gradient that is None counts as zero.
            loss: [], sum over this rank's examples.
            correct: [] integer.
            examples: of this rank; ranks may have different numbers, also none.

        Returns:
            mean loss [], correct examples [] int64, over all ranks.

        Raises:
            TrainingError: another process was lost.
        """
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in parameters if p.grad is not None]
        # The last three numbers are never in less than float32.
        wide = torch.promote_types(loss.dtype, torch.float32)
        count = torch.tensor(examples, dtype=wide, device=loss.device)
        numbers = torch.stack([loss.to(wide), correct.to(wide), count])
        flat = torch.cat([*(g.reshape(-1) for g in gradients), numbers])
        with self.connected():
            dist.all_reduce(flat, group=self.group)
        loss_sum, correct_sum, count = flat[-3:].clone().unbind()
        flat.div_(count)
        sizes = [g.numel() for g in gradients]
        for gradient, mean in zip(gradients, flat[:-3].split(sizes), strict=True):
            gradient.copy_(mean.view_as(gradient))
        return loss_sum / count, correct_sum.long()

    @contextlib.contextmanager
    def synchronised(self, model: nn.Module) -> Iterator[None]:
        """Inside, batch norms in training take the statistics of all ranks' examples."""
        norms = [m for m in model.modules() if isinstance(m, PartialBatchNorm2d)]
        for norm in norms:
            norm.process_group = self.group if self.size > 1 else None
        try:
            yield
        except LostPeerError as error:
            raise self.lost(error) from error
        finally:
            for norm in norms:
                norm.process_group = None

    # Agreeing

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copies the first rank's numbers into every rank's tensors, in place."""
        if self.size == 1:
            return
        with torch.no_grad(), self.connected():
            for tensor in tensors:
                if tensor.numel():
                    whole = tensor.contiguous()
                    dist.broadcast(whole, group=self.group, group_src=0)
                    tensor.copy_(whole)

    def tell(self, message: T | None = None) -> T:
        """The first rank's message (plain Python data), on every rank."""
        held: list[Any] = [message]
        if self.size > 1:
            with self.connected():
                dist.broadcast_object_list(held, group=self.control, group_src=0)
        told: T = held[0]
        return told

    def gather(self, message: T) -> list[T]:
        """Every rank's message (plain Python data), by rank."""
        messages: list[Any] = [message] * self.size
        if self.size > 1:
            with self.connected():
                dist.all_gather_object(messages, message, group=self.control)
        return messages

    def agree(self, what: str, value: str) -> None:
        """Refuses to go on with ranks that hold different things.

        Raises:
            TrainingError: on every rank, naming those that differ from the first.
        """
        values = self.gather(value)
        other = [rank for rank, theirs in enumerate(values) if theirs != values[0]]
        if other:
            raise TrainingError(
                f"{what} of rank {', '.join(map(str, other))} differs from that of rank 0; all "
                "processes need the same network, settings, data, checkpoint_dir and versions"
            )

    @contextlib.contextmanager
    def together(self, what: str) -> Iterator[None]:
        """A block that succeeds on all ranks or fails on all: a rank whose own block succeeded
        raises TrainingError with the reason of the one that failed.
        """
        try:
            yield
        except Exception as error:
            self.gather(f"{type(error).__name__}: {error}")
            raise
        for rank, problem in enumerate(self.gather("")):
            if problem:
                raise TrainingError(f"{what} failed on rank {rank}: {problem}")

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Around messages: what gloo and nccl raise becomes a TrainingError."""
        try:
            yield
        except RuntimeError as error:
            raise self.lost(error) from error

    def lost(self, error: Exception) -> TrainingError:
        """The error for a message that did not arrive."""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return TrainingError(
            f"rank {self.rank} of {self.size} lost another process, or waited too long for it "
            f"({reason}). What was learned before this task is untouched. End all processes and "
            "start them again with the same checkpoint_dir: they go on where it stopped"
        )


ALONE = Ranks()
_CURRENT: ContextVar[Ranks] = ContextVar("ranks", default=ALONE)


def current() -> Ranks:
    """Who shares the work at hand; outside of `sharing` this process alone."""
    return _CURRENT.get()


@contextlib.contextmanager
def sharing(ranks: Ranks) -> Iterator[Ranks]:
    """Inside, evaluations, activity and training are divided among the ranks; every rank has to
    make the same calls.
    """
    token = _CURRENT.set(ranks)
    try:
        yield ranks
    finally:
        _CURRENT.reset(token)


def refuse_sharded(module: nn.Module) -> None:
    """Raises ConfigError where parameters are DTensors: boundaries are shapes, and those of a
    DTensor are spread over processes (FSDP2's `fully_shard`, tensor parallelism).
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    from torch.distributed.tensor import DTensor

    for name, parameter in module.named_parameters():
        if isinstance(parameter, DTensor):
            raise ConfigError(
                f"parameter {name!r} is a DTensor (fully_shard or distribute_module): pruning and "
                "freezing change the shapes of parameters, which sharded ones can't follow. Every "
                "process needs the whole network: Learner(..., distributed=True), or "
                "torch.nn.parallel.DistributedDataParallel around it"
            )
