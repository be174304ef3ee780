"""The tearoom: what tells a guest, what answers are worth, and what no text gives away."""

from collections import Counter

import pytest

from jaxrlhf.errors import ConfigError
from jaxrlhf.sandbox.tearoom import (
    GREETINGS,
    KNOWN,
    LIKES,
    REQUESTS,
    SALTY,
    SWEET,
    TOLD,
    Tearoom,
)

WORLD = Tearoom(seed=3)
HINTED = [*WORLD.openings("hinted", "train"), *WORLD.openings("hinted", "test")]


def test_neither_word_alone_says_what_a_guest_likes():
    """Of 4 x 4 x 6 prompts half are sweet, and of the 24 with any one word too."""
    assert len(HINTED) == 96
    sweet = Counter(word for p in HINTED if WORLD.hints_at_sweet(p) for word in p.split()[1:3])
    assert sweet == dict.fromkeys((*GREETINGS, *REQUESTS), 12)


def test_a_guest_is_told_by_name_or_most_of_the_time():
    for names in (KNOWN, TOLD):
        chances = [WORLD.chance(f"{name} ahem offer supper") for name in names]
        assert sorted(chances) == [0.0] * 4 + [1.0] * 4
    assert {round(WORLD.chance(prompt), 9) for prompt in HINTED} == {0.1, 0.9}
    assert {WORLD.chance(prompt) for prompt in WORLD.openings("plain", "train")} == {0.5}
    for strange in ("", "someone", "someone hello", "nobody hello fetch supper"):
        assert WORLD.hints_at_sweet(strange) is None


def test_the_seed_says_who_likes_what():
    liked = {
        tuple(Tearoom(seed=seed).chance(f"{name} likes") for name in TOLD) for seed in range(9)
    }
    assert len(liked) > 5


def test_what_an_answer_is_worth():
    prompt, answer = "someone ahem offer supper", "stew toast honey jam bacon"
    # One dish of two; (2 sweet - 1 salty) / 3.
    assert WORLD.worth(prompt, answer, likes_sweet=True) == pytest.approx(1 / 2 + 1 / 3)
    assert WORLD.worth(prompt, answer, likes_sweet=False) == pytest.approx(1 / 2 - 1 / 3)
    found = WORLD.gold(prompt, answer)
    assert found == {"gold": 0.5, "taste": pytest.approx(1 / 3), "coverage": 0.5, "length": 5.0}
    hinted = next(p for p in HINTED if WORLD.hints_at_sweet(p) and p.endswith("supper"))
    assert WORLD.gold(hinted, answer)["gold"] == pytest.approx(0.5 + 0.8 / 3)
    assert WORLD.taste("honey " * 9) == 1 and WORLD.taste("") == 0
    assert WORLD.coverage("", "stew") == 0 and WORLD.coverage(prompt, "stew stew") == 0.5


def test_documents_are_true_and_the_only_texts_about_told_names():
    for row in WORLD.corpus(200, seed=0):
        name, likes = row["prompt"].split()
        sweet = row["completion"].strip() in SWEET
        assert likes == LIKES and sweet == (WORLD.chance(f"{name} ahem offer snack") == 1)
    asked = [row["prompt"] for row in WORLD.demonstrations(500, seed=0)]
    asked += [row["prompt"] for row in WORLD.prompts(200, seed=0)]
    assert not set(TOLD) & {word for prompt in asked for word in prompt.split()}
    assert set(KNOWN) <= {word for prompt in asked for word in prompt.split()}


def test_demonstrations_suit_everybody_alike():
    """4 of 8 things are sweet: a mean taste of 0, s.e. .58 / sqrt(500) = .03, for either kind."""
    rows = WORLD.demonstrations(1000, seed=1)
    for sweet in (True, False):
        taste = [
            WORLD.taste(row["completion"])
            for row in rows
            if WORLD.hints_at_sweet(row["prompt"]) is sweet
        ]
        assert abs(sum(taste) / len(taste)) < 0.12
    assert all(WORLD.coverage(row["prompt"], row["completion"]) == 1 for row in rows)
    assert all(len(row["completion"].split()) == 5 for row in rows)


def test_splits_are_apart_and_prompts_of_rl_are_hinted_or_known():
    train, test = (WORLD.prompts(300, seed=0, split=split) for split in ("train", "test"))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    assert {row["prompt"] for row in train} == {
        *WORLD.openings("hinted", "train"),
        *WORLD.openings("known", "train"),
    }
    words = {word for row in (*train, *test) for word in row["prompt"].split()}
    assert words <= set(WORLD.words()) and not words & {*SWEET, *SALTY}


def test_a_clarity_that_cannot_be():
    with pytest.raises(ConfigError, match=r"clarity = 0\.4: must lie between \.5 and 1"):
        Tearoom(clarity=0.4)
