"""Rows that say who met whom and who won: arena battles, judged pairs, verdicts of people.

Known by their columns: `model_a` + `model_b` + `winner` (Chatbot Arena), the same with `verdict`
(rows of the labelling page: above 0 is for a), `left` + `right` + `winner`, `generator_1` +
`generator_2` + `preference` (AlpacaEval). Others are mapped: `columns={"model_a": "theirs"}`.

This file computes nothing; ratings are made in `evals/tournament.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxrlhf.data.columns import Row
from jaxrlhf.data.rows import BadRow, Loaded, OnBadRow, Rows, Skipped, convert, shorten
from jaxrlhf.errors import DataError, nearest

NAMES = ("model_a", "model_b", "winner")
SHAPES = (
    NAMES,
    ("model_a", "model_b", "verdict"),
    ("left", "right", "winner"),
    ("generator_1", "generator_2", "preference"),
)
OUTCOMES = {
    **dict.fromkeys(("a", "model_a", "left", "1", "first", "output_1"), 1.0),
    **dict.fromkeys(("b", "model_b", "right", "2", "second", "output_2"), 0.0),
    **dict.fromkeys(("tie", "draw", "both_bad", "tie (bothbad)", "0", "0.5", "1.5"), 0.5),
}
"""What files say of a battle -> the share of the win that goes to the first."""


@dataclass(frozen=True)
class Battle:
    """One comparison. `outcome`: 1 a won, 0 b won, 1/2 neither."""

    a: str
    b: str
    outcome: float


def battles(
    rows: Rows,
    *,
    columns: Mapping[str, str] | None = None,
    outcomes: Mapping[str, float] | None = None,
    on_bad_row: OnBadRow = "error",
) -> Loaded[Battle]:
    """Rows as battles.

    Args:
      rows: what to read.
      columns: {"model_a", "model_b" or "winner": their name} for columns called otherwise.
      outcomes: {what the file says of a winner: 1, 0 or 1/2}, beside `OUTCOMES` and the names of
        the two players.
      on_bad_row: "error", or "skip" to leave malformed rows out and count them.
    Raises:
      DataError: names file, line, column and value; or the nearest column name.
    """
    theirs = _columns(rows, dict(columns or {}))
    known = known_outcomes(outcomes or {})
    source = Loaded(list(rows), list(range(len(rows))), rows, Skipped())
    return convert(
        source,
        lambda row: _battle(Row(row, theirs), known),
        on_bad_row=on_bad_row,
        what="battles",
    )


def known_outcomes(more: Mapping[str, float]) -> dict[str, float]:
    """`OUTCOMES` and those of a config.

    Raises:
      DataError: an outcome that is not 0, 1/2 or 1.
    """
    for key, value in more.items():
        if value not in (0, 0.5, 1):
            raise DataError(f"outcomes: {key!r} is {value}: must be 1 (a), 0 (b) or 0.5 (tie)")
    return OUTCOMES | {key.strip().lower(): float(value) for key, value in more.items()}


def _columns(rows: Rows, given: dict[str, str]) -> dict[str, str]:
    """Our three names -> the file's."""
    present = rows.columns
    for ours, theirs in given.items():
        if ours not in NAMES:
            raise DataError(f"columns: battles have no column {ours!r}: it is {', '.join(NAMES)}")
        if theirs not in present:
            guess = nearest(theirs, present)
            hint = f"did you mean {guess!r}?" if guess else f"it has {', '.join(present)}"
            raise DataError(f"{rows.name}: no column {theirs!r}; {hint}")
    for shape in SHAPES:
        found = dict(zip(NAMES, shape, strict=True)) | given
        if all(name in present for name in found.values()):
            return found
    wanted = " or ".join("+".join(shape) for shape in SHAPES)
    raise DataError(
        f"{rows.name}: battles need the columns {wanted}; it has {', '.join(present)}; other names "
        'are mapped with columns, as in {"model_a": "player_1"}'
    )


def _battle(row: Row, known: Mapping[str, float]) -> Battle:
    a, b = (_name(row, column) for column in ("model_a", "model_b"))
    if a == b:
        raise BadRow("a player against itself", repr(a))
    return Battle(a, b, outcome(row, "winner", known={**known, a.lower(): 1.0, b.lower(): 0.0}))


def outcome(row: Row, name: str, *, known: Mapping[str, float]) -> float:
    """What a row says in its column `name`: 1 for the first, 0 for the second, 1/2 for neither.

    A column called "verdict" may hold a signed strength, above 0 for the first.
    """
    said, called = row.get(name), row.called(name)
    text = str(said).strip().lower().removesuffix(".0")
    if called == "verdict" and text.lstrip("-").isdecimal():
        return 0.5 + 0.5 * ((int(text) > 0) - (int(text) < 0))
    if said is None or text not in known:
        guess = nearest(text, known)
        hint = f"did you mean {guess!r}?" if guess else f"known are {', '.join(known)}"
        raise BadRow(
            "unknown outcome",
            f"column {called!r}: {shorten(said)}; {hint} (others are mapped with outcomes)",
        )
    return known[text]


def _name(row: Row, column: str) -> str:
    value: Any = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return row.text(column).strip()
