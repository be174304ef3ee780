"""A liking for a place is found without any right answer, and taken out."""

import numpy as np
import pytest

from jaxrlhf.constitutional.calibration import calibrated, offset
from jaxrlhf.constitutional.judge import entropy, probabilities


def row(number: int, *log_odds: float, discarded: str | None = None) -> dict:
    """Asked with a first, then with b first; log-odds are of what stands first."""
    asked = zip(("ab", "ba"), log_odds, strict=False)
    said = [{"order": order, "log_probs": [x - 3.0, -3.0], "question": "q"} for order, x in asked]
    if discarded:
        said[0]["log_probs"] = None
    return {
        "row": number,
        "judgements": said,
        "probability": None,
        "entropy": None,
        "discarded": discarded,
    }


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


GAPS = np.array([2.0, -1.0, 0.0, 0.25, -4.0])


@pytest.mark.parametrize("liking", [0.0, 0.7, -3.0])
def test_both_orders_show_the_liking_to_the_nat(liking):
    """First with a, then with b in front: liking + gap, liking - gap. Their mean is the liking's.

    sigmoid(gap) + sigmoid(-gap) = 1, so the mean over orders is 1/2 when liking is taken away.
    """
    rows = calibrated([row(i, liking + gap, liking - gap) for i, gap in enumerate(GAPS)])
    assert [one["offset"] for one in rows] == pytest.approx([liking] * 5, abs=1e-9)
    for one, gap in zip(rows, GAPS, strict=True):
        found = probabilities(one)
        assert (found["ab"][0], found["ba"][0]) == pytest.approx((sigmoid(gap), sigmoid(gap)))
        assert one["probability"] == pytest.approx(sigmoid(gap))
        assert one["entropy"] == pytest.approx(entropy(sigmoid(gap)))
        assert one["judgements"][0]["log_probs"] == [liking + gap - 3, -3.0], "as they were read"


def test_of_one_order_likewise():
    # sigmoid(3 - 1) + sigmoid(-1 - 1) = 1.
    rows = calibrated([row(0, 3.0), row(1, -1.0)])
    assert [one["probability"] for one in rows] == pytest.approx([sigmoid(2), sigmoid(-2)])


def test_discarded_rows_stay_and_do_not_count():
    lost = row(1, 9.0, 9.0, discarded="no option could be read")
    rows = calibrated([row(0, 1.0, 1.0), lost])
    assert rows[1] == lost and rows[0]["offset"] == pytest.approx(1.0)
    assert calibrated([lost]) == [lost]


def test_certain_answers_are_left_alone():
    rows = calibrated([row(0, 800.0, -800.0), row(1, -800.0, 800.0)])
    assert [one["offset"] for one in rows] == [0.0, 0.0]
    assert [one["probability"] for one in rows] == [1.0, 0.0]
    # Two of three say the first place, for certain: between them there is only one root.
    assert offset(np.array([800.0, 800.0, -800.0])) == pytest.approx(800.0, abs=2)
