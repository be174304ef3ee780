"""Baselines that a reward model has to beat: a bag of words fitted to the same pairs, and length.

`fit_bag_of_words` is a Bradley-Terry model whose score is linear in the TF-IDF weights of an
answer's words and pairs of words: P(a before b) = sigmoid(w . (x_a - x_b)), found by logistic
regression on the difference of the two answers' features. It sees the answers, never the prompt,
which both answers of a pair share. Scores are log-odds, so `calibration.evaluate_pairs` measures it
like any reward model.

It reads no files and knows nothing of tokens. scikit-learn is imported on use: it is in the extra
`judges`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrlhf.errors import UserError


class BagOfWords(NamedTuple):
    """A fitted baseline: `scores` of answers, and the `words` that speak for and against one."""

    vectorizer: Any
    weights: np.ndarray  # [V] log-odds a unit of TF-IDF

    def scores(self, answers: Sequence[str]) -> np.ndarray:
        """Scores `[N]` of answers, in nats of log-odds; an answer of unknown words scores 0."""
        return self.vectorizer.transform(list(answers)) @ self.weights

    def words(self, count: int) -> tuple[list[str], list[str]]:
        """The `count` terms of the largest weight, and of the smallest, strongest first."""
        terms, order = self.vectorizer.get_feature_names_out(), np.argsort(self.weights)
        return terms[order[::-1][:count]].tolist(), terms[order[:count]].tolist()


def fit_bag_of_words(
    chosen: Sequence[str], rejected: Sequence[str], *, inverse_penalty: float = 1.0
) -> BagOfWords:
    """Fit the baseline on pairs of answers; deterministic.

    min over w of  ½ ‖w‖² + C Σ -log sigmoid(w . (x_chosen - x_rejected))

    Args:
      chosen, rejected: `[N]` answers, without their prompts.
      inverse_penalty: C; larger is less regularised and surer of itself.
    Raises:
      UserError: scikit-learn is missing.
      ValueError: fewer than two pairs, or unequal lengths.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError(
            "the TF-IDF baseline needs scikit-learn: pip install 'jaxrlhf[judges]'"
        ) from None
    if len(chosen) != len(rejected) or len(chosen) < 2:
        raise ValueError(f"{len(chosen)} chosen and {len(rejected)} rejected answers: need pairs")
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    vectorizer.fit([*chosen, *rejected])
    difference: Any = vectorizer.transform(chosen) - vectorizer.transform(rejected)
    # scikit-learn wants two classes: every second pair is turned round. Without an intercept the
    # loss of a pair turned round, with the other label, is the same, so this changes nothing.
    sign = np.where(np.arange(len(chosen)) % 2, -1.0, 1.0)
    regression = LogisticRegression(C=inverse_penalty, fit_intercept=False, max_iter=1000)
    regression.fit(difference.multiply(sign[:, None]).tocsr(), sign)
    return BagOfWords(vectorizer, regression.coef_[0])


def shortness(answers: Sequence[str]) -> np.ndarray:
    """Minus the number of characters of each answer, `[N]`: the rule "shorter is better"."""
    return -np.array([len(answer) for answer in answers], np.float64)
