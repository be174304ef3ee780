"""A judge against the truth: numbers by hand, and the same from plain numpy."""

import numpy as np
import pytest

from jaxrlhf.evals.agreement import agreement
from jaxrlhf.evals.statistics import wilson

# Four pairs and a tie. Averages .75, .35, .5, .8 and .55 for the tie.
AB = [0.9, 0.6, 0.6, 0.8, 0.7]
BA = [0.6, 0.1, 0.4, 0.8, 0.4]
BETTER = [1, 0, 1, 0, 0.5]


def test_by_hand():
    found = agreement(AB, BA, BETTER)
    # Right, right, undecided (half), wrong: 2.5 of 4.
    assert found.pairs == 5 and found.accuracy == wilson(2.5, 4)
    # a first: .9 right, .6 wrong, .6 right, .8 wrong; b first: .6 right, .1 right, .4 and .8 wrong.
    assert found.one_order == pytest.approx((2 + 2) / 8)
    # P(first place): AB, and 1 - BA = .4 .9 .6 .2 .6.
    assert found.first_place == pytest.approx((3.6 + 2.7) / 10)
    assert found.first_place_on_ties == pytest.approx((0.7 + 0.6) / 2)
    # Both orders chose the first place: pair 2 (.6, .9), pair 3 (.6, .6) and the tie (.7, .6).
    assert found.same_place == pytest.approx(3 / 5)


def test_against_plain_numpy():
    rng = np.random.default_rng(0)
    ab, ba = rng.uniform(size=(2, 500))
    better = rng.choice([0, 0.5, 1], 500)
    found = agreement(ab, ba, better)
    p, known = (ab + ba) / 2, better != 0.5
    right = (p > 0.5) == (better == 1)
    assert found.accuracy is not None and found.accuracy.estimate == right[known].mean()
    sure = np.maximum(p, 1 - p)[known]
    order = np.argsort(sure, kind="stable")
    bins = np.searchsorted(np.quantile(sure, np.linspace(0, 1, 11)[1:-1]), sure, side="right")
    gaps = [
        (bins == b).mean() * abs(right[known][bins == b].mean() - sure[bins == b].mean())
        for b in range(10)
    ]
    assert len(order) == known.sum()
    assert found.ece == pytest.approx(sum(gaps), abs=1e-9)


def test_a_judge_of_places():
    """.8 for whatever stands first: half right, undecided on average, always the same place."""
    found = agreement([0.8] * 6, [0.2] * 6, [1, 0, 1, 0, 1, 0.5])
    assert found.accuracy is not None and found.accuracy.estimate == 0.5
    assert (found.first_place, found.first_place_on_ties) == pytest.approx((0.8, 0.8))
    assert found.same_place == 1.0
    fair = agreement([0.8, 0.3], [0.8, 0.3], [1, 0])
    assert fair.first_place == pytest.approx(0.5) and fair.same_place == 0.0


def test_one_order_alone():
    nan = np.nan
    found = agreement([0.9, nan, 0.2], [nan, 0.7, nan], [1, 1, 1])
    assert found.accuracy == wilson(2, 3) and found.one_order == pytest.approx(2 / 3)
    assert found.same_place is None
    # 1 - .7 for the pair whose b stood first.
    assert found.first_place == pytest.approx((0.9 + 0.3 + 0.2) / 3)


def test_ties_alone_say_nothing_about_accuracy():
    found = agreement([0.6], [0.5], [0.5])
    assert (found.accuracy, found.one_order, found.ece) == (None, None, None)
    assert found.scalars() == pytest.approx(
        {"pairs": 1.0, "first_place": 0.55, "first_place_on_ties": 0.55, "same_place": 0.0}
    )


def test_repeated_prompts_widen_the_interval():
    """40 pairs of 4 prompts, all of a prompt right or wrong together."""
    right = np.repeat([1, 0, 1, 1], 10)
    single = agreement([0.9] * 40, [0.9] * 40, right)
    clustered = agreement([0.9] * 40, [0.9] * 40, right, clusters=np.repeat(range(4), 10))
    assert single.accuracy is not None and clustered.accuracy is not None
    assert single.accuracy.estimate == clustered.accuracy.estimate == 0.75
    wide, narrow = (x.accuracy.high - x.accuracy.low for x in (clustered, single))
    assert wide > 1.5 * narrow


def test_certainty_is_no_infinity():
    found = agreement([1.0, 0.0], [1.0, 0.0], [1, 0])
    assert found.ece == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("ab", "ba", "better"),
    [
        ([], [], []),
        ([0.5], [0.5], [1, 0]),
        ([np.nan], [np.nan], [1]),
        ([1.2], [0.5], [1]),
        ([0.5], [0.5], [0.7]),
    ],
)
def test_what_is_no_judgement_is_refused(ab, ba, better):
    with pytest.raises(ValueError):
        agreement(ab, ba, better)
