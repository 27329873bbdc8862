"""Checkpoint files are complete, or refused."""

import json
import os
import stat
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import clnp
from clnp.errors import CheckpointError
from clnp.files import checkpoint
from tests.clnp.cases import blobs, convert, mlp

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "empty": torch.empty(0, 5),
    "scalar": torch.tensor(1.5, dtype=torch.float64),
    "bf16": torch.randn(3).bfloat16(),
    "transposed": torch.randn(4, 2).t(),
}
DATA = {"list": [1, 2.5, "ä"], "nested": {"none": None}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sub" / "c.safetensors"
    checkpoint.write(path, "test", TENSORS, DATA)
    return path


def test_round_trip(file: Path) -> None:
    tensors, data = checkpoint.read(file, "test")
    assert data == DATA
    assert set(tensors) == set(TENSORS)
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)


def test_no_temporary_file_is_left_and_permissions_are_ordinary(file: Path) -> None:
    assert [p.name for p in file.parent.iterdir()] == ["c.safetensors"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask


def test_a_failed_write_keeps_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left.*previous file is intact"):
        checkpoint.write(file, "test", {"a": torch.zeros(1)}, {})
    assert file.read_bytes() == before
    assert len(list(file.parent.iterdir())) == 1


@given(st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_flipped_bit_is_noticed(file: Path, data: st.DataObject) -> None:
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    damaged = file.with_name("damaged")
    damaged.write_bytes(content)
    try:
        tensors, read = checkpoint.read(damaged, "test")
    except CheckpointError:
        return
    # White space in the header may change without changing a thing.
    assert read == DATA
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


@pytest.mark.parametrize("length", [0, 1, 8, 100, -1])
def test_truncated_files_are_refused(file: Path, length: int) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:length])
    with pytest.raises(CheckpointError, match=r"damaged|not written"):
        checkpoint.read(file, "test")


def test_foreign_files_are_refused(tmp_path: Path, file: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, str(foreign))
    with pytest.raises(CheckpointError, match="not written by clnp"):
        checkpoint.read(foreign, "test")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pickle.pt")
    with pytest.raises(CheckpointError, match="damaged or not a safetensors"):
        checkpoint.read(tmp_path / "pickle.pt", "test")
    with pytest.raises(CheckpointError, match="expected a 'learner' file, got a 'test' file"):
        checkpoint.read(file, "learner")
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.read(tmp_path / "nothing", "test")
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.read(tmp_path, "test")


def test_other_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    header = {"format": "clnp-99", "kind": "test", "data": "{}", "sha256": ""}
    save_file({"a": torch.zeros(2)}, str(path), metadata=header)
    with pytest.raises(CheckpointError, match="clnp-99"):
        checkpoint.read(path, "test")


def test_huge_headers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(path, "test")


def test_a_learner_with_contradicting_contents_is_refused(tmp_path: Path) -> None:
    """A file with a right checksum, but whose tensors do not fit its structure."""
    torch.manual_seed(0)
    lt = clnp.Learner(convert(mlp([20])), head="single", epochs=2, lr=0.01)
    lt.learn(blobs(0))
    path = tmp_path / "l.safetensors"
    lt.save(path)
    tensors, data = checkpoint.read(path, "learner")
    unknown, boundary = (json.loads(json.dumps(data)) for _ in range(2))
    unknown["structure"]["graph"]["nodes"][1]["op"] = "eval"
    boundary["structure"]["tasks"][0]["active"]["0"] += 1
    weight = "model.net.0.active_weight"
    cases = {
        "missing tensor": ({k: v for k, v in tensors.items() if k != weight}, data),
        "wrong shape": ({**tensors, weight: torch.zeros(3, 3)}, data),
        "unknown tensor": ({**tensors, "model.net.0.extra": torch.zeros(3, 3)}, data),
        "missing probe": ({k: v for k, v in tensors.items() if k != "probe.0"}, data),
        "unknown dtype": (tensors, {**data, "dtype": "load"}),
        "unknown operation": (tensors, unknown),
        "other boundary": (tensors, boundary),
    }
    for key in data.keys() - {"kernels"}:  # the digest of a table of kernels, which few have
        cases[f"no {key}"] = (tensors, {k: v for k, v in data.items() if k != key})
    accepted = []
    for name, (changed, text) in cases.items():
        checkpoint.write(path, "learner", changed, text)
        try:
            clnp.Learner.load(path)
            accepted.append(name)
        except CheckpointError:
            pass
    assert accepted == []
