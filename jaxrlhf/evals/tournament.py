"""Ratings from battles: who is better, how sure that is, and whether one number a player will do.

Takes names and outcomes, adds them up, and asks `losses.ratings` in float64. Three questions come
before and after the fit. Can the battles say it: `strata` names the groups of players that nothing
compares. How sure is it: `errors` from the curvature, `resampled` from a bootstrap over battles or
over what they have in common (prompts, annotators). Is it true: `transitivity` compares the fit
with a model in which every pair has a chance of its own.

Deliberately no files, no tables, and no choice of who plays whom.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike
from scipy import sparse, special
from scipy.sparse import csgraph

from jaxrlhf.errors import DataError
from jaxrlhf.losses import elo, ratings
from jaxrlhf.losses.ratings import Games, Ties

ROWS_AT_ONCE = 4_000_000  # of all resamples that are fitted in one `vmap`: about a gigabyte
NAMED = 6  # players of a group that a message names


class Battles(NamedTuple):
    """N battles between P players."""

    players: list[str]
    first: np.ndarray
    """[N] a player."""
    second: np.ndarray
    """[N] the other."""
    outcomes: np.ndarray
    """[N] 1 the first won, 1/2 a tie, 0 the second won."""
    covariates: np.ndarray
    """[N, F] as they speak for the first."""


class Model(NamedTuple):
    """How battles are taken to come about; see `losses.ratings.fit_games`."""

    ties: Ties = "half"
    prior: float = 0.0
    phantom: float = 0.0
    effects_prior: float = 0.5


class Fitted(NamedTuple):
    """`losses.ratings.Fit` in float64, of numpy: where fits are many, with their axis in front."""

    ratings: np.ndarray
    """[P] nats, mean 0."""
    effects: np.ndarray
    """[F] nats a unit."""
    tie: np.ndarray
    """[] the parameter of ties."""
    covariance: np.ndarray
    """[P + F, P + F]."""
    converged: np.ndarray
    """[] bool."""


class Transitivity(NamedTuple):
    """Log-losses in nats a battle: of the ratings, and of a chance for every pair by itself."""

    rated: float
    saturated: float
    pairs: int
    p_value: float | None
    """Of the likelihood ratio: small where single numbers do not explain who beats whom. None where
    pairs met less than 5 times on average, and where ties are halves, which is no likelihood."""


def collect(
    first: Sequence[str],
    second: Sequence[str],
    outcomes: ArrayLike,
    *,
    covariates: ArrayLike | None = None,
) -> Battles:
    """Battles of players by name; players are sorted by name.

    Args: `first`, `second` [N] names; `outcomes` [N] of 1, 1/2, 0; `covariates` [N, F].
    """
    players, numbers = np.unique([*first, *second], return_inverse=True)
    outcomes = np.asarray(outcomes, np.float64)
    if covariates is None:
        covariates = np.zeros((len(outcomes), 0))
    return Battles(
        players.tolist(),
        numbers[: len(first)],
        numbers[len(first) :],
        outcomes,
        np.asarray(covariates, np.float64),
    )


def fit(battles: Battles, model: Model) -> Fitted:
    """The ratings, as float64 numpy arrays, in nats.

    Raises:
      DataError: names the players without whose prior there is no finite rating.
    """
    if model.prior == model.phantom == 0:
        require_comparable(battles)
    games, counts, _ = _added_up(battles)
    found = _fits(games, counts[None], _with_ties(battles, model), len(battles.players))
    if not found.converged.all():
        raise DataError(
            "the ratings did not converge: some covariate or tie always goes with winning; give "
            "a prior above 0, or leave it out"
        )
    return Fitted(*(x[0] for x in found))


def errors(found: Fitted, *, anchor: np.ndarray) -> np.ndarray:
    """[P] standard errors in nats of the differences to the players weighted by `anchor` [P]."""
    players = len(found.ratings)
    with jax.enable_x64(True):
        inner = found.covariance[:players, :players]
        return np.asarray(ratings.gap_errors(inner, anchor=anchor))


def resampled(
    battles: Battles,
    model: Model,
    *,
    resamples: int,
    seed: int,
    clusters: ArrayLike | None = None,
) -> Fitted:
    """Fits of battles drawn with replacement; every field has a leading axis of `resamples`.

    `clusters` [N] says what is drawn as a whole, a prompt or an annotator. `converged` is False for
    draws in which somebody never lost: their ratings are as far out as the search went, which is
    what a percentile wants.

    Raises:
      DataError: fewer than two clusters.
    """
    games, counts, cells = _added_up(battles)
    rng = np.random.default_rng(seed)
    if clusters is None:
        share = counts.ravel() / counts.sum()
        drawn = rng.multinomial(len(battles.outcomes), share, size=resamples).astype(float)
    else:
        names, cluster_of = np.unique(np.asarray(clusters), return_inverse=True)
        if len(names) < 2:
            raise DataError(f"a bootstrap over one cluster ({names[0]}) says nothing; name others")
        shape = (len(names), counts.size)
        table = sparse.csr_array((np.ones(len(cells)), (cluster_of, cells)), shape=shape)
        weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
        drawn = weights.astype(float) @ table
    drawn = drawn.reshape(resamples, *counts.shape)
    model, players = _with_ties(battles, model), len(battles.players)
    return _fits(games, drawn, model, players)


def online(
    battles: Battles, *, k: float, start: float, scale: float, orders: int, seed: int
) -> np.ndarray:
    """[orders, P] points of online Elo, each after all battles in one order.

    The first order is the file's, the others are random; their mean is the estimate, and their
    spread is how much the order of the battles decides.
    """
    rng, count = np.random.default_rng(seed), len(battles.outcomes)
    order = np.stack([np.arange(count), *(rng.permutation(count) for _ in range(orders - 1))])

    def play(order: jax.Array) -> jax.Array:
        games = (jnp.asarray(x)[order] for x in battles[1:4])
        return elo.online(*games, players=len(battles.players), k=k, start=start, scale=scale)

    with jax.enable_x64(True):
        return np.asarray(jax.vmap(play)(jnp.asarray(order)))


def transitivity(battles: Battles, found: Fitted, *, ties: Ties) -> Transitivity:
    """Bradley-Terry's log-loss beside that of a chance for every pair (and covariate) by itself.

    Rock, paper, scissors have equal ratings and a log-loss of log 2, though every game is decided.
    The saturated model sees what it predicts, so a gap alone proves nothing: see `p_value`, the
    likelihood-ratio test with (outcomes − 1)·pairs − parameters degrees of freedom.
    """
    games, counts, _ = _added_up(battles)
    apart = ties != "half" and bool((battles.outcomes == 0.5).any())
    with jax.enable_x64(True):
        first, second = np.asarray(games.first), np.asarray(games.second)
        gaps = found.ratings[first] - found.ratings[second]
        gaps = gaps + games.covariates @ found.effects
        shape = np.log(found.tie) if apart else 0.0
        chances = np.asarray(ratings.log_chances(gaps, shape, ties=ties if apart else "half"))
    rated = -float((counts * chances).sum())
    if not apart:
        counts = counts[:, ::2] + counts[:, 1:2] / 2
    total = counts.sum(axis=1, keepdims=True)
    saturated = -float(special.xlogy(counts, counts / total).sum())
    played, pairs = float(counts.sum()), len(counts)
    parameters = len(battles.players) - 1 + battles.covariates.shape[1] + apart
    freedom = (counts.shape[1] - 1) * pairs - parameters
    halves = not apart and bool((battles.outcomes == 0.5).any())
    asked = freedom > 0 and played >= 5 * pairs and not halves
    p_value = float(special.chdtrc(freedom, 2 * max(0.0, rated - saturated))) if asked else None
    return Transitivity(rated / played, saturated / played, pairs, p_value)


def strata(battles: Battles) -> list[list[str]]:
    """Groups inside which everybody has beaten everybody, directly or through others; best first.

    One group: a finite rating exists (Ford 1957). A tie counts as a win for both.
    """
    group_of, order = _strata(battles)
    names = np.array(battles.players)
    return [names[group_of == group].tolist() for group in order]


def islands(battles: Battles) -> list[list[str]]:
    """Groups that never met each other, the largest first."""
    count, group_of = csgraph.connected_components(_beats(battles), directed=False)
    names = np.array(battles.players)
    return sorted((names[group_of == i].tolist() for i in range(count)), key=len, reverse=True)


def require_comparable(battles: Battles) -> None:
    """Raise `DataError`, naming the groups, where no finite maximum-likelihood rating exists."""
    apart = islands(battles)
    cure = "give a prior above 0 (or a phantom player), leave them out, or compare them"
    if len(apart) > 1:
        raise DataError(
            f"no common scale: the players fall into {len(apart)} groups that never met: "
            f"{'; '.join(map(_named, apart))}; {cure}"
        )
    groups = strata(battles)
    if len(groups) > 1:
        raise DataError(
            f"no finite rating: the players fall into {len(groups)} groups, of which the better "
            f"never lost to the worse: {' > '.join(map(_named, groups))}; {cure}"
        )


def _named(group: list[str]) -> str:
    more = f" and {len(group) - NAMED} more" if len(group) > NAMED else ""
    return "{" + ", ".join(group[:NAMED]) + more + "}"


def _beats(battles: Battles) -> sparse.csr_array:
    """[P, P], entry (i, j) above 0 where i beat j or tied."""
    first, second, outcomes = battles[1:4]
    rows = np.concatenate([first[outcomes > 0], second[outcomes < 1]])
    columns = np.concatenate([second[outcomes > 0], first[outcomes < 1]])
    players = len(battles.players)
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(players, players))


def _strata(battles: Battles) -> tuple[np.ndarray, list[int]]:
    """Strong component of every player; the components, who is above most players first."""
    graph = _beats(battles)
    count, group_of = csgraph.connected_components(graph, directed=True, connection="strong")
    below = [
        len(csgraph.breadth_first_order(graph, int(np.argmax(group_of == group)))[0])
        for group in range(count)
    ]
    return group_of, sorted(range(count), key=lambda group: -below[group])


def _added_up(battles: Battles) -> tuple[Games, np.ndarray, np.ndarray]:
    """Games, their counts [R, 3], and the place of every battle [N] among `counts.ravel()`.

    Two players are one row whoever stood first, unless covariates tell.
    """
    turned = battles.first > battles.second
    low = np.minimum(battles.first, battles.second)
    high = np.maximum(battles.first, battles.second)
    covariates = np.where(turned[:, None], -battles.covariates, battles.covariates)
    keys = np.column_stack([low, high, covariates])
    unique, row_of = np.unique(keys, axis=0, return_inverse=True)
    outcomes = np.where(turned, 1 - battles.outcomes, battles.outcomes)
    cells = row_of * 3 + np.rint(2 - 2 * outcomes).astype(int)
    counts = np.bincount(cells, minlength=3 * len(unique)).reshape(-1, 3).astype(float)
    players = unique[:, :2].astype(np.int32)
    return Games(players[:, 0], players[:, 1], counts, unique[:, 2:]), counts, cells


def _with_ties(battles: Battles, model: Model) -> Model:
    """Ties as an outcome need ties: without any, they say nothing and their parameter runs away."""
    return model if (battles.outcomes == 0.5).any() else model._replace(ties="half")


def _fits(games: Games, counts: np.ndarray, model: Model, players: int) -> Fitted:
    """`fit_games` for counts [B, R, 3], in float64: a `vmap`, or several of them in turn."""
    draws, rows, _ = counts.shape
    parts = -(-draws * rows // ROWS_AT_ONCE)
    filled = np.concatenate([counts, counts[: -draws % parts]])
    with jax.enable_x64(True):
        penalties = np.array([model.prior, model.phantom, model.effects_prior])
        given = jax.tree.map(jnp.asarray, (games, penalties))
        pieces = jnp.asarray(filled.reshape(parts, -1, rows, 3))
        _, found = lax.scan(_all_of(model.ties, players), given, pieces)
        columns = (np.asarray(x).reshape(len(filled), *x.shape[2:])[:draws] for x in found)
    return Fitted(*columns)


@functools.cache
def _all_of(ties: Ties, players: int) -> Callable:
    """A step of `scan`; the same object in every call, so fits of one size are compiled once."""

    def fit_all(given: tuple[Games, jax.Array], counts: jax.Array):
        games, (prior, phantom, effects_prior) = given

        def one(counts: jax.Array) -> ratings.Fit:
            return ratings.fit_games(
                games._replace(counts=counts),
                players=players,
                ties=ties,
                prior=prior,
                phantom=phantom,
                effects_prior=effects_prior,
            )

        return given, jax.vmap(one)(counts)

    return fit_all
