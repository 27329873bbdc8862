"""Files whose JSON was changed at random, with right checksums: read as they say, or refused."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from torch import nn

import clnp
from clnp import methods
from clnp.data.cifar import read_cifar
from clnp.data.idx import read_idx
from clnp.errors import CheckpointError, ClnpError, ConfigError, DataError
from clnp.files import checkpoint
from tests.clnp.cases import blobs, convert, mlp
from tests.fuzz.mutations import mutated

LONG = bool(os.environ.get("CLNP_LONG_TESTS"))
FUZZ = settings(
    max_examples=3000 if LONG else 20,
    deadline=None,
    derandomize=not LONG,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


def image_net() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(72, 4)),
    )


def contents(folder: Path) -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
    """what -> (kind, tensors, data) of a learner, a method's learner and two networks."""
    torch.manual_seed(0)
    learner = clnp.Learner(convert(mlp([20])), head="single", epochs=2, lr=0.01)
    learner.learn(blobs(0))
    learner.save(folder / "learner")
    other = methods.make("si", mlp([8]), torch.zeros(1, 12), head="multi", epochs=1)
    other.learn(blobs(0))
    other.save(folder / "method")
    clnp.export(clnp.extract(learner.model, 0), folder / "n.safetensors", torch.zeros(1, 12))
    model = clnp.convert(image_net().eval(), torch.zeros(1, 3, 10, 10), verbose=False)
    model.begin_task()
    model.consolidate()
    clnp.export(clnp.extract(model, 0), folder / "i.safetensors", torch.zeros(1, 3, 10, 10))
    files = {"learner": "learner", "method": "method", "n.safetensors": "network"}
    files["i.safetensors"] = "network"
    return {name: (kind, *checkpoint.read(folder / name, kind)) for name, kind in files.items()}


LOADS = {"learner": clnp.Learner.load, "method": methods.load, "network": clnp.load_network}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return contents(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("name", ["learner", "method", "n.safetensors", "i.safetensors"])
def test_any_data(name: str, good: dict[str, Any], tmp_path: Path) -> None:
    kind, tensors, data = good[name]
    path, drawn = tmp_path / "changed", torch.get_rng_state()

    @given(mutated(data))
    @FUZZ
    def changed(data: dict[str, Any]) -> None:
        checkpoint.write(path, kind, tensors, data)
        try:
            LOADS[kind](path)
        except (CheckpointError, ConfigError):
            return

    changed()
    torch.set_rng_state(drawn)


@pytest.mark.parametrize("name", ["learner", "n.safetensors"])
def test_any_tensors(name: str, good: dict[str, Any], tmp_path: Path) -> None:
    """Other shapes and dtypes; a right answer or a CheckpointError."""
    kind, tensors, data = good[name]
    shapes = st.lists(st.sampled_from((0, 1, 2, 3, 12, 20)), max_size=4)
    dtypes = st.sampled_from(
        (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool)
    )

    @given(st.sampled_from(sorted(tensors)), shapes, dtypes)
    @FUZZ
    def changed(which: str, shape: list[int], dtype: torch.dtype) -> None:
        fits = list(tensors[which].shape) == shape and tensors[which].dtype == dtype
        checkpoint.write(
            tmp_path / "c", kind, {**tensors, which: torch.ones(shape, dtype=dtype)}, data
        )
        if fits or which.startswith("probe."):
            return
        with pytest.raises(CheckpointError):
            LOADS[kind](tmp_path / "c")

    changed()


def test_any_header(good: dict[str, Any], tmp_path: Path) -> None:
    """Element types, shapes and offsets of the safetensors format itself."""
    kind, tensors, data = good["learner"]
    checkpoint.write(tmp_path / "good", kind, tensors, data)
    content = (tmp_path / "good").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    path = tmp_path / "changed"

    @given(mutated(header), st.integers(-3, 3))
    @FUZZ
    def changed(header: dict[str, Any], off: int) -> None:
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", max(0, len(text) + off)) + text + body)
        try:
            checkpoint.read(path, kind)
        except CheckpointError:
            return

    changed()


def data_files(folder: Path) -> dict[str, Path]:
    """Files of data that are whole: how they are read -> where."""
    y = np.arange(12) % 3
    x = np.arange(12 * 5, dtype=np.float32).reshape(12, 5)
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    np.savez(folder / "a.npz", **arrays)
    np.savez_compressed(folder / "b.npz", **arrays, class_names=np.array(["a", "b", "c"]))
    (folder / "npy").mkdir()
    for name, array in arrays.items():
        np.save(folder / "npy" / f"{name}.npy", array)
    idx = bytes((0, 0, 8, 1)) + struct.pack(">I", 12) + bytes(12)
    (folder / "idx").write_bytes(idx)
    (folder / "idx.gz").write_bytes(gzip.compress(idx))
    images = np.zeros((20, 3072), np.uint8)
    pickled = {"data": images, "fine_labels": list(range(20))}
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps(pickled, protocol=2))
    return {name: folder / name for name in ("a.npz", "b.npz", "npy", "idx", "idx.gz", "train")}


@pytest.mark.parametrize("name", ["a.npz", "b.npz", "npy", "idx", "idx.gz", "train"])
def test_any_bytes_of_data(name: str, tmp_path: Path) -> None:
    """Bytes changed, cut out or put in: read all the same, or refused; never anything else."""
    place = data_files(tmp_path)[name]
    path = place / "x_train.npy" if place.is_dir() else place
    content = path.read_bytes()

    @given(st.integers(0, len(content)), st.integers(0, 40), st.binary(max_size=8))
    @FUZZ
    @example(0, len(content), b"")
    def changed(start: int, gone: int, new: bytes) -> None:
        path.write_bytes(content[:start] + new + content[start + gone :])
        with contextlib.suppress(DataError):
            if name.startswith("idx"):
                read_idx(path)
            elif name == "train":
                read_cifar(tmp_path, "cifar100")
            else:
                clnp.data.ArrayFiles([place])[0]

    changed()


def test_progress_of_anything(good: dict[str, Any], tmp_path: Path) -> None:
    """A saved fit that is not one is trained again, or refused."""
    from clnp.learner.progress import KIND, Progress
    from clnp.training.fit import FitState

    progress, stamp = Progress(tmp_path), {"task": 0}
    state = FitState(1, [{"loss": 1.0}], [torch.ones(2)], {"0.step": torch.tensor(1.0)})
    progress.save(0, state, stamp)
    tensors, data = checkpoint.read(tmp_path / "point-0.safetensors", KIND)

    @given(mutated(data))
    @FUZZ
    def changed(data: dict[str, Any]) -> None:
        checkpoint.write(tmp_path / "point-0.safetensors", KIND, tensors, data)
        try:
            progress.load(0, stamp)
        except ClnpError:
            return

    changed()
