"""Forgetting on request: what goes, what stays, and that kept tasks keep their bits."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clnp.errors import CheckpointError, ConfigError
from clnp.files.checkpoint import tensor_bytes
from clnp.network.certificate import Certificate
from clnp.network.forgetting import units_read
from clnp.network.layout import units_of
from clnp.network.model import Model
from clnp.network.restore import restored
from clnp.network.shapes import EXTRA, check_shapes
from tests.clnp.cases import convert, mlp, some_steps
from tests.clnp.network.test_exactness import convert as convert_any
from tests.clnp.network.test_exactness import heads, learn_random_tasks, networks


def forgotten_numbers(model: Model, tasks: list[int]) -> Iterator[bytes]:
    """Bytes of every frozen weight (one row each) that tasks added, and of their heads."""
    stages = model.frozen_stages()
    for name, layer in model.masked_layers.items():
        layout = model.groups.of(name)
        for group, _ in layout:
            rows = units_of(layout, stages, group)
            for k in tasks:
                before = model.tasks[k - 1].active[group] if k else 0
                for row in rows[before : model.tasks[k].active[group]].flatten().tolist():
                    yield bytes(tensor_bytes(layer.active_weight[row]))
    for k in tasks:
        start = model.width(model.groups.head, model.tasks[k - 1].active) if k else 0
        stop = model.width(model.groups.head, model.tasks[k].active)
        columns = model.head.task_weights(k, start, stop)[0].T
        yield from (bytes(tensor_bytes(column)) for column in columns)


def all_bytes(model: Model) -> bytes:
    tensors = [value for name, value in model.state_dict().items() if name != EXTRA]
    # A column of a weight is no piece of its bytes, so both orders are looked through.
    matrices = [value.flatten(1).T.contiguous() for value in tensors if value.dim() > 1]
    return b"|".join(map(tensor_bytes, [*tensors, *matrices]))


@given(networks, heads, st.integers(0, 2**30), st.data())
@settings(max_examples=15, deadline=None)
def test_kept_tasks_keep_their_bits(
    net: torch.nn.Module, head: str, seed: int, data: st.DataObject
) -> None:
    model = convert_any(net, head=head)
    logits, x = learn_random_tasks(model, 4, seed)
    kept = set(range(len(logits)))
    while kept:
        task = data.draw(st.sampled_from(sorted(kept)))
        cascade = data.draw(st.booleans())
        names, before = dict(enumerate(model.tasks)), dict(model.left)
        gone = model.forget(task, cascade=cascade)
        kept -= set(gone.tasks)
        assert task in gone.tasks
        assert set(gone.readers) <= kept
        if cascade:
            assert all(record.forgotten for k, record in enumerate(model.tasks) if k not in kept)
        else:
            assert gone.tasks == (task,)
        assert model.present == sorted(kept)
        for k in kept:
            assert torch.equal(model(x, task=k), logits[k])
            assert torch.equal(model.subnetwork(k, fresh=True)(x), logits[k])
            assert model.tasks[k] == names[k]
        for group in model.groups.prunable:
            assert model.left[group.name] == before[group.name] + gone.freed.get(group.name, 0)
        check_shapes(model)
    assert all(model.active(group) == 0 for group in model.groups.prunable)


@given(networks, heads, st.integers(0, 2**30), st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_a_network_goes_on_after_forgetting(
    net: torch.nn.Module, head: str, seed: int, task: int
) -> None:
    model = convert_any(net, head=head)
    logits, x = learn_random_tasks(model, 4, seed)
    task = min(task, len(logits) - 1)
    model.forget(task, cascade=bool(seed % 2))
    kept = model.present
    if head == "multi" or not model.is_full:
        model.begin_task()
        some_steps(model)
        model.consolidate()
    state = {k: v for k, v in model.state_dict().items() if k != EXTRA}
    again = restored(model.structure(), x.dtype, state).eval()
    parts = again.all_tasks(x)
    for k in kept:
        assert torch.equal(model(x, task=k), logits[k])
        assert torch.equal(again(x, task=k), logits[k])
        torch.testing.assert_close(parts[k], logits[k], rtol=1e-3, atol=1e-4)
    assert [part.shape[1] == 0 for part in parts] == [t.forgotten for t in model.tasks]
    assert set(again.predict(x)[0].tolist()) <= set(again.present)


def test_the_last_task_goes_whole() -> None:
    """No number of it is left, and its channels are free."""
    model = convert(mlp([12, 9]))
    logits, x = learn_random_tasks(model, 3, 1)
    numbers = list(forgotten_numbers(model, [2]))
    before = model.tasks[1].active
    gone = model.forget(-1)
    assert gone.tasks == (2,)
    assert gone.zeroed == gone.read == {}
    assert model.tasks[-1].active == before
    assert len(model.tasks) == 2
    left = all_bytes(model)
    assert numbers
    assert not any(number in left for number in numbers if len(number) > 8)
    assert torch.equal(model(x), logits[1])


def test_what_later_tasks_read_stays_and_is_named() -> None:
    model = convert(mlp([12, 9]))
    logits, x = learn_random_tasks(model, 4, 1)
    own = {
        group.name: model.tasks[1].active[group.name] - model.tasks[0].active[group.name]
        for group in model.groups.prunable
    }
    gone = model.forget(1)
    assert gone.freed == gone.zeroed == {}
    assert gone.read == {name: n for name, n in own.items() if n}
    assert gone.readers == (2, 3)
    assert model.tasks[1].forgotten
    assert model.tasks[1].name == ""
    with pytest.raises(ConfigError, match="1, which was forgotten"):
        model(x, task=1)
    with pytest.raises(ConfigError, match="1, which was forgotten"):
        model.forget(1)
    # With its readers gone, nothing of it is left.
    model.forget(3)
    numbers = list(forgotten_numbers(model, [2]))
    gone = model.forget(2)
    assert gone.tasks == (2,)
    assert len(model.tasks) == 1
    left = all_bytes(model)
    assert not any(number in left for number in numbers if len(number) > 8)
    assert torch.equal(model(x), logits[0])


def test_cascade_forgets_the_readers() -> None:
    model = convert(mlp([12, 9]))
    logits, x = learn_random_tasks(model, 4, 1)
    numbers = list(forgotten_numbers(model, [1, 2, 3]))
    gone = model.forget(1, cascade=True)
    assert gone.tasks == (1, 2, 3)
    assert gone.readers == ()
    assert torch.equal(model(x), logits[0])
    left = all_bytes(model)
    assert not any(number in left for number in numbers if len(number) > 8)


def test_a_single_head_reads_nothing_of_the_last_layer() -> None:
    """Each task has its own channels there, so those of a forgotten one are zero."""
    model = convert(mlp([8, 30]), head="single")
    logits, x = learn_random_tasks(model, 3, 2)
    layout, stages = model.groups.of("2"), model.frozen_stages()
    start, stop = (model.tasks[k].active["2"] for k in (0, 1))
    numbers = list(forgotten_numbers(model, [1]))
    gone = model.forget(1)
    assert gone.zeroed["2"] == stop - start > 0
    rows = units_of(layout, stages, "2").flatten()[start:stop]
    assert not model.masked_layers["2"].active_weight[rows].any()
    head = numbers[-(stop - start) :]
    assert not any(number in all_bytes(model) for number in head if len(number) > 8)
    for k in (0, 2):
        assert torch.equal(model(x, task=k), logits[k])


def test_channels_of_zero_weights_are_not_read() -> None:
    model = convert(mlp([6]))
    for _ in range(2):
        model.begin_task(most_new={"0": 3})
        some_steps(model)
        model.consolidate()
    assert model.tasks[1].active["0"] == 6
    weight = model.head.weight_1
    assert isinstance(weight, torch.Tensor)
    weight[:, 1] = 0
    assert units_read(model, 1)["0"].tolist() == [True, False, True, True, True, True]
    logits = model(x := torch.randn(5, 12), task=1)
    gone = model.forget(0)
    assert gone.zeroed == {"0": 1}
    assert gone.read == {"0": 2}
    assert not model.masked_layers["0"].active_weight[1].any()
    assert torch.equal(model(x, task=1), logits)


def test_certificates_know_what_was_forgotten() -> None:
    model = convert(mlp([12, 9]))
    certificate = Certificate()
    for k in range(3):
        model.begin_task(most_new={"0": 3, "2": 3})
        some_steps(model)
        model.consolidate()
        assert certificate.record(model, torch.randn(4, 12)).task == k
    model.forget(1)
    certificate.forget(model, [1])
    assert [entry.task for entry in certificate.entries] == [0, 2]
    assert all(verdict.identical for verdict in certificate.verify(model))


def test_everything_forgotten_is_a_new_network() -> None:
    model = convert(mlp([6, 5]), head="single")
    learn_random_tasks(model, 2, 0)
    model.forget(0, cascade=True)
    for k in model.present:
        model.forget(k)
    assert model.tasks == []
    assert model.head.current_bias() is model.head.free_bias
    model.begin_task()
    some_steps(model)
    model.consolidate()
    assert model(torch.randn(2, 12), task=0).shape == (2, 3)


def test_a_state_that_has_forgotten_loads_with_unlearn_only() -> None:
    model, other = convert(mlp([6])), convert(mlp([6]))
    logits, x = learn_random_tasks(model, 3, 0)
    other.load_state_dict(model.state_dict())
    model.forget(1)
    with pytest.raises(CheckpointError, match="would lose task"):
        other.load_state_dict(model.state_dict())
    other.load_state_dict(model.state_dict(), unlearn=True)
    assert other.tasks == model.tasks
    assert torch.equal(other(x, task=2), logits[2])


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((5,), {}, "task: expected the index of a learned task"),
        (("first",), {}, "task: expected the index of a learned task"),
        ((0,), {"cascade": "yes"}, "cascade: expected True or False"),
    ],
)
def test_refusals(arguments: tuple[Any], options: dict[str, Any], text: str) -> None:
    model = convert(mlp([6]))
    learn_random_tasks(model, 1, 0)
    before = dataclasses.asdict(model.tasks[0])
    with pytest.raises(ConfigError, match=text):
        model.forget(*arguments, **options)
    model.begin_task()
    with pytest.raises(ConfigError, match="no task in training"):
        model.forget(0)
    assert dataclasses.asdict(model.tasks[0]) == before
