"""Structure of a network as JSON, and loading of states with other boundaries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..graph.graph import OPS, Graph, Node
from .boundaries import Boundaries, LearnedTask, NormAcross
from .guards import retiring
from .heads import HEADS
from .keep import part_tensors
from .layout import entries
from .network import Network

if TYPE_CHECKING:
    from typing_extensions import Self

EXTRA = "_extra_state"  # key of the structure in a state dict; a checkpoint stores it as JSON


class Structured(Network):
    """Structure and state dict of a `Model`."""

    @retiring
    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,
        assign: bool = False,
        *,
        unlearn: bool = False,
    ) -> Any:
        """Load a state dict, also one with other boundaries.

        Arguments:
            state_dict, strict, assign: as for `torch.nn.Module.load_state_dict`.
            unlearn: also accept a state that lacks tasks learned by this network; they are lost.

        Raises:
            CheckpointError: the state belongs to another network or lacks learned tasks (nothing
                has changed then), or its tensors contradict the saved structure.
        """
        if EXTRA in state_dict:
            data = _structure_of(state_dict[EXTRA])
            self._check_graph(data)
            if not unlearn:
                self._refuse_unlearning(_tasks_of(data))
        result = super().load_state_dict(state_dict, strict, assign)
        check_shapes(self)
        if self.device.type != "meta":
            self._arrange()
        return result

    def _refuse_unlearning(self, tasks: list[LearnedTask]) -> None:
        """Raise CheckpointError unless the saved tasks begin with the learned ones."""
        kept = 0
        while kept < min(len(tasks), len(self.tasks)) and tasks[kept] == self.tasks[kept]:
            kept += 1
        lost = [f"{k} {task.name!r}" for k, task in enumerate(self.tasks)][kept:]
        if lost:
            raise CheckpointError(
                f"state_dict: expected the {len(self.tasks)} task(s) that this network has "
                f"learned, got the first {kept} of them, which would lose task(s) "
                f"{', '.join(lost)}; load it into a newly converted network, or pass unlearn=True"
            )

    def structure(self) -> dict[str, Any]:
        """Return everything but the tensors, for JSON: graph, sizes, head kind, learned tasks."""
        return {
            "graph": self.graph.to_json(),
            "sizes": dict(self.sizes),
            "head": self.head.kind,
            "in_task": self.in_task,
            "left": dict(self.left),
            "tasks": [asdict(task) for task in self.tasks],
        }

    @classmethod
    def from_structure(cls, data: Mapping[str, Any]) -> Self:
        """Build a network with the given structure; `load_state_dict` fills its tensors.

        Raises:
            CheckpointError: the data doesn't describe a network.
        """
        try:
            graph = Graph.from_json(data["graph"])
            model = cls(graph, {node.name: _dense(node) for node in graph.weighted})
            model._set_structure(data)
            if model.device.type != "meta":
                model._arrange()
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"structure: expected that of a network: {error}") from error
        return model

    def _check_graph(self, data: Mapping[str, Any]) -> None:
        if data.get("graph") != json.loads(json.dumps(self.graph.to_json())):
            raise CheckpointError(
                "state: expected the layers of this network, got other layers; convert the network "
                "that was saved"
            )

    def _set_structure(self, data: Mapping[str, Any]) -> None:
        self._check_graph(data)
        self.sizes = {str(name): int(size) for name, size in data["sizes"].items()}
        if data["head"] != self.head.kind:
            self._swap_head(data["head"])
        self.in_task = bool(data["in_task"])
        self.tasks = _tasks_of(data)
        if "left" not in data:
            raise CheckpointError(
                "state: expected the free units (left) of every group, got none; it was saved by "
                "an older version, so convert and train again"
            )
        self.left = {str(name): int(units) for name, units in data["left"].items()}
        self._check_left()
        self._disarrange()
        self._skip_active()
        self._drop_copies()

    def _check_left(self) -> None:
        """Raise CheckpointError unless active and free units make up every group."""
        for name, size in self.sizes.items():
            free, left = size - self.active(name), self.left[name]
            if not (0 <= left <= free if self.in_task else left == free):
                raise CheckpointError(
                    f"left of {name!r}: expected {free} free units or fewer, got {left}"
                )

    def get_extra_state(self) -> Tensor:
        """Return the structure as bytes in a tensor, so that a state dict has tensors only."""
        text = json.dumps(self.structure()).encode()
        return torch.frombuffer(bytearray(text), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self._set_structure(_structure_of(state))

    def _drop_copies(self) -> None:
        """Drop the copies of learned tasks' networks, which are made anew on demand."""
        self._narrow.clear()
        self._union.clear()

    @torch.inference_mode(False)
    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._drop_copies()
        return super()._apply(fn, recurse)

    def _swap_head(self, kind: str) -> None:
        old = self.head
        bias = None if old.free_bias is None else old.free_bias.detach()
        self.net.set_submodule(self.groups.head, HEADS[kind](old.free_weight.detach(), bias))

    def _skip_active(self) -> None:
        """Skip earlier tasks' channels of the last group if only a single head would read them."""
        skip = self.head.kind == "single" and self.groups.only_feeds_head()
        last, masked = self.groups.last, self.masked
        for name in (*last.producers, *last.carriers):
            masked[name].skip_active = skip


def _structure_of(state: Tensor) -> dict[str, Any]:
    """Parse the tensor of `Model.get_extra_state`."""
    try:
        return dict(json.loads(state.cpu().numpy().tobytes()))
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{EXTRA}: expected the structure of a network: {error}") from error


def _tasks_of(data: Mapping[str, Any]) -> list[LearnedTask]:
    try:
        return [LearnedTask.from_json(task) for task in data["tasks"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"tasks: expected learned tasks: {error}") from error


def _dense(node: Node) -> nn.Module:
    """Make a newly initialised dense module for a node with weights."""
    op = OPS[node.op]
    assert op.make is not None
    return op.make(**{name: node.attrs[name] for name in op.attrs})


Shapes = tuple[tuple[int, ...], tuple[int, ...]]  # actual, expected


def check_shapes(model: Boundaries) -> None:
    """Raise CheckpointError unless the shapes of all tensors match the boundaries."""
    shapes = _head_shapes(model)
    for name, module in model.masked.items():
        _check_ends(model, name, module)
        active = model.outputs(name, model.tasks[-1].active) if model.tasks else 0
        free = model.outputs(name, model.left)
        for part, channels in (("active", active), ("free", free)):
            for key, value in part_tensors(module, part).items():
                if value is not None:
                    rest = tuple(value.shape[1:])
                    if model.graph[name].op == "depthwise_conv2d" and value.dim() == 4:
                        rest = (1, *value.shape[2:])
                    if key == "weight" and name in model.groups.reads:
                        rest = (_inputs(model, name, part), *value.shape[2:])
                    shapes[f"{name}.{part}_{key}"] = (tuple(value.shape), (channels, *rest))
    for k, task in enumerate(model.tasks):
        start = model.width(model.groups.head, model.tasks[k - 1].active) if k else 0
        stop = model.width(model.groups.head, task.active)
        weight, _ = model.head.task_weights(k, start, stop)
        if task.forgotten and model.head.kind == "single":
            continue  # its columns are zero
        columns = stop - start if model.head.kind == "single" else stop
        shapes[f"{model.groups.head}, task {k}"] = (tuple(weight.shape), (task.classes, columns))
    for what, (got, expected) in shapes.items():
        if got != expected:
            raise CheckpointError(
                f"{what}: expected shape {list(expected)}, from the learned tasks, got {list(got)}"
            )


def _check_ends(model: Boundaries, name: str, module: nn.Module) -> None:
    """Raise CheckpointError unless the blocks of a norm over channels are those of the tasks."""
    if not isinstance(module, NormAcross) or module.ends.is_meta:
        return
    counts = [entries(model.groups.of(name), stage) for stage in model.stages()]
    expected = list(accumulate(counts))
    if list(module.boundaries) != expected:
        raise CheckpointError(
            f"{name}.ends: expected {expected}, from the learned tasks, got "
            f"{list(module.boundaries)}"
        )


def _head_shapes(model: Boundaries) -> dict[str, Shapes]:
    """Return actual and expected shapes of the current head."""
    head, name, waits = model.head, model.groups.head, model.tasks and not model.in_task
    rows = model.tasks[-1].classes if waits else head.classes
    frozen, multi = model.frozen_inputs(name), head.kind == "multi"
    columns = _inputs(model, name, "free") - (0 if multi else frozen)
    shapes: dict[str, Shapes] = {
        f"{name}.free_weight": (tuple(head.free_weight.shape), (rows, columns)),
        f"{name}.active_weight": (tuple(head.active_weight.shape), (0, frozen if multi else 0)),
    }
    bias = head.current_bias()
    if bias is not None:
        shapes[f"{name}, bias"] = (tuple(bias.shape), (rows,))
    return shapes


def _inputs(model: Boundaries, name: str, part: str) -> int:
    """Return the expected number of columns of a layer's active or free weight."""
    frozen = model.frozen_inputs(name)
    return frozen if part == "active" else frozen + model.width(name, model.left)
