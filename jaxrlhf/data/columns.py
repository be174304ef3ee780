"""One row of a file under our column names, with getters that check.

Every getter raises `BadRow` with the column as the file calls it and the value, shortened. What
the columns mean together is `formats.py`.
"""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from jaxrlhf.data.dialogue import Message
from jaxrlhf.data.rows import BadRow, shorten
from jaxrlhf.errors import nearest

Content = str | list[Message]
ROLES = ("system", "user", "assistant", "tool")


class Row:
    """One row under our names; every getter raises `BadRow` with column and value."""

    def __init__(self, data: Mapping[str, Any], theirs: Mapping[str, str]):
        self.data, self.theirs = data, theirs

    def get(self, name: str) -> Any:
        return self.data.get(self.called(name))

    def called(self, name: str) -> str:
        """What the file calls the column that we call `name`."""
        return self.theirs.get(name, name)

    def others(self, *names: str) -> dict[str, Any]:
        used = {self.called(name) for name in names}
        return {key: value for key, value in self.data.items() if key not in used}

    def content(self, name: str) -> Content:
        """A string as it is, a list of messages checked, a dialogue string parsed."""
        value = self.get(name)
        if isinstance(value, list):
            return self._messages(name, value)
        return self.string(name)

    def string(self, name: str) -> str:
        value = self.get(name)
        if self.called(name) not in self.data:
            raise BadRow("missing column", repr(self.called(name)))
        if not isinstance(value, str):
            kind = "null" if value is None else type(value).__name__
            detail = f"column {self.called(name)!r} must be text, not {kind}: {shorten(value)}"
            raise BadRow("wrong type", detail)
        _check_unicode(value, f"column {self.called(name)!r}")
        return value

    def text(self, name: str) -> str:
        """A string that is not blank."""
        value = self.string(name)
        if not value.strip():
            raise BadRow("empty text", f"in column {self.called(name)!r}")
        return value

    def _messages(self, name: str, value: list) -> list[Message]:
        if not value:
            raise BadRow("empty text", f"column {self.called(name)!r} has no messages")
        return [self._message(name, i, message) for i, message in enumerate(value)]

    def _message(self, name: str, i: int, message: Any) -> Message:
        where = f"column {self.called(name)!r}, message {i + 1}"
        if not isinstance(message, dict):
            raise BadRow("wrong type", f"{where} must be an object: {shorten(message)}")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise BadRow("wrong type", f"{where}: {key!r} must be text: {shorten(message)}")
        if message["role"] not in ROLES:
            guess = nearest(message["role"], ROLES)
            hint = f"; did you mean {guess!r}?" if guess else f": must be one of {', '.join(ROLES)}"
            raise BadRow("unknown role", f"{where}: {message['role']!r}{hint}")
        _check_unicode(message["content"], where)
        return {"role": message["role"], "content": message["content"]}

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.get(name)
        if value is None or value == "":
            return default
        if isinstance(value, str):  # CSV files hold text only
            with contextlib.suppress(ValueError):
                value = float(value)
        if isinstance(value, str) or not isinstance(value, int | float):
            detail = f"column {self.called(name)!r} must be a number: {shorten(value)}"
            raise BadRow("wrong type", detail)
        if not (math.isfinite(value) and low <= value <= high):
            detail = f"column {self.called(name)!r} must be from {low} to {high}: {value}"
            raise BadRow("value out of range", detail)
        return float(value)


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise BadRow("not valid Unicode", f"half a surrogate pair in {where}: {problem}") from None
