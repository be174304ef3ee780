"""Is the right thing rewarded, and does the policy learn it? Guards against an inverted run.

In 2019 one refactor flipped the sign of OpenAI's reward and of its KL penalty; loss, KL and entropy
looked healthy, and the model became fluent and maximally bad (Ziegler et al., 1909.08593, section
4.4). A reward passes five hands until it is in the parameters, and each has a guard of its own:

    reward function -> score -> token rewards -> loss -> optimiser -> parameters
         `Canary`      `Readings`        `SignTest`      `Direction`       and `Signs` of the knobs

The functions compute figures from numpy arrays, the guards judge them.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from pydantic import Field

from jaxrlhf.evals import statistics
from jaxrlhf.guards.base import Guard, Seen

CANARY, CANARY_PAIRS = "guards/canary", "guards/canary_pairs"
PUSH_OF_SCORE, PUSH_OF_KL = "guards/push_of_score", "guards/push_of_kl"
READINGS = "guards/readings"
DIRECTION = "guards/direction_z"
SIGNS = ("objective/kl_coef", "objective/kl_k3", "objective/score_gain")
ROUNDING = -1e-6  # a k3 of 0 may come out this much below it

Figures = dict[str, float]


class Canary(Guard):
    """Fixed pairs whose better answer is known, through the reward that the policy is paid.

    Trips where fewer pairs are in order than `min_right`, beyond doubt (a 99 % interval).
    """

    figures: ClassVar = (CANARY, CANARY_PAIRS)
    files: tuple[str, ...] = Field(
        default=(), description="preference pairs; in the rlhf pipeline its test pairs"
    )
    columns: dict[str, str] = Field(default={}, description="our column name -> the file's")
    pairs: int = Field(default=64, ge=1, description="the first so many of them")
    min_right: float = Field(
        default=0.5, ge=0, le=1, description="share in order; .9 where the order is beyond dispute"
    )

    def look(self, seen: Seen) -> str | None:
        share, pairs = seen.last(CANARY, 1), seen.last(CANARY_PAIRS, 1)
        if not share:
            return None
        high = statistics.wilson(share[0] * pairs[0], pairs[0], confidence=0.99).high
        if high >= self.min_right:
            return None
        return (
            f"{share[0]:.1%} of {pairs[0]:.0f} canary pairs are rewarded in the right order (99 % "
            f"interval up to {high:.1%}), at least {self.min_right:.1%} is asked for"
        )


def canary(chosen: np.ndarray, rejected: np.ndarray) -> Figures:
    """Delivered rewards `[n]` of the better and of the worse answers."""
    right = np.mean((chosen > rejected) + 0.5 * (chosen == rejected))
    return {CANARY: float(right), CANARY_PAIRS: float(len(chosen))}


class SignTest(Guard):
    """A higher score must push tokens up, a higher KL must push them down: the loss's own word."""

    figures: ClassVar = (PUSH_OF_SCORE, PUSH_OF_KL)

    def look(self, seen: Seen) -> str | None:
        score, kl = seen.last(PUSH_OF_SCORE, 1), seen.last(PUSH_OF_KL, 1)
        wrong = []
        if score and score[0] <= 0:
            wrong.append(f"a higher score pushes tokens by {score[0]:+.3g}, and must push them up")
        if kl and kl[0] >= 0:
            wrong.append(f"a higher KL pushes tokens by {kl[0]:+.3g}, and must push them down")
        return "; ".join(wrong) or None


ROWS, TOKENS = 8, 4  # of the batch that the sign test makes up


def sign_test(push: Callable[[dict[str, np.ndarray]], np.ndarray], *, has_kl: bool) -> Figures:
    """What the loss makes of a score and of a KL that half of the rows have more of.

    Args:
      push: `batches -> [K, B, N]`, minus the gradient of the loss in the tokens' log-probs, for K
        batches of rollouts, stacked, with `scores`, `complete`, `log_probs`, `ref_log_probs`,
        `values`, `entropy`, `tokens` and `mask`.
      has_kl: whether KL costs anything.
    """
    rng = np.random.default_rng(0)
    shape, half = (ROWS, TOKENS), np.arange(ROWS) < ROWS // 2
    log_probs = -rng.uniform(1, 2, shape).astype(np.float32)
    batch = {
        "tokens": np.ones((ROWS, TOKENS + 1), np.int32),
        "mask": np.ones((ROWS, TOKENS + 1), bool),
        "log_probs": log_probs,
        "ref_log_probs": log_probs,
        "values": np.zeros(shape, np.float32),
        "entropy": np.ones(shape, np.float32),
        "scores": rng.normal(0, 0.1, ROWS).astype(np.float32),
        "complete": np.ones(ROWS, bool),
    }
    changed = {PUSH_OF_SCORE: {"scores": (batch["scores"] + half).astype(np.float32)}}
    if has_kl:
        further = (log_probs - 0.5 * half[:, None]).astype(np.float32)
        changed[PUSH_OF_KL] = {"ref_log_probs": further}
    batches = [batch, *(batch | more for more in changed.values())]
    before, *after = push({name: np.stack([x[name] for x in batches]) for name in batch})
    rises = [pushed - before for pushed in after]
    moved = [float(rise[half].mean() - rise[~half].mean()) for rise in rises]
    return dict(zip(changed, moved, strict=True))


class Readings(Guard):
    """The score as the reward gave it, against what the token rewards add up to beside the KL."""

    figures: ClassVar = (READINGS,)
    min_correlation: float = Field(
        default=0.99, ge=-1, le=1, description="of the two over the responses of a batch"
    )

    def look(self, seen: Seen) -> str | None:
        now = seen.last(READINGS, 1)
        if now and now[0] < self.min_correlation:
            return (
                f"the scores given and the rewards delivered correlate by {now[0]:.4f}, at least "
                f"{self.min_correlation:g} is asked for"
            )
        return None


def readings(scores: np.ndarray, delivered: np.ndarray) -> Figures:
    """Correlation of raw scores `[B]` and delivered ones; 0 where what varied does so no more."""
    if correlation(scores, scores) is None:
        return {}
    return {READINGS: correlation(scores, delivered) or 0.0}


class Direction(Guard):
    """After the first updates, what scored higher must have become more likely than the rest."""

    figures: ClassVar = (DIRECTION,)
    updates: int = Field(default=5, ge=1, le=60, description="how many of the first are looked at")
    standard_errors: float = Field(
        default=4.0, gt=0, description="below 0, all looked at so far together"
    )

    def look(self, seen: Seen) -> str | None:
        values = seen.last(DIRECTION)
        together = sum(values) / math.sqrt(max(len(values), 1))
        if together >= -self.standard_errors:
            return None
        return (
            f"over {len(values)} updates the responses that scored higher became less likely, by "
            f"{-together:.1f} standard errors; {self.standard_errors:g} are allowed"
        )


def direction(change: np.ndarray, scores: np.ndarray) -> Figures:
    """Correlation of the change of log-probs `[B]` by an update and the scores, in standard errors.

    atanh(r) has a standard error of 1 / sqrt(B - 3) (Fisher 1921).
    """
    found = correlation(change, scores)
    if found is None:
        return {}
    bounded = min(max(found, -0.999999), 0.999999)
    return {DIRECTION: math.atanh(bounded) * math.sqrt(len(scores) - 3)}


class Signs(Guard):
    """The KL coefficient, the mean of k3 and the gain of the score are not negative, ever."""

    figures: ClassVar = SIGNS

    def look(self, seen: Seen) -> str | None:
        now = {name: seen.last(name, 1) for name in SIGNS}
        wrong = [f"{name} is {x[0]:.3g}" for name, x in now.items() if x and x[0] < ROUNDING]
        return f"{' and '.join(wrong)}: it must not be negative" if wrong else None


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's r; None of fewer than 4 pairs, or where one of the two does not vary."""
    if len(a) < 4:
        return None
    a, b = (np.asarray(x, np.float64) - np.mean(x, dtype=np.float64) for x in (a, b))
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size > 1e-12 else None
