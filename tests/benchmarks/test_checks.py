"""The checks let right contenders pass and catch wrong ones; counted work is the design's."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import against, op_cases, step
from benchmarks.cases import FRACTIONS, NETWORKS, TINY, Case
from benchmarks.checks import WrongResultError, check_losses, check_steps
from benchmarks.contenders import CONTENDERS, EagerMasked, Ours, Slices
from benchmarks.harness import ContenderError, Samples, processes, race
from benchmarks.state import State, dense_network, make_state, work_of
from clnp.network.keep import keep_first

MLP = Case("mlp", 0.02, 8, 0.5)
NARROW = Case("narrow", 0.1, 4, 0.5)


class NoPenalty(Ours):
    """Leaves the L1 term out."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        for group in self.optimizer.param_groups:
            group["l1"] = 0.0


class Interfering(Slices):
    """Lets its frozen weights be added to by free channels."""

    def after_step(self) -> None:
        with torch.no_grad():
            for name, buffer in self.network.named_buffers():
                if name.endswith("active_weight"):
                    buffer.add_(1e-2)


class Faster(Ours):
    """Trains with half of the batch."""

    def step(self, x: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        half = len(self.state.x) // 2
        return super().step(self.state.x[:half], self.state.labels[:half])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("head", ["multi", "single"])
@pytest.mark.parametrize("case", [MLP, replace(MLP, fraction=0.0), NARROW], ids=str)
def test_right_contenders_pass(case: Case, head: str, dtype: str) -> None:
    check_steps(replace(case, dtype=dtype), CONTENDERS, head=head)


@pytest.mark.parametrize("network", ["wide", "resnet18", "block50-64"])
def test_batch_norms_and_sums(network: str) -> None:
    check_steps(Case(network, 0.125, 4, 0.5), CONTENDERS)


@pytest.mark.parametrize("wrong", [NoPenalty, Interfering, Faster])
def test_wrong_contenders_are_caught(wrong: Callable[[State], Ours]) -> None:
    table = {**CONTENDERS, "ours": wrong}
    with pytest.raises(WrongResultError, match="wrong result, so no times"):
        check_steps(MLP, ["ours"], table)


def test_wrong_losses_are_caught() -> None:
    check_losses(MLP, {"dense": [2.3, 2.2], "compiled": [2.3001, 2.2001]})
    with pytest.raises(WrongResultError, match="compiled"):
        check_losses(MLP, {"dense": [2.3, 2.2], "compiled": [2.3, 2.3]})


@pytest.mark.parametrize("case", op_cases.cases(TINY, "fp32", "cpu"), ids=lambda case: case.name)
def test_right_operators_pass(case: op_cases.OpCase) -> None:
    op_cases.check(replace(case, fraction=0.5))


def test_wrong_operator_is_caught() -> None:
    case = op_cases.OpCase("masked_linear", (16, 16), 4, 0.5)

    def wrong(case: op_cases.OpCase, name: str) -> op_cases.Layer:
        layer = op_cases.Layer(case, name)
        layer.x = (layer.x.detach() * 1.001).requires_grad_()
        return layer

    with pytest.raises(WrongResultError, match="masked_linear"):
        op_cases.check(case, wrong)


def test_frozen_weights_stay() -> None:
    for make in (EagerMasked, Slices, Ours):
        contender = make(make_state(MLP))
        before = {k: v.clone() for k, v in contender.network.state_dict().items()}
        for _ in range(2):
            contender.step()
        after = contender.network.state_dict()
        for name, rows in contender.frozen.items():
            key = f"{name}.weight" if make is EagerMasked else f"{name}.active_weight"
            assert torch.equal(before[key][:rows], after[key][:rows])


def test_dense_network_is_the_function_of_the_masked_one() -> None:
    for name in ("mlp", "wide", "resnet18"):
        state = make_state(Case(name, 0.05, 4, 0.5)).double()
        dense = dense_network(state)
        state.model.eval(), dense.eval()
        torch.testing.assert_close(dense(state.x), state.model.net(state.x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("head", ["multi", "single"])
@pytest.mark.parametrize("case", [MLP, replace(MLP, fraction=0.0), NARROW], ids=str)
def test_dense_networks_of_limited_tasks_train_the_same_channels(case: Case, head: str) -> None:
    names = ("eager-masked", "slices", "ours")
    trained = {}
    for name in names:
        state = make_state(case, head)
        free = {g.name: state.model.free(g) for g in state.model.groups.prunable}
        state.model.compact(
            keep_first(state.model, {group: max(n - 1, 1) for group, n in free.items()})
        )
        trained[name] = CONTENDERS[name](state.double())
    for _ in range(3):
        losses = [trained[name].step() for name in names]
        torch.testing.assert_close(losses[0], losses[2], rtol=1e-9, atol=0)
        torch.testing.assert_close(losses[1], losses[2], rtol=1e-9, atol=0)
    sizes = [sum(p.numel() for p in trained[name].network.parameters()) for name in names]
    assert sizes[0] > sizes[1] == sizes[2]


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_work_of_an_mlp(fraction: float) -> None:
    # 784-40-40-10: the first layer has no input gradient, the head no frozen output
    work = work_of(make_state(Case("mlp", 0.02, 1, fraction)))
    a = round(40 * fraction)
    f, inputs = 40 - a, 784
    first = (a + f) * inputs + f * inputs
    second = a * a + f * 40 + f * 40 + f * f
    head = 2 * 10 * 40 + 10 * f
    assert work.masked == first + second + head
    assert work.dense == 2 * 40 * inputs + 3 * 40 * 40 + 3 * 10 * 40


def test_work_of_a_convolution_counts_pixels() -> None:
    one = work_of(make_state(Case("block18-64", 0.0625, 1, 0.0)))
    planes, pixels = 4, 32 * 32
    stem, convolutions, head = 2 * 3 * planes, 2 * 3 * 9 * planes**2, 3 * 10 * planes
    assert one.dense == one.masked == pixels * (stem + convolutions) + head


def test_states_are_the_same_in_every_process() -> None:
    one, other = make_state(NARROW), make_state(NARROW)
    assert torch.equal(one.x, other.x)
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", [*NETWORKS])
def test_networks_can_be_made(name: str) -> None:
    network = NETWORKS[name]
    logits = network.make(0.02)(torch.zeros(2, *network.shape))
    assert logits.shape == (2, 10)


def broken(key: str, name: str) -> Callable[[], None]:
    """A contender that fails."""
    raise ValueError(f"{key} is broken")


def test_failure_of_a_contender_is_told() -> None:
    with processes() as pool, pytest.raises(ContenderError, match=r"(?s)ours:.*thing is broken"):
        race(pool, broken, "thing", ["ours"], TINY)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with benchmarks of its own, whose package has one module only."""
    for name, text in {
        "clnp/__init__.py": "",
        "clnp/one.py": "",
        "benchmarks/__init__.py": "",
        "benchmarks/against.py": "import clnp.one",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_tree_of_another_layout_keeps_its_own_benchmarks(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    against.take_benchmarks(tree)
    assert (tree / "benchmarks/against.py").read_text() == "import clnp.one"
    assert "runs its own benchmarks: it can't import these" in capsys.readouterr().out


def test_a_tree_that_can_run_no_benchmarks_is_refused(tree: Path) -> None:
    (tree / "clnp/one.py").unlink()
    with pytest.raises(SystemExit, match="the revision can't import the benchmarks"):
        against.take_benchmarks(tree)


def test_comparison_of_two_trees() -> None:
    sides = {"ours": against.Side(against.ROOT), "at HEAD": against.Side(against.ROOT)}
    try:
        found = against.compare(sides, step.make, MLP, TINY)
    finally:
        for side in sides.values():
            side.close()
    assert all(isinstance(value, Samples) and value.ms for value in found.values())
    assert found["ours"].first == found["at HEAD"].first
