"""Word counts: the optimum by hand, soft labels, words that are unknown."""

import numpy as np
import pytest

from jaxrlhf.evals.word_counts import fit_word_counts

TEXTS = ["a", "a", "b b", "b", "c"]


def test_the_intercept_alone_gives_the_share_of_each_class():
    """Texts without words: softmax(intercept) is the mean label, whatever the penalty."""
    labels = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.9, 0.1]])
    model = fit_word_counts([""] * 4, labels, penalty=1.0)
    np.testing.assert_allclose(model.probs(["", "anything"]), [[0.6, 0.4]] * 2, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 3])
def test_at_the_optimum_the_gradient_is_zero(classes):
    """d/dW [mean CE + λ‖W‖²] = xᵀ(p − y)/N + 2λW, the intercept not shrunk."""
    labels = np.random.default_rng(0).dirichlet(np.ones(classes), len(TEXTS))
    model = fit_word_counts(TEXTS, labels, penalty=0.01)
    x = np.array([[1, 0, 0, 1], [1, 0, 0, 1], [0, 2, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]])
    p = np.exp(x @ model.weights)
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(model.probs(TEXTS), p, atol=1e-12)
    slope = x.T @ (p - labels) / len(TEXTS) + 0.02 * model.weights * [[1], [1], [1], [0]]
    np.testing.assert_allclose(slope, 0, atol=2e-5)


def test_order_does_not_matter_and_unknown_words_count_nothing():
    labels = np.eye(2)[[0, 0, 1, 1, 0]]
    model = fit_word_counts(TEXTS, labels, penalty=0.01)
    one, other, more = model.probs(["a b c", "c a b", "c zebra a b"])
    np.testing.assert_allclose(one, other, atol=1e-12)
    np.testing.assert_allclose(one, more, atol=1e-12)
    assert model.probs(["a"])[0, 0] > 0.7 and model.probs(["b"])[0, 1] > 0.7
    again = fit_word_counts(TEXTS, labels, penalty=0.01)
    np.testing.assert_array_equal(model.weights, again.weights)
    assert set(fit_word_counts(TEXTS, labels, penalty=0.01, least=2).vocabulary) == {"a", "b"}


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="5 texts and 2 labels"):
        fit_word_counts(TEXTS, np.eye(2), penalty=0.1)
    with pytest.raises(ValueError, match=r"penalty 0\.0 must be above 0"):
        fit_word_counts(TEXTS, np.ones((5, 2)), penalty=0.0)
