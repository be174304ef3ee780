"""Weak-to-strong losses against equations written out in numpy (float64), value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.losses import confidence, masked

B = 9
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (B, 2)).astype(np.float32)
POSITIVE = RNG.uniform(0.02, 0.98, B).astype(np.float32)
WEAK = np.stack([1 - POSITIVE, POSITIVE], axis=1)
REAL = np.arange(B) < 6


# The equations again, by hand. A loss is CE(z, t) with t a constant, so its gradient is the well
# known ∂CE/∂z = (Σ t)·softmax(z) − t, here divided by the number of real rows.


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def one_hot(positive):
    return np.stack([~positive, positive], axis=1).astype(float)


def by_quantile(z, share):
    """As torch.quantile, which the released code calls: linear interpolation, as numpy's."""
    first = softmax(z)[:, 0]
    return one_hot(first < np.quantile(first, share))


def by_half(z):
    first = softmax(z)[:, 0]
    positive = np.zeros(len(z), bool)
    positive[np.argsort(first)[: round(len(z) / 2)]] = True
    return one_hot(positive)


def mix(w, h, k):
    return (1 - k) * w + k * h


def paper(z, w, s):
    return mix(w, by_half(z), 0.75 * min(1, s / 0.2))


def released(z, w, s):
    return mix(w, by_quantile(z, w[:, 1].mean()), 0.5 * (s if s <= 0.1 else 1))


def mended(z, w, s):
    return mix(w, by_quantile(z, w[:, 1].mean()), 0.5 * min(1, s / 0.1))


def entropic(z, w, s):
    return mix(w, softmax(z), 0.4)


def product(z, w, s):
    t = softmax(z) ** 0.5 * w**2
    return t / t.sum(-1, keepdims=True)


FORMS = {
    "xent": (lambda z, w, s, mask: w, lambda z, w, s: w),
    "paper": (
        lambda z, w, s, mask: confidence.paper(z, w, progress=s, max_weight=0.75, mask=mask),
        paper,
    ),
    "released": (lambda z, w, s, mask: confidence.released(z, w, progress=s, mask=mask), released),
    "mended": (
        lambda z, w, s, mask: confidence.mended(z, w, progress=s, max_weight=0.5, mask=mask),
        mended,
    ),
    "entropic": (lambda z, w, s, mask: confidence.entropic(z, w, weight=0.4), entropic),
    "product": (lambda z, w, s, mask: confidence.product(z, w, alpha=2.0, beta=0.5), product),
}


@functools.cache
def step(form):
    target_of, _ = FORMS[form]

    @jax.jit
    @jax.value_and_grad
    def loss(z, w, s, mask):
        targets = target_of(z, w, s, mask)
        return masked.mean(confidence.cross_entropy(z, targets), mask)

    return loss


@pytest.mark.parametrize("extreme", [1.0, 30.0], ids=["logits", "extreme logits"])
@pytest.mark.parametrize("masks", [np.ones(B, bool), REAL], ids=["all", "masked"])
@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradient_equal_the_equations(form, masks, extreme):
    by_hand = FORMS[form][1]
    logits = LOGITS * np.float32(extreme)
    for s in (0.0, 0.05, 0.1, 0.15, 0.2, 1.0):  # 0: plain cross-entropy for all that ramp
        value, gradient = step(form)(logits, WEAK, jnp.float32(s), masks)
        z, w = logits[masks].astype(float), WEAK[masks].astype(float)
        t = by_hand(z, w, s)
        log_p = z - z.max(-1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
        assert float(value) == pytest.approx(-(t * log_p).sum(-1).mean(), rel=1e-6, abs=1e-6), s
        expected = np.zeros((B, 2))
        expected[masks] = (softmax(z) * t.sum(-1, keepdims=True) - t) / masks.sum()
        np.testing.assert_allclose(gradient, expected, atol=1e-6, err_msg=str(s))


def test_weight_zero_is_cross_entropy_and_weight_one_is_the_own_prediction():
    own = confidence.rank_labels(LOGITS, 0.5)
    np.testing.assert_array_equal(confidence.mixed(WEAK, own, 0.0), WEAK)
    np.testing.assert_array_equal(confidence.mixed(WEAK, own, 1.0), own)
    # α = 1 through a named form: at the end of the ramp nothing of the weak label is left
    full = confidence.mended(LOGITS, WEAK, progress=1.0, max_weight=1.0)
    np.testing.assert_array_equal(full, by_quantile(LOGITS.astype(float), POSITIVE.mean()))


def test_the_released_ramp_jumps_and_the_mended_one_does_not():
    ends = [float(confidence.released_ramp(s)) for s in (0.0999, 0.1001)]
    assert ends == pytest.approx([0.0999, 1.0])
    ends = [float(confidence.ramp(s, share=0.1)) for s in (0.0999, 0.1001)]
    assert ends == pytest.approx([0.999, 1.0])
    assert float(confidence.ramp(0.0, share=0.0)) == 1.0


@pytest.mark.parametrize("labels", [confidence.quantile_labels, confidence.rank_labels])
@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_the_share_of_positives_matches_the_prior_within_one_example(labels, size):
    rng = np.random.default_rng(size)
    for share in (0.0, 0.07, 0.5, 0.63, 1.0):
        z = rng.normal(size=(size + 3, 2)).astype(np.float32)
        mask = rng.permutation(np.arange(size + 3) < size)
        found = np.asarray(labels(z, share, mask=mask))
        assert abs(found[mask][:, 1].sum() - share * size) <= 1, (share, found)
        np.testing.assert_array_equal(found.sum(axis=1), 1)


def test_of_equal_predictions_the_rank_takes_the_share_and_the_quantile_none():
    """A head that starts at zero predicts ½ for every row."""
    zeros = np.zeros((8, 2), np.float32)
    assert confidence.rank_labels(zeros, 0.5)[:, 1].sum() == 4
    assert confidence.quantile_labels(zeros, 0.5)[:, 1].sum() == 0


@pytest.mark.parametrize("form", FORMS)
def test_no_gradient_passes_through_a_target(form):
    target_of, _ = FORMS[form]

    def total(z, w):
        return jnp.sum(target_of(z, w, 0.5, REAL) ** 2) if form != "xent" else 0.0 * jnp.sum(z)

    jacobian = jax.grad(total)(LOGITS, WEAK)
    np.testing.assert_array_equal(jacobian, 0)
    through = jax.grad(lambda w: jnp.sum(confidence.cross_entropy(LOGITS, w)))(WEAK)
    np.testing.assert_array_equal(through, 0)


def test_rows_that_are_not_real_change_nothing():
    def all_forms(z, w):
        return [
            confidence.cross_entropy(z, target_of(z, w, 0.5, REAL))
            for target_of, _ in FORMS.values()
        ]

    def reduced(z, w):
        return sum(masked.mean(loss, REAL) for loss in all_forms(z, w))

    step = jax.jit(jax.value_and_grad(reduced))
    expected = step(LOGITS, WEAK)
    for poison in (np.nan, np.inf, -1e30):
        z = np.where(REAL[:, None], LOGITS, np.float32(poison))
        found = step(z, WEAK)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_quantile_is_numpys():
    x = RNG.normal(size=11).astype(np.float32)
    for share in (0.0, 0.13, 0.5, 0.99, 1.0):
        assert float(confidence.quantile(x, share)) == pytest.approx(np.quantile(x, share))
        some = float(confidence.quantile(x, share, mask=np.arange(11) < 4))
        assert some == pytest.approx(np.quantile(x[:4], share))


def test_rolling_thresholds_a_batch_of_one_by_those_before():
    recent = jnp.full(3, confidence.EMPTY)
    for p in (0.1, 0.2, 0.9, 0.6):  # the buffer of three ends with .2, .9, .6
        z = np.log(np.array([[p, 1 - p]], np.float32))
        recent = confidence.remember(recent, z)
    np.testing.assert_allclose(recent, [0.2, 0.9, 0.6], rtol=1e-6)
    half = np.array([[0.5, 0.5]], np.float32)
    # median .6: a probability of .6 is at it and so of class 0; one of .59 is of class 1
    assert confidence.rolling(z, half, recent, weight=1.0).tolist() == [[1.0, 0.0]]
    lower = np.log(np.array([[0.59, 0.41]], np.float32))
    assert confidence.rolling(lower, half, recent, weight=1.0).tolist() == [[0.0, 1.0]]
    kept = confidence.remember(recent, z, mask=np.array([False]))
    np.testing.assert_allclose(kept, [0.9, 0.6, confidence.EMPTY], rtol=1e-6)


def test_balanced_labels_have_mean_log_odds_zero():
    moved = np.asarray(confidence.balanced(WEAK, mask=REAL), float)
    odds = np.log(POSITIVE / (1 - POSITIVE)).astype(float)
    expected = 1 / (1 + np.exp(-(odds - odds[REAL].mean())))
    np.testing.assert_allclose(moved[:, 1], expected, rtol=1e-5)
    np.testing.assert_allclose(moved.sum(axis=1), 1, rtol=1e-6)
    hard = confidence.balanced(np.array([[0, 1], [1, 0], [0, 1]], np.float32))
    assert np.isfinite(hard).all() and np.argmax(hard, axis=1).tolist() == [1, 0, 1]


def test_the_window_keeps_what_is_still_undecided():
    p = np.array([0.36, 0.34, 0.5, 0.64, 0.66], np.float32)  # the larger: .64 .66 .5 .64 .66
    z = np.log(np.stack([p, 1 - p], axis=1))
    inside = confidence.in_window(z, radius=0.15)
    assert inside.tolist() == [True, False, True, True, False]
    assert float(confidence.window_radius(WEAK)) == pytest.approx(
        np.median(np.abs(POSITIVE - 0.5)), rel=1e-6
    )


def test_more_classes_and_tokens():
    z = RNG.normal(size=(2, 4, 5)).astype(np.float32)
    tokens = RNG.integers(0, 5, (2, 4))
    log_p = np.log(softmax(z.astype(float)))
    rows = np.arange(2)[:, None], np.arange(4)[None, :]
    expected = -0.3 * log_p[(*rows, tokens)] - 0.7 * log_p.max(-1)
    np.testing.assert_allclose(
        confidence.token_confidence(z, tokens, weight=0.7), expected, rtol=1e-5
    )
    # the same with one-hot labels of five classes
    targets = confidence.mixed(np.eye(5)[tokens], confidence.argmax_labels(z), 0.7)
    np.testing.assert_allclose(confidence.cross_entropy(z, targets), expected, rtol=1e-5)
    gradient = jax.grad(lambda z: confidence.token_confidence(z, tokens, weight=0.7).sum())(z)
    np.testing.assert_allclose(gradient, softmax(z.astype(float)) - targets, atol=1e-6)


def test_a_threshold_is_for_two_classes():
    with pytest.raises(ValueError, match=r"expected \[B, 2\], got \(3, 4\)"):
        confidence.rank_labels(np.zeros((3, 4), np.float32), 0.5)
    with pytest.raises(AssertionError, match=r"targets \(3,\)"):
        confidence.cross_entropy(np.zeros((3, 2), np.float32), np.zeros(3, np.float32))
