"""The table of methods, and how a learner is made and loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.task import Task
from ..errors import CheckpointError, ConfigError
from ..files import checkpoint
from ..learner.base import checkpoint_file
from ..objectives.objective import given_again
from .co2l import Co2L
from .er import ER, DERpp
from .esacl.method import EsaCL, EsaCLCo2L, EsaCLEWC
from .ewc import EWC
from .finetune import Finetune
from .hat import HAT
from .joint import Joint
from .learner import KIND, MethodLearner
from .method import Method
from .options import Options, checked
from .packnet import PackNet
from .saving import example_of, network_of
from .scratch import Scratch
from .settings import MethodSettings
from .si import SI
from .sparcl import SparCL, SparCLCo2L, SparCLEWC
from .supermask import WSN, SupSup
from .superposition import Superposition

SHARED = tuple(f.name for f in dataclasses.fields(MethodSettings))


@dataclass(frozen=True)
class MethodInfo:
    """A row of the table of methods.

    Attributes:
        cls: the method.
        description: one line.
    """

    cls: type[Method]
    description: str

    @property
    def options(self) -> Options:
        """The method's own options."""
        return self.cls.options


METHODS: dict[str, MethodInfo] = {
    "finetune": MethodInfo(Finetune, "no protection: the floor"),
    "scratch": MethodInfo(Scratch, "a fresh network for every task"),
    "joint": MethodInfo(Joint, "all tasks' data at once: the ceiling"),
    "ewc": MethodInfo(EWC, "elastic weight consolidation: quadratic penalty by Fisher information"),
    "si": MethodInfo(SI, "synaptic intelligence: quadratic penalty by path integral"),
    "superposition": MethodInfo(Superposition, "a random key for every task on every layer"),
    "packnet": MethodInfo(PackNet, "weights packed task by task by magnitude"),
    "hat": MethodInfo(HAT, "a learned gate per channel and task; used channels hardly move (HAT)"),
    "wsn": MethodInfo(WSN, "a learned mask of weights per task; weights in use are frozen (WSN)"),
    "supsup": MethodInfo(SupSup, "a learned mask per task over weights that stay random (SupSup)"),
    "er": MethodInfo(ER, "experience replay from a reservoir"),
    "derpp": MethodInfo(DERpp, "replay of labels and stored logits (DER++)"),
    "co2l": MethodInfo(Co2L, "contrastive learning with distillation and replay (Co2L)"),
    "sparcl": MethodInfo(SparCL, "sparse weights, data and gradients over replay (SparCL)"),
    "sparcl-ewc": MethodInfo(SparCLEWC, "SparCL with the penalty of EWC"),
    "sparcl-co2l": MethodInfo(SparCLCo2L, "SparCL with contrastive replay (Co2L)"),
    "esacl": MethodInfo(EsaCL, "sharpness-aware one-shot pruning and selected data (EsaCL)"),
    "esacl-ewc": MethodInfo(EsaCLEWC, "EsaCL with the penalty of EWC"),
    "esacl-co2l": MethodInfo(EsaCLCo2L, "EsaCL with contrastive replay (Co2L)"),
}


def make(
    name: str,
    net: nn.Module,
    example_input: Tensor,
    *,
    device: str | torch.device = "cpu",
    checkpoint_dir: str | Path | None = None,
    callbacks: Iterable[Any] = (),
    progress_bar: bool | None = None,
    **options: Any,
) -> MethodLearner:
    """A learner of the named method.

    Arguments:
        name: a key of `METHODS`.
        net: dense network x [B, ...] -> logits [B, C] that ends in a Linear layer; trained in
            place.
        example_input: a batch that it accepts.
        device, checkpoint_dir, callbacks, progress_bar: as for `clnp.Learner`.
        options: fields of `MethodSettings` (head, lr, epochs, batch_size, schedule, seed, dtype,
            loss, metric, optimizer, momentum, reset_optimizer) and the method's own.

    Raises:
        ConfigError: an unknown method or option, or a value out of range, naming what is possible.
    """
    shared, own = resolve(name, options)
    return MethodLearner(
        _info(name).cls,
        net,
        example_input,
        MethodSettings(**shared),
        own,
        device=device,
        checkpoint_dir=checkpoint_dir,
        callbacks=callbacks,
        progress_bar=progress_bar,
    )


def resolve(name: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """All settings of a method: (fields of `MethodSettings`, the method's own options), those given
    and the defaults of the others.

    Raises:
        ConfigError: an unknown method or option, or a value out of range, naming what is possible.
    """
    info = _info(name)
    own = {key: value for key, value in options.items() if key not in SHARED}
    unknown = sorted(set(own) - set(info.options))
    if unknown:
        raise ConfigError(
            f"method {name!r}: expected options of its own, {sorted(info.options)}, or of all "
            f"methods, {sorted(SHARED)}, got {unknown}"
        )
    given = {key: value for key, value in options.items() if key in SHARED}
    shared = MethodSettings(**{**info.cls.fixed, **given}).fields()
    return shared, checked(name, info.options, own)


def load(
    path: str | Path,
    tasks: Sequence[Task] | None = None,
    *,
    net: nn.Module | None = None,
    loss: Any = None,
    metric: Any = None,
    device: str | torch.device = "cpu",
    checkpoint_dir: str | Path | None = None,
    callbacks: Iterable[Any] = (),
    progress_bar: bool | None = None,
) -> MethodLearner:
    """A learner as it was saved.

    Arguments:
        path: the file, or the folder that holds `checkpoint.safetensors`.
        tasks: the learned tasks (or the whole stream), whose test splits later rows of the accuracy
            matrix need, and whose data joint training needs.
        net: the network, where its layers could not be written (`MethodLearner.save`).
        loss, metric: the learner's, where they are functions: a file holds their names only.
        device, checkpoint_dir, callbacks, progress_bar: as for a new learner.

    Raises:
        CheckpointError: no such file, damaged, or not a method's.
        ConfigError: the network has to be passed.
        DataError: `tasks` are not the tasks that were learned.
    """
    path = checkpoint_file(path)
    tensors, data = checkpoint.read(path, KIND)
    try:
        shared = dict(data["settings"])
        for name, given in (("loss", loss), ("metric", metric)):
            shared[name] = given_again(name, shared.get(name), given)
        info, options = _info(shared.pop("method")), shared.pop("options")
        net = network_of(data, tensors) if net is None else net
        example = example_of(data)
        learner = MethodLearner(
            info.cls,
            net,
            example,
            MethodSettings(**shared),
            options,
            device=device,
            callbacks=callbacks,
            progress_bar=progress_bar,
        )
    except ConfigError:
        raise
    except Exception as error:  # anybody can have written anything
        raise CheckpointError(f"{path} does not hold a complete learner: {error}") from error
    learner.take_over(tensors, data, path)
    learner._use_folder(checkpoint_dir, path)
    learner.attach(tasks)
    return learner


def _info(name: str) -> MethodInfo:
    if name not in METHODS:
        raise ConfigError(f"method: expected one of {list(METHODS)}, got {name!r}")
    return METHODS[name]
