"""How much of a teacher's shortfall its student makes up for, and what it copies instead.

    PGR = (student − weak) / (ceiling − weak)

on the accuracies of weak teacher, of the student that saw only its labels, and of the same model
trained on the truth (Burns et al. 2023, section 3). A ratio with a small denominator is noise, so
it is given only where the gap is above .05 and above 3 of its standard errors; else a note says why
not. Intervals resample the test rows, of all three together.

Takes arrays, returns numbers; deliberately no models, no files.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxrlhf.evals.statistics import Interval, finite_column, gated_ratio, resampled_rows, wilson

SMALL = "gap too small"
UPSIDE_DOWN = "undefined: the teacher is better than the ceiling"


class Recovery(NamedTuple):
    """Performance gap recovered; `value` and `interval` are None where `note` says why."""

    value: float | None
    interval: Interval | None
    note: str
    gap: float
    gap_error: float
    """Ceiling − weak, and its standard error over test rows."""


class Comparison(NamedTuple):
    """A student beside its teacher on the same test rows."""

    accuracy: Interval
    auroc: float | None
    """None with more than two classes."""
    agreement: float
    """Share of rows on which student and teacher say the same."""
    agreement_on_errors: float | None
    """The same where the teacher errs: errors imitated. None where it never errs."""
    accuracy_on_errors: float | None
    """How often the student is right where the teacher errs."""
    log_loss: float


def recovered(
    weak: ArrayLike,
    student: ArrayLike,
    ceiling: ArrayLike,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Recovery:
    """PGR of three `[N]` columns of correctness (0 or 1; halves for ties) on the same test rows.

    Resamples whose gap is not positive count as an infinite ratio of the numerator's sign.

    Raises:
        ValueError: no rows, unequal numbers of them, or numbers that are not finite.
    """
    columns = [
        finite_column(x, name=name)
        for x, name in ((weak, "weak"), (student, "student"), (ceiling, "ceiling"))
    ]
    if len({len(x) for x in columns}) != 1:
        raise ValueError(f"rows differ in number: {[len(x) for x in columns]}")
    low, own, high = columns
    gap = float((high - low).mean())
    error = float((high - low).std() / np.sqrt(len(low)))
    value = gated_ratio(float((own - low).mean()), gap, denominator_error=error)
    if value is None:
        return Recovery(None, None, SMALL if gap >= 0 else UPSIDE_DOWN, gap, error)
    found = resampled_rows(len(low), resamples=resamples, seed=seed)
    means = [np.mean([(own - low)[rows], (high - low)[rows]], axis=2) for rows in found]
    above, below = np.concatenate(means, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(below > 0, above / below, np.copysign(np.inf, above))
    bounds = np.quantile(ratios, [0.025, 0.975], method="inverted_cdf")
    return Recovery(value, Interval(value, float(bounds[0]), float(bounds[1])), "", gap, error)


def compare(student: ArrayLike, teacher: ArrayLike, truth: ArrayLike) -> Comparison:
    """A student's probabilities beside its teacher's and the true ones, each `[N, K]`.

    Raises:
        ValueError: the three differ in shape.
    """
    student, teacher, truth = (np.asarray(x, np.float64) for x in (student, teacher, truth))
    if not student.shape == teacher.shape == truth.shape:
        raise ValueError(f"shapes differ: {student.shape}, {teacher.shape}, {truth.shape}")
    said, taught, right = (x.argmax(axis=1) for x in (student, teacher, truth))
    errs = taught != right
    smallest = np.finfo(np.float64).tiny
    return Comparison(
        accuracy=wilson(float((said == right).sum()), len(right)),
        auroc=auroc(student[:, 1], right) if truth.shape[1] == 2 else None,
        agreement=float((said == taught).mean()),
        agreement_on_errors=float((said == taught)[errs].mean()) if errs.any() else None,
        accuracy_on_errors=float((said == right)[errs].mean()) if errs.any() else None,
        log_loss=float(-(truth * np.log(np.maximum(student, smallest))).sum(axis=1).mean()),
    )


def correct(probs: ArrayLike, truth: ArrayLike) -> np.ndarray:
    """`[N]`: 1.0 where the most probable class of `probs` `[N, K]` is that of `truth`."""
    probs, truth = np.asarray(probs), np.asarray(truth)
    return (probs.argmax(axis=1) == truth.argmax(axis=1)).astype(np.float64)


def auroc(scores: ArrayLike, positive: ArrayLike) -> float | None:
    """P(a positive row scores above a negative one), ties half; None with one kind of row alone.

    By ranks: (Σ ranks of positives − n₊(n₊ + 1)/2) / (n₊·n₋) (Mann & Whitney 1947).
    """
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive).astype(bool)
    above, below = int(positive.sum()), int((~positive).sum())
    if not above or not below:
        return None
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((ranks[positive].sum() - above * (above + 1) / 2) / (above * below))
