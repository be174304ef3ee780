"""Elo: points and what they mean, and ratings that move with every game.

Points are a unit: 400 of them are odds of 10 to 1, so a nat of log-odds (of reward scores, of
`ratings`) is 173.72 points. Online Elo is something else, a rating that is nudged after every game:
cheap, but it depends on the order of the games and on K, which is why it is averaged over random
orders here. Where all games are there at once, `ratings.fit` says more.
"""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from jaxrlhf.losses._boundary import as_float32

ELO_PER_NAT = 400.0 / 2.302585092994046
"""173.72: a difference of d nats is a win rate of sigmoid(d), and d * 400 / ln 10 Elo points."""


def of_score(gap: chex.Array) -> jax.Array:
    """400/ln 10 · gap: a difference of scores or ratings, in nats, as Elo points.

    >>> round(of_score(jnp.array(1.0)).item(), 2)
    173.72
    """
    return ELO_PER_NAT * as_float32(gap)


def to_score(gap: chex.Array) -> jax.Array:
    """ln 10/400 · gap: a difference in Elo points as nats, the scale of scores and margins.

    >>> round(to_score(jnp.array(400.0)).item(), 4)  # odds of 10 to 1
    2.3026
    """
    return as_float32(gap) / ELO_PER_NAT


def of_probability(probability: chex.Array) -> jax.Array:
    """400·log10(p/(1 − p)): the Elo points by which one is ahead who wins with probability p.

    >>> print(of_probability(jnp.array([0.6, 0.75])).round(1))
    [ 70.4 190.8]
    """
    probability = as_float32(probability)
    return of_score(jnp.log(probability) - jnp.log1p(-probability))


def to_probability(gap: chex.Array) -> jax.Array:
    """1/(1 + 10^(−gap/400)): the chance of whoever is `gap` Elo points ahead.

    >>> print(to_probability(jnp.array([0.0, 100.0, -190.85])).round(2))
    [0.5  0.64 0.25]
    """
    return jax.nn.sigmoid(to_score(gap))


def online(
    first: chex.Array,
    second: chex.Array,
    outcomes: chex.Array,
    *,
    players: int,
    k: chex.Numeric,
    start: chex.Numeric,
    scale: chex.Numeric,
) -> jax.Array:
    """E_i ← E_i + K(s − p), E_j ← E_j − K(s − p), p = 1/(1 + 10^(−(E_i − E_j)/scale)), in order.

    Args:
      first, second: [N] players. outcomes: [N] s: 1 the first won, 1/2 a tie, 0 the second won.
      players: P. k: the step; large ones follow the latest games, small ones are slow.
      start: everybody's points before the first game. scale: points for odds of 10 to 1.
    Returns: [P] points; their mean stays `start`. float64 where `outcomes` are, else float32.
    Source: Elo 1978; FastChat takes K = 4, start 1000, scale 400.

    >>> first, second, won = jnp.array([0, 0]), jnp.array([1, 1]), jnp.array([1.0, 1.0])
    >>> print(online(first, second, won, players=2, k=32, start=1000, scale=400).round(1))
    [1030.5  969.5]
    """
    outcomes = jnp.asarray(outcomes)
    outcomes = outcomes if outcomes.dtype == jnp.float64 else as_float32(outcomes)
    k, start, scale = (jnp.asarray(x, outcomes.dtype) for x in (k, start, scale))

    def play(points: jax.Array, game: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        i, j, outcome = game
        expected = jax.nn.sigmoid((points[i] - points[j]) * jnp.log(10.0).astype(k.dtype) / scale)
        change = k * (outcome - expected)
        return points.at[i].add(change).at[j].add(-change), None

    games = jnp.asarray(first), jnp.asarray(second), outcomes
    return lax.scan(play, jnp.full(players, start), games)[0]
