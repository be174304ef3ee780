"""Estimators of KL(π ‖ ref), per token, from samples of π, and the coefficient in front of them.

With d = log π(y) − log ref(y) and y ~ π:   k1 = d,   k2 = d²/2,   k3 = exp(−d) − 1 + d.

Which one goes where is decided by its gradient, not by its variance:

- **in the reward: k1.** The policy gradient of E[k1] as a reward is the gradient of KL(π ‖ ref).
- **in the loss: k2**, or `k1_straight_through` (k1's value, k2's gradient). Differentiated, k1
  pushes nowhere on average, and k3 pushes down KL(ref ‖ π), the other direction.

For π = (.5, .3, .2) and ref = (.2, .3, .5), KL(π ‖ ref) = .274887 nats; gradients are with respect
to π's logits, exact expectations, compared by length and cosine with the gradient of KL(π ‖ ref):

    estimator   E       std     as reward: length, cosine    as loss: length, cosine
    k1          .2749   .7156   1.000   1.000                0.000     —
    k2          .2939   .1924    .273    .473                1.000   1.000
    k3          .2749   .2064    .258   −.030                1.040    .969

Near the reference it gets worse: with π's logits moved by (.02, 0, −.02), k3 in the reward has .6 %
of the true gradient's length, and points away from it (cosine −.53), being quadratic where k1 is
linear. k3 is for looking at: unbiased, never negative, and steadier than k1. (Estimators: Schulman
2020, "Approximating KL divergence". The table is computed in the tests.)

Deliberately not here: KL(ref ‖ π), and where the coefficient is stored.
"""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from jaxrlhf.losses._boundary import as_float32, float32, isolate, same_shape


def k1(log_probs: chex.Array, ref_log_probs: chex.Array) -> jax.Array:
    """The estimator for the reward: d = log π − log ref. Unbiased, of either sign, noisy.

    Args: `log_probs`, `ref_log_probs` [B, T] float32 of tokens sampled from π; no gradient flows to
    ref.
    Returns: [B, T] float32, nats. As a loss its expected gradient is zero: use `k2` there.

    >>> k1(jnp.array([-1.0]), jnp.array([-1.5])).tolist()
    [0.5]
    """
    return _log_ratio(log_probs, ref_log_probs)


def k2(log_probs: chex.Array, ref_log_probs: chex.Array) -> jax.Array:
    """The estimator for a loss: d²/2. Biased value (third order in d), gradient of KL(π ‖ ref).

    Args and returns: as `k1`; never negative.

    >>> k2(jnp.array([-1.0]), jnp.array([-1.5])).tolist()
    [0.125]
    """
    return isolate(lambda d: 0.5 * jnp.square(d), _log_ratio(log_probs, ref_log_probs))


def k3(log_probs: chex.Array, ref_log_probs: chex.Array) -> jax.Array:
    """The estimator for a plot: exp(−d) − 1 + d. Unbiased value, never negative, low variance.

    Not for the reward (near the reference it gives about 1 % of the gradient, and of the wrong
    direction) and in a loss it is KL(ref ‖ π) that falls: see the table at the top.
    Args and returns: as `k1`.

    >>> round(k3(jnp.array([-1.0]), jnp.array([-1.5])).item(), 4)  # exp(−.5) − 1 + .5
    0.1065
    """
    return isolate(lambda d: jnp.expm1(-d) + d, _log_ratio(log_probs, ref_log_probs))


def k1_straight_through(log_probs: chex.Array, ref_log_probs: chex.Array) -> jax.Array:
    """k1's unbiased value with k2's gradient: stop(k1) + k2 − stop(k2). For a loss.

    Args and returns: as `k1`.

    >>> fn = lambda x: k1_straight_through(x, jnp.array(-1.5))
    >>> float(fn(jnp.array(-1.0))), float(jax.grad(fn)(jnp.array(-1.0)))
    (0.5, 0.5)
    """
    squared = k2(log_probs, ref_log_probs)
    value = lax.stop_gradient(k1(log_probs, ref_log_probs))
    return value + (squared - lax.stop_gradient(squared))


def exact(
    logits: chex.Array, ref_logits: chex.Array, *, temperature: chex.Numeric = 1.0
) -> jax.Array:
    """KL(π ‖ ref) over the whole vocabulary: Σ_v π_v (log π_v − log ref_v), both at `temperature`.

    No sampling noise, and differentiable as it stands: the loss of choice for a small vocabulary.
    Args: `logits`, `ref_logits` [B, T, V], any float dtype, shifted alike; no gradient flows to
    ref.
    Returns: [B, T] float32, nats; infinite where π can draw what ref cannot.

    >>> p, ref = jnp.array([[0.5, 0.3, 0.2]]), jnp.array([[0.2, 0.3, 0.5]])
    >>> round(exact(jnp.log(p), jnp.log(ref)).item(), 6)
    0.274887
    """
    logits, ref_logits = as_float32(logits), lax.stop_gradient(as_float32(ref_logits))
    same_shape(logits=logits, ref_logits=ref_logits)
    return isolate(_kl, logits / temperature, ref_logits / temperature)


def adaptive_kl_coef(
    kl_coef: chex.Numeric,
    kl_per_sequence: chex.Numeric,
    *,
    target: float,
    horizon: float,
    batch_size: int,
) -> jax.Array:
    """The coefficient after a batch: β · (1 + clip(KL / target − 1, −.2, .2) · n / horizon).

    Args: `kl_coef` β ≥ 0; `kl_per_sequence` scalar or [B], nats: KL *summed over the tokens* of
    each sequence (k1), averaged here over sequences, not the mean over tokens; `target` in the same
    unit, > 0; `horizon` in sequences; `batch_size` n, the sequences in the batch.
    Returns: scalar float32, never negative. Source: Ziegler et al. 2019, paper and code.

    >>> round(adaptive_kl_coef(0.15, 12.0, target=6.0, horizon=10_000, batch_size=512).item(), 6)
    0.151536
    """
    error = jnp.clip(jnp.mean(as_float32(kl_per_sequence)) / target - 1.0, -0.2, 0.2)
    return jnp.maximum(as_float32(kl_coef) * (1.0 + error * batch_size / horizon), 0.0)


def _log_ratio(log_probs: chex.Array, ref_log_probs: chex.Array) -> jax.Array:
    log_probs, ref_log_probs = float32(log_probs=log_probs, ref_log_probs=ref_log_probs)
    return log_probs - lax.stop_gradient(ref_log_probs)


def _kl(logits: jax.Array, ref_logits: jax.Array) -> jax.Array:
    log_p, log_ref = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    p = jnp.exp(log_p)
    return jnp.sum(p * jnp.where(p > 0.0, log_p - log_ref, 0.0), axis=-1)
