"""What a run of PPO is given: models, prompts and reward, loaded and found to fit together."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrlhf import rewards
from jaxrlhf.algorithms.rollouts import Truncation
from jaxrlhf.data import chat
from jaxrlhf.data.arrays import Arrays
from jaxrlhf.errors import ConfigError
from jaxrlhf.models import LM
from jaxrlhf.recipes import adapters, blocks, rows, saved
from jaxrlhf.recipes.ppo_config import PPOConfig, TruncationConfig
from jaxrlhf.sampling import Sampling


class Given(NamedTuple):
    """What the config names, loaded and found to fit together."""

    lm: LM
    start: Any  # parameters of the policy before training
    reference: Any  # parameters that the KL is measured from; the same where no others are named
    tokenizer: Any
    family: Any
    prompts: Arrays
    held_out: list[Mapping[str, np.ndarray]]  # batches; none where there are no such prompts
    sampling: Sampling
    truncation: Truncation | None
    scalar: saved.SavedScalar | None  # the reward model, where the reward is one
    reward_fn: rewards.RewardFn
    others: dict[str, rewards.RewardFn]  # reward models that only a guard asks


def load(config: PPOConfig, mesh, reward_fn: rewards.RewardFn | None) -> Given:
    """Models, prompts and reward."""
    start = saved.load_lm(
        blocks.required("policy", config.policy),
        mesh,
        dtype=config.dtype,
        param_dtype=adapters.kept_in(config.lora, config.dtype),
        remat=config.remat,
    )
    lm, params, tokenizer, family = start
    sampling = config.sampling.build(tokenizer)
    prompts, found = rows.prompts(tokenizer, config.prompts, field="prompts")
    rows.check_tokens(lm, tokenizer, prompts)
    rows.leave_room(lm, prompts, sampling, field="prompts")
    held_out = []
    if config.eval_prompts.files:
        kept, _ = rows.prompts(tokenizer, config.eval_prompts, field="eval_prompts")
        rows.leave_room(lm, kept, sampling, field="eval_prompts")
        held_out.append(kept.take(np.arange(len(kept))))
    elif config.stop_kl:
        raise ConfigError("stop_kl: needs held-out prompts to measure on; set eval_prompts.files")
    scalar = load_reward_model(config, lm, tokenizer, mesh)
    return Given(
        lm=lm,
        start=params,
        reference=frozen(config, load_reference(config, start, mesh)),
        tokenizer=tokenizer,
        family=family,
        prompts=prompts,
        held_out=held_out,
        sampling=sampling,
        truncation=make_truncation(config.truncation, tokenizer),
        scalar=scalar,
        reward_fn=reward_fn or make_reward(config, scalar, tokenizer, found),
        others=other_rewards(config, lm, tokenizer, mesh),
    )


def frozen(config: PPOConfig, params: Any) -> Any:
    """Parameters of a model that is only asked, in `frozen_dtype`."""
    if config.frozen_dtype == "float32":
        return params
    return jax.tree.map(lambda x: x.astype(config.frozen_dtype), params)


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
        params = frozen(config, scalar.params)
        return rewards.from_model(scalar.model, params, packing=config.packing)
    rule = named_function("reward_function", str(config.reward_function))
    return rewards.from_text(rule, rows.decoder(tokenizer), rows.columns(prompts))


def other_rewards(config: PPOConfig, lm, tokenizer, mesh) -> dict[str, rewards.RewardFn]:
    """Reward models that only a guard asks, by column of an evaluation."""
    field, found = "guards.disagreement.reward_models", {}
    for number, path in enumerate(config.guards.disagreement.reward_models, start=1):
        scalar = load_scalar(field, path, config, lm, tokenizer, mesh)
        found[f"score_{number}"] = rewards.from_model(scalar.model, frozen(config, scalar.params))
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


def make_truncation(config: TruncationConfig, tokenizer) -> Truncation | None:
    """The truncation rule as token ids."""
    if config.token is None:
        return None
    ids = tokenizer.encode(config.token, add_special_tokens=False)
    if len(ids) != 1:
        raise ConfigError(f"truncation.token = {config.token!r}: is {len(ids)} tokens, must be one")
    return Truncation((ids[0], *chat.stop_ids(tokenizer)), config.after)
