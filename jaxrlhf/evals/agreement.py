"""Does a judge of pairs agree with whoever knows, and does it look at the responses or at places?

A judge is asked which of two responses is better, with one standing first and then the other. What
it answers is taken apart here: how often it is right (averaged over both orders, and in one order),
whether its probabilities mean what they say, and how much it likes the first place.

Takes arrays, returns numbers; deliberately no models and no files.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from jaxrlhf.evals import calibration
from jaxrlhf.evals.statistics import Interval, bootstrap_mean, finite_column, wilson

DIGITS = 12  # of an averaged probability: what cancels out over the orders is undecided, exactly
SUREST = 1e-15  # probabilities are cut to this far from 0 and 1, where log-odds are infinite


class Agreement(NamedTuple):
    """What `agreement` measures; a figure that cannot be measured is None."""

    pairs: int
    accuracy: Interval | None
    """Of the averaged probability, on pairs that are no tie; undecided counts half."""
    one_order: float | None
    """Accuracy of a single question, the mean over the orders that were asked."""
    ece: float | None
    """Expected calibration error of the averaged probability, on pairs that are no tie."""
    first_place: float
    """Mean P(the response that stands first); 1/2 where both orders are asked and places do not
    matter."""
    first_place_on_ties: float | None
    """The same on ties."""
    same_place: float | None
    """Share of pairs for which both orders chose the same place: decided by where, not what."""

    def scalars(self) -> dict[str, float]:
        """The numbers among it, for a summary."""
        found: dict[str, float] = {"pairs": float(self.pairs)}
        if self.accuracy:
            found |= {
                "accuracy": self.accuracy.estimate,
                "accuracy_low": self.accuracy.low,
                "accuracy_high": self.accuracy.high,
            }
        rest = {name: getattr(self, name) for name in self._fields[2:]}
        return found | {name: x for name, x in rest.items() if x is not None}


def agreement(
    ab: ArrayLike, ba: ArrayLike, better: ArrayLike, *, clusters: ArrayLike | None = None
) -> Agreement:
    """Compare a judge's P(a is better) with the truth.

    Args:
        ab, ba: [N] P(a is better) when a stood first, and when b did; NaN where it was not asked.
        better: [N] 1 where a is better, 0 where b is, 1/2 where neither (a tie).
        clusters: [N] what pairs belong together (prompts); the interval of the accuracy is then a
            bootstrap over them, otherwise Wilson's.

    Raises:
        ValueError: no pairs, unequal lengths, a pair that was never asked, numbers out of range.
    """
    orders = np.array([ab, ba], np.float64)
    better = finite_column(better, name="better")
    if orders.shape != (2, len(better)):
        raise ValueError(f"{orders.shape[1:]} probabilities for {len(better)} pairs")
    asked = ~np.isnan(orders)
    if not asked.any(axis=0).all():
        raise ValueError("a pair was asked in neither order")
    if not (np.isin(better, (0, 0.5, 1)).all() and ((orders >= 0) & (orders <= 1))[asked].all()):
        raise ValueError("better is 0, 1/2 or 1, and probabilities lie in [0, 1]")
    averaged = np.round(np.nanmean(orders, axis=0), DIGITS)
    tie, first = better == 0.5, np.array([orders[0], 1 - orders[1]])
    known = accuracy = one_order = ece = None
    if not tie.all():
        known = ~tie
        correct = calibration.correctness(averaged[known] - 0.5, labels=better[known])
        accuracy = (
            wilson(float(correct.sum()), len(correct))
            if clusters is None
            else bootstrap_mean(correct, clusters=np.asarray(clusters)[known])
        )
        each = [
            calibration.correctness(p[seen & known] - 0.5, labels=better[seen & known])
            for p, seen in zip(orders, asked, strict=True)
            if (seen & known).any()
        ]
        one_order = float(np.concatenate(each).mean())
        sure = np.clip(averaged[known], SUREST, 1 - SUREST)
        ece = calibration.expected_calibration_error(special.logit(sure), labels=better[known])
    both = asked.all(axis=0)
    places = np.sign(first[:, both] - 0.5)
    return Agreement(
        pairs=len(better),
        accuracy=accuracy,
        one_order=one_order,
        ece=ece,
        first_place=float(np.nanmean(first)),
        first_place_on_ties=float(np.nanmean(first[:, tie])) if tie.any() else None,
        same_place=float(np.mean(places[0] * places[1] > 0)) if both.any() else None,
    )
