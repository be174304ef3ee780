"""Advantage actor-critic of a small network that says yes or no to a few numbers.

    A_t = GAE of rewards and values,    loss = -A_t log pi(choice) + 1/2 (V_t - G_t)^2 - c H(pi)

For games beside the language models, whose players learn in a second: two networks of two hidden
layers, policy and value. One update is one batch of games of the newest policy (Mnih et al. 2016,
1602.01783; the surrogate is PPO's at a ratio of 1, which has the same gradient). The game is a pure
function of parameters and of what is drawn beforehand, so a whole training is one `lax.scan`.

Deliberately not here: any game, `loop.fit` and checkpoints.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrlhf.losses import advantages, masked, policy

Array = jax.Array
Network = dict[str, Array]
Params = dict[str, Network]
LAMBDA = 0.95
RANGE = 0.2  # the clip of the surrogate; one update a batch never gets there


class Episodes(NamedTuple):
    """B games of T decisions of F numbers each; float32, choices bool."""

    observations: Array  # [B, T, F]
    choices: Array  # [B, T]
    rewards: Array  # [B, T], paid between a choice and the next


Play = Callable[[Params, Any], Episodes]
"""Plays games by the policy of some parameters, with what is drawn beforehand. Traced."""


def init(key: Array, *, inputs: int, width: int) -> Params:
    """Networks that say yes half of the time, and expect nothing."""
    keys = jax.random.split(key)
    return {
        name: _network(one, inputs, width)
        for name, one in zip(("policy", "value"), keys, strict=True)
    }


def chance(params: Params, observations: Array) -> Array:
    """P(yes), `[..., F] -> [...]`."""
    return jax.nn.sigmoid(_output(params["policy"], observations))


def hidden(network: Network, observations: Array) -> Array:
    """The second hidden layer, `[..., F] -> [..., W]`."""
    flat = observations.reshape(-1, observations.shape[-1])
    for layer in ("first", "second"):
        flat = jnp.tanh(flat @ network[layer] + network[f"{layer}_bias"][None])
    return flat.reshape(*observations.shape[:-1], -1)


def train(
    play: Play, params: Params, draws: Any, *, learning_rate: float, entropy_coef: float
) -> Params:
    """One update of Adam for each entry of `draws`, a pytree whose leaves are `[updates, ...]`.

    `play` is to be one function throughout, or every call compiles anew.
    """
    step = _step(play, learning_rate, entropy_coef)
    start = params, optax.adam(learning_rate).init(params)
    return lax.scan(step, start, jax.tree.map(jnp.asarray, draws))[0][0]


@functools.cache
def _step(play: Play, learning_rate: float, entropy_coef: float) -> Callable[..., Any]:
    optimizer = optax.adam(learning_rate)

    def step(carry: tuple[Any, Any], draw: Any) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        episodes = play(params, draw)
        grads = jax.grad(loss)(params, episodes, entropy_coef)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return step


def loss(params: Params, episodes: Episodes, entropy_coef: float) -> Array:
    """Scalar: surrogate, squared error of values and entropy, means over all decisions."""
    odds = _output(params["policy"], episodes.observations)
    values = _output(params["value"], episodes.observations)
    everywhere = jnp.ones_like(episodes.choices)
    advantage, returns = advantages.gae(episodes.rewards, values, everywhere, gamma=1.0, lam=LAMBDA)
    advantage = masked.whiten(advantage, everywhere, shift_mean=True)
    log_probs = jax.nn.log_sigmoid(jnp.where(episodes.choices, odds, -odds))
    surrogate = policy.clipped_surrogate(
        log_probs, lax.stop_gradient(log_probs), advantage, clip_range=RANGE
    )
    error = policy.clipped_value_loss(values, values, returns, clip_range=None)
    entropy = jax.nn.softplus(odds) - odds * jax.nn.sigmoid(odds)
    return jnp.mean(surrogate + error - entropy_coef * entropy)


def _network(key: Array, inputs: int, width: int) -> Network:
    first, second = jax.random.split(key)
    return {
        "first": jax.random.normal(first, (inputs, width)) / inputs**0.5,
        "first_bias": jnp.zeros(width),
        "second": jax.random.normal(second, (width, width)) / width**0.5,
        "second_bias": jnp.zeros(width),
        "last": jnp.zeros((width, 1)),
        "last_bias": jnp.zeros(1),
    }


def _output(network: Network, observations: Array) -> Array:
    return (hidden(network, observations) @ network["last"])[..., 0] + network["last_bias"][0]
