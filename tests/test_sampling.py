"""How a token is drawn: `draw` against the probabilities that it inverts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.sampling import draw

COUNT = 20_000


@pytest.mark.parametrize("size", [1, 2, 7, 10])
def test_tokens_come_as_often_as_they_should(size):
    # 7 and 10 do not fill their blocks (of 3 and 4); every third token cannot be drawn
    weights = np.where(np.arange(size) % 3 == 2, 0.0, 1.0 + np.arange(size))
    probs = weights / weights.sum()
    logits = jnp.log(jnp.asarray(probs, jnp.float32))[None] + 5.0
    keys = jax.random.split(jax.random.key(size), COUNT)
    tokens, log_probs = jax.jit(draw)(keys, jnp.repeat(logits, COUNT, axis=0))
    counts = np.bincount(np.asarray(tokens), minlength=size)
    assert counts.shape == (size,) and (counts[probs == 0] == 0).all()
    # 5 standard errors of a share of 20,000 draws are at most .018
    np.testing.assert_allclose(counts / COUNT, probs, atol=0.018)
    np.testing.assert_allclose(log_probs, np.log(probs[np.asarray(tokens)]), atol=1e-5)


def test_rounding_draws_nothing_of_weight_zero(monkeypatch):
    # A point at the very end of the line, where no sum exceeds it, is the last that has weight.
    monkeypatch.setattr(jax.random, "uniform", lambda key: jnp.float32(1.0))
    logits = jnp.log(jnp.array([[0.25, 0.75, 0.0, 0.0, 0.0]]))
    tokens, _ = draw(jax.random.split(jax.random.key(0), 1), logits)
    assert tokens.tolist() == [1]
