"""Linear probes: what can be read off hidden states along one direction, and how well.

    w = (S + lambda * tr(S)/D * I)^-1 (mean of a - mean of b),   S the covariance within the groups

Fisher's discriminant, shrunk a little (Ledoit & Wolf 2004), is the supervised probe; a difference
of means (`directions.between`) is the one that needs no labels of what is sought; random
directions are the control: an AUROC is only as good as what they reach.

Takes arrays, returns numbers; knows no model. Directions are found on one set of rows and are to be
judged on another.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from jaxrlhf.evals.weak_to_strong import auroc

SHRINKAGE = 0.01


def discriminant(a: ArrayLike, b: ArrayLike, *, shrinkage: float = SHRINKAGE) -> np.ndarray:
    """Unit vector `[D]` that tells the rows of `a` `[N, D]` (higher) from those of `b` `[M, D]`.

    Raises:
        ValueError: a group without rows, or hidden states that do not vary.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not len(a) or not len(b):
        raise ValueError(f"a probe needs rows of both kinds, got {len(a)} and {len(b)}")
    within = np.concatenate([a - a.mean(axis=0), b - b.mean(axis=0)])
    covariance = within.T @ within / len(within)
    typical = np.trace(covariance) / len(covariance)
    if typical <= 0:
        raise ValueError("hidden states do not vary: there is nothing to read")
    ridge = shrinkage * typical * np.eye(len(covariance))
    found = np.linalg.solve(covariance + ridge, a.mean(axis=0) - b.mean(axis=0))
    return found / max(float(np.linalg.norm(found)), 1e-30)


def held_out_auroc(states: ArrayLike, positive: ArrayLike, *, fewest: int = 20) -> float | None:
    """AUROC of a discriminant of every other row of `states` `[N, D]`, on the rows between.

    None where a half has less than `fewest` rows of either kind.
    """
    states, positive = np.asarray(states), np.asarray(positive, bool)
    halves = positive[::2], positive[1::2]
    if min(min(half.sum(), (~half).sum()) for half in halves) < fewest:
        return None
    learnt, asked = states[::2], states[1::2]
    direction = discriminant(learnt[halves[0]], learnt[~halves[0]])
    return auroc(asked @ direction, halves[1])


def chance_auroc(
    states: ArrayLike, positive: ArrayLike, *, draws: int, rng: np.random.Generator
) -> float:
    """Mean AUROC of random directions on `states` `[N, D]`, each turned the way that helps it."""
    states = np.asarray(states)
    directions = rng.standard_normal((draws, states.shape[1]))
    found = [auroc(states @ one, positive) or 0.0 for one in directions]
    return float(np.mean([max(one, 1 - one) for one in found]))


def hit_rates(scores: ArrayLike, positive: ArrayLike, alarms: Sequence[float]) -> list[float]:
    """The ROC curve: share of the positive rows found, at most so many false alarms, for each.

    >>> hit_rates([3.0, 2.0, 1.0, 0.0], [True, False, True, False], [0.0, 0.5])
    [0.5, 1.0]
    """
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    above, below = scores[positive], np.sort(scores[~positive])[::-1]
    allowed = [int(np.floor(share * len(below) + 1e-9)) for share in alarms]
    limits = [below[n] if n < len(below) else -np.inf for n in allowed]
    return [float((above > limit).mean()) for limit in limits]
