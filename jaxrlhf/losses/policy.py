"""The losses of PPO, per token, and what to watch while they are minimised.

Everything is a loss: smaller is better, a positive advantage makes its token more likely. Old
log-probs, old values, advantages and returns are constants, whatever the caller hands over.

Deviations from Schulman et al. 2017: none in the losses. `RatioStats.clip_fraction` counts every
ratio outside the range, also where the unclipped term is the larger one and the clip changes
nothing.

Deliberately not here: an entropy bonus, the weight of the value loss, whitening, early stopping.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from jaxrlhf.losses import masked
from jaxrlhf.losses._boundary import boolean, float32, isolate, same_shape


class RatioStats(NamedTuple):
    """How far the policy has moved from the one that sampled; scalars, float32, over the mask."""

    approx_kl: jax.Array  # mean of (log ratio)² / 2, nats per token: about KL(old ‖ new)
    clip_fraction: jax.Array  # share of tokens with |ratio − 1| > clip_range
    mean: jax.Array  # of the ratio; 1 in expectation while the samples are on-policy
    max: jax.Array  # of the ratio; 0 if the mask is empty


def clipped_surrogate(
    log_probs: chex.Array,
    old_log_probs: chex.Array,
    advantages: chex.Array,
    *,
    clip_range: chex.Numeric,
) -> jax.Array:
    """max(−A·ρ, −A·clip(ρ, 1 − ε, 1 + ε)) with ρ = π(token) / π_old(token).

    Args: all [B, T] float32; `log_probs` of the policy in training, `old_log_probs` as sampled,
    both at the sampling temperature; `advantages` A, higher is better; `clip_range` ε > 0.
    Returns: [B, T] float32, a loss. At equal log-probs ρ is exactly 1. Gradient flows to
    `log_probs` only.
    Source: Schulman et al. 2017, eq. 7, negated.

    >>> new, old = jnp.log(jnp.array([0.6, 0.4])), jnp.log(jnp.array([0.4, 0.4]))
    >>> clipped_surrogate(new, old, jnp.array([1.0, -2.0]), clip_range=0.25).tolist()  # ρ = 1.5, 1
    [-1.25, 2.0]
    """
    log_probs, old_log_probs, advantages = float32(
        log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages
    )

    def loss(log_ratio: jax.Array, advantage: jax.Array) -> jax.Array:
        ratio = jnp.exp(log_ratio)
        clipped = jnp.clip(ratio, 1.0 - clip_range, 1.0 + clip_range)
        return jnp.maximum(-advantage * ratio, -advantage * clipped)

    log_ratio = log_probs - lax.stop_gradient(old_log_probs)
    return isolate(loss, log_ratio, lax.stop_gradient(advantages))


def clipped_value_loss(
    values: chex.Array,
    old_values: chex.Array,
    returns: chex.Array,
    *,
    clip_range: chex.Numeric | None,
) -> jax.Array:
    """½·max((V − G)², (clip(V, V_old ± ε) − G)²); with `clip_range` None, ½·(V − G)².

    Args: all [B, T] float32; `values` V of the network in training, `old_values` as at the rollout,
    `returns` G from `advantages.gae`; `clip_range` ε > 0 in the unit of the values.
    Returns: [B, T] float32, a loss. Gradient flows to `values` only.
    Source: Ziegler et al. 2019, code; the original is in the code of Schulman et al. 2017.

    >>> values, old, returns = jnp.array([1.0]), jnp.array([0.0]), jnp.array([1.0])
    >>> clipped_value_loss(values, old, returns, clip_range=0.5).tolist()  # ½(½ − 1)²
    [0.125]
    """
    values, old_values, returns = float32(values=values, old_values=old_values, returns=returns)

    def loss(value: jax.Array, old: jax.Array, target: jax.Array) -> jax.Array:
        error = jnp.square(value - target)
        if clip_range is not None:
            near = jnp.clip(value, old - clip_range, old + clip_range)
            error = jnp.maximum(error, jnp.square(near - target))
        return 0.5 * error

    return isolate(loss, values, lax.stop_gradient(old_values), lax.stop_gradient(returns))


def ratio_stats(
    log_probs: chex.Array,
    old_log_probs: chex.Array,
    mask: chex.Array,
    *,
    clip_range: chex.Numeric,
    axis_name: masked.AxisName = None,
) -> RatioStats:
    """What PPO logs about ρ = π(token) / π_old(token); constants to the gradient.

    `approx_kl` is the mean of (log ρ)²/2 and not k3 = ρ − 1 − log ρ, which agrees with it to second
    order: it is what the code of Ziegler et al. 2019 logs, so published numbers and thresholds
    carry over, it cannot be negative, and one far-off token does not blow it up exponentially.
    Args: `log_probs`, `old_log_probs` [B, T] float32; `mask` [B, T] bool; `clip_range` as in the
    loss; `axis_name` mesh axes to reduce over inside `shard_map`.
    Returns: `RatioStats`; at the first minibatch of a rollout approx_kl 0, clip_fraction 0, mean
    and max 1.

    >>> stats = ratio_stats(jnp.zeros(2), jnp.zeros(2), jnp.ones(2, bool), clip_range=0.2)
    >>> float(stats.approx_kl), float(stats.clip_fraction), float(stats.max)
    (0.0, 0.0, 1.0)
    """
    log_probs, old_log_probs = float32(log_probs=log_probs, old_log_probs=old_log_probs)
    mask = boolean(mask)
    same_shape(log_probs=log_probs, mask=mask)
    log_ratio = lax.stop_gradient(log_probs - old_log_probs)
    ratio = jnp.exp(log_ratio)
    outside = jnp.abs(ratio - 1.0) > clip_range
    largest = jnp.max(ratio, where=mask, initial=0.0)
    return RatioStats(
        approx_kl=masked.mean(0.5 * jnp.square(log_ratio), mask, axis_name=axis_name),
        clip_fraction=masked.mean(outside, mask, axis_name=axis_name),
        mean=masked.mean(ratio, mask, axis_name=axis_name),
        max=largest if axis_name is None else lax.pmax(largest, axis_name),
    )
