"""Reward-model evaluation: every number by hand on a few pairs, then on models of known honesty."""

import math

import numpy as np
import pytest
from scipy.special import expit

from jaxrlhf.evals.calibration import (
    brier,
    correctness,
    evaluate_pairs,
    expected_calibration_error,
    log_loss,
    reliability,
)

# Margins whose sigmoid is a round number: log 3 -> 3/4, log 9 -> 9/10.
LOG3, LOG9 = math.log(3), math.log(9)


def test_correctness_by_hand():
    assert correctness([2.0, -2.0, 0.0]).tolist() == [1.0, 0.0, 0.5]
    # Soft labels: the pick of margin -2 is the rejected one, preferred with probability 1 - .3.
    np.testing.assert_allclose(
        correctness([2.0, -2.0, 0.0], labels=[0.8, 0.3, 0.9]), [0.8, 0.7, 0.5]
    )


def test_log_loss_and_brier_by_hand():
    # q = 3/4 and 1/10: -(log(3/4) + log(1/10)) / 2, ((1/4)^2 + (9/10)^2) / 2.
    assert log_loss([LOG3, -LOG9]) == pytest.approx(-(math.log(0.75) + math.log(0.1)) / 2)
    assert brier([LOG3, -LOG9]) == pytest.approx((0.0625 + 0.81) / 2)
    # Soft label .8 at q = 3/4: -.8 log .75 - .2 log .25 and .8 * .0625 + .2 * .5625.
    assert log_loss([LOG3], labels=[0.8]) == pytest.approx(
        -0.8 * math.log(0.75) - 0.2 * math.log(0.25)
    )
    assert brier([LOG3], labels=[0.8]) == pytest.approx(0.1625)
    # A model that knows nothing.
    assert log_loss([0.0, 0.0]) == pytest.approx(math.log(2))
    assert brier([0.0, 0.0]) == 0.25


def test_huge_margins_do_not_overflow():
    assert log_loss([1e4]) == 0.0
    assert log_loss([-1e4]) == 1e4
    assert brier([-1e4]) == 1.0


def test_ece_by_hand():
    # Equal width, 2 bins: [.5, .75) and [.75, 1]. Confidences .6 .6 .6 .9 .9; correct 1 1 0 1 0.
    # Bin 1: |2/3 - .6| = .0667; bin 2: |1/2 - .9| = .4. ECE = (3 * .0667 + 2 * .4) / 5 = .2.
    m6, m9 = math.log(0.6 / 0.4), LOG9
    margins = [m6, m6, -m6, m9, -m9]
    assert expected_calibration_error(margins, bins=2, bin_by="equal_width") == pytest.approx(0.2)
    table = reliability(margins, bins=2, bin_by="equal_width")
    np.testing.assert_allclose(table.confidence, [0.6, 0.9])
    np.testing.assert_allclose(table.accuracy, [2 / 3, 0.5])
    assert table.pairs.tolist() == [3, 2]
    assert ((table.low < table.accuracy) & (table.accuracy < table.high)).all()


def test_empty_bins_are_left_out_and_the_top_confidence_is_in_the_last():
    table = reliability([0.0, 50.0], bins=10, bin_by="equal_width")  # sigmoid(50) rounds to 1
    assert table.pairs.tolist() == [1, 1]
    np.testing.assert_allclose(table.confidence, [0.5, 1.0])
    np.testing.assert_allclose(table.accuracy, [0.5, 1.0])


def test_equal_mass_bins_hold_equal_numbers_and_keep_ties_together():
    rng = np.random.default_rng(0)
    assert reliability(rng.normal(size=1_000), bins=10).pairs.tolist() == [100] * 10
    tied = reliability([1.0] * 50 + [2.0] * 50, bins=10)
    assert tied.pairs.tolist() == [50, 50]
    # Hence the order of the rows does not matter.
    margins = np.round(rng.normal(size=500), 1)
    assert expected_calibration_error(margins) == pytest.approx(
        expected_calibration_error(rng.permutation(margins)), abs=1e-12
    )


def test_nothing_depends_on_which_response_stands_first():
    rng = np.random.default_rng(0)
    margins, labels = rng.normal(size=300), rng.random(300)
    assert log_loss(margins, labels=labels) == pytest.approx(log_loss(-margins, labels=1 - labels))
    assert brier(margins, labels=labels) == pytest.approx(brier(-margins, labels=1 - labels))
    one, other = reliability(margins, labels=labels), reliability(-margins, labels=1 - labels)
    for left, right in zip(one, other, strict=True):
        np.testing.assert_allclose(left, right)


@pytest.fixture(scope="module")
def honest() -> np.ndarray:
    """Margins, chosen minus rejected, of a model that is exactly right about itself."""
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 1.5, 20_000)
    return np.where(rng.random(20_000) < expit(margins), margins, -margins)


def test_an_honest_model_is_calibrated_and_an_exaggerating_one_is_not(honest):
    # 2,000 pairs a bin: luck gives an honest model about .4 / sqrt(2,000) = .009.
    assert expected_calibration_error(honest) < 0.02
    assert expected_calibration_error(honest, bin_by="equal_width") < 0.02
    table = reliability(3 * honest)
    assert (table.accuracy < table.confidence).all()  # over-confident in every bin
    assert expected_calibration_error(3 * honest) > 0.1
    assert (reliability(honest / 3).accuracy > reliability(honest / 3).confidence).all()
    # Accuracy sees none of it; the proper scores do, on both sides.
    for scaled in (3 * honest, honest / 3):
        assert correctness(scaled).mean() == correctness(honest).mean()
        assert log_loss(scaled) > log_loss(honest)
        assert brier(scaled) > brier(honest)


def test_soft_labels_are_the_expectation_of_hard_ones(honest):
    rng = np.random.default_rng(1)
    margins = rng.normal(0, 1.5, 20_000)
    soft = expit(margins)
    hard = (rng.random(20_000) < soft).astype(float)
    assert expected_calibration_error(margins, labels=soft) < 1e-3  # bins blur, luck is gone
    for measure in (log_loss, brier):
        assert measure(margins, labels=soft) == pytest.approx(
            measure(margins, labels=hard), abs=0.02
        )


def test_the_report_by_hand():
    # Margins 1, -2, 0, 3; picks right 1, 0, 1/2, 1: accuracy 2.5 / 4.
    report = evaluate_pairs(
        [2.0, 0.0, 1.0, 4.0],
        [1.0, 2.0, 1.0, 1.0],
        margin_thresholds=(0.0, 1.0, 2.5, 9.0),
        score_quantiles=(0.0, 0.5),
        histogram_bins=4,
    )
    assert report.pairs == 4
    assert report.accuracy.estimate == 0.625
    assert 0 < report.accuracy.low < 0.625 < report.accuracy.high < 1
    # |margin| >= 1: 1, 0, 1. >= 2.5: 1. >= 9: none.
    assert [t[1:] for t in report.by_margin] == [(0.625, 4), (2 / 3, 3), (1.0, 1), (None, 0)]
    # Scores 0 1 1 1 1 2 2 4, median 1; the lower of the two is 1 0 1 1: three pairs, 2.5 right.
    assert report.by_score == [(0.0, 0.625, 4), (1.0, 2.5 / 3, 3)]
    # Edges -2 -.75 .5 1.75 3.
    assert report.margins.counts.tolist() == [1, 1, 1, 1]
    assert report.margins.edges.tolist() == [-2.0, -0.75, 0.5, 1.75, 3.0]
    assert report.log_loss == pytest.approx(log_loss([1, -2, 0, 3]))
    assert set(report.scalars()) == {
        "pairs",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "log_loss",
        "brier",
        "ece",
    }
    assert all(type(value) is float for value in report.scalars().values())


def test_clusters_widen_the_interval():
    rng = np.random.default_rng(0)
    scores, clusters = np.repeat(rng.normal(0.5, 1, 50), 8), np.repeat(np.arange(50), 8)
    alone = evaluate_pairs(scores, np.zeros(400)).accuracy
    together = evaluate_pairs(scores, np.zeros(400), clusters=clusters).accuracy
    assert alone.estimate == pytest.approx(together.estimate)
    assert together.high - together.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("chosen", "rejected", "labels", "message"),
    [
        ([], [], None, "chosen_scores must be a list of at least one number"),
        ([1.0, 2.0], [1.0], None, "2 chosen scores but 1 rejected scores"),
        ([1.0], [math.inf], None, "rejected_scores: 1 of 1 numbers are not finite"),
        ([1.0], [0.0], [1.5], "must lie in"),
        ([1.0], [0.0], [1.0, 1.0], "1 pairs but 2 labels"),
    ],
)
def test_bad_input_is_refused(chosen, rejected, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate_pairs(chosen, rejected, labels=labels)
