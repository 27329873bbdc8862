"""Forgetting on request by a `Learner`: reports, test splits, certificate and files follow the
network.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from ..errors import CertificateError, ConfigError
from ..network.forgetting import Forgotten
from .report import TaskReport


def task_index(learner: Any, task: Any) -> int:
    """Return the index of a learned task that is given by its index or name. Raises ConfigError."""
    if not isinstance(task, str):
        return learner.model.check_task(task)
    names = {learner.reports[k].name: k for k in learner.model.present}
    if task not in names:
        raise ConfigError(f"task: expected one of {list(names)}, or an index, got {task!r}")
    return names[task]


def forget(learner: Any, task: int, cascade: bool) -> Forgotten:
    """Forget a task of a learner; see `Learner.forget`. The learner stays as it was if the kept
    tasks are not what their certificate says, or would not be.
    """
    before = _differing(learner)
    if before:
        raise CertificateError(
            f"forget(): expected learned tasks as they were, got others: {', '.join(before)}; "
            "verify() says more"
        )
    state, certificate = learner._snapshot(), learner.certificate
    entries, probes = list(certificate.entries), list(certificate.probes)
    gone = learner.model.forget(task, cascade=cascade)
    certificate.forget(learner.model, gone.tasks)
    after = _differing(learner)
    if after:
        learner.model.load_state_dict(state, unlearn=True)
        certificate.entries, certificate.probes = entries, probes
        raise CertificateError(
            f"forget(): expected kept tasks with the same logits, got others: {', '.join(after)}; "
            "nothing was forgotten"
        )
    learner.model.eval()
    _forget_results(learner, gone.tasks)
    return gone


def _differing(learner: Any) -> list[str]:
    """Names of the tasks with other bits, unless they were recorded under other conditions."""
    verdicts = learner.verify()
    return [v.name for v in verdicts if not v.identical and (v.moved or not v.conditions)]


def _forget_results(learner: Any, tasks: Collection[int]) -> None:
    """Drop reports and test splits of forgotten tasks; of those in between an empty report stays,
    so that indices do too.
    """
    learner._calibrator.forget(tasks)
    for task in tasks:
        learner._tests.forget(task)
    left = len(learner.model.tasks)
    del learner.reports[left:]
    learner._tests.cut(left)
    for k, report in enumerate(learner.reports):
        learner.reports[k] = without_tasks(report, tasks)
    learner._warned.clear()


def without_tasks(report: TaskReport, tasks: Collection[int]) -> TaskReport:
    """Return a report without the numbers of forgotten tasks; an empty one of such a task."""
    row = [math.nan if j in tasks else value for j, value in enumerate(report.row)]
    inferred = {
        rule: {
            name: [math.nan if j in tasks else value for j, value in enumerate(values)]
            for name, values in measures.items()
        }
        for rule, measures in report.inferred.items()
    }
    if report.task not in tasks:
        return dataclasses.replace(report, row=row, inferred=inferred)
    nothing = math.nan
    return dataclasses.replace(
        report,
        name=f"forgotten {report.task + 1}",
        epochs=0,
        l1=dict.fromkeys(report.l1, 0.0),
        best_validation=nothing,
        validation_before=nothing,
        validation=nothing,
        test=nothing,
        row=row,
        thresholds=dict.fromkeys(report.thresholds, 0.0),
        reuse={name: [0] * len(counts) for name, counts in report.reuse.items()},
        history=[],
        grid=[],
        seconds={},
        inferred=inferred,
        class_names=None,
        data=None,
        fine_tuned="",
        forgotten=True,
    )
