"""PPO with a KL penalty to a reference policy, as in Ziegler et al. 2019 (arXiv 1909.08593).

One step: sample responses, score them, then several epochs of clipped updates on that batch.
The order of things is in `collect` (everything that asks a model without gradient) and `update`
(everything that is differentiated, pure). Every detail of the original code and of the N
implementation studies is a field of `Settings`.

Deviations from the original code, on purpose:
1. Log-probs that train are recomputed by the same forward pass that is differentiated; those of
   the sampler are only compared with them (`rollout/sampler_logprob_gap`).
2. Losses are means over the response tokens of a whole minibatch, however it is split into
   micro-batches or over devices.
3. With `packing` sequences are dealt to minibatches once a batch, each with about as many tokens,
   and an epoch takes these in a new order; without it every epoch deals anew. A batch that is one
   minibatch is learned from alike, up to rounding.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrlhf import inference, monitoring, reading, rewards
from jaxrlhf.algorithms.base import (
    Algorithm,
    Params,
    State,
    Sums,
    accumulated_grad,
    check_settings,
    new_state,
    setting,
    split_rows,
    whole,
)
from jaxrlhf.algorithms.rollouts import (
    Truncation,
    check_sampling,
    dealt,
    packed,
    repetition,
    shape_scores,
    visible,
)
from jaxrlhf.inference import token_stats
from jaxrlhf.losses import advantages, divergences, masked, policy
from jaxrlhf.losses.log_probs import TokenStats
from jaxrlhf.models import LM, heads
from jaxrlhf.models.heads import ScalarModel, make_scalar_model
from jaxrlhf.packing import Packed, Packing
from jaxrlhf.sampling import Sampling

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Settings:
    """Hyper-parameters of PPO, by the papers' names."""

    value_model: Literal["separate", "shared"] = setting(
        "separate", "a value network of its own, or a head on the policy's trunk"
    )
    num_ppo_epochs: int = setting(4, "passes over each batch of rollouts", ge=1)
    num_mini_batches: int = setting(1, "optimiser steps a pass", ge=1)
    gradient_accumulation_steps: int = setting(1, "micro-batches a minibatch", ge=1)
    gamma: float = setting(1.0, "discount a token", ge=0, le=1)
    lam: float = setting(0.95, "GAE's lambda", ge=0, le=1)
    cliprange: float = setting(0.2, "the ratio is clipped to [1 - c, 1 + c]", gt=0)
    cliprange_value: float | None = setting(
        0.2, "values move at most this far; null: no limit", gt=0
    )
    vf_coef: float = setting(0.1, "weight of the value loss", ge=0)
    entropy_coef: float = setting(0.0, "weight of an entropy bonus; the papers use none", ge=0)
    kl_coef: float = setting(0.05, "beta: reward lost a nat of KL to the reference", ge=0)
    kl_target: float | None = setting(
        None, "KL a sequence, in nats, that an adaptive coefficient aims for; null: fixed", gt=0
    )
    kl_horizon: int = setting(10_000, "episodes over which the adaptive coefficient moves", ge=1)
    kl_estimator: Literal["k1", "k2", "k3"] = setting("k1", "per-token KL estimator")
    kl_in: Literal["reward", "loss"] = setting("reward", "where the KL penalty stands")
    missing_eos_penalty: float | None = setting(
        None, "responses without a stop token get this score, or lose it; null: no rule"
    )
    missing_eos_rule: Literal["replace", "subtract"] = setting(
        "replace", "Ziegler replaces the score by the penalty (-1); TRL subtracts it (1)"
    )
    reward_clip: float | None = setting(None, "scores are cut to [-c, c]; null: not", gt=0)
    normalize_scores: bool = setting(False, "scores are standardised by running mean and std")
    whiten_rewards: bool = setting(False, "token rewards are scaled to unit variance, mean kept")
    whiten_advantages: bool = setting(True, "advantages are standardised in each minibatch")
    target_kl: float | None = setting(
        None, "no more updates on a batch once approx_kl exceeds this; null: never", gt=0
    )

    def __post_init__(self):
        check_settings(self)
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_coef = 0 stays 0: an adaptive coefficient (kl_target) is scaled")
        if self.kl_in == "reward" and self.kl_estimator == "k2":
            raise ValueError("kl_estimator k2 is for kl_in: loss; in the reward use k1")
        if self.kl_in == "loss" and self.kl_estimator != "k2":
            raise ValueError(
                f"kl_estimator {self.kl_estimator} in the loss has the wrong gradient; use k2"
            )


class Minibatch(NamedTuple):
    """A rollout batch with its learning signal, all `[b, ...]` but for the packed rows."""

    tokens: Array  # [b, P+N]
    mask: Array  # [b, P+N]
    response_mask: Array  # [b, N]
    old_log_probs: Array  # [b, N]
    ref_log_probs: Array
    old_values: Array
    advantages: Array
    returns: Array
    packed: Packed | None = None


def ppo(
    lm: LM,
    reference_params: Any,
    reward_fn: rewards.RewardFn,
    optimizer: optax.GradientTransformation,
    sampling: Sampling,
    settings: Settings,
    *,
    value_network: ScalarModel | None = None,
    truncation: Truncation | None = None,
    chunk_size: int | None = None,
    packing: Packing = "none",
    frozen: Params = None,
) -> Algorithm:
    """Proximal policy optimisation of a language model against `reward_fn`.

    Parameters are `{"policy": lm params, "value": scalar-model params}`; with
    `value_model="shared"`, `{"policy": ..., "value": {"head": ...}}`.

    Args:
      lm: policy and reference.
      reference_params: frozen; closed over by `collect` alone.
      reward_fn: any callable, see `jaxrlhf.rewards`.
      optimizer: one transformation for policy and value parameters.
      sampling: how responses are drawn; must be the full distribution (no top-k, top-p, min-p),
        because the loss scores the full distribution.
      settings: hyper-parameters.
      value_network: with `value_model="separate"`; by default one of the policy's size.
      truncation: what the reward sees of a response; the policy trains on all it sampled.
      chunk_size: vocabulary entries at a time in the output layer.
      packing: "packed" has models read rows without padding, several sequences in each: see
        `jaxrlhf.packing`.
      frozen: the part of the parameters that does not train, `{"policy": lora.frozen(...), "value":
        {"lm": lora.frozen(...)}}`; "value" is absent with a shared trunk. What trains is then
        adapters and the head. Policy, value and `reference_params` may share one base's arrays.
    Batches asked of the data: `prompt_tokens` `[B, P]`, `prompt_mask`, and `row` `[B]`.
    Raises:
      ValueError: sampling filters the distribution, or is greedy.
      UserError: from `collect`, packed batches that do not divide into micro-batches on devices, or
        models whose positions do not allow packed rows.
    """
    check_sampling(sampling)
    shared = settings.value_model == "shared"
    value_model = make_scalar_model(lm.config)
    if value_network is not None and not shared:
        value_model = value_network
    temperature = sampling.temperature
    length = sampling.max_new_tokens
    phase = jax.profiler.TraceAnnotation
    groups = settings.num_mini_batches, settings.gradient_accumulation_steps
    configs = lm.config, value_model.config

    def init(params, key):
        return new_state(params, optimizer, initial_extra(settings))

    def collect(state, next_batch, key):
        prompts = next_batch()
        params, clock = whole(state.params, frozen), monitoring.Stopwatch()
        keys = jax.random.split(key, prompts["prompt_tokens"].shape[0])
        with phase("generate"):
            rollout = inference.generate(
                lm,
                params["policy"],
                prompts["prompt_tokens"],
                prompts["prompt_mask"],
                keys,
                sampling,
            )
            jax.block_until_ready(rollout)
        times = clock.lap("generate")
        with phase("score"):
            rows = np.asarray(prompts["row"])
            if packing == "packed":
                rollout, rows = dealt(rollout, rows, groups=groups, like=prompts["prompt_tokens"])
            batch = scored(params, rollout, rows)
            jax.block_until_ready(batch)
        times |= clock.lap("score")
        sampled = int(np.asarray(rollout.response_mask).sum())
        times["time/generated_tokens_per_s"] = sampled / times["time/generate_s"]
        return batch, times

    def scored(params, rollout, rows):
        """A batch of rollouts with what models and the reward say of it."""
        tokens, mask = rollout.tokens, rollout.mask
        together = None if packing == "none" else packed(rollout, configs=configs)
        at = {"response_length": length, "packed": together}
        ask = at | {"temperature": temperature, "chunk_size": chunk_size}
        new = inference.score(lm, params["policy"], tokens, mask, **ask)
        ref = inference.score(lm, reference_params, tokens, mask, **ask)
        value_params = {"lm": params["policy"], **params["value"]}
        values = inference.values(value_model, value_params, tokens, mask, **at)
        seen, complete = visible(rollout, truncation)
        view = rewards.Rollout(tokens, seen, rollout.prompt_length, rows)
        batch = {
            "tokens": tokens,
            "mask": mask,
            "log_probs": new.log_probs,
            "entropy": new.entropy,
            "ref_log_probs": ref.log_probs,
            "values": values,
            "scores": rewards.as_scores(reward_fn(view), batch_size=tokens.shape[0]),
            "complete": complete,
            "sampler_log_probs": rollout.log_probs,
        }
        if packing == "packed":  # `update` reads one micro-batch at a time
            batch["packed"] = packed(rollout, configs=configs, groups=math.prod(groups))
        return batch

    def forward(params, rows):
        """Log-probs, entropy and values `[b, N]` of the responses, differentiable."""
        read = reading.of(rows.tokens, rows.mask, length=length, packed=rows.packed)
        with jax.named_scope("policy"):
            hidden = lm.hidden(params["policy"], **read.inputs)
            stats = token_stats(
                lm,
                params["policy"],
                read.aligned(hidden),
                read.tokens,
                temperature=temperature,
                chunk_size=chunk_size,
            )
        with jax.named_scope("value"):
            if shared:
                values = heads.read(params["value"]["head"], hidden)
            else:
                values = value_model.apply(params["value"], **read.inputs)
        return jax.tree.map(read.spread, stats), read.spread(read.aligned(values))

    def learn(params, opt_state, minibatch, kl_coef, frozen):
        """One optimiser step."""
        total = jnp.maximum(jnp.sum(minibatch.response_mask), 1).astype(jnp.float32)

        def loss_fn(params, rows):
            stats, values = forward(whole(params, frozen), rows)
            return losses(rows, stats, values, kl_coef, total, settings)

        grads, sums = accumulated_grad(
            loss_fn, params, minibatch, micro_batches=settings.gradient_accumulation_steps
        )
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, opt_state, params)
        metrics = sums.add | sums.maximum | {"policy/grad_norm": optax.tree.norm(grads)}
        return optax.apply_updates(params, updates), opt_state, metrics

    def update(state, batch, key, frozen=None):
        extra, scores, score_metrics = shaped(state.extra, batch, settings)
        rows, kl_coef = batch | {"shaped_scores": scores}, extra["kl_coef"]

        def one(params, opt_state, minibatch):
            return learn(params, opt_state, minibatch, kl_coef, frozen)

        def epoch(carry, key):
            count = settings.num_mini_batches
            pieces = jax.tree.map(
                lambda x: split_rows(x, count), shuffled(rows, key, minibatches=count)
            )
            return jax.lax.scan(step, carry, pieces)

        def step(carry, rows):
            params, opt_state, stopped = carry
            minibatch = signal(rows, kl_coef, settings)
            if settings.target_kl is None:
                params, opt_state, metrics = one(params, opt_state, minibatch)
                return (params, opt_state, stopped), (metrics, jnp.float32(1))
            shapes = jax.eval_shape(one, params, opt_state, minibatch)[2]
            none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            params, opt_state, metrics = jax.lax.cond(
                stopped,
                lambda params, opt_state: (params, opt_state, none),
                lambda params, opt_state: one(params, opt_state, minibatch),
                params,
                opt_state,
            )
            made = jnp.where(stopped, 0.0, 1.0)
            stopped = stopped | (metrics["policy/approx_kl"] > settings.target_kl)
            return (params, opt_state, stopped), (metrics, made)

        carry = state.params, state.opt_state, jnp.bool_(False)
        keys = jax.random.split(key, settings.num_ppo_epochs)
        (params, opt_state, _), (per_step, made) = jax.lax.scan(epoch, carry, keys)
        metrics = rollout_metrics(batch, scores, kl_coef, settings)
        if settings.kl_target is not None:
            extra = extra | {
                "kl_coef": divergences.adaptive_kl_coef(
                    kl_coef,
                    metrics["objective/kl_k1"],
                    target=settings.kl_target,
                    horizon=settings.kl_horizon,
                    batch_size=scores.shape[0],
                )
            }
        new = State(state.step + 1, params, opt_state, extra)
        return new, metrics | score_metrics | mean_over_updates(per_step, made)

    return Algorithm(init, collect, update, frozen)


def initial_extra(settings: Settings) -> dict[str, Array]:
    """What a state holds beside parameters: the KL coefficient, and the moments of the scores."""
    extra = {"kl_coef": jnp.float32(settings.kl_coef)}
    if settings.normalize_scores:
        zero = jnp.zeros((), jnp.float32)
        extra |= {"score_count": zero, "score_mean": zero, "score_m2": zero}
    return extra


def shuffled(rows, key, *, minibatches: int):
    """Rows in a new order. Packed ones keep to their minibatch, and minibatches change places."""
    ways = minibatches if "packed" in rows else rows["scores"].shape[0]
    order = jax.random.permutation(key, ways)

    def moved(x):
        return x.reshape(-1, ways, *x.shape[1:])[:, order].reshape(x.shape)

    return jax.tree.map(moved, rows)


def delivered(extra, batch, settings: Settings) -> Array:
    """Token rewards `[B, N]` that an update would learn from: what the reward has become by then.

    Guards ask; `update` takes the same steps.
    """
    extra, scores, _ = shaped(extra, batch, settings)
    return token_rewards(batch | {"shaped_scores": scores}, extra["kl_coef"], settings)


def push(extra, batch, settings: Settings) -> Array:
    """Minus the gradient `[B, N]` of the loss in the log-probs: which tokens become likelier.

    It is that of the first of several updates, on a batch that is one minibatch. Guards ask;
    `update` takes the same steps.
    """
    extra, scores, _ = shaped(extra, batch, settings)
    kl_coef = extra["kl_coef"]
    rows = signal(batch | {"shaped_scores": scores}, kl_coef, settings)
    total = jnp.sum(rows.response_mask).astype(jnp.float32)

    def loss(log_probs):
        stats = TokenStats(log_probs, batch["entropy"])
        return losses(rows, stats, rows.old_values, kl_coef, total, settings)[0]

    return -jax.grad(loss)(rows.old_log_probs)


def shaped(extra, batch, settings: Settings):
    """`shape_scores` by these settings."""
    return shape_scores(
        extra,
        batch["scores"],
        batch["complete"],
        normalize=settings.normalize_scores,
        clip=settings.reward_clip,
        missing_eos_penalty=settings.missing_eos_penalty,
        missing_eos_rule=settings.missing_eos_rule,
    )


def token_rewards(rows, kl_coef, settings: Settings) -> Array:
    """Rewards `[b, N]`: -beta * KL at every token, plus the score at the last."""
    mask = rows["mask"][:, -rows["log_probs"].shape[1] :]
    estimator = getattr(divergences, settings.kl_estimator)
    kl = estimator(rows["log_probs"], rows["ref_log_probs"])
    coefficient = kl_coef if settings.kl_in == "reward" else 0.0
    return advantages.token_rewards(rows["shaped_scores"], kl, mask, kl_coef=coefficient)


def signal(rows, kl_coef, settings: Settings) -> Minibatch:
    """Token rewards, GAE and whitening of one minibatch."""
    length = rows["log_probs"].shape[1]
    mask = rows["mask"][:, -length:]
    reward = token_rewards(rows, kl_coef, settings)
    if settings.whiten_rewards:
        reward = masked.whiten(reward, mask, shift_mean=False)
    advantage, returns = advantages.gae(
        reward, rows["values"], mask, gamma=settings.gamma, lam=settings.lam
    )
    if settings.whiten_advantages:
        advantage = masked.whiten(advantage, mask, shift_mean=True)
    return Minibatch(
        tokens=rows["tokens"],
        mask=rows["mask"],
        response_mask=mask,
        old_log_probs=rows["log_probs"],
        ref_log_probs=rows["ref_log_probs"],
        old_values=rows["values"],
        advantages=advantage,
        returns=returns,
        packed=rows.get("packed"),
    )


def losses(rows: Minibatch, stats, values, kl_coef, total, settings: Settings):
    """The PPO loss of some rows of a minibatch with `total` response tokens, and its parts."""
    mask = rows.response_mask

    def mean(x):
        return masked.sum(x, mask) / total

    surrogate = policy.clipped_surrogate(
        stats.log_probs, rows.old_log_probs, rows.advantages, clip_range=settings.cliprange
    )
    value_loss = policy.clipped_value_loss(
        values, rows.old_values, rows.returns, clip_range=settings.cliprange_value
    )
    loss = mean(surrogate) + settings.vf_coef * mean(value_loss)
    if settings.entropy_coef:
        loss = loss - settings.entropy_coef * mean(stats.entropy)
    if settings.kl_in == "loss":
        loss = loss + kl_coef * mean(divergences.k2(stats.log_probs, rows.ref_log_probs))
    log_ratio = stats.log_probs - rows.old_log_probs
    ratio, moved = jnp.exp(log_ratio), jnp.abs(values - rows.old_values)
    limit = jnp.inf if settings.cliprange_value is None else settings.cliprange_value
    parts = {
        "policy/loss": mean(surrogate),
        "policy/entropy": mean(stats.entropy),
        "policy/approx_kl": mean(0.5 * log_ratio**2),
        "policy/clip_fraction": mean((jnp.abs(ratio - 1) > settings.cliprange).astype(jnp.float32)),
        "policy/ratio_mean": mean(ratio),
        "value/loss": mean(value_loss),
        "value/clip_fraction": mean((moved > limit).astype(jnp.float32)),
    }
    largest = jnp.max(ratio, where=mask, initial=0.0)
    return loss, Sums(parts, {"policy/ratio_max": largest})


def mean_over_updates(per_step, made):
    """Metrics `[epochs, minibatches]` to scalars: mean over the updates made, or maximum."""
    updates = jnp.sum(made)
    metrics = {
        name: jnp.max(x) if name.endswith("_max") else jnp.sum(x) / updates
        for name, x in per_step.items()
    }
    return metrics | {"policy/updates": updates}


def rollout_metrics(batch, scores, kl_coef, settings: Settings):
    """What a batch of rollouts looks like before it is learned from."""
    length = batch["log_probs"].shape[1]
    mask = batch["mask"][:, -length:]
    log_ratio = (batch["log_probs"], batch["ref_log_probs"])
    reward = token_rewards(batch | {"shaped_scores": scores}, kl_coef, settings)
    _, returns = advantages.gae(
        reward, batch["values"], mask, gamma=settings.gamma, lam=settings.lam
    )

    def per_sequence(x):
        return jnp.mean(masked.sum(x, mask, axis=1))

    residual = masked.var(returns - batch["values"], mask)
    variance = masked.var(returns, mask)
    gap = jnp.abs(batch["log_probs"] - batch["sampler_log_probs"])
    held = batch["packed"].segment_ids > 0 if "packed" in batch else batch["mask"]
    return {
        "objective/kl_k1": per_sequence(divergences.k1(*log_ratio)),
        "objective/kl_k3": per_sequence(divergences.k3(*log_ratio)),
        "objective/kl_coef": jnp.asarray(kl_coef, jnp.float32),
        "objective/entropy": per_sequence(batch["entropy"]),
        "objective/score": jnp.mean(batch["scores"].astype(jnp.float32)),
        "objective/score_std": jnp.std(batch["scores"].astype(jnp.float32)),
        "objective/score_total": per_sequence(reward),
        "value/mean": masked.mean(batch["values"], mask),
        "value/var": masked.var(batch["values"], mask),
        "value/explained_variance": 1.0 - residual / jnp.maximum(variance, 1e-8),
        "returns/mean": masked.mean(returns, mask),
        "returns/var": variance,
        "rollout/length": jnp.mean(jnp.sum(mask, axis=1).astype(jnp.float32)),
        "rollout/eos_rate": jnp.mean(batch["complete"].astype(jnp.float32)),
        "rollout/padding": 1.0 - jnp.mean(held.astype(jnp.float32)),
        "rollout/repetition": repetition(batch["tokens"][:, -length:], mask),
        "rollout/sampler_logprob_gap": jnp.max(gap, where=mask, initial=0.0),
    }
