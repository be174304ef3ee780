"""Rows that say which annotator preferred which of two answers: one a row, or one a column.

Long files have a row for each verdict (the labelling page's rows do): `pair_id`, `annotator`,
`verdict`. Wide files have a row for each pair and a column for each annotator. Prompt and answers
are kept where the file has them, so that what comes of the labels can be trained on.

This file computes nothing; see `evals/annotators.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxrlhf.data.battles import known_outcomes, outcome
from jaxrlhf.data.columns import Content, Row
from jaxrlhf.data.rows import BadRow, Loaded, OnBadRow, Rows, Skipped, convert, shorten
from jaxrlhf.errors import DataError, nearest

NAMES = {"item": "pair_id", "annotator": "annotator", "label": "verdict"}
"""Our name -> what the column is mostly called."""
COMPARISON = ("prompt", "a", "b")
OPTIONAL = (*COMPARISON, "model_a", "model_b", "shown_first")


@dataclass(frozen=True)
class Judgement:
    """One verdict. `outcome`: 1 the first answer is better, 0 the second, 1/2 neither.

    `columns` has what the row knows of `OPTIONAL`, under our names.
    """

    item: str
    annotator: str
    outcome: float
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Two answers to a prompt. `outcome` as in `Judgement`."""

    prompt: Content
    a: Content
    b: Content
    outcome: float


def judgements(
    rows: Rows,
    *,
    columns: Mapping[str, str] | None = None,
    outcomes: Mapping[str, float] | None = None,
    wide: Sequence[str] = (),
    on_bad_row: OnBadRow = "error",
) -> Loaded[Judgement]:
    """Rows as verdicts.

    Args:
      rows: what to read.
      columns: {our name: their name}, of item, annotator, label and `OPTIONAL`.
      outcomes: {what the file says: 1, 0 or 1/2}, beside `battles.OUTCOMES`.
      wide: columns that hold a label each and are called as the annotator; empty cells are no
        label. An item is then a row, unless `columns` names one.
      on_bad_row: "error", or "skip" to leave malformed rows out and count them.
    Raises:
      DataError: names file, line, column and value; or the nearest column name.
    """
    theirs = _columns(rows, dict(columns or {}), wide)
    known = known_outcomes(outcomes or {})
    cells = [(i, annotator) for i in range(len(rows)) for annotator in (wide or (None,))]
    cells = [
        (i, annotator)
        for i, annotator in cells
        if annotator is None or rows[i].get(annotator) not in (None, "")
    ]
    source = Loaded(cells, [i for i, _ in cells], rows, Skipped())

    def read(cell: tuple[int, str | None]) -> Judgement:
        i, annotator = cell
        row = Row(rows[i], theirs if annotator is None else theirs | {"label": annotator})
        item = _text(row, "item") if "item" in theirs else str(i + 1)
        said = outcome(row, "label", known=known)
        others = {name: row.get(name) for name in OPTIONAL if row.get(name) is not None}
        return Judgement(item, annotator or _text(row, "annotator"), said, others)

    found = convert(source, read, on_bad_row=on_bad_row, what="verdicts")
    _refuse_doubles(found)
    return found


def comparisons(
    rows: Rows,
    *,
    columns: Mapping[str, str] | None = None,
    outcomes: Mapping[str, float] | None = None,
    on_bad_row: OnBadRow = "error",
) -> Loaded[Comparison]:
    """Rows as comparisons of two answers, whoever made them.

    Args are those of `judgements`; the columns are prompt, a, b and label ("verdict" or, without
    one, "winner"). Of preference pairs `chosen` is a, `rejected` is b, and a is better.
    """
    names = {"prompt": "prompt", "a": "a", "b": "b", "label": "verdict"}
    if "verdict" not in rows.columns and "winner" in rows.columns:
        names["label"] = "winner"
    if {"chosen", "rejected"} <= set(rows.columns):
        names = {"prompt": "prompt", "a": "chosen", "b": "rejected"}
    theirs = names | dict(columns or {})
    for ours, column in theirs.items():
        if ours not in (*COMPARISON, "label"):
            raise DataError(
                f"columns: comparisons have no column {ours!r}: it is prompt, a, b, label"
            )
        _require(rows, column, "columns maps other names")
    known = known_outcomes(outcomes or {})
    source = Loaded(list(rows), list(range(len(rows))), rows, Skipped())

    def read(data: dict[str, Any]) -> Comparison:
        row = Row(data, theirs)
        prompt, a, b = (row.content(name) for name in COMPARISON)
        if a == b:
            raise BadRow("equal answers", shorten(a))
        said = outcome(row, "label", known=known) if "label" in theirs else 1.0
        return Comparison(prompt, a, b, said)

    return convert(source, read, on_bad_row=on_bad_row, what="comparisons")


def _columns(rows: Rows, given: dict[str, str], wide: Sequence[str]) -> dict[str, str]:
    """Our names -> the file's, of what it has."""
    for ours in given:
        if ours not in (*NAMES, *OPTIONAL):
            raise DataError(
                f"columns: verdicts have no column {ours!r}: it is {', '.join((*NAMES, *OPTIONAL))}"
            )
    needed = {} if wide else NAMES
    for theirs in (*given.values(), *(given.get(k, v) for k, v in needed.items()), *wide):
        _require(rows, theirs, "columns maps other names; wide names the columns of annotators")
    return needed | given


def _require(rows: Rows, column: str, how: str) -> None:
    if column not in rows.columns:
        guess = nearest(column, rows.columns)
        hint = f"did you mean {guess!r}?" if guess else f"it has {', '.join(rows.columns)}"
        raise DataError(f"{rows.name}: no column {column!r}; {hint} ({how})")


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return row.text(name).strip()


def _refuse_doubles(found: Loaded[Judgement]) -> None:
    seen: dict[tuple[str, str], int] = {}
    for i, x in enumerate(found):
        before = seen.setdefault((x.item, x.annotator), i)
        if before != i:
            raise DataError(
                f"{found.where(i)}: {x.annotator!r} judged {x.item!r} before, at "
                f"{found.where(before)}; a pair has one verdict of each annotator"
            )
