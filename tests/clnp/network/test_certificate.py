"""The certificate detects every changed bit, and reports the conditions that differ."""

import copy
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clnp.errors import ConfigError, DataError
from clnp.network.certificate import Certificate, logits_digest, probe_from
from clnp.network.conditions import fixed
from clnp.network.model import Model
from tests.clnp import conv_cases
from tests.clnp.cases import Residual, convert, mlp, random_keep, some_steps
from tests.clnp.conv_cases import Plan

MOBILE = Plan(4, ("depthwise", "inverted", "residual"), norm=True, dropout=False, end="hidden")
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp([16, 12]),
    "mlp without bias": lambda: mlp([16, 12], bias=False),
    "residual": Residual,
    "convolutions with batch norm": MOBILE.build,
}
Learned = tuple[Model, Certificate]


def learned(tasks: int = 3, net: nn.Module | None = None, head: str = "single") -> Learned:
    net = mlp([16, 12]) if net is None else net
    images = any(isinstance(module, nn.Conv2d) for module in net.modules())
    model = conv_cases.convert(net, head) if images else convert(net, head=head)
    certificate, generator = Certificate(), torch.Generator().manual_seed(0)
    for _ in range(tasks):
        model.begin_task(generator=generator)
        some_steps(model)
        model.consolidate(random_keep(model, generator))
        certificate.record(model, torch.randn(100, *model.graph.nodes[0].attrs["shape"][1:]))
    return model, certificate


def frozen(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Return every frozen tensor that isn't empty, with its name in a verdict."""
    for name, module in model.masked.items():
        for key in ("weight", "bias", "mean", "var"):
            value = getattr(module, f"active_{key}", None)
            if value is not None and value.numel():
                running = "running_" if key in ("mean", "var") else ""
                yield f"{name}.{running}{key}", value
    for key, value in model.head.named_buffers():
        if value.numel() and not key.startswith("active"):
            yield f"{model.groups.head}.{'weight' if 'weight' in key else 'bias'}", value


def free(model: Model) -> list[Tensor]:
    """Return everything that training changes."""
    return [*model.parameters(), *model.running_statistics()]


def test_untouched_networks_are_identical() -> None:
    model, certificate = learned()
    assert [(v.task, v.identical, v.note) for v in certificate.verify(model)] == [
        (k, True, "") for k in range(3)
    ]


def test_one_bit_of_a_frozen_weight_is_noticed() -> None:
    model, certificate = learned()
    # The last task's own rows: earlier tasks do not read them.
    row = model.tasks[1].active["0"]
    if row == model.tasks[2].active["0"]:
        row -= 1
    weight = model.masked_layers["2"].active_weight
    weight[-1, :] = torch.nextafter(weight[-1, :], torch.full_like(weight[-1, :], 9.0))
    verdicts = [v.identical for v in certificate.verify(model)]
    assert verdicts == [True, True, False]


def test_a_moved_bias_breaks_every_task_that_uses_it() -> None:
    model, certificate = learned()
    model.head.frozen_bias[0] += 1
    assert not any(v.identical for v in certificate.verify(model))


def test_verification_does_not_trust_copies_made_earlier() -> None:
    model, certificate = learned(1)
    x = torch.randn(4, 12)
    model(x, task=0)
    model.masked_layers["0"].active_weight.mul_(2)
    assert not certificate.verify(model)[0].identical


@pytest.fixture(scope="module", params=[(n, h) for n in NETWORKS for h in ("single", "multi")])
def case(request: pytest.FixtureRequest) -> Learned:
    name, head = request.param
    torch.manual_seed(0)
    return learned(3, NETWORKS[name](), head)


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_any_element_of_any_frozen_tensor_is_noticed_and_named(
    case: Learned, data: st.DataObject
) -> None:
    model, certificate = case
    name, tensor = data.draw(st.sampled_from(list(frozen(model))), "tensor")
    flat = tensor.view(-1) if tensor.is_contiguous() else tensor.permute(0, 2, 3, 1).view(-1)
    at = data.draw(st.integers(0, flat.numel() - 1), "element")
    before = flat[at].clone()
    flat[at] = data.draw(
        st.sampled_from([before + 20, torch.nextafter(before, before + 1), before * 0 + torch.nan])
    )
    verdicts = certificate.verify(model)
    flat[at] = before
    broken = [v for v in verdicts if not v.identical]
    assert broken
    for v in broken:
        assert v.moved == (name,)
        assert v.note == f"weights moved: {name}"
    assert all(v.note == "" and v.moved == () for v in verdicts if v.identical)


def test_what_is_free_may_move(case: Learned) -> None:
    model, certificate = copy.deepcopy(case)
    if not (model.head.kind == "single" and model.is_full):
        model.begin_task()
        some_steps(model)
    for fill in (20.0, float("nan")):
        for tensor in free(model):
            tensor.detach().fill_(fill if tensor.is_floating_point() else 7)
        assert all(v.identical and v.note == "" for v in certificate.verify(model))


def test_weights_that_the_probe_does_not_feel_are_noticed() -> None:
    """Weights of pixels that are zero in the probe, and of another task's random numbers."""
    model, certificate = learned(1)
    certificate.probes[0].zero_()
    certificate.entries[0] = replace(
        certificate.entries[0],
        digest=logits_digest(model(certificate.probes[0], task=0)),
        random="",
    )
    model.masked_layers["0"].active_weight[:, 3] += 20
    (verdict,) = certificate.verify(model)
    assert not verdict.identical
    assert verdict.moved == ("0.weight",)


def test_other_conditions_are_named() -> None:
    model, certificate = learned(1)
    entry = certificate.entries[0]
    entry.conditions["threads"] = 77
    assert certificate.verify(model)[0].identical  # the bits are the same all the same
    certificate.entries[0] = replace(entry, digest="other")
    (verdict,) = certificate.verify(model)
    assert not verdict.identical
    assert verdict.moved == ()
    assert verdict.conditions == (f"threads 77 -> {torch.get_num_threads()}",)
    assert verdict.note.startswith("same weights, other bits of the logits; recorded under other")
    model.head.frozen_bias[0] += 1
    assert certificate.verify(model)[0].note.startswith("weights moved: 4.bias; recorded under")


@pytest.mark.parametrize("field", ["digest", "random"])
def test_other_logits_of_the_same_weights_under_the_same_conditions_are_a_fault(field: str) -> None:
    model, certificate = learned(1)
    certificate.entries[0] = replace(certificate.entries[0], **{field: "other"})
    (verdict,) = certificate.verify(model)
    assert (verdict.identical, verdict.moved, verdict.conditions) == (False, (), ())
    assert "a fault" in verdict.note


def test_a_task_that_the_network_lacks() -> None:
    model, certificate = learned(1)
    two, _ = learned(2)
    certificate.record(two, torch.zeros(1, 12))
    assert "learned 1 task(s)" in certificate.verify(model)[1].note


SETTINGS = {
    "matmul precision": "torch.set_float32_matmul_precision('medium')",
    "oneDNN matmul precision": "torch.backends.mkldnn.matmul.fp32_precision = 'tf32'",
    "oneDNN convolution precision": "torch.backends.mkldnn.conv.fp32_precision = 'bf16'",
    "fp32 precision": "torch.backends.fp32_precision = 'tf32'",
    "deterministic algorithms": "torch.use_deterministic_algorithms(True)",
    "oneDNN": "torch.backends.mkldnn.set_flags(_enabled=False)",
    "denormal numbers": "torch.set_flush_denormal(True)",
    "threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
}


def test_settings_that_move_bits_are_recorded() -> None:
    """Each setting in its own process, because torch can't reset all of them."""
    code = (
        "import json, sys, torch\n"
        "from clnp.network.conditions import conditions_of, differences\n"
        "found = []\n"
        "for change in json.loads(sys.argv[1]):\n"
        "    before = conditions_of(torch.float32, torch.device('cpu'))\n"
        "    exec(change)\n"
        "    now = conditions_of(torch.float32, torch.device('cpu'))\n"
        "    found.append(differences(before, now))\n"
        "print(json.dumps(found))\n"
    )
    words = [sys.executable, "-c", code, json.dumps(list(SETTINGS.values()))]
    out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    for name, found in zip(SETTINGS, json.loads(out), strict=True):
        assert any(text.startswith(f"{name} ") for text in found), (name, found)


@pytest.mark.parametrize(
    "context",
    [
        lambda: torch.autocast("cpu", torch.bfloat16),
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.device("meta"),
    ],
)
def test_the_callers_context_does_not_matter(context: Callable[[], Any]) -> None:
    model, certificate = learned(1)
    again = Certificate()
    with context():
        assert certificate.verify(model)[0].identical
        again.record(model, certificate.probes[0])
    assert again.entries == certificate.entries


def test_cudnn_is_fixed_and_put_back() -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = True, False
    try:
        with fixed(torch.device("cuda")):
            assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
        assert (cudnn.benchmark, cudnn.deterministic) == (True, False)
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def reloaded(model: Model) -> Model:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: Model = torch.load(file, weights_only=False)
    return loaded


def from_state(model: Model, **options: Any) -> Model:
    fresh = Model.from_structure(model.structure())
    fresh.load_state_dict(model.state_dict(), **options)
    return fresh


COPIES: dict[str, Callable[[Model], Model]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": reloaded,
    "state": from_state,
    "assigned state": lambda m: from_state(m, assign=True),
    "double and back": lambda m: copy.deepcopy(m).double().float(),
    "channels_last": lambda m: copy.deepcopy(m).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_hold_the_certificate_and_do_not_share_what_is_frozen(
    case: Learned, way: str
) -> None:
    model, certificate = case
    x = certificate.probes[0]
    logits = [model(x, task=k) for k in range(3)]  # the copy takes over copies made before
    other = COPIES[way](model)
    assert [(v.identical, v.note) for v in certificate.verify(other)] == [(True, "")] * 3
    if not (other.head.kind == "single" and other.is_full):
        other.begin_task()
        some_steps(other)
        other.consolidate()
    for name, buffer in other.named_buffers():
        if "active" in name:
            buffer.fill_(3.0)
    assert all(v.identical for v in certificate.verify(model))
    assert all(torch.equal(model(x, task=k), expected) for k, expected in enumerate(logits))


def test_a_wider_dtype_holds_the_same_weights_and_a_narrower_one_does_not(case: Learned) -> None:
    model, certificate = copy.deepcopy(case)
    for verdict in certificate.verify(model.double()):
        assert verdict.moved == ()
        assert verdict.conditions[0] == "dtype float32 -> float64"
        assert verdict.note.startswith("same weights, other bits of the logits")
    assert all(v.identical for v in certificate.verify(model.float()))
    for verdict in certificate.verify(model.bfloat16()):
        assert verdict.moved
        assert "dtype float32 -> bfloat16" in verdict.note


@pytest.mark.parametrize("missing", ["digest", "conditions", "random", "tensors"])
def test_incomplete_entries_are_refused(missing: str) -> None:
    _, certificate = learned(1)
    data = certificate.to_json()
    del data[0][missing]
    with pytest.raises(KeyError, match=missing):
        Certificate.from_json(data, certificate.probes)


def test_printed_in_one_line() -> None:
    _, certificate = learned(2)
    names = [entry.name for entry in certificate.entries]
    assert repr(certificate) == f"<Certificate of 2 tasks: {names[0]!r}, {names[1]!r}>"


@pytest.mark.parametrize("x", [7, torch.zeros(3, 11), torch.zeros(()), torch.zeros(3, 12).long()])
def test_examples_that_do_not_fit_are_refused(x: Any) -> None:
    model, _ = learned(1)
    with pytest.raises(DataError):
        Certificate().record(model, x)


def test_round_trip() -> None:
    model, certificate = learned()
    again = Certificate.from_json(certificate.to_json(), certificate.probes)
    assert again.entries == certificate.entries
    assert all(v.identical for v in again.verify(model))


def test_probe_is_small_and_owned() -> None:
    x = torch.randn(100, 12)
    probe = probe_from(x)
    assert probe.shape == (64, 12)
    assert probe.data_ptr() != x.data_ptr()
    assert probe_from(torch.zeros(3, 1 << 20)).shape[0] == 1
    assert probe_from(x[:2]).shape == (2, 12)


def test_digest_depends_on_dtype_shape_and_bits() -> None:
    x = torch.zeros(2, 3)
    digests = {logits_digest(t) for t in (x, x.double(), x.reshape(3, 2), -x, x + 1e-45)}
    assert len(digests) == 5
    assert logits_digest(x.t().contiguous().t()) == logits_digest(x)


def test_a_task_is_recorded_once() -> None:
    model, certificate = learned(2)
    with pytest.raises(ConfigError, match="2 of 2 learned tasks are recorded"):
        certificate.record(model, torch.randn(4, 12))
    assert len(certificate.entries) == len(certificate.probes) == 2
