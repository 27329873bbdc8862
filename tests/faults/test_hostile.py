"""Hostile files: nothing in them is executed or unpickled, and nothing huge is allocated."""

from __future__ import annotations

import ast
import json
import pickle
import resource
import shutil
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import clnp
from clnp import methods, models
from clnp.cli import run_folder
from clnp.data import ArrayFiles
from clnp.data.idx import read_idx
from clnp.errors import CheckpointError, ConfigError, DataError
from clnp.files import checkpoint
from tests.clnp.cases import blobs, convert, mlp
from tests.clnp.commands import clnp as command
from tests.clnp.commands import finished_run

PACKAGE = Path(clnp.__file__).parent


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a learner, a method's learner and a network."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    learner = clnp.Learner(convert(mlp([20])), head="single", epochs=2, lr=0.01)
    learner.learn(blobs(0))
    learner.save(folder / "learner")
    other = methods.make("finetune", mlp([8]), torch.zeros(1, 12), head="multi", epochs=1)
    other.learn(blobs(0))
    other.save(folder / "method")
    narrow = clnp.extract(learner.model, 0)
    clnp.export(narrow, folder / "network.safetensors", torch.zeros(1, 12))
    (folder / "network.safetensors").rename(folder / "network")
    return folder


LOADS = {"learner": clnp.Learner.load, "method": methods.load, "network": clnp.load_network}


def rename(graph: dict[str, Any], old: str, new: str) -> None:
    """Rename a node wherever its name occurs."""
    for node in graph["nodes"]:
        node["name"] = new if node["name"] == old else node["name"]
        node["inputs"] = [new if name == old else name for name in node["inputs"]]
    graph["output"] = new if graph["output"] == old else graph["output"]


def names_of_code(marker: Path) -> list[str]:
    code = f"open({str(marker)!r}, 'w')"
    return [
        f'x"), {code}, getattr(self, "x',
        f'x")\n    {code}\n    getattr(self, "x',
        f'x")\n{code}\ndef forward(self, x): return (x, "',
        "__class__.__base__.__base__.forward",
        "net.__class__.__call__",
        "x\\",
        "",
    ]


@pytest.mark.parametrize("kind", LOADS)
def test_names_are_no_code(kind: str, files: Path, tmp_path: Path) -> None:
    """torch.fx writes the names of layers into code that it runs."""
    tensors, data = checkpoint.read(files / kind, kind)
    marker = tmp_path / "marker"
    forward = torch.nn.Module.__call__
    for hostile in names_of_code(marker):
        changed = json.loads(json.dumps(data))
        graph = changed["structure"]["graph"] if kind == "learner" else changed["graph"]
        old = graph["nodes"][1]["name"]
        rename(graph, old, hostile)
        renamed = {name.replace(old, hostile): tensor for name, tensor in tensors.items()}
        checkpoint.write(tmp_path / "hostile", kind, renamed, changed)
        with pytest.raises(CheckpointError, match="expected a name of letters"):
            LOADS[kind](tmp_path / "hostile")
        assert not marker.exists()
    assert torch.nn.Module.__call__ is forward


@pytest.mark.parametrize("kind", LOADS)
def test_nothing_is_unpickled_or_started(kind: str, files: Path) -> None:
    """Checked by Python's audit hooks while a file is loaded."""
    LOADS[kind](files / kind)  # imports what it needs
    seen: list[str] = []
    hook_on[:] = [seen]
    try:
        LOADS[kind](files / kind)
    finally:
        hook_on.clear()
    forbidden = ("pickle.", "marshal.", "os.system", "os.exec", "subprocess", "socket", "ctypes.d")
    assert seen, "the audit saw nothing, so it is not at work"
    assert [event for event in seen if event.startswith(forbidden)] == []


hook_on: list[list[str]] = []


def audit(event: str, _: Any) -> None:
    if hook_on:
        hook_on[0].append(event)


sys.addaudithook(audit)


@pytest.mark.parametrize("kind", ["learner", "method"])
def test_huge_sizes_take_no_memory(kind: str, files: Path, tmp_path: Path) -> None:
    """A file may contain any sizes; 60,000 x 60,000 would be 14 GB."""
    tensors, data = checkpoint.read(files / kind, kind)
    for size in (60_000, 10**9, 10**15):
        changed = json.loads(json.dumps(data))
        graph = changed["structure"]["graph"] if kind == "learner" else changed["graph"]
        for node in graph["nodes"]:
            for attribute in ("in_features", "out_features"):
                if attribute in node["attrs"]:
                    node["attrs"][attribute] = size
        if kind == "learner":
            changed["structure"]["sizes"] = dict.fromkeys(changed["structure"]["sizes"], size)
        checkpoint.write(tmp_path / "huge", kind, tensors, changed)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(CheckpointError):
            LOADS[kind](tmp_path / "huge")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("kind", LOADS)
def test_cut_short(kind: str, files: Path, tmp_path: Path) -> None:
    content = (files / kind).read_bytes()
    for sixteenth in range(16):
        (tmp_path / "cut").write_bytes(content[: len(content) * sixteenth // 16])
        with pytest.raises(CheckpointError, match=r"damaged|not written by clnp"):
            LOADS[kind](tmp_path / "cut")


@pytest.mark.parametrize("kind", LOADS)
def test_other_kinds_formats_and_foreign_files(kind: str, files: Path, tmp_path: Path) -> None:
    other = "learner" if kind != "learner" else "network"
    with pytest.raises(CheckpointError, match=f"expected a '{kind}' file, got a '{other}' file"):
        LOADS[kind](files / other)
    save_file({"a": torch.zeros(3)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="not written by clnp"):
        LOADS[kind](tmp_path / "foreign")
    tensors, _ = checkpoint.read(files / kind, kind)
    header = {"format": "clnp-2", "kind": kind, "data": "{}", "sha256": ""}
    save_file(tensors, tmp_path / "newer", metadata=header)
    with pytest.raises(CheckpointError, match=r"expected format 'clnp-1', got 'clnp-2'; .*newer"):
        LOADS[kind](tmp_path / "newer")


@pytest.mark.parametrize("text", ["[" * 10**5 + "]" * 10**5, "[]", "3", "{", '{"a": NaN', ""])
def test_json_that_is_no_object(text: str, tmp_path: Path) -> None:
    digest = checkpoint._digest(text, {"a": torch.zeros(1)})
    header = {"format": checkpoint.FORMAT, "kind": "network", "data": text, "sha256": digest}
    save_file({"a": torch.zeros(1)}, tmp_path / "odd", metadata=header)
    with pytest.raises(CheckpointError, match="not written by clnp"):
        clnp.load_network(tmp_path / "odd")


def test_element_types_of_others(tmp_path: Path) -> None:
    for dtype in (torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16):
        tensors = {"x.weight": torch.zeros(2, 2).to(dtype)}
        nodes = [
            {"name": "x0", "op": "input", "inputs": [], "attrs": {"shape": [1, 2]}},
            {"name": "x", "op": "linear", "inputs": ["x0"],
             "attrs": {"in_features": 2, "out_features": 2, "bias": False}},
        ]  # fmt: skip
        data = {"graph": {"nodes": nodes, "output": "x"}}
        checkpoint.write(tmp_path / "odd", "network", tensors, data)
        with pytest.raises(CheckpointError):
            clnp.load_network(tmp_path / "odd")


# Data


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def test_arrays_that_hold_objects(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    objects = np.array([Harm(marker)] * 8, dtype=object)
    np.savez(tmp_path / "a.npz", x_train=objects[:, None], y_train=np.zeros(8, np.int64))
    with pytest.raises(DataError, match="can't be read as arrays"):
        ArrayFiles([tmp_path / "a.npz"])[0]
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Harm(marker)))
    with pytest.raises(DataError, match="can't be read as arrays"):
        ArrayFiles([tmp_path / "b.npz"])[0]
    assert not marker.exists()


def test_archives_that_climb_out_are_not_unpacked(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with zipfile.ZipFile(inside / "a.npz", "w") as archive:
        archive.writestr("../climbed.npy", b"\x93NUMPY")
        archive.writestr(str(tmp_path / "absolute.npy"), b"\x93NUMPY")
    with pytest.raises(DataError):
        ArrayFiles([inside / "a.npz"])[0]
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]
    assert [p.name for p in inside.iterdir()] == ["a.npz"]
    assert not (tmp_path / "absolute.npy").exists()


def test_headers_of_arrays_that_promise_too_much(tmp_path: Path) -> None:
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 4), }"
    for rows in (10**13, 2**62):
        text = (header % rows).encode().ljust(117) + b"\n"
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"\0" * 16
        folder = tmp_path / str(rows)
        folder.mkdir()
        (folder / "x_train.npy").write_bytes(content)
        with pytest.raises(DataError, match="can't be read as arrays"):
            ArrayFiles([folder])[0]


def test_idx_sizes_that_overflow(tmp_path: Path) -> None:
    """Products of 2**32 - 1 overflow 64 bits to any number."""
    for rank in (3, 8, 255):
        sizes = struct.pack(f">{rank}I", *[2**31] * rank)
        (tmp_path / "file").write_bytes(bytes((0, 0, 8, rank)) + sizes)
        with pytest.raises(DataError, match="bytes after the header"):
            read_idx(tmp_path / "file")


def test_weights_that_hold_more_than_tensors(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"0.weight": Harm(marker)}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="more than tensors"):
        models.load_weights(mlp([4]), tmp_path / "w.pt")
    (tmp_path / "w2.pt").write_bytes(pickle.dumps(Harm(marker)))
    with pytest.raises(ConfigError):
        models.load_weights(mlp([4]), tmp_path / "w2.pt")
    assert not marker.exists()


# Run folders


def test_links_in_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A foreign run folder causes no writes or deletions outside it."""
    outside = tmp_path / "outside"
    finished_run(outside)
    kept = sorted(p.relative_to(outside) for p in outside.rglob("*"))
    before = {p: (outside / p).read_bytes() for p in kept if (outside / p).is_file()}
    for name in ("seed-0", "log.txt", "plots", "metrics.json", ".lock"):
        run = shutil.copytree(outside / "digits", tmp_path / f"run-{name}")
        target = outside / "digits" / name
        link = run / name
        if link.is_dir():
            shutil.rmtree(link)
        link.unlink(missing_ok=True)
        link.symlink_to(outside / "digits" if name == "seed-0" else target)
        for how in ("--resume", "--overwrite"):
            code, _, error = command(capsys, "run", "--out", run, "--tasks", "2", how)
            assert code == 2
            assert "is a link" in error or "other settings" in error
    after = {p: (outside / p).read_bytes() for p in before}
    assert before == after
    assert kept == sorted(p.relative_to(outside) for p in outside.rglob("*"))


def test_json_of_a_run_that_is_too_deep_or_too_large(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("[" * 10**5)
    code, _, error = command(capsys, "report", tmp_path)
    assert code == 2
    assert "can't be read" in error
    monkeypatch.setattr(run_folder, "MAX_JSON", 100)
    (tmp_path / "config.json").write_text(json.dumps({"a": "x" * 200}))
    code, _, error = command(capsys, "report", tmp_path)
    assert code == 2
    assert "larger than" in error


# The package


def calls_of(tree: ast.AST) -> dict[str, list[ast.Call]]:
    """Dotted name -> calls."""
    found: dict[str, list[ast.Call]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found.setdefault(ast.unparse(node.func), []).append(node)
    return found


LIVE = {"pickle.loads"}
FORBIDDEN = ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "os.system", "joblib.load")


def test_the_package_never_asks_for_it() -> None:
    """No call can run code from a file.

    Exceptions: the unpickler of arrays only; the check of a file that the same process has just
    written; messages between live processes of the package, which come from no file.
    """
    for path in sorted(PACKAGE.rglob("*.py")):
        calls = calls_of(ast.parse(path.read_text()))
        asked = set(FORBIDDEN) & set(calls)
        assert not asked or (path, asked) == (PACKAGE / "parallel" / "processes.py", LIVE), path
        for name in ("np.load", "numpy.load"):
            for call in calls.get(name, []):
                allow = {k.arg: k.value for k in call.keywords}.get("allow_pickle")
                assert allow is None or ast.unparse(allow) == "False", path
        for call in calls.get("torch.load", []):
            assert {k.arg: ast.unparse(k.value) for k in call.keywords}["weights_only"] == "True"
        assert "torch.export.load" not in calls or path == PACKAGE / "deploy" / "export_check.py"
        assert not any("Unpickler" in n for n in calls) or path == PACKAGE / "data" / "cifar.py"
