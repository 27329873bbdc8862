"""No figure without a right result: contenders against a float64 computation.

The definition is the eager-masked computation in float64. At the measured dtype every contender
that claims the same computation may be at most twice as far from it as eager-masked PyTorch, which
itself may be off by no more than a part of what training moves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.contenders import CONTENDERS, Contender, EagerMasked
from benchmarks.state import LR, State, make_state

ERROR_RATIO = 2.0
ROUNDING = 1e-7
STEPS = 2
# An activation that is nothing but rounding may have another sign in each computation, and with it
# a gradient that passes or does not. That happens on some batches; what is wrong is wrong on all.
BATCHES = 6
BATCH = 4  # examples in a checked batch: the arithmetic is the same, float64 is slow
# Adam divides a gradient by its size: where it is nothing but rounding, the error is a whole step.
# With an eps well above rounding and below what L1 adds up to, it is none.
EPS = 1e-4
# Of the steps made, by how much eager-masked itself may be off on average.
ALLOWED_STEPS = {"fp32": 0.001, "bf16": 0.3}
LOSS_TOLERANCE = {"fp32": 1e-2, "bf16": 5e-2}

Make = Mapping[str, Callable[[State], Contender]]


class WrongResultError(RuntimeError):
    """A contender's result is wrong, so there is no figure to be had."""


def mean_error(tensors: list[Tensor], exact: list[Tensor]) -> float:
    """Mean of |tensor - exact| over all elements."""
    pairs = list(zip(tensors, exact, strict=True))
    total = sum(float((tensor.double() - true).abs().sum()) for tensor, true in pairs)
    return total / max(sum(true.numel() for true in exact), 1)


def judge(error: float, allowed: float, who: str, what: str) -> None:
    """Raise unless an error is at most twice the one that PyTorch makes itself."""
    if not error <= ERROR_RATIO * allowed + ROUNDING:
        raise WrongResultError(
            f"{who}, {what}: mean error {error:.3g}, PyTorch's own is {allowed:.3g}; wrong result, "
            "so no times"
        )


def trained(make: Callable[[State], Contender], state: State) -> list[Tensor]:
    """The free weights after `STEPS` steps from a state, which is copied."""
    contender = make(copy.deepcopy(state))
    for group in contender.optimizer.param_groups:
        group["eps"] = EPS
    for _ in range(STEPS):
        contender.step()
    return contender.free_weights()


def check_steps(
    case: Case,
    names: Iterable[str],
    make: Make = CONTENDERS,
    head: str = "multi",
    dtypes: Iterable[str] = (),
) -> None:
    """Checks the free weights of the contenders that claim to compute the method.

    Arguments:
        case: the case; the check takes it with a small batch.
        names: contenders; those that do not claim it are passed over.
        make: the table of contenders.
        head: kind of head.
        dtypes: in which to check; default: the case's.

    Raises:
        WrongResultError: naming the contender, its error and the one allowed; it was too far from
            float64 on each of several batches.
    """
    names = list(names)
    small = replace(case, batch=min(case.batch, BATCH))
    state = make_state(small, head)
    left = [(dtype, name) for dtype in dtypes or [case.dtype] for name in names]
    for last in range(BATCHES):
        left = _failing(state, left, make, final=last == BATCHES - 1)
        if not left:
            return
        generator = torch.Generator().manual_seed(last + 1)
        x = torch.randn(state.x.shape, generator=generator)
        state = replace(state, x=torch.empty_like(state.x).copy_(x))


def _failing(
    state: State, pairs: list[tuple[str, str]], make: Make, *, final: bool
) -> list[tuple[str, str]]:
    """The (dtype, contender) pairs too far from float64 on this batch; raises on the final."""
    exact = trained(EagerMasked, copy.deepcopy(state).double())
    failing = []
    for dtype in dict.fromkeys(dtype for dtype, _ in pairs):
        here = replace(state, case=replace(state.case, dtype=dtype))
        eager = mean_error(trained(EagerMasked, here), exact)
        if not eager <= ALLOWED_STEPS[dtype] * STEPS * LR:
            if final:
                raise WrongResultError(
                    f"eager-masked, {here.case}: mean error {eager:.3g} after {STEPS} steps of "
                    f"{LR:g}; the problem is not fit to check anything with"
                )
            failing += [pair for pair in pairs if pair[0] == dtype]
            continue
        for name in (name for other, name in pairs if other == dtype):
            if not getattr(make[name], "exact", True) or make[name] is EagerMasked:
                continue
            try:
                judge(mean_error(trained(make[name], here), exact), eager, name, str(here.case))
            except WrongResultError:
                if final:
                    raise
                failing.append((dtype, name))
    return failing


def check_losses(case: Case, losses: Mapping[str, list[float]]) -> None:
    """Checks that the first losses that the timed contenders report are those of dense training.

    Frozen channels, L1 and masks change the first loss by nothing and the next ones by little; the
    test is coarse, and the one that torch.compile has to pass.

    Raises:
        WrongResultError: naming the contender whose loss it is.
    """
    if "dense" not in losses:
        return
    tolerance = LOSS_TOLERANCE[case.dtype]
    for name, values in losses.items():
        expected = losses["dense"]
        count = 2 if name == "compiled" else 1
        if name != "compiled" and case.fraction:
            continue  # held statistics of batch norms are another function
        got, wanted = torch.tensor(values[:count]), torch.tensor(expected[:count])
        if not torch.allclose(got, wanted, rtol=tolerance, atol=tolerance):
            raise WrongResultError(
                f"{name}, {case}: losses {values[:count]}, those of dense are {expected[:count]}; "
                "wrong result, so no times"
            )
