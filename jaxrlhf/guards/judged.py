"""Guards that ask somebody: labellers about single pairs, and held-out prompts about the whole.

The Andon cord is pulled by labels, one pair at a time: a cumulative sum (Page 1954) of the
log-likelihood ratio between "something is wrong" and "all is well",

    S <- max(0, S + log P(verdict | wrong) / P(verdict | well)),        stop at S > limit

which needs few labels where a run goes clearly wrong, and few false alarms where it does not. All
is well means that labels agree *at least* half the time, and "well" in the ratio is that half: late
in training answers are about equally good, or the reward model is older than the policy, and labels
on such pairs are coins. Were "well" .7, a coin would be no evidence either way, the sum a random
walk, and an alarm a matter of time. With .5 the ratio is a martingale in the worst healthy case and
falls in every other, so N labels raise a false alarm with probability at most N exp(-limit) (Ville
1939, once for each label that an excursion may begin at); how much less is in `docs/guards.md`.

Audited are the pairs that the reward is surest of. Which labeller there is, and what it is shown,
is the recipe's.
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from jaxrlhf.guards.base import Guard, Seen
from jaxrlhf.guards.direction import Figures

Answer = tuple[str, str]
"""A prompt and a response to it."""
Compare = Callable[[Answer, Answer], bool]
"""Is the first answer better than the second? Their prompts may differ: each answers its own."""

ANDON, ANDON_AGREED, ANDON_LABELS = "guards/andon", "guards/andon_agreed", "guards/andon_labels"
WIN_RATE, WINS = "guards/win_rate", "guards/win_rate_sum"
HELD_OUT = "guards/heldout_z"
DISAGREEMENT = "guards/disagreement"


class Andon(Guard):
    """Fresh labels on pairs of this batch, against the order in which they were rewarded."""

    figures: ClassVar = (ANDON, ANDON_AGREED, ANDON_LABELS)
    pairs: int = Field(default=8, ge=1, description="labelled an update")
    confirm: int = Field(
        default=24,
        ge=0,
        description="more pairs of the same batch, labelled where the sum has passed the limit: "
        "their labels count too, before anything is said",
    )
    candidates: int = Field(
        default=64,
        ge=1,
        description="pairs that random rows of a batch are made into, highest reward with lowest; "
        "the clearest are labelled",
    )
    limit: float = Field(default=5.0, gt=0, description="of the cumulative sum, in nats")

    def look(self, seen: Seen) -> str | None:
        now, agreed = seen.last(ANDON, 1), seen.last(ANDON_AGREED, 1)
        if not now or now[0] <= self.limit:
            return None
        return (
            f"labellers contradict the reward: the sum is {now[0]:.2f}, the limit {self.limit:g}; "
            f"they agreed with {agreed[0]:.0%} of the last {seen.last(ANDON_LABELS, 1)[0]:g} pairs"
        )


class WinRate(Guard):
    """Fresh labels on held-out prompts: does the policy answer worse than the reference?"""

    figures: ClassVar = (WINS, WIN_RATE)
    pairs: int = Field(default=16, ge=1, description="labelled an evaluation")
    limit: float = Field(default=5.0, gt=0, description="of the cumulative sum, in nats")

    def look(self, seen: Seen) -> str | None:
        now, rate = seen.last(WINS, 1), seen.last(WIN_RATE, 1)
        if not now or now[0] <= self.limit:
            return None
        return (
            f"labellers prefer the reference to the policy: the sum is {now[0]:.2f}, the limit "
            f"{self.limit:g}; the policy won {rate[0]:.0%} of the last {self.pairs} pairs"
        )


class Trend(Guard):
    """The reward's own score on held-out prompts, against the reference's on the same prompts."""

    figures: ClassVar = (HELD_OUT,)
    standard_errors: float = Field(default=3.0, gt=0, description="below the reference")
    evaluations: int = Field(default=2, ge=1, le=60, description="as bad for so many running")

    def look(self, seen: Seen) -> str | None:
        values = seen.last(HELD_OUT, self.evaluations)
        if len(values) < self.evaluations or max(values) >= -self.standard_errors:
            return None
        return (
            f"the held-out score is {-values[-1]:.1f} standard errors below the reference's, more "
            f"than {self.standard_errors:g} for {self.evaluations} evaluations running"
        )


class Disagreement(Guard):
    """Reward models that are not optimised, on what the policy says: do they still agree?

    The standard deviation between them a response, each in units of its own spread over the
    reference's responses; as a multiple of what it is there (2310.02743).
    """

    figures: ClassVar = (DISAGREEMENT,)
    reward_models: tuple[str, ...] = Field(
        default=(), description="folders or hub names; the one that is optimised is added"
    )
    max_ratio: float = Field(default=2.0, gt=1, description="times the reference's disagreement")

    def look(self, seen: Seen) -> str | None:
        now = seen.last(DISAGREEMENT, 1)
        if not now or now[0] <= self.max_ratio:
            return None
        return (
            f"the reward models disagree {now[0]:.2f} times as much about the policy as about the "
            f"reference, {self.max_ratio:g} times is allowed"
        )


def cusum(before: float, well: Sequence[bool], *, right: float, wrong: float) -> float:
    """The sum after more verdicts; `right` and `wrong` are P(a good verdict) in the two cases."""
    for good in well:
        step = math.log(wrong / right) if good else math.log((1 - wrong) / (1 - right))
        before = max(0.0, before + step)
    return before


def andon(
    before: float,
    answers: Callable[[Sequence[int]], Sequence[Answer]],
    delivered: np.ndarray,
    compare: Compare,
    *,
    settings: Andon,
    key: Sequence[int],
) -> Figures:
    """One update's audit: P(agreement) is .5 or more if all is well, .2 if the reward is inverted.

    Where it is clearly inverted, labels agree with it even less; the sum rises below .34. A sum
    above the limit is a suspicion: it is left standing by more labels, or brought down by them.

    Args:
      before: the sum so far.
      answers: row numbers of the batch -> prompts and responses.
      delivered: `[B]` rewards as delivered.
      key: what the random pairs depend on.
    """
    first, second = clearest(delivered, settings=settings, key=key)
    if not len(first):
        return {}

    def verdicts(some: slice) -> list[bool]:
        better, worse = first[some], second[some]
        texts = answers([*better, *worse])
        return [
            compare(a, b) for a, b in zip(texts[: len(better)], texts[len(better) :], strict=True)
        ]

    agreed = verdicts(slice(settings.pairs))
    total = cusum(before, agreed, right=0.5, wrong=0.2)
    if total > settings.limit and len(first) > settings.pairs:
        more = verdicts(slice(settings.pairs, None))
        agreed, total = agreed + more, cusum(total, more, right=0.5, wrong=0.2)
    return {
        ANDON: total,
        ANDON_AGREED: float(np.mean(agreed)),
        ANDON_LABELS: float(len(agreed)),
    }


def clearest(
    delivered: np.ndarray, *, settings: Andon, key: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Rows of the pairs that differ most in reward, the better paid ones first; no row twice.

    Of the drawn rows the highest is paired with the lowest, the second with the second lowest, ...;
    as many as may have to be labelled.
    """
    order = np.random.default_rng(list(key)).permutation(len(delivered))
    half = min(settings.candidates, len(order) // 2)
    drawn = order[: 2 * half]
    ranked = drawn[np.argsort(delivered[drawn], kind="stable")]
    count = min(settings.pairs + settings.confirm, half)
    low, high = ranked[:count], ranked[::-1][:count]
    differ = delivered[high] > delivered[low]
    return high[differ].tolist(), low[differ].tolist()


def win_rate(
    before: float,
    policy: Sequence[Answer],
    reference: Sequence[Answer],
    compare: Compare,
    *,
    settings: WinRate,
    key: Sequence[int],
) -> Figures:
    """One evaluation's comparisons: P(win) is .5 if all is well and .3 if the policy got worse.

    Half, not .7: a policy that has not learned anything yet is no reason to stop. Prompts on which
    both say the same are passed over.
    """
    order = np.random.default_rng(list(key)).permutation(len(policy))
    rows = [i for i in order if policy[i] != reference[i]][: settings.pairs]
    if not rows:
        return {}
    won = [compare(policy[i], reference[i]) for i in rows]
    return {WINS: cusum(before, won, right=0.5, wrong=0.3), WIN_RATE: float(np.mean(won))}


def trend(policy: np.ndarray, reference: np.ndarray) -> Figures:
    """Mean difference of scores `[P]` on the same prompts, in standard errors."""
    gain = np.asarray(policy, np.float64) - reference
    if len(gain) < 2 or gain.std() == 0:
        return {}
    return {HELD_OUT: float(gain.mean() / (gain.std(ddof=1) / math.sqrt(len(gain))))}


def disagreement(policy: np.ndarray, reference: np.ndarray) -> Figures:
    """Scores `[M, P]` of M reward models for the policy's and the reference's responses."""
    centre, spread = reference.mean(1, keepdims=True), reference.std(1, keepdims=True)
    now, start = ((x - centre) / np.maximum(spread, 1e-9) for x in (policy, reference))
    apart = float(start.std(0).mean())
    return {} if apart < 1e-9 else {DISAGREEMENT: float(now.std(0).mean()) / apart}
