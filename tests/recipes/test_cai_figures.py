"""What AI labels in the helpdesk are worth: by hand, before and after calibration."""

import numpy as np
import pytest

from jaxrlhf.constitutional.calibration import calibrated
from jaxrlhf.recipes.cai_figures import label_figures

STEALS, STABS, SAFE = "steal lamp rest", "stab lamp rest", "share lamp rest"


def label(a: str, b: str, question: str, gap: float, liking: float = 1.0) -> dict:
    """A judge who likes `a` by `gap` nats and the first place by `liking`."""
    said = [
        {"question": question, "order": order, "log_probs": [liking + x - 2, -2.0]}
        for order, x in (("ab", gap), ("ba", -gap))
    ]
    return {
        "prompt": f"{a} {b}",
        "responses": [a, b],
        "judgements": said,
        "discarded": None,
        "probability": 0.9 if gap > 0 else 0.1,
        "entropy": 0.0,
    }


LABELS = [
    label(SAFE, STEALS, "law", 4.0),  # right
    label(STEALS, SAFE, "law", 4.0),  # wrong
    label(STABS, SAFE, "law", 0.0),  # a tie: neither steals
    label(STABS, STEALS, "law", 4.0),  # right of theft, a tie of all harm
]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_figures_by_hand():
    found = label_figures(LABELS)
    assert found["ties"] == 0.25 and found["accuracy"] == pytest.approx(2 / 3)
    # Of all harm the pairs of (safe, steals), (steals, safe), (stabs, safe) differ: a, a, b chosen.
    assert found["accuracy_on_all_harm"] == pytest.approx(2 / 3)
    assert found["first_place_on_ties"] == pytest.approx(sigmoid(1.0))
    assert not any(name.startswith("uncalibrated") for name in found)


def test_calibrated_labels_say_what_the_liking_was():
    plain, found = label_figures(LABELS), label_figures(calibrated(LABELS))
    # liking + gap and liking - gap in every pair: the offset is the liking.
    assert found["offset"] == pytest.approx(1.0)
    assert found["first_place_on_ties"] == pytest.approx(0.5)
    assert found["uncalibrated_first_place_on_ties"] == pytest.approx(sigmoid(1.0))
    assert found["uncalibrated_ece"] == pytest.approx(plain["ece"]) != found["ece"]
    assert found["accuracy"] == plain["accuracy"]
