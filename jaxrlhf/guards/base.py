"""A guard: its limits, and a rule on the figures that a run writes down.

    look(seen) -> None, or one sentence that says what is wrong, with numbers

That is all a guard is. It keeps nothing: what it has to remember (a running sum, the value at the
start) stands among the figures, so the log of a run is the memory of its guards, and a run that was
killed and resumed is judged as if nobody had disturbed it.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import ClassVar

from pydantic import Field

from jaxrlhf.config import Config

KEPT = 64  # values of each figure: more than any rule looks back


class Seen:
    """The figures of a run so far: of each its first value, and its last `KEPT` ones."""

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        self._last: dict[str, deque[float]] = {}

    def add(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._first.setdefault(name, value)
            self._last.setdefault(name, deque(maxlen=KEPT)).append(value)

    def first(self, name: str) -> float | None:
        """The first value there was; None where there was none."""
        return self._first.get(name)

    def last(self, name: str, count: int = KEPT) -> list[float]:
        """The last `count` values, or as many as there are, oldest first."""
        return list(self._last.get(name, ()))[-count:]


class Guard(Config):
    """One thing that can go wrong, and the limits beyond which it has."""

    figures: ClassVar[tuple[str, ...]] = ()
    """Names of the figures that `look` reads."""

    def look(self, seen: Seen) -> str | None:
        """What is wrong now, in one sentence with numbers; None if nothing is."""
        raise NotImplementedError


class Lasting(Guard):
    """A guard that waits until a figure has been wrong for some updates running."""

    updates: int = Field(default=3, ge=1, description="wrong for so many updates running")

    def running(self, seen: Seen, name: str, wrong: Callable[[float], bool]) -> float | None:
        """The newest value of a figure whose last `updates` values are all wrong."""
        values = seen.last(name, self.updates)
        return values[-1] if len(values) == self.updates and all(map(wrong, values)) else None
