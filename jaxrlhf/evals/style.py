"""How two answers differ on the surface: length, lists, headings, bold words.

As covariates of a rating they take the blame for what judges like about the surface (Chatbot
Arena's style control). A gap is (x_a − x_b)/(x_a + x_b), from −1 to 1, divided by its root mean
square: an effect is then what a usual gap is worth, and answers that are alike have gap 0.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

FEATURES: dict[str, Callable[[str], int]] = {
    "length": len,
    "lists": lambda text: len(re.findall(r"^\s*(?:[-*+]|\d+[.)])\s", text, re.MULTILINE)),
    "headings": lambda text: len(re.findall(r"^#{1,6}\s", text, re.MULTILINE)),
    "bold": lambda text: len(re.findall(r"\*\*[^*\n]+\*\*|__[^_\n]+__", text)),
}
"""Name -> how much of it a text has."""


def gaps(name: str, a: Sequence[str], b: Sequence[str]) -> np.ndarray:
    """[N] gap of a feature of `FEATURES` between the texts `a` and `b`, scaled.

    >>> gaps("length", ["aaa", "a"], ["a", "a"]).round(3).tolist()  # 1/2 and 0, over √(1/8)
    [1.414, 0.0]
    """
    count = FEATURES[name]
    one, other = (np.array([count(text) for text in texts], float) for texts in (a, b))
    return scaled((one - other) / np.maximum(one + other, 1.0))


def scaled(gap: ArrayLike) -> np.ndarray:
    """A gap over its root mean square; 0 stays 0, and the sign stays."""
    gap = np.asarray(gap, np.float64)
    size = np.sqrt(np.mean(np.square(gap)))
    return gap / size if size > 0 else gap
