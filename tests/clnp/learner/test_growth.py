"""Limits to what later tasks claim, and rounds of pruning and fine-tuning."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import clnp
from clnp.errors import ConfigError
from clnp.learner.base import CHECKPOINT
from clnp.methods import clnp_cost
from tests.clnp.cases import Residual, blobs, convert, mlp
from tests.clnp.conv_cases import Plan, patterns
from tests.clnp.conv_cases import convert as convert_images

QUICK: dict[str, Any] = {
    "head": "single",
    "epochs": 4,
    "lr": 0.01,
    "batch_size": 32,
    "l1": 1e-4,
    "margin": 0.05,
}


def learner(net: list[int] | type[torch.nn.Module], **settings: Any) -> clnp.Learner:
    """A learner of a network whose first weights are the same in every call.

    Arguments:
        net: widths of the hidden layers, or a class that makes the network.
    """
    torch.manual_seed(0)
    made = mlp(net) if isinstance(net, list) else net()
    return clnp.Learner(convert(made), **{**QUICK, **settings})


def news(lt: clnp.Learner) -> list[list[int]]:
    """Per task, the channels that it claimed in every group."""
    return [[row["new"] for row in report.capacity.values()] for report in lt.reports]


@pytest.mark.parametrize("growth", [[2, 5], 5, {"2": 5}])
def test_later_tasks_claim_no_more_than_growth(growth: Any) -> None:
    lt = learner([40, 30], growth=growth, first_growth=None, margin=0.0, l1=0.0)
    for k in range(3):
        lt.learn(blobs(k))
    most = {"[2, 5]": [2, 5], "5": [5, 5]}.get(str(growth), [40, 5])
    for new in news(lt)[1:]:
        assert all(n <= limit for n, limit in zip(new, most, strict=True))
    assert news(lt)[0][1] > 5
    assert all(v.identical for v in lt.verify())
    assert lt.model.active("0") + lt.model.free("0") == 40
    # The work of a later task is that of the channels it could train.
    assert clnp_cost(lt, 1, 80)["flops"] < clnp_cost(lt, 0, 80)["flops"]


def test_weights_of_a_limited_task_are_drawn_for_the_inputs_that_it_has() -> None:
    lt = learner([40, 30])
    lt.learn(blobs(0))
    model = lt.model
    generator = torch.Generator().manual_seed(0)
    model.begin_task(generator=generator, most_new={"0": 2, "2": 5})
    assert (model.free("0"), model.free("2")) == (2, 5)
    weight = model.layer_weight("2").detach()
    inputs = model.active("0") + 2
    assert weight.shape == (5, inputs)
    assert 0.8 / math.sqrt(inputs) < float(weight.abs().max()) <= 1 / math.sqrt(inputs)
    model.cancel_task()
    assert all(v.identical for v in lt.verify())


@pytest.mark.parametrize("first", [[6, 4], 4, {"2": 4}])
def test_the_first_task_claims_no_more_than_its_own_limit(first: Any) -> None:
    lt = learner([40, 30], first_growth=first, growth=[2, 5], margin=0.0, l1=0.0)
    sizes: list[tuple[int, int]] = []
    lt.callbacks.append(Sizes(sizes))
    for k in range(3):
        lt.learn(blobs(k))
    most = {"[6, 4]": [6, 4], "4": [4, 4]}.get(str(first), [40, 4])
    assert sizes[0] == tuple(most)
    assert all(n <= limit for n, limit in zip(news(lt)[0], most, strict=True))
    assert all(n <= limit for new in news(lt)[1:] for n, limit in zip(new, [2, 5], strict=True))
    assert lt.model.active("0") + lt.model.free("0") == 40
    assert all(v.identical for v in lt.verify())


class Sizes(clnp.callbacks.Callback):
    """Notes how many channels of both groups are in the network that is trained."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.sizes = sizes

    def on_epoch_end(self, learner: Any, *_: Any) -> None:
        size = learner.model.layer_weight("0").shape[0], learner.model.layer_weight("2").shape[0]
        self.sizes.append(size)


def test_a_limited_first_task_starts_from_the_weights_of_the_network() -> None:
    model = convert(mlp([40, 30]))
    dense = model.layer_weight("0").detach().clone()
    model.begin_task(most_new={"0": 6, "2": 4})
    assert torch.equal(model.layer_weight("0"), dense[:6])


def test_a_limited_first_task_that_is_cancelled_gives_all_channels_back() -> None:
    for head in ("single", "multi"):
        torch.manual_seed(0)
        model = convert(mlp([40, 30]))
        model.set_head(head)
        model.begin_task(most_new={"0": 6, "2": 4})
        model.cancel_task()
        model.begin_task()
        for group, size in (("0", 40), ("2", 30)):
            assert model.free(group) == size
            assert model.layer_weight(group).std(1).min() > 0.01
        assert model.head.free_weight.shape[1] == 30
        assert model.head.free_weight.std() > 0.01
        model.cancel_task()
        lt = clnp.Learner(model, **{**QUICK, "head": head, "first_growth": 8, "epochs": 8})
        lt.learn(blobs(0))
        assert lt.reports[0].test > 0.8


@pytest.mark.parametrize("end", ["flatten", "mean"])
def test_convolutions_grow_within_their_limit(end: str) -> None:
    torch.manual_seed(0)
    model = convert_images(Plan(8, ("residual", "depthwise"), end == "mean", False, end).build())
    lt = clnp.Learner(
        model,
        **{**QUICK, "head": "multi", "growth": 2, "batch_size": 16},
        first_growth=4,
        sparsifier="contribution",
    )
    for k in range(2):
        lt.learn(patterns(k))
    first, second = news(lt)
    assert all(n <= 4 for n in first)
    assert all(n <= 2 for n in second)
    assert all(v.identical for v in lt.verify())


class Interrupted(clnp.callbacks.Callback):
    """Ends the process, as it were, in the middle of a task."""

    def __init__(self, task: int) -> None:
        self.task, self.epochs = task, 0

    def on_epoch_end(self, learner: clnp.Learner, *_: Any) -> None:
        self.epochs += len(learner.reports) == self.task
        if self.epochs == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize("stack", ["off", "on"])
def test_limited_tasks_go_on_in_the_middle(task: int, stack: str, tmp_path: Path) -> None:
    limits: dict[str, Any] = {"first_growth": [6, 4], "growth": [2, 5], "stack": stack}
    limits["grid"] = {"lr": [0.01, 0.02]}
    whole = learner([40, 30], **limits)
    cut = learner([40, 30], **limits, checkpoint_dir=tmp_path)
    cut.callbacks.append(Interrupted(task))
    if task:
        cut.learn(blobs(0))
    with pytest.raises(KeyboardInterrupt):
        cut.learn(blobs(task))
    path = tmp_path if (tmp_path / CHECKPOINT).exists() else None
    if path:
        again = clnp.Learner.load(path, [blobs(k) for k in range(task)], checkpoint_dir=path)
    else:
        again = learner([40, 30], **limits, checkpoint_dir=tmp_path)
    for k in range(2):
        whole.learn(blobs(k))
        if k >= len(again.reports):
            again.learn(blobs(k))
    mine, other = again.model.state_dict(), whole.model.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[key], other[key]) for key in mine)


def test_an_adopted_network_can_not_be_limited() -> None:
    lt = learner([40, 30], first_growth=8)
    with pytest.raises(
        ConfigError, match=r"^first_growth: expected None to adopt a network, .*, got 8"
    ):
        lt.adopt(blobs(0))
    lt.learn(blobs(0))


def test_wrong_limits_are_refused() -> None:
    for growth in ([1], [1, 2, 3], 0, 1.5, "2", {"4": 1}, {"0": 0}, [True, 2]):
        for name in ("growth", "first_growth"):
            with pytest.raises(ConfigError, match=f"^{name}"):
                learner([40, 30], **{name: growth})


@pytest.mark.parametrize("sparsifier", ["activity", "contribution"])
def test_rounds_of_pruning_and_fine_tuning(sparsifier: str) -> None:
    used = []
    for rounds in (1, 3):
        tune = {"epochs": 3, "lr": 1e-3, "schedule": "cosine", "rounds": rounds}
        lt = learner(Residual, fine_tune=tune, sparsifier=sparsifier, head="multi")
        for k in range(2):
            lt.learn(blobs(k))
        assert all(v.identical for v in lt.verify())
        assert all(r.test > 0.8 for r in lt.reports)
        used.append(sum(row["used"] for row in lt.reports[0].capacity.values()))
        assert lt.reports[1].reuse.keys() == lt.reports[1].capacity.keys()
    assert used[1] <= used[0]


def test_wrong_rounds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"fine_tune rounds: .*got 0"):
        learner([8], fine_tune={"rounds": 0})
