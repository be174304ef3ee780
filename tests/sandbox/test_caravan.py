"""The caravan: steps, roads, log-odds by hand; splits and seeds; how well each reader does."""

import numpy as np
import pytest

from jaxrlhf.errors import ConfigError
from jaxrlhf.evals.word_counts import fit_word_counts
from jaxrlhf.sandbox import WORLDS, make_world
from jaxrlhf.sandbox.caravan import SUCCESSORS, TEXT_WORDS, THINGS, Caravan


@pytest.fixture(scope="module")
def world() -> Caravan:
    return Caravan()


def roads(rows):
    return np.array([row["label"] for row in rows])


def texts(rows):
    return [row["text"] for row in rows]


def test_it_is_a_world_by_name():
    assert make_world("caravan", settings={"stray": 0.1}) == Caravan(stray=0.1)
    assert WORLDS["caravan"] is Caravan and len(THINGS) == len(set(THINGS)) == 32


@pytest.mark.parametrize("seed", [0, 3])
def test_each_thing_follows_and_is_followed_by_three_on_each_road(seed):
    """Without strays: a permutation has one 1 in each row and column, so rows and columns sum to 1.

    Columns that sum to 1 are what makes every thing equally frequent on both roads.
    """
    table = Caravan(seed=seed, stray=0.0).probabilities
    np.testing.assert_allclose(table.sum(axis=2), 1)
    np.testing.assert_allclose(table.sum(axis=1), 1)
    assert (np.round(table * SUCCESSORS) == table * SUCCESSORS).all()
    assert not np.allclose(table[0], table[1])


def test_a_stray_comes_from_anywhere_with_the_roads_own_chances(world):
    """P(b | a) = .7/3 · #(permutations that lead a to b) + .3 · stray(b)."""
    strays = world.probabilities - Caravan(stray=0.0).probabilities * 0.7
    np.testing.assert_allclose(strays, strays[:, :1].repeat(32, axis=1), atol=1e-12)
    np.testing.assert_allclose(strays.sum(axis=2), 0.3)
    # exp(−tilt·g) and exp(tilt·g): their product is the same for all things
    product = strays[0, 0] * strays[1, 0]
    np.testing.assert_allclose(product, product[0])
    assert strays[0, 0].max() > 1.5 * strays[0, 0].min()
    flat = Caravan(tilt=0.0)
    np.testing.assert_allclose(
        (flat.probabilities - 0.7 * Caravan(stray=0.0).probabilities), 0.3 / 32
    )


def test_log_odds_by_hand(world):
    a, b, c = 0, 5, 9
    text = " ".join(THINGS[i] for i in (a, b, c))
    p = world.probabilities
    expected = np.log(p[1, a, b] * p[1, b, c] / (p[0, a, b] * p[0, b, c]))
    assert world.log_odds(text) == pytest.approx(expected)
    assert world.log_odds("") == world.log_odds(THINGS[0]) == 0
    # steps to and from an unknown word say nothing
    assert world.log_odds(f"{text} zebra {THINGS[3]}") == pytest.approx(expected)
    gold = world.gold(THINGS[a], f"{THINGS[b]} {THINGS[c]}")
    assert gold["gold"] == pytest.approx(abs(expected) / 3) and gold["length"] == 2
    assert gold["log_odds"] == pytest.approx(expected)


def test_texts_are_functions_of_the_seeds_and_the_splits_are_disjoint(world):
    first = world.documents(200, seed=1)
    assert first == world.documents(200, seed=1) != world.documents(200, seed=2)
    assert first != Caravan(seed=1).documents(200, seed=1)
    assert all(len(text.split()) == TEXT_WORDS for text in texts(first))

    def begins(rows):
        return {" ".join(row.split()[:4]) for row in texts(rows)}

    test = begins(world.documents(300, seed=1, split="test"))
    assert not test & begins(world.corpus(300, seed=1)) and not test & begins(first)
    prompts = world.prompts(50, seed=0)
    assert len({row["prompt"] for row in prompts}) == 50
    one = world.demonstrations(1, seed=0)[0]
    assert len((one["prompt"] + one["completion"]).split()) == TEXT_WORDS
    assert len(one["prompt"].split()) == world.longest.prompt
    assert set(" ".join(texts(first)).split()) <= set(world.words())


def test_the_order_tells_the_road_and_counts_tell_it_seven_times_in_ten(world):
    """What the world is for: a weak reader that is wrong in a systematic way, and a strong one."""
    test, train = world.documents(2000, seed=0, split="test"), world.documents(2000, seed=0)
    truth = roads(test)
    assert 0.46 < truth.mean() < 0.54  # half; 4 standard errors of 2,000 are .045
    best = np.array([world.log_odds(text) > 0 for text in texts(test)])
    assert (best == truth).mean() > 0.995
    counts = fit_word_counts(texts(train), np.eye(2)[roads(train)], penalty=1e-4)
    assert 0.64 < (counts.probs(texts(test)).argmax(1) == truth).mean() < 0.78
    # without a tilt, counting words tells nothing
    flat = Caravan(tilt=0.0)
    train, test = flat.documents(2000, seed=0), flat.documents(2000, seed=0, split="test")
    counts = fit_word_counts(texts(train), np.eye(2)[roads(train)], penalty=1e-4)
    assert (counts.probs(texts(test)).argmax(1) == roads(test)).mean() < 0.56


@pytest.mark.parametrize("setting", [{"stray": 1.5}, {"stray": -0.1}, {"tilt": -1.0}])
def test_settings_out_of_range_are_named(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        Caravan(**setting)
