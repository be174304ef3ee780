"""The independent judge, on made-up reviews whose sentiment is in one word."""

import sys

import pytest

from jaxrlhf.errors import UserError
from jaxrlhf.evals.sentiment import fit_judge

pytest.importorskip("sklearn")

GOOD, BAD = ("superb", "moving", "clever"), ("dreadful", "boring", "clumsy")
THINGS = ("plot", "film", "cast", "score", "script")
TEXTS = [f"a {word} {thing} ." for word in GOOD + BAD for thing in THINGS]
LABELS = [int(word in GOOD) for word in GOOD + BAD for _ in THINGS]


@pytest.fixture(scope="module")
def judge():
    return fit_judge(TEXTS, LABELS)


def test_it_tells_good_from_bad_in_texts_it_has_not_seen(judge):
    good, bad, unknown = judge.positive(["superb and clever", "boring , clumsy", "zyzzyva"])
    # As many good as bad sentences, alike but for one word: a text without such a word is at 1/2.
    assert good > 0.9 and bad < 0.1 and unknown == pytest.approx(0.5, abs=0.02)
    assert judge.accuracy(["superb", "dreadful", "moving"], [1, 0, 0]) == pytest.approx(2 / 3)


def test_the_headline_is_the_response_without_its_opening(judge):
    (row,) = judge(["a superb and"], [" boring clumsy dreadful film"])
    assert row["gold"] == pytest.approx(judge.positive([" boring clumsy dreadful film"])[0])
    assert row["positive"] == 0.0
    whole = judge.positive(["a superb and boring clumsy dreadful film"])[0]
    assert row["gold_whole"] == pytest.approx(whole) and whole > row["gold"]
    (row,) = judge(["boring clumsy dreadful plot"], [" superb"])
    assert row["positive"] == 1.0 and row["positive_whole"] == 0.0


def test_an_empty_response_is_no_reason_to_praise(judge):
    (row,) = judge(["a superb film"], [""])
    assert row["gold"] == pytest.approx(0.5, abs=0.02)


def test_word_pairs_count_as_well_as_words():
    # "not" reverses, so no single word decides: only a judge that reads pairs separates these.
    texts = ["not good", "bad", "good", "not bad"] * 5
    judge = fit_judge(texts, [0, 0, 1, 1] * 5, inverse_penalty=1000.0)
    assert judge.accuracy(texts, [0, 0, 1, 1] * 5) == 1.0


def test_prompts_and_responses_must_pair_up(judge):
    with pytest.raises(ValueError):
        judge(["a", "b"], ["c"])


def test_labels_of_one_kind_are_refused():
    with pytest.raises(UserError, match=r"labels 0 and 1, and got \[1\]"):
        fit_judge(["a", "b"], [1, 1])


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)  # importing it now fails
    with pytest.raises(UserError, match=r"pip install jaxrlhf\[judges\]"):
        fit_judge(TEXTS, LABELS)
