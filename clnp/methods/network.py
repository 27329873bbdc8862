"""A dense network with the outputs of one task or of several."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..graph.graph import Graph
from ..training.evaluation import evaluating

# Stands in for the logits of classes that a task does not have, where tasks with different numbers
# of classes meet in one batch: exp(PAD) is 0, and PAD - PAD is 0 too.
PAD = -1e30


class Heads(nn.Module):
    """One output layer per task; `task` chooses.

    Attributes:
        task: index of a task, or [B] int64, one for each example.
    """

    def __init__(self, first: nn.Linear) -> None:
        super().__init__()
        self.inputs, self.bias = first.in_features, first.bias is not None
        self.layers = nn.ModuleList([first])
        self.task: int | Tensor = 0

    def add(self, classes: int, generator: torch.Generator | None) -> None:
        """Adds the next task's layer, drawn as `torch.nn.Linear` draws it, from a CPU stream."""
        like = self.layers[0].weight
        assert isinstance(like, Tensor)
        layer = nn.utils.skip_init(nn.Linear, self.inputs, classes, bias=self.bias)
        bound = 1.0 / math.sqrt(max(self.inputs, 1))
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
        self.layers.append(layer.to(like))

    def forward(self, x: Tensor) -> Tensor:  # [B, I] -> [B, C], C the most classes of those asked
        if isinstance(self.task, int):
            return self.layers[self.task](x)
        tasks = self.task.to(x.device)
        present: list[int] = tasks.unique().tolist()
        outputs = {k: self.layers[k](x[tasks == k]) for k in present}
        widest = max(y.shape[-1] for y in outputs.values())
        logits = next(iter(outputs.values())).new_full((len(x), widest), PAD)
        for k, y in outputs.items():
            rows = (tasks == k).nonzero()
            logits = logits.index_put((rows, torch.arange(y.shape[-1], device=x.device)), y)
        return logits


class TaskNet(nn.Module):
    """A user's dense network, trained in place, with the outputs of one or several tasks.

    Arguments:
        net: any module x [B, ...] -> logits [B, C] whose outputs come from its `nn.Linear` that is
            called last.
        example: a batch that it accepts.
        head: "single": all tasks share the outputs of `net`; "multi": every task has its own.
        graph: its operations, where they can be read.

    Raises:
        ConfigError: no such Linear layer.
    """

    def __init__(
        self, net: nn.Module, example: Tensor, head: str, graph: Graph | None = None
    ) -> None:
        super().__init__()
        self.graph = graph
        self.net = nn.Sequential(net) if isinstance(net, nn.Linear) else net
        self.kind = head
        self.head_name, self.classes = _find_head(self.net, example)
        self.tasks: list[int] = []  # classes of each task begun
        if head == "multi":
            first = self.net.get_submodule(self.head_name)
            assert isinstance(first, nn.Linear)
            self.net.set_submodule(self.head_name, Heads(first))

    @property
    def head(self) -> nn.Module:
        """The output layer: a Linear, or `Heads`."""
        return self.net.get_submodule(self.head_name)

    @property
    def features(self) -> int:
        """Channels that the output layer reads."""
        head = self.head
        return head.inputs if isinstance(head, Heads) else int(head.in_features)  # type: ignore[arg-type]

    def add_task(self, classes: int, generator: torch.Generator | None) -> None:
        """Makes room for one more task. The first one keeps the layer that `net` came with, if it
        has as many classes.
        """
        head = self.head
        if isinstance(head, Heads):
            first = not self.tasks
            if not (first and classes == self.classes):
                head.add(classes, generator)
            if first and classes != self.classes:
                head.layers = nn.ModuleList([head.layers[1]])
        self.tasks.append(classes)

    def forward(self, x: Tensor, task: int | Tensor | None = None) -> Tensor:
        """x [B, ...] -> logits [B, C] of a task, by default the last one; or of each example's own
        task, [B] int64.
        """
        head = self.head
        if isinstance(head, Heads):
            head.task = max(len(self.tasks) - 1, 0) if task is None else task
        return self.net(x)

    def with_features(self, x: Tensor, task: int | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(features [B, F] that the output layer reads, logits [B, C])."""
        seen: list[Tensor] = []

        def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append(args[0])

        handle = self.head.register_forward_pre_hook(watch)
        try:
            logits = self(x, task)
        finally:
            handle.remove()
        return seen[-1], logits

    def hidden_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters before the output layer, by name."""
        head = f"net.{self.head_name}."
        return {n: p for n, p in self.named_parameters() if not n.startswith(head)}

    def shared_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that every task uses: without the heads, if each task has its own."""
        return dict(self.named_parameters()) if self.kind == "single" else self.hidden_parameters()

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that the current task trains: without the heads of the others."""
        head = self.head
        named = dict(self.named_parameters())
        if not isinstance(head, Heads):
            return named
        own = f"net.{self.head_name}.layers.{len(head.layers) - 1}."
        shared = self.hidden_parameters()
        return {n: p for n, p in named.items() if n in shared or n.startswith(own)}

    def restart(self) -> None:
        """Draws all weights anew as each module's `reset_parameters` does, from torch's global
        generator.
        """
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()


class ForTask(nn.Module):
    """The network of one task: x -> its logits."""

    def __init__(self, net: nn.Module, task: int) -> None:
        super().__init__()
        self.net, self.task = net, task

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, self.task)


def _find_head(net: nn.Module, example: Tensor) -> tuple[str, int]:
    """Name and outputs of the Linear layer that is called last."""
    called: list[str] = []

    def watch(name: str) -> Any:
        return lambda *_: called.append(name)

    handles = [
        m.register_forward_hook(watch(n))
        for n, m in net.named_modules()
        if isinstance(m, nn.Linear)
    ]
    try:
        with evaluating(net):
            logits = net(example)
    finally:
        for handle in handles:
            handle.remove()
    last = net.get_submodule(called[-1]) if called else None
    if last is None or last.out_features != logits.shape[-1]:
        raise ConfigError(
            "net: expected a network that ends in a torch.nn.Linear which gives the logits; got "
            f"outputs of shape {list(logits.shape)}"
            + (f" after {called[-1]!r}, {last}" if called else " and no Linear layer")
        )
    return called[-1], int(last.out_features)  # type: ignore[arg-type]
