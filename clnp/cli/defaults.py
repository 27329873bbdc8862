"""The default settings of each experiment. Nothing but data."""

from __future__ import annotations

from typing import Any

COMMON: dict[str, Any] = {
    "seeds": (0,),
    "width": None,
    "depth": None,
    "dropout": None,
    "head": "single",
    "search": "auto",
    "grid_l1": (),
    "grid_lr": (),
    "grid_first_only": False,
    "fine_tune_epochs": 0,
    "fine_tune_lr": 1e-4,
    "fine_tune_l1": (),
    "granularity": 1,
    "dtype": "fp32",
    "device": "cpu",
    "schedule": "step",
}
# Of the experiments whose tasks have classes of their own.
OWN_CLASSES: dict[str, Any] = {
    **COMMON,
    "lr": 1e-3,
    "head": "multi",
    "margin": 0.02,
    "validation": 0.1,
    "normalise": "constants",
    "augment": False,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "permuted-digits": {
        **COMMON,
        "tasks": 5,
        "epochs": 40,
        "batch_size": 32,
        "lr": 2e-3,
        "l1": (5e-4, 5e-4, 3e-4),
        "net": "mlp",
        "width": 600,
        "depth": 2,
        "dropout": 0.0,
        "margin": 0.005,
        "identity_first": False,
        # Steps of a millisecond: two threads win little, and lose much where others want the cores.
        "threads": 1,
    },
    # Network, optimizer, learning rate and batch as in Golkar et al. 2019, Sec. 3.1. The rest is
    # the recipe of docs/reproducibility.md, "Table 1", for half as many epochs: with less dropout,
    # and a rate lowered in steps, which gave more where epochs were few.
    "permuted-mnist": {
        **COMMON,
        "tasks": 10,
        "epochs": 20,
        "batch_size": 256,
        "lr": 2e-3,
        "l1": (0.0, 1e-5, 1e-6),
        "net": "mlp",
        "width": 2000,
        "depth": 2,
        "dropout": 0.2,
        "init": "orthogonal",
        "margin": 0.003,
        "sparsifier": "contribution",
        "first_growth": (400, 300),
        "growth": (240, 400),
        "fine_tune_epochs": 10,
        "fine_tune_lr": 1e-3,
        "fine_tune_schedule": "cosine",
        "identity_first": False,
        "validation": 6000,
    },
    # Golkar et al. 2019, Sec. 3.2: Table 2's network, several heads, lr, alpha and margin; epochs,
    # batch and schedule are not in the paper.
    "split-cifar": {
        **OWN_CLASSES,
        "tasks": 6,
        "epochs": 30,
        "batch_size": 128,
        "l1": (5e-5,),
        "net": "narrow",
        "split": "cifar10-100",
        "classes_per_task": None,
    },
    "folder": {
        **OWN_CLASSES,
        "growth": ("auto",),
        "first_growth": ("auto",),
        "tasks": 1,
        "sparsifier": "contribution",
        "fine_tune_epochs": "auto",
        "granularity": None,
        "epochs": 20,
        "batch_size": 32,
        "l1": (1e-5,),
        "net": "resnet18",
        "augment": True,
        "image_size": None,
        "convert_images": False,
        "image_range": (),
    },
    "arrays": {
        **OWN_CLASSES,
        "growth": ("auto",),
        "first_growth": ("auto",),
        "tasks": 1,
        "sparsifier": "contribution",
        "fine_tune_epochs": "auto",
        "granularity": None,
        "epochs": 20,
        "batch_size": 64,
        "l1": (1e-5,),
        "net": "mlp",
        "width": 1000,
        "depth": 2,
        "dropout": 0.0,
    },
}
STREAMS = tuple(DEFAULTS)
# The networks that an experiment calls by a shorter name.
NETS: dict[str, dict[str, str]] = {"split-cifar": {"resnet18": "resnet18_small"}}
# Golkar et al. 2019, Sec. 3.2: the wide network has a single head and learns ten tasks.
WITH_NET: dict[tuple[str, str], dict[str, Any]] = {
    ("split-cifar", "wide"): {"head": "single", "tasks": 10}
}
# How many tasks a split of CIFAR has where nothing else is said.
SPLITS = {"cifar10-100": None, "cifar10": 5, "cifar100": 10, "cifar100-superclass": 20}
# Other methods than CLNP: plain training at a constant rate, for which no dropout is usual.
METHODS: dict[str, dict[str, Any]] = {
    "permuted-digits": {"lr": 1e-3},
    "permuted-mnist": {"lr": 1e-3, "dropout": 0.0, "init": None},
}
# Options of a method in an experiment, as its authors chose them. SI: the settings of the
# code of Zenke, Poole, Ganguli 2017.
AUTHORS: dict[tuple[str, str], dict[str, Any]] = {
    ("permuted-mnist", "si"): {"c": 0.1, "xi": 0.1, "reset_optimizer": False},
    ("split-cifar", "si"): {"c": 0.01, "xi": 1e-3},
}
# Fields that only some experiments take: those that have them above.
SOME = (
    "identity_first",
    "split",
    "classes_per_task",
    "validation",
    "normalise",
    "augment",
    "image_size",
    "convert_images",
    "image_range",
)
# Experiments whose tasks are files or folders that the command line names.
NAMED = ("folder", "arrays")
# Options that serve some experiments only, beyond `SOME`: those that read files of data, images,
# and those whose networks have channels to scale.
ONLY: dict[str, tuple[str, ...]] = {
    "data_root": ("permuted-mnist", "split-cifar"),
    "image_threads": ("folder",),
    "net_scale": ("split-cifar", "folder", "arrays"),
    "tasks": ("permuted-digits", "permuted-mnist", "split-cifar"),
}
