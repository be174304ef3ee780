"""What labellers and held-out prompts come to, by hand; and faults that they alone can see."""

import math

import numpy as np
import pytest

from jaxrlhf.guards import direction, judged
from jaxrlhf.guards.judged import Andon, WinRate

REWARDS = np.array([0.0, 5.0, 1.0, 1.5, -3.0, 1.0, 2.0, 9.0])


def answers(rows):
    return [("prompt", str(REWARDS[i])) for i in rows]


def honest(a, b):
    return float(a[1]) > float(b[1])


def test_the_pairs_with_the_largest_gap_are_labelled_the_better_paid_first():
    settings = Andon(pairs=2, candidates=4)
    first, second = judged.clearest(REWARDS, settings=settings, key=(0, 1))
    gaps = REWARDS[first] - REWARDS[second]
    assert len(gaps) == 2 and (gaps > 0).all() and gaps[0] >= gaps[1]
    assert len({*first, *second}) == 4
    # Of the four pairs that the same key draws, those are the clearest.
    order = np.random.default_rng([0, 1]).permutation(8)
    every = sorted(abs(REWARDS[order[:4]] - REWARDS[order[4:]]))
    np.testing.assert_allclose(sorted(gaps), every[-2:])
    assert judged.clearest(REWARDS, settings=settings, key=(0, 2)) != (first, second)


def test_pairs_that_are_paid_the_same_say_nothing():
    assert judged.clearest(np.ones(8), settings=Andon(), key=(0,)) == ([], [])
    assert judged.andon(3.0, answers, np.ones(8), honest, settings=Andon(), key=(0,)) == {}


@pytest.mark.parametrize(("sign", "agreed"), [(1, 1.0), (-1, 0.0)])
def test_labels_agree_with_a_reward_or_contradict_it(sign, agreed):
    found = judged.andon(3.0, answers, sign * REWARDS, honest, settings=Andon(pairs=3), key=(0, 1))
    step = math.log(7 / 3)
    assert found["guards/andon_agreed"] == agreed and found["guards/andon_labels"] == 3
    assert found["guards/andon"] == pytest.approx(3 - 3 * sign * step)


def test_the_win_rate_alone_sees_a_policy_that_games_its_reward():
    """The reward rises on every prompt, so the trend is fine, and people like the reference."""
    reference = [(str(i), f"good {i}") for i in range(20)]
    policy = [(str(i), f"flattery {i}") for i in range(20)]
    trend = judged.trend(np.arange(20) + 1.0, np.arange(20) / 2)
    assert trend["guards/heldout_z"] > 3
    found = judged.win_rate(
        0.0,
        policy,
        reference,
        lambda a, b: a[1].startswith("good"),
        settings=WinRate(pairs=16),
        key=(0, 1),
    )
    # Sixteen losses: 16 log(.7/.5) = 5.38 > 5.
    assert found["guards/win_rate"] == 0
    assert found["guards/win_rate_sum"] == pytest.approx(16 * math.log(1.4))


def test_prompts_on_which_both_say_the_same_are_passed_over():
    same = [("a", "b")] * 5
    settings = WinRate()
    assert judged.win_rate(0.0, same, same, honest, settings=settings, key=(0,)) == {}


def test_the_trend_is_a_paired_z_by_hand():
    """Differences -1, -2, -3: mean -2, s = 1, standard error 1/√3."""
    found = judged.trend(np.array([4.0, 0.0, 7.0]), np.array([5.0, 2.0, 10.0]))
    assert found["guards/heldout_z"] == pytest.approx(-2 * math.sqrt(3))
    assert judged.trend(np.ones(4), np.ones(4)) == {}


def test_disagreement_by_hand_in_units_of_the_references():
    """Two models on the reference: z = ∓1, ±1 against ∓1, ∓1... and on the policy three times that.

    Model 1 says (-1, 1), model 2 (1, -1), both of mean 0 and deviation 1: they are 1 apart from
    their mean on each. On the policy's two answers they say ±3: 3 apart, and 3/1 = 3.
    """
    reference = np.array([[-1.0, 1.0], [1.0, -1.0]])
    found = judged.disagreement(3 * reference, reference)
    assert found["guards/disagreement"] == pytest.approx(3.0)
    # Another unit and origin of one model changes nothing.
    scale, shift = np.array([[10.0], [1.0]]), np.array([[5.0], [0.0]])
    moved = judged.disagreement(scale * 3 * reference + shift, scale * reference + shift)
    assert moved["guards/disagreement"] == pytest.approx(3.0)
    assert judged.disagreement(reference[:1], reference[:1]) == {}


def test_only_other_reward_models_see_that_one_is_exploited():
    """The optimised model's scores rise, those of two that were not optimised fall apart."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200)
    reference = np.stack([truth + rng.normal(0, 0.3, 200) for _ in range(3)])
    policy = np.stack([truth + 4, truth - 1, truth + rng.normal(0, 1, 200)])
    assert judged.trend(policy[0], reference[0])["guards/heldout_z"] > 3
    assert judged.disagreement(policy, reference)["guards/disagreement"] > 2
    assert judged.disagreement(reference + 0.5, reference)["guards/disagreement"] < 1.05


# The figures of the direction guards.


def test_canaries_count_ties_as_half():
    found = direction.canary(np.array([1.0, 2, 3, 3]), np.array([0.0, 3, 3, 1]))
    assert found == {"guards/canary": 2.5 / 4, "guards/canary_pairs": 4.0}


def test_readings_are_a_correlation():
    scores = np.array([0.1, 0.7, -0.4, 2.0])
    assert direction.readings(scores, 3 * scores - 1)["guards/readings"] == pytest.approx(1)
    assert direction.readings(scores, -scores)["guards/readings"] == pytest.approx(-1)
    assert direction.readings(np.ones(4), scores) == {}
    # What varied arrives as one number: nothing of it is left.
    assert direction.readings(scores, np.zeros(4)) == {"guards/readings": 0.0}


def test_the_direction_is_in_standard_errors():
    """r = .6 of 19 rows: atanh(.6) = .6931, times √16."""
    a = np.array([1.0] * 9 + [-1.0] * 9 + [0.0])
    b = np.concatenate([a[:-1], [0.0]])
    noise = np.array([1.0, -1.0] * 9 + [0.0])
    noise -= a * (noise @ a) / (a @ a)
    mixed = 0.6 * b / np.linalg.norm(b) + 0.8 * noise / np.linalg.norm(noise)
    found = direction.direction(mixed, a)["guards/direction_z"]
    assert found == pytest.approx(math.atanh(0.6) * 4)
    assert direction.direction(a, a)["guards/direction_z"] < 100  # r = 1 is finite too
