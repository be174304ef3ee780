"""What experiments that optimise a reward share: PPO of the first policy, measured all along.

A seed is that of `lab_reward.py`. Every arm is a run of the `ppo` recipe with the same number of
updates, in a folder of its own, so an interrupted experiment goes on. Gold is measured on held-out
prompts; nothing that trains reads it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrlhf import rewards
from jaxrlhf.evals.policy import Judge
from jaxrlhf.guards import panel
from jaxrlhf.guards.judged import Compare
from jaxrlhf.labelling import records
from jaxrlhf.metrics import read_metrics
from jaxrlhf.recipes import lab_reward, pipelines, ppo, queries, rows, saved, stages
from jaxrlhf.recipes.lab_reward import Lab, Row, Trained
from jaxrlhf.recipes.ppo import PPOConfig
from jaxrlhf.recipes.queries import QueriesConfig

Curve = list[dict[str, float]]
"""What each evaluation found on held-out prompts, by name without "eval/"; the start first."""

Feature = Callable[[str, str], float]
"""(prompt, response) -> something that can be read off the text."""


def learn(lab: Lab, name: str, labels: Sequence[Row], *, seed: int = 0, **changes: Any) -> Trained:
    """A reward model whose scores of the first policy's answers have mean 0 and variance 1."""
    prompts = lab.pipeline.reward.prompts.model_copy(update={"files": lab.prompts})
    unit = {"normalize": "reference", "reference": lab.policy, "prompts": prompts}
    return lab_reward.train(lab, name, labels, seed=seed, **unit, **changes)


def optimise(
    lab: Lab,
    name: str,
    *,
    updates: int,
    points: int,
    reward_model: str | None = None,
    reward_fn: rewards.RewardFn | None = None,
    change: Callable[[PPOConfig], PPOConfig] = lambda settings: settings,
    judge: Judge | None = None,
    compare: Compare | None = None,
) -> Curve:
    """PPO of the first policy by a reward model, or by any reward (`reward_fn` goes first).

    `reward_model` is also where the value network starts. `change` gives the settings of the arm.
    `judge` is gold, where no other is named; `compare` is whom guards ask.
    """
    folder = run_of(lab, name)
    settings = lab.pipeline.ppo.model_copy(
        update={
            "output_dir": str(folder),
            "seed": lab.seed,
            "mesh": lab.pipeline.mesh,
            "policy": lab.policy,
            "reward_model": reward_model,
            "max_steps": updates,
            "eval_steps": max(1, updates // points),
            "save_steps": 0,
            "tensorboard": False,
        }
    )
    settings = pipelines.filled(
        settings, prompts__files=lab.prompts, eval_prompts__files=lab.test_prompts
    )
    judge = judge or judge_of(lab.world)
    ppo.run(change(settings), reward_fn=reward_fn, judge=judge, compare=compare)
    return curve(read_metrics(folder))


def run_of(lab: Lab, name: str) -> Path:
    """The folder of an arm's PPO."""
    return lab.root / name / "ppo"


def warned(lab: Lab, name: str) -> dict[str, int]:
    """Guard -> the first update of that run at which it found something; the others are not in."""
    record = stages.read_json(run_of(lab, name) / panel.RECORD)
    return {guard: finding["first"] for guard, finding in record["found"].items()}


def judge_of(world: Any) -> Judge:
    """Gold of each answer, as evaluations ask for it."""
    return lambda prompts, responses: [
        world.gold(*pair) for pair in zip(prompts, responses, strict=True)
    ]


def curve(logged: Sequence[Mapping[str, float]]) -> Curve:
    """The evaluations of a log, each with its `step`, and what guards saw then (`guards/...`)."""
    kept = ("step", "eval/", "guards/")
    return [
        {name.removeprefix("eval/"): x for name, x in row.items() if name.startswith(kept)}
        for row in logged
        if "eval/gold" in row
    ]


# Rewards with something taken off.


class Reward(NamedTuple):
    """A reward model as PPO asks it, and its tokenizer."""

    score: rewards.RewardFn
    tokenizer: Any


def reward_of(lab: Lab, trained: Trained) -> Reward:
    """A reward model, loaded."""
    found = saved.load_scalar(trained.model, lab.pipeline.mesh.build())
    return Reward(rewards.from_model(found.model, found.params), found.tokenizer)


def paid_for(lab: Lab, trained: Trained, labels: Sequence[Row], feature: Feature) -> float:
    """Score a unit of `feature`: least squares of the score gaps of pairs on their feature gaps.

    Nothing else is in this regression; what goes together with the feature is put down to it.
    """
    pairs = [records.make_pair({}, x["prompt"], x["chosen"], x["rejected"]) for x in labels]
    settings = QueriesConfig(max_length=lab.pipeline.reward.max_length, batch_size=256)
    gaps = queries.gaps_of(settings, trained.model, pairs) / queries.nats(trained.model)
    sides = [[feature(x["prompt"], x[side]) for side in ("chosen", "rejected")] for x in labels]
    apart = np.subtract(*np.array(sides, float).T)
    return float(gaps @ apart / max(apart @ apart, 1e-9))


def less(reward: Reward, feature: Feature, weight: float) -> rewards.RewardFn:
    """The score, less `weight` a unit of `feature`."""

    def rule(*, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        return [float(feature(*pair)) for pair in zip(prompts, completions, strict=True)]

    said = rewards.from_text(rule, rows.decoder(reward.tokenizer))
    return rewards.weighted_sum([(reward.score, 1.0), (said, -weight)])
