"""Ratings from battles: golden scores, scipy's own maximum, the bootstrap, graphs without a fit."""

import csv
import itertools

import jax
import numpy as np
import pytest
from realdata import shared_data
from scipy import optimize, special

from jaxrlhf.errors import DataError
from jaxrlhf.evals import tournament
from jaxrlhf.evals.tournament import Battles, Model
from jaxrlhf.losses import ratings

SCORES = {"left": 1.0, "tie": 0.5, "right": 0.0}


def of(*games: tuple[str, str, float]) -> Battles:
    return tournament.collect(*zip(*games, strict=True))


def random_battles(*, players=5, count=300, ties=0.3, covariates=0, seed=0) -> Battles:
    rng = np.random.default_rng(seed)
    first = rng.integers(players, size=count)
    second = (first + rng.integers(1, players, size=count)) % players
    strength, x = rng.normal(size=players), rng.normal(size=(count, covariates))
    gap = strength[first] - strength[second] + x @ np.linspace(0.5, 1, covariates)
    won = (rng.random(count) < special.expit(gap)).astype(float)
    won[rng.random(count) < ties * np.exp(-np.abs(gap))] = 0.5
    names = [f"p{i}" for i in range(players)]
    return tournament.collect(
        [names[i] for i in first], [names[i] for i in second], won, covariates=x
    )


# Golden scores of evalica (Apache-2.0), commit 2ebe79e.


@pytest.fixture(params=["simple", "food"])
def golden(request):
    folder = shared_data("llmfao_battles")
    with open(folder / f"evalica_{request.param}.csv") as file:
        rows = list(csv.DictReader(file))
    scores: dict[str, dict[str, float]] = {}
    with open(folder / f"evalica_{request.param}_golden.csv") as file:
        for row in csv.DictReader(file):
            scores.setdefault(row["algorithm"], {})[row["item"]] = float(row["score"])
    return of(*((r["left"], r["right"], SCORES[r["winner"]]) for r in rows)), scores


def test_bradley_terry_is_golden(golden):
    battles, scores = golden
    share = special.softmax(tournament.fit(battles, Model()).ratings)  # theirs add up to 1
    wanted = [scores["bradley_terry"][player] for player in battles.players]
    assert share == pytest.approx(wanted, abs=1e-12)


def test_online_elo_is_golden(golden):
    battles, scores = golden
    points = tournament.online(battles, k=4, start=1000, scale=400, orders=1, seed=0)[0]
    assert points == pytest.approx([scores["elo"][p] for p in battles.players], abs=1e-9)


def test_davidson_is_newman(golden):
    # Newman's (2023) algorithm with ties has Davidson's likelihood; its scores have another mean.
    battles, scores = golden
    wanted = np.log([scores["newman"][player] for player in battles.players])
    found = tournament.fit(battles, Model("davidson"))
    assert found.ratings == pytest.approx(wanted - wanted.mean(), abs=1e-9)


def test_minorize_maximize_is_golden(golden):
    battles, scores = golden
    wins = np.zeros((len(battles.players),) * 2)
    np.add.at(wins, (battles.first, battles.second), battles.outcomes)
    np.add.at(wins, (battles.second, battles.first), 1 - battles.outcomes)
    with jax.enable_x64(True):
        found = special.softmax(np.asarray(ratings.minorize_maximize(wins, steps=2000)))
    assert found == pytest.approx([scores["bradley_terry"][p] for p in battles.players], abs=1e-9)


# An independent maximum: scipy on the likelihood as the papers print it.


def printed_loss(at: np.ndarray, battles: Battles, model: Model) -> float:
    players = len(battles.players)
    r, effects, shape = at[:players], at[players:-1], np.exp(at[-1])
    gap = r[battles.first] - r[battles.second] + battles.covariates @ effects
    i, j = np.exp(gap / 2), np.exp(-gap / 2)
    if model.ties == "davidson":
        total = i + j + shape
        win, tie, loss = i / total, shape / total, j / total
    elif model.ties == "rao-kupper":
        theta = np.exp(shape)
        win, loss = i / (i + theta * j), j / (j + theta * i)
        tie = 1 - win - loss
    else:
        win, loss = i / (i + j), j / (i + j)
        tie = np.sqrt(win * loss)
    chance = np.select([battles.outcomes == 1, battles.outcomes == 0], [win, loss], tie)
    pull = model.prior / 2 * np.sum(r**2) + model.effects_prior / 2 * np.sum(effects**2)
    pull -= model.phantom * np.sum(np.log(special.expit(r) * special.expit(-r)))
    if model.prior == model.phantom == 0:
        pull += r.mean() ** 2
    return pull - np.log(chance).sum()


@pytest.mark.parametrize(
    ("model", "covariates"),
    [
        (Model("half"), 2),
        (Model("davidson"), 0),
        (Model("davidson", prior=0.7), 1),
        (Model("rao-kupper", phantom=1.5), 0),
        (Model("half", phantom=1.0, effects_prior=3.0), 1),
    ],
    ids=str,
)
def test_scipy_finds_the_same(model, covariates):
    battles = random_battles(covariates=covariates)
    found = tournament.fit(battles, model)
    best = optimize.minimize(
        printed_loss, np.zeros(6 + covariates), (battles, model), options={"gtol": 1e-6}
    )
    r = best.x[:5]
    assert found.ratings == pytest.approx(r - r.mean(), abs=2e-5)  # finite differences
    assert found.effects == pytest.approx(best.x[5:-1], abs=2e-5)
    if model.ties != "half":
        assert found.tie == pytest.approx(np.exp(best.x[-1]), abs=2e-5)
    assert found.converged


def test_errors_are_those_of_a_numerical_hessian():
    battles = random_battles(covariates=1)
    model = Model("davidson", prior=0.2)
    found = tournament.fit(battles, model)
    at = np.concatenate([found.ratings, found.effects, [np.log(found.tie)]])
    step, size = 1e-3, len(at)
    hessian = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
                moved = at + step * (a * np.eye(size)[i] + b * np.eye(size)[j])
                hessian[i, j] += a * b * printed_loss(moved, battles, model) / (4 * step**2)
    around = np.eye(size) - np.outer(np.arange(size) < 5, np.arange(size) < 5) / 5
    wanted = around @ np.linalg.inv(hessian) @ around.T
    assert found.covariance == pytest.approx(wanted[:-1, :-1], rel=1e-3, abs=1e-5)
    of_first = tournament.errors(found, anchor=np.array([1.0, 0, 0, 0, 0]))
    c = wanted[:5, :5]
    assert of_first[0] == 0
    assert of_first[2] == pytest.approx(np.sqrt(c[2, 2] + c[0, 0] - 2 * c[0, 2]), rel=1e-3)


def test_a_covariate_takes_the_blame():
    # Equal players, one of which writes longer answers, before a judge of length alone.
    rng = np.random.default_rng(0)
    length = rng.normal(size=2000) + 1.0
    won = (rng.random(2000) < special.expit(length)).astype(float)
    names = ["long"] * 2000, ["short"] * 2000
    plain = tournament.fit(tournament.collect(*names, won), Model()).ratings
    found = tournament.fit(tournament.collect(*names, won, covariates=length[:, None]), Model())
    assert plain[0] - plain[1] > 0.7
    assert abs(found.ratings[0] - found.ratings[1]) < 0.2
    assert found.effects == pytest.approx([1.0], abs=0.15)


def test_who_stands_first_does_not_matter_to_the_fit_and_changes_the_sign_of_a_covariate():
    battles = random_battles(covariates=1)
    turned = battles._replace(
        first=battles.second,
        second=battles.first,
        outcomes=1 - battles.outcomes,
        covariates=-battles.covariates,
    )
    one, other = (tournament.fit(x, Model("davidson")) for x in (battles, turned))
    assert one.ratings == pytest.approx(other.ratings, abs=1e-12)
    assert one.effects == pytest.approx(other.effects, abs=1e-12)


def test_without_ties_their_parameter_is_nothing():
    battles = random_battles(ties=0.0)
    with_ties, without = (tournament.fit(battles, Model(t)) for t in ("davidson", "half"))
    assert with_ties.tie == 0 and (with_ties.ratings == without.ratings).all()


# The bootstrap.


def test_the_bootstrap_spreads_as_the_curvature_says():
    battles = random_battles(count=2000, ties=0.0)
    found = tournament.fit(battles, Model())
    drawn = tournament.resampled(battles, Model(), resamples=400, seed=0)
    error = tournament.errors(found, anchor=np.full(5, 0.2))
    assert drawn.converged.all()
    # A standard deviation of 400 draws is known to 1/√800 = 3.5 %; four of those.
    assert drawn.ratings.std(axis=0) == pytest.approx(error, rel=0.15)


def test_clusters_are_drawn_whole():
    # 100 battles copied 25 times are worth 100 battles: the spread is √25 = 5 times that of 2,500.
    once = random_battles(players=3, count=100, ties=0.2, seed=3)
    names = np.array(once.players)
    sides = (np.tile(names[x], 25).tolist() for x in once[1:3])
    copied = tournament.collect(*sides, np.tile(once.outcomes, 25))
    model = Model(prior=0.01)
    alone = tournament.resampled(copied, model, resamples=300, seed=0)
    whole = tournament.resampled(
        copied, model, resamples=300, seed=0, clusters=np.tile(np.arange(100), 25)
    )
    ratio = whole.ratings.std(axis=0) / alone.ratings.std(axis=0)
    assert (ratio > 3.5).all() and (ratio < 7).all(), ratio


def test_every_cluster_once_is_the_fit_itself(monkeypatch):
    class Once:
        def multinomial(self, count, share, size):
            return np.ones((size, count), int)

    battles = random_battles(covariates=1)
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Once())
    drawn = tournament.resampled(battles, Model(), resamples=2, seed=0, clusters=np.arange(300) % 7)
    assert drawn.ratings[1] == pytest.approx(tournament.fit(battles, Model()).ratings, abs=1e-12)


def test_pieces_of_the_bootstrap_are_the_whole(monkeypatch):
    battles = random_battles(count=60)
    whole = tournament.resampled(battles, Model(prior=0.1), resamples=7, seed=1)
    monkeypatch.setattr(tournament, "ROWS_AT_ONCE", 20)  # of 10 rows: two draws at a time
    pieces = tournament.resampled(battles, Model(prior=0.1), resamples=7, seed=1)
    assert pieces.ratings == pytest.approx(whole.ratings, abs=1e-10)


def test_one_cluster_says_nothing():
    with pytest.raises(DataError, match="over one cluster"):
        tournament.resampled(random_battles(), Model(), resamples=5, seed=0, clusters=["one"] * 300)


def test_intervals_cover_the_truth():
    """40 tournaments of 8 players; the full figure is in docs/results/ratings.md."""
    rng, inside = np.random.default_rng(1), []
    names = np.array(list("abcdefgh"))
    for seed in range(40):
        truth = rng.normal(0, 0.7, 8)
        first = rng.integers(8, size=800)
        second = (first + rng.integers(1, 8, size=800)) % 8
        won = rng.random(800) < special.expit(truth[first] - truth[second])
        battles = tournament.collect(names[first], names[second], won.astype(float))
        drawn = tournament.resampled(battles, Model(), resamples=200, seed=seed)
        low, high = np.quantile(drawn.ratings, [0.025, 0.975], axis=0)
        truth = truth - truth.mean()
        inside.append((low <= truth) & (truth <= high))
    # 320 intervals, of which some depend on each other: 95 % ± 3 standard errors of 1.5 %.
    assert 0.905 <= np.mean(inside) <= 0.995


# Orders.


def test_orders_average_out():
    battles = random_battles(players=4, count=500, ties=0.0, seed=5)
    points = tournament.online(battles, k=32, start=1000, scale=400, orders=50, seed=0)
    assert points.shape == (50, 4)
    assert points.mean(axis=1) == pytest.approx(1000)
    assert (points[1:].std(axis=0) > 10).all()  # K = 32 hangs on the order
    rank = np.argsort(tournament.fit(battles, Model()).ratings)
    assert (np.argsort(points.mean(axis=0)) == rank).all()
    again = tournament.online(battles, k=32, start=1000, scale=400, orders=50, seed=0)
    assert (again == points).all()


# Whether a rating exists, and whether it says it all.


def test_islands_are_named():
    battles = of(("a", "b", 1.0), ("b", "a", 1.0), ("c", "d", 0.5))
    assert tournament.islands(battles) == [["a", "b"], ["c", "d"]]
    with pytest.raises(DataError, match=r"2 groups that never met: \{a, b\}; \{c, d\}"):
        tournament.fit(battles, Model())
    assert np.isfinite(tournament.fit(battles, Model(prior=0.1)).ratings).all()


def test_who_never_lost_is_named():
    ring = [("b", "c", 1.0), ("c", "d", 1.0), ("d", "b", 1.0)]
    battles = of(*ring, ("a", "b", 1.0), ("e", "c", 0.0))
    assert tournament.strata(battles) == [["a"], ["b", "c", "d"], ["e"]]
    with pytest.raises(DataError, match=r"\{a\} > \{b, c, d\} > \{e\}; give a prior"):
        tournament.fit(battles, Model("davidson"))
    found = tournament.fit(battles, Model(phantom=0.5))
    assert np.argmax(found.ratings) == 0 and np.argmin(found.ratings) == 4


def test_a_tie_links_both_ways():
    battles = of(("a", "b", 0.5), ("a", "b", 1.0))
    assert tournament.strata(battles) == [["a", "b"]]
    # Three halves to one: log 3.
    found = tournament.fit(battles, Model()).ratings
    assert found[0] - found[1] == pytest.approx(np.log(3), abs=1e-12)


def test_long_groups_are_cut_in_messages():
    names = [f"n{i}" for i in range(9)]
    with pytest.raises(DataError, match=r"\{n0, n1, n2, n3, n4, n5 and 3 more\}"):
        tournament.fit(
            of(("x", "y", 0.5), *((a, b, 0.5) for a, b in itertools.pairwise(names))),
            Model(),
        )


def test_a_covariate_that_always_wins_is_refused():
    games = of(("a", "b", 1.0), ("b", "a", 0.0), ("a", "b", 0.0), ("b", "a", 1.0))
    with pytest.raises(DataError, match="did not converge"):
        tournament.fit(
            games._replace(covariates=2 * games.outcomes[:, None] - 1), Model(effects_prior=0.0)
        )


def test_rock_paper_scissors():
    # Each beats the next 80 % of the time: ratings are equal, so log 2; the truth is the entropy
    # of .8, .5004 nats.
    games = []
    for a, b in (("paper", "rock"), ("rock", "scissors"), ("scissors", "paper")):
        games += [(a, b, 1.0)] * 80 + [(a, b, 0.0)] * 20
    battles = of(*games)
    found = tournament.fit(battles, Model())
    assert found.ratings == pytest.approx(np.zeros(3), abs=1e-12)
    fits = tournament.transitivity(battles, found, ties="half")
    assert fits.rated == pytest.approx(np.log(2))
    assert fits.saturated == pytest.approx(-0.8 * np.log(0.8) - 0.2 * np.log(0.2))
    assert fits.pairs == 3
    # 2·300·(.6931 − .5004) = 115.6 on 3 − 2 = 1 degree of freedom.
    assert fits.p_value is not None and fits.p_value < 1e-20


@pytest.mark.parametrize("ties", ["half", "davidson"])
def test_transitive_players_are_not_accused(ties):
    p_values = []
    for seed in range(12):
        battles = random_battles(count=400, ties=0.0, seed=seed)
        found = tournament.fit(battles, Model(ties))
        p_values.append(tournament.transitivity(battles, found, ties=ties).p_value)
    assert 0.2 < np.mean(p_values) < 0.8 and min(p_values) > 0.001


def test_halves_and_thin_pairs_have_no_p_value():
    tied = random_battles(count=400, ties=0.4)
    assert tournament.transitivity(tied, tournament.fit(tied, Model()), ties="half")[3] is None
    found = tournament.fit(tied, Model("davidson"))
    assert tournament.transitivity(tied, found, ties="davidson").p_value is not None
    thin = random_battles(count=40, ties=0.0)
    fitted = tournament.fit(thin, Model(prior=0.1))
    assert tournament.transitivity(thin, fitted, ties="half").p_value is None
