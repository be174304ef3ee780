"""From one score a sequence to one advantage a token.

    rewards = advantages.token_rewards(scores, divergences.k1(old, ref), mask, kl_coef=beta)
    advantage, returns = advantages.gae(rewards, values, mask, gamma=1.0, lam=0.95)
    advantage = masked.whiten(advantage, mask, shift_mean=True)     # after the returns were made

Everything that leaves this file is a constant to the gradient.

Deliberately not here: whitening (`masked.whiten`), and bootstrapping past the last token. A
response that was cut off ends like any other: its value after the last token is 0.
"""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from jaxrlhf.losses._boundary import as_float32, boolean, float32, same_shape


def token_rewards(
    scores: chex.Array, kl: chex.Array, mask: chex.Array, *, kl_coef: chex.Numeric
) -> jax.Array:
    """r_t = −β·KL_t, plus the score at the last real token. A row sums to score − β·Σ KL.

    Args: `scores` [B], any dtype, higher is better; `kl` [B, T] float32, `divergences.k1` of the
    tokens as sampled, π in front; `mask` [B, T] bool, the response with its stop token;
    `kl_coef` β ≥ 0.
    Returns: [B, T] float32, higher is better, 0 where not `mask`; all 0 for a row without a True.
    Source: Ziegler et al. 2019, eq. 2; the placement of the score is their code's.

    >>> mask = jnp.array([[True, True, False]])
    >>> token_rewards(jnp.array([2]), jnp.full((1, 3), 0.5), mask, kl_coef=0.5).tolist()
    [[-0.25, 1.75, 0.0]]
    """
    scores, mask = as_float32(scores), boolean(mask)
    (kl,) = float32(kl=kl)
    same_shape(kl=kl, mask=mask)
    chex.assert_shape(
        scores, mask.shape[:-1], custom_message="`scores`: one for each row of `mask`"
    )
    penalty = jnp.where(mask, -as_float32(kl_coef) * kl, 0.0)
    return lax.stop_gradient(penalty + jnp.where(_last(mask), scores[..., None], 0.0))


def gae(
    rewards: chex.Array,
    values: chex.Array,
    mask: chex.Array,
    *,
    gamma: chex.Numeric,
    lam: chex.Numeric,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimates: A_t = δ_t + γλ·A_{t+1}, δ_t = r_t + γ·V_{t+1} − V_t.

    t + 1 is the next position where `mask` is True (so padding on either side, and gaps, are
    stepped over), and V = A = 0 after the last one. γ = λ = 1 and V = 0 give the reward still to
    come.
    Args: `rewards`, `values` [B, T] float32, `values[t]` of the state *before* token t;
    `mask` [B, T] bool; `gamma` γ and `lam` λ in [0, 1].
    Returns: (advantages, returns), [B, T] float32, 0 where not `mask`, constants to the gradient;
    returns = A + V from these, unwhitened, advantages. Source: Schulman et al. 2016, eq. 16.

    >>> rewards, values = jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 0.5]])
    >>> a, g = gae(rewards, values, jnp.ones((1, 2), bool), gamma=1.0, lam=0.5)
    >>> a.tolist(), g.tolist()
    ([[0.25, 0.5]], [[0.75, 1.0]])
    """
    rewards, values = float32(rewards=rewards, values=values)
    mask = boolean(mask)
    same_shape(rewards=rewards, mask=mask)
    # Cleaned of what the mask hides, and time first, for the scan.
    rewards = jnp.moveaxis(jnp.where(mask, lax.stop_gradient(rewards), 0.0), -1, 0)
    values = jnp.moveaxis(jnp.where(mask, lax.stop_gradient(values), 0.0), -1, 0)
    real = jnp.moveaxis(mask, -1, 0)

    nothing = jnp.zeros_like(rewards[0] + values[0]), jnp.zeros_like(values[0])
    discounts = jnp.asarray(gamma, jnp.float32), jnp.asarray(gamma * lam, jnp.float32)
    _, advantages = lax.scan(_estimate, (nothing, discounts), (rewards, values, real), reverse=True)
    return jnp.moveaxis(advantages, 0, -1), jnp.moveaxis(advantages + values, 0, -1)


def _estimate(carry, now):
    """A position's advantage from what comes after it. Here, so that JAX traces it only once."""
    (advantage, value_after), (gamma, gamma_lam) = carry
    reward, value, is_real = now
    estimate = reward + gamma * value_after - value + gamma_lam * advantage
    later = jnp.where(is_real, estimate, advantage), jnp.where(is_real, value, value_after)
    return (later, (gamma, gamma_lam)), jnp.where(is_real, estimate, 0.0)


def _last(mask: jax.Array) -> jax.Array:
    """True at the last True of each row, wherever the padding is; nowhere in an empty row."""
    seen = jnp.cumsum(mask, axis=-1, dtype=jnp.int32)
    return mask & (seen == seen[..., -1:])
