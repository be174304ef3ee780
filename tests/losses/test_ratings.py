"""Ratings: answers that can be worked out by hand, scipy's optimiser, and graphs without a fit."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxrlhf.losses import elo, ratings


def test_two_players_are_the_log_odds_and_the_textbook_error():
    # p = 30/40: log 3 nats; Fisher information 40 * .75 * .25 = 7.5, so SE = 1/sqrt(7.5) = .36515.
    found = ratings.fit(jnp.array([[0.0, 30.0], [10.0, 0.0]]), prior=0.0)
    assert found.ratings.tolist() == pytest.approx([np.log(3) / 2, -np.log(3) / 2], abs=1e-5)
    table = ratings.elo(found, anchor=1, z=1.0)
    # 400 log10 3 = 190.85; 173.72 * .36515 = 63.43
    assert table[0].tolist() == pytest.approx([190.85, 190.85 - 63.43, 190.85 + 63.43], abs=0.02)
    assert table[1].tolist() == pytest.approx([0, 0, 0], abs=1e-3)


def test_a_chain_adds_up():
    # a beats b 3:1 and b beats c 4:1, a and c never met: log 3, log 4, and their sum; SEs add as
    # variances: 1/(4 * 3/16) = 4/3 and 1/(5 * 4/25) = 5/4.
    wins = jnp.array([[0.0, 3.0, 0.0], [1.0, 0.0, 4.0], [0.0, 1.0, 0.0]])
    found = ratings.fit(wins, prior=0.0)
    a, b, c = found.ratings.tolist()
    assert (a - b, b - c, a - c) == pytest.approx((np.log(3), np.log(4), np.log(12)), abs=1e-4)
    estimate, low, _ = (ratings.elo(found, anchor=2, z=1.0)[0] / elo.ELO_PER_NAT).tolist()
    assert estimate - low == pytest.approx(np.sqrt(4 / 3 + 5 / 4), rel=1e-4)


def test_scipy_agrees():
    rng = np.random.default_rng(0)
    wins = rng.integers(1, 60, (6, 6)).astype(np.float32)
    np.fill_diagonal(wins, 0)

    def loss(r):
        gap = r[:, None] - r[None, :]
        return float((wins * np.logaddexp(0, -gap)).sum() + 0.5 * 0.3 * (r**2).sum())

    best = optimize.minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-7})
    found = ratings.fit(jnp.asarray(wins), prior=0.3)
    assert np.asarray(found.ratings) == pytest.approx(best.x - best.x.mean(), abs=1e-4)
    assert ratings.negative_log_likelihood(found.ratings, wins).item() + 0.15 * (
        np.square(found.ratings).sum()
    ) == pytest.approx(best.fun, rel=1e-6)


def test_a_tie_is_half_a_win_for_each():
    tied = ratings.fit(jnp.array([[0.0, 2.5], [1.5, 0.0]]), prior=0.0)
    doubled = ratings.fit(jnp.array([[0.0, 5.0], [3.0, 0.0]]), prior=0.0)
    assert np.asarray(tied.ratings) == pytest.approx(np.asarray(doubled.ratings), abs=1e-5)
    assert np.asarray(tied.covariance) == pytest.approx(
        2 * np.asarray(doubled.covariance), rel=1e-3
    )


def test_strong_players_converge():
    # 999:1 is log 999 = 6.9 nats: a full Newton step from 0 would jump to 500.
    found = ratings.fit(jnp.array([[0.0, 999.0], [1.0, 0.0]]), prior=0.0)
    assert (found.ratings[0] - found.ratings[1]).item() == pytest.approx(np.log(999), abs=1e-2)


def test_a_player_who_never_loses_has_no_rating_without_a_prior():
    wins = jnp.array([[0.0, 5.0, 5.0], [0.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    assert not ratings.comparable(wins)
    with pytest.raises(ValueError, match="never loses"):
        ratings.fit(wins, prior=0.0)
    found = ratings.fit(wins, prior=0.1)
    assert np.isfinite(found.ratings).all() and found.ratings.argmax() == 0


def test_a_ring_is_comparable_and_two_islands_are_not():
    ring = jnp.array(np.roll(np.eye(5), 1, axis=1))  # 0 beats 1 beats 2 ... beats 0
    assert ratings.comparable(ring)
    assert not ratings.comparable(ring.at[4, 0].set(0))
    islands = jnp.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    assert not ratings.comparable(islands)
    assert np.abs(ratings.fit(ring, prior=0.0).ratings).max() < 1e-5


def test_games_against_oneself_do_not_count():
    wins = jnp.array([[0.0, 3.0], [1.0, 0.0]])
    alone, also = (ratings.fit(w, prior=0.0).ratings for w in (wins, wins + 9 * jnp.eye(2)))
    assert alone.tolist() == also.tolist()


@pytest.mark.parametrize(
    ("wins", "prior"), [([[0, 1, 2]], 0.0), ([[0, -1], [1, 0]], 0.0), ([[0, 1], [1, 0]], -1.0)]
)
def test_bad_counts_are_refused(wins, prior):
    with pytest.raises(ValueError, match=r"counts|prior"):
        ratings.fit(jnp.array(wins), prior=prior)
