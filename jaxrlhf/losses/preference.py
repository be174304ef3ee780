"""Losses on preferences: pairs (Bradley-Terry, regression), a centring term, and the best of k.

Scores come from a reward model and may have any dtype; everything is computed in float32.

Deliberately not here: ratings of players from many comparisons, and policies trained on pairs
directly.
"""

import chex
import jax
import jax.numpy as jnp

from jaxrlhf.losses import log_probs
from jaxrlhf.losses._boundary import as_float32, isolate, same_shape


def bradley_terry(
    chosen_scores: chex.Array,
    rejected_scores: chex.Array,
    *,
    margin: chex.Numeric = 0.0,
    label: chex.Numeric = 1.0,
    lapse: chex.Numeric = 0.0,
) -> jax.Array:
    """−p·log P(Δ − m) − (1 − p)·log P(−Δ − m), P(x) = (1 − ε)·σ(x) + ε/2, Δ = chosen − rejected.

    Swapping the two answers and p with 1 − p changes nothing; log 2 at Δ = m = 0.
    Args: `chosen_scores`, `rejected_scores` [B]; `margin` m ≥ 0, scalar or [B]: by how much the
    preferred answer has to win (Touvron et al. 2023, Llama 2, eq. 2); `label` p in [0, 1], scalar
    or [B]: the probability that "chosen" is the better one; `lapse` ε in [0, 1): how often the
    labeller answers at random (Christiano et al. 2017, section 2.2.3, has .1); it bounds the loss
    by −log(ε/2).
    Returns: [B] float32, nats. Raises: ValueError if `lapse` is a number outside [0, 1).

    >>> round(bradley_terry(jnp.array([1.0]), jnp.array([1.0])).item(), 4)
    0.6931
    >>> wrong = bradley_terry(jnp.array([-90.0]), jnp.array([90.0]), lapse=0.1)
    >>> round(wrong.item(), 4)  # −log .05
    2.9957
    """
    if isinstance(lapse, int | float) and not 0.0 <= lapse < 1.0:
        raise ValueError(f"lapse is {lapse}; it must be in [0, 1)")
    chosen, rejected = _scores(chosen_scores, rejected_scores)
    margin, label, lapse = as_float32(margin), as_float32(label), as_float32(lapse)

    def loss(gap: jax.Array) -> jax.Array:
        preferred, other = _log_choice(gap - margin, lapse), _log_choice(-gap - margin, lapse)
        return -label * preferred - (1.0 - label) * other

    return isolate(loss, chosen - rejected)


def rating_regression(
    chosen_scores: chex.Array, rejected_scores: chex.Array, *, gap: chex.Array, delta: float
) -> jax.Array:
    """H_δ(Δ − g), Δ = chosen − rejected: score differences onto rating differences.

    H_δ(x) = x²/2 for |x| ≤ δ, else δ·(|x| − δ/2) (Huber 1964). Over all pairs of the answers to a
    prompt this is a regression onto the ratings themselves with a free constant for each prompt,
    which ratings do not tell. Weight it by 1/SE² of the difference: few comparisons say little.
    Args: `chosen_scores`, `rejected_scores` [B]; `gap` g [B], nats: rating of chosen minus that of
    rejected (Elo points by `elo.to_score`); `delta` δ > 0, nats, inf for squares.
    Returns: [B] float32, nats². Raises: ValueError if `delta` is not above 0.

    >>> chosen, rejected = jnp.array([3.0, 3.0]), jnp.array([1.0, -1.0])
    >>> rating_regression(chosen, rejected, gap=jnp.array([1.0, 1.0]), delta=2.0).tolist()
    [0.5, 4.0]
    """
    if not delta > 0:
        raise ValueError(f"delta is {delta}; it must be above 0")
    chosen, rejected = _scores(chosen_scores, rejected_scores)
    gap = as_float32(gap)
    same_shape(chosen_scores=chosen, gap=gap)

    def loss(error: jax.Array) -> jax.Array:
        small = jnp.minimum(jnp.abs(error), delta)  # a constant where the loss is straight
        return small * (jnp.abs(error) - 0.5 * small)

    return isolate(loss, chosen - rejected - gap)


def centering(chosen_scores: chex.Array, rejected_scores: chex.Array) -> jax.Array:
    """(r_c + r_r)²: with a small weight, it fixes the constant that Bradley-Terry leaves free.

    Args: `chosen_scores`, `rejected_scores` [B]. Returns: [B] float32.
    Source: Eisenstein et al. 2023, eq. 2; `center_rewards_coefficient` in TRL.

    >>> centering(jnp.array([2.0]), jnp.array([-1.0])).tolist()
    [1.0]
    """
    chosen, rejected = _scores(chosen_scores, rejected_scores)
    return isolate(jnp.square, chosen + rejected)


def best_of_k(scores: chex.Array, choice: chex.Array) -> jax.Array:
    """−log softmax(scores)[choice]: one answer was picked out of k. At k = 2 it is Bradley-Terry.

    Args: `scores` [B, K]; `choice` [B] integer in [0, K). Returns: [B] float32, nats; NaN where
    `choice` is out of range. Source: Ziegler et al. 2019, eq. 1 (k = 4).

    >>> round(best_of_k(jnp.zeros((1, 4)), jnp.array([2])).item(), 4)  # log 4
    1.3863
    """
    return -log_probs.from_logits(scores, choice).log_probs


def _log_choice(gap: jax.Array, lapse: jax.Array) -> jax.Array:
    """log((1 − ε)·σ(gap) + ε/2), in logarithms: σ(−200) is 0 in float32."""
    return jnp.logaddexp(jnp.log1p(-lapse) + jax.nn.log_sigmoid(gap), jnp.log(lapse / 2.0))


def _scores(chosen: chex.Array, rejected: chex.Array) -> tuple[jax.Array, jax.Array]:
    chosen, rejected = as_float32(chosen), as_float32(rejected)
    same_shape(chosen_scores=chosen, rejected_scores=rejected)
    return chosen, rejected
