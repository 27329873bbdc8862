"""The certificate notices every single bit, and says under which conditions it holds."""

import pytest
import torch

from clnp.certificate import Certificate, logits_digest, probe_from
from clnp.errors import ConfigError
from clnp.model import Model
from tests.clnp.cases import convert, mlp, random_keep, some_steps


def learned(tasks: int = 3) -> tuple[Model, Certificate]:
    model, certificate = convert(mlp([16, 12]), head="single"), Certificate()
    generator = torch.Generator().manual_seed(0)
    for _ in range(tasks):
        model.begin_task(generator=generator)
        some_steps(model)
        model.consolidate(random_keep(model, generator))
        certificate.record(model, torch.randn(100, 12))
    return model, certificate


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


def test_other_conditions_are_named() -> None:
    model, certificate = learned(1)
    certificate.entries[0].conditions["threads"] = 77
    model.head.frozen_bias[0] += 1
    verdict = certificate.verify(model)[0]
    assert not verdict.identical
    assert "threads 77 ->" in verdict.note


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
