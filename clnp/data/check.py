"""All inputs of a run, checked before anything trains."""

from __future__ import annotations

from collections.abc import Sequence

from clnp.data.task import Task
from clnp.errors import DataError


def check_tasks(tasks: Sequence[Task]) -> None:
    """Checks every task of a stream, content included, before the first one trains.

    Arguments:
        tasks: a stream; a lazy one makes each task once.

    Raises:
        DataError: a task that is no `Task`; two tasks named alike; tasks whose samples differ in
            shape or dtype.
    """
    names: dict[str, int] = {}
    first: Task | None = None
    for k, task in enumerate(tasks):
        if not isinstance(task, Task):
            raise DataError(f"tasks[{k}]: got {type(task).__name__}, wanted a clnp.data.Task")
        if task.name in names:
            raise DataError(
                f"tasks[{k}]: is named {task.name!r} like tasks[{names[task.name]}]; wanted a name "
                "of its own for every task"
            )
        names[task.name] = k
        first = task if first is None else first
        for what in ("sample_shape", "dtype"):
            got, wanted = getattr(task, what), getattr(first, what)
            if got != wanted:
                raise DataError(
                    f"task {task.name!r}: {what} is {got}, wanted {wanted} as in task "
                    f"{first.name!r}"
                )
