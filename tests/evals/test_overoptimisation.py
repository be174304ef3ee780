"""Best-of-n by counting all subsets, and both published forms on curves made of them."""

import itertools
import math

import numpy as np
import pytest

from jaxrlhf.evals.overoptimisation import best_of_n, best_of_n_kl, fit, growth


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_best_of_n_is_the_mean_over_all_subsets(n):
    rng = np.random.default_rng(0)
    scores, values = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    expected = [
        np.mean([v[max(some, key=lambda i: s[i])] for some in itertools.combinations(range(6), n)])
        for s, v in zip(scores, values, strict=True)
    ]
    np.testing.assert_allclose(best_of_n(scores, values, n), expected, rtol=1e-12)


def test_best_of_1_is_the_mean_and_of_all_the_best():
    scores, values = [[1.0, 3.0, 2.0]], [[7.0, 5.0, 9.0]]
    assert best_of_n(scores, values, 1) == pytest.approx(7.0)
    assert best_of_n(scores, values, 3) == pytest.approx(5.0)


def test_equal_scores_share_whatever_their_order():
    # All scores alike: the choice is random, so best of 2 is the mean, in any order.
    values = np.array([[1.0, 2.0, 6.0]])
    for order in itertools.permutations(range(3)):
        assert best_of_n([[0.0] * 3], values[:, order], 2) == pytest.approx(3.0)


def test_many_samples_do_not_overflow():
    scores = np.arange(2000.0)[None]
    # The best of n among 1 ... N has the expected rank n (N + 1) / (n + 1).
    assert best_of_n(scores + 1, scores + 1, 500) == pytest.approx(500 * 2001 / 501)


@pytest.mark.parametrize(
    ("scores", "values", "n"),
    [([[1.0, 2.0]], [[1.0]], 1), ([[1.0]], [[1.0]], 2), ([[1.0]], [[1.0]], 0)],
)
def test_best_of_n_refuses(scores, values, n):
    with pytest.raises(ValueError, match=r"samples a prompt|same \[P, N\]"):
        best_of_n(scores, values, n)


def test_kl_of_best_of_n():
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(2) == pytest.approx(math.log(2) - 0.5)


@pytest.mark.parametrize(
    ("form", "curve", "peak"),
    [
        ("best-of-n", lambda d: d * (0.8 - 0.1 * d), 4.0),
        ("rl", lambda d: d * (1.2 - 0.6 * np.log(d)), math.exp(1)),
    ],
)
def test_a_curve_of_a_form_is_found_again(form, curve, peak):
    d = np.linspace(0.3, 9, 30)
    kl, gold = np.append(0.0, d**2), np.append(0.0, curve(d))
    found = fit(kl, gold, form)
    assert found.r2 == pytest.approx(1) and found.peak == pytest.approx(peak)
    np.testing.assert_allclose(found.gold(d), curve(d), atol=1e-9)
    other = fit(kl, gold, "rl" if form == "best-of-n" else "best-of-n")
    assert other.aic > found.aic + 10


def test_intervals_cover():
    rng, covered = np.random.default_rng(1), np.zeros(2)
    d = np.linspace(0.5, 8, 25)
    for _ in range(400):
        found = fit(d**2, d * (0.8 - 0.1 * d) + rng.normal(0, 0.2, 25), "best-of-n")
        truth = ((found.alpha, 0.8), (found.beta, 0.1))
        covered += [interval.low <= x <= interval.high for interval, x in truth]
    # 400 intervals of 95 %: 380 +- 4 · sqrt(400 · .95 · .05) = 380 +- 17.
    assert (np.abs(covered - 380) < 18).all()


def test_aic_is_that_of_normal_errors():
    d = np.array([1.0, 2.0, 3.0, 4.0])
    y = np.array([1.0, 1.0, 2.0, 1.0])
    found = fit(d**2, y, "best-of-n")
    residual = np.sum((y - found.gold(d)) ** 2)
    assert found.aic == pytest.approx(4 * math.log(residual / 4) + 6)


def test_a_curve_that_never_falls_has_no_peak():
    d = np.linspace(0.5, 5, 10)
    assert fit(d**2, d, "best-of-n").peak is None or fit(d**2, d, "best-of-n").peak > 1e6
    assert fit(d**2, d * (1 + 0.1 * d), "best-of-n").peak is None


def test_too_few_points():
    with pytest.raises(ValueError, match="3 points with KL above 0"):
        fit([0, 1, 2, 3], [0, 1, 1, 1], "rl")


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_growth_finds_the_power(power):
    """Gains below 0 count for the line and have no logarithm."""
    kl = np.array([0.0, 0.5, 1.0, 2.0, 4.0])
    found = growth(kl, 3 * kl**power)
    assert found.exponent == pytest.approx(power)
    assert (found.r2 == pytest.approx(1.0)) is (power == 0.5)
    dented = growth([*kl, 3.0], [*(3 * kl**power), -0.1])
    assert dented.exponent == pytest.approx(power) and dented.slope < found.slope


def test_growth_of_too_little():
    assert growth([0.0, 1.0, 4.0], [0.0, 1.0, 2.0]) is None
    assert growth([1.0, 2.0, 3.0], [-1.0, 1.0, 2.0]) is None
