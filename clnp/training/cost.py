"""Cost of training: floating-point operations by formula, and bytes held.

A product of [B, I] and [I, O] counts 2 B I O operations, as `torch.utils.flop_counter` counts it;
everything that is not a matrix product or a convolution is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clnp_kernels.nn import MaskedConv2d, MaskedConv3d, MaskedGroupedConv2d, MaskedLinear

from ..network.heads import Head
from ..network.layout import entries
from ..network.model import Model
from .evaluation import evaluating

DENSE = (nn.Linear, nn.Conv2d, nn.Conv3d)
MASKED = (MaskedLinear, MaskedConv2d, MaskedConv3d, MaskedGroupedConv2d, Head)


@dataclass(frozen=True)
class Products:
    """Multiply-adds of one layer for one example, in each of the three products.

    Attributes:
        forward, weight_grad, input_grad: outputs; gradient of the weights; gradient of the inputs.
        inputs: numbers that the layer reads, which the backward pass needs again.
    """

    forward: int
    weight_grad: int
    input_grad: int
    inputs: int

    @property
    def total(self) -> int:
        """Multiply-adds of a training step."""
        return self.forward + self.weight_grad + self.input_grad


def products(
    outputs: int,
    inputs: int,
    frozen_outputs: int = 0,
    frozen_inputs: int = 0,
    *,
    places: int = 1,
    kernel: int = 1,
    needs_input_grad: bool = True,
    skip_frozen: bool = False,
    read: int = 0,
) -> Products:
    """The products of a layer with a frozen block.

    Forward Oa Ia + Of I, gradient of the weights Of I, gradient of the inputs Of If, each times
    places and kernel: interference does not exist, what is frozen has no gradient, and none flows
    into active channels.

    Arguments:
        outputs, inputs: O and I.
        frozen_outputs, frozen_inputs: Oa and Ia; 0 for a dense layer.
        places: positions that the layer is applied at (H W of a convolution's output).
        kernel: taps of a convolution's kernel.
        needs_input_grad: False for a layer that reads the network's inputs.
        skip_frozen: frozen outputs are not computed.
        read: numbers read for one example; default I times places.
    """
    free = outputs - frozen_outputs
    each = places * kernel
    forward = free * inputs + (0 if skip_frozen else frozen_outputs * frozen_inputs)
    back = free * (inputs - frozen_inputs) if needs_input_grad else 0
    return Products(each * forward, each * free * inputs, each * back, read or inputs * places)


def layer_products(net: nn.Module, example: Tensor) -> dict[str, Products]:
    """Layer name -> products of one example in a training step, as the network stands now.

    Arguments:
        net: a dense module (Linear and Conv2d layers count), or a `clnp.Model` between tasks or in
            one, whose frozen and skipped work is left out.
        example: a batch [B, ...] that it accepts.
    """
    body = net.net if isinstance(net, Model) else net
    assert isinstance(body, nn.Module)
    seen: dict[str, Products] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
            now = _products_of(module, args[0], y, len(example))
            before = seen.get(name)
            seen[name] = now if before is None else _sum(before, now)

        return hook

    layers = [(n, m) for n, m in body.named_modules() if isinstance(m, (*DENSE, *MASKED))]
    handles = [module.register_forward_hook(watch(name)) for name, module in layers]
    try:
        with evaluating(body), torch.enable_grad():
            body(example)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _sum(a: Products, b: Products) -> Products:
    return Products(
        a.forward + b.forward,
        a.weight_grad + b.weight_grad,
        a.input_grad + b.input_grad,
        a.inputs + b.inputs,
    )


def _products_of(module: nn.Module, x: Tensor, y: Tensor, batch: int) -> Products:
    read = x.numel() // batch
    if isinstance(module, DENSE):
        weight = module.weight
        assert isinstance(weight, Tensor)
        back = x.requires_grad
        dense = products(
            weight.shape[0],
            weight.shape[1],
            places=y.numel() // (batch * weight.shape[0]),
            kernel=weight[0, 0].numel(),
            needs_input_grad=back,
            read=read,
        )
        trained = dense.weight_grad if weight.requires_grad else 0
        return Products(dense.forward, trained, dense.input_grad, read)
    active, free = module.active_weight, module.free_weight
    assert isinstance(active, Tensor)
    assert isinstance(free, Tensor)
    skip = bool(getattr(module, "skip_active", False))
    outputs = active.shape[0] + free.shape[0]
    places = y.numel() // (batch * max(free.shape[0] if skip else outputs, 1))
    kernel = free.shape[2:].numel()
    if bool(getattr(module, "depthwise", False)):
        frozen = 0 if skip else active.shape[0]
        each = places * free.shape[1:].numel()
        return _depthwise(free.shape[0], frozen, each, x.requires_grad, read)
    return products(
        outputs,
        free.shape[1],
        active.shape[0],
        active.shape[1],
        places=places,
        kernel=kernel,
        needs_input_grad=x.requires_grad,
        skip_frozen=skip,
        read=read,
    )


def training_flops(net: nn.Module, example: Tensor, examples: int = 1) -> int:
    """Operations of one training step on `examples` examples (forward and backward).

    Arguments:
        net, example: as in `layer_products`.
        examples: B.
    """
    return 2 * examples * sum(p.total for p in layer_products(net, example).values())


def inference_flops(net: nn.Module, example: Tensor, examples: int = 1) -> int:
    """Operations of a forward pass over `examples` examples."""
    return 2 * examples * sum(p.forward for p in layer_products(net, example).values())


def clnp_cost(learner: Any, task: int, examples: int) -> dict[str, int | float]:
    """Cost of a task that `clnp.Learner` has learned: {"flops", "examples", "peak_memory",
    "seconds"}.

    The operations of the epochs at all grid points and of the fine-tuning, from the boundaries that
    the task found; those of the search for thresholds are not counted. Memory is counted as for the
    other methods (`held`), for the widest of these networks.

    Arguments:
        learner: a `clnp.Learner`.
        task: index of a learned task.
        examples: training examples of that task.
    """
    model, settings, report = learner.model, learner.settings, learner.reports[task]
    before = model.tasks[task - 1].active if task else dict.fromkeys(model.sizes, 0)
    sizes = dict(model.sizes) | {g: row["size"] for g, row in report.capacity.items()}
    sizes |= report.in_training
    after = model.tasks[task].active
    classes = model.tasks[task].classes
    shapes = _Shapes(model, sizes, before, classes)
    work = shapes.products(report.transfer_only)
    epochs = report.epochs * max(len(report.grid), 1)
    # Structured SDP passes twice: at the weights, and where the loss is highest nearby.
    passes = 2 if settings.sparsifier == "sdp" else 1
    flops = 2 * passes * epochs * examples * sum(p.total for p in work.values())
    tune = settings.tuning
    if tune is not None and report.fine_tuned:
        tuned = _Shapes(model, after, before, classes).products(report.transfer_only)
        again = tune.epochs * tune.rounds
        flops += 2 * again * examples * sum(p.total for p in tuned.values())
        epochs += again
    memory = sum(
        weights + 3 * free + settings.batch_size * work[name].inputs
        for name, (weights, free) in shapes.weights().items()
    )
    return {
        "flops": flops,
        "examples": epochs * examples,
        "peak_memory": memory * model.head.free_weight.element_size(),
        "seconds": float(report.seconds.get("fit", 0.0) + report.seconds.get("fine_tune", 0.0)),
    }


@dataclass(frozen=True)
class _Shapes:
    """A model while a task is trained.

    Attributes:
        sizes, active: group -> channels, and those that are frozen.
        classes: of the task's head.
    """

    model: Model
    sizes: Mapping[str, int]
    active: Mapping[str, int]
    classes: int

    def of(self, name: str) -> tuple[int, int, int, int]:
        """(O, I, Oa, Ia) of a layer that is not depthwise."""
        groups, head = self.model.groups, self.model.head
        reads = groups.reads[name]
        inputs, frozen_inputs = entries(reads, self.sizes), entries(reads, self.active)
        if name != groups.head:
            made = groups.makes[name]
            return entries(made, self.sizes), inputs, entries(made, self.active), frozen_inputs
        if head.kind == "single":
            # It reads the task's own channels only.
            return self.classes, inputs - frozen_inputs, 0, 0
        return self.classes, inputs, 0, frozen_inputs

    def products(self, head_only: bool) -> dict[str, Products]:
        """Layer name -> products of one example in a training step."""
        groups, places = self.model.groups, _places(self.model)
        skip = self.model.head.kind == "single" and groups.only_feeds_head()
        work = {}
        for name in self.model.layer_names:
            where, kernel = places[name]
            skipped = skip and name != groups.head and groups.of(name)[0][0] == groups.last.name
            if name in groups.carries:
                made = groups.carries[name]
                frozen = entries(made, self.active)
                free = entries(made, self.sizes) - frozen
                work[name] = _depthwise(free, 0 if skipped else frozen, where * kernel, True)
                continue
            first = not any(
                groups[group].prunable or groups[group].producers for group, _ in groups.reads[name]
            )
            work[name] = products(
                *self.of(name),
                places=where,
                kernel=kernel,
                needs_input_grad=not (head_only or first),
                skip_frozen=skipped,
            )
        return work

    def weights(self) -> dict[str, tuple[int, int]]:
        """Layer name -> (numbers stored, trainable numbers among them)."""
        groups, places = self.model.groups, _places(self.model)
        found = {}
        for name in self.model.layer_names:
            kernel = places[name][1]
            if name in groups.carries:
                made = groups.carries[name]
                stored = kernel * entries(made, self.sizes)
                found[name] = (stored, stored - kernel * entries(made, self.active))
                continue
            outputs, inputs, frozen_outputs, frozen_inputs = self.of(name)
            free = (outputs - frozen_outputs) * inputs * kernel
            found[name] = (free + frozen_outputs * frozen_inputs * kernel, free)
        return found


def _depthwise(
    free: int, frozen: int, each: int, needs_input_grad: bool, read: int = 0
) -> Products:
    """Products of a layer whose channels have one input each; `each`: places times taps."""
    own = each * free
    return Products(own + each * frozen, own, own if needs_input_grad else 0, read or own)


def _places(model: Model) -> dict[str, tuple[int, int]]:
    """Layer name -> (positions it is applied at, taps of its kernel)."""
    net = model.subnetwork(0)
    found: dict[str, tuple[int, int]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
            weight = module.weight
            assert isinstance(weight, Tensor)
            if isinstance(module, nn.Embedding):  # a vector is looked up, so one is read for each
                weight = weight.t()
            one = weight[:1] if getattr(module, "groups", 1) > 1 else weight[:1, :1]
            found[name] = (y.numel() // max(weight.shape[0], 1), one.numel())

        return hook

    like = model.head.free_weight
    shape = model.graph.nodes[0].attrs["shape"][1:]
    x = torch.zeros(1, *shape, dtype=model.input_dtype, device=like.device)
    handles = [
        net.get_submodule(name).register_forward_hook(watch(name)) for name in model.layer_names
    ]
    try:
        with evaluating(net):
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes of all tensors together."""
    return sum(t.numel() * t.element_size() for t in tensors)
