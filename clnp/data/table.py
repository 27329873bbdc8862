"""Arrays of a task from a table of numbers (.csv)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from .layout import SPLIT_OF
from .names import listed, shown

SPLIT = "split"  # column that names the split of a row
TARGET = "y"  # such a column, and those that begin with "y_", are the targets


def table_arrays(path: Path, whole: bool) -> dict[str, np.ndarray]:
    """Read a table whose first row has the names of its columns.

    The column "split" says train, validation or test. Columns named y, or beginning with "y_", are
    targets; all others are inputs, in their order.

    Arguments:
        path: the file, in UTF-8.
        whole: the targets are whole numbers.

    Returns:
        x_train [N, I] float32, and y_train: of one column [N], of several [N, K], float32 or
        int64; the same for the other splits.

    Raises:
        DataError: the file can't be read, a cell is no number, or a column is missing.
    """
    header, rows = _rows(path)
    targets = [i for i, name in enumerate(header) if name == TARGET or name.startswith("y_")]
    inputs = [i for i, name in enumerate(header) if i not in targets and name != SPLIT]
    for what, found in (("y or y_...", targets), ("of inputs", inputs), (SPLIT, SPLIT in header)):
        if not found:
            raise DataError(
                f"{shown(path)}: expected a column {what} in the first row, got "
                f"{listed(header, 12)}; the table needs inputs, y or y_NAME, and split with "
                "train, validation or test"
            )
    at = header.index(SPLIT)
    words = [row[at].strip().lower() for row in rows]
    for line, word in enumerate(words, start=2):
        if word not in SPLIT_OF:
            raise DataError(
                f"{shown(path)}, line {line}: expected train, validation or test as split, got "
                f"{shown(word)!r}"
            )
    splits = np.array([SPLIT_OF[word] for word in words])
    x = _numbers(path, header, rows, inputs).astype(np.float32)
    y = _numbers(path, header, rows, targets)
    if whole:
        if (y != np.floor(y)).any():
            line = int((y != np.floor(y)).any(axis=1).argmax()) + 2
            raise DataError(
                f"{shown(path)}, line {line}: expected whole numbers as classes, got "
                f"{y[line - 2].tolist()}; for numbers pass loss 'mse' or another of numbers"
            )
        y = y.astype(np.int64)
    else:
        y = y.astype(np.float32)
    y = y[:, 0] if len(targets) == 1 else y
    arrays: dict[str, np.ndarray] = {}
    for split in dict.fromkeys(splits.tolist()):
        arrays |= {f"x_{split}": x[splits == split], f"y_{split}": y[splits == split]}
    return arrays


def _rows(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{shown(path)}: can't be read as a table ({error})") from error
    if len(rows) < 2:
        raise DataError(f"{shown(path)}: expected names of columns and rows, got {len(rows)} rows")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header) or "" in header:
        raise DataError(
            f"{shown(path)}: expected distinct names of columns, got {listed(header, 12)}"
        )
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise DataError(
                f"{shown(path)}, line {line}: expected {len(header)} cells, got {len(row)}"
            )
    return header, rows[1:]


def _numbers(
    path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]
) -> np.ndarray:
    """Return the cells of some columns [N, columns] as float64."""
    try:
        return np.array([[float(row[i]) for i in columns] for row in rows])
    except ValueError:
        for line, row in enumerate(rows, start=2):
            for i in columns:
                try:
                    float(row[i])
                except ValueError:
                    raise DataError(
                        f"{shown(path)}, line {line}: expected a number in column "
                        f"{shown(header[i])}, got {shown(row[i])!r}"
                    ) from None
        raise
