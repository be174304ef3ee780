"""Word grammars: for each word, the few words that may follow it, and how often they do.

A grammar is written as a table of parts of speech (`Rule`) and drawn once from a random generator:
each word gets its own legal successors out of the classes that may follow its class, with its own
Dirichlet weights. What is legal is therefore known exactly, and fluency is a count, not a model's
opinion.

This file deliberately knows no particular words, no values and no prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

CONCENTRATION = 2.0
"""Of the Dirichlet weights inside a rule: uneven enough to learn, no successor too rare to see."""


class Rule(NamedTuple):
    """One group of successors: `count` words of class `target` share the probability `mass`."""

    target: str
    count: int
    mass: float


@dataclass(frozen=True, eq=False)
class Grammar:
    """Legal successors and their weights; words are numbered in the order of `words`."""

    words: tuple[str, ...]
    index: Mapping[str, int]
    probabilities: np.ndarray
    """[W, W] float64, rows sum to 1: probabilities[a, b] = P(next word is b | word is a)."""
    legal: np.ndarray
    """[W, W] bool: where `probabilities` is positive."""

    def next_words(self, words: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw one successor for each of `words` [n] (numbers): [n]."""
        cumulative = self.probabilities.cumsum(axis=1)
        cumulative /= cumulative[:, -1:]  # exactly 1 from the last legal word on
        draws = rng.random(len(words))
        return (cumulative[words] <= draws[:, None]).sum(axis=1)

    def encode(self, text: str) -> list[int]:
        """Word numbers of a text split at white space; an unknown word is -1."""
        return [self.index.get(word, -1) for word in text.split()]

    def decode(self, words: Sequence[int]) -> str:
        """The text of word numbers, one space between words."""
        return " ".join(self.words[word] for word in words)


def build_grammar(
    lexicon: Mapping[str, Sequence[str]],
    rules: Mapping[str, Sequence[Rule]],
    *,
    rng: np.random.Generator,
) -> Grammar:
    """Draw a grammar: `lexicon` maps a class to its words, `rules` a class to what may follow.

    No word may follow itself. Within a rule the words used least so far are taken first, so that
    all words of a class come to be used. Masses of a class are scaled to sum to 1.

    Raises:
        ValueError: a word stands in two classes, a rule names an unknown class or asks for more
            words than the class can give, or no word leads to some word.
    """
    words = tuple(word for members in lexicon.values() for word in members)
    if len(set(words)) != len(words):
        raise ValueError("a word stands twice in the lexicon")
    index = {word: number for number, word in enumerate(words)}
    probabilities = np.zeros((len(words), len(words)))
    uses = np.zeros(len(words), dtype=int)
    for source, members in lexicon.items():
        for word in members:
            for rule in rules[source]:
                if rule.target not in lexicon:
                    raise ValueError(
                        f"a rule of class {source!r} names unknown class {rule.target!r}"
                    )
                candidates = np.array([index[w] for w in lexicon[rule.target] if w != word])
                chosen = _least_used(candidates, uses, count=rule.count, rng=rng)
                weights = rng.dirichlet(np.full(rule.count, CONCENTRATION))
                probabilities[index[word], chosen] = rule.mass * weights
                uses[chosen] += 1
    if (uses == 0).any():
        raise ValueError(f"no word leads to {words[int(uses.argmin())]!r}")
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return Grammar(words, index, probabilities, probabilities > 0)


def _least_used(
    candidates: np.ndarray, uses: np.ndarray, *, count: int, rng: np.random.Generator
) -> np.ndarray:
    """`count` of the candidates: the least used, ties broken at random."""
    if len(candidates) < count:
        raise ValueError(f"a rule asks for {count} words, its class can give {len(candidates)}")
    shuffled = rng.permutation(candidates)
    return shuffled[np.argsort(uses[shuffled], kind="stable")[:count]]
