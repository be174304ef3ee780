"""A judge's liking for a place, taken out of its labels without knowing any right answer.

Both responses of a pair stand first equally often, or in an order that was drawn; so a judge that
looks at them alone chooses the first place half of the time, over many pairs. Whatever it does more
often is the place's doing: one number of nats is taken from all log-odds of (A) against (B), such
that the mean probability of (A) is 1/2.

Source: Liusie et al. 2024, "LLM Comparative Assessment" (arXiv 2307.07889), by the prior matching
of Liusie et al. 2023 (arXiv 2309.04992).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, special

from jaxrlhf.constitutional.judge import decided


def calibrated(labels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same rows with `offset`, and the probability and entropy that it leaves.

    Log-probs stay as they were read; `judge.probabilities` takes the offset from them.
    """
    kept = [one["log_probs"] for row in labels if not row["discarded"] for one in row["judgements"]]
    if not kept:
        return [dict(row) for row in labels]
    a, b = np.array(kept).T
    shift = offset(a - b)
    return [dict(row) if row["discarded"] else decided({**row, "offset": shift}) for row in labels]


def offset(log_odds: np.ndarray) -> float:
    """Nats b for which the mean of sigmoid(log_odds - b) is 1/2.

    >>> round(offset(np.array([3.0, -1.0])), 9)
    1.0
    """

    def excess(b: float) -> float:
        return float(special.expit(log_odds - b).mean() - 0.5)

    if abs(excess(0.0)) < 1e-12:  # also where many b would do, between certain answers
        return 0.0
    low, high = log_odds.min() - 1, log_odds.max() + 1
    return float(optimize.root_scalar(excess, bracket=(low, high), method="brentq").root)
