"""Entries on disk: whole or not there, of this environment or ignored."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from clnp_kernels.tune import environment
from clnp_kernels.tune.environment import differences, digest, driver, manifest
from clnp_kernels.tune.store import Store, root, write_text
from clnp_kernels.tune.stored import open_store, read
from clnp_kernels.tune.table import Check
from tests.clnp_kernels.tune.conftest import CARD

CHECK = Check("adam_l1", "cuda", "float32", 1)


def test_the_manifest_names_what_results_depend_on() -> None:
    facts = manifest(CARD)
    assert {"gpu", "processors", "driver", "torch", "cuda", "cublas", "cudnn", "triton", "clnp",
            "kernels", "tf32 matmul", "tf32 convolution"} <= set(facts)  # fmt: skip
    for name in facts:
        assert digest({**facts, name: "another"}) != digest(facts)
    assert differences(facts, {**facts, "driver": "570.1"}).startswith("driver  -> 570.1")


def test_another_setting_is_another_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_store(CARD).folder
    monkeypatch.setattr(environment, "driver", lambda: "570.86.15")
    assert open_store(CARD).folder != before


def test_the_driver(tmp_path: Path) -> None:
    file = tmp_path / "version"
    assert driver(file) == ""
    file.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 2024\n"
        "GCC version: 12.2.0\n"
    )
    assert driver(file) == "550.54.14"


def test_written_and_read() -> None:
    store = open_store(CARD)
    assert store.read() == []
    store.write(CHECK)
    assert open_store(CARD).read() == [CHECK]
    facts = json.loads((store.folder / "manifest.json").read_text())
    assert facts == json.loads(json.dumps(manifest(CARD)))
    assert root() in store.folder.parents


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"environment": 1}', "\0" * 50])
def test_a_damaged_entry_is_ignored_and_said(damage: str) -> None:
    store = open_store(CARD)
    store.write(CHECK)
    other = Check("sgd_l1", "cuda", "float32", 1)
    store.write(other)
    (store.folder / f"{CHECK.name}.json").write_text(damage)
    with pytest.warns(
        RuntimeWarning, match=rf"1 file\(s\) .* ignored and made again: {CHECK.name}"
    ):
        assert read(CARD, open_store(CARD)) == [other]


def test_a_changed_verdict_is_damage() -> None:
    """A failed check can't become a passed one by a bit on the disk."""
    store = open_store(CARD)
    store.write(Check("adam_l1", "cuda", "float32", 1, "wrong"))
    file = store.folder / f"{CHECK.name}.json"
    file.write_text(file.read_text().replace('"wrong"', '""'))
    again = open_store(CARD)
    assert again.read() == []
    assert again.ignored == [f"{file.name}: damaged"]


def test_an_entry_of_another_environment_is_ignored_and_said() -> None:
    facts = {**manifest(CARD), "driver": "1"}
    other = Store(facts, digest(facts))
    other.write(CHECK)
    here = open_store(CARD)
    assert here.read() == []
    here.folder.mkdir(parents=True)
    copied = here.folder / f"{CHECK.name}.json"
    copied.write_text((other.folder / copied.name).read_text())
    with pytest.warns(RuntimeWarning, match="made in another environment"):
        assert read(CARD, open_store(CARD)) == []
    assert other.read() == [CHECK]


def test_a_write_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "entry.json"
    write_text(file, "old")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="No space"):
        write_text(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["entry.json"]


def test_a_folder_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLNP_CACHE_DIR", str(tmp_path / "file" / "below"))
    store = open_store(CARD)
    store.write(CHECK)
    assert "Not a directory" in store.problem
    assert store.read() == []


WRITER = """
import sys
from clnp_kernels.tune.stored import open_store
from clnp_kernels.tune.table import Check
from tests.clnp_kernels.tune.conftest import CARD
store = open_store(CARD)
for round in range(30):
    for alignment in (1, 2, 4, 8, 16):
        store.write(Check("adam_l1", "cuda", "float32", alignment))
        found = open_store(CARD)
        assert len(found.read()) >= 1
        assert not found.ignored, found.ignored
assert not store.problem
"""


def test_two_processes_at_once() -> None:
    """Neither ever reads a part of what the other writes."""
    command = [sys.executable, "-c", WRITER]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(CARD, open_store(CARD))) == 5
    assert not [*open_store(CARD).folder.glob(".*")]
