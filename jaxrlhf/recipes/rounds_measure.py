"""The measure stage of a round: its policy on held-out prompts, and its reward model on pairs.

The reward model is asked about pairs of held-out answers of three policies: the first of all, the
one that its newest labels are about, and the one that was then trained against it. The last is
where a reward model is worse than its test pairs say: nobody has labelled what the policy went to.
Which answer of a pair is better is the judge's to say (gold, in a sandbox); without one there are
no such figures.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrlhf import rewards
from jaxrlhf.data.arrays import Arrays
from jaxrlhf.evals import statistics
from jaxrlhf.evals.policy import Judge, PolicyEvaluation, evaluate_policy
from jaxrlhf.evals.statistics import Interval
from jaxrlhf.recipes import blocks, rows, saved, stages
from jaxrlhf.recipes.ppo import PPOConfig

BATCH = 256
SECOND = 1  # folded into the key of a pair's second answers


class Measured(NamedTuple):
    """Whom a round is about. `sampled` is the policy that the newest labels compare answers of."""

    policy: str
    sampled: str
    reference: str


def run(folder: str, who: Measured, ppo: PPOConfig, *, judge: Judge | None) -> dict[str, Any]:
    """Measure a round; the summary has means, and accuracies with their intervals."""
    stage = stages.Stage(blocks.FolderConfig(output_dir=folder))
    if done := stage.summary():
        return done
    stage.begin()
    asker = Asker(who.reference, ppo, judge)
    scalar = saved.load_scalar(str(ppo.reward_model), asker.mesh, dtype=ppo.dtype)
    score = rewards.from_model(scalar.model, scalar.params)
    first, second = asker.two(who.policy, score)
    summary: dict[str, Any] = first.means(prefix="")
    if judge:
        summary["accuracy_after"] = list(accuracy(first, second))
        summary["accuracy_before"] = list(accuracy(*asker.two(who.sampled, score)))
        summary["accuracy_first"] = list(accuracy(*asker.two(who.reference, score)))
        summary["gold_of_each"] = [float(x) for x in first.columns["gold"]]
    return stage.finish(summary)


def start(folder: str, reference: str, ppo: PPOConfig, *, judge: Judge | None) -> dict[str, Any]:
    """The policy that everything begins with, on the same prompts."""
    stage = stages.Stage(blocks.FolderConfig(output_dir=folder))
    if done := stage.summary():
        return done
    stage.begin()
    found = Asker(reference, ppo, judge).answers(reference)
    summary: dict[str, Any] = found.means(prefix="")
    if judge:
        summary["gold_sd"] = float(np.std(found.columns["gold"]))
        summary["gold_of_each"] = [float(x) for x in found.columns["gold"]]
    return stage.finish(summary)


def accuracy(a: PolicyEvaluation, b: PolicyEvaluation) -> Interval:
    """How often the higher score is the better answer, where one is better; 95 % (Wilson)."""
    gold = a.columns["gold"] - b.columns["gold"]
    scores = a.columns["score"] - b.columns["score"]
    decided = gold != 0
    if not decided.any():
        return Interval(float("nan"), 0.0, 1.0)
    right = np.sign(scores[decided]) == np.sign(gold[decided])
    return statistics.wilson(float(right.sum()), float(decided.sum()))


class Asker:
    """Policies answer the held-out prompts, all with the same random numbers."""

    def __init__(self, reference: str, ppo: PPOConfig, judge: Judge | None):
        self.ppo, self.judge, self.mesh = ppo, judge, ppo.mesh.build()
        self.path = reference
        self.lm, self.reference, self.tokenizer, _ = saved.load_lm(
            reference, self.mesh, dtype=ppo.dtype
        )
        prompts, _ = rows.prompts(self.tokenizer, ppo.eval_prompts, field="ppo.eval_prompts")
        self.batches = in_parts(prompts)

    def answers(self, policy: str, score: rewards.RewardFn | None = None, *, draw: int = 0):
        """One answer a prompt."""
        if policy == self.path:
            params = self.reference
        else:
            params = saved.load_lm(policy, self.mesh, dtype=self.ppo.dtype).params
        return evaluate_policy(
            self.lm,
            params,
            self.reference,
            self.batches,
            sampling=self.ppo.sampling.build(self.tokenizer),
            key=jax.random.fold_in(jax.random.key(self.ppo.seed), draw),
            decode=rows.decoder(self.tokenizer),
            reward_fn=score,
            judge=self.judge,
        )

    def two(self, policy: str, score: rewards.RewardFn) -> tuple[PolicyEvaluation, ...]:
        """Two answers a prompt."""
        return tuple(self.answers(policy, score, draw=draw) for draw in (0, SECOND))


def in_parts(prompts: Arrays) -> list[dict[str, np.ndarray]]:
    """Batches that are nearly equal in size."""
    parts = np.array_split(np.arange(len(prompts)), -(-len(prompts) // BATCH))
    return [prompts.take(part) for part in parts]
