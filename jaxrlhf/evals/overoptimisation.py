"""How gold reward falls while the learned reward still rises: estimates and fits over sqrt(KL).

Gao, Schulman and Hilton 2022 (2210.10760) fit, with d = sqrt(KL(policy || first policy)) and gold
counted from the first policy,

    best-of-n    R(d) = d (alpha - beta d)         peak at d = alpha / (2 beta)
    RL           R(d) = d (alpha - beta ln d)      peak at d = exp(alpha / beta - 1)

Both are linear in alpha and beta, so least squares is exact, and both have two parameters, so that
a difference of AIC compares them fairly. Neither is a law: which one fits better is reported.
Early in training, Bai et al. 2022 (2204.05862, section 4.3) saw the learned reward grow in
proportion to d; `growth` says with which power of KL it does.

Takes arrays, returns numbers; deliberately no models and no files.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from jaxrlhf.evals.statistics import Interval, finite_column

Form = Literal["best-of-n", "rl"]
FORMS: tuple[Form, ...] = ("best-of-n", "rl")


class Fit(NamedTuple):
    """One form fitted to a curve."""

    form: Form
    alpha: Interval
    beta: Interval
    r2: float  # share of the variance of gold that it explains
    aic: float  # Akaike's criterion, lower is better; only differences mean something

    def gold(self, d: ArrayLike) -> np.ndarray:
        """What the form says at d = sqrt(KL)."""
        return _features(np.asarray(d, np.float64), self.form) @ np.array(
            [self.alpha.estimate, self.beta.estimate]
        )

    @property
    def peak(self) -> float | None:
        """d at which gold is highest; None where it never falls (beta is not positive)."""
        alpha, beta = self.alpha.estimate, self.beta.estimate
        if beta <= 0 or (self.form == "best-of-n" and alpha <= 0):
            return None
        return alpha / (2 * beta) if self.form == "best-of-n" else math.exp(alpha / beta - 1)


def best_of_n(scores: ArrayLike, values: ArrayLike, n: int) -> np.ndarray:
    """Mean value of the best-scored of n samples, without bias, from N >= n samples a prompt.

    With the samples of a prompt sorted by score, i = 1 ... N, the best of n random ones is the i-th
    with probability C(i-1, n-1) / C(N, n). Samples of equal score share their probability.

    Args:
      scores: [P, N] by which the best is chosen. values: [P, N], what is averaged.
    Returns:
      [P] one mean a prompt.
    Raises:
      ValueError: shapes that differ, or n outside 1 ... N.

    >>> best_of_n([[3.0, 1.0, 2.0]], [[30.0, 10.0, 20.0]], 2)  # (20 + 30 + 30) / 3
    array([26.66666667])
    """
    scores, values = np.asarray(scores, np.float64), np.asarray(values, np.float64)
    if scores.ndim != 2 or scores.shape != values.shape:
        raise ValueError(f"scores {scores.shape} and values {values.shape}: need the same [P, N]")
    count = scores.shape[1]
    if not 1 <= n <= count:
        raise ValueError(f"best of {n}: there are {count} samples a prompt")
    place = np.arange(1, count + 1, dtype=np.float64)
    weights = np.exp(_log_binomial(place - 1, n - 1) - _log_binomial(np.float64(count), n))
    order = np.argsort(scores, axis=1, kind="stable")
    sorted_scores = np.take_along_axis(scores, order, axis=1)
    sorted_values = np.take_along_axis(values, order, axis=1)
    return np.array(
        [
            _shared(weights, row) @ kept
            for row, kept in zip(sorted_scores, sorted_values, strict=True)
        ]
    )


def best_of_n_kl(n: int) -> float:
    """KL in nats of best-of-n from what is sampled: ln n - (n - 1) / n; a bound where scores tie.

    >>> round(best_of_n_kl(64), 3)
    3.175
    """
    return math.log(n) - (n - 1) / n


def fit(kl: ArrayLike, gold: ArrayLike, form: Form, *, confidence: float = 0.95) -> Fit:
    """Least squares of one form.

    Args:
      kl: [M] nats, of points of a curve; those at which KL is 0 say nothing and are left out.
      gold: [M] gold reward from the first policy's on.
    Raises:
      ValueError: fewer than four points with KL above 0, or numbers that are not finite.
    """
    kl, gold = finite_column(kl, name="kl"), finite_column(gold, name="gold")
    kept = kl > 0
    d, y = np.sqrt(kl[kept]), gold[kept]
    if len(d) < 4:
        raise ValueError(f"{len(d)} points with KL above 0: a fit of two numbers needs four")
    x = _features(d, form)
    found, *_ = np.linalg.lstsq(x, y, rcond=None)
    residual = float(np.sum((y - x @ found) ** 2))
    freedom = len(d) - 2
    variance = residual / freedom * np.linalg.inv(x.T @ x)
    half = special.stdtrit(freedom, (1 + confidence) / 2) * np.sqrt(np.diag(variance))
    alpha, beta = (
        Interval(float(b), float(b - h), float(b + h)) for b, h in zip(found, half, strict=True)
    )
    total = float(np.sum((y - y.mean()) ** 2))
    r2 = 1 - residual / total if total else math.nan
    aic = len(d) * math.log(max(residual / len(d), np.finfo(float).tiny)) + 2 * 3
    return Fit(form, alpha, beta, r2, aic)


class Growth(NamedTuple):
    """How a reward grows from the first policy on."""

    slope: float
    """Of the line through 0, reward a sqrt(nat)."""
    r2: float
    """Share of the variance that this line explains."""
    exponent: float
    """p of reward ~ KL^p: 1/2 where the line is right."""


def growth(kl: ArrayLike, gain: ArrayLike) -> Growth | None:
    """Least squares of the line, and of ln gain on ln KL for the exponent.

    Args:
      kl: [M] nats, of early points of a curve; those at which KL is 0 say nothing and are left out.
      gain: [M] reward from the first policy's on.
    Returns:
      None where fewer than three different KL above 0 have a gain above 0.

    >>> found = growth([0.0, 1.0, 4.0, 9.0], [0.0, 2.0, 4.0, 6.0])  # 2 sqrt(KL)
    >>> round(found.slope, 6), round(found.r2, 6), round(found.exponent, 6)
    (2.0, 1.0, 0.5)
    """
    kl, gain = finite_column(kl, name="kl"), finite_column(gain, name="gain")
    kept = kl > 0
    d, y = np.sqrt(kl[kept]), gain[kept]
    if len(set(d[y > 0])) < 3:
        return None
    slope = float(d @ y / (d @ d))
    r2 = 1 - float(np.sum((y - slope * d) ** 2) / np.sum((y - y.mean()) ** 2))
    log_kl, log_gain = 2 * np.log(d[y > 0]), np.log(y[y > 0])
    return Growth(slope, r2, float(np.polyfit(log_kl, log_gain, 1)[0]))


def _features(d: np.ndarray, form: Form) -> np.ndarray:
    """[M, 2] by which alpha and beta are multiplied."""
    second = d if form == "best-of-n" else np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -d * second], axis=1)


def _log_binomial(n: np.ndarray | np.float64, k: float) -> np.ndarray:
    """ln C(n, k); -inf where k > n."""
    possible = np.asarray(n) >= k
    n = np.where(possible, n, k)
    found = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    return np.where(possible, found, -np.inf)


def _shared(weights: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Weights of sorted samples, those of equal score evened out."""
    _, group = np.unique(scores, return_inverse=True)
    return (np.bincount(group, weights=weights) / np.bincount(group))[group]
