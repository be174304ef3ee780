"""`jaxrlhf ppo`: improve a policy against a reward, held near a reference by a KL penalty.

The policy starts as the reference, unless another one is named; a separate value network starts as
the reward model. The reward is a saved reward model, or any Python callable (`run(config,
reward_fn=...)`, or a function `module:name` with TRL's signature). Held-out prompts are answered
and scored as training goes on, and may end it (`stop_kl`). With `lora` adapters of both train, and
the value head; the reference is the policy without them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxrlhf import loop, rewards
from jaxrlhf.algorithms import ppo as algorithm
from jaxrlhf.algorithms.base import Algorithm, State, whole
from jaxrlhf.data import pipeline
from jaxrlhf.evals.policy import Judge, PolicyEvaluation, evaluate_policy, lowest_and_random
from jaxrlhf.guards.judged import Compare
from jaxrlhf.metrics import MetricsWriter, read_metrics
from jaxrlhf.models import lora, make_scalar_model
from jaxrlhf.optim import make_optimizer
from jaxrlhf.recipes import adapters, blocks, first_example, rows, saved, stages
from jaxrlhf.recipes import guarded as guarding
from jaxrlhf.recipes.ppo_config import PPOConfig
from jaxrlhf.recipes.ppo_given import Given, load, named_function

CONFIG = PPOConfig


def run(
    config: PPOConfig,
    *,
    reward_fn: rewards.RewardFn | None = None,
    judge: Judge | None = None,
    compare: Compare | None = None,
    hooks: Sequence[loop.Hook] = (),
) -> dict[str, Any]:
    """Train, save `model/`; the summary has the last step's metrics.

    `compare` labels pairs for the guards; by default `guards.labeller` does. `hooks` come after
    the evaluation and the guards' own.
    """
    stage = stages.TrainingStage(config)
    if summary := stage.summary():
        return summary
    groups = math.prod(config.groups) if config.packing == "packed" else 1
    mesh = config.mesh.build(batch_size=config.batch_size, groups=groups)
    given = load(config, mesh, reward_fn)
    parts = split(config, given, mesh)
    takes_over = config.frozen_dtype != "float32" and given.scalar is not None
    if takes_over:  # nothing else reads what training starts with
        given = without_start(given)
    steps = config.steps_for(len(given.prompts))
    looks = Looks(config, given, stage, parts, judge=judge, compare=compare)

    def prepare():
        bases = {"policy": config.policy, "value network": config.reward_model}
        adapters.remember(stage.folder, config.lora, bases)
        saved.describe(stage.description_dir, given.lm, given.tokenizer, family=given.family)
        first_example.of_prompts(given.tokenizer, given.prompts.columns)

    panel = looks.guarded.panel
    with panel.finite():
        state = stages.train(
            stage,
            make_algorithm(config, given, parts, steps),
            parts.trained,
            pipeline.batches(given.prompts, batch_size=config.batch_size, seed=config.seed),
            steps=steps,
            mesh=mesh,
            hooks=[*looks.hooks(steps), *hooks],
            shown=("objective/score", "objective/kl_k1"),
            open_log=looks.open_log,
            prepare=prepare,
            watch=looks.watch,
            donate=takes_over,
        )
    panel.record()
    summary = {"steps": int(state.step), **stage.last_metrics()}
    save(config, given, stage, policy_of(state.params, parts), summary, panel.status())
    return stage.finish(summary)


def without_start(given: Given) -> Given:
    """Without the parameters that training starts with, which it takes over."""
    assert given.scalar is not None
    return given._replace(start=None, scalar=given.scalar._replace(params=None))


def make_algorithm(config: PPOConfig, given: Given, parts: adapters.Parts, steps: int) -> Algorithm:
    """PPO on what was loaded."""
    settings = blocks.settings_of(config.ppo, algorithm.Settings)
    optimizer = make_optimizer(
        total_steps=steps * settings.num_ppo_epochs * settings.num_mini_batches,
        **config.optimizer.model_dump(),
    )
    return algorithm.ppo(
        given.lm,
        given.reference,
        given.reward_fn,
        optimizer,
        given.sampling,
        settings,
        value_network=given.scalar.model if given.scalar else None,
        truncation=given.truncation,
        chunk_size=config.chunk_size,
        packing=config.packing,
        frozen=parts.frozen,
    )


class Looks:
    """What looks at a run and changes nothing: evaluations on held-out prompts, and guards."""

    def __init__(
        self,
        config: PPOConfig,
        given: Given,
        stage: stages.TrainingStage,
        parts: adapters.Parts,
        *,
        judge: Judge | None,
        compare: Compare | None,
    ):
        self.config, self.given, self.stage, self.parts = config, given, stage, parts
        self.judge = judge
        self.arrived = Arrival(config.stop_kl)
        self.log: MetricsWriter | None = None
        if compare is None and config.guards.labeller:
            compare = named_function("guards.labeller", config.guards.labeller)
        guarded = guarding.Run(
            folder=stage.folder,
            seed=config.seed,
            lm=given.lm,
            policy_of=lambda params: policy_of(params, parts),
            reward_fn=given.reward_fn,
            settings=blocks.settings_of(config.ppo, algorithm.Settings),
            sampling=given.sampling,
            truncation=given.truncation,
            tokenizer=given.tokenizer,
            chunk_size=config.chunk_size,
            has_evaluations=bool(given.held_out),
            compare=compare,
            others=given.others,
        )
        self.guarded = guarding.Guarded(
            config.guards, guarded, reference=lambda: self.answers(given.reference)
        )

    def hooks(self, steps: int) -> list[loop.Hook]:
        """Evaluations come before the guards, which read them."""
        if not self.given.held_out:
            return [self.guarded.hook]
        evaluate = stages.every(self.config.eval_steps, steps, self.evaluate, first=True)
        return [evaluate, self.guarded.hook]

    def open_log(self, first_step: int) -> MetricsWriter:
        self.log = self.stage.open_log(first_step)
        written = read_metrics(self.stage.folder) if first_step else []
        self.guarded.begin(written)
        self.arrived.begin(written)
        return self.log

    def watch(self, step: int, metrics: Mapping[str, float]) -> Exception | None:
        """Why a run ends here: a guard, or that it has come as far as it was to."""
        return self.guarded.panel.watch(step, metrics) or self.arrived.watch(step, metrics)

    def evaluate(self, state: State) -> dict[str, float]:
        """Figures of the policy on held-out prompts; some of its answers go to the log."""
        found = self.answers(policy_of(state.params, self.parts))
        assert self.log is not None  # opened before the first step
        write_completions(self.log, int(state.step), found, self.config.shown_completions)
        metrics = found.means()
        metrics["objective/score_heldout"] = metrics["eval/score"]
        return metrics | self.guarded.held_out(state, found)

    def answers(self, policy: Any) -> PolicyEvaluation:
        """Of a policy to the held-out prompts; two policies draw the same random numbers."""
        given = self.given
        return evaluate_policy(
            given.lm,
            policy,
            given.reference,
            given.held_out,
            sampling=given.sampling,
            key=jax.random.key(self.config.seed),
            decode=rows.decoder(given.tokenizer),
            reward_fn=given.reward_fn,
            judge=self.judge,
            others=given.others,
        )


class Arrival:
    """Ends a run at the evaluation that finds the policy far enough from the reference."""

    def __init__(self, stop_kl: float | None):
        self._limit = math.inf if stop_kl is None else stop_kl
        self._newest = 0.0

    def begin(self, log: Sequence[Mapping[str, float]]) -> None:
        """`log` is what the run has written so far: a resumed run may have arrived already."""
        self._newest = log[-1].get("eval/kl", 0.0) if log else 0.0

    def watch(self, step: int, metrics: Mapping[str, float]) -> loop.Arrived | None:
        self._newest = metrics.get("eval/kl", self._newest)
        return loop.Arrived() if self._newest >= self._limit else None


def policy_of(params: Any, parts: adapters.Parts) -> Any:
    """The policy's parameters, those that do not train among them."""
    return whole(params, parts.frozen)["policy"]


def save(config, given: Given, stage, policy, summary, guards: dict[str, Any]) -> None:
    """The policy as a folder to serve, with its card; adapters in a folder beside it."""
    base, family = config.policy, given.family
    readme = saved.model_card(
        "lm",
        "ppo",
        config,
        base=base,
        data=config.prompts.files,
        summary=summary,
        guards=guards,
    )
    if config.lora:
        adapters.save(
            stage.folder, given.lm.config, policy, given.tokenizer, base=base, family=family
        )
    saved.save_lm(
        stage.model_dir,
        given.lm,
        lora.merge(policy),
        given.tokenizer,
        family=family,
        readme=readme,
    )


def split(config: PPOConfig, given: Given, mesh) -> adapters.Parts:
    """What trains of policy and value network, and what does not."""
    lm, start, scalar, family = given.lm, given.start, given.scalar, given.family
    policy_key, value_key = jax.random.split(jax.random.key(config.seed))
    policy = adapters.of_lm(config.lora, lm.config, start, family=family, key=policy_key, mesh=mesh)
    value = adapters.Parts(initial_value(config, lm, start, scalar), None)
    if "lm" in value.trained:  # a network of its own, no head on the policy's trunk
        of, family = (scalar.model.config, scalar.family) if scalar else (lm.config, family)
        value = adapters.of_scalar(
            config.lora, of, value.trained, family=family, key=value_key, mesh=mesh
        )
    frozen = {"policy": policy.frozen, "value": value.frozen}
    frozen = {name: part for name, part in frozen.items() if part is not None}
    return adapters.Parts({"policy": policy.trained, "value": value.trained}, frozen or None)


def initial_value(config: PPOConfig, lm, start, scalar) -> dict[str, Any]:
    """The reward model's parameters where there is one, else the policy's with a zero head."""
    shared = config.ppo.model_dump()["value_model"] == "shared"
    key = jax.random.key(config.seed)
    if scalar is None or shared:
        value = make_scalar_model(lm.config).init(key, start, zero=True)
        return {"head": value["head"]} if shared else value
    return scalar.params


def write_completions(log: MetricsWriter, step: int, found: PolicyEvaluation, count: int) -> None:
    """The table of lowest-scored and random held-out completions."""
    chosen = lowest_and_random(found.columns["score"], count=count)
    table = found.rows([i for i, _ in chosen])
    log.write_completions(
        step, [row | {"reason": reason} for row, (_, reason) in zip(table, chosen, strict=True)]
    )
