"""A whole training step as one CUDA graph: forward, loss, backward and optimizer in one launch.

Small networks spend their steps on launches, not on work; a graph launches them all at once. What
can't be captured runs step by step as before, and a message says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor

from clnp_kernels import chooser

Step = Callable[..., "tuple[Tensor, ...]"]
Key = tuple[tuple[torch.Size, torch.dtype], ...]
WAITS = "called a synchronizing CUDA operation"  # torch's words
WARM_UP = 3  # steps before the capture: they make the optimizer's state and load what is lazy


class Backend(Protocol):
    """Runs steps before the capture, and captures one."""

    def run(self, step: Step, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run a step at once."""

    def rehearse(self, step: Step, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], str]:
        """Run a step at once: its outputs, and why it can't be recorded, or ''."""

    def capture(
        self, step: Step, inputs: tuple[Tensor, ...]
    ) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """Record a step on these inputs without running it: what replays it, and its outputs."""

    def close(self) -> None:
        """Give back the memory of all captures, which nothing refers to any more."""


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all captures on a device: memory that is freed on one serves no other."""
    return torch.cuda.Stream(device)


class CudaGraphs:
    """CUDA graphs of PyTorch; steps before the capture run on a stream aside, as it demands.

    Graphs of one backend share their memory: they never run at the same time, and what has to
    outlive a replay (parameters, state, sums) lies outside.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = _side_stream(device)
        self.pool: Any = None

    def run(self, step: Step, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Run a step at once, on the stream aside."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outputs = step(*inputs)
        current.wait_stream(self.stream)
        for tensor in outputs:
            tensor.record_stream(current)
        return outputs

    def rehearse(self, step: Step, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], str]:
        """Run a step at once, and look for what waits for the device.

        A capture that fails leaves torch's random generator and memory pool unusable up to torch
        2.12, so it must not come to that.
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                outputs = self.run(step, inputs)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        waits = [str(w.message) for w in seen if WAITS in str(w.message)]
        for warning in seen:
            if WAITS not in str(warning.message):
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
        return outputs, waits[0].splitlines()[0] if waits else ""

    def capture(
        self, step: Step, inputs: tuple[Tensor, ...]
    ) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """Record a step without running it."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.device)
        # Other threads, such as those that load data, may use the device meanwhile.
        options: Any = {"stream": self.stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, pool=self.pool, **options):
            outputs = step(*inputs)
        self.pool = graph.pool()
        return graph.replay, outputs

    def close(self) -> None:
        """Give back the memory of all captures: what a graph's pool keeps serves nothing else."""
        self.pool = None
        torch.cuda.empty_cache()


class StepGraph:
    """Calls a training step, from the fourth full batch on as a captured graph.

    The step is a function of tensors that does everything: it clears the gradients
    (``zero_grad(set_to_none=True)``), computes forward, loss and backward, calls
    ``optimizer.step()`` and returns tensors on the device. It must not read numbers back
    (``.item()``, ``float(loss)``). Every call is exactly one step, whether it runs at once or as a
    graph, on the same kernels; batches of other shapes than the first (the last of an epoch) always
    run at once.

    The learning rate becomes a tensor on the device, so that schedules reach the captured step:
    change it with :func:`set_rate`.

    Arguments:
        step: inputs -> outputs, tuples of tensors. The outputs are overwritten by the next call.
        optimizer: the one that ``step`` calls; AdamL1 and SGDL1 can be captured, and those of
            ``torch.optim`` with ``capturable=True``.
        device: of the parameters. On a CPU every step runs at once.
        backend: what captures; None: CUDA graphs on a GPU, nothing elsewhere.
        on_fallback: called once with the reason why steps can't be captured; None: a warning.
        together: steps of one graph in `steps`, which launches it once for all of them.

    Attributes:
        reason: why steps are not captured; empty while they are or may be.
        replays: steps that ran as a graph.
    """

    def __init__(
        self,
        step: Step,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        backend: Backend | None = None,
        on_fallback: Callable[[str], None] | None = None,
        together: int = 1,
    ) -> None:
        self.step, self.optimizer, self.together = step, optimizer, together
        self.backend = backend
        if backend is None and device.type == "cuda":
            self.backend = CudaGraphs(device)
        self.reason = "" if self.backend is not None else f"no graphs on {device.type}"
        self.replays = 0
        self._on_fallback = on_fallback or _warn
        self._calls: int = 0
        self._key: Key | None = None
        self._inputs: tuple[Tensor, ...] = ()
        # number of steps -> what replays them, and the outputs of the last one
        self._graphs: dict[int, tuple[Callable[[], None], tuple[Tensor, ...]]] = {}
        if self.backend is not None:
            rates_on_device(optimizer, device)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """One step."""
        return self._within(lambda backend: self._call(backend, inputs), lambda: self.step(*inputs))

    def steps(self, count: int) -> Iterator[int]:
        """Take `count` steps of a step without inputs; yield how many each launch takes."""
        while count:
            several = count >= self.together > 1 and self._calls >= WARM_UP and not self.reason
            taken = self.together if several else 1
            self._within(partial(self._call, inputs=(), count=taken), self.step)
            # Where they can't be captured, they ran one by one.
            yield taken
            count -= taken

    def once(self, step: Step) -> tuple[Tensor, ...]:
        """Run another step at once, with the kernels of these: the last batch of an epoch, say."""
        return self._within(
            lambda backend: step() if self.reason else backend.run(step, ()), lambda: step()
        )

    def close(self) -> None:
        """Free the graphs and their memory; gradients go, for they lie there."""
        self._graphs.clear()
        self._inputs = ()
        if self.backend is not None:
            self.optimizer.zero_grad(set_to_none=True)
            self.backend.close()

    def _within(
        self, call: Callable[[Backend], tuple[Tensor, ...]], plain: Step
    ) -> tuple[Tensor, ...]:
        """Make a call with a backend, or the plain one where there is none."""
        if self.backend is None:
            return plain()
        # A resumed run warms up again, so steps take the same kernels whether captured or not.
        with chooser.captured():
            return call(self.backend)

    def _call(
        self, backend: Backend, inputs: tuple[Tensor, ...], count: int = 1
    ) -> tuple[Tensor, ...]:
        """Steps on the device's own inputs, but for batches of other shapes -> outputs of one."""
        key: Key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        self._key = self._key or key
        if self.reason:
            return self._several(count)(*inputs)
        if key != self._key:
            return backend.run(self.step, inputs)
        # Kernels are compiled for the alignment of addresses, so all steps have those of the graph.
        self._inputs = self._inputs or tuple(tensor.clone() for tensor in inputs)
        for static, tensor in zip(self._inputs, inputs, strict=True):
            static.copy_(tensor)
        if self._calls < WARM_UP:
            self._calls += 1
            if self._calls < WARM_UP:
                return backend.run(self.step, self._inputs)
            outputs, reason = backend.rehearse(self.step, self._inputs)
            if reason:
                self._fall_back(reason)
            return outputs
        if count not in self._graphs and not self._capture(backend, count):
            return self._several(count)(*inputs)
        replay, outputs = self._graphs[count]
        replay()
        self.replays += count
        return outputs

    def _several(self, count: int) -> Step:
        """A function that takes so many steps."""

        def several(*inputs: Tensor) -> tuple[Tensor, ...]:
            for _ in range(count - 1):
                self.step(*inputs)
            return self.step(*inputs)

        return several

    def _capture(self, backend: Backend, count: int) -> bool:
        """Capture so many steps; whether that worked."""
        # Gradients that a graph holds must be its own, not those of the last step.
        self.optimizer.zero_grad(set_to_none=True)
        try:
            self._graphs[count] = backend.capture(self._several(count), self._inputs)
        except Exception as error:  # whatever a user's network does that a graph can't hold
            self.optimizer.zero_grad(set_to_none=True)
            cause: BaseException = error
            while cause.__context__ is not None:  # the end of a failed capture fails too
                cause = cause.__context__
            first = (str(cause).strip().splitlines() or [""])[0]
            self._fall_back(f"{type(cause).__name__}: {first}")
            return False
        return True

    def _fall_back(self, reason: str) -> None:
        """Run all further steps at once."""
        self.reason, self._inputs = reason, ()
        self._on_fallback(reason)


def _warn(reason: str) -> None:
    warnings.warn(
        "clnp: the training step can't be captured as a CUDA graph, so it is launched piece "
        f"by piece (slower for small networks): {reason}",
        RuntimeWarning,
        stacklevel=2,
    )


def rates_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Make the learning rates of all groups tensors on a device, without dimensions."""
    for group in optimizer.param_groups:
        rate = group["lr"]
        if not isinstance(rate, Tensor) or rate.device != device:
            group["lr"] = _rate(rate, device)


def share_rate(groups: Iterable[dict[str, Any]], device: torch.device) -> None:
    """Give groups of an optimizer with the same learning rate one tensor for it, so that one launch
    steps all of them.
    """
    groups = list(groups)
    rate = _rate(groups[0]["lr"], device)
    for group in groups:
        group["lr"] = rate


def _rate(value: float | Tensor, device: torch.device) -> Tensor:
    # float32 is what PyTorch's fused steps read on a GPU; on a CPU it would round the rate.
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    return torch.tensor(float(value), dtype=dtype, device=device)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups; one that is a tensor is changed in place."""
    for group in optimizer.param_groups:
        set_group_rate(group, lr)


def set_group_rate(group: dict[str, Any], lr: float) -> None:
    """Set the learning rate of one group."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def resident_batches(
    x: Tensor, y: Tensor, batch_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of data that lies on the device, in an order that is drawn there.

    Arguments:
        x, y: [N, ...] and [N], on one device.
        batch_size: examples of a batch; the last one may be smaller.
        seed: of the order, which is the same in every run on this kind of device.
    """
    generator = torch.Generator(device=y.device).manual_seed(seed)
    order = torch.randperm(len(y), generator=generator, device=y.device)
    for chosen in order.split(batch_size):
        yield x[chosen], y[chosen]
