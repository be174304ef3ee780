"""Actor-critic of small networks: it learns what pays, and the loss is the one written down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.algorithms import actor_critic
from jaxrlhf.algorithms.actor_critic import Episodes


def signs(params, draw):
    """One decision a game: yes pays the number that is seen, no pays nothing."""
    seen, coins = draw
    yes = coins < actor_critic.chance(params, seen)
    return Episodes(seen, yes, jnp.where(yes, seen[..., 0], 0.0))


def test_it_learns_to_say_yes_where_that_pays():
    rng = np.random.default_rng(0)
    draws = (
        rng.uniform(-1, 1, (60, 64, 1, 1)).astype(np.float32),
        rng.random((60, 64, 1), dtype=np.float32),
    )
    start = actor_critic.init(jax.random.key(0), inputs=1, width=8)
    seen = jnp.array([[-0.8], [0.8]])
    assert actor_critic.chance(start, seen).tolist() == [0.5, 0.5]
    end = actor_critic.train(signs, start, draws, learning_rate=0.02, entropy_coef=0.0)
    no, yes = actor_critic.chance(end, seen).tolist()
    assert no < 0.1 and yes > 0.9


def test_the_loss_by_hand():
    """Two games of one decision, at P(yes) = 1/2 and values 0: advantages are the rewards 3 and 1,
    whitened to 1 and -1. Surrogates -1 and 1 (the ratio is 1), squared errors 9/2 and 1/2, entropy
    log 2."""
    params = actor_critic.init(jax.random.key(1), inputs=2, width=4)
    episodes = Episodes(
        jnp.ones((2, 1, 2)), jnp.array([[True], [False]]), jnp.array([[3.0], [1.0]])
    )
    found = actor_critic.loss(params, episodes, 0.5)
    assert float(found) == pytest.approx((4.5 + 0.5) / 2 - 0.5 * np.log(2), rel=1e-6)


def test_hidden_states_are_of_the_second_layer():
    network = actor_critic.init(jax.random.key(2), inputs=2, width=3)["policy"]
    x = np.array([[0.5, -1.0]], np.float32)
    first = np.tanh(x @ np.asarray(network["first"]))
    second = np.tanh(first @ np.asarray(network["second"]))
    found = actor_critic.hidden(network, jnp.asarray(x)[None])
    np.testing.assert_allclose(found, second[None], rtol=1e-5)
