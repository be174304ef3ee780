"""Ratings of players from comparisons: Bradley-Terry by maximum likelihood, with intervals, in Elo.

Players are models (or answers, or annotators); the data are counts: `wins[i, j]` is how often i
beat j, and a tie is half a win for each. Ratings are in nats of log-odds, the scale of reward
scores; `elo` converts. Only differences mean anything: ratings have mean 0.

Without a prior a maximum exists only where every player can be reached from every other through
wins (Ford 1957): a player who never loses is infinitely good. `comparable` says whether that holds,
`fit` refuses to guess.

Deliberately not here: ratings that move with every game, and the choice of who plays whom.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrlhf.losses._boundary import as_float32

ELO_PER_NAT = 400.0 / 2.302585092994046
"""173.72: a difference of d nats is a win rate of sigmoid(d), and d * 400 / ln 10 Elo points."""

NEWTON_STEPS = 100
CONVERGED = 1e-6  # nats


class Ratings(NamedTuple):
    """What `fit` finds, in nats."""

    ratings: jax.Array
    """[P] float32, mean 0; a higher one wins more."""
    covariance: jax.Array
    """[P, P] float32, of the ratings around their mean (inverse Fisher information)."""


def negative_log_likelihood(ratings: chex.Array, wins: chex.Array) -> jax.Array:
    """−Σᵢⱼ wins[i, j]·log σ(rᵢ − rⱼ), in nats; the log-loss a comparison is this over Σ wins.

    Args: `ratings` [P] nats; `wins` [P, P], diagonal ignored. Returns: a float32 scalar.
    Source: Bai et al. 2022 (2204.05862), appendix B.5.

    >>> wins = jnp.array([[0.0, 3.0], [1.0, 0.0]])
    >>> round(negative_log_likelihood(jnp.zeros(2), wins).item(), 4)  # 4 log 2
    2.7726
    """
    ratings, wins = as_float32(ratings), _games(wins)
    return -jnp.sum(wins * jax.nn.log_sigmoid(ratings[:, None] - ratings[None, :]))


def fit(wins: chex.Array, *, prior: float) -> Ratings:
    """argmin over r of `negative_log_likelihood`(r, wins) + prior/2·‖r‖², by Newton's method.

    Args: `wins` [P, P] counts, ties as halves; `prior` ≥ 0, the precision of a Gaussian around 0 in
    1/nats²: 0 is plain maximum likelihood, more pulls the ratings together.
    Returns: `Ratings`. Raises: ValueError for counts that are negative or not square, and for
    `prior` = 0 where no finite maximum exists.

    >>> found = fit(jnp.array([[0.0, 3.0], [1.0, 0.0]]), prior=0.0)
    >>> round((found.ratings[0] - found.ratings[1]).item(), 4)  # the log-odds, log 3
    1.0986
    """
    counts = as_float32(wins)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or bool((counts < 0).any()):
        raise ValueError(f"wins must be counts [P, P], 0 or more; got shape {counts.shape}")
    if prior < 0:
        raise ValueError(f"prior is {prior}; it must be 0 or more")
    if prior == 0 and not comparable(counts):
        raise ValueError(
            "some player never loses to some other, not even through third ones: no finite rating "
            "fits; give a prior above 0, or more comparisons"
        )
    games = _games(counts)
    players = games.shape[0]
    ratings = jnp.zeros(players)
    for _ in range(NEWTON_STEPS):
        missing = games.sum(axis=1) - jnp.sum((games + games.T) * _chances(ratings), axis=1)
        step = jnp.linalg.solve(_information(ratings, games, prior), missing - prior * ratings)
        ratings = ratings + jnp.clip(step, -1.0, 1.0)  # a full step from afar overshoots
        ratings = ratings - jnp.mean(ratings)
        if float(jnp.abs(step).max()) < CONVERGED:
            break
    return Ratings(ratings, jnp.linalg.inv(_information(ratings, games, prior)) - 1.0 / players)


def elo(found: Ratings, *, anchor: int, z: float) -> jax.Array:
    """[P, 3]: each rating minus that of player `anchor`, in Elo points, and its interval of ±z SE.

    Args: `found` as `fit` returns it; `anchor` the player who gets 0 [0, 0]; `z` 1.96 for 95 %.
    Returns: float32, columns estimate, low, high.

    >>> found = fit(jnp.array([[0.0, 64.0], [36.0, 0.0]]), prior=0.0)
    >>> elo(found, anchor=1, z=1.96)[0].round().tolist()  # 64 % is 100 Elo; SE 347/√100 = 36
    [100.0, 29.0, 171.0]
    """
    ratings, covariance = found
    variance = jnp.diagonal(covariance) + covariance[anchor, anchor] - 2.0 * covariance[anchor, :]
    half = z * jnp.sqrt(jnp.maximum(variance, 0.0))
    gap = ratings - ratings[anchor]
    return ELO_PER_NAT * jnp.stack([gap, gap - half, gap + half], axis=1)


def comparable(wins: chex.Array) -> bool:
    """Whether every player has beaten every other, directly or through a chain of wins.

    Args: `wins` [P, P]. Returns: True exactly where a finite maximum exists (Ford 1957).

    >>> comparable(jnp.array([[0.0, 1.0], [0.0, 0.0]]))
    False
    >>> comparable(jnp.array([[0.0, 1.0], [0.5, 0.0]]))
    True
    """
    players = jnp.shape(wins)[0]
    reach = (as_float32(wins) > 0) | jnp.eye(players, dtype=bool)
    for _ in range(players.bit_length()):
        reach = (reach[:, :, None] & reach[None, :, :]).any(axis=1)
    return bool(reach.all())


def _games(wins: chex.Array) -> jax.Array:
    """The counts without those of players against themselves."""
    wins = as_float32(wins)
    return jnp.where(jnp.eye(wins.shape[0], dtype=bool), 0.0, wins)


def _chances(ratings: jax.Array) -> jax.Array:
    """[P, P]: the probability that i beats j."""
    return jax.nn.sigmoid(ratings[:, None] - ratings[None, :])


def _information(ratings: jax.Array, games: jax.Array, prior: float) -> jax.Array:
    """[P, P] curvature of the objective, Σ n p (1 − p) (eᵢ − eⱼ)(eᵢ − eⱼ)ᵀ + prior.

    The constant that differences leave free gets a curvature too, so that it can be inverted.
    """
    chances, players = _chances(ratings), ratings.shape[0]
    weights = (games + games.T) * chances * (1.0 - chances)
    laplacian = jnp.diag(weights.sum(axis=1)) - weights
    return laplacian + prior * jnp.eye(players) + 1.0 / players
