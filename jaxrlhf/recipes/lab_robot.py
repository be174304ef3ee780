"""`jaxrlhf lab robot`: a robot that learns from comparisons to seem to grasp.

The method of Christiano et al. 2017 (1706.03741) in the grid world of `sandbox/robot.py`. An
evaluator compares segments of six frames, through a camera that shows no depth; an ensemble of
reward predictors learns from that (`algorithms/reward_predictors.py`), and the robot does what is
best by their mean. Perceived and true success are measured after every round of comparisons. Arms:

    depth cue   in what share of the comparisons the evaluator sees depth too
    source      segments of the newest policy (online), or of random moves alone (offline)
    choice      of ten times as many pairs, those that the predictors differ on most, or any

Deviation from the paper: the policy is planned, exactly, and not learned.
"""

from itertools import product
from typing import Any, Literal

import numpy as np
from pydantic import Field

from jaxrlhf.algorithms import reward_predictors
from jaxrlhf.algorithms.reward_predictors import Comparisons, Ensemble
from jaxrlhf.errors import ConfigError
from jaxrlhf.evals import acquisition
from jaxrlhf.recipes import experiment, lab_robot_report
from jaxrlhf.recipes.experiment import ExperimentConfig
from jaxrlhf.recipes.lab_robot_report import FRAMES, key
from jaxrlhf.sandbox.protocol import generator
from jaxrlhf.sandbox.robot import Evaluator, Robot

Source = Literal["online", "offline"]
Choice = Literal["disagreement", "random"]


class LabRobotConfig(ExperimentConfig):
    """The robot that seems to grasp."""

    output_dir: str = Field(default="runs/lab/robot", description="a folder a seed goes in here")
    seeds: tuple[int, ...] = Field(
        default=tuple(range(10)), min_length=1, description="which seeds"
    )
    depth_cues: tuple[float, ...] = Field(
        default=(0.0, 0.25, 0.5, 1.0),
        min_length=1,
        description="shares of the comparisons in which the evaluator sees depth",
    )
    sources: tuple[Source, ...] = Field(
        default=("online", "offline"), min_length=1, description="where segments come from"
    )
    choices: tuple[Choice, ...] = Field(
        default=("disagreement", "random"), min_length=1, description="which pairs are compared"
    )
    comparisons: int = Field(default=1000, ge=1, description="in all rounds together")
    rounds: int = Field(default=5, ge=1, description="of equally many comparisons")
    members: int = Field(default=5, ge=2, description="reward predictors of an ensemble")
    candidates: int = Field(default=10, ge=1, description="pairs to choose one from")
    explore: float = Field(
        default=0.3, ge=0, le=1, description="random moves of a policy that is compared"
    )
    lapse: float = Field(default=0.1, ge=0, lt=1, description="answers given at random")


CONFIG = LabRobotConfig
EXAMPLE = "jaxrlhf lab robot results=out"


def run(config: LabRobotConfig) -> dict[str, Any]:
    """Run every arm of every seed; the summary has the verdict of each rule."""
    if config.comparisons % config.rounds:
        raise ConfigError(
            f"comparisons = {config.comparisons}: must be a multiple of rounds = {config.rounds}"
        )
    found = experiment.over_seeds(config, lambda seed, _: run_seed(config, seed))
    rules, page = lab_robot_report.rules(config), lab_robot_report.page(config, found)
    return experiment.report(config, rules, found, page)


def run_seed(config: LabRobotConfig, seed: int) -> dict[str, Any]:
    """`arm -> figures`, each a list with an entry a round."""
    arms = product(config.depth_cues, config.sources, config.choices)
    return {key(*arm): run_arm(config, seed, *arm) for arm in arms}


def run_arm(
    config: LabRobotConfig, seed: int, cue: float, source: Source, choice: Choice
) -> dict[str, list[float]]:
    """Ask, learn, plan, and again: success after each round."""
    robot, rng = robot_of(seed), generator("robot", seed, f"{cue:g}", source, choice)
    evaluator = Evaluator(robot, cue, lapse=config.lapse)
    each = config.comparisons // config.rounds
    compared, ensemble, policy = None, None, None
    figures: dict[str, list[float]] = {"comparisons": [], "perceived": [], "true": []}
    for number in range(1, config.rounds + 1):
        watched = policy if source == "online" else None
        asked = ensemble if choice == "disagreement" else None
        new = compare(config, robot, evaluator, watched, asked, each, rng)
        compared = new if compared is None else compared.and_(new)
        ensemble = reward_predictors.fit(
            compared, members=config.members, lapse=config.lapse, rng=rng
        )
        policy = robot.plan(ensemble.standardised())
        success = robot.grasps(policy)
        figures["comparisons"].append(number * each)
        figures["perceived"].append(success.perceived)
        figures["true"].append(success.true)
    return figures


def robot_of(seed: int) -> Robot:
    """The ball lies anywhere: in the middle it would be where a claw is most of the time anyhow."""
    x, z = generator("ball", seed).integers(Robot.size, size=2)
    return Robot((int(x), int(z)))


def compare(
    config: LabRobotConfig,
    robot: Robot,
    evaluator: Evaluator,
    policy: np.ndarray | None,
    ensemble: Ensemble | None,
    count: int,
    rng: np.random.Generator,
) -> Comparisons:
    """`count` answers of the evaluator about segments of `policy`, chosen by `ensemble` if any."""
    pairs = count if ensemble is None else count * config.candidates
    a, b = (segments(config, robot, policy, pairs, rng) for _ in range(2))
    visits = reward_predictors.visits(a, b, states=len(robot.offsets))
    if ensemble is not None:
        best = acquisition.highest(acquisition.disagreement(ensemble.gaps(visits)), count)
        a, b, visits = a[best], b[best], visits[best]
    return Comparisons(visits, evaluator(a, b, rng))


def segments(
    config: LabRobotConfig,
    robot: Robot,
    policy: np.ndarray | None,
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """`[count, FRAMES]` places: a window of an episode each, anywhere in it."""
    whole = robot.episodes(policy, count, explore=config.explore, rng=rng)
    start = rng.integers(whole.shape[1] - FRAMES + 1, size=count)
    return np.take_along_axis(whole, start[:, None] + np.arange(FRAMES), axis=1)
