"""The life of a task in a training loop of one's own, and what goes wrong in such loops."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import clnp
from clnp.data import Task
from clnp.errors import CapacityError, CapacityWarning, ConfigError, DataError, TrainingError
from clnp.network.model import Model
from clnp_kernels.optim import SGDL1, AdamL1
from tests.clnp.cases import blobs, convert, mlp, random_keep


def network(head: str = "multi", width: int = 24) -> Model:
    torch.manual_seed(0)
    return convert(mlp([width, width]), head=head)


def train(model: Model, optimizer: torch.optim.Optimizer, task: Task, epochs: int = 40) -> None:
    x, y = task.tensors("train")  # type: ignore[misc]
    model.train()
    for _ in range(epochs):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def accuracy(model: Model, task: Task, k: int) -> float:
    x, y = task.tensors("test")  # type: ignore[misc]
    return (model(x, task=k).argmax(-1) == y).float().mean().item()


OPTIMIZERS: dict[str, Any] = {
    "AdamL1": lambda model: AdamL1(clnp.parameter_groups(model, 1e-4), lr=0.01),
    "SGDL1": lambda model: SGDL1(clnp.parameter_groups(model, 1e-4), lr=0.1, momentum=0.9),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1),
    "Adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=0.05),
}


@pytest.mark.parametrize(
    ("head", "optimizer"),
    [("single", "AdamL1"), ("multi", "SGDL1"), ("single", "AdamW"), ("multi", "Adagrad")],
)
def test_any_loop_learns_without_forgetting(head: str, optimizer: str) -> None:
    model, certificate = network(head), clnp.Certificate()
    tasks = [blobs(k) for k in range(3)]
    for k, task in enumerate(tasks):
        clnp.begin_task(model, generator=torch.Generator().manual_seed(k))
        train(model, OPTIMIZERS[optimizer](model), task)
        pruning = clnp.prune(model, task.train, task.validation, margin=0.02)
        assert pruning.kept < 48
        assert k or pruning.kept
        record = clnp.consolidate(model, name=task.name)
        assert record == model.tasks[k]
        certificate.record(model, task.test[0])  # type: ignore[index]
    assert [v.identical for v in certificate.verify(model)] == [True] * 3
    assert all(accuracy(model, task, k) > 0.9 for k, task in enumerate(tasks))


def test_pruning_keeps_the_margin_and_survivors_can_be_tuned() -> None:
    model, task = network(), blobs(0)
    clnp.begin_task(model)
    train(model, OPTIMIZERS["AdamL1"](model), task)
    x, y = task.tensors("validation")  # type: ignore[misc]
    model.eval()
    before = int((model(x).argmax(-1) == y).sum())
    pruning = clnp.prune(model, task.train, task.validation, margin=0.1)
    after = int((model(x).argmax(-1) == y).sum())
    assert after / len(y) == pruning.validation >= (before - 0.1 * len(y)) / len(y)
    assert model.free("0") == pruning.keep["0"].numel() < 24
    train(model, OPTIMIZERS["AdamL1"](model), task)
    assert int((model.eval()(x).argmax(-1) == y).sum()) >= after
    clnp.consolidate(model)
    assert torch.equal(model(x, task=0), model(x))


def test_weights_have_their_penalty_and_biases_none() -> None:
    model = network()
    clnp.begin_task(model)
    groups = clnp.parameter_groups(model, {"0": 0.5, "4": 0.25})
    assert [g["l1"] for g in groups] == [0.5, 0.0, 0.25, 0.0]
    names = [name for g in groups for name, _ in g["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all("weight" in name for g in groups[:3] for name, _ in g["params"])
    optimizer = AdamL1(groups, lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["net.0.free_weight"]
    with pytest.raises(
        ConfigError, match=r"^l1: expected names of \['0', '2', '4'\], got \['nowhere'\]"
    ):
        clnp.parameter_groups(model, {"nowhere": 1.0})


@pytest.mark.parametrize(
    ("moved", "optimizer"),
    [
        *(("consolidate", optimizer) for optimizer in OPTIMIZERS),
        *((moved, "AdamL1") for moved in ("prune", "cancel_task", "expand", "set_head")),
    ],
)
def test_an_optimizer_of_replaced_parameters_says_so(optimizer: str, moved: str) -> None:
    model, task = network(), blobs(0)
    if moved == "expand":
        clnp.begin_task(model)
        clnp.prune(model, task.train, task.validation)
        clnp.consolidate(model)
        stale = OPTIMIZERS[optimizer](model)
        model.expand("0", 2)
    elif moved == "set_head":
        stale = OPTIMIZERS[optimizer](model)
        model.set_head("single")
    else:
        clnp.begin_task(model)
        stale = OPTIMIZERS[optimizer](model)
        train(model, stale, task, epochs=2)
        clnp.prune(model, task.train, task.validation)
        if moved != "prune":
            getattr(model, moved)()
    if not model.in_task:
        clnp.begin_task(model)
    x, y = task.tensors("train")  # type: ignore[misc]
    F.cross_entropy(model(x), y).backward()
    for use in (stale.step, stale.zero_grad):
        with pytest.raises(RuntimeError, match="build the optimizer anew"):
            use()
    train(model, OPTIMIZERS[optimizer](model), task, epochs=1)


def test_a_step_between_tasks_says_so() -> None:
    model, task = network(), blobs(0)
    clnp.begin_task(model)
    clnp.prune(model, task.train, task.validation)
    clnp.consolidate(model)
    x, y = task.tensors("train")  # type: ignore[misc]
    with pytest.raises(ConfigError, match=r"call begin_task\(\) before training"):
        F.cross_entropy(model.train()(x), y).backward()
    assert not model.eval()(x).requires_grad
    with torch.no_grad():
        assert not model.train()(x).requires_grad
    # What a learned task's network makes of its input can be differentiated in any mode.
    wanted = x.clone().requires_grad_()
    model(wanted).sum().backward()
    assert wanted.grad is not None


def test_channels_that_nothing_reads_go_where_contribution_ranks() -> None:
    kept = {}
    for sparsifier in ("activity", "contribution"):
        model, task = network(), blobs(0)
        clnp.begin_task(model)
        train(model, OPTIMIZERS["AdamW"](model), task)
        with torch.no_grad():
            model.layer_weight("2")[3] *= 50.0  # very active
            model.layer_weight("4")[:, 3] = 0.0  # and for nothing
        pruning = clnp.prune(model, task.train, task.validation, sparsifier=sparsifier)
        kept[sparsifier] = pruning.keep["2"].tolist()
    assert 3 in kept["activity"]
    assert 3 not in kept["contribution"]


def test_forgetting_eval_changes_nothing() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3)
    )
    model, task = convert(net), blobs(0)
    x, _ = task.tensors("test")  # type: ignore[misc]
    clnp.begin_task(model)
    train(model, OPTIMIZERS["AdamW"](model), task, epochs=5)
    pruning = clnp.prune(model.train(), task.train, task.validation)
    clnp.consolidate(model.train())
    expected = model.eval()(x)
    assert torch.equal(model.train()(x), expected)
    clnp.begin_task(model)
    assert torch.equal(model.train()(x, task=0), expected)
    assert pruning.kept > 0


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda m, t: clnp.consolidate(m),
            r"^consolidate\(\): expected a task in training, got none; call begin_task\(\) first",
        ),
        (
            lambda m, t: clnp.prune(m, t.train, t.validation),
            r"^prune\(\): expected a task in training, got none; call begin_task\(\) first",
        ),
        (lambda m, t: [clnp.begin_task(m) for _ in range(2)], "already begun"),
        (
            lambda m, t: clnp.begin_task(nn.Linear(2, 2)),  # type: ignore[arg-type]
            r"^model: expected .* clnp\.convert .*, got Linear; unwrap it: ",
        ),
        (lambda m, t: clnp.parameter_groups(m.net, 0.0), "GraphModule"),  # type: ignore[arg-type]
        (
            lambda m, t: begun_prune(m, t, margin=1.5),
            r"^margin: expected a fraction in \[0, 1\) of accuracy, got 1\.5",
        ),
        (
            lambda m, t: begun_prune(m, t, search="best"),
            "^search: expected one of auto, joint, global, got 'best'",
        ),
        (
            lambda m, t: begun_prune(m, t, granularity=0),
            "^granularity: expected None or an integer >= 1, got 0",
        ),
        (
            lambda m, t: begun_prune(m, t, sparsifier="best"),
            "^sparsifier: expected one of activity, .*, got 'best'",
        ),
    ],
)
def test_misuse_is_refused(use: Any, message: str) -> None:
    model = network()
    with pytest.raises(ConfigError, match=message):
        use(model, blobs(0))


def begun_prune(model: Model, task: Task, **options: Any) -> None:
    clnp.begin_task(model)
    clnp.prune(model, task.train, task.validation, **options)


def test_data_that_does_not_fit_is_refused() -> None:
    model, task = network(), blobs(0)
    clnp.begin_task(model, most_new=None)
    x, y = task.tensors("train")  # type: ignore[misc]
    for wrong in ((x[:, :5], y), (x, y + 1), (x.double(), y), torch.utils.data.DataLoader([])):
        with pytest.raises(DataError):
            clnp.prune(model, wrong, task.validation)  # type: ignore[arg-type]
    assert model.free("0") == 24


@pytest.mark.parametrize("what", ["prune", "consolidate"])
def test_what_is_not_finite_is_not_frozen(what: str) -> None:
    model, task = network(), blobs(0)
    clnp.begin_task(model)
    clnp.prune(model, task.train, task.validation)
    clnp.consolidate(model)
    x, _ = task.tensors("test")  # type: ignore[misc]
    expected = model(x, task=0)
    clnp.begin_task(model)
    with torch.no_grad():
        model.layer_weight("2")[0, 0] = torch.nan
    arguments = (task.train, task.validation) if what == "prune" else ()
    expected_text = (
        rf"^{what}\(\): expected finite parameters, got NaN or Inf in net\.2\.free_weight; "
        r"model\.cancel_task\(\)"
    )
    with pytest.raises(TrainingError, match=expected_text):
        getattr(clnp, what)(model, *arguments)
    model.cancel_task()
    assert torch.equal(model(x, task=0), expected)


def test_a_network_without_room_says_so() -> None:
    for head in ("single", "multi"):
        model, task = network(head, width=16), blobs(0)
        clnp.begin_task(model, most_new=None)
        with pytest.warns(CapacityWarning, match=r"prune\(\) before consolidate\(\)"):
            clnp.consolidate(model)
        if head == "single":
            with pytest.raises(
                CapacityError, match=r"'2': expected free channels .*got none of 16; .*expand\(\)"
            ):
                clnp.begin_task(model)
            continue
        with pytest.warns(CapacityWarning, match="only the new head"):
            clnp.begin_task(model)
        train(model, OPTIMIZERS["AdamL1"](model), task)
        assert clnp.prune(model, task.train, task.validation).kept == 0
        clnp.consolidate(model)
        assert accuracy(model, task, 1) > 0.5


def test_a_run_goes_on_from_a_state_dict(tmp_path: Path) -> None:
    """Saved in the middle of the second task with safetensors, loaded into a fresh network."""
    model = network("multi")
    tasks = [blobs(0), blobs(1, classes=2)]
    clnp.begin_task(model)
    train(model, OPTIMIZERS["AdamL1"](model), tasks[0])
    clnp.prune(model, tasks[0].train, tasks[0].validation)
    clnp.consolidate(model)
    clnp.begin_task(model, classes=2)
    optimizer = OPTIMIZERS["AdamL1"](model)
    train(model, optimizer, tasks[1], epochs=3)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    train(model, optimizer, tasks[1], epochs=3)

    other = network("multi")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    again = OPTIMIZERS["AdamL1"](other)
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    train(other, again, tasks[1], epochs=3)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    for net in (model, other):
        clnp.prune(net, tasks[1].train, tasks[1].validation)
        clnp.consolidate(net)
    x, _ = tasks[0].tensors("test")  # type: ignore[misc]
    assert all(torch.equal(model(x, task=k), other(x, task=k)) for k in range(2))


def test_the_best_weights_can_be_put_back_under_a_running_optimizer() -> None:
    model, task = network(), blobs(0)
    clnp.begin_task(model)
    optimizer = OPTIMIZERS["AdamW"](model)
    train(model, optimizer, task, epochs=2)
    best = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = list(model.parameters())
    train(model, optimizer, task, epochs=2)
    model.load_state_dict(best)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    train(model, optimizer, task, epochs=1)
    assert not torch.equal(model.head.free_weight, best["net.4.free_weight"])


def test_a_state_of_other_boundaries_can_be_loaded_while_a_loss_is_alive() -> None:
    model, (x, y) = network(), blobs(0).train  # type: ignore[misc]
    clnp.begin_task(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.compact(random_keep(model, torch.Generator().manual_seed(0)))
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    model.load_state_dict(before)
    F.cross_entropy(model(x), y).backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    assert loss.isfinite()
