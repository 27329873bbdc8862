"""What a learner's file holds, and what it has to be given again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from clnp.data.task import Split, Task
from clnp.errors import DataError
from clnp.restore import EXTRA, dtype_name
from clnp.task_report import TaskReport

if TYPE_CHECKING:
    from clnp.learner import Learner


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


def splits_to_test(
    reports: Sequence[TaskReport], tasks: Sequence[Task] | None
) -> list[Split | None]:
    """The test split of every learned task; None where the tasks are not at hand.

    Raises:
        DataError: `tasks` are not the tasks that were learned.
    """
    if tasks is None:
        return [None] * len(reports)
    if len(tasks) < len(reports):
        raise DataError(
            f"tasks: {len(reports)} tasks have been learned, but only {len(tasks)} were given"
        )
    for k, report in enumerate(reports):
        if tasks[k].name != report.name:
            raise DataError(
                f"tasks[{k}] is {tasks[k].name!r}; the task learned there was {report.name!r}"
            )
    return [tasks[k].test for k in range(len(reports))]
