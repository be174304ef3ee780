"""One row a method: known counts, what has no calibration, and the table as text."""

import math

import pytest

from jaxrlhf.evals import baselines

# Four pairs. "good" is right on all, at margins of log 3 (so it says .75); "even" on the first two;
# "rule" on the first three, with one tie among them, which counts half.
GOOD = ([math.log(3)] * 4, [0.0] * 4)
EVEN = ([1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0])
RULE = ([-1.0, -2.0, -3.0, -9.0], [-2.0, -3.0, -3.0, -4.0])


def found(**options):
    methods = {"good": GOOD, "even": EVEN, "rule": RULE}
    return baselines.compare(methods, reference="even", log_odds=("good", "even"), **options)


def test_each_method_is_measured_on_every_pair():
    good, even, rule = found()
    assert [row.method for row in (good, even, rule)] == ["good", "even", "rule"]
    assert [row.pairs for row in (good, even, rule)] == [4, 4, 4]
    assert [row.accuracy.estimate for row in (good, even, rule)] == [1.0, 0.5, 0.625]
    # Right with probability .75 each time: log-loss -log .75, and .25 too unsure.
    assert good.log_loss == pytest.approx(-math.log(0.75))
    assert good.ece == pytest.approx(0.25)


def test_differences_are_paired_and_the_reference_has_none():
    good, even, rule = found()
    assert even.difference is None
    assert (good.difference.estimate, rule.difference.estimate) == (0.5, 0.125)
    # "good" is never behind "even" on any pair, so no resample is either.
    assert good.difference.low >= 0


def test_a_rule_has_no_calibration():
    rule = found()[2]
    assert (rule.log_loss, rule.ece) == (None, None)


def test_the_table():
    lines = baselines.markdown(found(), reference="even").splitlines()
    assert lines[0].split(" | ")[3] == "minus even [95 %]"
    assert lines[2].startswith("| good | 4 | 1.000 [0.510, 1.000] | 0.500 [0.000, 1.000] | 0.288 |")
    assert lines[3].startswith("| even | 4 | 0.500 [0.150, 0.850] |  | ")
    assert lines[4].endswith("|  |  |")
    assert len(lines) == 5 and {line.count("|") for line in lines} == {7}


def test_columns_that_do_not_fit():
    with pytest.raises(ValueError, match="2 chosen scores but 1 rejected"):
        baselines.compare({"a": ([1, 2], [1])}, reference="a", log_odds=())
    with pytest.raises(ValueError, match="differ in number"):
        baselines.compare({"a": ([1, 2], [0, 0]), "b": EVEN}, reference="b", log_odds=())
    with pytest.raises(KeyError):
        baselines.compare({"a": EVEN}, reference="b", log_odds=())
