"""Losses against given tokens: cross-entropy and the z-loss that keeps the normaliser near one.

Deliberately not here: which tokens count (a mask, given to `masked.mean`), and the shift and
softmax (`log_probs`). The whole of supervised fine-tuning is

    stats = log_probs.from_logits(log_probs.shift(logits), tokens)
    loss = masked.mean(supervised.cross_entropy(stats.log_probs), loss_mask)
"""

import chex
import jax
import jax.numpy as jnp

from jaxrlhf.losses._boundary import as_float32, float32, isolate


def cross_entropy(log_probs: chex.Array) -> jax.Array:
    """Negative log-likelihood of each token: −log π(token t | tokens < t).

    Args: `log_probs` [B, T] float32, from `log_probs.from_logits` or `.chunked`.
    Returns: [B, T] float32, nats, ≥ 0: a loss to minimise.

    >>> round(cross_entropy(jnp.log(jnp.array(0.25))).item(), 4)
    1.3863
    """
    (log_probs,) = float32(log_probs=log_probs)
    return -log_probs


def z_loss(logits: chex.Array) -> jax.Array:
    """Squared log-normaliser, (log Σ_v exp z_v)²: keeps logits from drifting at a weight near 1e-4.

    Args: `logits` [B, T, V], any float dtype, shifted like the tokens.
    Returns: [B, T] float32, ≥ 0. Source: Chowdhery et al. 2022 (PaLM), section 5.

    >>> round(z_loss(jnp.zeros((1, 4))).item(), 4)  # (log 4)²
    1.9218
    """
    return isolate(lambda z: jnp.square(jax.nn.logsumexp(z, axis=-1)), as_float32(logits))
