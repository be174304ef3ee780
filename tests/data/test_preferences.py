"""Pairs from scored samples, and files that are written whole and read back the same."""

import gzip
import os

import pytest

from jaxrlhf.data import formats, preferences
from jaxrlhf.data.formats import Preference
from jaxrlhf.data.preferences import Samples
from jaxrlhf.data.rows import Rows
from jaxrlhf.data.sources import load_rows
from jaxrlhf.errors import DataError

SAMPLES = Samples("p", [" a", " b", " c"], [1.0, 3.0, 1.0])


def test_pairs_from_scores():
    assert preferences.best_and_worst(SAMPLES) == [Preference("p", " b", " a")]
    # a and c tie, so two of the three pairs are left.
    assert preferences.all_pairs(SAMPLES) == [
        Preference("p", " b", " a"),
        Preference("p", " b", " c"),
    ]
    level = Samples("p", [" a", " b"], [1.0, 1.0])
    assert preferences.best_and_worst(level) == preferences.all_pairs(level) == []
    with pytest.raises(DataError, match="a pair needs two scored answers"):
        preferences.best_and_worst(Samples("p", [" a", " b"]))


def test_bad_scores():
    with pytest.raises(DataError, match="2 scores for 1 responses"):
        Samples("p", ["a"], [1.0, 2.0])
    with pytest.raises(DataError, match="scores must be finite"):
        Samples("p", ["a"], [float("nan")])


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_preferences_round_trip(tmp_path, name):
    user, good = {"role": "user", "content": "ü?\n"}, {"role": "assistant", "content": "\u2028 yes"}
    pairs = [
        Preference("p ", " a", " b", label=0.25, margin=0.1),
        Preference([user], [good], [{**good, "content": "no"}]),
    ]
    assert preferences.write_rows(tmp_path / name, map(preferences.to_record, pairs)) == 2
    assert formats.preferences(load_rows(tmp_path / name)).items == pairs


def test_samples_round_trip(tmp_path):
    items = [Samples("p", [" a", " b"], [0.5, -1.0], {"round": 3}), Samples("q", [" c"])]
    preferences.write_rows(tmp_path / "s.jsonl", map(preferences.to_record, items))
    assert preferences.read_samples(load_rows(tmp_path / "s.jsonl")).items == items


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "responses": "a"}, "f row 1: wrong type: 'responses' must be a list"),
        ({"prompt": "p", "responses": [7]}, "f row 1: wrong type: column 'responses' must be text"),
        (
            {"prompt": "p", "responses": ["a"], "scores": ["x"]},
            "'scores' must be a list of numbers",
        ),
        ({"prompt": "p", "responses": ["a"], "scores": [1, 2]}, "2 scores for 1 responses"),
        ({"prompt": "p"}, "f: no column 'responses'; it has prompt"),
    ],
)
def test_bad_sample_rows(row, message):
    with pytest.raises(DataError, match=message):
        preferences.read_samples(Rows([row], name="f"))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "p.jsonl"
    preferences.write_rows(path, [{"a": 1}])

    def records():
        yield {"a": 2}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preferences.write_rows(path, records())
    with pytest.raises(DataError, match="row 2 cannot be written: Out of range float"):
        preferences.write_rows(path, [{"a": 2}, {"a": float("nan")}])
    assert path.read_text() == '{"a": 1}\n' and os.listdir(tmp_path) == ["p.jsonl"]
    with pytest.raises(DataError, match="there is no folder"):
        preferences.write_rows(tmp_path / "no" / "p.jsonl", [])


def test_equal_rows_make_equal_files(tmp_path):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        preferences.write_rows(tmp_path / name, [{"a": "ü"}])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert (tmp_path / "a.jsonl.gz").read_bytes()[4:8] == bytes(4)  # no time stamp
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).decode() == '{"a": "ü"}\n'
