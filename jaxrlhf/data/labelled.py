"""Classification rows: a text and the probability of each of its classes.

A `label` is the number of a class; or, of two classes, the probability of class 1; or a list of the
probabilities of all. So true labels and a teacher's soft ones are read alike, from whatever columns
they stand in: `columns={"text": "txt", "label": "p1_gpt2"}`.

Tokens and fixed shapes are `chat.py` and `arrays.labelled`.
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxrlhf.data.columns import Row
from jaxrlhf.data.formats import Text
from jaxrlhf.data.rows import BadRow, Loaded, OnBadRow, Rows, Skipped, convert, shorten
from jaxrlhf.errors import DataError, nearest

OURS = ("text", "label")
SLACK = 1e-3  # by which probabilities that were rounded for a file may miss the sum 1


@dataclass(frozen=True)
class Labelled:
    """A text and the probabilities of its classes, which sum to 1."""

    text: str
    probs: tuple[float, ...]


def labelled(
    rows: Rows,
    *,
    columns: Mapping[str, str] | None = None,
    classes: int = 2,
    on_bad_row: OnBadRow = "error",
) -> Loaded[Labelled]:
    """Rows as labelled texts.

    Args:
      rows: what to read.
      columns: {our name: their name} for columns called otherwise.
      classes: how many there are.
      on_bad_row: "error", or "skip" to leave malformed rows out and count them.
    Raises:
      DataError: no such column; a row without text, or a label that is none (file, line, column and
        value are named); or every row is certainly of one class, from which nothing can be learnt.
    """
    columns = dict(columns or {})
    _check_columns(rows, columns)
    source = Loaded(list(rows), list(range(len(rows))), rows, Skipped())

    def read(row: Mapping[str, Any]) -> Labelled:
        view = Row(row, columns)
        return Labelled(view.text("text"), _probs(view, classes))

    found = convert(source, read, on_bad_row=on_bad_row, what="labelled texts")
    if len(found) > 1 and max(found[0].probs) == 1.0 and len({item.probs for item in found}) == 1:
        only = found[0].probs.index(1.0)
        column = columns.get("label", "label")
        raise DataError(
            f"{rows.name}: all {len(found)} rows have class {only} in column {column!r}; at least "
            "two classes are needed"
        )
    return found


def probabilities(found: Loaded[Labelled]) -> np.ndarray:
    """`[rows of the file, K]` float32 by row of the file; NaN where a row was left out."""
    table = np.full((len(found.rows), len(found[0].probs)), np.nan, np.float32)
    table[found.index] = [item.probs for item in found]
    return table


def texts(found: Loaded[Labelled]) -> Loaded[Text]:
    """The texts alone, to be tokenised."""
    return replace(found, items=[Text(item.text) for item in found])  # type: ignore[arg-type]


def _probs(row: Row, classes: int) -> tuple[float, ...]:
    value, column = row.get("label"), row.called("label")
    if isinstance(value, str):  # CSV files hold text only
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, list):
        return _distribution(value, classes, column)
    if isinstance(value, str) or not isinstance(value, int | float):
        what = "missing" if value is None else f"no number and no list: {shorten(value)}"
        raise BadRow("wrong type", f"column {column!r}, the label, is {what}")
    if classes == 2 and math.isfinite(value) and 0 <= value <= 1:
        return (1.0 - float(value), float(value))
    if float(value).is_integer() and 0 <= value < classes:
        return tuple(float(k == value) for k in range(classes))
    allowed = "from 0 to 1" if classes == 2 else f"a class from 0 to {classes - 1}"
    raise BadRow("label out of range", f"column {column!r} must be {allowed}: {value}")


def _distribution(value: list, classes: int, column: str) -> tuple[float, ...]:
    numbers = all(type(p) in (int, float) and math.isfinite(p) for p in value)
    if len(value) != classes or not numbers:
        detail = f"column {column!r} must have {classes} numbers: {shorten(value)}"
        raise BadRow("wrong type", detail)
    total = sum(value)
    if any(not 0 <= p <= 1 for p in value) or abs(total - 1) > SLACK:
        detail = f"column {column!r} must be probabilities that sum to 1: {shorten(value)}"
        raise BadRow("label out of range", detail)
    return tuple(p / total for p in value)


def _check_columns(rows: Rows, columns: Mapping[str, str]) -> None:
    for name in columns:
        if name not in OURS:
            raise DataError(f"columns: no column {name!r}: must be one of {', '.join(OURS)}")
    for name in OURS:
        theirs = columns.get(name, name)
        if theirs not in rows.columns:
            guess = nearest(theirs, rows.columns)
            hint = f"did you mean {guess!r}?" if guess else f"it has {', '.join(rows.columns)}"
            raise DataError(
                f"{rows.name}: no column {theirs!r}; {hint} Other names are mapped with columns, "
                'as in {"text": "sentence"}'
            )
