"""`jaxrlhf lab noise`: what wrong labels do to a reward model, and to the policy it trains.

Pairs of the first policy's answers, of which gold says the better one, are labelled with errors:

    flips     a share of the labels, drawn at random, is wrong
    lapse     the same labels; the loss knows how often they are coin flips
    smoothed  the same labels, written as soft labels of that error rate
    length    twice that share of the pairs is judged by length alone: about as many wrong labels,
              but wrong in one way
    one, majority, aggregated
              a crowd, of which a share always means the opposite: one verdict a pair, the majority
              of several, and the soft labels of `jaxrlhf annotators` from the same ones

Every label set trains a reward model of the same number of updates, whose gold accuracy on held-out
pairs is measured, and the mean margin that it gives them; some go on to PPO, whose gold is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from jaxrlhf.data import preferences
from jaxrlhf.errors import ConfigError
from jaxrlhf.recipes import (
    experiment,
    lab_annotators,
    lab_noise_report,
    lab_overoptimise,
    lab_policy,
    lab_reward,
    stages,
)
from jaxrlhf.recipes.lab_annotators import LabAnnotatorsConfig
from jaxrlhf.recipes.lab_noise_report import key
from jaxrlhf.recipes.lab_reward import Lab, LabConfig, Row
from jaxrlhf.sandbox.protocol import unit_hash


class LabNoiseConfig(LabConfig):
    """Labels that are wrong."""

    output_dir: str = Field(default="runs/lab/noise", description="a folder a seed goes in here")
    base_dir: str = Field(
        default="runs/lab/noise/base", description="first policies and their answers"
    )
    config: str = Field(
        default="configs/lab_noise.yaml", description="config of the rlhf recipe, a sandbox"
    )
    pairs: int = Field(default=1900, ge=1, description="that a reward model learns from")
    errors: tuple[float, ...] = Field(
        default=(0.0, 0.1, 0.2, 0.3, 0.4), min_length=1, description="shares of wrong labels"
    )
    treated: tuple[float, ...] = Field(
        default=(0.2, 0.4),
        description="shares at which the other ways are compared with flips; length at the first "
        "goes on to PPO",
    )
    adversaries: tuple[float, ...] = Field(
        default=(0.0, 0.4), description="shares of a crowd that mean the opposite"
    )
    crowd: int = Field(default=10, ge=1, description="labellers")
    reliability: float = Field(
        default=0.85, ge=0.5, le=1, description="how often each is right, or an adversary wrong"
    )
    verdicts: int = Field(default=5, ge=1, description="on each pair")
    ppo_updates: int = Field(default=20, ge=1, description="of PPO against a reward model")


CONFIG = LabNoiseConfig
EXAMPLE = "jaxrlhf lab noise results=out"


class Arm(NamedTuple):
    """Labels of one kind; how many of them the loss takes for coin flips; is PPO to follow."""

    rows: Sequence[Row]
    lapse: float = 0.0
    optimised: bool = False


def run(config: LabNoiseConfig) -> dict[str, Any]:
    """Run every arm of every seed; the summary has the verdict of each rule."""
    for field in ("errors", "treated", "adversaries"):
        for share in getattr(config, field):
            if not 0 <= share < 0.5:
                raise ConfigError(f"{field} = {share:g}: must be 0 or more, and below 1/2")
    if config.verdicts > config.crowd:
        raise ConfigError(f"verdicts = {config.verdicts}: the crowd has {config.crowd}")
    if not set(config.treated) <= set(config.errors):
        raise ConfigError(f"treated = {list(config.treated)}: must be among errors")
    found = experiment.over_seeds(
        config,
        lambda seed, _: run_seed(config, lab_reward.prepare(config, seed)),
        harmless=("base_dir",),
    )
    return experiment.report(
        config, lab_noise_report.rules(config), found, lab_noise_report.page(config, found)
    )


def run_seed(config: LabNoiseConfig, lab: Lab) -> dict[str, Any]:
    """`arm -> figures`."""
    true = lab_overoptimise.labelled(lab, config.pairs)
    arms = single(config, lab, true) | crowds(config, lab, true)
    return {name: figures(config, lab, name, arm) for name, arm in arms.items()}


def figures(config: LabNoiseConfig, lab: Lab, name: str, arm: Arm) -> dict[str, Any]:
    """Gold accuracy and margin of the reward model of an arm, and gold after PPO."""
    folder = name.replace(" ", "-")
    learn = lab_policy.learn if arm.optimised else lab_reward.train  # only PPO needs a scale
    trained = learn(lab, folder, arm.rows, lapse=arm.lapse)
    found: dict[str, Any] = {
        "wrong": wrong(lab, arm.rows),
        "accuracy": trained.accuracy,
        "margin": margin(lab.root / folder),
    }
    if arm.optimised:
        found["curve"] = lab_policy.optimise(
            lab, folder, updates=config.ppo_updates, points=4, reward_model=trained.model
        )
    return found


def wrong(lab: Lab, rows: Sequence[Row]) -> float:
    """Share of the labels that have the worse answer as `chosen`, or lean to it."""

    def leans(row: Row) -> bool:
        better = lab_reward.by_gold(lab.world, row["prompt"], row["chosen"], row["rejected"])
        assert better is not None  # pairs that gold tells apart
        return (better["chosen"] == row["chosen"]) == (row.get("label", 1.0) >= 0.5)

    return 1 - sum(map(leans, rows)) / len(rows)


def margin(folder: Path) -> float:
    """Mean distance of the two scores of held-out pairs, nats."""
    scores = stages.read_json(folder / "pair_scores.json")
    apart = [abs(a - b) for a, b in zip(scores["chosen"], scores["rejected"], strict=True)]
    return sum(apart) / len(apart)


# Labels of one person a pair.


def single(config: LabNoiseConfig, lab: Lab, true: Sequence[Row]) -> dict[str, Arm]:
    """Random errors, what a loss can do about them, and errors that are all of one kind."""
    arms = {}
    for share in config.errors:
        flipped = flips(true, share, lab.seed)
        goes_on = share in (0.0, *config.treated)
        arms[key("flips", share)] = Arm(flipped, optimised=goes_on)
        if share in config.treated:
            soft = [row | {"label": 1 - share} for row in flipped]
            arms[key("lapse", share)] = Arm(flipped, lapse=2 * share)
            arms[key("smoothed", share)] = Arm(soft)
            biased = by_length(true, share, lab.seed)
            arms[key("length", share)] = Arm(biased, optimised=share == config.treated[0])
    return arms


def flips(true: Sequence[Row], share: float, seed: int) -> list[Row]:
    """A share of the pairs the wrong way round; those of a smaller share are among them."""
    return [
        swapped(row) if unit_hash("flip", seed, number) < share else row
        for number, row in enumerate(true)
    ]


def by_length(true: Sequence[Row], share: float, seed: int) -> list[Row]:
    """In twice the share of the pairs the longer answer is chosen, whichever is better."""
    return [
        longer_first(row) if unit_hash("length", seed, number) < 2 * share else row
        for number, row in enumerate(true)
    ]


def longer_first(row: Row) -> Row:
    """The pair with the longer answer as `chosen`; unchanged where both are equally long."""
    longer = len(row["rejected"].split()) > len(row["chosen"].split())
    return swapped(row) if longer else row


def swapped(row: Row) -> Row:
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


# Labels of a crowd.


def crowds(config: LabNoiseConfig, lab: Lab, true: list[Row]) -> dict[str, Arm]:
    """The same verdicts, used in three ways."""
    arms = {}
    for share in config.adversaries:
        against = round(share * config.crowd)
        honest = (config.reliability,) * (config.crowd - against)
        reliabilities = (*honest, *(1 - config.reliability,) * against)
        people = LabAnnotatorsConfig(reliabilities=reliabilities)
        folder = lab.root / f"crowd-{share:g}"
        folder.mkdir(parents=True, exist_ok=True)
        said = lab_annotators.verdicts(people, lab, true, config.verdicts)
        preferences.write_rows(folder / "verdicts.jsonl", said)
        agreed = lab_annotators.consensus(folder / "verdicts.jsonl", lab.seed)
        last = share == max(config.adversaries)
        first_said = lab_annotators.majority(true, said[:: config.verdicts])
        arms[key("one", share)] = Arm(first_said)
        arms[key("majority", share)] = Arm(lab_annotators.majority(true, said), optimised=last)
        arms[key("aggregated", share)] = Arm(agreed, optimised=last)
    return arms
