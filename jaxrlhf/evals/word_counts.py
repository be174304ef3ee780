"""A weak supervisor: logistic regression on how often each word stands in a text.

It knows no order, and so errs where order matters: the errors are systematic, and a student can
learn to make them too. Labels may be soft. Fitted to its optimum, so two fits are equal; numpy and
scipy.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, sparse, special


class WordCounts(NamedTuple):
    """A fitted regression; words it has not seen count nothing."""

    vocabulary: dict[str, int]
    weights: np.ndarray  # [V + 1, K]; the last row is the intercept

    def probs(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities `[N, K]` of the classes."""
        return special.softmax(_features(texts, self.vocabulary) @ self.weights, axis=1)


def fit_word_counts(
    texts: Sequence[str], labels: np.ndarray, *, penalty: float, least: int = 1
) -> WordCounts:
    """Fit by L-BFGS:  min over W of  mean CE(softmax(x·W), label) + penalty · ‖W‖².

    Args:
      texts: `[N]`, words between blanks.
      labels: `[N, K]` probabilities.
      penalty: weight of the squared norm, the intercept left out; above 0.
      least: how often a word must stand in all texts to be known.
    Raises:
      ValueError: other numbers of texts and labels, no text, or a penalty that is not positive.
    """
    if len(texts) != len(labels) or not len(texts):
        raise ValueError(f"{len(texts)} texts and {len(labels)} labels: need as many, at least one")
    if not penalty > 0:
        raise ValueError(f"penalty {penalty} must be above 0: the optimum may not exist without")
    counts = Counter(word for text in texts for word in text.split())
    known = sorted(word for word, count in counts.items() if count >= least)
    vocabulary = {word: number for number, word in enumerate(known)}
    x, classes = _features(texts, vocabulary), labels.shape[1]
    shrunk = np.ones((x.shape[1], 1))
    shrunk[-1] = 0.0  # the intercept

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(-1, classes)
        log_probs = special.log_softmax(x @ weights, axis=1)
        loss = -(labels * log_probs).sum() / len(labels) + penalty * (shrunk * weights**2).sum()
        slope = x.T @ (np.exp(log_probs) * labels.sum(axis=1, keepdims=True) - labels)
        return float(loss), (slope / len(labels) + 2 * penalty * shrunk * weights).ravel()

    start = np.zeros(x.shape[1] * classes)
    found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B")
    return WordCounts(vocabulary, found.x.reshape(-1, classes))


def _features(texts: Sequence[str], vocabulary: dict[str, int]) -> Any:
    """`[N, V + 1]` counts, and a column of ones."""
    rows, columns = [], []
    for row, text in enumerate(texts):
        found = [vocabulary[word] for word in text.split() if word in vocabulary]
        columns += [*found, len(vocabulary)]
        rows += [row] * (len(found) + 1)
    shape = (len(texts), len(vocabulary) + 1)
    return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)
