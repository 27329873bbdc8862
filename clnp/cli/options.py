"""The options of an experiment on the command line. Nothing but data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..learner.settings import DTYPES, SEARCHES, SPARSIFIERS
from ..models.networks import INITS
from ..network.heads import HEADS
from ..parallel import EXECUTORS
from ..training.fit import SCHEDULES
from ..training.score import SCORES
from .defaults import SPLITS


def numbers(text: str) -> tuple[float, ...]:
    """ "1e-5,1e-6" -> (1e-5, 1e-6)."""
    return tuple(float(part) for part in text.split(","))


def whole_numbers(text: str) -> tuple[int, ...]:
    """ "40,400" -> (40, 400)."""
    return tuple(int(part) for part in text.split(","))


FLAG: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
NUMBERS: dict[str, Any] = {"type": numbers, "metavar": "A[,A...]"}
# Where things are, and which seeds: no settings of `Config`.
PLACES: dict[str, dict[str, dict[str, Any]]] = {
    "folder": {
        "out": {"type": Path, "metavar": "DIR", "help": "run folder (default: runs/EXPERIMENT)"},
        "resume": {"action": "store_true", "help": "go on with the run in --out, its settings"},
        "overwrite": {"action": "store_true", "help": "delete the run in --out first"},
        "data-root": {
            "metavar": "DIR",
            "help": "folder with MNIST's idx files, or with CIFAR in any of its forms; without it "
            "they are downloaded",
        },
        "pretrained": {
            "metavar": "FILE",
            "help": "weights to begin with: .safetensors, or a state dict saved by torch.save",
        },
        "image-threads": {"type": int, "metavar": "N", "help": "threads that read image files"},
    },
    "several at a time": {
        "workers": {
            "type": int,
            "metavar": "N",
            "help": "processes (default: 1), for seeds and compared methods, or else for the grid "
            "points of a task",
        },
        "executor": {
            "choices": EXECUTORS,
            "help": "what the workers are: processes of this machine (default) or tasks on Ray",
        },
    },
    "seeds": {
        "seed": {"type": int, "metavar": "S", "help": "one seed (default: 0)"},
        "seeds": {
            "type": int,
            "nargs": "+",
            "metavar": "N",
            "help": "one number: seeds 0 to N-1; several: these seeds. Each has its own sub-folder",
        },
    },
}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "data": {
        "tasks": {"type": int, "metavar": "T", "help": "tasks of the stream"},
        "split": {
            "choices": tuple(SPLITS),
            "help": "split-cifar: CIFAR-10 then CIFAR-100 in parts (default), or one in parts",
        },
        "classes-per-task": {"type": int, "metavar": "N"},
        "validation": {
            "type": float,
            "metavar": "X",
            "help": "training examples set aside for validation, a fraction, or (MNIST) a number",
        },
        "examples": {
            "type": int,
            "metavar": "N",
            "help": "training examples of each task, drawn at random (default: all)",
        },
        "identity-first": {**FLAG, "help": "permuted: the first task keeps its pixels' order"},
        "normalise": {
            "choices": ("constants", "train", "none"),
            "help": "images by stated constants (default), by the task's training images, or not",
        },
        "augment": {**FLAG, "help": "random crops and mirror images while training"},
        "image-size": {
            "type": int,
            "metavar": "N",
            "help": "folder: side to which images are scaled (default: theirs, where all are "
            "squares of one size)",
        },
        "convert-images": {
            **FLAG,
            "help": "folder: take images that are transparent, of inks, or of more than 8 bits",
        },
        "image-range": {
            "type": numbers,
            "metavar": "BLACK,WHITE",
            "help": "folder: of images of more than 8 bits (default: as measured)",
        },
    },
    "training": {
        "epochs": {"type": int, "metavar": "N", "help": "epochs per task"},
        "batch-size": {"type": int, "metavar": "B"},
        "lr": {"type": float, "metavar": "X", "help": "learning rate of Adam"},
        "l1": {**NUMBERS, "help": "L1 coefficient, one or one per layer"},
        "schedule": {"choices": tuple(SCHEDULES), "help": "of the learning rate"},
        "dtype": {"choices": tuple(DTYPES)},
        "device": {"metavar": "D", "help": "cpu, cuda or cuda:N"},
        "threads": {
            "type": int,
            "metavar": "N",
            "help": "CPU threads, of each worker; another number can change the last bits",
        },
        "set": {
            "action": "extend",
            "nargs": "+",
            "metavar": "NAME=VALUE",
            "help": "options of the method, as clnp methods lists them; for one of several methods "
            "METHOD.NAME=VALUE",
        },
    },
    "network": {
        "net model": {
            "metavar": "NAME",
            "help": "mlp, narrow, wide, resnet18_small, or one of torchvision's",
        },
        "net-scale": {"type": float, "metavar": "X", "help": "factor on the channels of our own"},
        "width": {"type": int, "metavar": "N", "help": "mlp: channels of each hidden layer"},
        "depth": {"type": int, "metavar": "N", "help": "mlp: hidden layers"},
        "dropout": {"type": float, "metavar": "P"},
        "init": {"choices": INITS, "help": "mlp: how the weights of its first layer are drawn"},
        "head": {
            "choices": tuple(HEADS),
            "help": "one output layer for all tasks, or one each",
        },
        "adopt": {**FLAG, "help": "the --pretrained network is the first task, untrained"},
    },
    "pruning": {
        "margin": {
            "type": float,
            "metavar": "M",
            "help": "validation accuracy that pruning may cost (0.0005 = 0.05 %%)",
        },
        "score": {
            "type": lambda text: text.replace("-", " "),
            "choices": tuple(SCORES),
            "help": "what the margin is held on; balanced-accuracy is the mean of the classes' "
            "recalls, for tasks with rare classes",
        },
        "search": {
            "choices": SEARCHES,
            "help": "thresholds of all layers together, or one by one",
        },
        "sparsifier": {
            "choices": SPARSIFIERS,
            "help": "prune by mean activity (default), by what a channel adds to the layers that "
            "read it, or train sparse by structured SDP",
        },
        "growth": {
            "type": whole_numbers,
            "metavar": "N[,N...]",
            "help": "most new channels of a task after the first, one number or one per group",
        },
        "first-growth": {
            "type": whole_numbers,
            "metavar": "N[,N...]",
            "help": "most channels of the first task",
        },
        "grid": {
            "action": "extend",
            "nargs": "+",
            "metavar": "NAME=LIST",
            "help": "graceful forgetting over a grid: l1=1e-6,1e-5 lr=1e-3,2e-3; per layer with "
            "colons, l1=1e-5:1e-5:1e-6",
        },
        "grid-first-only": {
            **FLAG,
            "help": "search the grid on the first task and keep what it chose",
        },
        "granularity": {
            "type": int,
            "metavar": "N",
            "help": "round kept channels up to a multiple",
        },
        "reinit-scale": {
            "type": float,
            "metavar": "X",
            "help": "scale of re-initialised free weights",
        },
        "fine-tune-epochs": {
            "type": int,
            "metavar": "N",
            "help": "epochs for the survivors after pruning (0: none)",
        },
        "fine-tune-lr": {"type": float, "metavar": "X"},
        "fine-tune-l1": {**NUMBERS, "help": "default: that of training"},
        "fine-tune-schedule": {"choices": tuple(SCHEDULES)},
        "fine-tune-rounds": {
            "type": int,
            "metavar": "N",
            "help": "prune and fine-tune so many times, within the one margin",
        },
    },
}
