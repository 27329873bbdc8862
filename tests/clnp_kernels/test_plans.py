"""Checks and choices are remembered for calls that look alike, and made again for all others."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from clnp_kernels import _register, chooser, ops
from clnp_kernels._checks import look_of, once
from clnp_kernels.errors import MissingImplementationError
from clnp_kernels.tune.cases import Layer, Maker
from clnp_kernels.tune.table import Check, Table

LINEAR = Layer(6, 4, 4, 4, 8)
IMAGES = Layer(2, 4, 4, 4, 8, side=4)
CALLS = {
    **{f"masked_linear_{part}": LINEAR for part in ("fwd", "relu_grad", "dgrad", "wgrad")},
    **{f"masked_conv2d_{part}": IMAGES for part in ("fwd", "relu_grad", "dgrad", "wgrad")},
    **{f"partial_batch_norm_{part}": IMAGES for part in ("fwd", "bwd")},
    "channel_activity": LINEAR,
}


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The operators that were chosen for, with no table in use."""
    made: list[str] = []
    choose = chooser.choose

    def counted(name: str, args: Any) -> Any:
        made.append(name)
        return choose(name, args)

    monkeypatch.setattr(chooser, "choose", counted)
    monkeypatch.delenv("CLNP_GPU", raising=False)
    before = dict(chooser._tables)
    chooser.use(None, None)
    yield made
    chooser._tables.clear()
    chooser._tables.update(before)


def arguments(name: str, **changes: Any) -> tuple[Any, ...]:
    dtype = changes.pop("dtype", torch.float32)
    layer = CALLS[name]
    return Maker(Layer(**{**vars(layer), **changes}), dtype, "cpu").arguments(name)


@pytest.mark.parametrize("name", CALLS)
def test_a_choice_is_made_once(name: str, choices: list[str]) -> None:
    serve = _register._cuda_server(name)
    first, second = serve(*arguments(name)), serve(*arguments(name))
    assert choices == [name]
    pairs = zip(*((r if isinstance(r, tuple) else (r,)) for r in (first, second)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", CALLS)
def test_a_choice_is_made_again_where_the_call_looks_different(
    name: str, choices: list[str]
) -> None:
    """Another boundary, batch, dtype or memory format; each of them once."""
    changes: list[dict[str, Any]] = [{}, {"rows": 3}, {"free_out": 9}, {"dtype": torch.float64}]
    if CALLS[name].side:
        changes.append({"last": False})
    serve = _register._cuda_server(name)
    for _ in range(2):
        for change in changes:
            serve(*arguments(name, **change))
    assert len(choices) == len(changes)


def test_a_choice_is_made_again_where_conditions_differ(
    choices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "masked_linear_dgrad"
    serve, args = _register._cuda_server(name), arguments(name)

    def chosen() -> int:
        for _ in range(2):
            serve(*args)
        return len(choices)

    assert chosen() == 1
    with chooser.captured():
        assert chosen() == 2
    with chooser.prefer("torch"):
        assert chosen() == 3
    monkeypatch.setenv("CLNP_GPU", "torch")
    assert chosen() == 3  # the same preference
    monkeypatch.delenv("CLNP_GPU")
    chooser.use(None, Table("other", [Check(name, "triton", "float32", 4, "it is wrong")]))
    assert chosen() == 4
    monkeypatch.setitem(chooser.absent, "triton", "for a test")
    assert chosen() == 5


def test_a_fallback_is_said_at_every_call(
    choices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that strict mode raises whenever it is turned on."""
    name = "masked_linear_dgrad"
    serve, args = _register._cuda_server(name), arguments(name)
    monkeypatch.setitem(chooser.absent, "triton", "for a test")
    monkeypatch.setattr(_register, "_warned", {"cuda"})
    with chooser.prefer("triton"):
        serve(*args)
        serve(*args)
        assert len(choices) == 2
        monkeypatch.setenv("CLNP_STRICT", "1")
        with pytest.raises(MissingImplementationError, match="for a test"):
            serve(*args)


def test_plans_are_bounded(choices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_register, "REMEMBERED", 2)
    serve = _register._cuda_server("masked_linear_dgrad")
    for rows in (1, 2, 3, 3, 1):
        serve(*arguments("masked_linear_dgrad", rows=rows))
    assert len(choices) == 4


def test_a_check_passes_over_what_has_passed() -> None:
    seen: list[Any] = []

    @once
    def check(x: Tensor, number: float) -> None:
        seen.append(number)
        if x.ndim != 2 or number > 1:
            raise ValueError("bad")

    for _ in range(3):
        check(torch.ones(2, 3), 0.5)
    assert seen == [0.5]
    for bad in ((torch.ones(2), 0.5), (torch.ones(2, 3), 2.0)):
        for _ in range(2):
            with pytest.raises(ValueError, match="bad"):
                check(*bad)
    check(torch.ones(2, 3).to(torch.float64), 0.5)
    assert len(seen) == 6
    check(torch.ones(2, 3), 0.5)
    assert len(seen) == 6


def test_looks_that_are_no_key() -> None:
    assert look_of([torch.ones(2), [1, 2]]) is None
    assert look_of([torch.ones(2).to_sparse()]) != look_of([torch.ones(2)])

    class Own(Tensor):
        pass

    assert look_of([torch.ones(2).as_subclass(Own)]) is None


def test_a_bad_argument_is_refused_after_a_good_call() -> None:
    x, active, free = torch.ones(2, 3), torch.ones(1, 2), torch.ones(4, 3)
    for _ in range(2):
        ops.masked_linear(x, active, free)
        with pytest.raises(ValueError, match=r"x\.shape"):
            ops.masked_linear(x[:, 1:], active, free)
        with pytest.raises(TypeError, match=r"active_weight\.dtype"):
            ops.masked_linear(x, active.double(), free)
        with pytest.raises(TypeError, match="dense"):
            ops.masked_linear(x.to_sparse(), active, free)  # type: ignore[arg-type]
