"""A simulated labeller: compares two responses as people are modelled to, over a known truth.

    P(a preferred over b) = (1 - lapse) * sigmoid((u(a) - u(b)) / temperature) + lapse / 2

the Bradley-Terry model with a share of answers given at random (1706.03741, section 2.2.3, with
lapse 0.1). The utility u is any function of prompt and response: `gold_utility(world)` for an
honest labeller, or that plus whatever bias is to be studied (length, agreement with the asker).

A judgement depends on (seed, prompt, the two responses) and nothing else: not on how many were
asked before, so a crashed run that labels again gets the same labels, and not on which response is
shown first.

This file deliberately does not choose the pairs, and it writes no file.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from jaxrlhf.errors import ConfigError, one_of
from jaxrlhf.sandbox.protocol import Row, World, unit_hash

Utility = Callable[[str, str], float]
"""(prompt, response) -> how much the labeller likes the response; larger is better."""


class Label(NamedTuple):
    """One judgement."""

    a_preferred: bool
    """The drawn answer."""
    probability: float
    """P(a preferred) that it was drawn with: the soft label."""


@dataclass(frozen=True)
class Labeller:
    """Compares responses by `utility`; see the header for the formula.

    Args:
        utility: what the labeller cares about, in utility units.
        temperature: utility units that make one nat of log-odds. 0: the better response always
            wins, and equal ones win with probability 1/2 each.
        lapse: share of answers given at random, in [0, 1].
        seed: different seeds are different labellers: same preferences, independent noise.

    Raises:
        ConfigError: a negative temperature, or a lapse outside [0, 1].
    """

    utility: Utility
    temperature: float = 1.0
    lapse: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ConfigError(f"labeller temperature = {self.temperature}: must be 0 or more")
        if not 0 <= self.lapse <= 1:
            raise ConfigError(f"labeller lapse = {self.lapse}: must lie between 0 and 1")

    def __call__(self, prompt: str, a: str, b: str) -> Label:
        """Judge `a` against `b` as responses to `prompt`.

        Swapping two different responses swaps the answer: probability p becomes 1 - p.

        Raises:
            ValueError: the utility of a response is not finite.
        """
        first, second = sorted((a, b))
        probability = self._probability(prompt, first, second)
        first_preferred = unit_hash("label", self.seed, prompt, first, second) < probability
        if a == first:
            return Label(first_preferred, probability)
        return Label(not first_preferred, 1.0 - probability)

    def preference_row(self, prompt: str, a: str, b: str) -> Row:
        """The judgement as a data row: `prompt`, `chosen`, `rejected` and `probability`.

        The probability is P(chosen preferred). It is below 1/2 where the labeller's noise turned
        the answer round.
        """
        a_preferred, probability = self(prompt, a, b)
        chosen, rejected = (a, b) if a_preferred else (b, a)
        return {
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
            "probability": probability if a_preferred else 1.0 - probability,
        }

    def _probability(self, prompt: str, a: str, b: str) -> float:
        difference = self.utility(prompt, a) - self.utility(prompt, b)
        if not math.isfinite(difference):
            raise ValueError(f"the utility of a response to {prompt!r} is not finite")
        if self.temperature == 0:
            wins = 0.5 + 0.5 * ((difference > 0) - (difference < 0))
        else:
            wins = 0.5 + 0.5 * math.tanh(0.5 * difference / self.temperature)  # = sigmoid, safely
        return (1.0 - self.lapse) * wins + 0.5 * self.lapse


def gold_utility(world: World, component: str = "gold") -> Utility:
    """The honest utility: the total gold of `world`, or one component that it is made of.

    Raises:
        ConfigError: the world's gold has no such component; the message names the nearest one.
    """
    one_of("labeller utility", component, world.gold("", ""))
    return lambda prompt, response: world.gold(prompt, response)[component]


class LabelCounts(NamedTuple):
    """What a set of judgements looks like from outside, for a report."""

    labels: int
    a_preferred: int
    """Far from half of `labels`: the pairs are not in random order."""
    undecided: int
    """Probability exactly 1/2: ties of the utility, or a lapse of 1."""
    against_odds: int
    """The less probable response won: noise, by temperature or lapse."""
    best_accuracy: float
    """Expected accuracy on such labels of a judge that knows the utility: no reward model can beat
    it by more than luck. 0 where there are no labels."""


def count_labels(labels: Iterable[Label]) -> LabelCounts:
    """Count judgements; see `LabelCounts`."""
    labels = list(labels)
    certainty = sum(max(label.probability, 1 - label.probability) for label in labels)
    return LabelCounts(
        labels=len(labels),
        a_preferred=sum(label.a_preferred for label in labels),
        undecided=sum(label.probability == 0.5 for label in labels),
        against_odds=sum(
            (label.probability - 0.5) * (label.a_preferred - 0.5) < 0 for label in labels
        ),
        best_accuracy=certainty / len(labels) if labels else 0.0,
    )
