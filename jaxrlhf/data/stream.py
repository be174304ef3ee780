"""Rows that are written one at a time, for work that must go on where it was killed.

A line a row, each flushed and synced. Opening the file again drops a last line that was torn in the
middle, and says which rows are there. Such a file is one to work with; what others are to read is
written from it at one go (`preferences.write_rows`).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from jaxrlhf.data.preferences import json_line
from jaxrlhf.data.rows import shorten
from jaxrlhf.errors import DataError


class RowStream:
    """The rows of `path`, numbered by their field `row`; a context manager.

    Raises:
      DataError: a line in the middle that is no row, or a row that stands twice.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        _drop_torn_line(self.path)
        self._rows = _read(self.path)
        self._file = self.path.open("ab")

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the rows that are there."""
        return frozenset(self._rows)

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in order of their numbers."""
        return [self._rows[number] for number in sorted(self._rows)]

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row; when this returns, it is on disk."""
        number = row["row"]
        if number in self._rows:
            raise DataError(f"{self.path}: row {number} is there already")
        line = json_line(row, where=f"{self.path}: row {number}")
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._rows[number] = json.loads(line)  # what a reader of the file would get

    def remove(self) -> None:
        """Delete the file: its rows stand elsewhere."""
        self._file.close()
        self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _drop_torn_line(path: Path) -> None:
    """Cut a file after its last line end."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _read(path: Path) -> dict[int, dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    if not path.is_file():
        return rows
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                key = row["row"]
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{path}:{number}: not a row of this run: {shorten(line)}"
                ) from None
            if key in rows:
                raise DataError(f"{path}:{number}: row {key} stands twice")
            rows[key] = row
    return rows
