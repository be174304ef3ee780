"""Acquisition functions: known answers, and what they agree and differ about."""

import numpy as np
import pytest
from scipy import special

from jaxrlhf.evals import acquisition


def test_disagreement_by_hand():
    # Probabilities .8 and .4: mean .6, variance .2^2. All alike: none.
    gaps = special.logit([[0.8, 0.3], [0.4, 0.3]])
    assert acquisition.disagreement(gaps) == pytest.approx([0.04, 0.0], abs=1e-12)


def test_information_by_hand():
    # Certain members that contradict each other: a label says which is right, log 2. A pair that
    # all find even: nothing to learn. Probabilities .9 and .5: H(.7) - (H(.9) + H(.5))/2.
    def entropy(p):
        return -p * np.log(p) - (1 - p) * np.log(1 - p)

    found = acquisition.information([[200.0, 0.0, special.logit(0.9)], [-200.0, 0.0, 0.0]])
    wanted = entropy(0.7) - (entropy(0.9) + entropy(0.5)) / 2
    assert found == pytest.approx([np.log(2), 0.0, wanted], abs=1e-12)


def test_far_scores_are_neither_nan_nor_negative():
    found = acquisition.information([[1e4, 1e4], [1e4, -1e4], [1e4, 0.0]])
    assert found[0] == 0 and 0 < found[1] <= np.log(2)


def test_neither_depends_on_which_answer_is_a_nor_on_the_order_of_members():
    gaps = np.random.default_rng(0).normal(0, 2, (5, 40))
    for how in (acquisition.disagreement, acquisition.information):
        assert how(-gaps) == pytest.approx(how(gaps), abs=1e-12)
        assert how(gaps[::-1]) == pytest.approx(how(gaps), abs=1e-12)


def test_they_are_about_members_that_differ_and_not_about_close_pairs():
    close, contested = np.full((4, 1), 0.01), np.array([[2.0], [-2.0], [1.0], [-1.0]])
    for how in (acquisition.disagreement, acquisition.information):
        assert how(contested)[0] > 100 * how(close)[0]


def test_random_priorities_are_a_function_of_the_seed():
    first, other = acquisition.random(50, seed=0), acquisition.random(50, seed=1)
    assert (first == acquisition.random(50, seed=0)).all() and (first != other).any()
    assert ((first >= 0) & (first < 1)).all()


def test_the_highest_come_first_and_equal_ones_as_they_stand():
    assert acquisition.highest([0.5, 0.9, 0.5, 0.1], 3).tolist() == [1, 0, 2]
    assert acquisition.highest([1.0, 2.0], 9).tolist() == [1, 0]


@pytest.mark.parametrize("gaps", [[[1.0, 2.0]], [1.0, 2.0]])
def test_one_member_disagrees_with_nobody(gaps):
    with pytest.raises(ValueError, match="at least two members"):
        acquisition.disagreement(gaps)
