"""`jaxrlhf ppo`: improve a policy against a reward, held near a reference by a KL penalty.

The policy starts as the reference, unless another one is named; a separate value network starts as
the reward model. The reward is a saved reward model, or any Python callable (`run(config,
reward_fn=...)`, or a function `module:name` with TRL's signature). Held-out prompts are answered
and scored as training goes on, and may end it (`stop_kl`). With `lora` adapters of both train, and
the value head; the reference is the policy without them.
"""

import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
import pydantic
from pydantic import Field

from jaxrlhf import loop, rewards
from jaxrlhf.algorithms import ppo as algorithm
from jaxrlhf.algorithms.base import whole
from jaxrlhf.algorithms.rollouts import Truncation, check_sampling
from jaxrlhf.config import Config
from jaxrlhf.data import chat, pipeline
from jaxrlhf.errors import ConfigError
from jaxrlhf.evals.policy import Judge, PolicyEvaluation, evaluate_policy, lowest_and_random
from jaxrlhf.guards.judged import Compare
from jaxrlhf.guards.panel import GuardsConfig
from jaxrlhf.metrics import MetricsWriter, read_metrics
from jaxrlhf.models import lora, make_scalar_model
from jaxrlhf.optim import make_optimizer
from jaxrlhf.recipes import adapters, blocks, first_example, rows, saved, stages
from jaxrlhf.recipes import guarded as guarding
from jaxrlhf.recipes.sample import SamplingConfig


class SettingsConfig(blocks.config_of(algorithm.Settings)):
    """Hyper-parameters of PPO, by the papers' names."""


class TruncationConfig(Config):
    """What the reward sees of a response; the policy trains on all it sampled."""

    token: str | None = Field(
        default=None,
        description="the reward reads up to this token (a word of the vocabulary); null: all",
    )
    after: int = Field(default=0, ge=0, description="not before this many response tokens")


class PPOConfig(blocks.TrainConfig):
    """PPO."""

    policy: str | None = Field(
        default=None,
        description="language model to improve (folder or hub name)",
    )
    reference: str | None = Field(
        default=None, description="what the KL penalty holds it near; null: the policy as it starts"
    )
    reward_model: str | None = Field(
        default=None, description="reward model (folder or hub name): a classifier of one label"
    )
    lora: adapters.LoraConfig | None = Field(
        default=None,
        description="train low-rank adapters of policy and value network; null: all of both",
    )
    reward_function: str | None = Field(
        default=None,
        description="instead: `module:function`, called with prompts= and completions=",
    )
    prompts: rows.PromptsConfig = Field(
        default=rows.PromptsConfig(), description="training prompts"
    )
    eval_prompts: rows.PromptsConfig = Field(
        default=rows.PromptsConfig(),
        description="held-out prompts; without files nothing is held out",
    )
    sampling: SamplingConfig = Field(
        default=SamplingConfig(), description="how responses are drawn"
    )
    truncation: TruncationConfig = Field(
        default=TruncationConfig(), description="cut for the reward"
    )
    stop_kl: float | None = Field(
        default=None,
        gt=0,
        description="training ends with the evaluation whose KL to the reference, nats a sequence, "
        "reaches this; null: after max_steps",
    )
    ppo: SettingsConfig = Field(
        default=SettingsConfig(), description="the algorithm's hyper-parameters"
    )
    chunk_size: int | None = Field(
        default=None,
        ge=1,
        description="vocabulary entries at a time in the output layer; null: all",
    )
    shown_completions: int = Field(
        default=4, ge=0, description="lowest-scored and random rows a table"
    )
    guards: GuardsConfig = Field(default=GuardsConfig(), description="what stops a run")

    @pydantic.model_validator(mode="after")
    def _can_be_learned_from(self) -> Self:
        if self.stop_kl and not self.eval_steps:
            raise ValueError(f"stop_kl = {self.stop_kl}: needs evaluations; set eval_steps")
        check_sampling(self.sampling.with_ids(stop_ids=(0,), pad_id=0))
        split = self.ppo.model_dump()
        pieces, parts = split["num_mini_batches"], split["gradient_accumulation_steps"]
        blocks.divides("batch_size", self.batch_size, "ppo.num_mini_batches", pieces)
        rows = self.batch_size // pieces
        blocks.divides("a minibatch", rows, "ppo.gradient_accumulation_steps", parts)
        return self


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
    mesh = config.mesh.build(batch_size=config.batch_size)
    base = blocks.required("policy", config.policy)
    start = saved.load_lm(
        base,
        mesh,
        dtype=config.dtype,
        param_dtype=adapters.kept_in(config.lora, config.dtype),
        remat=config.remat,
    )
    lm, _, tokenizer, family = start
    reference = load_reference(config, start, mesh)
    prompts, found = rows.prompts(tokenizer, config.prompts, field="prompts")
    rows.check_tokens(lm, tokenizer, prompts)
    sampling = config.sampling.build(tokenizer)
    rows.leave_room(lm, prompts, sampling, field="prompts")
    scalar = load_reward_model(config, lm, tokenizer, mesh)
    if reward_fn is None:
        reward_fn = make_reward(config, scalar, tokenizer, found)
    settings = blocks.settings_of(config.ppo, algorithm.Settings)
    steps = config.steps_for(len(prompts))
    optimizer = make_optimizer(
        total_steps=steps * settings.num_ppo_epochs * settings.num_mini_batches,
        **config.optimizer.model_dump(),
    )
    truncation = make_truncation(config.truncation, tokenizer)
    parts = split(config, lm, start.params, family, scalar, mesh)
    method = algorithm.ppo(
        lm,
        reference,
        reward_fn,
        optimizer,
        sampling,
        settings,
        value_network=scalar.model if scalar else None,
        truncation=truncation,
        chunk_size=config.chunk_size,
        frozen=parts.frozen,
    )
    looks: list[loop.Hook] = []
    logs: list[MetricsWriter] = []

    def open_log(first_step: int) -> MetricsWriter:
        logs.append(stage.open_log(first_step))
        written = read_metrics(stage.folder) if first_step else []
        guarded.begin(written)
        arrived.begin(written)
        return logs[-1]

    def policy_of(params: Any) -> Any:
        return whole(params, parts.frozen)["policy"]

    others = other_rewards(config, lm, tokenizer, mesh)

    def look(policy: Any) -> PolicyEvaluation:
        return evaluate_policy(
            lm,
            policy,
            reference,
            batches,
            sampling=sampling,
            key=jax.random.key(config.seed),
            decode=rows.decoder(tokenizer),
            reward_fn=reward_fn,
            judge=judge,
            others=others,
        )

    def evaluate(state) -> dict[str, float]:
        found = look(policy_of(state.params))
        write_completions(logs[-1], int(state.step), found, config.shown_completions)
        metrics = found.means()
        metrics["objective/score_heldout"] = metrics["eval/score"]
        return metrics | guarded.held_out(state, found)

    batches = []
    if config.eval_prompts.files:
        held_out, _ = rows.prompts(tokenizer, config.eval_prompts, field="eval_prompts")
        rows.leave_room(lm, held_out, sampling, field="eval_prompts")
        batches.append(held_out.take(np.arange(len(held_out))))
        looks.append(stages.every(config.eval_steps, steps, evaluate, first=True))
    elif config.stop_kl:
        raise ConfigError("stop_kl: needs held-out prompts to measure on; set eval_prompts.files")
    if compare is None and config.guards.labeller:
        compare = named_function("guards.labeller", config.guards.labeller)
    run = guarding.Run(
        folder=stage.folder,
        seed=config.seed,
        lm=lm,
        policy_of=policy_of,
        reward_fn=reward_fn,
        settings=settings,
        sampling=sampling,
        truncation=truncation,
        tokenizer=tokenizer,
        chunk_size=config.chunk_size,
        has_evaluations=bool(batches),
        compare=compare,
        others=others,
    )
    arrived = Arrival(config.stop_kl)
    guarded = guarding.Guarded(config.guards, run, reference=lambda: look(reference))
    looks.append(guarded.hook)

    def prepare():
        bases = {"policy": base, "value network": config.reward_model}
        adapters.remember(stage.folder, config.lora, bases)
        saved.describe(stage.description_dir, lm, tokenizer, family=family)
        first_example.of_prompts(tokenizer, prompts.columns)

    with guarded.panel.finite():
        state = stages.train(
            stage,
            method,
            parts.trained,
            pipeline.batches(prompts, batch_size=config.batch_size, seed=config.seed),
            steps=steps,
            mesh=mesh,
            hooks=[*looks, *hooks],
            shown=("objective/score", "objective/kl_k1"),
            open_log=open_log,
            prepare=prepare,
            watch=lambda step, metrics: (
                guarded.panel.watch(step, metrics) or arrived.watch(step, metrics)
            ),
        )
    guarded.panel.record()
    summary = {"steps": int(state.step), **stage.last_metrics()}
    readme = saved.model_card(
        "lm",
        "ppo",
        config,
        base=base,
        data=config.prompts.files,
        summary=summary,
        guards=guarded.panel.status(),
    )
    policy = policy_of(state.params)
    if config.lora:
        adapters.save(stage.folder, lm.config, policy, tokenizer, base=base, family=family)
    policy = lora.merge(policy)
    saved.save_lm(stage.model_dir, lm, policy, tokenizer, family=family, readme=readme)
    return stage.finish(summary)


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


def load_reference(config: PPOConfig, start: saved.SavedLM, mesh) -> Any:
    """Parameters of the reference: those the policy starts with, or another model's of its kind."""
    if config.reference is None:
        return start.params
    found = saved.load_lm(config.reference, mesh, dtype=config.dtype, remat=config.remat)
    saved.same_tokenizer(start.tokenizer, found.tokenizer, "policy and reference")
    if found.lm.config != start.lm.config:
        raise ConfigError(
            f"reference = {config.reference}: is another kind of model than the policy; it must "
            "have its sizes"
        )
    return found.params


def load_reward_model(config: PPOConfig, lm, tokenizer, mesh) -> saved.SavedScalar | None:
    """The reward model, or None where the reward is a function."""
    if config.reward_model is None:
        return None
    return load_scalar("reward_model", config.reward_model, config, lm, tokenizer, mesh)


def load_scalar(field: str, path: str, config: PPOConfig, lm, tokenizer, mesh) -> saved.SavedScalar:
    """A reward model that can read whatever the policy says.

    A policy can say every token it has a row for, those of padding too, so the reward model needs
    as many.
    """
    found = saved.load_scalar(
        path,
        mesh,
        dtype=config.dtype,
        param_dtype=adapters.kept_in(config.lora, config.dtype),
        remat=config.remat,
    )
    saved.same_tokenizer(tokenizer, found.tokenizer, f"policy and {field}")
    known, said = found.model.config.vocab_size, lm.config.vocab_size
    if known < said:
        raise ConfigError(
            f"{field}: has {known} vocabulary rows, the policy {said}; `jaxrlhf export` with "
            "drop_padding=true makes a policy without rows that no token needs"
        )
    return found


def make_reward(config: PPOConfig, scalar, tokenizer, prompts) -> rewards.RewardFn:
    """The reward that the config names."""
    if (scalar is None) == (config.reward_function is None):
        raise ConfigError("reward_model, reward_function: give one of the two")
    if scalar is not None:
        return rewards.from_model(scalar.model, scalar.params)
    rule = named_function("reward_function", str(config.reward_function))
    return rewards.from_text(rule, rows.decoder(tokenizer), rows.columns(prompts))


def other_rewards(config: PPOConfig, lm, tokenizer, mesh) -> dict[str, rewards.RewardFn]:
    """Reward models that only a guard asks, by column of an evaluation."""
    field, found = "guards.disagreement.reward_models", {}
    for number, path in enumerate(config.guards.disagreement.reward_models, start=1):
        scalar = load_scalar(field, path, config, lm, tokenizer, mesh)
        found[f"score_{number}"] = rewards.from_model(scalar.model, scalar.params)
    return found


def named_function(field: str, name: str) -> Callable[..., Any]:
    """The Python function that a config field names as `module:function`."""
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # `python -m` has it there, the installed command has not
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{field} = {name!r}: {error}") from error


def split(config: PPOConfig, lm, start, family, scalar, mesh) -> adapters.Parts:
    """What trains of policy and value network, and what does not."""
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


def make_truncation(config: TruncationConfig, tokenizer) -> Truncation | None:
    """The truncation rule as token ids."""
    if config.token is None:
        return None
    ids = tokenizer.encode(config.token, add_special_tokens=False)
    if len(ids) != 1:
        raise ConfigError(f"truncation.token = {config.token!r}: is {len(ids)} tokens, must be one")
    return Truncation((ids[0], *chat.stop_ids(tokenizer)), config.after)


def write_completions(log: MetricsWriter, step: int, found: PolicyEvaluation, count: int) -> None:
    """The table of lowest-scored and random held-out completions."""
    chosen = lowest_and_random(found.columns["score"], count=count)
    table = found.rows([i for i, _ in chosen])
    log.write_completions(
        step, [row | {"reason": reason} for row, (_, reason) in zip(table, chosen, strict=True)]
    )
