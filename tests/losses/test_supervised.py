"""Cross-entropy and z-loss on distributions small enough to do by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.losses import log_probs, masked, supervised


def test_next_token_cross_entropy_from_end_to_end() -> None:
    """A model that gives the right next token ¾ twice: loss −log ¾, whatever it says at the end."""
    right, wrong = np.log(0.75), np.log(0.25)
    logits = jnp.array([[[wrong, right], [right, wrong], [5.0, -5.0]]])  # says: 1, then 0
    tokens, mask = jnp.array([[0, 1, 0]]), jnp.array([[False, True, True]])

    @jax.jit
    def loss(logits: jax.Array) -> jax.Array:
        stats = log_probs.from_logits(log_probs.shift(logits), tokens)
        return supervised.cross_entropy(stats.log_probs)

    losses = loss(logits)
    assert losses.shape == (1, 3) and losses.dtype == jnp.float32
    assert float(masked.mean(losses, mask)) == pytest.approx(-right, rel=1e-6)


def test_its_gradient_is_probability_minus_one_hot() -> None:
    p = np.array([0.5, 0.3, 0.2], np.float32)

    def loss(logits: jax.Array) -> jax.Array:
        return supervised.cross_entropy(log_probs.from_logits(logits, jnp.array(2)).log_probs)

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(np.log(p)), p - np.eye(3)[2], atol=1e-6)


def test_z_loss() -> None:
    # Σ exp = 8 + 1 + 1 = 10; the gradient is 2 · log 10 · softmax.
    logits = jnp.log(jnp.array([[8.0, 1.0, 1.0]]))
    value, gradient = jax.jit(jax.value_and_grad(lambda z: supervised.z_loss(z)[0]))(logits)
    assert float(value) == pytest.approx(np.log(10) ** 2, rel=1e-6)
    np.testing.assert_allclose(gradient, [2 * np.log(10) * np.array([0.8, 0.1, 0.1])], rtol=1e-5)
    assert jax.jit(supervised.z_loss)(logits.astype(jnp.bfloat16)).dtype == jnp.float32


def test_log_probs_that_lost_their_digits_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"log_probs.*bfloat16"):
        supervised.cross_entropy(jnp.zeros((1, 2), jnp.bfloat16))
