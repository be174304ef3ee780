"""Residuals by block, a direction by hand, and a model that cannot write along one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.evals import directions
from jaxrlhf.models import make_lm, transformer_config

SIZES = {
    "vocab_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "d_model": 16,
    "d_ff": 32,
    "max_positions": 8,
}
TOKENS = np.array([[0, 0, 3, 4, 5], [6, 7, 8, 9, 10]])
MASK = np.array([[False, False, True, True, True], [True] * 5])


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    lm = make_lm(transformer_config(request.param, **SIZES))
    params = lm.init(jax.random.key(0))
    # Biases start at 0: what is to be removed has to be there.
    return lm, jax.tree.map(lambda x: x + 0.1 * jnp.ones(x.shape), params)


def test_residuals_are_those_of_the_whole_model(model):
    lm, params = model
    first, last = directions.residuals(lm, params, TOKENS, MASK)
    whole = lm.hidden(params, jnp.array(TOKENS), jnp.array(MASK), final_norm=False)
    np.testing.assert_allclose(last, whole[:, -1], rtol=1e-5, atol=1e-6)
    assert first.shape == (2, 16) and not np.allclose(first, last, atol=1e-3)
    # Padding on the left is not read.
    alone = directions.residuals(lm, params, TOKENS[:1, 2:], MASK[:1, 2:])
    np.testing.assert_allclose(alone[0], first[:1], rtol=1e-4, atol=1e-5)


def test_the_first_block_is_read_before_the_second(model):
    """A second block that writes nothing leaves what the first one wrote."""
    lm, params = model
    silent = jax.tree.map(jnp.copy, params)
    for name in ("o_proj", "down_proj"):
        for leaf in silent["blocks"][name]:
            silent["blocks"][name][leaf] = silent["blocks"][name][leaf].at[1].set(0.0)
    first, last = directions.residuals(lm, silent, TOKENS, MASK)
    np.testing.assert_allclose(first, last, rtol=1e-6)
    np.testing.assert_allclose(first, directions.residuals(lm, params, TOKENS, MASK)[0], rtol=1e-6)


def test_a_direction_is_the_difference_of_means_of_length_one():
    """Means (2, 4) and (-1, 0): difference (3, 4), of length 5."""
    a, b = jnp.array([[1.0, 4.0], [3.0, 4.0]]), jnp.array([[-1.0, 0.0]])
    np.testing.assert_allclose(directions.between(a, b), [0.6, 0.8], rtol=1e-6)


def test_without_a_direction_nothing_is_written_along_it(model):
    lm, params = model
    direction = jax.random.normal(jax.random.key(1), (16,))
    direction /= jnp.linalg.norm(direction)
    before = directions.residuals(lm, params, TOKENS, MASK)
    after = directions.residuals(lm, directions.without(params, direction), TOKENS, MASK)
    for some, none in zip(before, after, strict=True):
        assert float(abs(some @ direction).min()) > 1e-2
        np.testing.assert_allclose(none @ direction, 0, atol=1e-5)
    # What is read from the stream is left as it was, and removing twice is removing once.
    once = directions.without(params, direction)
    assert (once["blocks"]["q_proj"]["kernel"] == params["blocks"]["q_proj"]["kernel"]).all()
    twice = directions.without(once, direction)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), once, twice)
