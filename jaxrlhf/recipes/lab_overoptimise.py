"""`jaxrlhf lab overoptimise`: gold and learned reward over sqrt(KL), for PPO and best-of-n.

Reward models of several sizes learn from several numbers of pairs of the first policy's answers, of
which gold says the better one, without error. Each is then optimised as hard as it goes: by PPO
without a KL penalty, and by best-of-n. Gold is measured all along (Gao et al. 2022, 2210.10760).
Two ways to lose less stand on the same axes: an ensemble whose lowest score counts (Coste et al.
2023, 2310.02743), and stopping where a reward model that was trained on other pairs stops rising.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from jaxrlhf import rewards
from jaxrlhf.errors import ConfigError
from jaxrlhf.evals import overoptimisation
from jaxrlhf.recipes import (
    experiment,
    lab_overoptimise_report,
    lab_policy,
    lab_reward,
    pipelines,
    rlhf,
    rounds_measure,
)
from jaxrlhf.recipes.lab_overoptimise_report import ENSEMBLE, learned, of_size
from jaxrlhf.recipes.lab_reward import Lab, LabConfig, Row, Trained
from jaxrlhf.recipes.ppo import PPOConfig

HELD_OUT = "score_1"  # an evaluation's column of the reward model that is not optimised


class LabOveroptimiseConfig(LabConfig):
    """Optimise learned rewards as hard as they go."""

    output_dir: str = Field(
        default="runs/lab/overoptimise", description="a folder a seed goes in here"
    )
    base_dir: str = Field(
        default="runs/lab/overoptimise/base", description="first policies and their answers"
    )
    config: str = Field(
        default="configs/lab_overoptimise.yaml", description="config of the rlhf recipe, a sandbox"
    )
    pairs: tuple[int, ...] = Field(
        default=(400, 1000, 2000), min_length=1, description="pairs that a reward model learns from"
    )
    sizes: tuple[int, ...] = Field(
        default=(16, 32),
        description="d_model of reward models on the most pairs, beside the policy's own; each "
        "starts from a language model of its size, made like the policy",
    )
    members: int = Field(
        default=4, ge=0, description="reward models of an ensemble on the fewest pairs; 0: none"
    )
    ppo_updates: int = Field(default=80, ge=4, description="of PPO against each reward")
    points: int = Field(default=40, ge=4, description="at which a run is measured")
    best_of: int = Field(
        default=64, ge=2, description="answers a held-out prompt, of which the best is chosen"
    )


CONFIG = LabOveroptimiseConfig
EXAMPLE = "jaxrlhf lab overoptimise results=out"


def run(config: LabOveroptimiseConfig) -> dict[str, Any]:
    """Run every arm of every seed; the summary has the verdict of each rule."""
    if config.members == 1:
        raise ConfigError("members = 1: an ensemble has at least two; 0 leaves it out")
    if config.points > config.ppo_updates:
        raise ConfigError(f"points = {config.points}: there are {config.ppo_updates} updates")
    found = experiment.over_seeds(
        config,
        lambda seed, _: run_seed(config, lab_reward.prepare(config, seed)),
        harmless=("base_dir",),
    )
    rules, page = lab_overoptimise_report.rules(config), lab_overoptimise_report.page(config, found)
    return experiment.report(config, rules, found, page)


class Arm(NamedTuple):
    """A reward that is optimised: one reward model, or the lowest score of several."""

    name: str
    members: Sequence[Trained]
    held_out: Trained
    """Of the same size, trained on as many other pairs."""
    value: Trained
    """Where the value network starts: of the policy's size, on the same pairs."""


def run_seed(config: LabOveroptimiseConfig, lab: Lab) -> dict[str, Any]:
    """`{"gold_sd", "arms": {name: figures}}`; the deviation is that of the first policy's gold."""
    asker = rounds_measure.Asker(lab.policy, answering(lab), lab_policy.judge_of(lab.world))
    gold = asker.answers(lab.policy).columns["gold"]
    arms = {arm.name: optimised(config, lab, arm, asker) for arm in arms_of(config, lab)}
    return {"gold_sd": float(gold.std()), "arms": arms}


def arms_of(config: LabOveroptimiseConfig, lab: Lab) -> list[Arm]:
    """A reward a number of pairs, a reward a size, and the ensemble."""
    pairs = labelled(lab, 2 * max(config.pairs))
    arms = {}
    for count in config.pairs:
        model = lab_policy.learn(lab, f"reward-{count}", pairs[:count], seed=0)
        held_out = lab_policy.learn(lab, f"held-out-{count}", pairs[-count:], seed=1)
        arms[count] = Arm(learned(count), [model], held_out, model)
    few, most = arms[min(config.pairs)], arms[max(config.pairs)]
    others = []
    for size in config.sizes:
        start = {"model_path": language_model(config, lab, size)}
        model, held_out = (
            lab_policy.learn(lab, f"{name}-of-{size}", some, seed=seed, **start)
            for seed, (name, some) in enumerate(
                [("reward", pairs[: max(config.pairs)]), ("held-out", pairs[-max(config.pairs) :])]
            )
        )
        others.append(Arm(of_size(max(config.pairs), size), [model], held_out, most.value))
    if config.members:
        more = [
            lab_policy.learn(lab, f"member-{seed}", pairs[: min(config.pairs)], seed=2 + seed)
            for seed in range(config.members - 1)
        ]
        name = ENSEMBLE.format(reward=few.name, members=config.members)
        others.append(few._replace(name=name, members=[*few.members, *more]))
    return [*arms.values(), *others]


def language_model(config: LabOveroptimiseConfig, lab: Lab, size: int) -> str:
    """A model that learnt what the policy learnt, with another d_model."""
    folder = lab.base / f"d_model-{size}"
    own = (f"seed={lab.seed}", f"output_dir={folder}", "stages=[pretrain, sft]")
    shape = f"pretrain.model.d_model={size}"
    rlhf.run(rlhf.RLHFConfig.load(config.config, [*config.overrides, *own, shape]))
    return str(folder / "sft" / "model")


def labelled(lab: Lab, count: int) -> list[Row]:
    """`count` pairs, the better one by gold as `chosen`.

    Raises:
      ConfigError: the sandbox has too few prompts for so many.
    """
    asked = lab.answers(prompts=count + count // 6 + 8, each=2)  # one in nine ties
    found = [lab_reward.by_gold(lab.world, x["prompt"], *x["responses"]) for x in asked]
    kept = [row for row in found if row]
    if len(kept) < count:
        raise ConfigError(
            f"pairs: {count:,} are needed, twice the most; {len(asked):,} prompts gave "
            f"{len(kept):,} that differ in gold (task.sandbox.prompts)"
        )
    return kept[:count]


# Optimising.


def optimised(
    config: LabOveroptimiseConfig, lab: Lab, arm: Arm, asker: rounds_measure.Asker
) -> dict[str, Any]:
    """Accuracy against gold, the curve of PPO, and best-of-n."""

    def watched(settings: PPOConfig) -> PPOConfig:
        models = {"reward_models": (arm.held_out.model,)}
        disagreement = settings.guards.disagreement.model_copy(update=models)
        guards = settings.guards.model_copy(update={"disagreement": disagreement})
        return settings.model_copy(update={"guards": guards})

    score = reward_of(lab, arm.members)
    curve = lab_policy.optimise(
        lab,
        arm.name.replace(",", "").replace(" ", "-"),
        updates=config.ppo_updates,
        points=config.points,
        reward_model=arm.value.model,
        reward_fn=score,
        change=watched,
    )
    kept = {"step": "step", "kl": "kl", "gold": "gold", "score": "score", "held_out": HELD_OUT}
    return {
        "accuracy": float(np.mean([member.accuracy for member in arm.members])),
        "curve": [{name: point[column] for name, column in kept.items()} for point in curve],
        "best_of_n": best_of_n(config, lab, asker, score),
    }


def reward_of(lab: Lab, members: Sequence[Trained]) -> rewards.RewardFn:
    """One reward model, or the lowest score of several."""
    found = [lab_policy.reward_of(lab, member).score for member in members]
    return found[0] if len(found) == 1 else rewards.ensemble(found, rule="min")


def best_of_n(
    config: LabOveroptimiseConfig, lab: Lab, asker: rounds_measure.Asker, score: rewards.RewardFn
) -> list[dict[str, float]]:
    """Mean gold of the best-scored of n answers of the first policy, for n = 1, 2, 4, ..."""
    draws = range(config.best_of)
    drawn = [asker.answers(lab.policy, score, draw=draw).columns for draw in draws]
    scores, gold = (np.stack([one[name] for one in drawn], axis=1) for name in ("score", "gold"))
    found = []
    for n in (2**k for k in range(config.best_of.bit_length())):
        best = overoptimisation.best_of_n(scores, gold, n)
        kl = overoptimisation.best_of_n_kl(n)
        found.append({"n": n, "kl": kl, "gold": float(best.mean())})
    return found


def answering(lab: Lab) -> PPOConfig:
    """How the first policy answers held-out prompts."""
    settings = lab.pipeline.ppo.model_copy(
        update={"seed": lab.seed, "mesh": lab.pipeline.mesh, "policy": lab.policy}
    )
    return pipelines.filled(settings, eval_prompts__files=lab.test_prompts)
