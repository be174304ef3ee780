"""How a run talks to the person who started it: bars with an ETA, and tables, on stderr.

On a terminal a bar is drawn with rich; anywhere else (a log file, CI, a notebook) the same facts
are printed as a plain line, at most one every few seconds and one at the end. Nothing here can stop
a run: a closed or broken stderr is ignored.

What it deliberately does not do: it keeps no record (see metrics.py) and never reads a value
back from a device on its own; figures are converted when they are shown.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 10.0


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on without a reader. Rich would exit the process: a run outlives its pager."""
        self.quiet = True


# A notebook's stderr is no terminal: it gets the plain lines, which need no widgets installed.
console = _Console(stderr=True, force_jupyter=False)


class Bar(Protocol):
    """What `progress` yields."""

    def advance(self, n: int = 1, /, **shown: Any) -> None:
        """Count `n` more and replace the live figures, e.g. `bar.advance(loss=loss)`."""
        ...


@contextmanager
def progress(
    total: int | None, description: str, *, start: int = 0, every: float = SECONDS_BETWEEN_LINES
) -> Iterator[Bar]:
    """Show bar, count, elapsed time, ETA and a few live figures while the block runs.

    Args:
        total: how many there are; None if nobody knows, and then there is no ETA.
        description: a word or two, shown first.
        start: how many were done before (a resumed run); they do not count for the speed.
        every: least number of seconds between two plain lines where there is no terminal.

    Yields:
        a `Bar`. Bars may be nested; on a terminal the inner ones are drawn below the outer.
    """
    if _on_terminal():
        with _rich_bar(total, description, start) as bar:
            yield bar
        return
    bar = _LineBar(total, description, start, every)
    try:
        yield bar
    except BaseException:
        bar.end("stopped")
        raise
    bar.end("done")


def track(iterable: Iterable[T], description: str, *, total: int | None = None) -> Iterator[T]:
    """Yield the items of `iterable` and show how far the consumer has come.

    `total` is its length where it has one; pass it for a generator whose length is known.
    """
    if total is None:
        with suppress(TypeError):
            total = len(iterable)  # pyright: ignore[reportArgumentType]
    with progress(total, description) as bar:
        for item in iterable:
            yield item
            bar.advance()


def table(title: str, headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table on stderr: numbers right-aligned, a column's digits alike, text as it is."""
    rows = [list(row) for row in rows]
    drawn = Table(title=escape(title), title_justify="left", header_style="bold")
    columns = [[row[i] for row in rows] for i in range(len(headers))]
    for header, column in zip(headers, columns, strict=True):
        numeric = is_numeric(column)
        drawn.add_column(escape(str(header)), justify="right" if numeric else "left")
    for cells in zip(*(format_column(column) for column in columns), strict=True):
        drawn.add_row(*(escape(cell) for cell in cells))
    with suppress(OSError, ValueError):
        console.print(drawn)


def is_numeric(column: Sequence[Any]) -> bool:
    """Say whether a column holds numbers only (None allowed), and at least one of them."""
    present = [value for value in column if value is not None]
    return bool(present) and all(_number(value) is not None for value in present)


def format_column(column: Sequence[Any]) -> list[str]:
    """Format the cells of one column; floats share their number of decimals.

    The largest float of a column gets four significant digits, so that .9, .875 and 1.0 read
    0.900, 0.875 and 1.000. Integers, text and columns that span many magnitudes go one by one.
    """
    floats = [x for x in map(_number, column) if isinstance(x, float) and math.isfinite(x)]
    sizes = [abs(x) for x in floats if x != 0.0]
    if not sizes or max(sizes) >= 1e5 or max(sizes) < 1e-2 or max(sizes) / min(sizes) > 1e3:
        return [format_number(value) for value in column]
    decimals = max(0, 3 - max(0, math.floor(math.log10(max(sizes)))))
    return [
        f"{x:,.{decimals}f}"
        if isinstance(x := _number(value), float) and math.isfinite(x)
        else format_number(value)
        for value in column
    ]


def format_number(value: Any, *, digits: int = 4) -> str:
    """Format one value on its own: floats with `digits` significant ones, integers with commas."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    number = _number(value)
    if number is None:
        return str(value)
    if isinstance(number, int):
        return f"{number:,}"
    if not math.isfinite(number):
        return str(number)
    if number == 0.0:
        return "0"
    if abs(number) >= 1e7 or abs(number) < 1e-3:
        return f"{number:.3g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(number))))
    return f"{number:,.{decimals}f}"


# ---------------------------------------------------------------------------------------- helpers


def _number(value: Any) -> int | float | None:
    """Give the Python number of a scalar (also NumPy's or an array's), None for anything else."""
    if isinstance(value, bool | str):
        return None
    if isinstance(value, int | float):
        return value
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return _number(value.item())
    return None


def _figures(shown: dict[str, Any]) -> str:
    return "  ".join(f"{name} {format_number(value)}" for name, value in shown.items())


def _on_terminal() -> bool:
    # Not console.is_terminal: CI systems set FORCE_COLOR, and that alone makes rich say yes.
    try:
        return console.file.isatty() and not console.is_dumb_terminal
    except (AttributeError, OSError, ValueError):
        return False


_active: Progress | None = None


@contextmanager
def _rich_bar(total: int | None, description: str, start: int) -> Iterator[Bar]:
    """Draw one task; inside another bar it joins that bar's display (rich wants one at a time)."""
    global _active
    outer = _active
    display = outer if outer is not None else _display()
    task = display.add_task(escape(description), total=total, completed=start, shown="")
    try:
        if outer is None:
            _active = display
            display.start()
        yield _RichBar(display, task)
    finally:
        if outer is None:
            _active = None
            display.stop()
        else:
            display.remove_task(task)


def _display() -> Progress:
    return Progress(
        TextColumn("{task.description}", style="bold"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
        console=console,
        refresh_per_second=4,  # drawing takes a core away from the training
    )


class _RichBar:
    def __init__(self, display: Progress, task: TaskID):
        self._display, self._task = display, task

    def advance(self, n: int = 1, /, **shown: Any) -> None:
        if shown:
            self._display.update(self._task, advance=n, shown=escape(_figures(shown)))
        else:
            self._display.advance(self._task, n)


class _LineBar:
    def __init__(self, total: int | None, description: str, start: int, every: float):
        self._total, self._description = total, description
        self._start = self._count = start
        self._every = every
        self._began = self._printed = time.monotonic()
        self._shown: dict[str, Any] = {}

    def advance(self, n: int = 1, /, **shown: Any) -> None:
        self._count += n
        self._shown = shown or self._shown
        now = time.monotonic()
        if now - self._printed >= self._every:
            self._printed = now
            self._print(f"{_clock(now - self._began)} elapsed{self._eta(now)}")

    def end(self, word: str) -> None:
        self._print(f"{word} in {_clock(time.monotonic() - self._began)}")

    def _eta(self, now: float) -> str:
        done = self._count - self._start
        if self._total is None or done <= 0:
            return ""
        left = max(0, self._total - self._count) * (now - self._began) / done
        return f", {_clock(left)} left"

    def _print(self, timing: str) -> None:
        of = "" if self._total is None else f"/{self._total}"
        figures = f"  {_figures(self._shown)}" if self._shown else ""
        # Plain write: no markup, no wrapping at 80 columns, and no way to fail.
        with suppress(OSError, ValueError):
            console.file.write(f"{self._description}  {self._count}{of}  {timing}{figures}\n")
            console.file.flush()


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
