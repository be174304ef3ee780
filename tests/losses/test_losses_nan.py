"""Every per-token loss, with anything at all where the mask is False: nothing may change."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.losses import divergences, log_probs, masked, policy, preference, supervised

B, T, V = 3, 6, 5
MASK = np.arange(T)[None] < np.array([6, 3, 1])[:, None]


def surrogate(new: jax.Array, old: jax.Array, advantages: jax.Array) -> jax.Array:
    return policy.clipped_surrogate(new, old, advantages, clip_range=0.2)


def value_loss(values: jax.Array, old: jax.Array, returns: jax.Array) -> jax.Array:
    return policy.clipped_value_loss(values, old, returns, clip_range=0.2)


def plain_value_loss(values: jax.Array, old: jax.Array, returns: jax.Array) -> jax.Array:
    return policy.clipped_value_loss(values, old, returns, clip_range=None)


def token_stats(logits: jax.Array) -> jax.Array:
    stats = log_probs.from_logits(logits, jnp.ones((B, T), jnp.int32), temperature=0.7)
    return stats.log_probs + stats.entropy


def careless_labels(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    return preference.bradley_terry(chosen, rejected, margin=0.3, label=0.8, lapse=0.1)


def rating_regression(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    return preference.rating_regression(chosen, rejected, gap=jnp.ones((B, T)), delta=1.0)


LOSSES: list[tuple[Callable[..., jax.Array], list[tuple[int, ...]]]] = [
    (divergences.k1, [(B, T)] * 2),
    (divergences.k2, [(B, T)] * 2),
    (divergences.k3, [(B, T)] * 2),
    (divergences.k1_straight_through, [(B, T)] * 2),
    (divergences.exact, [(B, T, V)] * 2),
    (token_stats, [(B, T, V)]),
    (supervised.cross_entropy, [(B, T)]),
    (supervised.z_loss, [(B, T, V)]),
    (preference.bradley_terry, [(B, T)] * 2),
    (careless_labels, [(B, T)] * 2),
    (rating_regression, [(B, T)] * 2),
    (preference.centering, [(B, T)] * 2),
    (surrogate, [(B, T)] * 3),
    (value_loss, [(B, T)] * 3),
    (plain_value_loss, [(B, T)] * 3),
]


@pytest.mark.parametrize(("loss", "shapes"), LOSSES)
def test_masked_positions_reach_neither_the_loss_nor_its_gradient(
    loss: Callable[..., jax.Array], shapes: list[tuple[int, ...]]
) -> None:
    rng = np.random.default_rng(0)
    clean = [rng.normal(size=shape).astype("f4") for shape in shapes]

    @jax.jit
    def reduced(arrays: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        return jax.value_and_grad(lambda x: masked.mean(loss(*x), MASK))(arrays)

    expected = jax.tree.leaves(reduced(clean))
    assert all(np.isfinite(x).all() for x in expected)
    poisons = [np.nan, np.inf, -np.inf, 200.0, -200.0, 1e30]
    poisons = [[p] * len(shapes) for p in poisons] + [
        [np.nan, 0, 0],
        [0, np.inf, 0],
        [0, 0, -np.inf],
    ]
    for poison in poisons:
        dirty = [
            np.where(MASK.reshape(B, T, *[1] * (x.ndim - 2)), x, np.float32(p))
            for x, p in zip(clean, poison, strict=False)
        ]
        for a, b in zip(expected, jax.tree.leaves(reduced(dirty)), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"poison {poison}")


@pytest.mark.parametrize(("loss", "shapes"), LOSSES)
def test_a_bad_number_that_counts_is_loud(
    loss: Callable[..., jax.Array], shapes: list[tuple[int, ...]]
) -> None:
    arrays = [np.zeros(shape, np.float32) for shape in shapes]
    arrays[0][0, 0] = np.nan
    assert not np.isfinite(jax.jit(lambda x: masked.mean(loss(*x), MASK))(arrays))
