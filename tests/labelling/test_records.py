"""What a pair and a verdict are, and their rows."""

import pytest
from labels import pair, pairs, verdict

from jaxrlhf.data.columns import Row
from jaxrlhf.data.rows import BadRow
from jaxrlhf.labelling import records
from jaxrlhf.labelling.records import Pair, Verdict


def test_a_row_has_the_documented_columns_and_reads_back():
    one = pair(0, model_a="m1", round=2)
    said = Verdict(one.pair_id, "ann", -3, 2, True, "why", "b", 4.5, "2026-01-01T00:00:00+00:00")
    row = records.to_row(one, said)
    columns = "pair_id prompt a b model_a model_b round annotator verdict confidence flag comment"
    assert list(row) == f"{columns} shown_first seconds time".split()
    assert records.to_pair(Row(row, {})) == one
    assert records.to_verdict(row, one, annotator="nobody") == said


def test_the_documented_columns_are_those_of_the_docstring():
    import jaxrlhf.labelling

    table = [line for line in jaxrlhf.labelling.__doc__.splitlines() if line.startswith("| `")]
    named = [name.strip("` ") for line in table for name in line.split("|")[1].split(",")]
    assert named == list(records.to_row(pair(0), verdict(0)))


def test_the_sign_turns_with_the_pair():
    one, said = pair(0, model_a="m1", model_b="m2"), verdict(0, choice=3, shown_first="a")
    turned = one.swapped()
    assert (turned.a, turned.b, turned.model_a, turned.model_b) == (one.b, one.a, "m2", "m1")
    assert (said.swapped().verdict, said.swapped().shown_first) == (-3, "b")
    assert turned.swapped() == one and said.swapped().swapped() == said
    assert verdict(0, choice="tie").swapped().verdict == "tie"
    assert verdict(0).swapped().shown_first is None


def test_an_id_does_not_depend_on_the_order_of_the_answers():
    assert records.pair_id("p", "x", "y") == records.pair_id("p", "y", "x")
    ids = {records.pair_id("p", "x", "y"), records.pair_id("p", "x", "z")}
    ids |= {records.pair_id("px", "", "y"), records.pair_id([{"role": "user"}], "x", "y")}
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"choice": 5}, "'verdict' must be one of 4, 3, 2, 1, -1"),
        ({"choice": 0}, "'verdict'"),
        ({"choice": 2.0}, "'verdict'"),
        ({"choice": True}, "'verdict'"),
        ({"choice": "draw"}, "'draw'"),
        ({"confidence": 4}, "'confidence' must be one of null, 1, 2, 3: 4"),
        ({"flag": 1}, "'flag' must be one of false, true: 1"),
        ({"shown_first": "left"}, "'shown_first'"),
        ({"comment": None}, "'comment'"),
        ({"comment": "x" * 10_001}, "at most 10000"),
        ({"seconds": -1}, "'seconds' must be 0 or more: -1"),
        ({"seconds": float("nan")}, "'seconds'"),
        ({"time": 3}, "'time' must be text: 3"),
        ({"name": "  "}, "1 to 60 visible characters"),
        ({"name": "a" * 61}, "1 to 60"),
        ({"name": "a\x00b"}, "visible"),
        ({"name": "a\u202eb"}, "visible"),
    ],
)
def test_a_verdict_that_is_none_is_refused(changes, says):
    with pytest.raises(BadRow, match=says):
        verdict(0, **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"a": "x", "b": "x"}, "equal answers: 'x'"),
        ({"a": None}, "column 'a' must be text, not null"),
        ({"pair_id": 3.5}, "'pair_id' must be text"),
        ({"pair_id": " "}, "'pair_id' must be text"),
        ({"model_a": 3}, "'model_a' must be text: 3"),
        ({"round": 1.5}, "'round' must be a whole number"),
        ({"round": -1}, "must be from 0"),
        ({"priority": "high"}, "'priority' must be a number"),
    ],
)
def test_a_pair_that_is_none_is_refused(changes, says):
    with pytest.raises(BadRow, match=says):
        records.to_pair(Row({"prompt": "p", "a": "x", "b": "y"} | changes, {}))


def test_an_id_is_made_where_there_is_none_and_numbers_become_text():
    row = {"prompt": "p", "a": "x", "b": "y"}
    assert records.to_pair(Row(row, {})).pair_id == records.pair_id("p", "x", "y")
    assert records.to_pair(Row(row | {"pair_id": 7}, {})).pair_id == "7"


def test_verdicts_of_a_pair_come_together_even_if_it_was_turned():
    one = pair(0)
    entries = [(one, verdict(0, choice=2)), (one.swapped(), verdict(0, "bob", choice=4))]
    found = records.merged([*entries, (pair(1), None)])
    assert found.pairs == pairs(2)
    # bob saw a and b exchanged: what he liked much better is our b
    assert [said.verdict for said in found.verdicts] == [2, -4]
    with pytest.raises(BadRow, match="one id, two pairs"):
        records.merged([(one, None), (Pair(one.pair_id, "p", "x", "y"), None)])
