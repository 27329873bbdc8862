"""Contents of a learner checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..network.certificate import Certificate
from ..network.restore import EXTRA, dtype_name, dtype_of, restored
from .report import TaskReport

if TYPE_CHECKING:
    from ..network.model import Model
    from .learner import Learner


def contents(learner: Learner) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that a learner needs to go on: tensors, and the rest as JSON-able data."""
    model, certificate = learner.model, learner.certificate
    tensors = {f"model.{k}": v for k, v in model.state_dict().items() if k != EXTRA}
    tensors |= {f"probe.{k}": probe for k, probe in enumerate(certificate.probes)}
    data = {
        "settings": learner.settings.to_json(),
        "structure": model.structure(),
        "reports": [report.to_json() for report in learner.reports],
        "certificate": certificate.to_json(),
        "dtype": dtype_name(model.head.free_weight.dtype),
    }
    return tensors, data


def saved_score(data: Any) -> Any:
    """The name of a learner's score in its file's data; files without one are older than scores."""
    settings = data.get("settings") if isinstance(data, dict) else None
    return settings.get("score", "accuracy") if isinstance(settings, dict) else "accuracy"


def model_of(tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> Model:
    """The network in what `contents` made, in evaluation mode. Raises whatever foreign data lead
    to.
    """
    prefix = "model."
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return restored(data["structure"], dtype_of(data["dtype"]), state).eval()


def take_over(learner: Learner, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
    """Gives a learner with that network the reports and the certificate. Raises as `model_of`."""
    learner.reports = [TaskReport(**report) for report in data["reports"]]
    probes = [tensors[f"probe.{k}"] for k in range(len(data["certificate"]))]
    learner.certificate = Certificate.from_json(data["certificate"], probes)
