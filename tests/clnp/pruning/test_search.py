"""Activity, thresholds and graceful forgetting against slow, direct definitions."""

import copy
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clnp.data import Task
from clnp.errors import ConfigError, TrainingError
from clnp.learner.grid import candidates, grid_points, per_layer, sparsest
from clnp.network.keep import check_keep, keep_first
from clnp.network.model import Model
from clnp.objectives import Objective
from clnp.objectives.metrics import floor_of
from clnp.pruning.activity import measure_activity, measure_contribution
from clnp.pruning.line_search import hardest
from clnp.pruning.search import ThresholdSearch, find_pruning, threshold_between
from clnp.pruning.sparsifiers import sparsifier
from clnp.training.evaluation import accuracy, count_correct
from clnp.training.fit import Fit, FitSettings
from clnp.training.validation import Validation
from tests.clnp.cases import Residual, blobs, convert, mlp, random_keep

CPU = torch.device("cpu")


def trained(net: torch.nn.Module, task: Task, head: str = "single", before: int = 0) -> Model:
    """A model in a task, trained; `before` tasks were learned with random channel sets."""
    torch.manual_seed(0)
    model = convert(net, head=head)
    generator = torch.Generator().manual_seed(1)
    for k in range(before + 1):
        model.begin_task(generator=generator)
        Fit(
            model,
            task.train,
            task.validation,
            FitSettings(15, 0.01, 32, dict.fromkeys(model.layer_names, 1e-4)),
            k,
        ).run()
        if k < before:
            model.consolidate(random_keep(model, generator))
    return model


def scored(task: Task) -> Validation:
    return Validation(task.validation, Objective(), CPU)


def test_activity_is_the_mean_absolute_value_the_readers_see() -> None:
    task = blobs(0)
    model = trained(mlp([20, 10], dropout=0.3), task)
    x = task.train[0]
    first = torch.relu(x @ model.layer_weight("0").T + model.masked_layers["0"].free_bias)
    second = torch.relu(first @ model.layer_weight("3").T + model.masked_layers["3"].free_bias)
    activity = measure_activity(model, task.train, CPU)
    torch.testing.assert_close(activity["0"], first.abs().double().mean(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(activity["3"], second.abs().double().mean(0), rtol=1e-5, atol=1e-7)
    assert model.training, "measuring leaves the mode as it was"


def test_activity_of_shared_channels_is_the_largest_that_a_reader_sees() -> None:
    task = blobs(1)
    model = trained(Residual(), task, head="multi")
    dense = model.pruned_network(
        {g.name: torch.arange(model.free(g)) for g in model.groups.prunable}
    )
    stem = torch.relu(dense.stem(task.train[0]))
    added = torch.relu(stem + dense.outer(torch.relu(dense.inner(stem))))
    expected = torch.maximum(stem.abs().double().mean(0), added.abs().double().mean(0))
    activity = measure_activity(model, task.train, CPU)
    torch.testing.assert_close(activity["stem"], expected, rtol=1e-5, atol=1e-7)


def test_channels_that_were_not_computed_are_nan() -> None:
    task = blobs(2)
    model = trained(mlp([20, 10]), task, before=1)
    activity = measure_activity(model, task.train, CPU)
    own = model.active("2")
    assert own > 0
    assert activity["2"][:own].isnan().all()
    assert not activity["2"][own:].isnan().any()
    assert not activity["0"].isnan().any()


def test_contribution_is_activity_times_the_weights_that_read_it() -> None:
    task = blobs(0)
    model = trained(mlp([20, 10]), task, head="multi", before=1)
    activity = measure_activity(model, task.train, CPU)
    contribution = measure_contribution(model, task.train, CPU)
    for group, reader in (("0", "2"), ("2", "4")):
        weights = model.layer_weight(reader).detach().abs().double().sum(dim=0)
        torch.testing.assert_close(contribution[group], activity[group] * weights)
    with torch.no_grad():
        model.layer_weight("2")[:, 3] = 0
    assert measure_contribution(model, task.train, CPU)["0"][3] == 0


def test_contribution_of_shared_channels_is_the_sum_over_their_readers() -> None:
    task = blobs(1)
    model = trained(Residual(), task, head="multi")
    dense = model.pruned_network(keep_first(model, {}))
    stem = torch.relu(dense.stem(task.train[0]))
    added = torch.relu(stem + dense.outer(torch.relu(dense.inner(stem))))
    expected = sum(
        value.double().mean(0) * layer.weight.double().abs().sum(0)
        for value, layer in ((stem, dense.inner), (added, dense.out))
    )
    contribution = measure_contribution(model, task.train, CPU)
    torch.testing.assert_close(contribution["stem"], expected, rtol=1e-5, atol=1e-7)


def test_contribution_of_channels_that_a_single_head_does_not_read() -> None:
    model = trained(mlp([20, 10]), blobs(2), before=1)
    contribution = measure_contribution(model, blobs(2).train, CPU)
    own = model.active("2")
    assert contribution["2"][:own].isnan().all()
    assert not contribution["2"][own:].isnan().any()


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("method", ["joint", "global"])
@pytest.mark.parametrize("granularity", [1, 4])
def test_searches_hold_the_floor_and_their_thresholds_tell_what_is_kept(
    head: str, before: int, method: str, granularity: int
) -> None:
    task = blobs(3)
    model = trained(mlp([40, 30]), task, head, before)
    best = count_correct(model, task.validation, CPU)
    floor = Fraction(floor_of(best, 0.02, 80), 80)
    activity = measure_activity(model, task.train, CPU)
    search = ThresholdSearch(model, activity, scored(task), floor, granularity)
    pruning = search.run(method)
    pruned = accuracy(model.pruned_network(pruning.keep), task.validation, CPU)
    assert pruned == pruning.validation
    assert pruned >= floor
    for group in model.groups.prunable:
        free = activity[group.name][model.active(group) :]
        kept = pruning.keep[group.name]
        theta = pruning.thresholds[group.name]
        assert (free[kept] > theta).all() or granularity > 1 or theta == 0
        others = torch.ones_like(free, dtype=torch.bool)
        others[kept] = False
        assert (free[others] <= theta).all()
        if granularity > 1 and kept.numel() < free.numel():
            assert (model.active(group) + kept.numel()) % granularity == 0 or kept.numel() == 0
    check_keep(model, pruning.keep)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30, unique=True), st.data())
@settings(max_examples=200, deadline=None)
def test_thresholds_choose_the_same_channels_from_perturbed_scores(
    values: list[float], data: st.DataObject
) -> None:
    ranked = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    kept = data.draw(st.integers(0, len(values)))
    theta = threshold_between(ranked, kept)
    assert int((ranked > theta).sum()) == kept
    # Whatever is smaller than half the gap changes nothing.
    most = 0.009
    if 0 < kept < len(values):
        gap = float((ranked[kept - 1] - ranked[kept]) / ranked[kept - 1])
        assume(gap > 1e-12)  # more than float64 rounds
        most = min(0.49 * gap, most)
    for factor in (1 - most, 1 + most):
        assert torch.equal(ranked * factor > theta, ranked > theta)


def test_thresholds_of_ties_and_neighbours() -> None:
    def theta(values: list[float], kept: int) -> float:
        return threshold_between(torch.tensor(values, dtype=torch.float64), kept)

    assert theta([3.0, 2.0, 2.0, 1.0], 2) == 2.0  # the first of the equal ones was kept
    above = math.nextafter(1.0, 2.0)
    assert theta([above, 1.0], 1) == 1.0
    assert theta([math.nextafter(above, 2.0), above], 1) == above
    assert theta([1.0, 0.0], 1) == 0.5
    assert theta([0.0, 0.0], 1) == 0.0
    assert theta([1.0, 0.5], 2) == 0.0
    assert theta([], 0) == 0.0
    assert theta([1e308, 1e307], 1) == pytest.approx(5.5e307)


@pytest.mark.parametrize("method", ["joint", "global"])
@pytest.mark.parametrize("sparsifier_name", ["activity", "contribution", "sdp"])
def test_thresholds_choose_the_same_channels_in_double(method: str, sparsifier_name: str) -> None:
    task = blobs(3)
    model = trained(mlp([40, 30]), task, "multi", 1)
    scores = sparsifier(sparsifier_name).scores
    floor = scored(task).floor(scored(task)(model), 0.02)
    pruning = ThresholdSearch(model, scores(model, task.train, CPU), scored(task), floor).run(
        method
    )
    wide = (task.train[0].double(), task.train[1])
    again = scores(copy.deepcopy(model).double(), wide, CPU)
    for group in model.groups.prunable:
        free = again[group.name][model.active(group) :]
        kept = (free > pruning.thresholds[group.name]).nonzero().flatten()
        assert torch.equal(kept, pruning.keep[group.name])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_channels_are_not_ranked_by_what_is_no_number(value: float) -> None:
    task = blobs(3)
    model = trained(mlp([8, 6]), task)

    def rank(model: Model, *_: object) -> dict[str, torch.Tensor]:
        scores = measure_activity(model, task.train, CPU)
        scores["2"][1] = value
        return scores

    with pytest.raises(
        TrainingError, match=r"^activity of '2': expected finite means, got NaN or Inf; look for"
    ):
        find_pruning(model, task.train, scored(task), 0, rank=rank)


def test_no_single_channel_of_the_result_can_go() -> None:
    """In one group, one channel less falls below the floor."""
    task = blobs(5)
    model = trained(mlp([30]), task)
    best = Fraction(count_correct(model, task.validation, CPU), 80)
    activity = measure_activity(model, task.train, CPU)
    search = ThresholdSearch(model, activity, scored(task), best)
    kept = search.joint().keep["0"].numel()
    # Bisection finds a boundary: at it the floor holds, one below it does not.
    assert search.value({"0": kept}) >= best
    assert kept == 1 or search.value({"0": kept - 1}) < best


@pytest.mark.parametrize("margin", [0.0, 0.01, 0.1])
def test_a_search_that_looks_at_the_hardest_examples_holds_the_floor_on_all(margin: float) -> None:
    """On splits large enough for it, no channel less would do either."""
    task = blobs(8, classes=4, rows=4 * 600)
    model = trained(mlp([30], classes=4), task)
    validation = scored(task)
    floor = validation.floor(validation(model.net), margin)
    search = ThresholdSearch(model, measure_activity(model, task.train, CPU), validation, floor)
    assert search._hard is not None
    assert len(search._hard[1]) < validation.total / 2
    (kept,) = search.joint().keep.values()
    (name,) = search.order
    assert validation(model.pruned_network({name: kept})) >= floor
    n = len(kept)
    assert n == 1 or search.value({name: n - 1}) < floor


@given(rows=st.integers(1, 30), n=st.integers(0, 40), seed=st.integers(0, 99))
def test_the_hardest_examples_have_the_least_distance(rows: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 3, generator=generator)
    labels = torch.randint(0, 3, (rows,), generator=generator)
    found = hardest(logits, labels, n).tolist()
    assert found == sorted(set(found))
    assert len(found) == min(n, rows)
    right = [float(row[y]) for row, y in zip(logits, labels, strict=True)]
    others = [
        max(float(v) for j, v in enumerate(row) if j != y)
        for row, y in zip(logits, labels, strict=True)
    ]
    distance = [a - b for a, b in zip(right, others, strict=True)]
    rest = [d for i, d in enumerate(distance) if i not in found]
    assert max((distance[i] for i in found), default=-9e9) <= min(rest, default=9e9)


def test_dead_channels_cost_nothing_to_cut() -> None:
    task = blobs(6)
    model = trained(mlp([30]), task)
    with torch.no_grad():
        model.masked_layers["0"].free_weight[10:] = 0
        model.masked_layers["0"].free_bias[10:] = -1
    activity = measure_activity(model, task.train, CPU)
    search = ThresholdSearch(model, activity, scored(task), scored(task)(model))
    assert search.most["0"] <= 10


def test_a_group_whose_channels_are_all_dead_keeps_one() -> None:
    task = blobs(6)
    model = trained(mlp([30]), task)
    with torch.no_grad():
        model.masked_layers["0"].free_weight.zero_()
        model.masked_layers["0"].free_bias.fill_(-1)
    activity = measure_activity(model, task.train, CPU)
    pruning = ThresholdSearch(model, activity, scored(task), 0).joint()
    assert pruning.keep["0"].numel() == 1


def test_margin_is_a_fraction_and_the_boundary_is_inside() -> None:
    assert floor_of(9848, 0.0005, 10000) == 9843
    assert floor_of(9848, 0.0, 10000) == 9848
    assert floor_of(3, 0.9, 100) == 0
    assert floor_of(297, 1 / 297, 297) == 296


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20), st.floats(0, 0.5))
@settings(max_examples=200, deadline=None)
def test_candidates_are_those_within_the_margin(correct: list[int], margin: float) -> None:
    chosen = candidates(correct, floor_of(max(correct), margin, 1000))
    assert chosen == [
        i for i, c in enumerate(correct) if c / 1000 >= max(correct) / 1000 - margin - 1e-11
    ]
    assert correct.index(max(correct)) in chosen


def test_sparsest_takes_the_first_of_equals() -> None:
    assert sparsest([3.0, 1.0, 1.0]) == 1


def test_l1_settings() -> None:
    layers = ["a", "b"]
    assert per_layer(0.1, layers) == {"a": 0.1, "b": 0.1}
    assert per_layer([1, 2], layers) == {"a": 1.0, "b": 2.0}
    assert per_layer({"b": 3}, layers) == {"a": 0.0, "b": 3.0}
    for bad in ([1.0], {"c": 1.0}, -1.0, float("nan"), "x", True, [0.1, None]):
        with pytest.raises(ConfigError, match="l1"):
            per_layer(bad, layers)


def test_grids() -> None:
    points = grid_points({"l1": [0.1, [1, 2]], "lr": [0.5, 1.0]}, 0.0, 9.0, ["a", "b"])
    assert [(p.l1["b"], p.lr) for p in points] == [(0.1, 0.5), (0.1, 1.0), (2.0, 0.5), (2.0, 1.0)]
    assert [p.lr for p in grid_points({"l1": [0.1, 0.2]}, 0.0, 9.0, ["a"])] == [9.0, 9.0]
    for bad in ({"rate": [1]}, {"lr": []}, {"lr": 0.1}, {"lr": [0.0]}, {"l1": [-1.0]}, [1]):
        with pytest.raises(ConfigError):
            grid_points(bad, 0.0, 1.0, ["a"])
