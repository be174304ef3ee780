"""Intervals: how far a number can be trusted.

Two sources of luck, two tools. Inside one run, the prompts were drawn: `bootstrap_mean` and
`paired_bootstrap` resample whole prompts (clusters), since several samples of one prompt are not
independent. Between runs, the seed was drawn: `t_interval` over the seeds' means. Report both.
Shares get a Wilson interval, which stays inside [0, 1] and does not collapse at 0 or 1. A ratio is
reported only where its denominator is clearly not zero (`gated_ratio`).

Everything is numpy in, plain floats out. This file deliberately makes no decision and prints
nothing.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special


class Interval(NamedTuple):
    """An estimate and the interval around it."""

    estimate: float
    low: float
    high: float


class PairedComparison(NamedTuple):
    """a - b on the same rows."""

    difference: Interval
    share_higher: float
    """Share of resamples in which the mean of a is above the mean of b (ties count half)."""


def bootstrap_mean(
    values: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of `values` [N] with a percentile bootstrap interval (Efron 1979).

    Args:
        values: one number per row.
        clusters: [N] what each row belongs to, usually its prompt; whole clusters are resampled,
            and the mean stays the mean over rows. None: every row on its own.
        confidence: probability that the interval is to cover the true mean; honest from about 30
            clusters on.
        resamples: bootstrap draws. seed: of those draws.

    Raises:
        ValueError: no values, values that are not finite, fewer than two clusters, or another
            number of clusters than of values.
    """
    values = finite_column(values)
    means = _resampled_means(values, clusters, resamples=resamples, seed=seed)
    return _percentile_interval(float(values.mean()), means, confidence)


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedComparison:
    """Mean of a - b, both [N] on the same rows, resampled together.

    Rows that are hard for both cancel, so the interval is narrower than the two single ones
    suggest. The other arguments are those of `bootstrap_mean`.

    Raises:
        ValueError: as `bootstrap_mean`, or a and b differ in length.
    """
    a, b = finite_column(a, name="a"), finite_column(b, name="b")
    if len(a) != len(b):
        raise ValueError(f"paired values differ in number: {len(a)} and {len(b)}")
    means = _resampled_means(a - b, clusters, resamples=resamples, seed=seed)
    share = float(np.mean(means > 0) + 0.5 * np.mean(means == 0))
    return PairedComparison(_percentile_interval(float((a - b).mean()), means, confidence), share)


def t_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Mean of a few independent `values` [N], such as one per seed, with Student's t interval.

    mean +- t_{N-1} * s / sqrt(N), s with N - 1. One value alone says nothing about its spread: its
    interval is (-inf, inf).

    Raises:
        ValueError: no values, or values that are not finite.
    """
    values = finite_column(values)
    mean, count = float(values.mean()), len(values)
    if count == 1:
        return Interval(mean, -math.inf, math.inf)
    quantile = special.stdtrit(count - 1, (1 + confidence) / 2)
    half = float(quantile * values.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half)


def wilson(successes: float, total: float, *, confidence: float = 0.95) -> Interval:
    """A share with its score interval (Wilson 1927).

    `successes` may be fractional (ties as halves, soft labels): the interval is then too wide
    rather than too narrow, since no number in [0, 1] varies more than a coin with the same mean.

    Raises:
        ValueError: total is not positive, or successes lie outside [0, total].
    """
    if not (total > 0 and 0 <= successes <= total):
        raise ValueError(f"{successes} successes of {total} is not a share")
    share, z2 = successes / total, float(special.ndtri((1 + confidence) / 2)) ** 2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = math.sqrt(z2 * (share * (1 - share) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def gated_ratio(
    numerator: float,
    denominator: float,
    *,
    denominator_error: float,
    smallest: float = 0.05,
    errors: float = 3.0,
) -> float | None:
    """numerator / denominator, or None ("gap too small") where the ratio would be noise.

    The denominator must exceed both `smallest` and `errors` of its own standard errors.
    """
    if denominator > smallest and denominator > errors * denominator_error:
        return numerator / denominator
    return None


def finite_column(values: ArrayLike, *, name: str = "values") -> np.ndarray:
    """`values` as a float64 array [N].

    Raises:
        ValueError: not a list of at least one number, or a number that is not finite; the message
            says `name`.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name} must be a list of at least one number, got shape {array.shape}")
    bad = np.count_nonzero(~np.isfinite(array))
    if bad:
        raise ValueError(f"{name}: {bad} of {len(array)} numbers are not finite")
    return array


def format_interval(interval: Interval, *, digits: int = 2) -> str:
    """The interval as people read it.

    >>> format_interval(Interval(1.4142, 1.2, 1.6))
    '1.41 [1.20, 1.60]'
    >>> format_interval(Interval(1.4142, float("-inf"), float("inf")))
    '1.41 [no interval]'
    """
    estimate, low, high = (f"{number:.{digits}f}" for number in interval)
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return f"{estimate} [no interval]"
    return f"{estimate} [{low}, {high}]"


def resampled_rows(rows: int, *, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """`[some, rows]` indices drawn with replacement, `resamples` lines of them in all."""
    rng = np.random.default_rng(seed)
    at_once = max(1, 1_000_000 // rows)  # a million draws at a time keeps memory small
    for start in range(0, resamples, at_once):
        yield rng.integers(rows, size=(min(at_once, resamples - start), rows))


def _resampled_means(
    values: np.ndarray, clusters: ArrayLike | None, *, resamples: int, seed: int
) -> np.ndarray:
    """[resamples] means over rows, each from as many clusters as there are, drawn with replacement.

    Raises:
        ValueError: fewer than two clusters, from which no spread can be learned.
    """
    if clusters is None:
        sums, sizes = values, np.ones(len(values))
    else:
        clusters = np.asarray(clusters)
        if clusters.shape != values.shape:
            raise ValueError(f"{len(values)} values but clusters of shape {clusters.shape}")
        _, member_of = np.unique(clusters, return_inverse=True)
        sums, sizes = np.bincount(member_of, weights=values), np.bincount(member_of)
    if len(sums) < 2:
        raise ValueError("a bootstrap needs at least two clusters (prompts) to resample")
    found = resampled_rows(len(sums), resamples=resamples, seed=seed)
    return np.concatenate([sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1) for drawn in found])


def _percentile_interval(estimate: float, means: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high))
