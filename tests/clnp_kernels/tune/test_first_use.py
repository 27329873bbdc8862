"""The check before the first use: when it runs, what follows from it, what refuses to run."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clnp_kernels import _register, chooser, info, support
from clnp_kernels.errors import MissingImplementationError
from clnp_kernels.tune import environment, first_use, stored
from clnp_kernels.tune.__main__ import write_table
from clnp_kernels.tune.environment import Card
from clnp_kernels.tune.stored import open_store
from clnp_kernels.tune.table import Check, Table
from tests.clnp_kernels.tune.conftest import CARD, answered

X = torch.ones(6, 4)


def qualify(said: list[str], **more: Any) -> Table | None:
    return first_use.qualify(card=CARD, say=said.append, **more)


def serve(
    monkeypatch: pytest.MonkeyPatch, operator: str = "channel_activity"
) -> Callable[..., Any]:
    """Call an operator as CUDA would, with implementations that only say their names."""
    served: list[str] = []
    for name in chooser.OFFERS[operator]:
        module = SimpleNamespace(**{operator: lambda *_, name=name: served.append(name)})
        monkeypatch.setitem(__import__("sys").modules, f"clnp_kernels.stub_{name}", module)
    offers = {name: f"stub_{name}" for name in chooser.OFFERS[operator]}
    monkeypatch.setitem(chooser.OFFERS, operator, offers)
    monkeypatch.setattr(_register, "_unsupported", lambda *_: "")

    def call(*args: Any) -> str:
        _register._cuda_server(operator)(*args)
        return served.pop()

    return call


def test_checked_once_and_kept(verdicts: list[Any], said: list[str]) -> None:
    table = qualify(said)
    assert table is not None
    assert len(verdicts) == len(first_use.jobs_of_check()) == len(table.checks)
    assert f"checking {len(verdicts)} kernels on Interpreter 100, once per version" in said[0]
    assert said[1] == f"{len(verdicts)} kernels passed"
    assert qualify(said) is table
    first_use.forget()
    again = qualify(said)
    assert again is not table
    assert again is not None
    assert again.digest == table.digest
    assert len(said) == 2
    assert len(verdicts) == len(table.checks)


def test_only_what_is_missing_is_checked(verdicts: list[Any], said: list[str]) -> None:
    table = qualify(said)
    assert table is not None
    removed = [*table.checks.values()][3]
    (open_store(CARD).folder / f"{removed.name}.json").unlink()
    first_use.forget()
    verdicts.clear()
    again = qualify(said)
    assert len(verdicts) == 1
    assert again is not None
    assert again.digest == table.digest


def test_the_table_serves(
    verdicts: list[Any], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = serve(monkeypatch)
    assert call(X, 1) == "torch"
    qualify(said)
    assert call(X, 1) == "cuda"
    with chooser.prefer("torch"):
        assert call(X, 1) == "torch"
    with chooser.prefer("triton"):
        assert call(X, 1) == "triton"


def test_captured_steps_have_choices_of_their_own(
    verdicts: list[Any], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    qualify(said)
    call = serve(monkeypatch, "masked_linear_relu_grad")
    assert call(X, X, 0, True) == "torch"
    with chooser.captured():
        assert call(X, X, 0, True) == "triton"
    assert call(X, X, 0, True) == "torch"


def test_a_failed_check_is_never_served(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by default and not when it is preferred; one warning; an error in strict mode."""
    answered(monkeypatch, lambda job: {"reason": "wrong numbers: error 3"})
    qualify(said)
    assert "0 kernels passed" in said[1]
    assert "failed, where PyTorch's operators serve (`clnp info` has why)" in said[1]
    call = serve(monkeypatch)
    with pytest.warns(RuntimeWarning, match="failed its check: wrong numbers: error 3"):
        assert call(X, 1) == "torch"
    assert call(X, 1) == "torch"  # warnings are errors
    with chooser.prefer("triton"):
        assert call(X, 1) == "torch"
    monkeypatch.setenv("CLNP_STRICT", "1")
    with pytest.raises(MissingImplementationError, match=r"channel_activity.*wrong numbers"):
        call(X, 1)
    reasons = {name: reason for (name, device), (_, reason) in info.implementations().items()
               if device == "cuda"}  # fmt: skip
    assert "failed: triton" in reasons["channel_activity"]
    assert "wrong numbers: error 3" in reasons["masked_linear_fwd"]


def test_an_unsupported_dtype_goes_to_pytorch_with_one_line(
    verdicts: list[Any], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chooser, "absent", {"cuda": "the CUDA library is not built"})
    qualify(said)
    call = serve(monkeypatch)
    assert call(X, 1) == "triton"
    with pytest.warns(RuntimeWarning, match="triton is not checked for float64") as seen:
        assert call(X.double(), 1) == call(X.double(), 1) == "torch"
    assert len(seen) == 1
    monkeypatch.setenv("CLNP_STRICT", "1")
    with pytest.raises(MissingImplementationError, match="float64"):
        call(X.double(), 1)
    assert call(X, 1) == "triton"


def test_off(verdicts: list[Any], said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    qualify(said)
    call = serve(monkeypatch)
    monkeypatch.setenv("CLNP_TUNE", "off")
    assert qualify(said) is None
    assert call(X, 1) == "torch"


def test_a_wrong_word(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setenv("CLNP_TUNE", "of")
    with pytest.raises(ValueError, match="CLNP_TUNE: expected one of auto, off, require, got 'of'"):
        qualify(said)


def test_require(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Unqualified kernels do not run: nothing passed, nothing was checked, one was not checked."""
    monkeypatch.setenv("CLNP_TUNE", "require")
    call = serve(monkeypatch)
    with chooser.prefer("triton"), pytest.raises(MissingImplementationError, match="not checked"):
        call(X, 1)
    answered(monkeypatch, lambda job: {"error": "RuntimeError: no compiler"})
    with pytest.raises(MissingImplementationError, match=r"no kernel passed .* no compiler"):
        qualify(said)
    answered(monkeypatch, lambda job: {"reason": ""})
    first_use.forget()
    monkeypatch.setenv("CLNP_CACHE_DIR", str(open_store(CARD).folder / "other"))
    qualify(said)
    assert call(X, 1) == "cuda"
    with chooser.prefer("triton"), pytest.warns(RuntimeWarning, match="not checked for float64"):
        assert call(X.double(), 1) == "torch"


def test_a_check_that_could_not_run_is_not_kept(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, skipped = {"memory": "CUDA out of memory"}, {"skipped": "does not start"}
    jobs = answered(monkeypatch, lambda job: skipped if job["implementation"] == "cuda" else memory)
    table = qualify(said)
    assert table is not None
    assert not table.checks
    assert f"{len(jobs)} could not be checked and do not serve" in said[1]
    first_use.forget()
    answered(monkeypatch, lambda job: {"reason": ""})
    table = qualify(said)
    assert table is not None
    assert len(table.checks) == len(jobs)


def test_ctrl_c_keeps_what_is_checked(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(job: dict[str, Any]) -> dict[str, Any]:
        if len(done) == 5:
            raise KeyboardInterrupt
        return {"reason": ""}

    done = answered(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        qualify(said)
    assert len(open_store(CARD).read()) == 4


def test_a_home_that_can_not_be_written(
    verdicts: list[Any], said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLNP_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.warns(RuntimeWarning, match="can't be kept.*set CLNP_CACHE_DIR") as seen:
        table = qualify(said)
    assert len(seen) == 1
    assert table is not None
    assert serve(monkeypatch)(X, 1) == "cuda"


def test_a_container_brings_its_table(
    verdicts: list[Any], said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = qualify(said)
    assert table is not None
    file = tmp_path / "table.json"
    write_table(CARD, file)
    monkeypatch.setenv("CLNP_CACHE_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("CLNP_KERNEL_TABLE", str(file))
    first_use.forget()
    verdicts.clear()
    again = qualify(said)
    assert again is not None
    assert again.digest == table.digest
    assert verdicts == []
    # of another environment: said, and checked here
    data = json.loads(file.read_text())
    data["facts"]["driver"] = "1.0"
    file.write_text(json.dumps(data))
    first_use.forget()
    monkeypatch.setenv("CLNP_CACHE_DIR", str(tmp_path / "third"))
    with pytest.warns(RuntimeWarning, match="made in another environment: driver 1.0 -> "):
        qualify(said)
    assert len(verdicts) == len(table.checks)
    file.write_text("{}")
    first_use.forget()
    with pytest.raises(ValueError, match="CLNP_KERNEL_TABLE: expected a table that"):
        qualify(said)


def test_a_resumed_run_takes_its_table(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answered(monkeypatch, lambda job: {"reason": ""})
    table = qualify(said)
    assert table is not None
    before = table.digest
    # checked anew, with another outcome
    open_store(CARD).write(Check("channel_activity", "cuda", "float32", 4, "two runs differ"))
    first_use.forget()
    other = qualify(said)
    assert other is not None
    assert other.digest != before
    first_use.forget()
    again = qualify(said, wanted=before)
    assert again is not None
    assert again.digest == before
    assert f"following kernel table {before}" in said[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qualify(said, wanted=before)
    with pytest.warns(RuntimeWarning, match="0123.*the last bits of the numbers may differ"):
        qualify(said, wanted="0123")


def test_another_process_hands_its_table_on(verdicts: list[Any], said: list[str]) -> None:
    table = qualify(said)
    assert table is not None
    data = json.loads(json.dumps(table.to_json()))
    first_use.forget()
    other = first_use.adopt("cpu", data, CARD)
    assert other.digest == table.digest
    assert qualify(said) is other


def test_leaving_a_device_to_pytorch(
    verdicts: list[Any], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first_use.leave("cpu", "the GPUs of the processes differ", said.append)
    assert qualify(said) is None
    assert serve(monkeypatch)(X, 1) == "torch"
    assert "the GPUs of the processes differ" in said[0]
    assert verdicts == []


@pytest.fixture
def other_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A CUDA device that torch describes so."""

    def describe(capability: tuple[int, int] = (9, 0), hip: str | None = None) -> None:
        properties = SimpleNamespace(name="GPU", major=capability[0], minor=capability[1],
                                     multi_processor_count=4, L2_cache_size=1000)  # fmt: skip
        support.unsupported_device.cache_clear()
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)

    yield describe
    support.unsupported_device.cache_clear()


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [({"capability": (7, 5)}, "GPU is older than sm_80"), ({"hip": "6.2"}, "built for ROCm")],
)
def test_an_unsupported_card_is_refused_with_a_reason(
    gpu: dict[str, Any],
    reason: str,
    said: list[str],
    verdicts: list[Any],
    other_gpu: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other_gpu(**gpu)
    for _ in range(2):
        assert first_use.qualify("cuda:0", say=said.append) is None
    assert len(said) == 1
    assert reason in said[0]
    assert verdicts == []
    assert stored.stored(0) is None
    for variable in ("CLNP_STRICT=1", "CLNP_TUNE=require"):
        first_use.forget()
        with monkeypatch.context() as patch:
            patch.setenv(*variable.split("="))
            with pytest.raises(MissingImplementationError, match=f"{variable}: .*{reason}"):
                first_use.qualify("cuda:0", say=said.append)


def test_a_supported_card_is_described(other_gpu: Callable[..., None]) -> None:
    other_gpu()
    card = environment.card_of(torch.device("cuda:0"))
    assert card == Card("cuda:0", "GPU", 90, 4, 1000)
    assert card.index == 0
    assert stored.stored(0) is None  # nothing is stored
    open_store(card).write(Check("adam_l1", "cuda", "float32", 1))
    table = stored.stored(0)
    assert table is not None
    assert len(table.checks) == 1


def test_info_says_what_serves(verdicts: list[Any], said: list[str]) -> None:
    def cuda_rows() -> dict[str, tuple[str, str]]:
        return {n: row for (n, device), row in info.implementations().items() if device == "cuda"}

    assert {reason for _, reason in cuda_rows().values()} == {
        chooser.UNCHECKED, "modules take PyTorch's own dropout on a GPU",
    }  # fmt: skip
    qualify(said)
    rows = cuda_rows()
    assert rows["adam_l1"] == (
        "CUDA C++ (csrc/cuda)",
        "default by byte count, checked on this card",
    )
    assert "in a captured step triton" in rows["masked_linear_fwd"][1]
    assert rows["masked_linear_dgrad"][0] == "PyTorch on slices"
