"""The caravan: the sandbox world of weak-to-strong generalisation.

A text lists what was seen from a caravan, one thing after another:

    well goat lantern fig tent drum camel rope salt ...

There are two roads, and the road is the text's hidden label. On each road a thing is followed by
one of three others, by three permutations of all things: so every thing is equally frequent on both
roads, and the order alone tells them apart. Yet three times in ten the next thing is a stray one,
drawn with chances proportional to exp(± tilt · g), g normal, that differ between the roads.

So there are two ways to know the road. Who counts words sees the strays alone, and is right about
seven times in ten: the weak supervisor. Who reads the order is nearly always right; a language
model learns it from texts without labels, and what it lacks is only what the label means: the
strong student. The probabilities are known, and with them the best that any reader could do.

This file deliberately has no reader, and draws no label but the road itself.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxrlhf.errors import ConfigError
from jaxrlhf.sandbox.protocol import Limits, Row, Split, generator, split_of

PROMPT_WORDS = 4
TEXT_WORDS = 24
SUCCESSORS = 3
TEST_SHARE = 0.2
THINGS = (
    *("acacia", "bell", "camel", "drum", "ember", "fig", "goat", "harp"),
    *("inkwell", "jar", "kettle", "lantern", "mule", "nomad", "oasis", "palm"),
    *("quilt", "rope", "salt", "tent", "urn", "vine", "well", "yurt"),
    *("anvil", "basket", "dune", "falcon", "gate", "melon", "spice", "tower"),
)


@dataclass(frozen=True)
class Caravan:
    """See the header. `seed` draws the roads; texts have seeds of their own."""

    seed: int = 0
    stray: float = 0.3
    tilt: float = 0.4

    name = "caravan"
    longest = Limits(prompt=PROMPT_WORDS, response=TEXT_WORDS - PROMPT_WORDS)

    def __post_init__(self) -> None:
        if not 0 <= self.stray <= 1:
            raise ConfigError(f"stray = {self.stray!r}: must lie between 0 and 1")
        if not (self.tilt >= 0 and math.isfinite(self.tilt)):
            raise ConfigError(f"tilt = {self.tilt!r}: must be 0 or more")

    def words(self) -> tuple[str, ...]:
        return THINGS

    def corpus(self, n: int, *, seed: int) -> list[Row]:
        """Whole texts of either road, without labels; none starts with a test prompt."""
        return [{"text": text} for text, _ in self._texts(n, ("corpus", seed), "train")]

    def documents(self, n: int, *, seed: int, split: Split = "train") -> list[Row]:
        """Texts with their road: rows with `text` and `label`, 0 or 1. The splits are disjoint."""
        made = self._texts(n, ("documents", split, seed), split)
        return [{"text": text, "label": road} for text, road in made]

    def demonstrations(self, n: int, *, seed: int) -> list[Row]:
        """Texts cut after the prompt."""
        made = self._texts(n, ("demonstrations", seed), "train")
        return [
            {"prompt": _first(text), "completion": text[len(_first(text)) :]} for text, _ in made
        ]

    def prompts(self, n: int, *, seed: int, split: Split = "train") -> list[Row]:
        """Beginnings of texts, no two alike (there are about a million)."""
        found: dict[str, None] = {}
        batch = 0
        while len(found) < n:
            made = self._texts(n, ("prompts", split, seed, batch), split)
            found |= dict.fromkeys(_first(text) for text, _ in made)
            batch += 1
        return [{"prompt": prompt} for prompt in list(found)[:n]]

    def gold(self, prompt: str, response: str) -> dict[str, float]:
        """How clearly the response keeps to one road.

        Returns:
            gold: |log-odds of road 1| of prompt and response together, in nats a word.
            log_odds: log-odds of road 1, in nats; 0 where no word is known.
            length: words of the response.
        """
        log_odds = self.log_odds(f"{prompt} {response}")
        count = max(1, len(f"{prompt} {response}".split()))
        return {
            "gold": abs(log_odds) / count,
            "log_odds": log_odds,
            "length": float(len(response.split())),
        }

    # What an evaluation may know beyond the protocol.

    def log_odds(self, text: str) -> float:
        """log P(text | road 1) / P(text | road 0): the sign is the best possible guess.

        Steps from or to an unknown word say nothing.
        """
        numbers = [self._number.get(word, -1) for word in text.split()]
        steps = itertools.pairwise(numbers)
        return float(sum(self._step_odds[a, b] for a, b in steps if a >= 0 and b >= 0))

    @cached_property
    def probabilities(self) -> np.ndarray:
        """[2, W, W] float64: probabilities[road, a, b] = P(next is b | now is a)."""
        count = len(THINGS)
        table = np.zeros((2, count, count))
        for road in range(2):
            for column in self._successors[road].T:
                table[road, np.arange(count), column] += (1 - self.stray) / SUCCESSORS
            table[road] += self.stray * self._strays[road]
        return table

    # Helpers.

    @cached_property
    def _number(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(THINGS)}

    @cached_property
    def _step_odds(self) -> np.ndarray:
        with np.errstate(divide="ignore"):  # without strays a step may be impossible on a road
            logs = np.log(self.probabilities)
        difference = np.zeros(logs.shape[1:])
        possible = self.probabilities.any(axis=0)
        difference[possible] = logs[1][possible] - logs[0][possible]
        return difference

    @cached_property
    def _successors(self) -> np.ndarray:
        """[2, W, 3] word numbers; three permutations a road."""
        rng = generator(self.name, self.seed, "roads")
        columns = [[rng.permutation(len(THINGS)) for _ in range(SUCCESSORS)] for _ in range(2)]
        return np.stack([np.stack(road, axis=1) for road in columns])

    @cached_property
    def _strays(self) -> np.ndarray:
        """[2, W] probabilities of a stray thing on each road."""
        rng = generator(self.name, self.seed, "strays")
        weights = rng.normal(size=len(THINGS))
        strays = np.exp(self.tilt * np.stack([-weights, weights]))
        return strays / strays.sum(axis=1, keepdims=True)

    def _texts(self, n: int, purpose: tuple[str | int, ...], split: Split) -> list[tuple[str, int]]:
        """`n` texts of a split and their roads."""
        rng = generator(self.name, self.seed, *purpose)
        texts: list[tuple[str, int]] = []
        while len(texts) < n:
            numbers, roads = self._walk(n, rng)
            for row, road in zip(numbers, roads, strict=True):
                text = " ".join(THINGS[number] for number in row)
                if split_of(_first(text), test_share=TEST_SHARE) == split:
                    texts.append((text, int(road)))
        return texts[:n]

    def _walk(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """`n` walks: word numbers [n, 24], and roads [n]."""
        roads = rng.integers(0, 2, n)
        numbers = np.empty((n, TEXT_WORDS), dtype=np.int64)
        numbers[:, 0] = rng.integers(0, len(THINGS), n)
        cumulative = self.probabilities.cumsum(axis=2)
        cumulative /= cumulative[:, :, -1:]
        for position in range(1, TEXT_WORDS):
            reach = cumulative[roads, numbers[:, position - 1]]
            numbers[:, position] = (reach <= rng.random(n)[:, None]).sum(axis=1)
        return numbers, roads


def _first(text: str) -> str:
    return " ".join(text.split()[:PROMPT_WORDS])
