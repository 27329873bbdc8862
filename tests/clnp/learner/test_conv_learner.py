"""The life cycle on convolutional networks: training, pruning, resuming, adopting, taking out."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import clnp
from clnp.errors import CheckpointError, ConfigError, DataError
from clnp.network.keep import keep_everything
from clnp.pruning.activity import measure_activity
from tests.clnp.cases import random_keep, some_steps
from tests.clnp.conv_cases import SHAPE, Plan, convert, patterns, randomise_norms

PLAIN = Plan(8, ("plain", "pool"), False, True, "flatten")
RESIDUAL = Plan(8, ("residual", "project"), True, True, "mean")
MOBILE = Plan(6, ("inverted", "depthwise"), True, False, "hidden")
PLANS = [PLAIN, RESIDUAL, MOBILE]
FAST: dict[str, Any] = {"epochs": 4, "lr": 0.01, "l1": 1e-4, "margin": 0.1, "batch_size": 16}


def learner(plan: Plan, seed: int = 0, **settings: Any) -> clnp.Learner:
    torch.manual_seed(seed)
    return clnp.Learner(convert(plan.build()), **{**FAST, **settings})


@pytest.mark.parametrize("head", ["multi", "single"])
@pytest.mark.parametrize("plan", PLANS)
def test_tasks_are_learned_and_never_move(plan: Plan, head: str) -> None:
    lt = learner(plan, head=head, epochs=12, margin=0.03, tasks_expected=2)
    tasks = [patterns(seed) for seed in range(2)]
    logits = []
    for k, task in enumerate(tasks):
        report = lt.learn(task)
        assert report.validation >= report.best_validation - 0.03 - 1e-9
        logits.append(lt.model(task.test[0], task=k))
    assert lt.reports[0].test > 0.8
    assert all(verdict.identical for verdict in lt.verify())
    for k, (task, expected) in enumerate(zip(tasks, logits, strict=True)):
        assert torch.equal(lt.model(task.test[0], task=k), expected)
    assert lt.accuracy_matrix[1, 0] == lt.accuracy_matrix[0, 0]


def test_activity_is_the_mean_over_batch_and_pixels_of_what_readers_see() -> None:
    """Algorithm 1, measured by hand on the dense network."""
    torch.manual_seed(0)
    net = randomise_norms(MOBILE.build()).eval()
    model = convert(net)
    model.begin_task()
    task = patterns(0)
    got = measure_activity(model, task.train, torch.device("cpu"))
    x = task.train[0]
    first = net[:3](x)  # read by the expanding convolution and, added up, by the depthwise one
    body = net[3].body
    wide = body[:6](first)
    excited = body[6](wide)
    means = F.adaptive_avg_pool2d(wide, 1)  # what squeeze-and-excite reads
    expected = torch.maximum(excited.abs().mean((0, 2, 3)), means.abs().mean((0, 2, 3)))
    torch.testing.assert_close(got["3.body.0"], expected.double(), rtol=1e-5, atol=1e-7)
    last = net[:4](x)
    stream = net[4:7](last)  # filtered, rectified, pooled: what the flattened layer reads
    expected = torch.maximum(first.abs().mean((0, 2, 3)), net[6:7](stream).abs().mean((0, 2, 3)))
    assert (got["0"] >= first.abs().mean((0, 2, 3)).double() - 1e-6).all()
    torch.testing.assert_close(got["0"], expected.double(), rtol=1e-5, atol=1e-7)


def test_grid_points_start_from_the_same_statistics() -> None:
    """Running statistics are part of what training moves: a grid of two equal points gives two
    equal results.
    """
    lt = learner(RESIDUAL, grid={"lr": [0.01, 0.01]})
    rows = lt.learn(patterns(0)).grid
    assert rows[0]["validation"] == rows[1]["validation"]
    single = learner(RESIDUAL)
    single.learn(patterns(0))
    for key, value in single.model.state_dict().items():
        assert torch.equal(value, lt.model.state_dict()[key]), key


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("plan", [RESIDUAL, MOBILE])
@pytest.mark.parametrize("at", [1, 3, 4])
def test_an_interrupted_task_goes_on_where_it_was(tmp_path: Path, plan: Plan, at: int) -> None:
    whole = learner(plan)
    for seed in range(2):
        whole.learn(patterns(seed))

    class Stopper:
        epochs = 0

        def on_epoch_end(self, *_: Any) -> None:
            self.epochs += 1
            if self.epochs == at:
                raise StoppedError

    first = learner(plan, checkpoint_dir=tmp_path)
    first._progress.interval = 0.0
    first.learn(patterns(0))
    first.callbacks.append(Stopper())
    with pytest.raises(StoppedError):
        first.learn(patterns(1))
    second = clnp.Learner.load(tmp_path, tasks=[patterns(0)], checkpoint_dir=tmp_path)
    second.learn(patterns(1))
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key
    for layer in second.model.masked_layers.values():
        weight = layer.active_weight
        if weight.dim() == 4:
            assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("plan", PLANS)
def test_checkpoints_round_trip(tmp_path: Path, plan: Plan) -> None:
    lt = learner(plan)
    lt.learn(patterns(0))
    lt.save(tmp_path / "a.safetensors")
    again = clnp.Learner.load(tmp_path / "a.safetensors", tasks=[patterns(0)])
    x = patterns(0).test[0]
    assert torch.equal(again.model(x, task=0), lt.model(x, task=0))
    assert all(verdict.identical for verdict in again.verify())
    assert again.learn(patterns(1)).to_json()["row"] == lt.learn(patterns(1)).to_json()["row"]


def test_a_checkpoint_of_contradicting_shapes_is_refused() -> None:
    model = learner(RESIDUAL).model
    model.begin_task()
    model.consolidate(random_keep(model, torch.Generator().manual_seed(0)))
    fresh = convert(RESIDUAL.build())
    state = model.state_dict()
    state["net.1.active_mean"] = state["net.1.active_mean"][:-1]
    with pytest.raises((CheckpointError, RuntimeError), match=r"net\.1: active_.*expected"):
        fresh.load_state_dict(state)


def test_failed_tasks_leave_statistics_as_they_were() -> None:
    lt = learner(RESIDUAL)
    lt.learn(patterns(0))
    before = {k: v.clone() for k, v in lt.model.state_dict().items()}

    class Fails:
        def on_epoch_end(self, *_: Any) -> None:
            raise StoppedError

    lt.callbacks.append(Fails())
    with pytest.raises(StoppedError):
        lt.learn(patterns(1))
    for key, value in lt.model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_batch_of_one_example_left_over() -> None:
    """Batch norm can't take the variance of one vector: the last example joins another batch."""
    lt = learner(MOBILE, batch_size=59)
    assert len(patterns(0).train[1]) == 60
    assert np.isfinite(lt.learn(patterns(0)).history[0]["loss"])


def test_expanded_groups_learn_more() -> None:
    lt = learner(RESIDUAL)
    lt.learn(patterns(0))
    x = patterns(0).test[0]
    before = lt.model(x, task=0)
    lt.expand("0", 3)
    assert lt.model.sizes["0"] == 11
    for name in ("3.second.0", "0"):
        assert lt.model.masked[name].outputs == 11
    lt.learn(patterns(1))
    assert torch.equal(lt.model(x, task=0), before)


# Adopting


def trained(plan: Plan, task: clnp.data.Task) -> nn.Module:
    torch.manual_seed(0)
    net = plan.build()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(40):
        loss = F.cross_entropy(net(task.train[0]), task.train[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@pytest.mark.parametrize("plan", PLANS)
def test_adopting_a_trained_network(plan: Plan) -> None:
    task = patterns(0)
    net = trained(plan, task)
    right = float((net(task.validation[0]).argmax(1) == task.validation[1]).float().mean())
    lt = clnp.Learner(convert(net), **FAST)
    report = lt.adopt(task, margin=0.05)
    assert report.epochs == 0
    assert report.history == []
    assert report.best_validation == pytest.approx(right)
    assert report.validation >= right - 0.05 - 1e-9
    logits = lt.model(task.test[0], task=0)
    lt.learn(patterns(1))
    assert torch.equal(lt.model(task.test[0], task=0), logits)
    assert all(verdict.identical for verdict in lt.verify())


def test_adopting_without_pruning_changes_nothing() -> None:
    task = patterns(0)
    net = trained(RESIDUAL, task)
    lt = clnp.Learner(convert(net), fine_tune={"epochs": 1}, **FAST)
    report = lt.adopt(task, prune=False)
    x = task.test[0]
    torch.testing.assert_close(lt.model(x, task=0), net(x), rtol=1e-5, atol=1e-6)
    assert all(row["free"] == 0 for row in report.capacity.values())
    for group in lt.model.groups.prunable:
        lt.expand(group.producers[0], 4)
    before = lt.model(x, task=0)
    assert lt.learn(patterns(1)).transfer_only is False
    assert torch.equal(lt.model(x, task=0), before)


def test_adopting_is_for_the_first_task_only() -> None:
    lt = clnp.Learner(convert(PLAIN.build()), **FAST)
    with pytest.raises(ConfigError, match=r"^margin: expected a fraction in .* of accuracy, got 2"):
        lt.adopt(patterns(0), margin=2)
    with pytest.raises(ConfigError, match=r"expected 3 classes, .*outputs, got 5; adopt"):
        lt.adopt(patterns(0, classes=5))
    with pytest.raises(DataError, match="shape"):
        lt.adopt(patterns(0, shape=(3, 9, 9)))
    lt.adopt(patterns(0))
    with pytest.raises(
        ConfigError, match=r"^adopt\(\): expected a learner without tasks, got 1 learned"
    ):
        lt.adopt(patterns(1))


# Taking out


def with_tasks(plan: Plan) -> clnp.Model:
    torch.manual_seed(0)
    model = convert(randomise_norms(plan.build()))
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        model.begin_task(generator=generator)
        some_steps(model)
        model.consolidate(random_keep(model, generator))
    return model


@pytest.mark.parametrize("plan", PLANS)
def test_extracted_networks_are_plain_narrow_and_equal(plan: Plan) -> None:
    model = with_tasks(plan)
    x = torch.randn(6, *SHAPE)
    dense = clnp.footprint(plan.build(), x)
    for k in range(2):
        narrow = clnp.extract(model, k)
        assert torch.equal(narrow(x), model(x, task=k))
        assert all(type(m).__module__.startswith("torch.") or m is narrow for m in narrow.modules())
        size = clnp.footprint(narrow, x)
        assert size.parameters == sum(p.numel() for p in narrow.parameters())
        assert 0 < size.multiply_adds < dense.multiply_adds
        assert size.bytes < dense.bytes
        folded = clnp.extract(model, k, fold_batch_norm=True)
        torch.testing.assert_close(folded(x), narrow(x), rtol=1e-4, atol=1e-5)
        norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
        assert not norms
        narrow(x).sum().backward()
        assert all(p.grad is not None for p in narrow.parameters())


def test_folding_leaves_norms_that_follow_no_layer() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)
    )
    model = convert(randomise_norms(net))
    model.begin_task()
    model.consolidate(keep_everything(model))
    folded = clnp.extract(model, 0, fold_batch_norm=True)
    x = torch.randn(2, *SHAPE)
    assert isinstance(folded.get_submodule("2"), nn.BatchNorm2d)
    assert torch.equal(folded(x), model(x, task=0))


def test_footprint_counts_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)).train()
    size = clnp.footprint(net, torch.zeros(5, *SHAPE))
    assert size.multiply_adds == 4 * 3 * 9 * 36 + 144 * 3
    assert size.parameters == 4 * 28 + 145 * 3
    assert size.bytes == 4 * size.parameters
    assert size.seconds > 0
    assert net.training


@pytest.mark.parametrize("plan", [RESIDUAL, MOBILE])
def test_exported_programs(tmp_path: Path, plan: Plan) -> None:
    model = with_tasks(plan)
    narrow = clnp.extract(model, 1, fold_batch_norm=True)
    path = clnp.export(narrow, tmp_path / "net.pt2", torch.zeros(1, *SHAPE))
    for batch in (1, 7):
        x = torch.randn(batch, *SHAPE)
        got = torch.export.load(path).module()(x)
        torch.testing.assert_close(got, narrow(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plan", PLANS)
def test_onnx(tmp_path: Path, plan: Plan) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    import onnxruntime

    narrow = clnp.extract(with_tasks(plan), 1)
    path = clnp.export(narrow, tmp_path / "net.onnx", torch.zeros(2, *SHAPE))
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(path)
    for batch in (1, 5):
        x = torch.randn(batch, *SHAPE)
        (got,) = session.run(["logits"], {"x": x.numpy()})
        np.testing.assert_allclose(got, narrow(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_export_refuses_other_endings_and_says_what_onnx_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = PLAIN.build(), torch.zeros(1, *SHAPE)
    with pytest.raises(ConfigError, match=r"\.pt2 or \.onnx"):
        clnp.export(net, tmp_path / "net.pth", x)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"clnp\[onnx\]"):
        clnp.export(net, tmp_path / "net.onnx", x)
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="can't be written"):
        clnp.export(net, tmp_path / "file" / "net.pt2", x)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("plan", [RESIDUAL, MOBILE])
def test_compiled_training_has_no_graph_break(plan: Plan) -> None:
    """`torch.compile` takes the whole masked network, forward and backward, to the same numbers."""
    plan = Plan(plan.width, plan.blocks, plan.norm, False, plan.end)
    model = with_tasks(plan)
    model.begin_task(generator=torch.Generator().manual_seed(1))
    model.train()
    compiled = torch.compile(model.net, backend="aot_eager", fullgraph=True)
    x = torch.randn(6, *SHAPE).contiguous(memory_format=torch.channels_last)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    results = []
    for network in (model.net, compiled):
        model.load_state_dict(state)
        model.zero_grad()
        logits = network(x)
        logits.square().sum().backward()
        grads = [p.grad.clone() for p in model.parameters()]
        results.append([logits.detach(), *grads, *(t.clone() for t in model.running_statistics())])
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
