"""Ratings of players from comparisons: Bradley-Terry by maximum likelihood, with its errors.

Players are models, or answers to one prompt. Ratings are in nats of log-odds, the scale of reward
scores; `jaxrlhf.losses.elo` has the points. Only differences mean anything: ratings have mean 0.

    P(first wins) = σ(d),  d = r_first − r_second + x·β

x are covariates of a game (which answer was longer, and by how much) and β their effects. A tie is
half a win for each, or an outcome of its own: with Davidson (1970) its odds against a decision are
ν at d = 0, with Rao and Kupper (1967) it is a gap too small to see.

Without a prior a maximum exists only where every player can be reached from every other through
wins (Ford 1957): a player who never loses is infinitely good. `comparable` says whether that
holds, and `fit` refuses to guess; `fit_games` is the same fit as a function of arrays alone, which
`vmap` turns into a thousand fits of resampled games.

Unlike the other losses, these compute in float64 where counts are float64 (`jax.enable_x64`):
ratings are read to six digits, and nobody differentiates through them.

Deliberately not here: ratings that move with every game (`elo`), files of games, names of players.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from jaxrlhf.losses import elo as points
from jaxrlhf.losses._boundary import as_float32

NEWTON_STEPS = 50
LONGEST_STEP = 1.0  # nats: a full step from afar overshoots
# Nats: the step that ends the search. The error after it is about its square: below rounding.
CONVERGED = {"float32": 1e-4, "float64": 1e-8}
FLOOR = 1e-9  # 1/nats^2: keeps the curvature invertible where ratings run away

Ties = Literal["half", "davidson", "rao-kupper"]


class Games(NamedTuple):
    """Comparisons, added up: a row for all of the same two players and the same covariates."""

    first: chex.Array
    """[R] integer, a player."""
    second: chex.Array
    """[R] integer, another."""
    counts: chex.Array
    """[R, 3]: how often the first won, neither, the second won; any weights of 0 or more."""
    covariates: chex.Array
    """[R, F], as they speak for the first; F may be 0."""


class Fit(NamedTuple):
    """What `fit_games` finds, in nats."""

    ratings: jax.Array
    """[P], mean 0; a higher one wins more."""
    effects: jax.Array
    """[F] of the covariates: nats a unit."""
    tie: jax.Array
    """Scalar: ν of Davidson, η of Rao and Kupper; 0 where ties are halves."""
    covariance: jax.Array
    """[P + F, P + F] of ratings (around their mean) and effects: inverse Fisher information."""
    converged: jax.Array
    """Scalar bool; False where ratings run away, since no finite maximum exists."""


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

    Args: `gap` [...] nats; `shape`, a scalar or one for each. Returns: [..., 3].

    >>> print(jnp.exp(log_chances(jnp.array(0.0), 0.0, ties="davidson")).round(3))  # 1 : 1 : 1
    [0.333 0.333 0.333]
    """
    gap = _real(gap)
    shape = jnp.broadcast_to(jnp.asarray(shape, gap.dtype), gap.shape)
    if ties == "davidson":
        return jax.nn.log_softmax(jnp.stack([gap / 2, shape, -gap / 2], axis=-1))
    if ties == "half":
        win, loss = jax.nn.log_sigmoid(gap), jax.nn.log_sigmoid(-gap)
        return jnp.stack([win, (win + loss) / 2, loss], axis=-1)
    least = jnp.exp(shape)
    win, loss = jax.nn.log_sigmoid(gap - least), jax.nn.log_sigmoid(-gap - least)
    return jnp.stack([win, win + loss + jnp.log(jnp.expm1(2 * least)), loss], axis=-1)


def negative_log_likelihood(ratings: chex.Array, wins: chex.Array) -> jax.Array:
    """−Σᵢⱼ wins[i, j]·log σ(rᵢ − rⱼ), in nats; the log-loss a comparison is this over Σ wins.

    Args: `ratings` [P] nats; `wins` [P, P], diagonal ignored. Returns: a scalar.
    Source: Bai et al. 2022 (2204.05862), appendix B.5.

    >>> wins = jnp.array([[0.0, 3.0], [1.0, 0.0]])
    >>> round(negative_log_likelihood(jnp.zeros(2), wins).item(), 4)  # 4 log 2
    2.7726
    """
    games = from_wins(wins)
    gaps = _real(ratings)[games.first] - _real(ratings)[games.second]
    return -jnp.sum(games.counts * log_chances(gaps, 0.0, ties="half"))


def fit_games(
    games: Games,
    *,
    players: int,
    ties: Ties,
    prior: chex.Numeric,
    phantom: chex.Numeric,
    effects_prior: chex.Numeric,
) -> Fit:
    """argmin of −Σ counts·`log_chances` + prior/2·‖r‖² + effects_prior/2·‖β‖², by Newton's method.

    Args:
      games: what was played. Nothing is checked: this may be traced and mapped.
      players: P. ties: see `log_chances`.
      prior: precision of a Gaussian around 0 in 1/nats²; 0 is plain maximum likelihood.
      phantom: games that everybody is taken to have won, and as many lost, against one more player,
        who is rated 0. Pulls like a prior, but less hard on those far out.
      effects_prior: the ridge of the covariates' effects.
    Returns: `Fit`, float64 where the counts are, else float32.

    >>> games = from_wins(jnp.array([[0.0, 3.0], [1.0, 0.0]]))
    >>> alone = dict(players=2, ties="half", prior=0.0, phantom=0.0, effects_prior=0.5)
    >>> print(fit_games(games, **alone).ratings.round(3))  # ± log(3)/2
    [ 0.549 -0.549]
    """
    counts = _real(games.counts)
    penalties = jnp.stack([jnp.asarray(x, counts.dtype) for x in (prior, phantom, effects_prior)])
    covariates = jnp.asarray(games.covariates, counts.dtype)
    games = Games(jnp.asarray(games.first), jnp.asarray(games.second), counts, covariates)
    size = players + covariates.shape[1] + 1
    begin = jnp.zeros(size, counts.dtype).at[-1].set(_first_shape(counts, ties))
    far, none = jnp.asarray(jnp.inf, counts.dtype), jnp.zeros((size, size), counts.dtype)
    search = _Search(begin, none, far, jnp.asarray(0), games, penalties)
    found = lax.while_loop(_goes_on, _newton(ties, players), search)
    ratings, effects, shape = _split(found.at, players)
    return Fit(
        ratings - ratings.mean(),
        effects,
        jnp.zeros_like(shape) if ties == "half" else jnp.exp(shape),
        _centred(jnp.linalg.inv(found.curvature)[:-1, :-1], players),
        found.step <= CONVERGED[str(counts.dtype)],
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
    counts = _real(wins)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or bool((counts < 0).any()):
        raise ValueError(f"wins must be counts [P, P], 0 or more; got shape {counts.shape}")
    if prior < 0:
        raise ValueError(f"prior is {prior}; it must be 0 or more")
    if prior == 0 and not comparable(counts):
        raise ValueError(
            "some player never loses to some other, not even through third ones: no finite rating "
            "fits; give a prior above 0, or more comparisons"
        )
    found = fit_games(
        from_wins(counts),
        players=len(counts),
        ties="half",
        prior=prior,
        phantom=0.0,
        effects_prior=0.0,
    )
    return Ratings(found.ratings, found.covariance)


def minorize_maximize(wins: chex.Array, *, steps: int) -> jax.Array:
    """γᵢ ← Wᵢ / Σⱼ nᵢⱼ/(γᵢ + γⱼ): the same maximum by Zermelo's (1929) slow and simple way.

    Args: `wins` [P, P], comparable; `steps` ≥ 1, hundreds to thousands. Returns: [P] log γ, mean 0.
    Source: Hunter 2004, eq. 3. There to check `fit`, which needs a dozen steps.

    >>> print(minorize_maximize(jnp.array([[0.0, 3.0], [1.0, 0.0]]), steps=50).round(3))
    [ 0.549 -0.549]
    """
    wins = _without_diagonal(_real(wins))
    won, met = wins.sum(axis=1), wins + wins.T

    def step(_: int, gamma: jax.Array) -> jax.Array:
        gamma = won / jnp.sum(met / (gamma[:, None] + gamma[None, :]), axis=1)
        return gamma / gamma.mean()

    logs = jnp.log(lax.fori_loop(0, steps, step, jnp.ones_like(won)))
    return logs - logs.mean()


def from_wins(wins: chex.Array) -> Games:
    """Games of a table: `wins` [P, P], how often i beat j; each pair of players is one row.

    >>> from_wins(jnp.array([[0.0, 3.0], [1.0, 0.0]])).counts.tolist()
    [[3.0, 0.0, 1.0]]
    """
    wins = _real(wins)
    first, second = jnp.triu_indices(wins.shape[0], k=1)
    won, lost = wins[first, second], wins[second, first]
    counts = jnp.stack([won, jnp.zeros_like(won), lost], axis=1)
    return Games(first, second, counts, jnp.zeros((len(first), 0), wins.dtype))


def comparable(wins: chex.Array) -> bool:
    """Whether every player has beaten every other, directly or through a chain of wins.

    Args: `wins` [P, P]. Returns: True exactly where a finite maximum exists (Ford 1957).

    >>> comparable(jnp.array([[0.0, 1.0], [0.0, 0.0]]))
    False
    >>> comparable(jnp.array([[0.0, 1.0], [0.5, 0.0]]))
    True
    """
    players = jnp.shape(wins)[0]
    reach = ((_real(wins) > 0) | jnp.eye(players, dtype=bool)).astype(jnp.float32)
    for _ in range(players.bit_length()):
        reach = jnp.minimum(reach @ reach, 1.0)
    return bool(reach.all())


def gap_errors(covariance: chex.Array, *, anchor: chex.Array) -> jax.Array:
    """Standard errors of r − a·r: of differences to a player, or to a weighted mean of players.

    Args: `covariance` [P, P]; `anchor` [P] weights a that add up to 1, one-hot for a player.
    Returns: [P], in the unit of the ratings; 0 for that player.

    >>> print(gap_errors(jnp.eye(2), anchor=jnp.array([1.0, 0.0])).round(3))  # √(1 + 1)
    [0.    1.414]
    """
    covariance = _real(covariance)
    across = covariance @ jnp.asarray(anchor, covariance.dtype)
    around = jnp.asarray(anchor, covariance.dtype) @ across
    return jnp.sqrt(jnp.maximum(jnp.diagonal(covariance) + around - 2.0 * across, 0.0))


def elo(found: Ratings, *, anchor: int, z: float) -> jax.Array:
    """[P, 3]: each rating minus that of player `anchor`, in Elo points, and its interval of ±z SE.

    Args: `found` as `fit` returns it; `anchor` the player who gets 0 [0, 0]; `z` 1.96 for 95 %.
    Returns: float32, columns estimate, low, high.

    >>> found = fit(jnp.array([[0.0, 64.0], [36.0, 0.0]]), prior=0.0)
    >>> elo(found, anchor=1, z=1.96)[0].round().tolist()  # 64 % is 100 Elo; SE 347/√100 = 36
    [100.0, 29.0, 171.0]
    """
    of_anchor = jnp.zeros(len(found.ratings)).at[anchor].set(1.0)
    half = z * gap_errors(found.covariance, anchor=of_anchor)
    gap = found.ratings - found.ratings[anchor]
    return points.of_score(jnp.stack([gap, gap - half, gap + half], axis=1))


# Newton's method. All that a step looks at is in the state of the loop, and its function is the
# same object in every call, so fits of one size are compiled once.


class _Search(NamedTuple):
    at: jax.Array  # [K]: P ratings, F effects, the shape of ties
    curvature: jax.Array  # [K, K] there, but for the last step
    step: jax.Array  # the longest component of the last step
    steps: jax.Array
    games: Games
    penalties: jax.Array  # [3]


def _goes_on(search: _Search) -> jax.Array:
    return (search.step > CONVERGED[str(search.at.dtype)]) & (search.steps < NEWTON_STEPS)


@functools.cache
def _newton(ties: Ties, players: int) -> Callable[[_Search], _Search]:
    def step(search: _Search) -> _Search:
        slope, curvature = _derivatives(search, ties, players)
        step = -jnp.linalg.solve(curvature, slope)
        longest = jnp.abs(step).max()
        step = step * jnp.minimum(1.0, LONGEST_STEP / jnp.maximum(longest, LONGEST_STEP))
        return search._replace(
            at=search.at + step, curvature=curvature, step=longest, steps=search.steps + 1
        )

    return step


def _derivatives(search: _Search, ties: Ties, players: int) -> tuple[jax.Array, jax.Array]:
    """Slope [K] and curvature [K, K] of the objective.

    A row of games speaks of its gap d and of the shape s alone, so it has two first derivatives and
    three second ones, which are spread over the parameters of which d is made.
    """
    games, (prior, phantom, effects_prior) = search.games, search.penalties
    ratings, effects, shape = _split(search.at, players)
    gaps = ratings[games.first] - ratings[games.second] + games.covariates @ effects
    (d, s), (dd, ds), ss = _of_rows(gaps, shape, games.counts, ties)
    against = jax.nn.sigmoid(ratings)  # the phantom's games: −log σ(r) − log σ(−r)
    slope = jnp.concatenate(
        [
            _spread(d[:, None], games, players)[:, 0]
            + prior * ratings
            + phantom * (2 * against - 1),
            d @ games.covariates + effects_prior * effects,
            s.sum()[None],
        ]
    )

    met = jnp.zeros((players, players), dd.dtype).at[games.first, games.second].add(dd)
    met = met + met.T
    pull = met.sum(axis=1) + prior + 2 * phantom * against * (1 - against)
    # The constant that differences leave free gets a curvature of its own.
    level = jnp.where(phantom + prior > 0, 0.0, met.sum() / players**2 + FLOOR)
    weighted = dd[:, None] * games.covariates
    others = jnp.concatenate([weighted, ds[:, None]], axis=1)
    border = _spread(others, games, players)
    shapes = ss.sum() + (1.0 if ties == "half" else 0.0)
    corner = jnp.block(
        [
            [games.covariates.T @ weighted, (ds @ games.covariates)[:, None]],
            [(ds @ games.covariates)[None, :], shapes[None, None]],
        ]
    )
    ridge = jnp.append(jnp.broadcast_to(effects_prior, effects.shape), 0.0)
    curvature = jnp.block([[jnp.diag(pull) - met + level, border], [border.T, corner]])
    diagonal = jnp.concatenate([jnp.zeros(players, ridge.dtype), ridge]) + FLOOR
    return slope, curvature + jnp.diag(diagonal)


def _of_rows(gaps: jax.Array, shape: jax.Array, counts: chex.Array, ties: Ties):
    """First derivatives of every row's loss by gap and shape, second by (gap, both), by shape."""

    def loss(gaps: jax.Array, shapes: jax.Array) -> jax.Array:
        return -jnp.sum(counts * log_chances(gaps, shapes, ties=ties))

    at = gaps, jnp.broadcast_to(shape, gaps.shape)
    ones, zeros = jnp.ones_like(gaps), jnp.zeros_like(gaps)
    first, by_gap = jax.jvp(jax.grad(loss, (0, 1)), at, (ones, zeros))
    _, by_shape = jax.jvp(jax.grad(loss, (0, 1)), at, (zeros, ones))
    return first, by_gap, by_shape[1]


def _spread(x: jax.Array, games: Games, players: int) -> jax.Array:
    """[R, F] -> [P, F]: what a row says of its gap is for the first and against the second."""
    total = jnp.zeros((players, x.shape[1]), x.dtype)
    return total.at[games.first].add(x).at[games.second].add(-x)


def _split(at: jax.Array, players: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    return at[:players], at[players:-1], at[-1]


def _first_shape(counts: jax.Array, ties: Ties) -> jax.Array:
    """The shape that explains the share of ties among equals, where the search may begin."""
    share = jnp.clip(counts[:, 1].sum() / jnp.maximum(counts.sum(), 1.0), 0.01, 0.99)
    if ties == "davidson":
        return jnp.log(2 * share / (1 - share))
    return jnp.log(2 * jnp.arctanh(share)) if ties == "rao-kupper" else jnp.zeros_like(share)


def _centred(covariance: jax.Array, players: int) -> jax.Array:
    """The covariance of ratings around their mean."""
    is_rating = (jnp.arange(len(covariance)) < players).astype(covariance.dtype)
    around = jnp.eye(len(covariance), dtype=covariance.dtype)
    around = around - is_rating[:, None] * is_rating[None, :] / players
    return around @ covariance @ around.T


def _without_diagonal(wins: jax.Array) -> jax.Array:
    return wins * (1 - jnp.eye(len(wins), dtype=wins.dtype))


def _real(x: chex.Array) -> jax.Array:
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else as_float32(x)
