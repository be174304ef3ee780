"""Is a reward model right, and does it know how right it is? Answers from scores of judged pairs.

A reward model's probability for a pair is q = sigmoid(margin), margin = score(chosen) -
score(rejected). In a file of pairs the first response is always the chosen one, so plain
calibration of q against "chosen won" would compare a number with the constant 1. Everything about
confidence here is therefore *folded*: the model's pick is the response with the higher score, its
confidence is sigmoid(|margin|) in [1/2, 1], and it was correct or not. Folded numbers do not depend
on which response stands first.

A label is P(chosen preferred): 1 for an ordinary pair, anything in [0, 1] for a soft one, which
counts with its expectation. A margin of exactly 0 counts as half correct.

Takes arrays, returns numbers; deliberately no models, no files, no plots.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from jaxrlhf.evals.statistics import Interval, bootstrap_mean, finite_column, wilson

Bins = Literal["equal_mass", "equal_width"]


class Reliability(NamedTuple):
    """A reliability diagram: one entry per bin that holds a pair, in order of confidence."""

    confidence: np.ndarray
    """Mean confidence of the bin, in [1/2, 1]: the x of the plot."""
    accuracy: np.ndarray
    """Share of correct picks in the bin: the y; below the diagonal is over-confident."""
    low: np.ndarray
    high: np.ndarray
    """95 % Wilson interval of the accuracy."""
    pairs: np.ndarray
    """Number of pairs in the bin."""


class Threshold(NamedTuple):
    """Accuracy on the pairs at or above a threshold."""

    threshold: float
    accuracy: float | None
    """None where there is no such pair."""
    pairs: int


class Histogram(NamedTuple):
    counts: np.ndarray
    edges: np.ndarray


class PairReport(NamedTuple):
    """What `evaluate_pairs` measures."""

    pairs: int
    accuracy: Interval
    log_loss: float
    brier: float
    ece: float
    reliability: Reliability
    by_margin: list[Threshold]
    """Pairs on which the model is sure: |margin| at least each threshold. Accuracy should rise."""
    by_score: list[Threshold]
    """Pairs of two good responses: both scores at least each threshold (a quantile of all scores).
    Falls for a model that cannot rank the best (2204.05862, figure 25)."""
    margins: Histogram

    def scalars(self) -> dict[str, float]:
        """The numbers among it, for a metrics file."""
        return {
            "pairs": float(self.pairs),
            "accuracy": self.accuracy.estimate,
            "accuracy_low": self.accuracy.low,
            "accuracy_high": self.accuracy.high,
            "log_loss": self.log_loss,
            "brier": self.brier,
            "ece": self.ece,
        }


def evaluate_pairs(
    chosen_scores: ArrayLike,
    rejected_scores: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    bins: int = 10,
    bin_by: Bins = "equal_mass",
    margin_thresholds: Sequence[float] = (0.0, 0.5, 1.0, 2.0, 3.0),
    score_quantiles: Sequence[float] = (0.0, 0.25, 0.5, 0.75),
    histogram_bins: int = 30,
) -> PairReport:
    """Measure a reward model on judged pairs.

    Args:
        chosen_scores, rejected_scores: [N] scores of the two responses of each pair.
        labels: [N] P(chosen preferred), 1 where None. Pass gold preferences here to measure against
            the truth.
        clusters: [N] prompts, where prompts repeat: the accuracy's interval is then a bootstrap
            over prompts; otherwise it is Wilson's.
        bins, bin_by: of the reliability table and the ECE.

    Raises:
        ValueError: no pairs, unequal lengths, scores that are not finite, labels outside [0, 1].
    """
    chosen = finite_column(chosen_scores, name="chosen_scores")
    rejected = finite_column(rejected_scores, name="rejected_scores")
    if chosen.shape != rejected.shape:
        raise ValueError(f"{len(chosen)} chosen scores but {len(rejected)} rejected scores")
    margins, both = chosen - rejected, np.minimum(chosen, rejected)
    correct = correctness(margins, labels=labels)
    table = reliability(margins, labels=labels, bins=bins, bin_by=bin_by)
    scores = np.concatenate([chosen, rejected])
    return PairReport(
        pairs=len(margins),
        accuracy=(
            wilson(float(correct.sum()), len(correct))
            if clusters is None
            else bootstrap_mean(correct, clusters=clusters)
        ),
        log_loss=log_loss(margins, labels=labels),
        brier=brier(margins, labels=labels),
        ece=_gap(table),
        reliability=table,
        by_margin=_above(correct, np.abs(margins), margin_thresholds),
        by_score=_above(correct, both, [float(np.quantile(scores, q)) for q in score_quantiles]),
        margins=Histogram(*np.histogram(margins, bins=histogram_bins)),
    )


def correctness(margins: ArrayLike, *, labels: ArrayLike | None = None) -> np.ndarray:
    """[N]: the probability that the model's pick is the preferred response; 1/2 at margin 0."""
    margins, labels = _pairs(margins, labels)
    return np.where(margins > 0, labels, np.where(margins < 0, 1 - labels, 0.5))


def log_loss(margins: ArrayLike, *, labels: ArrayLike | None = None) -> float:
    """mean of -p log sigmoid(m) - (1 - p) log sigmoid(-m), in nats; log 2 = knows nothing."""
    margins, labels = _pairs(margins, labels)
    return float(
        np.mean(labels * np.logaddexp(0, -margins) + (1 - labels) * np.logaddexp(0, margins))
    )


def brier(margins: ArrayLike, *, labels: ArrayLike | None = None) -> float:
    """mean of p (1 - q)^2 + (1 - p) q^2, q = sigmoid(m) (Brier 1950); 1/4 = knows nothing."""
    margins, labels = _pairs(margins, labels)
    q = special.expit(margins)
    return float(np.mean(labels * (1 - q) ** 2 + (1 - labels) * q**2))


def expected_calibration_error(
    margins: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    bins: int = 10,
    bin_by: Bins = "equal_mass",
) -> float:
    """ECE = sum over bins of pairs / N * |accuracy - mean confidence| (1706.04599, eq. 3), folded.

    With n pairs a bin, luck alone gives about 0.4 / sqrt(n) to a perfectly calibrated model: few
    pairs or many bins look worse than they are.
    """
    return _gap(reliability(margins, labels=labels, bins=bins, bin_by=bin_by))


def reliability(
    margins: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    bins: int = 10,
    bin_by: Bins = "equal_mass",
) -> Reliability:
    """The reliability table of sigmoid(|margin|); see the header for what is folded.

    "equal_mass" cuts at quantiles of the confidence, so each bin holds about N / bins pairs (equal
    confidences stay together); "equal_width" cuts [1/2, 1] evenly. Empty bins are left out.
    """
    margins, labels = _pairs(margins, labels)
    correct = correctness(margins, labels=labels)
    confidence = special.expit(np.abs(margins))
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    edges = np.quantile(confidence, inner) if bin_by == "equal_mass" else 0.5 + 0.5 * inner
    bin_of = np.searchsorted(edges, confidence, side="right")
    _, bin_of = np.unique(bin_of, return_inverse=True)  # numbers the bins that hold a pair
    pairs = np.bincount(bin_of)
    correct_pairs = np.bincount(bin_of, weights=correct)
    shares = [wilson(c, n) for c, n in zip(correct_pairs.tolist(), pairs.tolist(), strict=True)]
    return Reliability(
        confidence=np.bincount(bin_of, weights=confidence) / pairs,
        accuracy=correct_pairs / pairs,
        low=np.array([share.low for share in shares]),
        high=np.array([share.high for share in shares]),
        pairs=pairs,
    )


def _gap(table: Reliability) -> float:
    gaps = np.abs(table.accuracy - table.confidence)
    return float((table.pairs * gaps).sum() / table.pairs.sum())


def _above(correct: np.ndarray, key: np.ndarray, thresholds: Sequence[float]) -> list[Threshold]:
    kept = [(threshold, correct[key >= threshold]) for threshold in thresholds]
    return [Threshold(t, float(c.mean()) if len(c) else None, len(c)) for t, c in kept]


def _pairs(margins: ArrayLike, labels: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    margins = finite_column(margins, name="margins")
    labels = np.ones_like(margins) if labels is None else finite_column(labels, name="labels")
    if labels.shape != margins.shape:
        raise ValueError(f"{len(margins)} pairs but {len(labels)} labels")
    if ((labels < 0) | (labels > 1)).any():
        raise ValueError("labels are P(chosen preferred): they must lie in [0, 1]")
    return margins, labels
