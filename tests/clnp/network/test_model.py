"""Life cycle of tasks on the model itself, and refusals."""

import contextlib
import copy
from typing import Any

import pytest
import torch
from torch import nn

import clnp
from clnp.errors import CapacityError, CheckpointError, ConfigError, DataError
from clnp.network.keep import keep_everything, keep_first
from clnp.network.model import Model
from clnp.network.restore import restored
from clnp.network.shapes import EXTRA
from tests.clnp import conv_cases
from tests.clnp.cases import Residual, blobs, convert, mlp, random_keep, some_steps

IMAGES = torch.zeros(2, *conv_cases.SHAPE)


def none_of(model: Model) -> dict[str, torch.Tensor]:
    return {g.name: torch.empty(0, dtype=torch.int64) for g in model.groups.prunable}


def first(model: Model, counts: dict[str, int]) -> dict[str, torch.Tensor]:
    return {name: torch.arange(n) for name, n in counts.items()}


def test_first_task_starts_from_the_converted_weights() -> None:
    net = mlp([8, 6])
    model = convert(net)
    model.begin_task()
    x = torch.randn(5, 12)
    assert torch.equal(model(x), net(x))


def test_boundaries_follow_the_tasks() -> None:
    model = convert(mlp([8, 6]))
    for k, counts in enumerate([{"0": 3, "2": 2}, {"0": 0, "2": 1}, {"0": 5, "2": 3}]):
        model.begin_task(generator=torch.Generator().manual_seed(k))
        model.consolidate(first(model, counts))
    assert [task.active for task in model.tasks] == [
        {"input": 1, "0": 3, "2": 2},
        {"input": 1, "0": 3, "2": 3},
        {"input": 1, "0": 8, "2": 6},
    ]
    layers = model.masked_layers
    assert layers["0"].active_weight.shape == (8, 12)
    assert layers["2"].active_weight.shape == (6, 8)
    assert model.is_full
    narrow = model.subnetwork(1)
    assert narrow.get_submodule("2").weight.shape == (3, 3)
    assert model.subnetwork(2).get_submodule("2").weight.shape == (6, 8)


def test_interference_weights_are_zero_in_the_learned_corner() -> None:
    model = convert(mlp([8, 6]))
    model.begin_task()
    model.consolidate(first(model, {"0": 3, "2": 2}))
    model.begin_task()
    model.consolidate(first(model, {"0": 4, "2": 3}))
    corner = model.masked_layers["2"].active_weight
    assert corner.shape == (5, 7)
    assert corner[:2, 3:].abs().sum() == 0
    assert corner[2:, 3:].abs().sum() > 0


def test_single_head_gives_every_task_its_own_channels_and_keeps_the_first_bias() -> None:
    model = convert(mlp([8, 6]), head="single")
    bias = []
    for _ in range(2):
        model.begin_task()
        some_steps(model)
        bias.append(model.head.current_bias().detach().clone())
        model.consolidate(first(model, {"0": 2, "2": 2}))
    assert torch.equal(bias[0], bias[1])
    assert model.subnetwork(1).get_submodule("2").weight.shape == (2, 4)
    assert model.subnetwork(1).get_submodule("4").weight.shape == (3, 2)


def test_single_head_skips_channels_of_earlier_tasks_while_training() -> None:
    model = convert(mlp([8, 6]), head="single")
    model.begin_task()
    model.consolidate(first(model, {"0": 2, "2": 2}))
    model.begin_task()
    shapes = {}
    model.head.register_forward_pre_hook(lambda module, args: shapes.update(head=args[0].shape))
    model(torch.randn(5, 12))
    assert shapes["head"] == (5, 4)


def test_single_head_of_a_residual_network_ignores_earlier_channels() -> None:
    model = convert(Residual(), head="single")
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        model.begin_task(generator=generator)
        model.consolidate(random_keep(model, generator))
    before, after = (task.active["stem"] for task in model.tasks)
    weight = model.subnetwork(1).get_submodule("out").weight
    assert weight.shape == (3, after)
    assert weight[:, :before].abs().sum() == 0


def test_multi_head_tasks_may_differ_in_classes() -> None:
    model = convert(mlp([8]))
    for classes in (3, 5, 2):
        model.begin_task(classes)
        assert model(torch.randn(4, 12)).shape == (4, classes)
        model.consolidate(first(model, {"0": 2}))
    assert [model(torch.randn(4, 12), task=k).shape[1] for k in range(3)] == [3, 5, 2]


def test_transfer_learning_when_everything_is_taken() -> None:
    model = convert(mlp([4]))
    model.begin_task()
    model.consolidate(keep_everything(model))
    model.begin_task(generator=torch.Generator().manual_seed(0))
    some_steps(model)
    model.consolidate(none_of(model))
    assert [task.active["0"] for task in model.tasks] == [4, 4]
    assert not torch.equal(model.head.weight_0, model.head.weight_1)


def test_without_task_the_current_network_answers() -> None:
    model = convert(mlp([8]))
    x = torch.randn(4, 12)
    model.begin_task()
    model.consolidate(first(model, {"0": 3}))
    assert torch.equal(model(x), model(x, task=0))
    model.begin_task()
    assert torch.equal(model(x), model.net(x))
    model.consolidate(first(model, {"0": 3}))
    assert torch.equal(model(x), model(x, task=1))
    assert torch.equal(model(x), model(x, task=-1))


def test_expand_adds_free_channels_and_moves_nothing() -> None:
    model = convert(mlp([4, 4]), head="single")
    x = torch.randn(6, 12)
    model.begin_task()
    model.consolidate(keep_everything(model))
    expected = model(x, task=0)
    with pytest.raises(CapacityError, match=r"expected free channels .* got none of \d+; .*expand"):
        model.begin_task()
    model.expand("2", 3)
    model.expand("0", 2)
    assert torch.equal(model.subnetwork(0, fresh=True)(x), expected)
    model.begin_task()
    assert model.masked_layers["2"].free_weight.shape == (3, 6)
    some_steps(model)
    model.consolidate(keep_everything(model))
    assert torch.equal(model.subnetwork(0, fresh=True)(x), expected)
    assert model.subnetwork(1).get_submodule("2").weight.shape == (3, 6)


def test_cancelled_tasks_leave_no_trace() -> None:
    model = convert(mlp([6]))
    x = torch.randn(4, 12)
    model.begin_task()
    model.consolidate(first(model, {"0": 2}))
    expected, state = model(x, task=0), copy.deepcopy(model.state_dict())
    model.begin_task()
    some_steps(model)
    model.compact(first(model, {"0": 1}))
    model.cancel_task()
    assert torch.equal(model(x), expected)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in state.items()
    }
    model.begin_task()
    assert model(x).shape == (4, 3)


def test_only_free_weights_are_parameters() -> None:
    model = convert(mlp([8, 6]))
    before = sum(p.numel() for p in model.parameters())
    model.begin_task()
    model.consolidate(first(model, {"0": 4, "2": 3}))
    after = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert after["net.0.free_weight"] == (4, 12)
    assert after["net.2.free_weight"] == (3, 8)
    assert sum(p.numel() for p in model.parameters()) < before


def test_dense_weights_travel_through_from_structure() -> None:
    model = convert(mlp([8, 6]), head="single")
    model.begin_task()
    model.consolidate(first(model, {"0": 4, "2": 3}))
    other = Model.from_structure(model.structure())
    other.load_state_dict(model.state_dict())
    x = torch.randn(3, 12)
    assert torch.equal(other(x, task=0), model(x, task=0))


@pytest.mark.parametrize("damage", ["graph", "sizes", "head", "tasks", "left"])
def test_structure_that_is_none_is_refused(damage: str) -> None:
    data = convert(mlp([8])).structure()
    del data[damage]
    with pytest.raises(CheckpointError, match=damage):
        Model.from_structure(data)


def test_unknown_operations_are_not_built() -> None:
    data = convert(mlp([8])).structure()
    data["graph"]["nodes"][1]["op"] = "os.system"
    with pytest.raises(CheckpointError, match=r"os\.system"):
        Model.from_structure(data)


def test_state_of_another_network_is_refused() -> None:
    with pytest.raises(CheckpointError, match="other layers"):
        convert(mlp([8])).load_state_dict(convert(mlp([9])).state_dict())


def test_refusals() -> None:
    model = convert(mlp([8, 6]))
    with pytest.raises(ConfigError, match="begin_task"):
        model.consolidate()
    with pytest.raises(ConfigError, match="none yet"):
        model(torch.randn(2, 12), task=0)
    with pytest.raises(ConfigError, match="before the first"):
        model.expand("0", 1)
    model.begin_task()
    with pytest.raises(ConfigError, match="already begun"):
        model.begin_task()
    for keep, message in [
        ({"0": torch.arange(2)}, r"keep\['2'\].*1-D int64"),
        ({"0": torch.arange(2), "2": torch.tensor([0.0])}, "int64"),
        ({"0": torch.arange(9), "2": torch.arange(2)}, r"0\.\.7"),
        ({"0": torch.tensor([2, 1]), "2": torch.arange(2)}, "ascending"),
        ({"0": torch.tensor([1, 1]), "2": torch.arange(2)}, "ascending"),
        ({"0": torch.arange(0), "2": torch.arange(2)}, "at least one channel"),
    ]:
        with pytest.raises(ConfigError, match=message):
            model.compact(keep)
    model.consolidate(first(model, {"0": 2, "2": 2}))
    with pytest.raises(ConfigError, match="0 to 0"):
        model(torch.randn(2, 12), task=1)
    with pytest.raises(ConfigError, match=r"head: expected 'multi', .* learned 1 task.* 'single'"):
        model.set_head("single")
    with pytest.raises(ConfigError, match="expected one of"):
        model.set_head("triple")
    with pytest.raises(ConfigError, match="expected one of"):
        model.expand("nowhere", 1)
    with pytest.raises(ConfigError, match="positive integer"):
        model.expand("0", 0)


def test_printed_as_a_line_per_layer() -> None:
    model = convert(mlp([8, 6]))
    model.begin_task()
    model.consolidate(first(model, {"0": 3, "2": 2}))
    model.begin_task()
    assert repr(model).splitlines() == [
        "Model: 1 task learned, one in training",
        "  0  3 active, 5 free of 8 channels",
        "  2  2 active, 4 free of 6 channels",
        "  4  multi head",
    ]


def test_single_head_needs_a_hidden_layer() -> None:
    with pytest.raises(ConfigError, match="hidden layer"):
        convert(nn.Linear(12, 3), head="single")


def test_copies_are_independent() -> None:
    model = convert(mlp([8]))
    model.begin_task()
    model.consolidate(first(model, {"0": 3}))
    x = torch.randn(4, 12)
    expected = model(x, task=0)
    other = copy.deepcopy(model)
    other.begin_task()
    some_steps(other)
    other.consolidate(first(other, {"0": 2}))
    assert len(model.tasks) == 1
    assert torch.equal(model(x, task=0), expected)
    assert torch.equal(other(x, task=0), expected)


CONTEXTS: dict[str, Any] = {
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "compile": contextlib.nullcontext,
}


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("net", [lambda: mlp([8, 6]), Residual])
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_context_of_the_first_call_does_not_stay_in_the_copies(
    context: str, net: Any, head: str
) -> None:
    """Gradients go through a learned task's network, and its logits are the same bits."""
    torch.manual_seed(0)
    model = convert(net(), head=head)
    for _ in range(2):
        model.begin_task()
        model.consolidate(random_keep(model, torch.Generator().manual_seed(0)))
    x = torch.randn(3, 12)
    expected = [model(x, task=k) for k in range(2)], model.all_tasks(x)
    copied = copy.deepcopy(model)
    copied._drop_copies()
    call = torch.compile(copied, backend="aot_eager") if context == "compile" else copied
    with CONTEXTS[context]():
        for k in range(2):
            call(x, task=k)
        copied.all_tasks(x)
        clnp.extract(copied, 0)
    y = x.clone().requires_grad_()
    got = [copied(y, task=k) for k in range(2)], copied.all_tasks(y)
    for mine, theirs in zip([*got[0], *got[1]], [*expected[0], *expected[1]], strict=True):
        assert torch.equal(mine, theirs)
        (gradient,) = torch.autograd.grad(mine.sum(), y, retain_graph=True)
        assert gradient.isfinite().all()


def test_a_default_dtype_does_not_stay_in_the_copies() -> None:
    model = convert(mlp([8, 6]))
    model.begin_task()
    model.consolidate(first(model, {"0": 2, "2": 2}))
    x = torch.randn(3, 12)
    torch.set_default_dtype(torch.float64)
    try:
        logits = model(x, task=0), model.all_tasks(x)[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(y.dtype == torch.float32 for y in logits)
    assert torch.equal(logits[0], clnp.extract(model, 0)(x))


def test_a_life_within_inference_mode_leaves_weights_that_can_be_trained() -> None:
    """Parameters made in inference mode could never be trained."""
    with torch.inference_mode():
        model = clnp.convert(conv_cases.Plan(3, (), True, False, "hidden").build(), IMAGES)
        model.set_head("single")
    for _ in range(2):
        with torch.inference_mode():
            model.begin_task()
            model.compact(keep_first(model, {group.name: 4 for group in model.groups.prunable}))
        some_steps(model)
        with torch.inference_mode():
            model.consolidate()
            model.double().float()
            model = restored(model.structure(), torch.float32, model.state_dict())
    with torch.inference_mode():
        model.expand("0", 2)
        model.begin_task()
        model.cancel_task()
        model.load_state_dict(model.state_dict())
        model.begin_task()
    some_steps(model)
    assert len(model.tasks) == 2


def three_states(head: str = "multi") -> tuple[Model, list[dict[str, torch.Tensor]]]:
    """Return a network with three tasks, and its states after 0, 1, 2 and 3 of them."""
    model, states = convert(mlp([8, 6]), head=head), []
    states.append(copy.deepcopy(model.state_dict()))
    for k in range(3):
        model.begin_task(generator=torch.Generator().manual_seed(k))
        model.consolidate(first(model, {"0": 2, "2": 1}), name=f"animals {k}")
        states.append(copy.deepcopy(model.state_dict()))
    return model, states


@pytest.mark.parametrize("head", ["single", "multi"])
def test_an_older_state_does_not_unlearn_silently(head: str) -> None:
    model, states = three_states(head)
    x = torch.randn(4, 12)
    expected = [model(x, task=k) for k in range(3)]
    for k, state in enumerate(states[:3]):
        with pytest.raises(CheckpointError, match=r"3 task\(s\).*unlearn=True") as caught:
            model.load_state_dict(state)
        for task in range(3):
            assert (f"{task} 'animals {task}'" in str(caught.value)) == (task >= k)
        assert all(torch.equal(model(x, task=j), expected[j]) for j in range(3))
    model.begin_task()
    with pytest.raises(CheckpointError, match="unlearn=True"):
        model.load_state_dict(states[1])
    model.load_state_dict(states[3])  # back to the end of the last task
    assert not model.in_task
    model.load_state_dict(states[1], unlearn=True)
    assert [task.name for task in model.tasks] == ["animals 0"]
    assert torch.equal(model(x, task=0), expected[0])
    for state in states[1:]:  # forward
        model.load_state_dict(state)
    assert torch.equal(model(x, task=2), expected[2])


def test_a_state_with_other_tasks_does_not_replace_them_silently() -> None:
    model, _ = three_states()
    other = convert(mlp([8, 6]))
    for _ in range(4):
        other.begin_task()
        other.consolidate(first(other, {"0": 1, "2": 1}), name="plants")
    with pytest.raises(CheckpointError, match="first 0 of them"):
        model.load_state_dict(other.state_dict())


@pytest.mark.parametrize("text", [b"{}", b"[]", b"\xff", b'{"graph": 1}'])
def test_an_extra_state_that_is_none_is_refused(text: bytes) -> None:
    model, states = three_states()
    state = {**states[3], EXTRA: torch.frombuffer(bytearray(text), dtype=torch.uint8)}
    with pytest.raises(CheckpointError):
        model.load_state_dict(state)
    assert len(model.tasks) == 3


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([1.0], "expected a tensor"),
        (torch.zeros(3, 11), r"\[B, 12\], got \[3, 11\]"),
        (torch.zeros(12), r"got \[12\]"),
        (torch.zeros(2, 3, 12), r"got \[2, 3, 12\]"),
        (
            torch.zeros(3, 12, dtype=torch.float64),
            r"expected torch\.float32, .* got torch\.float64",
        ),
        (torch.zeros(3, 12, dtype=torch.int64), "int64"),
        (torch.zeros(3, 12, device="meta"), "meta"),
    ],
)
def test_inputs_that_do_not_fit(learned: bool, x: torch.Tensor, message: str) -> None:
    model = convert(mlp([8]))
    if learned:
        model.begin_task()
        model.consolidate(first(model, {"0": 2}))
    with pytest.raises(DataError, match=message):
        model(x)


def test_an_empty_batch_is_fine() -> None:
    assert convert(mlp([8]))(torch.zeros(0, 12)).shape == (0, 3)


def test_autocast_and_compile() -> None:
    model = convert(mlp([8, 6]))
    model.begin_task()
    model.consolidate(first(model, {"0": 2, "2": 2}))
    model.begin_task()
    x = torch.randn(5, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(x).sum().backward()
    assert expected
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name])


def test_all_tasks_with_other_classes_and_a_log_softmax() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3), nn.LogSoftmax(dim=1))
    model = convert(net)
    x = torch.randn(5, 12)
    with pytest.raises(ConfigError, match="none yet"):
        model.all_tasks(x)
    generator = torch.Generator().manual_seed(0)
    for classes in (3, 5, 2):
        model.begin_task(classes, generator=generator)
        model.consolidate(random_keep(model, generator))
        got = model.all_tasks(x)
        for k, logits in enumerate(got):
            torch.testing.assert_close(logits, model(x, task=k))
    assert [logits.shape[1] for logits in got] == [3, 5, 2]
    with pytest.raises(DataError, match="shape"):
        model.all_tasks(x[:, 1:])


@pytest.mark.parametrize("rule", ["entropy", "energy"])
def test_the_surest_task_is_taken(rule: str) -> None:
    """With made-up logits, each example is certain for one task and undecided for the others."""
    model = convert(mlp([6]))
    for _ in range(3):
        model.begin_task()
        model.consolidate(first(model, {"0": 2}))
    x = torch.randn(40, 12)
    logits = [torch.zeros(40, 3) for _ in range(3)]
    task, label = torch.arange(40) % 3, torch.arange(40) % 2
    for i in range(40):
        logits[int(task[i])][i, int(label[i])] = 9.0
    model.all_tasks = lambda x: logits  # type: ignore[method-assign]
    got = model.predict(x, rule)
    assert torch.equal(got[0], task)
    assert torch.equal(got[1], label)
    with pytest.raises(ConfigError, match=r"rule: expected .* got 'luck'"):
        model.predict(x, "luck")


def test_predicting_without_the_task_on_tasks_that_differ() -> None:
    """Tasks are inferred better than by chance, and the class is that of the task's network."""
    torch.manual_seed(0)
    lt = clnp.Learner(convert(mlp([60, 40])), epochs=15, lr=5e-3, margin=0.02, batch_size=32)
    tasks = [blobs(seed) for seed in range(2)]
    for task in tasks:
        lt.learn(task)
    right = 0
    for k, task in enumerate(tasks):
        x = task.test[0]
        found, label = lt.model.predict(x)
        own = torch.stack([lt.model(x, task=j).argmax(1) for j in range(2)])
        assert torch.equal(label, own.gather(0, found[None])[0])
        right += int((found == k).sum())
    assert right > 80
