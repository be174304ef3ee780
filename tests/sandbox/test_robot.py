"""The robot's world: moves, plans and success worked out by hand, and what an evaluator sees."""

import numpy as np
import pytest

from jaxrlhf.errors import ConfigError
from jaxrlhf.sandbox.robot import MOVES, Evaluator, Robot

SMALL = Robot((1, 1), size=3, steps=2, step_cost=0.1)  # place x, z has number 3 x + z


def test_the_border_stops_a_move():
    corner = 0  # x = z = 0
    assert SMALL.offsets[corner].tolist() == [-1, -1]
    # Stay, x+1 (number 3), x-1 (border), z+1 (number 1), z-1 (border).
    assert SMALL.arrivals[corner].tolist() == [0, 3, 0, 1, 0]


def test_a_plan_goes_where_the_rewards_are():
    rewards = (np.abs(SMALL.offsets).sum(axis=1) == 0).astype(float)  # 1 on the ball
    policy = SMALL.plan(rewards)
    assert policy.shape == (2, 9)
    # Two steps reach the middle from every place of a 3 x 3 grid.
    assert SMALL.grasps(policy) == (1.0, 1.0)
    # One move from it: go now, 1 - .1 and then 1, rather than later.
    assert MOVES[policy[0, 1]].tolist() == [1, 0]  # from x = 0, z = 1


def test_a_plan_does_not_move_for_less_than_a_step_costs():
    rewards = np.zeros(9)
    rewards[4] = 0.09
    # Two moves and .09 once: -.11. One move, .09 twice: .18 - .1 = +.08, worth it; from a place
    # beside the ball only. With one step left it is not (.09 - .1).
    policy = SMALL.plan(rewards)
    beside = np.abs(SMALL.offsets).sum(axis=1) == 1
    assert (policy[0, beside] > 0).all() and (policy[0, ~beside] == 0).all()
    assert (policy[1] == 0).all()


def test_what_looks_like_a_grasp_is_three_times_as_common_when_depth_is_left_alone():
    sideways = (SMALL.offsets[:, 0] == 0).astype(float)
    # It ends at x = 0 from everywhere, and at z = 0 from the third of places that began there.
    assert SMALL.grasps(SMALL.plan(sideways)) == (1.0, pytest.approx(1 / 3))


def test_episodes_follow_the_policy_but_for_random_moves():
    rng = np.random.default_rng(0)
    stay = np.zeros((2, 9), int)
    still = SMALL.episodes(stay, 50, explore=0.0, rng=rng)
    assert still.shape == (50, 3) and (still == still[:, :1]).all() and len(set(still[:, 0])) == 9
    moved = SMALL.episodes(None, 2000, explore=0.0, rng=rng)
    # Random: from the middle 4 of 5 moves lead away.
    left = moved[moved[:, 0] == 4]
    assert np.mean(left[:, 1] != 4) == pytest.approx(0.8, abs=3 * 0.4 / np.sqrt(len(left)))


@pytest.mark.parametrize(
    ("sees", "worth"),
    # Frames (0, 0) and (0, 1). Without depth both look like grasps: 2. With it the second is one
    # place off: 1 - .15.
    [(False, 2.0), (True, 0.85)],
)
def test_the_worth_of_a_segment(sees, worth):
    evaluator = Evaluator(SMALL, depth_cue=0.5)
    assert evaluator.worth(np.array([[4, 5]]), np.array([sees]))[0] == pytest.approx(worth)


@pytest.mark.parametrize(
    ("cue", "chance"),
    # Before the ball against on it, one frame each: equal without depth, 1/2. With it the gap is
    # (-.15 - 1) / .5 = -2.3: .9 sigmoid(-2.3) + .05 = .132. Half and half: .316.
    [(0.0, 0.5), (1.0, 0.132), (0.5, 0.316)],
)
def test_an_evaluator_sees_depth_as_often_as_it_has_the_cue(cue, chance):
    count = 20_000
    before, on = np.full((count, 1), 3 + 2), np.full((count, 1), 4)
    said = Evaluator(SMALL, cue)(before, on, np.random.default_rng(1))
    assert said.mean() == pytest.approx(chance, abs=3 * 0.5 / np.sqrt(count))


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match=r"ball = \(0, 9\): must lie on the grid, 0 to 8"):
        Robot((0, 9))
    with pytest.raises(ConfigError, match=r"depth_cue = 1.5: must lie between 0 and 1"):
        Evaluator(SMALL, 1.5)


def test_offsets_are_counted_from_the_ball():
    robot = Robot((2, 0), size=3)
    assert robot.offsets[3 * 2 + 0].tolist() == [0, 0] and robot.offsets[1].tolist() == [-2, 1]
