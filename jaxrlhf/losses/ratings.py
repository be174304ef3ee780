"""Ratings of players from comparisons: Bradley-Terry by maximum likelihood, with its errors.

Players are models, or answers to one prompt. Ratings are in nats of log-odds, the scale of reward
scores; `elo` and its neighbours convert. Only differences mean anything: ratings have mean 0.

    P(first wins) = σ(d),  d = r_first − r_second + x·β

x are covariates of a game (who was longer, and by how much) and β their effects. A tie is half a
win for each, or an outcome of its own: with Davidson (1970) its odds against a decision are ν at
d = 0, with Rao and Kupper (1967) it is a gap too small to see, |d + noise| < η.

Without a prior a maximum exists only where every player can be reached from every other through
wins (Ford 1957): a player who never loses is infinitely good. `comparable` says whether that
holds, `fit` refuses to guess; `fit_games` is the same fit as a function of arrays alone, which
`vmap` turns into a thousand fits of resampled games.

Deliberately not here: ratings that move with every game, files of games, and the choice of who
plays whom.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from jaxrlhf.losses._boundary import as_float32

ELO_PER_NAT = 400.0 / 2.302585092994046
"""173.72: a difference of d nats is a win rate of sigmoid(d), and d * 400 / ln 10 Elo points."""

NEWTON_STEPS = 40
LONGEST_STEP = 1.0  # nats: a full step from afar overshoots
CONVERGED = 1e-5  # nats: the step that ends the search, so the next would be its square
FLOOR = 1e-6  # 1/nats^2: keeps the curvature invertible where ratings run away

Ties = Literal["half", "davidson", "rao-kupper"]


class Games(NamedTuple):
    """Comparisons, added up: a row for all of the same two players and the same covariates."""

    first: chex.Array
    """[R] int32, a player."""
    second: chex.Array
    """[R] int32, another."""
    counts: chex.Array
    """[R, 3]: how often the first won, neither, the second won."""
    covariates: chex.Array
    """[R, F], the first's minus the second's; F may be 0."""


class Fit(NamedTuple):
    """What `fit_games` finds; everything float32 and in nats, but for `converged`."""

    ratings: jax.Array
    """[P], mean 0; a higher one wins more."""
    effects: jax.Array
    """[F] of the covariates: nats a unit."""
    tie: jax.Array
    """Scalar: ν of Davidson, η of Rao and Kupper; 0 where ties are halves."""
    covariance: jax.Array
    """[P + F, P + F] of ratings (around their mean) and effects: inverse Fisher information."""
    converged: jax.Array
    """Scalar bool; False where ratings ran away, since no finite maximum exists."""


class Ratings(NamedTuple):
    """What `fit` finds, in nats."""

    ratings: jax.Array
    """[P] float32, mean 0; a higher one wins more."""
    covariance: jax.Array
    """[P, P] float32, of the ratings around their mean (inverse Fisher information)."""


def log_chances(gap: chex.Array, shape: chex.Numeric, *, ties: Ties) -> jax.Array:
    """log P of (first wins, tie, second wins) at a difference `gap` of ratings.

    "davidson": e^(d/2) : ν : e^(−d/2), ν = e^shape (Davidson 1970, eq. 2.4).
    "rao-kupper": σ(d − η), the rest, σ(−d − η), η = e^shape (Rao and Kupper 1967, eq. 2.2).
    "half": σ(d) and σ(−d); a tie counts as half of each, the mean of their logarithms.

    Args: `gap` [...] nats; `shape` scalar. Returns: [..., 3] float32.

    >>> jnp.exp(log_chances(jnp.array(0.0), 0.0, ties="davidson")).round(3).tolist()  # 1 : 1 : 1
    [0.333, 0.333, 0.333]
    """
    gap, shape = as_float32(gap), as_float32(shape)
    if ties == "davidson":
        odds = jnp.stack([gap / 2, jnp.broadcast_to(shape, gap.shape), -gap / 2], axis=-1)
        return jax.nn.log_softmax(odds)
    least = jnp.exp(shape) if ties == "rao-kupper" else jnp.zeros(())
    win, loss = jax.nn.log_sigmoid(gap - least), jax.nn.log_sigmoid(-gap - least)
    if ties == "rao-kupper":
        tie = win + loss + jnp.log(jnp.expm1(2 * least))
    else:
        tie = (win + loss) / 2
    return jnp.stack([win, tie, loss], axis=-1)


def negative_log_likelihood(
    ratings: chex.Array, games: Games, *, effects: chex.Array, shape: chex.Numeric, ties: Ties
) -> jax.Array:
    """−Σ counts · `log_chances`, in nats; the log-loss of a comparison is this over Σ counts.

    Args: `ratings` [P] nats; `games`; `effects` [F]; `shape`, `ties` as in `log_chances`.
    Returns: a float32 scalar. Source: Bai et al. 2022 (2204.05862), appendix B.5.

    >>> games = from_wins(jnp.array([[0.0, 3.0], [1.0, 0.0]]))
    >>> at = dict(effects=jnp.zeros(0), shape=0.0, ties="half")
    >>> round(negative_log_likelihood(jnp.zeros(2), games, **at).item(), 4)  # 4 log 2
    2.7726
    """
    gaps = _gaps(as_float32(ratings), as_float32(effects), games)
    return -jnp.sum(as_float32(games.counts) * log_chances(gaps, shape, ties=ties))


def fit_games(
    games: Games,
    *,
    players: int,
    ties: Ties,
    prior: chex.Numeric,
    phantom: chex.Numeric,
    effects_prior: chex.Numeric,
) -> Fit:
    """argmin of `negative_log_likelihood` + prior/2·‖r‖² + effects_prior/2·‖β‖², by Newton's method.

    Args:
      games: what was played. Nothing is checked: this may be traced and mapped.
      players: P. ties: see `log_chances`.
      prior: precision of a Gaussian around 0 in 1/nats²; 0 is plain maximum likelihood.
      phantom: games that everybody is taken to have won, and as many lost, against one more player,
        who is rated 0. Pulls like a prior, but less hard on those far out.
      effects_prior: the ridge of the covariates' effects.
    """
    games = Games(games.first, games.second, *map(as_float32, games[2:]))
    effects, shape = games.covariates.shape[1], _first_shape(games.counts, ties)
    start = jnp.concatenate([jnp.zeros(players + effects), shape[None]])
    penalties = tuple(as_float32(x) for x in (prior, phantom, effects_prior))
    first = _Search(start, jnp.ones(()), jnp.zeros((), jnp.int32), games, penalties)
    found = lax.while_loop(_goes_on, _newton_step(ties, players), first)
    _, curvature = _derivatives(found, ties, players)
    covariance = _centre(jnp.linalg.inv(curvature)[:-1, :-1], players)
    ratings, effects, shape = _split(found.at, players)
    return Fit(
        ratings - ratings.mean(),
        effects,
        jnp.zeros(()) if ties == "half" else jnp.exp(shape),
        covariance,
        found.step <= CONVERGED,
    )


def fit(wins: chex.Array, *, prior: float) -> Ratings:
    """`fit_games` of a table of wins, checked.

    Args: `wins` [P, P], how often i beat j, ties as halves, the diagonal ignored; `prior` ≥ 0, the
    precision of a Gaussian around 0 in 1/nats²: 0 is plain maximum likelihood, more pulls the
    ratings together.
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
    alone: dict[str, float] = {"prior": prior, "phantom": 0.0, "effects_prior": 1.0}
    found = fit_games(from_wins(counts), players=len(counts), ties="half", **alone)
    return Ratings(found.ratings, found.covariance)


def from_wins(wins: chex.Array) -> Games:
    """Games of a table: `wins` [P, P], how often i beat j; each pair of players is one row."""
    wins = as_float32(wins)
    first, second = jnp.triu_indices(wins.shape[0], k=1)
    won, lost = wins[first, second], wins[second, first]
    counts = jnp.stack([won, jnp.zeros_like(won), lost], axis=1)
    return Games(first, second, counts, jnp.zeros((len(first), 0)))


def comparable(wins: chex.Array) -> bool:
    """Whether every player has beaten every other, directly or through a chain of wins.

    Args: `wins` [P, P]. Returns: True exactly where a finite maximum exists (Ford 1957).

    >>> comparable(jnp.array([[0.0, 1.0], [0.0, 0.0]]))
    False
    >>> comparable(jnp.array([[0.0, 1.0], [0.5, 0.0]]))
    True
    """
    players = jnp.shape(wins)[0]
    reach = ((as_float32(wins) > 0) | jnp.eye(players, dtype=bool)).astype(jnp.float32)
    for _ in range(players.bit_length()):
        reach = jnp.minimum(reach @ reach, 1.0)
    return bool(reach.all())


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
    return elo_of_score(jnp.stack([gap, gap - half, gap + half], axis=1))


def elo_of_score(gap: chex.Array) -> jax.Array:
    """400/ln 10 · gap: a difference of scores or ratings, in nats, as Elo points."""
    return ELO_PER_NAT * as_float32(gap)


def score_of_elo(gap: chex.Array) -> jax.Array:
    """ln 10/400 · gap: a difference in Elo points as nats."""
    return as_float32(gap) / ELO_PER_NAT


def probability_of_elo(gap: chex.Array) -> jax.Array:
    """1/(1 + 10^(−gap/400)): the chance of whoever is `gap` Elo points ahead.

    >>> probability_of_elo(jnp.array([0.0, 100.0, -190.85])).round(2).tolist()
    [0.5, 0.64, 0.25]
    """
    return jax.nn.sigmoid(score_of_elo(gap))


def elo_of_probability(probability: chex.Array) -> jax.Array:
    """400·log10(p/(1 − p)): the Elo points by which one is ahead who wins with probability p.

    >>> elo_of_probability(jnp.array([0.6, 0.75])).round(1).tolist()
    [70.4, 190.8]
    """
    probability = as_float32(probability)
    return elo_of_score(jnp.log(probability) - jnp.log1p(-probability))


# Newton's method, with everything that it looks at in the state of the loop: the two functions are
# the same objects in every call, so a fit of the same size is compiled once.


class _Search(NamedTuple):
    at: jax.Array  # [P + F + 1]: ratings, effects, shape of the ties
    step: jax.Array  # the longest component of the last step
    steps: jax.Array
    games: Games
    penalties: tuple[jax.Array, jax.Array, jax.Array]


def _goes_on(search: _Search) -> jax.Array:
    return (search.step > CONVERGED) & (search.steps < NEWTON_STEPS)


@functools.cache
def _newton_step(ties: Ties, players: int) -> Callable[[_Search], _Search]:
    def newton_step(search: _Search) -> _Search:
        slope, curvature = _derivatives(search, ties, players)
        step = -jnp.linalg.solve(curvature, slope)
        longest = jnp.abs(step).max()
        at = search.at + step * jnp.minimum(1.0, LONGEST_STEP / longest)
        return search._replace(at=at, step=longest, steps=search.steps + 1)

    return newton_step


def _derivatives(search: _Search, ties: Ties, players: int) -> tuple[jax.Array, jax.Array]:
    """Slope [P + F + 1] and curvature of the objective.

    A game tells of its gap d and of the shape s alone, so its derivatives are a pair and a 2x2
    matrix. The constant that differences leave free gets a curvature of its own, unless the
    phantom's rating of 0 settles it.
    """
    games, (prior, phantom, effects_prior) = search.games, search.penalties
    ratings, effects, shape = _split(search.at, players)
    gaps = _gaps(ratings, effects, games)

    def loss(of, counts):
        return -jnp.sum(counts * log_chances(of[0], of[1], ties=ties))

    of = jnp.stack([gaps, jnp.broadcast_to(shape, gaps.shape)], axis=1)
    first = jax.vmap(jax.grad(loss))(of, games.counts)  # [R, 2]
    second = jax.vmap(jax.hessian(loss))(of, games.counts)  # [R, 2, 2]
    design = jnp.concatenate([games.covariates, jnp.ones_like(gaps)[:, None]], axis=1)
    inner = jnp.concatenate([games.covariates * first[:, :1], first[:, 1:]], axis=1)
    mixed = jnp.concatenate([games.covariates * second[:, :1, 0], second[:, 1:, 0]], axis=1)
    corner = (games.covariates * second[:, :1, 0]).T @ games.covariates
    side = games.covariates.T @ second[:, 1, 0]
    last = second[:, 1, 1].sum() + (1.0 if ties == "half" else 0.0)
    del design

    rest = jnp.concatenate([effects_prior * effects, jnp.zeros(1)])
    against = jax.nn.sigmoid(ratings)  # the phantom's games: −log σ(r) − log σ(−r)
    slope = jnp.concatenate(
        [
            _to_players(first[:, 0], games, players) + prior * ratings + phantom * (2 * against - 1),
            inner.sum(axis=0) + rest,
        ]
    )
    met = jnp.zeros((players, players)).at[games.first, games.second].add(second[:, 0, 0])
    met = met + met.T
    level = jnp.where(phantom > 0, 0.0, 1.0 / players)
    pull = met.sum(axis=1) + prior + 2 * phantom * against * (1 - against) + FLOOR
    border = _to_players(mixed, games, players)  # [P, F + 1]
    corner = corner + effects_prior * jnp.eye(len(effects))
    block = jnp.block([[corner, side[:, None]], [side[None, :], last[None, None]]])
    curvature = jnp.block([[jnp.diag(pull) - met + level, border], [border.T, block]])
    return slope, curvature


def _to_players(x: jax.Array, games: Games, players: int) -> jax.Array:
    """[R, ...] -> [P, ...]: what a game says of its gap is for the first and against the second."""
    total = jnp.zeros((players, *x.shape[1:]))
    return total.at[games.first].add(x).at[games.second].add(-x)


def _gaps(ratings: jax.Array, effects: jax.Array, games: Games) -> jax.Array:
    return ratings[games.first] - ratings[games.second] + as_float32(games.covariates) @ effects


def _split(at: jax.Array, players: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    return at[:players], at[players:-1], at[-1]


def _first_shape(counts: jax.Array, ties: Ties) -> jax.Array:
    """The shape that explains the share of ties among equals, where the search may begin."""
    share = jnp.clip(counts[:, 1].sum() / jnp.maximum(counts.sum(), 1.0), 0.01, 0.99)
    if ties == "davidson":
        return jnp.log(2 * share / (1 - share))
    return jnp.log(2 * jnp.arctanh(share)) if ties == "rao-kupper" else jnp.zeros(())


def _centre(covariance: jax.Array, players: int) -> jax.Array:
    """The covariance of ratings around their mean."""
    size = covariance.shape[0]
    mean = jnp.where(jnp.arange(size) < players, 1.0 / players, 0.0)
    around = jnp.eye(size) - jnp.where(jnp.arange(size) < players, 1.0, 0.0)[:, None] * mean
    return around @ covariance @ around.T
