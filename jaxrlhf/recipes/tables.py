"""A table as Markdown, its columns of numbers formatted as they are in the terminal."""

from collections.abc import Sequence
from typing import Any

from jaxrlhf.progress import format_column


def markdown(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Header, rule and rows.

    >>> print(markdown(["who", "n"], [["a|b", 1]]))
    | who | n |
    | --- | --- |
    | a\\\\|b | 1 |
    """
    columns = [format_column([row[i] for row in rows]) for i in range(len(headers))]
    lines = [list(headers), ["---"] * len(headers), *zip(*columns, strict=True)]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
