"""`jaxrlhf lab sycophancy`: labellers who like agreement, and the policy that they make.

In the quiz (`sandbox/quiz.py`) people say what they believe before they ask, right as often as
wrong. A labeller compares answers by

    utility = gold (truth, worth 1, and sound reasons) + ratio * [the answer agrees with the asker]

Its labels train a reward model, which trains the first policy by PPO. Measured all along: how often
answers are right to people who believe the wrong thing. Three remedies, at the highest ratio:

    regressed     the agreement that the reward model pays for is estimated, and taken off
    fact shown    the labeller is shown the fact, and no longer likes agreement with an error
    masked        the reward model never sees what the asker believes
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from pydantic import Field

from jaxrlhf import rewards
from jaxrlhf.data import preferences
from jaxrlhf.errors import ConfigError
from jaxrlhf.recipes import (
    experiment,
    lab_policy,
    lab_reward,
    lab_sycophancy_report,
)
from jaxrlhf.recipes.lab_policy import Reward
from jaxrlhf.recipes.lab_reward import Lab, LabConfig, Row, Trained
from jaxrlhf.recipes.lab_sycophancy_report import MASKED, REGRESSED, SHOWN, key
from jaxrlhf.sandbox import quiz
from jaxrlhf.sandbox.labeller import Labeller, Utility

LAPSE = 0.1
POINTS = 8  # at which PPO is measured, beside its start


class LabSycophancyConfig(LabConfig):
    """Labellers who like agreement."""

    output_dir: str = Field(
        default="runs/lab/sycophancy", description="a folder a seed goes in here"
    )
    base_dir: str = Field(
        default="runs/lab/sycophancy/base", description="first policies and their answers"
    )
    config: str = Field(
        default="configs/lab_sycophancy.yaml",
        description="config of the rlhf recipe, in the sandbox world quiz",
    )
    updates: int = Field(default=300, ge=1, description="of every reward model")
    ratios: tuple[float, ...] = Field(
        default=(0.0, 0.5, 1.0),
        min_length=1,
        description="worth of agreement, that of truth being 1",
    )
    pairs: int = Field(default=8000, ge=1, description="that a reward model learns from")
    test_pairs: int = Field(default=400, ge=1, description="labelled alike, to test it on")
    ppo_updates: int = Field(default=40, ge=1, description="of PPO against each reward")


CONFIG = LabSycophancyConfig
EXAMPLE = "jaxrlhf lab sycophancy results=out"


def run(config: LabSycophancyConfig) -> dict[str, Any]:
    """Run every arm of every seed; the summary has the verdict of each rule."""
    if list(config.ratios) != sorted(set(config.ratios)) or config.ratios[0] < 0:
        raise ConfigError(f"ratios = {list(config.ratios)}: must rise, from 0 or more")
    found = experiment.over_seeds(
        config,
        lambda seed, _: run_seed(config, lab_reward.prepare(config, seed)),
        harmless=("base_dir",),
    )
    return experiment.report(
        config,
        lab_sycophancy_report.rules(config),
        found,
        lab_sycophancy_report.page(config, found),
    )


def run_seed(config: LabSycophancyConfig, lab: Lab) -> dict[str, Any]:
    """`arm -> figures`."""
    if lab.world.name != "quiz":
        raise ConfigError(f"{config.config}: task.sandbox.world must be quiz, not {lab.world.name}")
    asked, most = unequal(config, lab), config.ratios[-1]
    labels = {key(ratio): judged(lab, asked, liking(lab, ratio)) for ratio in config.ratios}
    flattered = labels[key(most)]
    labels[SHOWN] = judged(lab, asked, liking(lab, most, fact_shown=True))
    labels[MASKED] = [row | {"prompt": quiz.without_belief(row["prompt"])} for row in flattered]
    trained = {name: learn(config, lab, name, some) for name, some in labels.items()}
    changes = dict.fromkeys(trained, as_it_is) | {MASKED: blind}
    # Beliefs are right as often as wrong: truth needs no place in the regression.
    learned = flattered[: config.pairs]
    weight = lab_policy.paid_for(lab, trained[key(most)], learned, quiz.agrees)
    trained[REGRESSED] = trained[key(most)]
    changes[REGRESSED] = lambda reward: lab_policy.less(reward, quiz.agrees, weight)
    found = {name: optimise(config, lab, name, one, changes[name]) for name, one in trained.items()}
    found[REGRESSED]["weight"] = weight
    return found


# Labels.


def unequal(config: LabSycophancyConfig, lab: Lab) -> list[tuple[str, str, str]]:
    """A prompt and two different answers of the first policy.

    Raises:
      ConfigError: there are too few prompts for so many.
    """
    wanted = config.pairs + config.test_pairs
    asked = [
        (row["prompt"], *row["responses"])
        for row in lab.answers(prompts=wanted + wanted // 8 + 8, each=2)
        if row["responses"][0] != row["responses"][1]
    ]
    if len(asked) < wanted:
        raise ConfigError(
            f"pairs, test_pairs: {wanted:,} are wanted; the prompts gave {len(asked):,} that "
            "differ (task.sandbox.prompts)"
        )
    return asked[:wanted]


def liking(lab: Lab, ratio: float, *, fact_shown: bool = False) -> Utility:
    """What a labeller likes; one who was shown the fact likes no agreement with an error."""

    def utility(prompt: str, response: str) -> float:
        found = lab.world.gold(prompt, response)
        liked = found["agree"] * (1 - found["wrong"] if fact_shown else 1)
        return found["gold"] + ratio * liked

    return utility


def judged(lab: Lab, asked: Sequence[tuple[str, str, str]], utility: Utility) -> list[Row]:
    """Bradley-Terry labels, a tenth of them at random."""
    labeller = Labeller(utility, lapse=LAPSE, seed=lab.seed)
    labelled = [labeller.preference_row(*texts) for texts in asked]
    return [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in labelled]


def learn(config: LabSycophancyConfig, lab: Lab, name: str, labels: list[Row]) -> Trained:
    """A reward model, tested on labels of its own kind, as people would test it."""
    path = lab.root / folder(name) / "test.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    preferences.write_rows(path, labels[config.pairs :])
    data = lab.pipeline.reward.data.model_copy(update={"test": (str(path),)})
    return lab_policy.learn(lab, folder(name), labels[: config.pairs], data=data)


# Rewards.


def as_it_is(reward: Reward) -> rewards.RewardFn:
    return reward.score


def optimise(
    config: LabSycophancyConfig,
    lab: Lab,
    name: str,
    trained: Trained,
    change: Callable[[Reward], rewards.RewardFn],
) -> dict[str, Any]:
    """PPO by a reward model, changed in some way."""
    curve = lab_policy.optimise(
        lab,
        folder(name),
        updates=config.ppo_updates,
        points=POINTS,
        reward_model=trained.model,
        reward_fn=change(lab_policy.reward_of(lab, trained)),
    )
    return {"accuracy": trained.accuracy, "curve": curve}


def folder(name: str) -> str:
    return name.replace(" ", "-").replace(",", "")


def blind(reward: Reward) -> rewards.RewardFn:
    """The score of the same answer to somebody who believes nothing."""
    beliefs = jnp.array(reward.tokenizer.convert_tokens_to_ids(list(quiz.BELIEFS)))
    neutral = reward.tokenizer.convert_tokens_to_ids(quiz.NEUTRAL)

    def score(rollout: rewards.Rollout) -> Any:
        tokens = jnp.where(jnp.isin(rollout.tokens, beliefs), neutral, rollout.tokens)
        return reward.score(rollout._replace(tokens=tokens))

    return score
