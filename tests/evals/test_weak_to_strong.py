"""Performance gap recovered, agreement and AUROC, on columns counted by hand."""

import numpy as np
import pytest

from jaxrlhf.evals import weak_to_strong as evals


def column(right: int, of: int = 1000):
    """The first `right` rows of `of` are right."""
    return (np.arange(of) < right).astype(float)


def test_pgr_by_hand():
    """Weak .6, student .75, ceiling .9: (.75 − .6) / (.9 − .6) = ½."""
    found = evals.recovered(column(600), column(750), column(900))
    assert found.value == pytest.approx(0.5) and found.note == ""
    assert found.gap == pytest.approx(0.3)
    # the difference is 1 on 300 of 1,000 rows: its variance is .3 · .7
    assert found.gap_error == pytest.approx(np.sqrt(0.21 / 1000))
    assert found.interval is not None
    assert 0.4 < found.interval.low < 0.5 < found.interval.high < 0.6


def test_pgr_outside_of_0_and_1_is_reported_as_it_is():
    below = evals.recovered(column(600), column(500), column(900)).value
    above = evals.recovered(column(600), column(960), column(900)).value
    assert (below, above) == (pytest.approx(-1 / 3), pytest.approx(1.2))


@pytest.mark.parametrize(
    ("weak", "ceiling", "of", "note"),
    [
        (600, 640, 1000, evals.SMALL),  # .04 is not above .05
        (6, 8, 10, evals.SMALL),  # .2, with an error of √(.2·.8/10) = .126: not 3 of them
        (600, 600, 1000, evals.SMALL),
        (900, 600, 1000, evals.UPSIDE_DOWN),
    ],
)
def test_a_ratio_with_a_small_denominator_is_not_given(weak, ceiling, of, note):
    found = evals.recovered(column(weak, of), column(7, of), column(ceiling, of))
    assert (found.value, found.interval, found.note) == (None, None, note)


def test_the_interval_is_that_of_paired_rows():
    """Three columns with the same luck: a student that is right exactly where the ceiling is, on
    half of what the teacher misses, has an interval that only the number of such rows widens."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 4, 2000)  # teacher right; student too; ceiling alone; ceiling alone
    weak, student, ceiling = kind == 0, kind <= 1, kind <= 2
    found = evals.recovered(weak, student, ceiling)
    # PGR = share of kind 1 among kinds 1 and 2, about 1,000 rows: error √(.25/1000) = .0158
    share = (kind == 1).sum() / ((kind == 1) | (kind == 2)).sum()
    assert found.value == pytest.approx(share)
    assert found.interval is not None
    width = found.interval.high - found.interval.low
    assert width == pytest.approx(2 * 1.96 * 0.0158, rel=0.15)


def test_a_student_beside_its_teacher_by_hand():
    truth = np.eye(2)[[1, 1, 0, 0]]
    teacher = np.array([[0.4, 0.6], [0.7, 0.3], [0.8, 0.2], [0.1, 0.9]])  # wrong on rows 1 and 3
    student = np.array([[0.2, 0.8], [0.9, 0.1], [0.6, 0.4], [0.7, 0.3]])  # wrong on row 1
    found = evals.compare(student, teacher, truth)
    assert found.accuracy.estimate == 0.75 and found.agreement == 0.75
    assert found.agreement_on_errors == 0.5 and found.accuracy_on_errors == 0.5
    # positives score .8 and .1, negatives .4 and .3: .8 beats both, .1 none
    assert found.auroc == 0.5
    assert found.log_loss == pytest.approx(-np.log([0.8, 0.1, 0.6, 0.7]).mean())
    perfect = evals.compare(student, truth, truth)
    assert perfect.agreement_on_errors is None and perfect.accuracy_on_errors is None
    three = np.eye(3)[[0, 1, 2]]
    assert evals.compare(three, three, three).auroc is None


def test_auroc_counts_ties_as_halves():
    scores, positive = [1, 2, 2, 3, 0], [0, 0, 1, 1, 0]
    # pairs (positive, negative): 2 beats 1, ties 2, beats 0; 3 beats all: (1 + ½ + 1 + 3) / 6
    assert evals.auroc(scores, positive) == pytest.approx(5.5 / 6)
    assert evals.auroc([1, 2], [1, 1]) is None


def test_columns_must_match():
    with pytest.raises(ValueError, match=r"\[10, 11, 10\]"):
        evals.recovered(column(1, 10), column(1, 11), column(1, 10))
    with pytest.raises(ValueError, match="shapes differ"):
        evals.compare(np.eye(2), np.eye(2), np.eye(3))
