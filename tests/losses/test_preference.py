"""Preference losses: known answers, symmetry, and scores far apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.losses import preference


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


bradley_terry, best_of_k = jax.jit(preference.bradley_terry), jax.jit(preference.best_of_k)


def loss(gap: float, *, margin: float = 0.0, label: float = 1.0, lapse: float = 0.0) -> float:
    options = {"margin": margin, "label": label, "lapse": lapse}
    return float(bradley_terry(jnp.array([gap]), jnp.zeros(1), **options)[0])


def test_equal_scores_cost_log_two() -> None:
    assert loss(0.0) == pytest.approx(np.log(2), rel=1e-6)
    for label in (0.0, 0.3, 1.0):  # whoever is said to be better
        assert loss(0.0, label=label) == pytest.approx(np.log(2), rel=1e-6)
    assert loss(0.0, lapse=0.1) == pytest.approx(np.log(2), rel=1e-6)  # .9 · ½ + .05 = ½


def test_it_falls_as_the_chosen_one_wins_by_more() -> None:
    gaps = np.linspace(-20, 20, 41, dtype=np.float32)
    for options in ({}, {"margin": 1.0}, {"lapse": 0.1}):
        losses = bradley_terry(gaps, np.zeros_like(gaps), **options)
        assert losses.shape == (41,) and losses.dtype == jnp.float32
        # float32 cannot tell .05 + .9 · 1e-9 from .05, so with lapse only the middle is strict.
        middle = np.abs(gaps[1:]) < 10
        assert (np.diff(losses)[middle] < 0).all() and (np.diff(losses) <= 0).all()


def test_values_by_hand() -> None:
    assert loss(2.0) == pytest.approx(-np.log(sigmoid(2)), rel=1e-6)
    assert loss(2.0, margin=0.5) == pytest.approx(-np.log(sigmoid(1.5)), rel=1e-6)
    soft = -0.7 * np.log(sigmoid(2)) - 0.3 * np.log(sigmoid(-2))
    assert loss(2.0, label=0.7) == pytest.approx(soft, rel=1e-6)
    assert loss(2.0, lapse=0.1) == pytest.approx(-np.log(0.9 * sigmoid(2) + 0.05), rel=1e-6)
    each = bradley_terry(
        jnp.array([2.0, 2.0]), jnp.zeros(2), margin=jnp.array([0.5, 0.0]), label=jnp.array([1, 0])
    )
    np.testing.assert_allclose(each, [-np.log(sigmoid(1.5)), -np.log(sigmoid(-2))], rtol=1e-6)


def test_a_soft_label_is_fitted_where_the_sigmoid_equals_it() -> None:
    gap = jnp.array([np.log(0.7 / 0.3)], jnp.float32)  # σ(gap) = .7
    gradient = jax.grad(lambda g: bradley_terry(g, jnp.zeros(1), label=0.7)[0])(gap)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-7)


def test_swapping_the_answers_and_the_label_changes_nothing() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 20)).astype("f4")
    one = bradley_terry(a, b, margin=0.4, label=0.8, lapse=0.1)
    other = bradley_terry(b, a, margin=0.4, label=0.2, lapse=0.1)
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("lapse", [0.0, 0.1])
def test_scores_far_apart_stay_finite_with_the_right_slope(lapse: float) -> None:
    def wrong_by(gap: jax.Array) -> jax.Array:
        return bradley_terry(-gap, jnp.zeros(()), lapse=lapse)

    grad = jax.jit(jax.value_and_grad(wrong_by))
    for gap in (50.0, 500.0, 1e6):
        value, slope = grad(jnp.float32(gap))
        # Without lapse a straight line, −log σ(−g) → g; with it, bounded by −log(ε/2) and flat.
        expected = (gap, 1.0) if lapse == 0.0 else (-np.log(0.05), 0.0)
        assert (float(value), float(slope)) == pytest.approx(expected, rel=1e-6, abs=1e-6)
        right, slope = grad(jnp.float32(-gap))
        assert float(right) == pytest.approx(-np.log(1 - lapse / 2), abs=1e-6)
        assert float(slope) == pytest.approx(0.0, abs=1e-6)


def test_scores_of_any_type() -> None:
    chosen, rejected = np.array([3, 1]), np.array([1, 1])
    expected = bradley_terry(jnp.array([2.0, 0.0]), jnp.zeros(2))
    for dtype in (np.int32, jnp.bfloat16):
        out = bradley_terry(jnp.array(chosen, dtype), jnp.array(rejected, dtype))
        assert out.dtype == jnp.float32
        np.testing.assert_array_equal(out, expected)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"lapse is 1\.5"):
        preference.bradley_terry(jnp.zeros(1), jnp.zeros(1), lapse=1.5)
    with pytest.raises(AssertionError, match=r"rejected_scores \(1,\)"):
        bradley_terry(jnp.zeros(3), jnp.zeros(1))


def test_centering_fixes_the_constant_that_pairs_leave_free() -> None:
    chosen, rejected = jnp.array([3.0, 1.0]), jnp.array([1.0, -1.0])
    np.testing.assert_allclose(preference.centering(chosen, rejected), [16.0, 0.0])
    np.testing.assert_array_equal(
        bradley_terry(chosen, rejected),
        bradley_terry(chosen + 4.0, rejected + 4.0),
    )
    assert jax.grad(lambda c: preference.centering(chosen + c, rejected + c)[0])(0.0) == 16.0


def test_best_of_k() -> None:
    np.testing.assert_allclose(
        best_of_k(jnp.zeros((2, 4)), jnp.array([0, 3])), np.log(4), rtol=1e-6
    )
    p = np.array([[0.5, 0.3, 0.2]])
    np.testing.assert_allclose(best_of_k(np.log(p), jnp.array([1])), -np.log(0.3), rtol=1e-6)
    chosen, rejected = np.random.default_rng(1).normal(size=(2, 6)).astype("f4")
    np.testing.assert_allclose(
        best_of_k(np.stack([rejected, chosen], 1), jnp.ones(6, jnp.int32)),
        bradley_terry(chosen, rejected),
        rtol=1e-5,
    )
    whole = best_of_k(jnp.array([[1, 2, 3]]), jnp.array([2]))
    assert whole.dtype == jnp.float32 and np.isnan(best_of_k(p, jnp.array([3]))).all()


# Regression onto ratings.


def huber(gap: float, *, target: float = 0.0, delta: float = 1.0) -> float:
    found = preference.rating_regression(
        jnp.array([gap]), jnp.zeros(1), gap=jnp.array([target]), delta=delta
    )
    return float(found[0])


def test_regression_is_half_a_square_near_the_rating_and_straight_beyond_delta() -> None:
    # H_1: .5^2/2, 1 - 1/2, 3 - 1/2; H_2(3) = 2 * (3 - 1); squares all the way at infinity.
    assert huber(2.5, target=2.0) == 0.125
    assert huber(1.0) == 0.5 and huber(-3.0) == huber(3.0) == 2.5
    assert huber(3.0, delta=2.0) == 4.0
    assert huber(3.0, delta=float("inf")) == 4.5
    assert huber(7.25, target=7.25) == 0.0


def test_the_gradient_of_the_regression_is_the_error_cut_at_delta() -> None:
    def loss(chosen: jax.Array) -> jax.Array:
        return preference.rating_regression(chosen, jnp.zeros(5), gap=jnp.ones(5), delta=2.0).sum()

    errors = jnp.array([-9.0, -1.0, 0.0, 1.5, 9.0])
    np.testing.assert_allclose(jax.grad(loss)(errors + 1), [-2.0, -1.0, 0.0, 1.5, 2.0])


def test_a_delta_that_is_not_above_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        huber(1.0, delta=0.0)
