"""Tables in CSV form."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def csv_text(
    fields: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool = True
) -> str:
    """Format rows as CSV.

    Floats keep all digits. Missing values and None become empty cells. Keys that are not in
    `fields` are ignored.

    Arguments:
        fields: columns, in order.
        rows: one mapping per line.
        header: begin with a line of column names.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fields, restval="", extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if v is None else v for k, v in row.items()})
    return buffer.getvalue()
