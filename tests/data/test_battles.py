"""Battles from files: the shapes they come in, how outcomes are said, and mistakes."""

import pytest

from jaxrlhf.data.battles import Battle, battles
from jaxrlhf.data.rows import Rows
from jaxrlhf.errors import DataError


def rows(*found: dict) -> Rows:
    return Rows(list(found), name="b.csv", places=[f"b.csv:{i + 2}" for i in range(len(found))])


@pytest.mark.parametrize(
    "row",
    [
        {"model_a": "one", "model_b": "two", "winner": "model_a"},
        {"model_a": "one", "model_b": "two", "verdict": 2},
        {"left": "one", "right": "two", "winner": "left"},
        {"generator_1": "one", "generator_2": "two", "preference": 1.0},
        {"model_a": " one ", "model_b": "two", "winner": "One"},  # the name of the winner
    ],
)
def test_the_shapes_they_come_in(row):
    assert list(battles(rows(row))) == [Battle("one", "two", 1.0)]


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        *(("tie", 0.5), ("tie (bothbad)", 0.5), ("TIE", 0.5), (0, 0.5), (1.5, 0.5)),
        *(("b", 0.0), (2, 0.0), ("two", 0.0), ("second", 0.0), ("a", 1.0), ("1.0", 1.0)),
    ],
)
def test_how_outcomes_are_said(said, outcome):
    (found,) = battles(rows({"model_a": "one", "model_b": "two", "winner": said}))
    assert found.outcome == outcome


@pytest.mark.parametrize(("strength", "outcome"), [(4, 1.0), (-1, 0.0), ("-3", 0.0), (0, 0.5)])
def test_a_signed_strength(strength, outcome):
    (found,) = battles(rows({"model_a": "one", "model_b": "two", "verdict": strength}))
    assert found.outcome == outcome


def test_other_names_and_outcomes():
    row = {"x": "one", "y": 2, "who": "draw?"}
    names = {"model_a": "x", "model_b": "y", "winner": "who"}
    (found,) = battles(rows(row), columns=names, outcomes={"Draw?": 0.5})
    assert found == Battle("one", "2", 0.5)


GOOD = {"model_a": "one", "model_b": "two", "winner": "a"}


@pytest.mark.parametrize(
    ("row", "options", "says"),
    [
        (GOOD | {"winner": "modela"}, {}, r"b.csv:2: .*'modela'; did you mean 'model_a'"),
        (GOOD | {"model_b": "one"}, {}, r"b.csv:2: a player against itself: 'one'"),
        (GOOD | {"model_b": ""}, {}, r"b.csv:2: "),
        ({"model_a": "one", "winner": "a"}, {}, r"b.csv: battles need the columns"),
        (GOOD, {"columns": {"winer": "winner"}}, "battles have no column 'winer'"),
        (GOOD, {"columns": {"winner": "winer"}}, "no column 'winer'; did you mean 'winner'"),
        (GOOD, {"outcomes": {"win": 0.7}}, "outcomes: 'win' is 0.7"),
    ],
)
def test_mistakes_name_the_place(row, options, says):
    with pytest.raises(DataError, match=says):
        battles(rows(row), **options)


def test_bad_rows_may_be_left_out():
    found = battles(rows(GOOD | {"winner": "?"}, GOOD), on_bad_row="skip")
    assert len(found) == 1 and found.skipped.counts == {"unknown outcome": 1}
