"""All grid points of a task trained at once: their free weights stacked in one network, one step
for all of them.

Every point sees the batches and the dropout that it would see alone; what is frozen is computed
once for all. A small network fills a GPU only so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clnp_kernels.casts import frozen
from clnp_kernels.nn import Dropout
from clnp_kernels.optim import AdamL1
from clnp_kernels.stacked import stacked_linear

from ..data.batches import batches, evaluation_batch
from ..data.inputs import Split
from ..errors import TrainingError
from ..graph.channels import Walk
from ..graph.graph import OPS, WITH_WEIGHTS, Node
from ..network.boundaries import MaskedLayer
from ..network.model import Model
from ..objectives.objective import Objective
from .evaluation import evaluating
from .fit import SCHEDULES, Fit, FitSettings, FitState, parameter_groups, record, trainable
from .optimizer_state import load_optimizer_tensors, numbered, optimizer_tensors
from .step_graph import set_group_rate, share_rate

EXCEPT = ("log_softmax", "stochastic_depth")  # elementwise operations that are not, among points


@dataclass(frozen=True)
class Parts:
    """A value within the stacked network.

    Attributes:
        shared: [B, A, ...], channels that are frozen, or what has none: the same for all points.
        own: [P, B, F], the free channels of every point; None where there are none.
    """

    shared: Tensor
    own: Tensor | None


def stackable(model: Model) -> bool:
    """True if the grid points of a model can be trained together: its network consists of linear
    layers, dropout and elementwise operations, with free channels in every hidden layer.
    """
    if not all(model.free(group) for group in model.groups.prunable):
        return False
    values = Walk.of(model.graph).values
    stacked: set[str] = set()  # nodes whose values differ from point to point
    for node in model.graph.nodes:
        own = [name in stacked for name in node.inputs]
        if node.op == "linear" and values[node.name].dims == 2:
            stacked.add(node.name)
        elif node.role in WITH_WEIGHTS:
            return False
        elif any(own):
            follows = node.role == "elementwise" and node.op not in EXCEPT
            if not (follows or (node.role == "merge" and all(own))):
                return False
            stacked.add(node.name)
    return True


class StackedNetwork:
    """The network of a model with the free weights of P points.

    Arguments:
        model: in a task, `stackable`.
        points: P.

    Attributes:
        stacks: for each of the model's parameters, in their order, its values for all points, [P,
            ...]; all begin as the model's.
    """

    def __init__(self, model: Model, points: int) -> None:
        self.model, self.points = model, points
        self.stacks = [
            p.detach().expand(points, *p.shape).clone().requires_grad_() for p in trainable(model)
        ]
        self._by_parameter = dict(zip(map(id, trainable(model)), self.stacks, strict=True))

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, ...] -> outputs [P, B, C]."""
        values: dict[str, Parts] = {}
        for node in self.model.graph.nodes:
            if node.role == "input":
                values[node.name] = Parts(x, None)
            else:
                values[node.name] = self._value(node, [values[name] for name in node.inputs])
        outputs = values[self.model.graph.output].own
        assert outputs is not None
        return outputs

    def _value(self, node: Node, inputs: Sequence[Parts]) -> Parts:
        if node.op == "linear":
            return self._linear(node.name, inputs[0])
        if node.op == "dropout":
            return self._dropout(inputs[0], node.attrs["p"])
        op = OPS[node.op]
        numbers = [node.attrs[name] for name in op.attrs]
        function = op.function
        if function is None:
            assert op.make is not None
            function, numbers = op.make(**{name: node.attrs[name] for name in op.attrs}), []
        shared = function(*(value.shared for value in inputs), *numbers)
        if inputs[0].own is None:
            return Parts(shared, None)
        return Parts(shared, function(*(value.own for value in inputs), *numbers))

    def _linear(self, name: str, value: Parts) -> Parts:
        x = value.shared
        own = x.new_empty(self.points, len(x), 0) if value.own is None else value.own
        if name == self.model.groups.head:
            head = self.model.head
            weight, bias = head.free_weight, head.current_bias()
            # Channels of earlier tasks are no inputs of a single head.
            x = x[:, x.shape[1] + own.shape[2] - weight.shape[1] :]
            shared = x.new_empty(len(x), 0)
        else:
            layer = self.model.masked_layers[name]
            weight, bias = layer.free_weight, layer.free_bias
            shared = self._frozen(layer, x)
        stacked = None if bias is None else self._by_parameter.get(id(bias), bias[None])
        if stacked is not None:
            stacked = stacked.expand(self.points, -1)
        return Parts(shared, stacked_linear(x, own, self._by_parameter[id(weight)], stacked))

    @staticmethod
    @torch.no_grad()
    def _frozen(layer: MaskedLayer, x: Tensor) -> Tensor:
        """The frozen outputs of a layer, [B, 0] where nobody reads them."""
        if layer.skip_active:
            return x.new_empty(len(x), 0)
        weight, bias = layer.active_weight, layer.active_bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            weight, bias = frozen(weight, dtype), None if bias is None else frozen(bias, dtype)
        return F.linear(x[:, : layer.active_in], weight, bias)

    def _dropout(self, value: Parts, p: float) -> Parts:
        """The mask that a network of this width draws, the same for all points."""
        if not self.model.training or p == 0.0:
            return value
        x, own = value.shared, value.own
        width = x.shape[1] + (0 if own is None else own.shape[2])
        mask = Dropout(p)(x.new_ones(len(x), width, *x.shape[2:]))
        shared = x * mask[:, : x.shape[1]]
        return Parts(shared, None if own is None else own * mask[:, x.shape[1] :])


class StackedFit(Fit):
    """Trains the free weights of a model on one task at several grid points together.

    The model's own parameters stay as they are. Every point ends as in a `Fit` of its own, within
    rounding.

    Arguments:
        model: in a task, `stackable`.
        train, validation, seed: as for `Fit`.
        settings: one for each point; they differ in `lr` and `l1` only.
        on_batch: as for `Fit`, with means over the points.
        objective: as for `Fit`.
    """

    def __init__(
        self,
        model: Model,
        train: Split,
        validation: Split,
        settings: Sequence[FitSettings],
        seed: int,
        on_batch: Callable[[float, float, int, int], None] | None = None,
        objective: Objective | None = None,
    ) -> None:
        # What the cache would hold is computed once for all points anyway.
        common = replace(settings[0], cache=False)
        super().__init__(model, train, validation, common, seed, on_batch, objective)
        self.points, self.shape = list(settings), (len(settings),)
        self.network = StackedNetwork(model, len(settings))
        places = {id(parameter): i for i, parameter in enumerate(self.parameters)}
        self.parameters = self.moving = self.network.stacks
        # Of every point, views of the stacks, which the optimizer moves.
        self.views = [
            [nn.Parameter(s.detach()[p]) for s in self.moving] for p in range(len(settings))
        ]
        groups = [
            {**group, "lr": point.lr, "params": [views[places[id(q)]] for q in group["params"]]}
            for point, views in zip(settings, self.views, strict=True)
            for group in parameter_groups(model, point.l1)
        ]
        self.optimizer = AdamL1(groups)
        self.states = [FitState() for _ in settings]

    def resume_all(self, states: Sequence[FitState]) -> None:
        """Goes on from the saved states of all points, which have done as many epochs."""
        held: dict[str, Tensor] = {}
        for p, (views, state) in enumerate(zip(self.views, states, strict=True)):
            with torch.no_grad():
                for view, saved in zip(views, state.parameters, strict=True):
                    view.copy_(saved)
            held |= {_renumbered(key, p * len(views)): t for key, t in state.optimizer.items()}
            self.states[p] = FitState(state.epoch, list(state.history))
        load_optimizer_tensors(self.optimizer, numbered(self.optimizer), held, ".")

    def run_all(
        self, after_epoch: Callable[[list[FitState], Callable[[int], FitState]], None]
    ) -> list[FitState]:
        """Trains to the last epoch.

        Arguments:
            after_epoch: called with (states of all points, snapshot); `snapshot(p)` copies what
                point p needs to go on into a full state.

        Raises:
            TrainingError: the loss or a weight of a point is not finite.
        """
        try:
            while (epoch := self.states[0].epoch) < self.settings.epochs:
                for state, row in zip(self.states, self._epoch_of_all(epoch), strict=True):
                    state.history.append(row)
                    state.epoch += 1
                after_epoch(self.states, self._snapshot_of)
        finally:
            self.release()
        return self.states

    def _share_rates(self) -> None:
        each = len(self.optimizer.param_groups) // len(self.points)
        for p in range(len(self.points)):
            groups = self.optimizer.param_groups[p * each : (p + 1) * each]
            share_rate(groups, self.device)

    def _epoch_of_all(self, epoch: int) -> list[dict[str, float]]:
        factor = SCHEDULES[self.settings.schedule](epoch, self.settings.epochs)
        rates = [point.lr * factor for point in self.points]
        each = len(self.optimizer.param_groups) // len(rates)
        for i, group in enumerate(self.optimizer.param_groups):
            set_group_rate(group, rates[i // each])
        with self._seeded(epoch):
            losses, metrics = self._trained(epoch)
            values = self._validated()
        rows = zip(losses.tolist(), metrics.tolist(), values, rates, strict=True)
        return [record(epoch, *row) for row in rows]

    def _snapshot_of(self, p: int) -> FitState:
        views, state = self.views[p], self.states[p]
        held = optimizer_tensors(self.optimizer, numbered(self.optimizer), ".")
        numbers = range(p * len(views), (p + 1) * len(views))
        own = {k: t for k, t in held.items() if int(k.split(".", 1)[0]) in numbers}
        return FitState(
            state.epoch,
            list(state.history),
            [view.detach().cpu().clone() for view in views],
            {_renumbered(key, -p * len(views)): t for key, t in own.items()},
        )

    def _validated(self) -> list[float]:
        """Validation metric of every point."""
        with evaluating(self.model):
            size = evaluation_batch(self.validation)
            found = [(self.network(x), y) for x, y in batches(self.validation, size, self.device)]
        measured, identity = self.measured, nn.Identity()
        return [
            measured.shown(measured.of(identity, ((outputs[p], y) for outputs, y in found)))
            for p in range(len(self.points))
        ]

    def _gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of every point's mean loss -> losses [P], sums of the metric [P]."""
        bf16 = self.settings.dtype == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            outputs = self.network(x)
        outputs = outputs.float() if bf16 else outputs
        losses = self.objective.loss.means(outputs, y)
        for stack in self.moving:
            stack.grad = None
        losses.sum().backward()
        for p, views in enumerate(self.views):
            for view, stack in zip(views, self.moving, strict=True):
                view.grad = None if stack.grad is None else stack.grad[p]
        return losses.detach(), torch.stack([self.objective.running(own, y) for own in outputs])

    def _diverged(self, what: str, epoch: int) -> None:
        raise TrainingError(
            f"{what} in epoch {epoch + 1} of a grid point among "
            f"{[(point.lr, point.l1) for point in self.points]} (lr, l1); what was learned before "
            "this task is untouched. A lower lr usually helps"
        )


def _renumbered(key: str, by: int) -> str:
    number, name = key.split(".", 1)
    return f"{int(number) + by}.{name}"
