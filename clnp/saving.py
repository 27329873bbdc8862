"""What a learner's file holds, and what it has to be given again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from clnp.data.check import check_is_task, task_data
from clnp.data.images import ImageSet
from clnp.data.task import Split, Task
from clnp.errors import CheckpointError, DataError
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


def learned_tasks(reports: Sequence[TaskReport], tasks: Sequence[Task]) -> list[Task]:
    """The tasks that were learned, given again. Every item is read, to see that they are the same.

    Raises:
        DataError: `tasks` are not the tasks that were learned; it says what differs.
        CheckpointError: the file does not tell what their data was.
    """
    if len(tasks) < len(reports):
        raise DataError(
            f"tasks: {len(reports)} tasks have been learned, but only {len(tasks)} were given"
        )
    found = []
    for k, report in enumerate(reports):
        task = tasks[k]
        check_is_task(task, f"tasks[{k}]")
        if task.name != report.name:
            raise DataError(
                f"tasks[{k}] is {task.name!r}; the task learned there was {report.name!r}"
            )
        if report.data is None:
            raise CheckpointError(
                f"task {report.name!r} was saved without fingerprints of its data, by an older "
                "version, so the tasks that are given can't be compared with it; load without "
                "tasks (later rows of the accuracy matrix then lack it)"
            )
        differences = report.data.differences(task_data(task))
        if differences:
            raise DataError(
                f"tasks[{k}], {task.name!r}, is not what was learned: {'; '.join(differences)}. "
                "Give the data that was learned, or begin anew with the other"
            )
        found.append(task)
    return found


def check_new(reports: Sequence[TaskReport], task: Any) -> None:
    """Refuses what is no task, or one that is learned already.

    Raises:
        DataError: no `Task`; a task of that name was learned before.
    """
    check_is_task(task)
    for report in reports:
        if report.name == task.name:
            raise DataError(
                f"task {task.name!r}: a task of that name was learned before (task {report.task}); "
                "if it is another one, give it a name of its own: "
                "dataclasses.replace(task, name=...)"
            )


def kept_test(task: Task, made: Task, held: Sequence[Split | None]) -> Split:
    """The test split of a learned task for later rows of the accuracy matrix. Items of a Dataset
    stay in memory if they fit there beside those of earlier tasks.

    Arguments:
        task: as it was given.
        made: as it was learned.
        held: test splits of earlier tasks.
    """
    given = task.split("test")
    if isinstance(given, (tuple, ImageSet)):
        return given
    sizes = [split[0].nbytes for split in (*held, made.test) if isinstance(split, tuple)]
    return made.test if sum(sizes) <= task.cache_bytes else task.items("test")
