"""The bag-of-words baseline: known answers on made-up pairs, and what it may not do."""

import builtins

import numpy as np
import pytest

from jaxrlhf.errors import UserError
from jaxrlhf.evals import calibration, tfidf

pytest.importorskip("sklearn")

GOOD = ["a kind word", "kind advice", "the kind way", "kind people do", "be kind today"]
BAD = ["a rude word", "rude advice", "the rude way", "rude people do", "be rude today"]


def test_it_finds_the_words_that_decide():
    fitted = tfidf.fit_bag_of_words(GOOD, BAD)
    best, worst = fitted.words(1)
    assert (best, worst) == (["kind"], ["rude"])
    good, bad = fitted.scores(["kind words"]), fitted.scores(["rude words"])
    # Every pair has its mirror image, so the two weights are opposite; "words" is unknown.
    np.testing.assert_allclose(good, -bad)
    assert good[0] > 0
    # Words that both sides share in equal measure decide nothing.
    np.testing.assert_allclose(fitted.scores(["nothing known", ""]), 0.0)


def test_the_loss_is_bradley_terry_on_one_word():
    """One word a side, n pairs "x" before "y".

    The features are unit vectors, so x_chosen - x_rejected = (1, -1) in every pair and w = (v, -v).
    The objective v^2 + C n log(1 + exp(-2 v)) has its minimum where v = C n sigmoid(-2 v); for
    C n = 4: v = .8556 (v = 4 / (1 + exp(2 v)), found by bisection below).
    """
    low, high = 0.0, 4.0
    for _ in range(60):
        v = (low + high) / 2
        low, high = (v, high) if v < 4 / (1 + np.exp(2 * v)) else (low, v)
    fitted = tfidf.fit_bag_of_words(["xx"] * 8, ["yy"] * 8, inverse_penalty=0.5)
    np.testing.assert_allclose(fitted.scores(["xx", "yy"]), [v, -v], rtol=1e-3)


def test_turning_pairs_round_for_the_library_changes_nothing():
    # Every second pair is turned round inside; a rotation of the rows turns other pairs round.
    fitted = tfidf.fit_bag_of_words(GOOD, BAD)
    rotated = tfidf.fit_bag_of_words(GOOD[1:] + GOOD[:1], BAD[1:] + BAD[:1])
    np.testing.assert_allclose(fitted.scores(GOOD), rotated.scores(GOOD), atol=1e-3)
    # The other way round, what was good is bad.
    mirrored = tfidf.fit_bag_of_words(BAD, GOOD)
    np.testing.assert_allclose(fitted.scores(GOOD), -mirrored.scores(GOOD), atol=1e-3)


def test_scores_are_log_odds_for_the_reward_models_report():
    rng = np.random.default_rng(0)
    words = np.array(["kind", "calm", "rude", "loud", "blue", "tall"])
    value = dict(zip(words, [1.5, 1.0, -1.5, -1.0, 0.0, 0.0], strict=True))
    sides = rng.choice(words, (2, 1500, 3))
    gold = np.vectorize(value.get)(sides).sum(axis=2)
    first = rng.random(1500) < 1 / (1 + np.exp(gold[1] - gold[0]))
    texts = [[" ".join(words) for words in side] for side in sides]
    chosen = [a if f else b for a, b, f in zip(*texts, first, strict=True)]
    rejected = [b if f else a for a, b, f in zip(*texts, first, strict=True)]
    fitted = tfidf.fit_bag_of_words(chosen[:1000], rejected[:1000])
    found = calibration.evaluate_pairs(fitted.scores(chosen[1000:]), fitted.scores(rejected[1000:]))
    # The best possible accuracy is the mean of sigmoid(|gold difference|); the bag of words knows
    # all there is to know, up to the noise of 500 pairs (standard error about .018).
    best = np.mean(1 / (1 + np.exp(-np.abs(gold[0] - gold[1])[1000:])))
    assert found.accuracy.estimate > best - 0.06
    assert found.ece < 0.1


def test_shorter_is_better_counts_characters():
    assert tfidf.shortness(["", "ab", "a b c"]).tolist() == [0, -2, -5]


@pytest.mark.parametrize(("chosen", "rejected"), [(["a"], ["b"]), ([], []), (["a", "b"], ["c"])])
def test_what_is_no_set_of_pairs(chosen, rejected):
    with pytest.raises(ValueError, match="need pairs"):
        tfidf.fit_bag_of_words(chosen, rejected)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install"):
        tfidf.fit_bag_of_words(GOOD, BAD)
