"""`jaxrlhf lab overoptimise`: gold and learned reward over sqrt(KL), for PPO and best-of-n.

Reward models learn from different numbers of pairs of the first policy's answers, of which gold
says the better one, without error. Each is then optimised as hard as it goes: by PPO without a KL
penalty, and by best-of-n. Gold is measured all along (Gao et al. 2022, 2210.10760). Two ways to
lose less stand on the same axes: an ensemble whose lowest score counts (Coste et al. 2023,
2310.02743), and stopping where a reward model that was trained on other pairs stops rising.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from pydantic import Field

from jaxrlhf import rewards
from jaxrlhf.data import preferences, sources
from jaxrlhf.errors import ConfigError
from jaxrlhf.evals.policy import PolicyEvaluation, evaluate_policy
from jaxrlhf.metrics import read_metrics
from jaxrlhf.recipes import (
    lab_overoptimise_report,
    lab_reward,
    pipelines,
    ppo,
    rounds_measure,
    rows,
    saved,
)
from jaxrlhf.recipes.lab_overoptimise_report import Arm, BestOf, Point
from jaxrlhf.recipes.lab_reward import Lab, LabConfig, Trained
from jaxrlhf.recipes.ppo import PPOConfig

ENSEMBLE = "lowest of {members}"
HELD_OUT = "score_1"  # column of the reward model that is not optimised


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
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="which seeds")
    pairs: tuple[int, ...] = Field(
        default=(400, 2000), min_length=1, description="pairs that a reward model learns from"
    )
    members: int = Field(
        default=4, ge=0, description="reward models of an ensemble on the fewest pairs; 0: none"
    )
    ppo_updates: int = Field(default=120, ge=4, description="of PPO against each reward")
    points: int = Field(default=30, ge=4, description="at which a run is measured")
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
    found = []
    for seed in config.seeds:
        found += run_seed(config, lab_reward.prepare(config, seed))
    return lab_overoptimise_report.write(config, found)


class Judged(NamedTuple):
    """What the arms of a seed share."""

    lab: Lab
    ppo: PPOConfig
    judge: Any
    gold: float  # mean of the first policy on held-out prompts
    gold_sd: float  # standard deviation of its answers


def run_seed(config: LabOveroptimiseConfig, lab: Lab) -> list[Arm]:
    """An arm a number of pairs, and the ensemble."""
    judged = prepare(config, lab)
    pairs = labelled(lab, 2 * max(config.pairs))
    arms = []
    for count in config.pairs:
        model = learnt(lab, f"reward-{count}", pairs[:count], seed=0)
        held_out = learnt(lab, f"held-out-{count}", pairs[-count:], seed=1)
        arms.append(run_arm(config, judged, f"{count:,} pairs", [model], held_out))
    if config.members:
        count = min(config.pairs)
        members = [
            learnt(lab, f"member-{seed}-{count}", pairs[:count], seed=2 + seed)
            for seed in range(config.members)
        ]
        held_out = learnt(lab, f"held-out-{count}", pairs[-count:], seed=1)
        name = f"{count:,} pairs, {ENSEMBLE.format(members=config.members)}"
        arms.append(run_arm(config, judged, name, members, held_out))
    return arms


def learnt(lab: Lab, name: str, pairs: Sequence[dict[str, Any]], *, seed: int) -> Trained:
    """A reward model whose scores of the first policy's answers have mean 0 and variance 1."""
    prompts = lab.pipeline.reward.prompts.model_copy(update={"files": lab.prompts})
    unit = {"normalize": "reference", "reference": lab.policy, "prompts": prompts}
    return lab_reward.train(lab, name, pairs, seed=seed, **unit)


def labelled(lab: Lab, count: int) -> list[dict[str, Any]]:
    """`count` pairs, the better one by gold as `chosen`.

    Raises:
      ConfigError: the sandbox has too few prompts for so many.
    """
    asked = lab.answers(prompts=count + count // 8 + 8, each=2)
    found = [lab_reward.by_gold(lab.world, x["prompt"], *x["responses"]) for x in asked]
    kept = [row for row in found if row]
    if len(kept) < count:
        raise ConfigError(
            f"pairs: {count:,} are needed, twice the most; {len(asked):,} prompts gave "
            f"{len(kept):,} that differ in gold (task.sandbox.prompts)"
        )
    return kept[:count]


def prepare(config: LabOveroptimiseConfig, lab: Lab) -> Judged:
    """The first policy on held-out prompts: what gold is counted from, and in."""
    task = lab.pipeline.task.prepare(lab.base / "data", seed=lab.seed)
    settings = lab.pipeline.ppo.model_copy(
        update={
            "seed": lab.seed,
            "mesh": lab.pipeline.mesh,
            "policy": lab.policy,
            "max_steps": config.ppo_updates,
            "eval_steps": config.ppo_updates // config.points,
            "save_steps": 0,
            "tensorboard": False,
        }
    )
    settings = pipelines.filled(
        settings, prompts__files=task.prompts, eval_prompts__files=task.test_prompts
    )
    asker = rounds_measure.Asker(lab.policy, settings, task.judge)
    gold = asker.answers(lab.policy).columns["gold"]
    return Judged(lab, settings, task.judge, float(gold.mean()), float(gold.std()))


def run_arm(
    config: LabOveroptimiseConfig,
    judged: Judged,
    name: str,
    members: list[Trained],
    held_out: Trained,
) -> Arm:
    """Optimise one reward: the curve of PPO, and best-of-n."""
    folder = judged.lab.root / name.replace(",", "").replace(" ", "-")
    disagreement = judged.ppo.guards.disagreement.model_copy(
        update={"reward_models": (held_out.model,)}
    )
    guards = judged.ppo.guards.model_copy(update={"disagreement": disagreement})
    settings = judged.ppo.model_copy(
        update={
            "output_dir": str(folder / "ppo"),
            "guards": guards,
            "reward_model": members[0].model if len(members) == 1 else None,
        }
    )
    score = reward_of(settings, members)
    ppo.run(settings, reward_fn=score, judge=judged.judge)
    curve = [point(row, judged) for row in read_metrics(folder / "ppo") if "eval/gold" in row]
    accuracy = float(np.mean([member.accuracy for member in members]))
    best = best_of_n(config, judged, folder / "best-of-n", score)
    return Arm(judged.lab.seed, name, accuracy, curve, best)


def reward_of(settings: PPOConfig, members: list[Trained]) -> rewards.RewardFn:
    """One reward model, or the lowest score of several."""
    loaded = [saved.load_scalar(member.model, settings.mesh.build()) for member in members]
    found = [rewards.from_model(one.model, one.params) for one in loaded]
    return found[0] if len(found) == 1 else rewards.ensemble(found, rule="min")


def point(row: Mapping[str, float], judged: Judged) -> Point:
    """An evaluation in standard deviations of the first policy's gold."""
    return Point(
        step=int(row["step"]),
        kl=row["eval/kl"],
        gold=(row["eval/gold"] - judged.gold) / judged.gold_sd,
        score=row["eval/score"],
        held_out=row[f"eval/{HELD_OUT}"],
    )


def best_of_n(
    config: LabOveroptimiseConfig, judged: Judged, folder: Path, score: rewards.RewardFn
) -> BestOf:
    """Scores and gold `[prompts, best_of]` of the first policy's answers."""
    path = folder / "answers.jsonl"
    if not path.is_file():
        asker = rounds_measure.Asker(judged.lab.policy, judged.ppo, judged.judge)
        drawn = [answers(asker, score, draw) for draw in range(config.best_of)]
        folder.mkdir(parents=True, exist_ok=True)
        columns = {
            name: np.stack([one.columns[name] for one in drawn], axis=1).tolist()
            for name in ("score", "gold")
        }
        preferences.write_rows(
            path,
            [
                {"prompt": prompt, "score": scores, "gold": gold}
                for prompt, scores, gold in zip(
                    drawn[0].prompts, columns["score"], columns["gold"], strict=True
                )
            ],
        )
    found = sources.load_rows(str(path))
    gold = (np.array([row["gold"] for row in found]) - judged.gold) / judged.gold_sd
    return BestOf(np.array([row["score"] for row in found]), gold)


def answers(asker: rounds_measure.Asker, score: rewards.RewardFn, draw: int) -> PolicyEvaluation:
    """One more answer of the first policy, which is the reference, to each held-out prompt."""
    return evaluate_policy(
        asker.lm,
        asker.reference,
        asker.reference,
        asker.batches,
        sampling=asker.ppo.sampling.build(asker.tokenizer),
        key=jax.random.fold_in(jax.random.key(asker.ppo.seed + 1), draw),
        decode=rows.decoder(asker.tokenizer),
        reward_fn=score,
        judge=asker.judge,
    )
