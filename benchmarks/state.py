"""A network in the middle of its second task: part of it frozen, the rest to be trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import clnp
from benchmarks.cases import DTYPES, NETWORKS, SEED, Case
from clnp.models.networks import seeded_weights
from clnp.network.boundaries import Carrier

L1, LR = 1e-5, 1e-3
EXAMPLES_OF_STATISTICS = 32  # that the first task's batch norms have seen


@dataclass(frozen=True)
class State:
    """Starting point of every contender.

    Attributes:
        case: where it comes from.
        model: a converted network whose second task has begun (the first one, where nothing is
            frozen).
        x, labels: a batch [B, ...] and its classes [B].
    """

    case: Case
    model: clnp.Model
    x: Tensor
    labels: Tensor

    @property
    def autocast(self) -> bool:
        """True if forward and loss are computed in bfloat16."""
        return DTYPES[self.case.dtype] == torch.bfloat16 and self.x.dtype == torch.float32

    def double(self) -> State:
        """The same numbers in float64; the model is converted in place."""
        return State(self.case, self.model.double(), self.x.double(), self.labels)


def make_state(case: Case, head: str = "multi") -> State:
    """The state that a case describes, the same numbers in every process.

    A random subset of the channels of every hidden group is frozen. Batch norms have random weights
    and the statistics of a batch that went through the network, as if a task had been learned.
    """
    generator = torch.Generator().manual_seed(SEED)
    shape = NETWORKS[case.network].shape
    net = NETWORKS[case.network].make(case.scale)
    x = _batch(case.batch, shape, generator)
    labels = torch.randint(10, (case.batch,), generator=generator)
    model = clnp.convert(net, x[:1], verbose=False)
    model.set_head(head)
    model.train()
    if case.fraction:
        with seeded_weights(SEED + 1):
            freeze(model, case.fraction, _batch(EXAMPLES_OF_STATISTICS, shape, generator))
    model.begin_task(generator=generator)
    model.to(case.device)
    x = x.to(case.device)
    if x.dim() == 4:
        model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    return State(case, model, x, labels.to(case.device))


def _batch(size: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random examples [B, ...] with mean 0 and variance 1."""
    return torch.randn(size, *shape, generator=generator)


@torch.no_grad()
def freeze(model: clnp.Model, fraction: float, x: Tensor) -> None:
    """Lets a network learn a task without training: a random subset of so many channels of every
    group, drawn from torch's global generator, becomes active.
    """
    model.begin_task()
    for norm in model.norms.values():
        if norm.free_weight is not None and norm.free_bias is not None:
            norm.free_weight.uniform_(0.5, 1.5)
            norm.free_bias.normal_(0, 0.1)
    take_statistics(model, x)
    keep = {}
    for group in model.groups.prunable:
        count = max(1, round(group.size * fraction) - model.active(group))
        count = min(count, model.free(group))
        keep[group.name] = torch.randperm(model.free(group))[:count].sort().values
    model.consolidate(keep)


def take_statistics(model: clnp.Model, x: Tensor) -> None:
    """Makes the running statistics of all batch norms those of one batch x [B, ...]."""
    momenta = {name: norm.momentum for name, norm in model.norms.items()}
    for norm in model.norms.values():
        norm.momentum = 1.0
    model.train()
    model.net(x)
    for name, norm in model.norms.items():
        norm.momentum = momenta[name]


def plain_network(state: State) -> nn.Module:
    """The network of plain `torch.nn` layers, with weights of its own."""
    net = NETWORKS[state.case.network].make(state.case.scale)
    return net.to(device=state.x.device, dtype=state.x.dtype)


def dense_network(state: State) -> nn.Module:
    """The network of plain `torch.nn` layers with the state's weights; interference is zero, and so
    is everything about channels that the task may not train.
    """
    model, net = state.model, plain_network(state)
    with torch.no_grad():
        for name, module in model.masked.items():
            _fill(net.get_submodule(name), module.to_dense())
        head: nn.Module = net.get_submodule(model.groups.head)
        assert isinstance(head, nn.Linear)
        start, free = skipped(model), model.head.free_weight
        head.weight.zero_()
        head.weight[:, start : start + free.shape[1]] = free
        bias = model.head.current_bias()
        if bias is not None:
            head.bias.copy_(bias)
    if state.x.dim() == 4:
        net.to(memory_format=torch.channels_last)
    return net.train()


def _fill(layer: nn.Module, smaller: nn.Module) -> None:
    """Copies the tensors of a layer into the first channels of one that has more; the others become
    zero.
    """
    tensors = layer.state_dict()
    for key, value in smaller.state_dict().items():
        tensors[key].zero_()
        tensors[key][tuple(slice(n) for n in value.shape)] = value


def skipped(model: clnp.Model) -> int:
    """Inputs of the head, the first ones, that the task does not look at: with a single head those
    of earlier tasks.
    """
    return model.frozen_inputs(model.groups.head) if model.head.kind == "single" else 0


def frozen_rows(model: clnp.Model) -> dict[str, int]:
    """Layer or batch norm -> how many of its channels are frozen; of the head none."""
    rows = {
        name: module.active if isinstance(module, Carrier) else module.active_out
        for name, module in model.masked.items()
    }
    return {**rows, model.groups.head: 0}


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one training step's products and convolutions.

    Attributes:
        dense: of the dense network.
        masked: of the design: forward Oa Ia + Of I, weight gradient Of I, input gradient Of If.
    """

    dense: int
    masked: int

    @property
    def bound(self) -> float:
        """Greatest speed-up of a step over dense, if only products took time."""
        return self.dense / self.masked


def work_of(state: State) -> Work:
    """Counts the multiply-adds of a step, one for each number that a product reads."""
    model = state.model
    positions = _positions(state)
    dense = masked = 0
    for name in model.layer_names:
        layer = model.net.get_submodule(name)
        free, active = layer.free_weight, layer.active_weight
        assert isinstance(free, Tensor)
        assert isinstance(active, Tensor)
        kernel = free[0, 0].numel()
        outputs, inputs = active.shape[0] + free.shape[0], free.shape[1]
        depthwise = bool(getattr(layer, "depthwise", False))
        free_inputs = inputs if depthwise else inputs - active.shape[1]
        first = [group for group, _ in model.groups.reads.get(name, ())] == ["input"]
        forward = active[:, :, :1, :1].numel() if active.dim() == 4 else active.numel()
        if getattr(layer, "skip_active", False):
            forward = 0
        forward += free.shape[0] * inputs
        backward = free.shape[0] * (inputs + (0 if first else free_inputs))
        masked += positions[name] * kernel * (forward + backward)
        dense += positions[name] * kernel * outputs * inputs * (2 if first else 3)
    return Work(dense, masked)


def _positions(state: State) -> dict[str, int]:
    """Layer -> rows of its product: examples times pixels of the output."""
    found: dict[str, int] = {}
    handles = []
    for name in state.model.layer_names:

        def hook(module: nn.Module, args: object, y: Tensor, name: str = name) -> None:
            found[name] = y.numel() // max(y.shape[1], 1)

        handles.append(state.model.net.get_submodule(name).register_forward_hook(hook))
    training = state.model.training
    with torch.no_grad():
        state.model.eval().net(state.x[:1])
    state.model.train(training)
    for handle in handles:
        handle.remove()
    return {name: count * state.case.batch for name, count in found.items()}
