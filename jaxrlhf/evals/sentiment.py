"""Is a text positive? A judge that shares neither data nor model with what it judges.

Word 1-2-grams weighted by TF-IDF, then a logistic regression: nothing of it is a neural network,
and it is to be fitted on sentences that no reward model has seen labels of. A policy that has
learnt to please its reward model and not to be positive does not please this judge.

It knows no files and trains nothing else. scikit-learn is imported on use: it is in the extra
`judges`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrlhf.errors import UserError

# Of 1, 3, 10, 30, 100: the least log-loss (.500, at accuracy .760) in 5-fold cross-validation on
# the judge's own half of SST-2, chosen before any policy was judged.
INVERSE_PENALTY = 30.0


class SentimentJudge:
    """A fitted judge; called with prompts and responses it is a `Judge` of `evals.policy`."""

    def __init__(self, pipeline: Any):
        self._pipeline = pipeline

    def positive(self, texts: Sequence[str]) -> np.ndarray:
        """P(positive) of each text, `[N]` in [0, 1]; of an empty one it is the classes' balance."""
        return self._pipeline.predict_proba(list(texts))[:, 1]

    def accuracy(self, texts: Sequence[str], labels: Sequence[int]) -> float:
        """Share of texts on the right side of 1/2 (1: positive)."""
        return float(np.mean((self.positive(texts) > 0.5) == (np.asarray(labels) == 1)))

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[dict[str, float]]:
        """Figures of each response.

        Returns:
          Rows of `gold`: P(positive) of the response alone, which an opening that is positive
          already cannot lift; `positive`: 1.0 where that is above 1/2; `gold_whole` and
          `positive_whole`: the same of prompt and response together.
        """
        alone = self.positive(responses)
        whole = self.positive([a + b for a, b in zip(prompts, responses, strict=True)])
        return [
            {
                "gold": float(p),
                "positive": float(p > 0.5),
                "gold_whole": float(q),
                "positive_whole": float(q > 0.5),
            }
            for p, q in zip(alone, whole, strict=True)
        ]


def fit_judge(
    texts: Sequence[str], labels: Sequence[int], *, inverse_penalty: float = INVERSE_PENALTY
) -> SentimentJudge:
    """Fit the judge on labelled texts; deterministic.

    Args:
      texts: words between blanks, lower-case as in SST-2; punctuation marks count as words.
      labels: 1 positive, 0 negative.
      inverse_penalty: scikit-learn's C; larger is less regularised and surer of itself.
    Raises:
      UserError: scikit-learn is missing, or there are not two kinds of label.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        raise UserError(
            "the sentiment judge needs scikit-learn: pip install jaxrlhf[judges]"
        ) from None
    if set(labels) != {0, 1}:
        raise UserError(f"the sentiment judge needs labels 0 and 1, and got {sorted(set(labels))}")
    words = TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 2), sublinear_tf=True)
    return SentimentJudge(
        make_pipeline(words, LogisticRegression(C=inverse_penalty, max_iter=1000)).fit(
            list(texts), list(labels)
        )
    )
