"""Verdicts and comparisons from files: the shapes they come in, and mistakes."""

import pytest

from jaxrlhf.data.judgements import Comparison, comparisons, judgements
from jaxrlhf.data.rows import Rows
from jaxrlhf.errors import DataError

LONG = [
    {"pair_id": 7, "annotator": "ann", "verdict": 3, "prompt": "p", "a": "x", "b": "y"},
    {"pair_id": 7, "annotator": "bob", "verdict": -1, "prompt": "p", "a": "x", "b": "y"},
    {"pair_id": "8", "annotator": "ann", "verdict": "tie", "shown_first": "b"},
]


def rows(*found: dict) -> Rows:
    return Rows(list(found), name="v.jsonl", places=[f"v.jsonl:{i + 1}" for i in range(len(found))])


def test_a_row_a_verdict():
    found = judgements(rows(*LONG))
    assert [(x.item, x.annotator, x.outcome) for x in found] == [
        ("7", "ann", 1.0),
        ("7", "bob", 0.0),
        ("8", "ann", 0.5),
    ]
    assert found[0].columns == {"prompt": "p", "a": "x", "b": "y"}
    assert found[2].columns == {"shown_first": "b"}


def test_a_column_an_annotator_and_empty_cells_say_nothing():
    wide = rows({"one": 1, "two": 2, "a": "x"}, {"one": "", "two": 0, "a": "y"})
    found = judgements(wide, wide=["one", "two"])
    assert [(x.item, x.annotator, x.outcome) for x in found] == [
        ("1", "one", 1.0),
        ("1", "two", 0.0),
        ("2", "two", 0.5),
    ]
    assert [x.columns["a"] for x in found] == ["x", "x", "y"]


def test_other_names_and_outcomes():
    theirs = rows({"id": 1, "who": "ann", "said": "better", "left": "x"})
    names = {"item": "id", "annotator": "who", "label": "said", "a": "left"}
    (found,) = judgements(theirs, columns=names, outcomes={"better": 1})
    assert (found.item, found.outcome, found.columns) == ("1", 1.0, {"a": "x"})


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({"verdict": "perhaps"}, {}, r"v.jsonl:1: unknown outcome: column 'verdict': 'perhaps'"),
        ({"annotator": ""}, {}, r"v.jsonl:1: "),
        ({}, {"columns": {"item": "pair"}}, r"no column 'pair'; did you mean 'pair_id'"),
        ({}, {"columns": {"who": "x"}}, "verdicts have no column 'who'"),
        ({}, {"outcomes": {"better": 2}}, "outcomes: 'better' is 2"),
        ({"annotator": "bob"}, {}, r"v.jsonl:2: 'bob' judged '7' before, at v.jsonl:1"),
    ],
)
def test_mistakes_name_the_place(change, options, says):
    with pytest.raises(DataError, match=says):
        judgements(rows(LONG[0] | change, *LONG[1:]), **options)


def test_bad_verdicts_may_be_left_out():
    found = judgements(rows(LONG[0] | {"verdict": 0.3}, *LONG[1:]), on_bad_row="skip")
    assert len(found) == 2 and found.skipped.counts == {"unknown outcome": 1}


# Comparisons.


def test_a_verdict_or_a_winner_or_a_pair():
    said = {"prompt": "p", "a": "x", "b": "y"}
    assert list(comparisons(rows(said | {"verdict": -4}))) == [Comparison("p", "x", "y", 0.0)]
    assert list(comparisons(rows(said | {"winner": "tie"}))) == [Comparison("p", "x", "y", 0.5)]
    pair = {"prompt": "p", "chosen": "x", "rejected": "y"}
    assert list(comparisons(rows(pair))) == [Comparison("p", "x", "y", 1.0)]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "p", "a": "x", "b": "x", "verdict": 1}, "v.jsonl:1: equal answers"),
        ({"prompt": "p", "a": "x", "verdict": 1}, "no column 'b'"),
        ({"prompt": "p", "a": "x", "b": 3, "verdict": 1}, "v.jsonl:1: "),
    ],
)
def test_comparisons_that_are_none(row, says):
    with pytest.raises(DataError, match=says):
        comparisons(rows(row))
