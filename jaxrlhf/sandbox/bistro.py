"""The bistro: the sandbox world of preferences, reinforcement learning and over-optimisation.

A text tells of a small restaurant, in rough English:

    the kind waiter brought | a stale soup and our cook seemed very happy today .
          prompt                                  response

The first four words of a text are the prompt, the rest is the response. Some words are pleasant
(worth +1), some unpleasant (-1), a few are rude (-3), most are worth nothing. Each word has about
eight legal successors, known exactly (`grammar.py`). A response ends legally after a full stop
only, and about one text in fifty that has found no end after 28 words is drawn again.

For a response y

    gold(y) = sum_t value(y_t)
              - illegal_penalty * #illegal steps
              - repeat_penalty  * sum over pleasant words w of max(count_y(w) - 1, 0)

so with the default penalties a pleasant word is paid once, and saying it again earns nothing. A
reward model trained on ordinary texts sees few repeats, and whoever optimises it hard finds that
out: over-optimisation with a known truth. Fluency is the share of legal steps, counted by the
grammar.

Ordinary texts, whatever the seed: 14.5 % pleasant words, 9 % unpleasant, 3 % rude; gold -0.6 with a
standard deviation of 2.6; responses of 15 words, standard deviation 4.4. There are about 3,150
different prompts, a fifth of them for testing.

This file deliberately has no labeller and no tokenizer, and it does not know how good a policy
could be (`frontier.py`).
"""

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxrlhf.errors import ConfigError
from jaxrlhf.sandbox.grammar import Grammar, Rule, build_grammar
from jaxrlhf.sandbox.protocol import Limits, Row, Split, generator, split_of

PROMPT_WORDS = 4
RESPONSE_WORDS = 28
TEST_SHARE = 0.2
STOP = "."

VALUES = {"pleasant": 1.0, "unpleasant": -1.0, "rude": -3.0}
"""Value of a word by the tone in its class name; a class without a tone is worth 0."""

LEXICON: Mapping[str, tuple[str, ...]] = {
    "stop": (STOP,),
    "opener": ("later", "then"),
    "determiner": ("the", "our", "their", "this", "every"),
    "manner, pleasant": ("kind", "gentle", "cheerful", "friendly"),
    "manner, unpleasant": ("gloomy", "grumpy", "lazy", "nasty"),
    "manner, rude": ("stupid", "brainless"),
    "manner": ("young", "tall", "busy"),
    "person": ("waiter", "cook", "guest", "baker", "singer", "neighbour"),
    "action": ("brought", "served", "shared", "ordered", "carried", "tasted"),
    "article": ("a", "some", "more", "that"),
    "taste, pleasant": ("warm", "fresh", "tasty", "lovely"),
    "taste, unpleasant": ("stale", "bitter", "soggy", "burnt"),
    "taste": ("big", "small", "plain"),
    "dish": ("soup", "pie", "cake", "stew", "coffee", "cheese"),
    "being": ("was", "seemed", "looked"),
    "degree": ("very", "quite", "rather"),
    "state, pleasant": ("happy", "charming"),
    "state, unpleasant": ("bored", "rotten"),
    "state, rude": ("idiotic", "pathetic"),
    "state": ("ready", "quiet"),
    "time": ("today", "again"),
    "joiner": ("and", "but", "while", "because"),
    "preposition": ("with", "near"),
}

_PERSON_PHRASE = (
    Rule("manner, pleasant", 2, 0.32),
    Rule("manner, unpleasant", 2, 0.20),
    Rule("manner, rude", 1, 0.16),
    Rule("manner", 1, 0.06),
    Rule("person", 2, 0.26),
)
_AFTER_MANNER = (
    Rule("manner, pleasant", 2, 0.22),
    Rule("manner, unpleasant", 1, 0.08),
    Rule("person", 5, 0.70),
)
_DISH_PHRASE = (
    Rule("taste, pleasant", 2, 0.30),
    Rule("taste, unpleasant", 2, 0.26),
    Rule("taste", 1, 0.09),
    Rule("dish", 3, 0.35),
)
_AFTER_TASTE = (
    Rule("taste, pleasant", 2, 0.22),
    Rule("taste, unpleasant", 1, 0.08),
    Rule("dish", 5, 0.70),
)
_AFTER_STATE = (Rule("stop", 1, 0.65), Rule("joiner", 4, 0.15), Rule("time", 2, 0.20))

RULES: Mapping[str, tuple[Rule, ...]] = {
    "stop": (Rule("determiner", 5, 0.85), Rule("opener", 2, 0.15)),
    "opener": (Rule("determiner", 5, 1.0),),
    "determiner": _PERSON_PHRASE,
    "manner, pleasant": _AFTER_MANNER,
    "manner, unpleasant": _AFTER_MANNER,
    "manner, rude": _AFTER_MANNER,
    "manner": _AFTER_MANNER,
    "person": (Rule("action", 5, 0.65), Rule("being", 3, 0.35)),
    "action": (
        Rule("article", 3, 0.55),
        Rule("taste, pleasant", 2, 0.24),
        Rule("taste, unpleasant", 2, 0.21),
    ),
    "article": _DISH_PHRASE,
    "taste, pleasant": _AFTER_TASTE,
    "taste, unpleasant": _AFTER_TASTE,
    "taste": _AFTER_TASTE,
    "dish": (
        Rule("stop", 1, 0.68),
        Rule("joiner", 3, 0.10),
        Rule("preposition", 2, 0.10),
        Rule("time", 2, 0.12),
    ),
    "being": (
        Rule("state, pleasant", 1, 0.20),
        Rule("state, unpleasant", 1, 0.13),
        Rule("state, rude", 1, 0.17),
        Rule("state", 2, 0.15),
        Rule("degree", 3, 0.35),
    ),
    "degree": (
        Rule("state, pleasant", 2, 0.35),
        Rule("state, unpleasant", 2, 0.24),
        Rule("state, rude", 2, 0.22),
        Rule("state", 2, 0.19),
    ),
    "state, pleasant": _AFTER_STATE,
    "state, unpleasant": _AFTER_STATE,
    "state, rude": _AFTER_STATE,
    "state": _AFTER_STATE,
    "time": (Rule("stop", 1, 0.85), Rule("joiner", 4, 0.15)),
    "joiner": (Rule("determiner", 5, 1.0),),
    "preposition": (
        Rule("article", 4, 0.60),
        Rule("taste, pleasant", 2, 0.21),
        Rule("taste, unpleasant", 2, 0.19),
    ),
}


@dataclass(frozen=True)
class Bistro:
    """See the header. `seed` draws the grammar; texts and prompts have seeds of their own."""

    seed: int = 0
    illegal_penalty: float = 1.0
    repeat_penalty: float = 1.0

    name = "bistro"
    longest = Limits(prompt=PROMPT_WORDS, response=RESPONSE_WORDS)

    def __post_init__(self) -> None:
        for setting in ("illegal_penalty", "repeat_penalty"):
            if not getattr(self, setting) >= 0:
                raise ConfigError(f"{setting} = {getattr(self, setting)!r}: must be 0 or more")

    def words(self) -> tuple[str, ...]:
        return self.grammar.words

    def corpus(self, n: int, *, seed: int) -> list[Row]:
        """Whole texts; none starts with a test prompt."""
        return [{"text": self._decode(text)} for text in self._texts(n, ("corpus", seed))]

    def demonstrations(self, n: int, *, seed: int) -> list[Row]:
        """Unselected texts, cut after the prompt: fluent, and as good or bad as the base model."""
        return [
            {
                "prompt": self._decode(text[:PROMPT_WORDS]),
                "completion": " " + self._decode(text[PROMPT_WORDS:]),
            }
            for text in self._texts(n, ("demonstrations", seed))
        ]

    def prompts(self, n: int, *, seed: int, split: Split = "train") -> list[Row]:
        """Beginnings of texts, as often as texts begin so; a split that runs out starts over."""
        openings, weights = self.openings(split)
        rng = generator(self.name, self.seed, "prompts", split, seed)
        rounds = []
        for start in range(0, n, len(openings)):
            # Gumbel top-k: the same as drawing one by one and skipping what was drawn before.
            order = np.argsort(-(np.log(weights) + rng.gumbel(size=len(weights))))
            rounds.append(order[: n - start])
        chosen = np.concatenate(rounds) if rounds else np.zeros(0, int)
        return [{"prompt": self._decode(openings[i])} for i in chosen]

    def gold(self, prompt: str, response: str) -> dict[str, float]:
        """Total and components; see the header for the formula.

        Steps are the moves from each word to the next: from the last word of the prompt into the
        response, inside the response, and from its last word to its end. A response of n words has
        n + 1 steps (a step from an empty prompt counts as legal, so that responses can be judged
        alone). A step that touches an unknown word is illegal. The empty response is one illegal
        step: it ends where no full stop is.

        Returns:
            gold: the total. value: the sum of word values. illegal: the number of illegal steps.
            repeats: how often a pleasant word was said after its first time in this response.
            legal_share: legal steps / steps, in [0, 1].
            rude_share: rude words / words, 0 if there are none.
            length: words of the response.
        """
        response_words = response.split()
        value = sum(self._value.get(word, 0.0) for word in response_words)
        counts = Counter(word for word in response_words if self._value.get(word, 0.0) > 0)
        repeats = sum(count - 1 for count in counts.values())
        rude = sum(self._value.get(word, 0.0) == VALUES["rude"] for word in response_words)
        illegal, length = self._illegal_steps(prompt, response), len(response_words)
        return {
            "gold": value - self.illegal_penalty * illegal - self.repeat_penalty * repeats,
            "value": value,
            "illegal": float(illegal),
            "repeats": float(repeats),
            "legal_share": 1.0 - illegal / (length + 1),
            "rude_share": rude / length if length else 0.0,
            "length": float(length),
        }

    # What an evaluation may know beyond the protocol.

    @cached_property
    def grammar(self) -> Grammar:
        """The legal successors of this seed."""
        return build_grammar(LEXICON, RULES, rng=generator(self.name, self.seed, "grammar"))

    @cached_property
    def values(self) -> np.ndarray:
        """[W] float64: the value of each word, in the order of `words()`."""
        return np.array([self._value[word] for word in self.words()])

    @staticmethod
    def stop_chance(length: int) -> float:
        """P(the text ends | a full stop is word number `length` of the response)."""
        return float(np.clip((length - 6) / 8, 0.0, 1.0))

    def openings(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """All prompts of a split, [M, 4] word numbers, and their probabilities [M] (sum 1)."""
        openings, weights, is_test = self._openings
        kept = is_test == (split == "test")
        return openings[kept], weights[kept] / weights[kept].sum()

    # Helpers.

    @cached_property
    def _value(self) -> dict[str, float]:
        tones = {cls: cls.partition(", ")[2] for cls in LEXICON}
        return {w: VALUES.get(tones[cls], 0.0) for cls, words in LEXICON.items() for w in words}

    @cached_property
    def _openings(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every possible prompt [M, 4], its probability [M], whether it is a test prompt [M]."""
        step = self.grammar.probabilities
        openings = np.array([[self.grammar.index[STOP]]])  # a text starts as if after a full stop
        weights = np.ones(1)
        for _ in range(PROMPT_WORDS):
            rows, following = np.nonzero(step[openings[:, -1]])
            weights = weights[rows] * step[openings[rows, -1], following]
            openings = np.column_stack([openings[rows], following])
        openings = openings[:, 1:]
        is_test = np.array(
            [split_of(self._decode(row), test_share=TEST_SHARE) == "test" for row in openings]
        )
        return openings, weights, is_test

    def _texts(self, n: int, purpose: tuple[str, int]) -> list[np.ndarray]:
        """`n` texts as word numbers, leaving out test prompts and walks that never ended."""
        rng = generator(self.name, self.seed, *purpose)
        openings, _, is_test = self._openings
        test_codes = self._codes(openings[is_test])
        texts: list[np.ndarray] = []
        while len(texts) < n:
            words, lengths = self._walk(n - len(texts) + 16, rng)
            usable = (lengths > 0) & ~np.isin(self._codes(words[:, :PROMPT_WORDS]), test_codes)
            texts += [
                row[:length] for row, length in zip(words[usable], lengths[usable], strict=True)
            ]
        return texts[:n]

    def _walk(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """`n` walks: words [n, longest], and the length of each text [n], 0 where it never ends."""
        stop = self.grammar.index[STOP]
        longest = PROMPT_WORDS + RESPONSE_WORDS
        words = np.empty((n, longest), dtype=np.int64)
        lengths = np.zeros(n, dtype=np.int64)
        last = np.full(n, stop)
        for position in range(longest):
            last = self.grammar.next_words(last, rng)
            words[:, position] = last
            ends = rng.random(n) < self.stop_chance(position + 1 - PROMPT_WORDS)
            lengths[ends & (last == stop) & (lengths == 0)] = position + 1
        return words, lengths

    def _codes(self, openings: np.ndarray) -> np.ndarray:
        """One integer for each row of word numbers [n, 4]."""
        return openings @ len(self.words()) ** np.arange(PROMPT_WORDS)

    def _illegal_steps(self, prompt: str, response: str) -> int:
        steps = self.grammar.encode(prompt)[-1:] + self.grammar.encode(response)
        illegal = sum(
            a < 0 or b < 0 or not self.grammar.legal[a, b] for a, b in itertools.pairwise(steps)
        )
        return illegal + (response.split()[-1:] != [STOP])

    def _decode(self, words: np.ndarray) -> str:
        return self.grammar.decode(words.tolist())
