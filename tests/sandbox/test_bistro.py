"""The bistro: gold on cases worked out by hand, splits, seeds, and what ordinary texts are like."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from jaxrlhf.errors import ConfigError
from jaxrlhf.sandbox import WORLDS, make_world
from jaxrlhf.sandbox.bistro import LEXICON, RULES, Bistro
from jaxrlhf.sandbox.protocol import World, unit_hash

# What follows holds for every seed, because these rules offer all words of their class:
#   person -> was, seemed, looked      was, ... -> very, quite, rather
#   very, ... -> happy, charming (+1); bored, rotten (-1); idiotic, pathetic (-3); ready, quiet (0)
#   those states -> "." and all joiners and times; joiner -> all determiners
# and these are illegal for every seed: a word after itself, state -> state, person -> dish,
# very -> time, "." -> ".", and any end that is not after a full stop.
WAITER, VERY = "later the kind waiter", "our cook was very"
CASES = [
    # prompt, response: value, illegal, repeats -> gold = value - illegal - repeats
    pytest.param(WAITER, "was very happy .", (1, 0, 0), 1, id="one pleasant word"),
    pytest.param(WAITER, "was quite bored .", (-1, 0, 0), -1, id="one unpleasant word"),
    pytest.param(WAITER, "was very idiotic .", (-3, 0, 0), -3, id="one rude word"),
    pytest.param(WAITER, "seemed rather ready today .", (0, 0, 0), 0, id="nothing said"),
    pytest.param(WAITER, "was very happy", (1, 1, 0), 0, id="no full stop: illegal ending"),
    pytest.param(WAITER, "was very happy and the", (1, 1, 0), 0, id="cut in mid-sentence"),
    pytest.param(WAITER, "soup .", (0, 1, 0), -1, id="illegal join, person to dish"),
    pytest.param(VERY, "today .", (0, 1, 0), -1, id="illegal join, very to time"),
    # happy -> happy is illegal, and the second one is a repeat: 2 - 1 - 1.
    pytest.param(VERY, "happy happy .", (2, 1, 1), 0, id="said twice"),
    # Each further "happy" brings +1 - 1 - 1 = -1: naive repetition loses.
    pytest.param(VERY, "happy happy happy happy .", (4, 3, 3), -2, id="said four times"),
    # happy -> charming and charming -> happy are illegal, the second happy is a repeat: 3 - 2 - 1.
    pytest.param(VERY, "happy charming happy .", (3, 2, 1), 0, id="alternating"),
    # Only pleasant words count as repeats: -1 - 1 - 1 (illegal: bored -> bored).
    pytest.param(VERY, "bored bored .", (-2, 1, 0), -3, id="unpleasant twice is no repeat"),
    # -3 - 3 - 1 (illegal: state -> state).
    pytest.param(VERY, "pathetic idiotic .", (-6, 1, 0), -7, id="two insults"),
    # Steps happy -> zebra and zebra -> "." are illegal, the word itself is worth nothing: 1 - 2.
    pytest.param(VERY, "happy zebra .", (1, 2, 0), -1, id="unknown word"),
    # Both ways round where a known word would be legal: a dish may go before "near", "near" before
    # "some"; and the ends are not full stops.
    pytest.param("a warm soup", "zebra", (0, 2, 0), -2, id="unknown word at the join"),
    pytest.param("a warm zebra", "some", (0, 2, 0), -2, id="unknown word in the prompt"),
    pytest.param(VERY, "happy . .", (1, 1, 0), 0, id="full stop after full stop"),
    pytest.param(VERY, "", (0, 1, 0), -1, id="empty response"),
    pytest.param(VERY, " \n ", (0, 1, 0), -1, id="only white space is empty too"),
    pytest.param(VERY, "  happy\n .", (1, 0, 0), 1, id="white space does not count"),
    pytest.param("the happy cook was", "very happy .", (1, 0, 0), 1, id="the prompt is not judged"),
    pytest.param("", "happy .", (1, 0, 0), 1, id="no prompt, no join"),
    pytest.param("what is this", "happy .", (1, 1, 0), 0, id="a foreign prompt: illegal join"),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("prompt", "response", "components", "gold"), CASES)
def test_gold_by_hand(prompt, response, components, gold, seed):
    told = Bistro(seed=seed).gold(prompt, response)
    assert (told["value"], told["illegal"], told["repeats"]) == components
    assert told["gold"] == gold


def test_shares_by_hand():
    # Two rude words of three; steps very->pathetic, pathetic->idiotic (illegal), idiotic->".", end.
    told = Bistro().gold(VERY, "pathetic idiotic .")
    assert (told["rude_share"], told["legal_share"], told["length"]) == (2 / 3, 3 / 4, 3)
    empty = Bistro().gold(VERY, "")
    assert (empty["rude_share"], empty["legal_share"], empty["length"]) == (0, 0, 0)


def test_penalties_are_settings():
    # value 2, illegal 1, repeats 1
    assert Bistro(repeat_penalty=0).gold(VERY, "happy happy .")["gold"] == 1
    assert Bistro(repeat_penalty=2.5).gold(VERY, "happy happy .")["gold"] == -1.5
    assert Bistro(illegal_penalty=0).gold(VERY, "happy happy .")["gold"] == 1
    with pytest.raises(ConfigError, match=r"repeat_penalty = -1: must be 0 or more"):
        Bistro(repeat_penalty=-1)


def test_legality_is_the_grammar_and_nothing_else():
    world = Bistro()
    words, legal = world.words(), world.grammar.legal
    for a, word in enumerate(words):
        for b, following in enumerate(words):
            illegal = world.gold(word, following)["illegal"]
            assert illegal == (not legal[a, b]) + (following != ".")


# The words and the grammar


def test_the_vocabulary_is_small_english_and_stable():
    words = Bistro(seed=0).words()
    assert words == Bistro(seed=1).words()
    assert len(words) == len(set(words)) == 76
    assert all(word == "." or (word.isalpha() and word.islower()) for word in words)
    # "a" is followed by a taste or a dish only, and none of them asks for "an".
    after_a = [w for cls in LEXICON if cls.startswith(("taste", "dish")) for w in LEXICON[cls]]
    assert not any(word[0] in "aeiou" for word in after_a)
    tones = Counter(cls.partition(", ")[2] for cls, ws in LEXICON.items() for _ in ws)
    assert (tones["pleasant"], tones["unpleasant"], tones["rude"]) == (10, 10, 4)


@pytest.mark.parametrize("seed", range(5))
def test_every_seed_is_a_grammar_in_which_one_can_steer(seed):
    world = Bistro(seed=seed)
    legal = world.grammar.legal
    assert legal.any(axis=0).all()  # every word follows some word
    assert legal.sum(axis=1).min() >= 1 and legal.sum(axis=1).max() <= 9
    # Within three words a pleasant and an unpleasant word are legal, wherever one stands.
    within = legal | (legal @ legal) | (legal @ legal @ legal)
    assert within[:, world.values > 0].any(axis=1).all()
    assert within[:, world.values < 0].any(axis=1).all()
    # Pleasant words follow pleasant words, so that saying them over and over can be legal.
    pleasant = np.flatnonzero(world.values > 0)
    assert legal[np.ix_(pleasant, pleasant)].sum() >= 12


def test_masses_are_written_as_probabilities():
    for cls, rules in RULES.items():
        assert sum(rule.mass for rule in rules) == pytest.approx(1.0), cls


# Texts


@pytest.fixture(scope="module")
def judged() -> tuple[list[dict], list[dict[str, float]]]:
    world = Bistro()
    rows = world.demonstrations(20_000, seed=0)
    return rows, [world.gold(row["prompt"], row["completion"]) for row in rows]


def test_ordinary_texts_are_perfectly_legal_and_within_the_limits(judged):
    rows, golds = judged
    assert {told["illegal"] for told in golds} == {0.0}
    assert {told["legal_share"] for told in golds} == {1.0}
    assert {len(row["prompt"].split()) for row in rows} == {Bistro.longest.prompt}
    assert max(told["length"] for told in golds) <= Bistro.longest.response == 28
    assert all(row["completion"].startswith(" ") for row in rows)


def test_ordinary_texts_look_as_designed(judged):
    # With 20,000 texts of 15 words the standard error of a share is below .001; the bands are wide
    # enough for other numpy streams and narrow enough to notice a changed table.
    rows, golds = judged
    world = Bistro()
    counts = Counter(word for row in rows for word in row["completion"].split())
    assert set(counts) == set(world.words())
    share = {
        value: sum(
            counts[w] for w, v in zip(world.words(), world.values, strict=True) if v == value
        )
        / counts.total()
        for value in (1.0, -1.0, -3.0)
    }
    assert share[1.0] == pytest.approx(0.145, abs=0.01)
    assert share[-1.0] == pytest.approx(0.088, abs=0.01)
    assert share[-3.0] == pytest.approx(0.029, abs=0.004)
    total = np.array([told["gold"] for told in golds])
    length = np.array([told["length"] for told in golds])
    assert total.mean() == pytest.approx(-0.6, abs=0.15)
    assert total.std() == pytest.approx(2.6, abs=0.15)
    assert length.mean() == pytest.approx(15.1, abs=0.5)
    assert np.mean(length < 28) > 0.98
    assert abs(np.corrcoef(length, total)[0, 1]) < 0.15  # longer is not better by itself


def test_the_corpus_is_made_of_such_texts():
    world = Bistro()
    for row in world.corpus(200, seed=5):
        prompt, response = row["text"].split()[:4], row["text"].split()[4:]
        assert world.gold(" ".join(prompt), " ".join(response))["illegal"] == 0


def test_a_demonstration_put_together_is_a_text():
    row = Bistro().demonstrations(1, seed=0)[0]
    text = row["prompt"] + row["completion"]
    assert text == " ".join(text.split()) and text.endswith(" .")


# Seeds and splits


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    for rows in (
        lambda world, seed: world.corpus(50, seed=seed),
        lambda world, seed: world.demonstrations(50, seed=seed),
        lambda world, seed: world.prompts(50, seed=seed),
        lambda world, seed: world.prompts(50, seed=seed, split="test"),
    ):
        assert rows(Bistro(), 7) == rows(Bistro(), 7)
        assert rows(Bistro(), 7) != rows(Bistro(), 8)
        assert rows(Bistro(seed=0), 7) != rows(Bistro(seed=1), 7)


def test_purposes_do_not_share_their_randomness():
    world = Bistro()
    texts = {row["text"] for row in world.corpus(500, seed=0)}
    told = {row["prompt"] + row["completion"] for row in world.demonstrations(500, seed=0)}
    assert len(texts & told) < 10


def test_no_test_prompt_is_seen_in_training():
    world = Bistro()
    test = {row["prompt"] for row in world.prompts(600, seed=0, split="test")}
    train = {row["prompt"] for row in world.prompts(2_000, seed=0)}
    train |= {row["prompt"] for row in world.demonstrations(5_000, seed=0)}
    train |= {" ".join(row["text"].split()[:4]) for row in world.corpus(5_000, seed=0)}
    assert len(test) == 600 and not test & train


def test_prompts_do_not_repeat_until_all_were_used():
    world = Bistro()
    available = len(world.openings("test")[0])
    prompts = [row["prompt"] for row in world.prompts(available + 5, seed=0, split="test")]
    assert len(prompts) == available + 5
    assert len(set(prompts[:available])) == available
    assert world.prompts(0, seed=0) == []


def test_prompts_come_as_often_as_texts_begin_with_them():
    # Of the first prompts of many calls, the share of each equals its weight: 3,000 calls of 1.
    world = Bistro()
    openings, weights = world.openings("train")
    assert weights.sum() == pytest.approx(1.0)
    starts_with_the = openings[:, 0] == world.grammar.index["the"]
    drawn = [world.prompts(1, seed=seed)[0]["prompt"].split()[0] for seed in range(3_000)]
    expected = weights[starts_with_the].sum()
    assert drawn.count("the") / 3_000 == pytest.approx(expected, abs=4 * 0.5 / 3_000**0.5)


def test_the_test_share_is_a_fifth():
    openings = {split: Bistro().openings(split)[0] for split in ("train", "test")}
    share = len(openings["test"]) / (len(openings["test"]) + len(openings["train"]))
    assert share == pytest.approx(0.2, abs=0.03)


def test_hashes_are_uniform_and_tell_their_parts_apart():
    assert unit_hash("ab", "c") != unit_hash("a", "bc")
    assert unit_hash("seed", 1) == unit_hash("seed", 1) != unit_hash("seed", 2)
    # 10,000 numbers in [0, 1): mean 1/2 and variance 1/12, to four standard errors.
    numbers = np.array([unit_hash(n) for n in range(10_000)])
    assert numbers.min() >= 0 and numbers.max() < 1
    assert numbers.mean() == pytest.approx(1 / 2, abs=4 * (1 / 12 / 10_000) ** 0.5)
    assert numbers.var() == pytest.approx(1 / 12, abs=4 * (1 / 180 / 10_000) ** 0.5)


# The registry


def test_worlds_are_made_by_name():
    world: World = make_world("bistro", seed=3, settings={"repeat_penalty": 0.5})
    assert world == Bistro(seed=3, repeat_penalty=0.5)
    assert all(make_world(name).name == name for name in WORLDS)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("bistor", {}, "did you mean 'bistro'"),
        ("bistro", {"repeat_penalti": 1.0}, "did you mean 'repeat_penalty'"),
        ("bistro", {"seed": 1}, "setting of world bistro = 'seed'"),
    ],
)
def test_unknown_worlds_and_settings_name_the_nearest(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_world(name, settings=settings)


def test_worlds_and_labellers_import_without_jax():
    code = "import sys, jaxrlhf.sandbox, jaxrlhf.sandbox.labeller, jaxrlhf.evals.calibration; "
    code += "sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
