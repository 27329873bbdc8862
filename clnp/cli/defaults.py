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
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "permuted-digits": {
        **COMMON,
        "tasks": 5,
        "epochs": 40,
        "batch_size": 32,
        "lr": 2e-3,
        "l1": (5e-4, 5e-4, 3e-4),
        "schedule": "step",
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
        "schedule": "step",
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
        **COMMON,
        "tasks": 6,
        "epochs": 30,
        "batch_size": 128,
        "lr": 1e-3,
        "l1": (5e-5,),
        "schedule": "step",
        "net": "narrow",
        "head": "multi",
        "margin": 0.02,
        "split": "cifar10-100",
        "classes_per_task": None,
        "validation": 0.1,
        "normalise": "constants",
        "augment": False,
    },
    "folder": {
        **COMMON,
        "tasks": 1,
        "epochs": 20,
        "batch_size": 32,
        "lr": 1e-3,
        "l1": (1e-5,),
        "schedule": "step",
        "net": "resnet18",
        "head": "multi",
        "margin": 0.02,
        "validation": 0.1,
        "normalise": "constants",
        "augment": True,
        "image_size": None,
        "convert_images": False,
        "image_range": (),
    },
    "arrays": {
        **COMMON,
        "tasks": 1,
        "epochs": 20,
        "batch_size": 64,
        "lr": 1e-3,
        "l1": (1e-5,),
        "schedule": "step",
        "net": "mlp",
        "width": 1000,
        "depth": 2,
        "dropout": 0.0,
        "head": "multi",
        "margin": 0.02,
        "validation": 0.1,
        "normalise": "constants",
        "augment": False,
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
SPLITS = {"cifar10-100": None, "cifar10": 5, "cifar100": 10}
# Other methods than CLNP: plain training, for which a constant rate and no dropout are usual.
METHODS: dict[str, dict[str, Any]] = {
    "permuted-digits": {"lr": 1e-3, "schedule": "constant"},
    "permuted-mnist": {"lr": 1e-3, "schedule": "constant", "dropout": 0.0, "init": None},
    "split-cifar": {"schedule": "constant"},
    "folder": {"schedule": "constant"},
    "arrays": {"schedule": "constant"},
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
# Fields that mean nothing to other methods than CLNP.
CLNP_ONLY = (
    "l1",
    "margin",
    "search",
    "grid_l1",
    "grid_lr",
    "grid_first_only",
    "fine_tune_epochs",
    "fine_tune_lr",
    "fine_tune_l1",
    "granularity",
    "sparsifier",
    "fine_tune_schedule",
    "fine_tune_rounds",
    "growth",
    "first_growth",
    "adopt",
)
# Options that are refused for other methods than CLNP.
NO_METHOD = (*CLNP_ONLY, "score")
