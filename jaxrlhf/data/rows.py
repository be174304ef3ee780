"""Rows that remember where they came from, and the count of those that were left out.

Three kinds of trouble, told apart everywhere in `jaxrlhf.data`:

- *structural* (no such file, malformed JSON, a column that no row has): always a `DataError`;
- *malformed row* (wrong type, empty text, no assistant turn): `BadRow`, an error by default,
  counted with `on_bad_row="skip"`;
- *content the data is known to hold* (over-long row, prompts that differ, empty completion):
  `SkipRow`, left out and counted by reason.

Nothing is ever trained on a row of the last two kinds, and leaving out every row is an error.
This file reads no files.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, overload

from jaxrlhf.errors import DataError

logger = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")
OnBadRow = Literal["error", "skip"]


class BadRow(DataError):
    """A row that is not what it should be. `reason` is the short form that is counted."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class SkipRow(DataError):
    """A well-formed row that nothing can be learnt from; left out and counted by `reason`."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass
class Skipped:
    """How many rows were left out, by reason, and where the first of each kind stands."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, where)

    def copy(self) -> "Skipped":
        return Skipped(dict(self.counts), dict(self.first))

    def __str__(self) -> str:
        parts = [f"{n} {reason} (first: {self.first[reason]})" for reason, n in self.counts.items()]
        return f"{self.total} rows skipped" + (": " + ", ".join(parts) if parts else "")


class Rows(Sequence[dict[str, Any]]):
    """Rows as dictionaries of their columns. `where(i)` names file and line for messages."""

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        *,
        name: str = "rows",
        places: Sequence[str] | None = None,
    ):
        self.name = name
        self._rows = list(rows)
        self._places = places
        self._columns: list[str] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index):
        return self._rows[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def where(self, index: int) -> str:
        """`path:line` of a text file, `path row n` (from 1) of anything else."""
        if self._places is None:
            return f"{self.name} row {index + 1}"
        return self._places[index]

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in order of first appearance."""
        if self._columns is None:
            self._columns = list(dict.fromkeys(key for row in self._rows for key in row))
        return self._columns

    @classmethod
    def concat(cls, parts: Sequence["Rows"]) -> "Rows":
        if len(parts) == 1:
            return parts[0]
        places = [part.where(i) for part in parts for i in range(len(part))]
        rows = [row for part in parts for row in part]
        return cls(rows, name=", ".join(part.name for part in parts), places=places)


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """Items made from rows: the item, the row it came from, and what was left out on the way.

    `index[i]` is the position in `rows` of item i; it survives every stage, so a reward can look
    at the columns of the row that a prompt came from: `loaded.rows[row]`.
    """

    items: list[T]
    index: list[int]
    rows: Rows
    skipped: Skipped

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __getitem__(self, i: int) -> T:
        return self.items[i]

    def where(self, i: int) -> str:
        return self.rows.where(self.index[i])

    def at_row(self, row: int) -> T:
        """The item made from row number `row`."""
        i = bisect_left(self.index, row)  # stages leave rows out, but never reorder them
        if i == len(self) or self.index[i] != row:
            raise KeyError(row)
        return self.items[i]


def loaded(items: "Sequence[T] | Loaded[T]", *, name: str = "data") -> Loaded[T]:
    """`items` as `Loaded`: itself, or a plain list whose rows have no file behind them."""
    if isinstance(items, Loaded):
        return items
    items = list(items)
    rows = Rows([{}] * len(items), name=name)
    return Loaded(items, list(range(len(items))), rows, Skipped())


def convert(
    source: Loaded[S], function: Callable[[S], T], *, on_bad_row: OnBadRow = "error", what: str
) -> Loaded[T]:
    """Apply `function` to every item; leave out and count those that raise.

    Args:
      source: what to convert.
      function: raises `BadRow` or `SkipRow` for an item that cannot be used.
      on_bad_row: "error" turns a `BadRow` into a `DataError` that names the place; "skip" counts.
      what: the kind of thing made, for messages.
    Raises:
      DataError: a malformed row, or nothing is left.
    """
    if on_bad_row not in ("error", "skip"):
        raise DataError(f"on_bad_row = {on_bad_row!r}: must be 'error' or 'skip'")
    items: list[T] = []
    index: list[int] = []
    skipped = source.skipped.copy()
    for i, item in enumerate(source.items):
        try:
            made = function(item)
        except SkipRow as problem:
            skipped.add(problem.reason, source.where(i))
        except BadRow as problem:
            if on_bad_row == "error":
                raise DataError(f"{source.where(i)}: {problem}") from None
            skipped.add(problem.reason, source.where(i))
        else:
            items.append(made)
            index.append(source.index[i])
    if not items:
        raise DataError(f"{source.rows.name}: no {what} left: {skipped}")
    if skipped.total > source.skipped.total:
        logger.info("%s -> %s: %s", source.rows.name, what, skipped)
    return Loaded(items, index, source.rows, skipped)


def shorten(value: object, length: int = 60) -> str:
    """`repr` of a value, cut in the middle, for messages.

    >>> shorten("x" * 100, 20)
    "'xxxxxxx...xxxxxxxx'"
    """
    text = repr(value)
    if len(text) <= length:
        return text
    head = (length - 3) // 2
    return text[:head] + "..." + text[-(length - 3 - head) :]
