"""Reward predictors: what they learn has a closed form, and who overfits is held back."""

import numpy as np
import pytest

from jaxrlhf.algorithms import reward_predictors
from jaxrlhf.algorithms.reward_predictors import Comparisons, Ensemble


def two_states(share: float, count: int) -> Comparisons:
    """A frame in state 0 against one in state 1; state 0 is preferred in `share`."""
    return Comparisons(
        np.tile([1.0, -1.0], (count, 1)), (np.arange(count) < share * count).astype(float)
    )


@pytest.mark.parametrize(
    ("lapse", "gap"),
    # sigmoid(gap) = .8: log 4 = 1.386. With a tenth at random .9 sigmoid + .05 = .8: sigmoid is
    # 5/6, log 5 = 1.609.
    [(0.0, np.log(4)), (0.1, np.log(5))],
)
def test_rewards_are_the_log_odds_of_the_labels(lapse, gap):
    compared = two_states(0.8, 4000)
    found = reward_predictors.fit(compared, members=6, lapse=lapse, rng=np.random.default_rng(0))
    gaps = found.gaps(np.array([[1.0, -1.0]]))[:, 0]
    # A bootstrap sample's log-odds have standard error 1 / sqrt(4000 * .16) = .04 (over 1 - lapse
    # and twice in the tail with lapse: .06); four of those. The penalty has all but gone.
    assert gaps == pytest.approx(np.full(6, gap), abs=0.24)
    assert abs(gaps.mean() - gap) < 0.1 and len(set(gaps.round(4))) > 1
    assert (found.decay < reward_predictors.FIRST / 10).all()


def test_who_learns_noise_by_heart_is_held_back():
    rng = np.random.default_rng(0)
    noise = Comparisons(rng.normal(size=(30, 60)), rng.integers(2, size=30).astype(float))
    found = reward_predictors.fit(noise, members=3, lapse=0.0, rng=rng)
    assert (found.decay > reward_predictors.FIRST).all()


def test_the_penalty_follows_validation_over_training_loss():
    # Ratios 1.0 (could fit more), 1.3 (as wanted), 2.0 (overfits); and the bounds.
    decay = reward_predictors.adapted(
        np.array([0.1, 0.1, 0.1, 1e-6, 1.0]), np.ones(5), np.array([1.0, 1.3, 2.0, 1.0, 2.0])
    )
    assert decay.tolist() == np.float32([0.05, 0.1, 0.2, 1e-6, 1.0]).tolist()


def test_validation_rows_are_those_not_drawn():
    # Two rows of two states, gaps +2 and -2 nats, both labelled a: -log sigmoid is .1269, 2.1269.
    rewards = np.array([[1.0, -1.0]], np.float32)
    seen = np.array([[1.0, -1.0], [-1.0, 1.0]], np.float32)
    labels, drawn = np.ones(2, np.float32), np.array([[2.0, 0.0]], np.float32)
    training, validation = reward_predictors.losses(rewards, 0.0, seen, labels, drawn, drawn == 0)
    assert training == pytest.approx(0.1269, abs=1e-4)
    assert validation == pytest.approx(2.1269, abs=1e-4)


def test_visits_are_counted_with_repetition():
    a, b = np.array([[0, 0, 2]]), np.array([[2, 1, 1]])
    assert reward_predictors.visits(a, b, states=3).tolist() == [[2.0, -2.0, 0.0]]


def test_members_count_equally_whatever_their_scale():
    # (0, 2) is (-1, 1) standardised; (300, 100) is (1, -1): they cancel, but the third decides.
    one = Ensemble(np.array([[0.0, 2.0], [300.0, 100.0], [1.0, 3.0]]), np.zeros(3))
    assert one.standardised() == pytest.approx([-1 / 3, 1 / 3])
    assert Ensemble(np.zeros((1, 2)), np.zeros(1)).standardised().tolist() == [0.0, 0.0]
