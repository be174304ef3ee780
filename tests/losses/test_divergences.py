"""The table of divergences.py computed from scratch, and the adaptive coefficient's oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.losses import divergences

PI, REF = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
LOG_PI, LOG_REF = jnp.log(jnp.array(PI, jnp.float32)), jnp.log(jnp.array(REF, jnp.float32))
ESTIMATORS = {
    "k1": divergences.k1,
    "k2": divergences.k2,
    "k3": divergences.k3,
    "k1_straight_through": divergences.k1_straight_through,
}


def true_gradient(logits: jax.Array, ref_logits: jax.Array) -> np.ndarray:
    """By hand in float64: KL = Σ p d has dKL/dz_i = p_i (d_i − KL)."""
    p, ref = (np.exp(x) / np.exp(x).sum() for x in np.asarray([logits, ref_logits], np.float64))
    d = np.log(p / ref)
    return p * (d - (p * d).sum())


def gradients(estimator, logits: jax.Array, ref_logits: jax.Array):  # type: ignore[no-untyped-def]
    """Expected gradient over all outcomes y ~ π, as a reward and as a loss, w.r.t. π's logits."""
    log_ref = jax.nn.log_softmax(ref_logits)
    p = jax.lax.stop_gradient(jax.nn.softmax(logits))

    def as_reward(z: jax.Array) -> jax.Array:  # E[k(y) · ∇ log π(y)], k a constant
        log_p = jax.nn.log_softmax(z)
        return jnp.sum(p * jax.lax.stop_gradient(estimator(log_p, log_ref)) * log_p)

    def as_loss(z: jax.Array) -> jax.Array:  # E[∇ k(y)]
        return jnp.sum(p * estimator(jax.nn.log_softmax(z), log_ref))

    return jax.jit(jax.grad(as_reward))(logits), jax.jit(jax.grad(as_loss))(logits)


def length_and_cosine(gradient: jax.Array, truth: np.ndarray) -> tuple[float, float]:
    g, size = np.asarray(gradient, np.float64), np.linalg.norm(truth)
    return float(np.linalg.norm(g) / size), float(g @ truth / (np.linalg.norm(g) * size))


# Mean: invariants D. Std and gradients: E_π over the three outcomes; by hand for k3 in the reward,
# p_i (k3_i − KL) with k3 = (.3163, 0, .5837): (.0207, −.0825, .0618), |.| = .1051 of .4080.
TABLE = {  # mean, std, as reward: length, cosine
    "k1": (0.274887, 0.7156, 1.000, 1.000),
    "k2": (0.293856, 0.1924, 0.273, 0.473),
    "k3": (0.274887, 0.2064, 0.258, -0.030),
}


@pytest.mark.parametrize("name", TABLE)
def test_values_and_reward_gradients_of_the_table(name: str) -> None:
    mean, std, length, cosine = TABLE[name]
    k = np.asarray(ESTIMATORS[name](LOG_PI, LOG_REF), np.float64)
    assert (PI * k).sum() == pytest.approx(mean, abs=2e-6)
    assert np.sqrt((PI * (k - mean) ** 2).sum()) == pytest.approx(std, abs=1e-4)
    as_reward, _ = gradients(ESTIMATORS[name], LOG_PI, LOG_REF)
    found = length_and_cosine(as_reward, true_gradient(LOG_PI, LOG_REF))
    assert found == pytest.approx((length, cosine), abs=1e-3)


@pytest.mark.parametrize("name", ["k2", "k1_straight_through"])
def test_k2_is_the_one_for_a_loss(name: str) -> None:
    _, as_loss = gradients(ESTIMATORS[name], LOG_PI, LOG_REF)
    np.testing.assert_allclose(as_loss, true_gradient(LOG_PI, LOG_REF), atol=1e-6)


def test_k1_in_a_loss_pushes_nowhere_and_k3_pushes_the_other_divergence() -> None:
    _, k1 = gradients(divergences.k1, LOG_PI, LOG_REF)
    np.testing.assert_allclose(k1, 0.0, atol=1e-7)
    _, k3 = gradients(divergences.k3, LOG_PI, LOG_REF)
    np.testing.assert_allclose(k3, PI - REF, atol=1e-6)  # ∇ KL(ref ‖ π) = π − ref
    found = length_and_cosine(k3, true_gradient(LOG_PI, LOG_REF))
    assert found == pytest.approx((1.040, 0.969), abs=1e-3)


def test_k3_in_the_reward_hardly_pulls_near_the_reference() -> None:
    moved = LOG_PI + jnp.array([0.02, 0.0, -0.02])
    truth = true_gradient(moved, LOG_PI)
    k1, _ = gradients(divergences.k1, moved, LOG_PI)
    k3, _ = gradients(divergences.k3, moved, LOG_PI)
    # k1 − a constant: log-ratios near .02 carry float32's 6e-8, hence .1 %.
    assert length_and_cosine(k1, truth) == pytest.approx((1.0, 1.0), abs=1e-3)
    length, cosine = length_and_cosine(k3, truth)
    assert length == pytest.approx(0.0062, abs=2e-4) and cosine == pytest.approx(-0.53, abs=0.02)


def test_straight_through_has_the_value_of_k1() -> None:
    np.testing.assert_array_equal(
        divergences.k1_straight_through(LOG_PI, LOG_REF), divergences.k1(LOG_PI, LOG_REF)
    )


def test_the_ratio_of_k3_is_the_right_way_up() -> None:
    upside_down = PI @ np.expm1(np.log(PI / REF)) - PI @ np.log(PI / REF)
    assert upside_down == pytest.approx(0.355113, abs=1e-6)  # invariants D: must not match
    assert (PI * np.asarray(divergences.k3(LOG_PI, LOG_REF))).sum() != pytest.approx(
        0.355113, abs=0.05
    )


def test_only_k1_can_be_negative() -> None:
    log_probs = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    assert (divergences.k1(*log_probs) < 0).any()
    assert (divergences.k2(*log_probs) >= 0).all() and (divergences.k3(*log_probs) >= 0).all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_gradient_reaches_the_reference(name: str) -> None:
    gradient = jax.grad(lambda ref: jnp.sum(ESTIMATORS[name](LOG_PI, ref)))(LOG_REF)
    np.testing.assert_array_equal(gradient, 0.0)


def test_exact_value_and_gradient() -> None:
    kl = jax.jit(divergences.exact)
    assert float(kl(LOG_PI, LOG_REF)) == pytest.approx(0.274887, abs=1e-6)
    assert float(kl(LOG_PI + 5.0, LOG_REF - 3.0)) == pytest.approx(0.274887, abs=2e-6)
    gradient, of_ref = jax.jit(jax.grad(kl, (0, 1)))(LOG_PI, LOG_REF)
    np.testing.assert_allclose(gradient, true_gradient(LOG_PI, LOG_REF), atol=1e-6)
    np.testing.assert_array_equal(of_ref, 0.0)
    # Temperature divides both: the same as exact of the divided logits.
    np.testing.assert_allclose(
        kl(LOG_PI, LOG_REF, temperature=0.5), kl(LOG_PI / 0.5, LOG_REF / 0.5), rtol=1e-6
    )
    assert kl(LOG_PI.astype(jnp.bfloat16), LOG_REF.astype(jnp.bfloat16)).dtype == jnp.float32


def test_exact_where_tokens_are_filtered() -> None:
    """Both without token 2: KL of (5/8, 3/8) from (2/5, 3/5). Only ref without: infinite."""
    barred = jnp.array([0.0, 0.0, -jnp.inf])
    p, ref = np.array([5 / 8, 3 / 8]), np.array([2 / 5, 3 / 5])
    both, gradient = jax.jit(jax.value_and_grad(divergences.exact))(
        LOG_PI + barred, LOG_REF + barred
    )
    assert float(both) == pytest.approx((p * np.log(p / ref)).sum(), abs=1e-6)
    assert np.all(np.isfinite(gradient))
    assert float(jax.jit(divergences.exact)(LOG_PI, LOG_REF + barred)) == np.inf


ORACLE = {"target": 6.0, "horizon": 10_000, "batch_size": 512}


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (12.0, 0.151536),  # error clipped to .2:  .15 · (1 + .2 · .0512)
        (0.0, 0.148464),  # clipped to −.2:  .15 · (1 − .2 · .0512)
        (6.0, 0.15),  # on target
        (6.6, 0.150768),  # error .1, not clipped:  .15 · (1 + .1 · .0512)
    ],
)
def test_adaptive_coefficient_oracle(kl: float, expected: float) -> None:
    new = divergences.adaptive_kl_coef(jnp.float32(0.15), jnp.float32(kl), **ORACLE)
    assert new.dtype == jnp.float32 and new.shape == ()
    assert float(new) == pytest.approx(expected, abs=1e-7)


def test_adaptive_coefficient_takes_sums_per_sequence() -> None:
    """24 tokens at .5 nats are 12 nats a sequence; their mean over tokens would lower β instead."""
    kl = jnp.full((8, 24), 0.5)
    up = divergences.adaptive_kl_coef(0.15, jnp.sum(kl, axis=1), **ORACLE)
    down = divergences.adaptive_kl_coef(0.15, jnp.mean(kl, axis=1), **ORACLE)
    assert float(up) == pytest.approx(0.151536, abs=1e-7) and float(down) < 0.15


def test_adaptive_coefficient_is_never_negative() -> None:
    new = divergences.adaptive_kl_coef(0.15, 0.0, target=6.0, horizon=10, batch_size=512)
    assert float(new) == 0.0
    coef = jnp.float32(0.15)
    for _ in range(200):
        coef = divergences.adaptive_kl_coef(coef, -5.0, **ORACLE)
    assert 0.0 < float(coef) < 0.15
