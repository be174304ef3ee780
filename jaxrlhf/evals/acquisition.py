"""Which pairs to ask people about next: acquisition functions over an ensemble of reward models.

Each member m of an ensemble gives a pair the gap Δ_m = score(a) − score(b) in nats, and so a
probability p_m = σ(Δ_m) that a is better. Where members differ, a label says which are right;
where all are at 1/2 it says nothing about any of them, however uncertain it is.

Takes arrays of numbers and returns numbers; which pairs there are is the caller's to know.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import special


def disagreement(gaps: ArrayLike) -> np.ndarray:
    """Var_m p_m: the variance over members of P(a is better).

    Args: `gaps` [M, N] nats, of M ≥ 2 members on N pairs. Returns: [N], 0 to 1/4.
    Source: Christiano et al. 2017, 2.2.4 (the highest variance across ensemble members).

    >>> disagreement([[3.0, 0.0], [-3.0, 0.0]]).round(3).tolist()
    [0.205, 0.0]
    """
    return special.expit(_gaps(gaps)).var(axis=0)


def information(gaps: ArrayLike) -> np.ndarray:
    """H(mean_m p_m) − mean_m H(p_m): what the label is expected to say about which member is right.

    Args: `gaps` [M, N] nats, of M ≥ 2 members on N pairs. Returns: [N] nats, 0 to log 2.
    Source: the mutual information of label and parameters, BALD (Houlsby et al. 2011, eq. 2).

    >>> information([[3.0, 0.0, 9.0], [-3.0, 0.0, 9.0]]).round(3).tolist()
    [0.502, 0.0, 0.0]
    """
    probability = special.expit(_gaps(gaps))
    gained = _entropy(probability.mean(axis=0)) - _entropy(probability).mean(axis=0)
    return np.maximum(gained, 0.0)  # rounding may leave −1e-17


def random(count: int, *, seed: int) -> np.ndarray:
    """The control: a priority [count] in [0, 1) that knows nothing."""
    return np.random.default_rng(seed).random(count)


def highest(priorities: ArrayLike, count: int) -> np.ndarray:
    """Indices of the `count` highest priorities, highest first; equal ones in their order.

    >>> highest([1.0, 3.0, 2.0, 3.0], 3).tolist()
    [1, 3, 2]
    """
    return np.argsort(-np.asarray(priorities, np.float64), kind="stable")[:count]


def _entropy(probability: np.ndarray) -> np.ndarray:
    """Of a coin, in nats; 0 at 0 and 1."""
    return special.entr(probability) + special.entr(1.0 - probability)


def _gaps(gaps: ArrayLike) -> np.ndarray:
    """Raises: ValueError unless [M, N] with M ≥ 2."""
    gaps = np.asarray(gaps, np.float64)
    if gaps.ndim != 2 or len(gaps) < 2:
        raise ValueError(f"gaps must be [M, N] of at least two members, got shape {gaps.shape}")
    return gaps
