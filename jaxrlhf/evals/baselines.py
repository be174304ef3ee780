"""A reward model beside other scorers of the same pairs: one row a method, every row on all pairs.

Each method is two columns of scores. Accuracy comes with Wilson's interval; the difference to a
method of reference is paired (the same pairs are easy for both), with a bootstrap interval. Where
scores are log-odds, there is log-loss and calibration too; a rule such as "shorter is better" has
neither.

Takes arrays, returns numbers and a Markdown table; deliberately no models and no files.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from numpy.typing import ArrayLike

from jaxrlhf.evals import calibration
from jaxrlhf.evals.statistics import (
    Interval,
    finite_column,
    format_interval,
    paired_bootstrap,
)

Scores = tuple[ArrayLike, ArrayLike]
"""`[N]` scores of the chosen and of the rejected answers; higher is better."""


class Standing(NamedTuple):
    """How one method did on a file of pairs."""

    method: str
    pairs: int
    accuracy: Interval
    difference: Interval | None
    """Accuracy minus that of the reference, which has None here."""
    log_loss: float | None
    ece: float | None
    """None where the scores are not log-odds."""


def compare(
    methods: Mapping[str, Scores], *, reference: str, log_odds: Collection[str]
) -> list[Standing]:
    """One row a method.

    Args:
      methods: name -> scores, all of the same pairs in the same order.
      reference: the method the others are measured against.
      log_odds: the methods whose score differences are log-odds of the chosen answer.
    Raises:
      KeyError: `reference` is no method.
      ValueError: the methods score different numbers of pairs, or something not finite.
    """
    against = _correct(methods[reference])
    found = []
    for name, scores in methods.items():
        report, correct = calibration.evaluate_pairs(*scores), _correct(scores)
        other = paired_bootstrap(correct, against).difference if name != reference else None
        known = name in log_odds
        found.append(
            Standing(
                method=name,
                pairs=report.pairs,
                accuracy=report.accuracy,
                difference=other,
                log_loss=report.log_loss if known else None,
                ece=report.ece if known else None,
            )
        )
    return found


def markdown(standings: Sequence[Standing], *, reference: str) -> str:
    """The rows as a Markdown table."""
    head = ["method", "pairs", "accuracy [95 %]", f"minus {reference} [95 %]", "log-loss", "ECE"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in standings:
        difference = format_interval(row.difference, digits=3) if row.difference else ""
        numbers = ["" if x is None else f"{x:.3f}" for x in (row.log_loss, row.ece)]
        accuracy = format_interval(row.accuracy, digits=3)
        lines.append([row.method, str(row.pairs), accuracy, difference, *numbers])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _correct(scores: Scores):
    chosen, rejected = (finite_column(x, name="scores") for x in scores)
    if chosen.shape != rejected.shape:
        raise ValueError(f"{len(chosen)} chosen scores but {len(rejected)} rejected scores")
    return calibration.correctness(chosen - rejected)
