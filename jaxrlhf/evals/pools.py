"""Ratings of the answers to one prompt, for many prompts at once.

Answers to a prompt are a small tournament. A few comparisons an answer rate it badly, which is why
a prior is needed (precision 1/nats² around the prompt's mean; 1 if answers differ by a nat or so)
and why every rating comes with its error: 400 answers whose utilities have standard deviation 1
correlate with their ratings by about .6 at four comparisons each, .9 at thirty.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrlhf.evals.tournament import ROWS_AT_ONCE
from jaxrlhf.losses import ratings
from jaxrlhf.losses.ratings import Games


class Pool(NamedTuple):
    """M comparisons of the K answers to a prompt."""

    answers: int
    first: Sequence[int]
    """[M] an answer, 0 to K − 1."""
    second: Sequence[int]
    """[M] another."""
    outcomes: Sequence[float]
    """[M] 1 the first is better, 0 the second, 1/2 neither."""


class PoolRatings(NamedTuple):
    """What comparisons say of the answers."""

    ratings: np.ndarray
    """[K] nats, mean 0."""
    errors: np.ndarray
    """[K] standard errors, of differences to the mean."""
    gap_errors: np.ndarray
    """[K, K] standard errors of the difference of two ratings; 0 on the diagonal."""


def rate(pools: Sequence[Pool], *, prior: float) -> list[PoolRatings]:
    """Bradley-Terry ratings of every pool, a tie half a win for each.

    Args: `prior` > 0: precision of a Gaussian around 0, 1/nats².
    Raises: ValueError for a prior of 0 or less: few comparisons have no finite maximum.
    """
    if prior <= 0:
        raise ValueError(f"prior is {prior}; it must be above 0")
    most = max(pool.answers for pool in pools)
    at_once = max(1, 2 * ROWS_AT_ONCE // most**2)
    found = []
    for i in range(0, len(pools), at_once):
        found += _rate(pools[i : i + at_once], most, prior)
    return found


def _rate(pools: Sequence[Pool], most: int, prior: float) -> list[PoolRatings]:
    first, second = np.triu_indices(most, k=1)
    counts = np.stack([_counts(pool, most)[first, second] for pool in pools])
    there = np.arange(most) < np.array([pool.answers for pool in pools])[:, None]
    with jax.enable_x64(True):
        arrays = jnp.asarray(counts[None]), jnp.asarray(there[None], float)
        _, found = lax.scan(_all_of(most), jnp.asarray(prior, float), arrays)
        found = [np.asarray(x)[0] for x in found]
    sizes = [slice(pool.answers) for pool in pools]
    rated, errors, gap_errors = found
    return [
        PoolRatings(rated[i, k], errors[i, k], gap_errors[i, k, k]) for i, k in enumerate(sizes)
    ]


@functools.cache
def _all_of(most: int) -> Callable:
    """A step of `scan`; the same object in every call, so pools of one size are compiled once."""
    first, second = np.triu_indices(most, k=1)

    def rate_all(prior: jax.Array, pools: tuple[jax.Array, jax.Array]):
        def one(counts: jax.Array, there: jax.Array) -> tuple[jax.Array, ...]:
            found = ratings.fit_games(
                Games(first, second, counts, np.zeros((len(first), 0))),
                players=most,
                ties="half",
                prior=prior,
                phantom=0.0,
                effects_prior=0.0,
            )
            anchor = there / there.sum()  # answers that are not there change nothing but the mean
            errors = ratings.gap_errors(found.covariance, anchor=anchor)
            gaps = jax.vmap(lambda other: ratings.gap_errors(found.covariance, anchor=other))
            return found.ratings - anchor @ found.ratings, errors, gaps(jnp.eye(most))

        return prior, jax.vmap(one)(*pools)

    return rate_all


def _counts(pool: Pool, most: int) -> np.ndarray:
    """[most, most, 3]: of i against j, i < j: i won, neither, j won."""
    counts = np.zeros((most, most, 3))
    for i, j, outcome in zip(pool.first, pool.second, pool.outcomes, strict=True):
        low, high, of_low = (i, j, outcome) if i < j else (j, i, 1 - outcome)
        counts[low, high, round(2 - 2 * of_low)] += 1
    return counts
