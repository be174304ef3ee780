"""What labellers and held-out prompts come to, by hand; and faults that they alone can see."""

import math

import numpy as np
import pytest

from jaxrlhf.guards import direction, judged
from jaxrlhf.guards.base import Seen
from jaxrlhf.guards.judged import Andon, WinRate

REWARDS = np.array([0.0, 5.0, 1.0, 1.5, -3.0, 1.0, 2.0, 9.0])


def answers(rows):
    return [("prompt", str(REWARDS[i])) for i in rows]


def honest(a, b):
    return float(a[1]) > float(b[1])


def test_the_highest_is_paired_with_the_lowest_the_better_paid_first():
    """Of -3, 0, 1, 1, 1.5, 2, 5, 9: 9 with -3, then 5 with 0."""
    first, second = judged.clearest(REWARDS, settings=Andon(pairs=1, confirm=1), key=(0, 1))
    assert (REWARDS[first].tolist(), REWARDS[second].tolist()) == ([9, 5], [-3, 0])
    # One candidate pair is two rows, and which two depends on the key.
    drawn = {
        (*a, *b)
        for a, b in (
            judged.clearest(REWARDS, settings=Andon(candidates=1), key=(0, i)) for i in range(20)
        )
    }
    drawn -= {()}  # the two that are paid 1
    assert len(drawn) > 5 and all(REWARDS[a] > REWARDS[b] for a, b in drawn)


def test_pairs_that_are_paid_the_same_say_nothing():
    assert judged.clearest(np.ones(8), settings=Andon(), key=(0,)) == ([], [])
    assert judged.andon(3.0, answers, np.ones(8), honest, settings=Andon(), key=(0,)) == {}


@pytest.mark.parametrize(("sign", "agreed"), [(1, 1.0), (-1, 0.0)])
def test_labels_agree_with_a_reward_or_contradict_it(sign, agreed):
    found = judged.andon(3.0, answers, sign * REWARDS, honest, settings=Andon(pairs=3), key=(0, 1))
    step = math.log(0.2 / 0.5) if sign > 0 else math.log(0.8 / 0.5)
    assert found["guards/andon_agreed"] == agreed and found["guards/andon_labels"] == 3
    assert found["guards/andon"] == pytest.approx(max(0, 3 + 3 * step))


def test_a_suspicion_is_confirmed_or_brought_down_by_more_labels():
    """16 rows, so 8 pairs; 2 are labelled, 4 more where the sum passes 5, and never the last two.

    The two clearest contradict: 4.2 + 2 ln(.8 / .5) = 5.14. If the four do too, 5.14 + 4 × .47; if
    they agree, each takes ln(.5 / .2) = .916 off: 1.47.
    """
    delivered = np.arange(16.0)
    settings, against = Andon(pairs=2, confirm=4), math.log(0.8 / 0.5)

    def rows(numbers):
        return [("prompt", str(row)) for row in numbers]

    def found(before, compare):
        return judged.andon(before, rows, delivered, compare, settings=settings, key=(0,))

    confirmed = found(4.2, lambda a, b: False)
    assert confirmed["guards/andon_labels"] == 6 and confirmed["guards/andon_agreed"] == 0
    assert confirmed["guards/andon"] == pytest.approx(4.2 + 6 * against)
    # Of pairs (15, 0), (14, 1), (13, 2) ... the two clearest are 15 and 13 or more apart.
    cleared = found(4.2, lambda a, b: float(a[1]) - float(b[1]) < 13)
    assert cleared["guards/andon_agreed"] == pytest.approx(4 / 6)
    assert cleared["guards/andon"] == pytest.approx(4.2 + 2 * against - 4 * math.log(2.5))
    assert settings.look(seen_sum(cleared["guards/andon"])) is None
    assert found(4.0, lambda a, b: False)["guards/andon_labels"] == 2  # 4.94: no suspicion


def stops(agreement: float, *, updates: int, runs: int = 500, **ratio: float) -> np.ndarray:
    """`[runs]` the update at which labels that agree so often stop a run; 0: not at all."""
    draw, found = np.random.default_rng(7), np.zeros(runs, int)
    settings = Andon()
    for run in range(runs):
        total = 0.0
        for update in range(1, updates + 1):
            for count in (settings.pairs, settings.confirm):
                labels = (draw.random(count) < agreement).tolist()
                total = judged.cusum(total, labels, **(ratio or {"right": 0.5, "wrong": 0.2}))
                if total <= settings.limit:
                    break
            if settings.look(seen_sum(total)):
                found[run] = update
                break
    return found


def seen_sum(total: float) -> Seen:
    seen = Seen()
    seen.add({"guards/andon": total, "guards/andon_agreed": 0.5, "guards/andon_labels": 8})
    return seen


@pytest.mark.parametrize(("agreement", "at_most"), [(0.6, 0.01), (0.7, 0.005), (0.9, 0.0)])
def test_healthy_labels_seldom_stop_a_hundred_updates(agreement, at_most):
    """Labels agree with a healthy reward that is unsure. The ratio's root t, at which
    p .4^t + (1 - p) 1.6^t = 1, is 1.67 at p = .6, so an excursion passes 5 with probability at most
    exp(-8.3), 800 labels with .19; that counts a crossing at each of its labels, about twelve
    times, hence .018 in a simulation of 2,000, and .001 with more labels on suspicion. At .7 t is
    2.5: exp(-12.7) * 800 = .0025."""
    assert (stops(agreement, updates=100) > 0).mean() <= at_most


def test_the_worst_healthy_stream_keeps_the_bound():
    """Coins, 80 labels: at most 80 exp(-5) = .54; with P(agreement) = .7 as "well" they are a
    random walk, which has stopped most runs by then."""
    assert (stops(0.5, updates=10) > 0).mean() < 80 * math.exp(-5) / 5
    # A hundred updates: .03 in a simulation of 2,000; without more labels on suspicion .27.
    assert (stops(0.5, updates=100, runs=300) > 0).mean() < 0.08
    assert (stops(0.5, updates=10, right=0.7, wrong=0.3) > 0).mean() > 0.5


@pytest.mark.parametrize(("agreement", "at_least"), [(0.0, 1.0), (0.05, 0.98), (0.1, 0.9)])
def test_an_inverted_reward_is_stopped_within_three_updates(agreement, at_least):
    """Three updates are 24 labels. All against: 11 * log(1.6) = 5.17 > 5, so the second update. At
    .05 up to four may agree: 20 * .47 - 4 * .916 = 5.7; P(more of 24) = .006."""
    found = stops(agreement, updates=3)
    assert (found > 0).mean() >= at_least


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
