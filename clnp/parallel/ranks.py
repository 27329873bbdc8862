"""Processes ("ranks") that share work: division, sums, and agreement.

Work is shared inside `sharing(ranks)` only. `current()` returns the ranks of the innermost such
block; elsewhere a process works alone.
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
    """Processes that share a piece of work.

    Arguments:
        group: a process group; None means this process alone.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        group: process group for gradients and statistics, on the network's device.
        control: process group for small CPU messages (gloo).
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
        """True on rank 0, the only rank that writes files and prints."""
        return self.rank == 0

    # Dividing

    def rows(self, total: int) -> range:
        """This rank's contiguous share of `total` examples."""
        return range(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def part(self, chunk: Tensor) -> Tensor:
        """This rank's share of a batch [B, ...]; possibly empty."""
        return chunk.tensor_split(self.size)[self.rank]

    def seed(self, seed: int) -> int:
        """Derive the seed of this rank's dropout and augmentation; rank 0 keeps `seed`."""
        if self.main:
            return seed
        text = f"{seed}/rank {self.rank}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")

    # Adding up

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks, on the CPU; bit-identical on every rank."""
        values = values.detach().cpu().clone()
        if self.size > 1:
            with self.connected():
                dist.all_reduce(values, group=self.control)
        return values

    def total(self, count: int) -> int:
        """Sum of the counts of all ranks."""
        return count if self.size == 1 else int(self.sum(torch.tensor(count)))

    def average(
        self, parameters: Sequence[Tensor], loss: Tensor, metric: Tensor, weight: Tensor | int
    ) -> tuple[Tensor, Tensor]:
        """Replace gradients of this rank's loss sum by those of the mean over all examples.

        One message carries the gradients, the loss and the sums.

        Arguments:
            parameters: in the same order on every rank; a gradient of None counts as zero.
            loss: [], sum over this rank's examples.
            metric: [], sum of the metric over this rank's examples.
            weight: [], that the sum of all losses is divided by to get the mean, such as the
                number of examples; may differ between ranks and may be 0.

        Returns:
            mean loss [] and sum of the metric [] in its dtype, over all ranks.

        Raises:
            TrainingError: another process was lost.
        """
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in parameters if p.grad is not None]
        # Counts need at least float32, also under float16 losses.
        wide = torch.promote_types(loss.dtype, torch.float32)
        count = torch.as_tensor(weight, dtype=wide, device=loss.device).detach()
        numbers = torch.stack([loss.to(wide), metric.to(wide), count])
        flat = torch.cat([*(g.reshape(-1) for g in gradients), numbers])
        with self.connected():
            dist.all_reduce(flat, group=self.group)
        loss_sum, metric_sum, count = flat[-3:].clone().unbind()
        count = count.clamp(min=torch.finfo(count.dtype).tiny)  # nothing of the batch counts
        flat.div_(count)
        sizes = [g.numel() for g in gradients]
        for gradient, mean in zip(gradients, flat[:-3].split(sizes), strict=True):
            gradient.copy_(mean.view_as(gradient))
        return loss_sum / count, metric_sum.to(metric.dtype)

    @contextlib.contextmanager
    def synchronised(self, model: nn.Module) -> Iterator[None]:
        """Use the statistics of all ranks' examples in the batch norms of `model` inside."""
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
        """Copy the tensors of rank 0 into those of every rank, in place."""
        if self.size == 1:
            return
        with torch.no_grad(), self.connected():
            for tensor in tensors:
                if tensor.numel():
                    whole = tensor.contiguous()
                    dist.broadcast(whole, group=self.group, group_src=0)
                    tensor.copy_(whole)

    def from_first(self, message: T | None = None) -> T:
        """Return the message (plain Python data) of rank 0 on every rank."""
        messages: list[Any] = [message]
        if self.size > 1:
            with self.connected():
                dist.broadcast_object_list(messages, group=self.control, group_src=0)
        return cast(T, messages[0])

    def gather(self, message: T) -> list[T]:
        """Return the messages (plain Python data) of all ranks, ordered by rank."""
        messages: list[Any] = [message] * self.size
        if self.size > 1:
            with self.connected():
                dist.all_gather_object(messages, message, group=self.control)
        return messages

    def agree(self, what: str, value: str) -> None:
        """Check that all ranks have the same value.

        Raises:
            TrainingError: on every rank, naming the ranks that differ from rank 0.
        """
        values = self.gather(value)
        differing = [str(rank) for rank, own in enumerate(values) if own != values[0]]
        if differing:
            raise TrainingError(
                f"{what} of rank {', '.join(differing)} differs from that of rank 0; all "
                "processes need the same network, settings, data, checkpoint_dir and versions"
            )

    @contextlib.contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Make a block succeed on all ranks or fail on all.

        A rank that succeeded raises TrainingError with the reason of the one that failed.
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
        """Convert errors of gloo and nccl into TrainingError."""
        try:
            yield
        except RuntimeError as error:
            raise self.lost(error) from error

    def lost(self, error: Exception) -> TrainingError:
        """Build the error for a message that did not arrive."""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return TrainingError(
            f"rank {self.rank} of {self.size} lost another process, or waited too long for it "
            f"({reason}). Earlier tasks are intact. End all processes and restart them with the "
            "same checkpoint_dir to resume"
        )


ALONE = Ranks()
_CURRENT: ContextVar[Ranks] = ContextVar("ranks", default=ALONE)


def world() -> Ranks:
    """Return all processes of the default process group.

    Raises:
        ConfigError: `torch.distributed` is not initialized.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            "distributed=True: expected a process group of torch.distributed, got none; start the "
            "script with torchrun and call torch.distributed.init_process_group() first"
        )
    return Ranks(dist.group.WORLD) if dist.get_world_size() > 1 else ALONE


def current() -> Ranks:
    """Return the ranks of the innermost `sharing` block, or `ALONE` outside of one."""
    return _CURRENT.get()


@contextlib.contextmanager
def sharing(ranks: Ranks) -> Iterator[Ranks]:
    """Divide evaluation, activity and training among the ranks inside.

    Every rank must make the same calls in the same order.
    """
    token = _CURRENT.set(ranks)
    try:
        yield ranks
    finally:
        _CURRENT.reset(token)


def refuse_sharded(module: nn.Module) -> None:
    """Refuse a network with DTensor parameters (FSDP2's `fully_shard`, tensor parallelism).

    The boundary between active and free channels is a shape, and a DTensor's shape is spread over
    processes.

    Raises:
        ConfigError: naming the parameter.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    from torch.distributed.tensor import DTensor

    for name, parameter in module.named_parameters():
        if isinstance(parameter, DTensor):
            raise ConfigError(
                f"parameter {name!r}: expected a tensor, got a DTensor (fully_shard or "
                "distribute_module). Pruning and freezing change the shapes of parameters, which "
                "sharded ones can't follow; give every process the whole network, with "
                "Learner(..., distributed=True) or torch.nn.parallel.DistributedDataParallel"
            )
