"""Property tests: earlier tasks are bit-identical for random networks, heads and training."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clnp
from clnp.network.keep import keep_everything
from clnp.network.layout import spans, units_of
from clnp.network.model import Model
from clnp.pruning.activity import channels_of
from tests.clnp import cases, conv_cases
from tests.clnp.cases import Functional, InputResidual, Residual, mlp, random_keep, some_steps
from tests.clnp.conv_cases import Plan, plans

networks = st.one_of(
    st.builds(
        lambda widths, bias, dropout: mlp(widths, bias=bias, dropout=dropout),
        st.lists(st.integers(2, 24), min_size=1, max_size=4),
        st.booleans(),
        st.sampled_from([0.0, 0.3]),
    ),
    st.builds(lambda width: Functional(width=width), st.integers(2, 24)),
    st.builds(lambda width: Residual(width=width), st.integers(2, 24)),
    st.builds(lambda width: InputResidual(width=width), st.integers(2, 24)),
    plans.map(Plan.build),
)


def convert(net: torch.nn.Module, head: str = "multi") -> Model:
    if any(isinstance(module, torch.nn.Conv2d) for module in net.modules()):
        return conv_cases.convert(net, head)
    return cases.convert(net, head=head)


heads = st.sampled_from(["single", "multi"])
few = settings(max_examples=40, deadline=None)


def inputs_for(model: Model, generator: torch.Generator) -> torch.Tensor:
    shape = model.graph.nodes[0].attrs["shape"][1:]
    return torch.randn(17, *shape, generator=generator, dtype=model.head.free_weight.dtype)


def channel_axis(model: Model, name: str) -> int:
    return 1 if "conv2d" in model.graph[name].op else -1


def learn_random_tasks(
    model: Model, tasks: int, seed: int
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Learn tasks with random training and channels; return each task's logits at its end."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    x = inputs_for(model, generator)
    logits = []
    for _ in range(tasks):
        if model.head.kind == "single" and model.is_full:
            break
        model.begin_task(generator=generator)
        some_steps(model)
        model.consolidate(random_keep(model, generator))
        logits.append(model(x, task=len(model.tasks) - 1))
    return logits, x


@given(networks, heads, st.integers(0, 2**30))
@few
def test_logits_of_earlier_tasks_are_bit_identical(
    net: torch.nn.Module, head: str, seed: int
) -> None:
    model = convert(net, head=head)
    logits, x = learn_random_tasks(model, 4, seed)
    for k, expected in enumerate(logits):
        assert torch.equal(model(x, task=k), expected)
        assert torch.equal(model.subnetwork(k, fresh=True)(x), expected)
        assert torch.equal(clnp.extract(model, task=k)(x), expected)


@given(
    networks,
    heads,
    st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    st.integers(0, 2**30),
)
@few
def test_nan_and_inf_in_free_weights_reach_nothing_active(
    net: torch.nn.Module, head: str, poison: float, seed: int
) -> None:
    model = convert(net, head=head)
    logits, x = learn_random_tasks(model, 3, seed)
    full = model.head.kind == "single" and model.is_full  # no further task can begin
    if not full:
        model.begin_task()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.running_statistics()]:
            if tensor.is_floating_point():
                tensor.fill_(poison)
    for k, expected in enumerate(logits):
        assert torch.equal(model.subnetwork(k, fresh=True)(x), expected)
    if full:
        return
    seen = {}
    for name, layer in model.masked_layers.items():
        layer.register_forward_hook(lambda module, args, y, name=name: seen.update({name: y}))
    model.net(x)
    for name, layer in model.masked_layers.items():
        if not layer.skip_active:
            channels = seen[name].movedim(channel_axis(model, name), 0)
            assert torch.isfinite(channels[: layer.active_out]).all()


@given(networks, heads, st.integers(0, 2**30))
@few
def test_consolidating_keeps_the_function_of_the_pruned_network(
    net: torch.nn.Module, head: str, seed: int
) -> None:
    """The pruned network before, the masked network when only its channels are left, and the
    learned task are one function.
    """
    model = convert(net, head=head)
    generator = torch.Generator().manual_seed(seed)
    learn_random_tasks(model, 2, seed)
    if model.head.kind == "single" and model.is_full:
        return
    model.begin_task(generator=generator)
    some_steps(model)
    x = inputs_for(model, generator)
    keep = random_keep(model, generator)
    pruned = model.pruned_network(keep)(x)
    model.compact(keep)
    masked = model.net(x)
    again = model.pruned_network(keep_everything(model))(x)
    model.consolidate()
    learned = model(x, task=len(model.tasks) - 1)
    assert torch.equal(pruned, learned)
    assert torch.equal(again, learned)
    torch.testing.assert_close(masked, learned, rtol=1e-4, atol=1e-5)


@given(networks, heads, st.integers(0, 2**30))
@few
def test_cutting_channels_equals_zeroing_them(net: torch.nn.Module, head: str, seed: int) -> None:
    """Pruning a channel equals zeroing it in the inputs of its consumers."""
    model = convert(net.double(), head=head)
    generator = torch.Generator().manual_seed(seed)
    learn_random_tasks(model, 1, seed)
    if model.head.kind == "single" and model.is_full:
        return
    model.begin_task(generator=generator)
    x = inputs_for(model, generator)
    keep = random_keep(model, generator)
    expected = model.pruned_network(keep)(x)

    def zeroing(group: str, reader: str) -> object:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            value = args[0].clone()
            layout = model.groups.reads[reader]
            entries = units_of(layout, model.stages(), group)[model.active(group) :]
            mask = torch.zeros(len(entries), 1, dtype=value.dtype)
            mask[keep[group]] = 1
            apart, axis = channels_of(model, reader, value)
            apart = apart.movedim(axis, -1)
            missing = sum(span.units * span.each for span in spans(layout, model.stages()))
            missing -= apart.shape[-1]  # of a single head
            apart[..., entries.flatten() - missing] *= mask.expand_as(entries).flatten()
            return (value,)

        return hook

    for group in model.groups.prunable:
        for name in group.consumers:
            model.net.get_submodule(name).register_forward_pre_hook(zeroing(group.name, name))
    torch.testing.assert_close(model.net(x), expected, rtol=1e-9, atol=1e-10)


@given(networks, heads, st.integers(0, 2**30))
@few
def test_state_dict_round_trip_of_grown_shapes(net: torch.nn.Module, head: str, seed: int) -> None:
    fresh = convert(copy.deepcopy(net), head="multi")
    model = convert(net, head=head)
    logits, x = learn_random_tasks(model, 3, seed)
    fresh.load_state_dict(model.state_dict())
    assert fresh.tasks == model.tasks
    assert fresh.head.kind == head
    for k, expected in enumerate(logits):
        assert torch.equal(fresh(x, task=k), expected)
    if not (head == "single" and model.is_full):
        for m in (model, fresh):
            m.eval().begin_task(generator=torch.Generator().manual_seed(1))
        assert torch.equal(model(x), fresh(x))


@pytest.mark.parametrize("head", ["single", "multi"])
def test_exact_after_real_training_with_dropout_and_decay(head: str) -> None:
    model = convert(mlp([40, 30], dropout=0.2), head=head)
    logits, x = learn_random_tasks(model, 5, seed=7)
    assert len(logits) == 5
    assert all(torch.equal(model(x, task=k), expected) for k, expected in enumerate(logits))


@pytest.mark.parametrize("head", ["single", "multi"])
def test_moving_to_another_dtype_and_back_keeps_the_bits(head: str) -> None:
    model = convert(mlp([20, 10]), head=head)
    logits, x = learn_random_tasks(model, 3, seed=3)
    model.double()
    assert model(x.double(), task=0).dtype == torch.float64
    model.float()
    assert all(torch.equal(model(x, task=k), expected) for k, expected in enumerate(logits))


@given(networks, heads, st.integers(0, 2**30))
@few
def test_one_pass_gives_every_tasks_logits(net: torch.nn.Module, head: str, seed: int) -> None:
    model = convert(net.double(), head=head)
    logits, x = learn_random_tasks(model, 4, seed)
    got = model.all_tasks(x)
    assert len(got) == len(logits)
    for mine, expected in zip(got, logits, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-11)
