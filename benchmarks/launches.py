"""Kernel launches of a training step: ``python -m benchmarks.launches``.

A count, no measurement; it needs no GPU. `clnp.training.fit.Fit` trains small networks of the same
layers on the CPU, served as on a GPU, and every launch is counted instead of timed: one for each
operator of PyTorch that writes memory (see `SEVERAL` for those that launch more than one kernel),
one for each kernel of ours, one for each replay of a graph. Sizes do not matter.

Columns of ``benchmarks/results/launches.csv``: torch's version; network, dtype and frozen fraction;
the kernels that serve (``torch``: PyTorch on slices, ``ours``: all of ours; ``dense``: the plain
network without masks, on a batch that is there); launches of a step without a graph, with what
takes its batch and adds up its loss; and the launches that are left to the host per step where
steps are captured.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cases import Case
from benchmarks.contenders import Dense
from benchmarks.state import L1, LR, State, make_state
from clnp.cli.once import OnceParser
from clnp.training import epoch
from clnp.training.fit import Fit, FitSettings
from clnp.training.resident import TOGETHER
from clnp_kernels import _register, chooser, cuda_kernels
from clnp_kernels.reference import adam_l1 as adam_reference

RESULTS = Path(__file__).parent / "results" / "launches.csv"
NETWORKS = {"mlp": 0.02, "narrow": 0.25, "resnet18": 0.125}  # name -> factor on the widths
DTYPES, FRACTIONS = ("fp32", "bf16"), (0.0, 0.5)
WAYS = ("dense", "torch", "ours")
BATCH = 8
EAGER, CAPTURED = (
    (2, 4),
    (2 * TOGETHER, 4 * TOGETHER),
)  # steps of two epochs, to take the difference
COLUMNS = ("torch", "network", "dtype", "fraction", "kernels", "eager", "captured")


def _several_outputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return sum(args[-1])  # output_mask


def _with_bias(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return 1 if args[2:3] in ((), (None,)) else 2


# Operators whose implementation on CUDA launches another number of kernels than one, by their
# arguments: a bias is copied into an output that is no whole tensor, or added after a convolution;
# a batch norm has statistics, 1 / sqrt(variance) and the elements.
SEVERAL: dict[str, Callable[[tuple[Any, ...], dict[str, Any]], int]] = {
    "aten::addmm": lambda args, kwargs: (
        1 if kwargs.get("out") is None or kwargs["out"].is_contiguous() else 2
    ),
    "aten::convolution": _with_bias,
    "aten::conv2d": _with_bias,
    "aten::convolution_backward": _several_outputs,
    "aten::masked_fill": lambda args, kwargs: 2,
    "aten::native_batch_norm": lambda args, kwargs: 3 if args[5] else 2,
    "aten::native_batch_norm_backward": lambda args, kwargs: 2,
    "aten::nll_loss_backward": lambda args, kwargs: 2,
    # the sum of a number: the check of the loss, at every step on a CPU only
    "aten::sum": lambda args, kwargs: 1 if args[0].dim() else 0,
}
# These write nothing, or only reserve memory.
NOTHING = (
    *("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"),
    *("detach", "_local_scalar_dense", "_unsafe_view", "_reshape_alias", "is_same_size"),
    *("record_stream", "lift_fresh", "set_"),
)


class Launches(TorchDispatchMode):
    """Counts the launches of everything that runs within it.

    Attributes:
        count: launches so far.
        by: operator or kernel -> launches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by: dict[str, int] = {}
        self.paused = False

    @property
    def count(self) -> int:
        """Launches so far."""
        return sum(self.by.values())

    def add(self, name: str, number: int = 1) -> None:
        """Note launches, unless a graph has them."""
        if number and not self.paused:
            self.by[name] = self.by.get(name, 0) + number

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count an operator; those of this package by what they call."""
        kwargs = kwargs or {}
        name = func.name().partition(".")[0]
        if name.startswith(f"{_register.NAMESPACE}::"):
            with self:
                return _register._cuda_server(name.partition("::")[2])(*args, **kwargs)
        self.add(name, _launches(func, name, args, kwargs))
        return func(*args, **kwargs)


def _launches(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    aliases = [value.alias_info for value in func._schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in aliases)
    if is_view or not name.startswith("aten::") or name.partition("::")[2] in NOTHING:
        return 0
    if name in SEVERAL:
        return SEVERAL[name](args, kwargs)
    return 1


class CountedGraphs:
    """A backend of `StepGraph` whose replay is one launch, and which needs no GPU."""

    def __init__(self, launches: Launches) -> None:
        self.launches = launches

    def run(self, step: Any, inputs: tuple[Tensor, ...]) -> Any:
        """Run a step at once."""
        return step(*inputs)

    def rehearse(self, step: Any, inputs: tuple[Tensor, ...]) -> Any:
        """Run a step at once; nothing waits for a device."""
        return step(*inputs), ""

    def capture(self, step: Any, inputs: tuple[Tensor, ...]) -> Any:
        """Record nothing: a replay is one launch, whatever the graph holds."""
        return lambda: self.launches.add("graph"), ()

    def close(self) -> None:
        """Give back what the captures hold."""


@contextmanager
def served(launches: Launches) -> Iterator[None]:
    """Within it our kernels are launched nowhere and counted, as on a GPU of 132 processors."""
    from clnp_kernels.triton_kernels import _launch

    def launch(kernel: Any, *_: Any, **__: Any) -> None:
        launches.add(f"triton {kernel.__name__}")

    def adam(*args: Any) -> None:
        launches.add("cuda adam_l1", 2)
        launches.paused, before = True, launches.paused
        adam_reference.adam_l1(*args)
        launches.paused = before

    def activity(x: Tensor, dim: int) -> Tensor:
        launches.add("cuda channel_activity", 2)
        return x.new_zeros(x.shape[dim], dtype=torch.float32)

    device = _launch.Device(90, 132, 232448)
    with (
        mock.patch.object(_launch, "launch", launch),
        mock.patch.object(_launch, "describe", return_value=device),
        mock.patch.object(epoch, "REPORT_SECONDS", float("inf")),
        mock.patch.object(cuda_kernels, "adam_l1", adam),
        mock.patch.object(cuda_kernels, "channel_activity", activity),
        mock.patch.dict(chooser.absent, clear=True),
        mock.patch.dict(chooser._tables, {None: None}),
    ):
        yield


def of_fit(state: State, kernels: str, *, captured: bool) -> float:
    """The launches of a step of `Fit`: of its kernels, or of graphs."""
    launches, epochs = Launches(), []
    steps = CAPTURED if captured else EAGER
    with served(launches), chooser.prefer(kernels):
        for n in steps:
            fit = _fit(state, n)
            fit.backend = CountedGraphs(launches) if captured else None
            with launches:
                fit._trained(0)  # warm-up and captures
                before = launches.count
                fit._trained(0)
            epochs.append(launches.count - before)
    return (epochs[1] - epochs[0]) / (steps[1] - steps[0])


def _fit(state: State, steps: int) -> Fit:
    x, y = state.x.repeat(steps, *[1] * (state.x.dim() - 1)), state.labels.repeat(steps)
    model = state.model
    alphas = dict.fromkeys(model.layer_names, L1)
    dtype = torch.bfloat16 if state.autocast else torch.float32
    settings = FitSettings(1, LR, len(state.x), alphas, dtype=dtype)
    fit = Fit(model, (x, y), (x[:1], y[:1]), settings, 0)
    for check in ("_check", "_check_weights"):  # they wait for the device
        setattr(fit, check, lambda *_: None)
    return fit


def of_dense(state: State) -> int:
    """The launches of a step of the plain network without masks, with a fused optimizer."""
    contender, launches = Dense(state), Launches()
    contender.step()
    with launches:
        contender.step()
    return launches.count


def rows() -> Iterator[dict[str, Any]]:
    """All rows of the file."""
    for network, scale in NETWORKS.items():
        for dtype in DTYPES:
            for fraction in FRACTIONS:
                case = Case(network, scale, BATCH, fraction, dtype)
                for way in WAYS:
                    state = make_state(case)
                    eager, captured = float(of_dense(state)), ""
                    if way != "dense":
                        eager = of_fit(state, way, captured=False)
                        captured = f"{of_fit(state, way, captured=True):g}"
                    values = (network, dtype, fraction, way, f"{eager:g}", captured)
                    yield dict(zip(COLUMNS, (torch.__version__, *values), strict=True))


def main(arguments: list[str] | None = None) -> int:
    """Write the file."""
    parser = OnceParser(prog="python -m benchmarks.launches", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    out = parser.parse_args(arguments).out
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows():
            writer.writerow(row)
            print("  ".join(map(str, row.values())), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
