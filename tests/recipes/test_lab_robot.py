"""`jaxrlhf lab robot`: what each arm asks about, the rules on figures by hand, one small run."""

import lab_robot_probes
import numpy as np
import pytest

from jaxrlhf.algorithms import reward_predictors
from jaxrlhf.algorithms.reward_predictors import Ensemble
from jaxrlhf.errors import ConfigError
from jaxrlhf.recipes import lab_robot, lab_robot_report
from jaxrlhf.recipes.lab_robot import LabRobotConfig
from jaxrlhf.sandbox.robot import Evaluator, Robot

ROBOT = Robot((4, 4))


def test_an_arm_differs_in_what_is_asked_and_nothing_else():
    found = lab_robot_probes.run("choices=[disagreement,random]")["found"][0]
    assert set(found) == {
        f"{cue}, {source}, {choice}"
        for cue in (0, 1)
        for source in ("online", "offline")
        for choice in ("disagreement", "random")
    }
    assert all(arm["comparisons"] == [6, 12] for arm in found.values())
    assert all(0 <= x <= 1 for arm in found.values() for x in (*arm["true"], *arm["perceived"]))


def test_pairs_are_those_the_predictors_differ_on():
    """Members differ on one place alone: of ten times as many pairs, those with it are asked."""
    config, place = LabRobotConfig(candidates=10), 40
    rewards = np.zeros((2, 81))
    rewards[:, place] = (3.0, -3.0)
    rng = np.random.default_rng(0)
    evaluator = Evaluator(ROBOT, 1.0)
    chosen = lab_robot.compare(
        config, ROBOT, evaluator, None, Ensemble(rewards, np.zeros(2)), 20, rng
    )
    anyhow = lab_robot.compare(config, ROBOT, evaluator, None, None, 20, rng)
    assert len(chosen.labels) == len(anyhow.labels) == 20
    assert (chosen.visits[:, place] != 0).mean() > 0.9 > 0.5 > (anyhow.visits[:, place] != 0).mean()


def test_online_segments_are_of_the_newest_policy():
    config, rng = LabRobotConfig(explore=0.0), np.random.default_rng(0)
    home = ROBOT.plan((ROBOT.offsets == 0).all(axis=1).astype(float))
    ours = lab_robot.segments(config, ROBOT, home, 400, rng)
    anyone = lab_robot.segments(config, ROBOT, None, 400, rng)
    assert ours.shape == (400, 6)
    middle = 40
    assert (ours == middle).mean() > 0.4 > 0.1 > (anyone == middle).mean()


@pytest.mark.parametrize(
    ("axes", "true"),
    # By both axes the plan grasps from everywhere; by x alone it ends where it looks so, and stays
    # in the depth it began in, one of nine.
    [((1, 1), 1.0), ((1, 0), 1 / 9)],
)
def test_success_is_that_of_the_plan_for_what_was_learned(monkeypatch, axes, true):
    learned = -1.0 * (np.abs(ROBOT.offsets) * axes).sum(axis=1)
    monkeypatch.setattr(lab_robot, "robot_of", lambda _: ROBOT)
    monkeypatch.setattr(
        reward_predictors, "fit", lambda *_, **__: Ensemble(np.tile(learned, (2, 1)), np.zeros(2))
    )
    found = lab_robot.run_arm(LabRobotConfig(rounds=1), 0, 1.0, "online", "random")
    assert found["perceived"] == [1.0] and found["true"] == [pytest.approx(true)]


def test_the_seed_says_where_the_ball_lies():
    balls = {lab_robot.robot_of(seed).ball for seed in range(10)}
    assert len(balls) > 5 and all(0 <= x < 9 for ball in balls for x in ball)


def seed(perceived: float, true: float, cue: float) -> dict:
    arm = {"comparisons": [10, 20], "perceived": [0.5, perceived], "true": [0.5, true]}
    return {f"{cue:g}, online, disagreement": arm}


@pytest.mark.parametrize(
    ("cue", "number", "perceived", "true", "holds"),
    [
        (0.0, 0, 0.9, 0.1, True),
        (0.0, 0, 0.89, 0.1, False),
        (0.0, 1, 0.9, 0.25, True),
        (0.0, 1, 0.9, 0.35, False),
        (1.0, 0, 1.0, 0.8, True),
        (1.0, 0, 1.0, 0.75, False),
        (1.0, 1, 0.9, 0.8, True),
        (1.0, 1, 1.0, 0.8, False),
    ],
)
def test_a_rule_judges_the_last_round(cue, number, perceived, true, holds):
    rule = lab_robot_report.rules(LabRobotConfig(depth_cues=(cue,)))[number]
    assert rule.judge(seed(perceived, true, cue)).holds is holds


def test_rules_are_those_of_arms_that_were_run():
    assert len(lab_robot_report.rules(LabRobotConfig())) == 4
    assert len(lab_robot_report.rules(LabRobotConfig(depth_cues=(0.5,)))) == 0
    assert len(lab_robot_report.rules(LabRobotConfig(sources=("offline",)))) == 0


def test_differences_are_paired_by_seed():
    config = LabRobotConfig(depth_cues=(1.0,), choices=("random",))
    found = [
        {
            f"1, {source}, random": {"comparisons": [9], "perceived": [1.0], "true": [true]}
            for source, true in (("online", one), ("offline", one - 0.25))
        }
        for one in (0.5, 1.0)
    ]
    headers, lines = lab_robot_report.differences(config, found)
    assert headers == ("online - offline, random",)
    assert lines == [["1", "0.25 [0.25, 0.25]"]]


def test_the_page_has_a_line_an_arm():
    page = lab_robot_probes.run("results=page")["written"]["page.md"]
    assert "jaxrlhf lab robot seeds=[3]" in page
    assert page.count("online, disagreement |") == 2  # depth cues 0 and 1
    assert "**fails**" in page or "PASS" in page


def test_rounds_are_equally_long():
    with pytest.raises(ConfigError, match="comparisons = 12: must be a multiple of rounds = 5"):
        lab_robot_probes.run("rounds=5")
