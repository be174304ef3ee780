"""What every sandbox world offers, and the few helpers that all worlds share.

A world is a small made-up language task whose right answer is a program. It writes its own texts
from a seed, and it can say exactly how good any response is, so that each method of this package
can be checked against the truth on a laptop.

The rule of the house: **models never see `gold`.** A simulated labeller may ask it (`labeller.py`),
and an evaluation may; nothing that trains reads it in any other way.

A new world is one file with one frozen dataclass that has the members of `World`, and one line in
`WORLDS` (`sandbox/__init__.py`). Its fields are `seed` and its settings, each with a default. Rows
are plain dicts with the column names of TRL's data formats. A row may carry further columns, which
only evaluations and the world's own labellers read and no model sees: the hidden `label` of a
weak-to-strong document, the `trigger` of a backdoor prompt, the `topic` of a constitution prompt.
A world may also offer more methods than these; whoever uses them asks for that world by name.

This file deliberately knows no world and reads no file.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

Row = dict[str, Any]
Split = Literal["train", "test"]


class Limits(NamedTuple):
    """The longest strings of a world, in words; a word is a token of the word tokenizer."""

    prompt: int
    """Words of the longest prompt."""
    response: int
    """Words of the longest response; the end-of-sequence token comes on top."""


class World(Protocol):
    """A sandbox world: everything follows from the world's own seed and the `seed` of the call."""

    @property
    def name(self) -> str:
        """The key of this world in `WORLDS`."""
        ...

    @property
    def longest(self) -> Limits:
        """Limits that every text, demonstration and prompt of the world keeps."""
        ...

    def words(self) -> tuple[str, ...]:
        """All words of the world, in a fixed order, for a word tokenizer; no special tokens."""
        ...

    def corpus(self, n: int, *, seed: int) -> list[Row]:
        """`n` documents for pre-training: rows with `text`."""
        ...

    def demonstrations(self, n: int, *, seed: int) -> list[Row]:
        """`n` rows for supervised fine-tuning: `prompt` and `completion`.

        A completion starts with the space that separates it from its prompt: `prompt + completion`
        is a text.
        """
        ...

    def prompts(self, n: int, *, seed: int, split: Split = "train") -> list[Row]:
        """`n` rows with `prompt`; no duplicates as long as the split has `n` different prompts.

        The splits are disjoint, and no test prompt begins a document of `corpus` or a
        demonstration.
        """
        ...

    def gold(self, prompt: str, response: str) -> Mapping[str, float]:
        """How good `response` is, by program: the total under "gold", and its components.

        Takes any strings at all, also empty ones and unknown words; special tokens are not part of
        them.
        """
        ...


def split_of(prompt: str, *, test_share: float) -> Split:
    """The split of a prompt: a hash of its text alone decides, never a seed or a count."""
    return "test" if unit_hash("split", prompt) < test_share else "train"


def unit_hash(*parts: str | int) -> float:
    """A number in [0, 1), uniform over inputs, that depends on `parts` only (BLAKE2b)."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = str(part).encode("utf-8", errors="surrogatepass")
        digest.update(f"{len(encoded)}:".encode())  # so that ("ab", "c") differs from ("a", "bc")
        digest.update(encoded)
    return (int.from_bytes(digest.digest(), "big") >> 11) / 2**53


def generator(*parts: str | int) -> np.random.Generator:
    """A random generator for one purpose: equal `parts`, equal streams; others are unrelated."""
    return np.random.default_rng(int(unit_hash(*parts) * 2**53))
