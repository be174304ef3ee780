"""Packed rows give what padded ones give: figures of a rollout, scores, updates, pairs too.

On the transformer of `tiny`, where a neighbour in the row could be seen, and with SGD, whose steps
are the gradients.
"""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jaxrlhf import packing, reading, rewards, sharding
from jaxrlhf.algorithms.ppo import Settings
from jaxrlhf.errors import UserError
from jaxrlhf.models import make_scalar_model
from jaxrlhf.models.rope import RopeScaling

REWARD = make_scalar_model(tiny.CONFIG, final_norm=False, pooling="mean")
SHARED = Settings(
    value_model="shared",
    num_ppo_epochs=2,
    num_mini_batches=2,
    gradient_accumulation_steps=2,
    entropy_coef=0.1,
)


def noisy(params):
    """No head is zero, and policy, value network and reference differ."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noise = [0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.map(jnp.add, params, jax.tree.unflatten(tree, noise))


def reward_fn(how: packing.Packing) -> rewards.RewardFn:
    return rewards.from_model(REWARD, REWARD.init(jax.random.key(5)), packing=how)


MAKE = {
    "adapters, value network, in chunks": functools.partial(tiny.lora_ppo_case, chunk_size=3),
    "shared, in groups": functools.partial(tiny.ppo_case, settings=SHARED),
}


@functools.cache
def rollouts(name: str, how: packing.Packing):
    """The algorithm, its state and the first batch."""
    case = MAKE[name](optax.sgd(0.3), reward_fn=reward_fn(how), packing=how)
    state = case.algorithm.init(noisy(case.params), jax.random.key(0))
    batch, _ = case.algorithm.collect(state, lambda: case.batches[0], jax.random.key(1))
    return case.algorithm, state, dict(batch)


@pytest.mark.parametrize("name", MAKE)
def test_a_rollout_is_scored_alike(name):
    """Rows of packed groups come in another order, by which the padded ones are read."""
    (_, _, packed), (_, _, padded) = rollouts(name, "packed"), rollouts(name, "none")
    lengths = np.asarray(padded["mask"]).sum(axis=1)
    groups = (2, 2) if "groups" in name else (1, 1)
    order = packing.deal(lengths, groups=groups)
    assert len(set(lengths)) > 2 and packed.keys() == {*padded, "packed"}
    for field, x in padded.items():
        np.testing.assert_allclose(packed[field], x[order], atol=1e-5, err_msg=field)


@pytest.mark.parametrize("name", MAKE)
def test_an_update_learns_alike(name):
    """In groups, the padded update is dealt the same minibatches: the last come first."""
    algorithm, state, batch = rollouts(name, "packed")
    with mock.patch.object(jax.random, "permutation", lambda key, size: jnp.arange(size)[::-1]):
        update = jax.jit(algorithm.update)  # traced twice, with packed rows and without
        key, padded = jax.random.key(2), {k: x for k, x in batch.items() if k != "packed"}
        found, metrics = update(state, batch, key, algorithm.frozen)
        expected, slow = update(state, padded, key, algorithm.frozen)
    for a, b in zip(*map(jax.tree.leaves, (found.params, expected.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    moved = jax.tree.map(lambda x, old: float(abs(x - old).max()), expected.params, state.params)
    assert min(jax.tree.leaves(moved)) > 1e-4  # every parameter had a gradient to be compared
    assert metrics["rollout/padding"] < slow.pop("rollout/padding") - 0.2
    for field, x in slow.items():
        np.testing.assert_allclose(metrics[field], x, rtol=1e-4, atol=1e-5, err_msg=field)


def test_pairs_are_learned_from_alike():
    """In two micro-batches; the padded update is given the pairs in the same order."""
    case = tiny.reward_case(optax.sgd(0.3), packing="packed", micro_batches=2)
    rng, (pairs,) = np.random.default_rng(0), case.batches
    pairs |= {"label": rng.random(8).astype(np.float32), "margin": rng.random(8, np.float32)}
    state = case.algorithm.init(noisy(case.params), jax.random.key(0))
    batch, _ = case.algorithm.collect(state, lambda: pairs, jax.random.key(0))
    order = [int(np.flatnonzero(pairs["label"] == x)[0]) for x in batch["label"]]
    assert sorted(order) == list(range(8)) != order
    padded = {name: x[np.array(order)] for name, x in pairs.items()}
    update = jax.jit(case.algorithm.update)
    found, metrics = update(state, batch, jax.random.key(0))
    expected, slow = update(state, padded, jax.random.key(0))
    for a, b in zip(*map(jax.tree.leaves, (found.params, expected.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert metrics["padding"] < slow.pop("padding") - 0.2
    for field, x in slow.items():
        np.testing.assert_allclose(metrics[field], x, rtol=1e-4, atol=1e-5, err_msg=field)


def test_a_reward_model_reads_each_devices_rows_there():
    rng = np.random.default_rng(0)
    tokens, mask = rng.integers(0, 8, (8, 12)), np.arange(12) < rng.integers(1, 13, 8)[:, None]
    rows = sharding.shard_batch(sharding.make_mesh(2, 1), {"tokens": tokens, "mask": mask})
    packed = reading.pack(tokens, mask, mask, like=rows["tokens"], configs=[tiny.CONFIG])
    assert packed.tokens.shape[0] == 2 and packed.tokens.sharding == rows["tokens"].sharding
    there, here = (
        reward_fn("packed")(rewards.Rollout(x["tokens"], x["mask"], 4))
        for x in (rows, {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)})
    )
    np.testing.assert_allclose(there, here, atol=1e-5)


def test_a_model_whose_positions_look_at_lengths_is_packed_up_to_its_limit():
    scaling = RopeScaling("dynamic", factor=2.0)
    config = dataclasses.replace(tiny.CONFIG, rope_scaling=scaling, max_positions=10)
    tokens, mask = np.ones((4, 10), int), np.arange(10) < 6 * np.ones((4, 1))
    packed = reading.pack(tokens, mask, mask, like=tokens, configs=[tiny.CONFIG, config])
    assert packed.tokens.shape == (1, 4, 10)
    wider = np.pad(tokens, ((0, 0), (0, 1))), np.pad(mask, ((0, 0), (0, 1)))
    with pytest.raises(UserError, match="this model's positions allow 10"):
        reading.pack(*wider, wider[1], like=tokens, configs=[config])
