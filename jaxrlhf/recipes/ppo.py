"""`jaxrlhf ppo`: improve a policy against a reward, held near a reference by a KL penalty.

The policy starts as the reference; a separate value network starts as the reward model. The reward
is a saved reward model, or any Python callable (`run(config, reward_fn=...)`, or a function
`module:name` with TRL's signature). Held-out prompts are answered and scored as training goes on.
With `lora` adapters of both train, and the value head; the reference is the policy without them.
"""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import pydantic
from pydantic import Field

from jaxrlhf import rewards
from jaxrlhf.algorithms import ppo as algorithm
from jaxrlhf.algorithms.base import whole
from jaxrlhf.algorithms.rollouts import Truncation, check_sampling
from jaxrlhf.config import Config
from jaxrlhf.data import chat, pipeline
from jaxrlhf.errors import ConfigError
from jaxrlhf.evals.policy import Judge, PolicyEvaluation, evaluate_policy, lowest_and_random
from jaxrlhf.metrics import MetricsWriter
from jaxrlhf.models import lora, make_scalar_model
from jaxrlhf.optim import make_optimizer
from jaxrlhf.recipes import adapters, blocks, first_example, rows, saved, stages
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
        description="language model to improve (folder or hub name); also the reference",
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

    @pydantic.model_validator(mode="after")
    def _can_be_learned_from(self) -> Self:
        check_sampling(self.sampling.with_ids(stop_ids=(0,), pad_id=0))
        split = self.ppo.model_dump()
        pieces, parts = split["num_mini_batches"], split["gradient_accumulation_steps"]
        blocks.divides("batch_size", self.batch_size, "ppo.num_mini_batches", pieces)
        rows = self.batch_size // pieces
        blocks.divides("a minibatch", rows, "ppo.gradient_accumulation_steps", parts)
        return self


CONFIG = PPOConfig


class HeldOut(NamedTuple):
    """How a policy is looked at on held-out prompts."""

    batches: list[dict[str, np.ndarray]]
    evaluate: Callable[[Any], PolicyEvaluation]


def run(
    config: PPOConfig,
    *,
    reward_fn: rewards.RewardFn | None = None,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Train, save `model/`; the summary has the last step's metrics."""
    stage = stages.TrainingStage(config)
    if summary := stage.summary():
        return summary
    mesh = config.mesh.build(batch_size=config.batch_size)
    base = blocks.required("policy", config.policy)
    lm, reference, tokenizer, family = saved.load_lm(
        base,
        mesh,
        dtype=config.dtype,
        param_dtype=adapters.kept_in(config.lora, config.dtype),
        remat=config.remat,
    )
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
    parts = split(config, lm, reference, family, scalar, mesh)
    method = algorithm.ppo(
        lm,
        reference,
        reward_fn,
        optimizer,
        sampling,
        settings,
        value_network=scalar.model if scalar else None,
        truncation=make_truncation(config.truncation, tokenizer),
        chunk_size=config.chunk_size,
        frozen=parts.frozen,
    )
    hooks, logs = [], []

    def open_log(first_step: int) -> MetricsWriter:
        logs.append(stage.open_log(first_step))
        return logs[-1]

    if config.eval_prompts.files:
        held_out, _ = rows.prompts(tokenizer, config.eval_prompts, field="eval_prompts")
        rows.leave_room(lm, held_out, sampling, field="eval_prompts")
        batches = [held_out.take(np.arange(len(held_out)))]

        def evaluate(state) -> dict[str, float]:
            found = evaluate_policy(
                lm,
                whole(state.params, parts.frozen)["policy"],
                reference,
                batches,
                sampling=sampling,
                key=jax.random.key(config.seed),
                decode=rows.decoder(tokenizer),
                reward_fn=reward_fn,
                judge=judge,
            )
            write_completions(logs[-1], int(state.step), found, config.shown_completions)
            metrics = found.means()
            return metrics | {"objective/score_heldout": metrics["eval/score"]}

        hooks.append(stages.every(config.eval_steps, steps, evaluate, first=True))

    def prepare():
        bases = {"policy": base, "value network": config.reward_model}
        adapters.remember(stage.folder, config.lora, bases)
        saved.describe(stage.description_dir, lm, tokenizer, family=family)
        first_example.of_prompts(tokenizer, prompts.columns)

    state = stages.train(
        stage,
        method,
        parts.trained,
        pipeline.batches(prompts, batch_size=config.batch_size, seed=config.seed),
        steps=steps,
        mesh=mesh,
        hooks=hooks,
        shown=("objective/score", "objective/kl_k1"),
        open_log=open_log,
        prepare=prepare,
    )
    summary = {"steps": steps, **stage.last_metrics()}
    readme = saved.model_card(
        "lm", "ppo", config, base=base, data=config.prompts.files, summary=summary
    )
    policy = whole(state.params, parts.frozen)["policy"]
    if config.lora:
        adapters.save(stage.folder, lm.config, policy, tokenizer, base=base, family=family)
    policy = lora.merge(policy)
    saved.save_lm(stage.model_dir, lm, policy, tokenizer, family=family, readme=readme)
    return stage.finish(summary)


def load_reward_model(config: PPOConfig, lm, tokenizer, mesh) -> saved.SavedScalar | None:
    """The reward model, or None where the reward is a function.

    A policy can say every token it has a row for, those of padding too, so the reward model needs
    as many.
    """
    if config.reward_model is None:
        return None
    found = saved.load_scalar(
        config.reward_model,
        mesh,
        dtype=config.dtype,
        param_dtype=adapters.kept_in(config.lora, config.dtype),
        remat=config.remat,
    )
    saved.same_tokenizer(tokenizer, found.tokenizer, "policy and reward model")
    known, said = found.model.config.vocab_size, lm.config.vocab_size
    if known < said:
        raise ConfigError(
            f"reward_model: has {known} vocabulary rows, the policy {said}; `jaxrlhf export` with "
            "drop_padding=true makes a policy without rows that no token needs"
        )
    return found


def make_reward(config: PPOConfig, scalar, tokenizer, prompts) -> rewards.RewardFn:
    """The reward that the config names."""
    if (scalar is None) == (config.reward_function is None):
        raise ConfigError("reward_model, reward_function: give one of the two")
    if scalar is not None:
        return rewards.from_model(scalar.model, scalar.params)
    name, _, function = str(config.reward_function).partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # `python -m` has it there, the installed command has not
    try:
        rule = getattr(importlib.import_module(name), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"reward_function = {config.reward_function!r}: {error}") from error
    return rewards.from_text(rule, rows.decoder(tokenizer), rows.columns(prompts))


def split(config: PPOConfig, lm, reference, family, scalar, mesh) -> adapters.Parts:
    """What trains of policy and value network, and what does not."""
    policy_key, value_key = jax.random.split(jax.random.key(config.seed))
    policy = adapters.of_lm(
        config.lora, lm.config, reference, family=family, key=policy_key, mesh=mesh
    )
    value = adapters.Parts(initial_value(config, lm, reference, scalar), None)
    if "lm" in value.trained:  # a network of its own, no head on the policy's trunk
        of, family = (scalar.model.config, scalar.family) if scalar else (lm.config, family)
        value = adapters.of_scalar(
            config.lora, of, value.trained, family=family, key=value_key, mesh=mesh
        )
    frozen = {"policy": policy.frozen, "value": value.frozen}
    frozen = {name: part for name, part in frozen.items() if part is not None}
    return adapters.Parts({"policy": policy.trained, "value": value.trained}, frozen or None)


def initial_value(config: PPOConfig, lm, reference, scalar) -> dict[str, Any]:
    """The reward model's parameters where there is one, else the reference's with a zero head."""
    shared = config.ppo.model_dump()["value_model"] == "shared"
    key = jax.random.key(config.seed)
    if scalar is None or shared:
        value = make_scalar_model(lm.config).init(key, reference, zero=True)
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
