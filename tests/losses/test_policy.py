"""The PPO losses by hand, their gradients, and what is logged about the ratio."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.losses import policy

CLIP = 0.2
ratio_stats = jax.jit(policy.ratio_stats)


def at_ratio(ratio: float, advantage: float) -> tuple[float, float]:
    """Loss and slope with respect to the new log-prob."""
    new, old = jnp.log(jnp.float32(ratio)), jnp.float32(0.0)

    def loss(new: jax.Array) -> jax.Array:
        return policy.clipped_surrogate(new, old, jnp.float32(advantage), clip_range=CLIP)

    value, slope = jax.jit(jax.value_and_grad(loss))(new)
    return float(value), float(slope)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.1, 2.0, -2.2, -2.2),  # inside: −A ρ, and dρ / d log π = ρ
        (1.5, 2.0, -2.4, 0.0),  # already too likely: clipped at 1.2, nothing more to gain
        (0.5, 2.0, -1.0, -1.0),  # good but too unlikely: not clipped
        (0.5, -2.0, 1.6, 0.0),  # already too unlikely: clipped at .8
        (1.5, -2.0, 3.0, 3.0),  # bad and too likely: not clipped
    ],
)
def test_clipped_surrogate_in_its_five_regions(
    ratio: float, advantage: float, value: float, slope: float
) -> None:
    assert at_ratio(ratio, advantage) == pytest.approx((value, slope), rel=1e-6)


def test_at_the_policy_that_sampled_the_ratio_is_exactly_one() -> None:
    """Invariant A2: also at log-probs far from 0, and the gradient is the plain policy gradient."""
    log_probs = jnp.array([-0.1, -7.3, -200.7, 0.0])
    a = jnp.array([1.0, -2.0, 0.5, 3.0])

    def loss(new: jax.Array) -> jax.Array:
        return jnp.sum(policy.clipped_surrogate(new, log_probs, a, clip_range=CLIP))

    grad = jax.jit(jax.grad(loss))
    np.testing.assert_array_equal(
        policy.clipped_surrogate(log_probs, log_probs, a, clip_range=CLIP), -a
    )
    np.testing.assert_array_equal(grad(log_probs), -a)
    stats = ratio_stats(log_probs, log_probs, jnp.ones(4, bool), clip_range=CLIP)
    assert [float(x) for x in stats] == [0.0, 0.0, 1.0, 1.0]
    stepped = log_probs - 0.05 * grad(log_probs)
    stats = ratio_stats(stepped, log_probs, jnp.ones(4, bool), clip_range=CLIP)
    assert float(stats.approx_kl) > 0.0 and float(stats.max) > 1.0


def test_old_log_probs_and_advantages_are_constants() -> None:
    x = jnp.array([-1.0, -2.0]), jnp.array([-1.1, -1.9]), jnp.array([1.0, -1.0])
    loss = lambda *x: jnp.sum(policy.clipped_surrogate(*x, clip_range=CLIP))  # noqa: E731
    new, old, a = jax.jit(jax.grad(loss, (0, 1, 2)))(*x)
    assert np.all(np.asarray(new) != 0.0)
    np.testing.assert_array_equal(jnp.stack([old, a]), 0.0)


@pytest.mark.parametrize(
    ("value", "clip_range", "expected", "slope"),
    [
        (1.5, None, 0.125, -0.5),  # ½ (1.5 − 2)²
        (1.2, 0.5, 0.32, -0.8),  # within .5 of the old value 1: the same as unclipped
        (1.8, 0.5, 0.125, 0.0),  # moved too far to the good: ½ (1.5 − 2)²
        (0.2, 0.5, 1.62, -1.8),  # moved away: the larger error is the unclipped one
    ],
)
def test_value_loss_by_hand(
    value: float, clip_range: float | None, expected: float, slope: float
) -> None:
    old, returns = jnp.float32(1.0), jnp.float32(2.0)
    fn = lambda v, o, g: policy.clipped_value_loss(v, o, g, clip_range=clip_range)  # noqa: E731
    found, (of_value, of_old, of_returns) = jax.jit(jax.value_and_grad(fn, (0, 1, 2)))(
        jnp.float32(value), old, returns
    )
    assert found.dtype == jnp.float32
    assert (float(found), float(of_value)) == pytest.approx((expected, slope), rel=1e-5)
    assert float(of_old) == float(of_returns) == 0.0


def test_ratio_stats_by_hand_and_under_the_mask() -> None:
    ratio = jnp.array([1.0, 1.1, 1.5, 0.5, 40.0])
    mask = jnp.array([True, True, True, True, False])
    stats = ratio_stats(jnp.log(ratio), jnp.zeros(5), mask, clip_range=CLIP)
    logs = np.log([1.0, 1.1, 1.5, 0.5])
    expected = ((logs**2).mean() / 2, 0.5, 4.1 / 4, 1.5)
    assert all(x.dtype == jnp.float32 and x.shape == () for x in stats)
    assert [float(x) for x in stats] == pytest.approx(expected, rel=1e-5)
    poisoned = ratio_stats(
        jnp.where(mask, jnp.log(ratio), jnp.nan), jnp.zeros(5), mask, clip_range=CLIP
    )
    assert poisoned == stats
    empty = ratio_stats(jnp.log(ratio), jnp.zeros(5), mask & False, clip_range=CLIP)
    assert [float(x) for x in empty] == [0.0] * 4


def test_approx_kl_agrees_with_k3_to_second_order() -> None:
    """From samples of old: mean of ρ − 1 − log ρ and of (log ρ)²/2 differ by (log ρ)³/6."""
    log_ratio = jnp.array([0.01, -0.02, 0.015])
    stats = ratio_stats(log_ratio, jnp.zeros(3), jnp.ones(3, bool), clip_range=CLIP)
    k3 = np.mean(np.expm1(np.float64(log_ratio)) - np.float64(log_ratio))
    assert float(stats.approx_kl) == pytest.approx(k3, abs=0.02**3 / 6)


def test_wrong_types_are_refused() -> None:
    x = jnp.zeros((2, 2))
    with pytest.raises(AssertionError, match=r"old_log_probs.*bfloat16"):
        policy.clipped_surrogate(x, x.astype(jnp.bfloat16), x, clip_range=CLIP)
    with pytest.raises(AssertionError, match=r"returns \(2,\)"):
        policy.clipped_value_loss(x, x, x[0], clip_range=CLIP)
