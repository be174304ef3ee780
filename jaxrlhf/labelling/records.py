"""A pair of answers, a verdict on it, and the rows of both.

The columns are in the package's docstring. Everything is checked when it is made, so that nothing
half-valid reaches a store or a file. This file reads and writes no file.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jaxrlhf.data.columns import Content, Row
from jaxrlhf.data.rows import BadRow, shorten
from jaxrlhf.errors import DataError

Choice = int | Literal["tie", "both_bad"]
Side = Literal["a", "b"]

STRENGTHS = {1: "barely", 2: "somewhat", 3: "clearly", 4: "much"}
PLAIN = 3
"""Strength of a choice where the source knows none."""
CONFIDENCES = {1: "unsure", 2: "fairly sure", 3: "sure"}
CHOICES: tuple[Choice, ...] = (4, 3, 2, 1, -1, -2, -3, -4, "tie", "both_bad")
LONGEST_NAME, LONGEST_COMMENT = 60, 10_000


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt. `priority`: higher is asked earlier."""

    pair_id: str
    prompt: Content
    a: Content
    b: Content
    model_a: str | None = None
    model_b: str | None = None
    round: int = 0
    priority: float = 0.0

    def swapped(self) -> "Pair":
        """The same pair with a and b exchanged."""
        models = {"model_a": self.model_b, "model_b": self.model_a}
        return dataclasses.replace(self, a=self.b, b=self.a, **models)


@dataclass(frozen=True)
class Verdict:
    """One person's verdict on a pair; see the package's docstring for the values.

    Raises:
      BadRow: a value that is none of them.
    """

    pair_id: str
    annotator: str
    verdict: Choice
    confidence: int | None = None
    flag: bool = False
    comment: str = ""
    shown_first: Side | None = None
    seconds: float | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        _one_of("verdict", self.verdict, CHOICES)
        _one_of("confidence", self.confidence, (None, *CONFIDENCES))
        _one_of("flag", self.flag, (False, True))
        _one_of("shown_first", self.shown_first, (None, "a", "b"))
        if not isinstance(self.comment, str) or len(self.comment) > LONGEST_COMMENT:
            raise BadRow("wrong type", f"'comment' must be at most {LONGEST_COMMENT} characters")
        if self.seconds is not None and not _is_duration(self.seconds):
            raise BadRow("wrong type", f"'seconds' must be 0 or more: {shorten(self.seconds)}")
        if not (self.time is None or isinstance(self.time, str)):
            raise BadRow("wrong type", f"'time' must be text: {shorten(self.time)}")
        name(self.annotator)

    def swapped(self) -> "Verdict":
        """The same verdict on the swapped pair."""
        verdict = self.verdict if isinstance(self.verdict, str) else -self.verdict
        first: dict[Side | None, Side | None] = {"a": "b", "b": "a", None: None}
        return dataclasses.replace(self, verdict=verdict, shown_first=first[self.shown_first])


class Labelled(NamedTuple):
    """Pairs, and what was said of them; a verdict's pair is among the pairs."""

    pairs: list[Pair]
    verdicts: list[Verdict]


Entry = tuple[Pair, Verdict | None]


@contextmanager
def at(place: str) -> Iterator[None]:
    """Say where, should it go wrong."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def pair_id(prompt: Content, a: Content, b: Content) -> str:
    """Same prompt, same two answers in either order, same id."""
    first, second = sorted(json.dumps(answer, sort_keys=True) for answer in (a, b))
    text = json.dumps([json.dumps(prompt, sort_keys=True), first, second])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def name(text: Any) -> str:
    """A name as it is kept: without white space around it.

    Raises:
      BadRow: empty, too long, or with characters that cannot be seen.
    """
    kept = text.strip() if isinstance(text, str) else ""
    if not kept or len(kept) > LONGEST_NAME or not kept.isprintable():
        raise BadRow(
            "not a name",
            f"an annotator has 1 to {LONGEST_NAME} visible characters: {shorten(text)}",
        )
    return kept


def choice(value: Any) -> Choice:
    """A verdict that other tools keep as text."""
    if isinstance(value, str) and value.removeprefix("-").isdecimal():
        return int(value)
    return _one_of("verdict", value, CHOICES)


def merged(entries: Iterable[Entry]) -> Labelled:
    """Each pair once, in order; what was said of a swapped pair is turned round.

    Raises:
      BadRow: two different pairs under one id.
    """
    pairs: dict[str, Pair] = {}
    verdicts: list[Verdict] = []
    for pair, verdict in entries:
        known = pairs.setdefault(pair.pair_id, pair)
        here, there = ((p.prompt, p.a, p.b) for p in (pair, known))
        if here != there:
            pair, verdict = pair.swapped(), verdict and verdict.swapped()
            if (pair.prompt, pair.a, pair.b) != there:
                raise BadRow("one id, two pairs", f"pair_id {pair.pair_id!r}")
        if verdict:
            verdicts.append(verdict)
    return Labelled(list(pairs.values()), verdicts)


def by_pair(labelled: Labelled) -> list[tuple[Pair, list[Verdict]]]:
    """Every pair with the verdicts on it, both in order."""
    said: dict[str, list[Verdict]] = {pair.pair_id: [] for pair in labelled.pairs}
    for verdict in labelled.verdicts:
        said[verdict.pair_id].append(verdict)
    return [(pair, said[pair.pair_id]) for pair in labelled.pairs]


# Rows.


def as_object(value: Any, name: str) -> dict[str, Any]:
    """A JSON object of another tool's export; `name` is what the export calls it.

    Raises:
      BadRow: something else.
    """
    if not isinstance(value, dict):
        raise BadRow("wrong type", f"{name!r} must be an object: {shorten(value)}")
    return value


def to_row(pair: Pair, verdict: Verdict | None = None) -> dict[str, Any]:
    """The row of a verdict, or of a pair alone."""
    row = dataclasses.asdict(pair)
    del row["priority"]
    return row | (dataclasses.asdict(verdict) if verdict else {})


def to_pair(row: Row) -> Pair:
    """The pair of a row with `prompt`, `a` and `b`."""
    prompt, a, b = (row.content(column) for column in ("prompt", "a", "b"))
    return make_pair({**row.data, "pair_id": row.get("pair_id")}, prompt, a, b)


def make_pair(columns: Mapping[str, Any], prompt: Content, a: Content, b: Content) -> Pair:
    """A pair with whatever else `columns` says of it."""
    if a == b:
        raise BadRow("equal answers", shorten(a))
    view = Row(columns, {})
    found = columns.get("pair_id")
    if not (found is None or (isinstance(found, str | int) and str(found).strip())):
        raise BadRow("wrong type", f"'pair_id' must be text: {shorten(found)}")
    models = {column: columns.get(column) for column in ("model_a", "model_b")}
    for column, value in models.items():
        if not (value is None or isinstance(value, str)):
            raise BadRow("wrong type", f"{column!r} must be text: {shorten(value)}")
    round_ = view.number("round", 0, 0, 2**31)
    if round_ != int(round_):
        raise BadRow("wrong type", f"'round' must be a whole number: {round_}")
    return Pair(
        pair_id(prompt, a, b) if found is None else str(found),
        prompt,
        a,
        b,
        **models,
        round=int(round_),
        priority=view.number("priority", 0.0, -math.inf, math.inf),
    )


def to_verdict(columns: Mapping[str, Any], pair: Pair, *, annotator: str) -> Verdict:
    """The verdict of a row; `annotator` is whose it is where the row does not say."""
    fields = {field.name for field in dataclasses.fields(Verdict)}
    given = {key: value for key, value in columns.items() if key in fields and value is not None}
    return Verdict(
        **{**given, "pair_id": pair.pair_id, "annotator": given.get("annotator", annotator)}
    )


def _one_of(column: str, value: Any, choices: tuple[Any, ...]) -> Any:
    if not any(value is x or (type(value) is type(x) and value == x) for x in choices):
        allowed = ", ".join(map(json.dumps, choices))
        raise BadRow("unknown value", f"{column!r} must be one of {allowed}: {shorten(value)}")
    return value


def _is_duration(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0
