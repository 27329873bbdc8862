"""A task of a stream: three splits of (x, y), checked once at construction, and their contents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ConfigError, DataError
from ..files.checkpoint import dtype_name
from ..objectives.losses import CrossEntropy, Loss, LossFunction
from ..objectives.objective import Objective, described, loss_of, metric_of, objective_of
from ..objectives.shapes import CLASSES, outputs_for
from .fingerprint import TaskData
from .images import ImageSet
from .inputs import SPLITS, Split, check_int
from .items import Items, Sample
from .labels import check_numbering
from .scan import Scan, common_names, names_of, scan_items, scan_tensors
from .split import checked_split, first_target, given_targets
from .targets import kind_of, labels_of

# Splits in the order in which they are kept in memory: validation items are read most often.
BY_WORTH = ("validation", "test", "train")


@dataclass(frozen=True, eq=False)
class Task:
    """A task: a name, splits for training, pruning and testing, and perhaps its loss and metric.

    A list of tasks is a stream: every function of a stream accepts `[Task(...), Task(...)]`. All
    items of Datasets are checked before the task is trained.

    Arguments:
        name: name in tables and plots.
        train, validation, test: `(x, y)`, or a `torch.utils.data.Dataset` with a length and items
            `(x, y)`. x is [N, ...] float32, float64 or bfloat16, finite, with the same sample shape
            and dtype in every split; y is [N], integer class labels from 0 without gaps, or what
            `loss` takes. Tensors and numpy arrays are not copied (labels become int64); a
            `TensorDataset` is unwrapped.
        classes: number of classes; labels may then have gaps. None uses the number of
            `class_names`, or else the number of different labels.
        class_names: one per class, in the order of the labels, or one per label of several. None
            uses the attribute `classes` of the data sets, if their items agree with it.
        num_workers: processes that read items of Datasets ahead, without effect on results. (An
            `ImageSet` makes its batches itself.)
        cache_bytes: memory for the items of Datasets while a task is learned; a split is kept if it
            fits, first validation, then test, then train.
        fixed_items: whether the training items of a Dataset are the same in every pass. None reads
            them twice to find out. Validation and test items should be; kept ones are drawn once.

    Raises:
        DataError: a split is empty, has the wrong rank, length, dtype or label range, or NaN or Inf
            in x; class names are not distinct strings, or of another number than `classes`.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int | None = None
    class_names: tuple[str, ...] | None = None
    num_workers: int = 0
    cache_bytes: int = 1 << 30
    fixed_items: bool | None = None
    loss: Any = None
    metric: Any = None
    outputs: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise DataError(f"name: expected a non-empty string, got {self.name!r}")
        for name in ("classes", "outputs"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), 1)
        self._loss: Loss | None
        object.__setattr__(self, "_loss", self._loss_given())
        self._check_names()
        for name in ("num_workers", "cache_bytes"):
            check_int(name, getattr(self, name), 0)
        if self.fixed_items not in (None, True, False):
            raise DataError(f"fixed_items: expected True, False or None, got {self.fixed_items!r}")
        self._samples: dict[str, Sample]
        self._data: TaskData | None
        self._unseen: dict[str, list[int]]
        object.__setattr__(self, "_samples", {})
        object.__setattr__(self, "_data", None)
        object.__setattr__(self, "_unseen", {})
        labels = [given_targets(getattr(self, split)) for split in SPLITS]
        for split in SPLITS:
            data, sample = checked_split(getattr(self, split), self._loss, self.where(split))
            object.__setattr__(self, split, data)
            self._samples[split] = sample
        self._check_agreement(labels)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split}={self.size(split)}" for split in SPLITS)
        shape = list(self.sample_shape)
        classes = "" if self.classes is None else f", classes={self.classes}"
        loss = "" if self._loss is None else f", loss={self._loss.name}"
        return f"Task({self.name!r}, {sizes}, x={shape} {dtype_name(self.dtype)}{classes}{loss})"

    def where(self, split: str) -> str:
        """Name a split in errors."""
        return f"task {self.name!r}, {split}"

    def tensors(self, split: str) -> tuple[Tensor, Tensor] | None:
        """Return (x [N, ...], y [N, ...]) of a split, or None if the split is a Dataset.

        Raises:
            DataError: `split` is none of "train", "validation", "test".
        """
        data = self.split(split)
        return data if isinstance(data, tuple) else None

    def split(self, split: str) -> Split:
        """Return a split by its name, tensors or Dataset.

        Raises:
            DataError: `split` is none of "train", "validation", "test".
        """
        if split not in SPLITS:
            raise DataError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        data: Split = getattr(self, split)
        return data

    def size(self, split: str) -> int:
        """Return the number of samples in a split."""
        data = self.split(split)
        return len(data[1]) if isinstance(data, tuple) else len(data)  # type: ignore[arg-type]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one x, without the batch."""
        return self._samples["train"][0]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of x."""
        return self._samples["train"][1]

    @property
    def kind(self) -> str:
        """Kind of the targets: "classes", "labels" or "numbers"."""
        return CLASSES if self._loss is None else self._loss.targets

    @property
    def num_classes(self) -> int:
        """`classes` if given, or else the number of different labels in all splits.

        The latter reads every Dataset once.

        Raises:
            DataError: an item of a Dataset is invalid; labels don't start at 0, or have gaps; the
                targets are no classes.
        """
        if self.kind != CLASSES:
            raise DataError(
                f"task {self.name!r}: expected class labels, got targets of loss "
                f"{self.loss!r}; its number of outputs is num_outputs"
            )
        return self.classes if self.classes is not None else task_data(self).classes

    @property
    def num_outputs(self) -> int:
        """`outputs` if given, or else the number of classes or of the columns of y. Raises as
        `num_classes`.
        """
        if self.outputs is not None:
            return self.outputs
        return self.classes if self.classes is not None else task_data(self).classes

    def objective(self, loss: Any = None, metric: Any = None) -> Objective:
        """Loss and metric of the task.

        Arguments:
            loss, metric: the learner's, for a task that names none.

        Raises:
            ConfigError: they do not fit each other or the task's targets.
        """
        own = loss if self._loss is None else self._loss
        found = objective_of(own, metric if self.metric is None else self.metric, CLASSES)
        if found.targets != self.kind:
            raise ConfigError(
                f"loss: expected one of class labels for task {self.name!r}, which names no loss, "
                f"got {found.loss.name!r}; name it there: Task(..., loss=...)"
            )
        return found

    def items(self, split: str) -> Items:
        """Return a Dataset split as `Items`, which checks every read, with the task's workers."""
        data = self.split(split)
        assert not isinstance(data, tuple)
        if isinstance(data, Items):
            return data
        where = self.where(split)
        return Items(data, where, self.num_workers, self._samples[split], loss=self._loss)

    def _loss_given(self) -> Loss | None:
        """The loss that the task names, checked; its metric too."""
        if self.loss is None:
            found = None
        else:
            first = given_targets(self.train)
            if first is None and isinstance(self.train, Dataset):
                first = first_target(self.train)
            found = loss_of(self.loss, kind_of(first))
        if self.metric is not None:
            metric = metric_of(self.metric)
            if found is not None or CLASSES not in metric.targets:
                Objective(CrossEntropy() if found is None else found, metric)
        if self.classes is not None and found is not None and found.targets != CLASSES:
            raise DataError(
                f"classes: expected None for loss {found.name!r}, which has no classes, got "
                f"{self.classes}; outputs= is the number of outputs"
            )
        return found

    def _check_names(self) -> None:
        names = self.class_names
        if names is None:
            return
        if (
            isinstance(names, str)
            or not isinstance(names, Sequence)
            or not names
            or not all(isinstance(name, str) and name for name in names)
            or len(set(names)) < len(names)
        ):
            raise DataError(f"class_names: expected distinct non-empty strings, got {names!r}")
        object.__setattr__(self, "class_names", tuple(names))
        which = "classes" if self.kind == CLASSES else "outputs"
        given = getattr(self, which)
        if given is not None and given != len(names):
            raise DataError(
                f"class_names: expected one per class, {which}={given}, got {len(names)}"
            )
        object.__setattr__(self, which, len(names))

    def _check_agreement(self, given_labels: Sequence[Any]) -> None:
        shape, dtype = self._samples["train"]
        for split in SPLITS[1:]:
            got = self._samples[split]
            if got != (shape, dtype):
                raise DataError(
                    f"{self.where(split)}: expected samples {list(shape)} {dtype_name(dtype)} as "
                    f"in the train split, got {list(got[0])} {dtype_name(got[1])}"
                )
        targets = {
            split: data[1] for split in SPLITS if isinstance(data := self.split(split), tuple)
        }
        self._check_targets({split: tuple(y.shape[1:]) for split, y in targets.items()})
        if self.kind != CLASSES:
            return
        if self.classes is not None:
            for split, y in targets.items():
                self.check_range(split, y)
        elif len(targets) == len(SPLITS):
            code = "torch" if all(isinstance(y, Tensor) for y in given_labels) else "numpy"
            labels = {split: labels_of(y, self._loss) for split, y in targets.items()}
            check_numbering(labels, f"task {self.name!r}", code)

    def _check_targets(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise DataError where splits have targets of other shapes, or the outputs are not known.

        Arguments:
            shapes: split -> shape of one target.
        """
        first = next(iter(shapes.items()), None)
        for split, shape in shapes.items():
            assert first is not None
            # Pictures and sequences may have any size.
            if len(shape) != len(first[1]) or (self.kind != CLASSES and shape != first[1]):
                raise DataError(
                    f"{self.where(split)}: expected targets {list(first[1])} as in the {first[0]} "
                    f"split, got {list(shape)}"
                )
        if first is None or self.kind == CLASSES:
            return
        columns = outputs_for(self.kind, first[1])
        function = isinstance(self._loss, LossFunction)
        if self.outputs is None and columns is None:
            raise DataError(
                f"task {self.name!r}: expected outputs=, the outputs of the network for targets of "
                f"shape {list(first[1])}, got None"
            )
        if not function and columns is not None and self.outputs not in (None, columns):
            raise DataError(
                f"outputs: expected {columns}, the columns of the targets of task {self.name!r}, "
                f"got {self.outputs}"
            )

    def check_range(self, split: str, y: Tensor) -> None:
        """Raise DataError if a class label of y [N, ...] is not below the task's `classes`."""
        if self.kind != CLASSES or self.classes is None:
            return
        outside = y >= self.classes
        if self._loss is not None and (dropped := self._loss.dropped(y)) is not None:
            outside &= ~dropped
        if bool(outside.any()):
            first = outside.nonzero()[0].tolist()
            raise DataError(
                f"{self.where(split)}: expected labels from 0 to {self.classes - 1}, since "
                f"classes={self.classes}, got {int(y[tuple(first)])} at index "
                f"{first[0] if len(first) == 1 else first}"
            )


def task_data(task: Task) -> TaskData:
    """Return fingerprints, class names, number of classes (or outputs), loss and metric of a task.

    The first call for a `Task` reads and checks every item.

    Raises:
        DataError: an item is invalid (its split and index are named); labels don't start at 0 or
            have gaps; splits have different class names.
    """
    if task._data is None:
        read_splits(task, keep_bytes=0)
    data = task._data
    assert data is not None
    return data


def read_splits(task: Task, keep_bytes: int) -> dict[str, Split]:
    """Read and check a task once; return its splits, in memory where they fit."""
    scans: dict[str, Scan] = {}
    splits: dict[str, Split] = {}
    for split in BY_WORTH:
        data = task.split(split)
        splits[split] = data
        if split == "test" and data is task.validation:
            scans[split], splits[split] = scans["validation"], splits["validation"]
            continue
        if isinstance(data, tuple):
            scans[split] = scan_tensors(*data, task._loss)
            continue
        items = task.items(split)
        # Only training items may be random; they are read twice to find out.
        fixed = True if split != "train" else task.fixed_items
        scan = scan_items(items, keep_bytes, fixed=fixed)
        task.check_range(
            split, torch.tensor([*scan.counts]) if scan.labels is None else scan.labels
        )
        scans[split] = scan
        items.labels, items.counts = scan.labels, scan.counts
        if not isinstance(data, ImageSet):
            splits[split] = items
        if scan.kept is not None:
            splits[split] = scan.kept
            keep_bytes -= scan.kept[0].nbytes
    task._check_targets({split: scans[split].fingerprint.targets for split in SPLITS})
    names, classes = _classes(task, scans)
    prints = {split: scans[split].fingerprint for split in SPLITS}
    if task._data is None:
        object.__setattr__(task, "_unseen", _unseen(task, scans))
    loss = None if task._loss is None else described(task._loss)
    metric = None if task.metric is None else described(metric_of(task.metric))
    object.__setattr__(task, "_data", TaskData(prints, names, classes, loss, metric))
    return splits


def _classes(task: Task, scans: Mapping[str, Scan]) -> tuple[tuple[str, ...] | None, int]:
    """Class names and number of classes; of other targets the names and number of outputs."""
    if task.kind != CLASSES:
        columns = outputs_for(task.kind, scans["train"].fingerprint.targets)
        outputs = columns if task.outputs is None else task.outputs
        assert outputs is not None
        return task.class_names, outputs
    if task.class_names is not None:
        return task.class_names, len(task.class_names)
    where = f"task {task.name!r}"
    labels = {split: torch.tensor([*scans[split].counts]) for split in SPLITS}
    reported = {
        split: names_of(data.data if isinstance(data, Items) else data, known)
        for split in SPLITS
        if not isinstance(data := task.split(split), tuple)
        and (known := scans[split].labels) is not None
        and known.dim() == 1
    }
    names = common_names(reported, where)
    fits = names is not None and all(int(y.max()) < len(names) for y in labels.values())
    if names is not None and fits and task.classes in (None, len(names)):
        return names, len(names)
    if task.classes is not None:
        return None, task.classes
    return None, check_numbering(labels, where)


def _unseen(task: Task, scans: Mapping[str, Scan]) -> dict[str, list[int]]:
    """Return the classes of each split that the train split lacks."""
    if task.kind != CLASSES:
        return {}
    seen = set(scans["train"].counts)
    return {
        split: missing
        for split in SPLITS[1:]
        if (missing := sorted(set(scans[split].counts) - seen))
    }
