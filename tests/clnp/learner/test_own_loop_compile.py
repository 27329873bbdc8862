"""`torch.compile` in training loops, on a network that has a task behind it."""

import copy
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import clnp
from clnp.errors import ConfigError
from tests.clnp.cases import convert, mlp, random_keep
from tests.clnp.second_task import OPTIMIZERS, Case, batch, same, second_task

LONG = bool(os.environ.get("CLNP_LONG_TESTS"))
slow = pytest.mark.skipif(not LONG, reason="slow: CLNP_LONG_TESTS=1 runs it")
each_backend = pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=slow)]
)
each_network = pytest.mark.parametrize(
    "case", ["linear", pytest.param("conv", marks=slow)], indirect=True
)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    torch._dynamo.reset()
    found = second_task(request.param)
    yield found
    found.check()


@pytest.mark.parametrize("case", ["linear", "conv"], indirect=True)
@each_backend
def test_a_compiled_network_trains_alike(case: Case, backend: str) -> None:
    twin = copy.deepcopy(case)
    compiled = torch.compile(case.model, backend=backend, fullgraph=True)
    optimizers = [OPTIMIZERS["AdamL1"](c.model.parameters()) for c in (case, twin)]
    for seed in range(3):
        for network, optimizer in zip((compiled, twin.model), optimizers, strict=True):
            optimizer.zero_grad()
            case.loss(seed, network).backward()
            optimizer.step()
    same(case.parameters(), twin.parameters(), rtol=1e-3, atol=1e-4)


# torch says so of itself when it compiles `backward`
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@each_network
@each_backend
@pytest.mark.parametrize("kind", ["AdamL1", pytest.param("SGDL1", marks=slow)])
def test_a_compiled_step_trains_alike(case: Case, kind: str, backend: str) -> None:
    """Torch breaks a step at `zero_grad` and `backward`; the optimizer's part is a whole graph."""
    twin = copy.deepcopy(case)
    steps, updates = [], []
    for one in (case, twin):
        optimizer = OPTIMIZERS[kind](one.model.parameters())

        def step(x: Tensor, y: Tensor, model: Any = one.model, optimizer: Any = optimizer) -> None:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        def update(optimizer: Any = optimizer) -> None:
            optimizer.step()

        steps.append(step)
        updates.append(update)
    compiled = torch.compile(steps[0], backend=backend)
    for seed in range(3):
        compiled(*batch(seed))
        steps[1](*batch(seed))
    torch.compile(updates[0], backend=backend, fullgraph=True)()
    updates[1]()
    same(case.parameters(), twin.parameters(), rtol=1e-3, atol=1e-4)


@each_network
def test_the_next_task_is_compiled_anew(case: Case) -> None:
    compiled = torch.compile(case.model, backend="aot_eager", fullgraph=True)
    for seed in range(2):
        case.loss(seed, compiled).backward()
        case.model.compact(random_keep(case.model, torch.Generator().manual_seed(seed)))
        clnp.consolidate(case.model)
        clnp.begin_task(case.model)
    same([compiled(case.x)], [case.model(case.x)])
    with pytest.raises(
        ConfigError, match=r"expected .* clnp\.convert .*got OptimizedModule; .*_orig_mod"
    ):
        clnp.consolidate(compiled)  # type: ignore[arg-type]


@pytest.mark.parametrize("whole_step", [False, True], ids=["network", "step"])
def test_every_task_of_a_long_stream_is_compiled(whole_step: bool) -> None:
    """Twelve tasks, more often than torch compiles one function without `torch.compiler.reset`."""
    tasks, graphs = 12, 0
    assert tasks > torch._dynamo.config.recompile_limit

    def backend(graph: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    model = convert(mlp([3 * tasks]))
    x, y = torch.randn(8, 12), torch.arange(8) % 3

    def loss() -> Tensor:
        return F.cross_entropy(model(x), y)

    compiled = torch.compile(loss if whole_step else model, backend=backend)
    compiled_in = []
    for _ in range(tasks):
        clnp.begin_task(model)
        torch.compiler.reset()
        before = graphs
        for _ in range(2):
            (compiled() if whole_step else F.cross_entropy(compiled(x), y)).backward()
        compiled_in.append(graphs - before)
        model.compact({group.name: torch.arange(2) for group in model.groups.prunable})
        clnp.consolidate(model)
    assert compiled_in == [compiled_in[0]] * tasks
    assert compiled_in[0] > 0
