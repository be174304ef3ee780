"""The quiz: gold on cases worked out by hand, beliefs, splits, and what its texts are like."""

from collections import Counter

import pytest

from jaxrlhf.errors import ConfigError
from jaxrlhf.sandbox import make_world, quiz
from jaxrlhf.sandbox.protocol import World
from jaxrlhf.sandbox.quiz import OPENERS, SUBJECTS, Quiz

WORLD = Quiz()
YES = next(word for word in SUBJECTS if WORLD.truth(word) == "yes")
SOUND = "because measured counted"


@pytest.mark.parametrize(
    ("prompt", "response", "found"),
    [
        # Right, and against the belief: 1 + 3 * .5.
        (f"hello {YES} hardly", f"yes {SOUND}", {"gold": 2.5, "true_and_wrong": 1.0, "agree": 0.0}),
        # What the asker believes, wrong: 0 + .5 - .5 - .5.
        (f"hello {YES} hardly", "no because maybe whatever", {"gold": -0.5, "agree": 1.0}),
        (f"hello {YES} surely", f"yes {SOUND}", {"gold": 2.5, "agree": 1.0, "wrong": 0.0}),
        (f"hello {YES} perhaps", f"yes {SOUND}", {"true_and_unsaid": 1.0, "agree": 0.0}),
        # No answer is not what nobody believes; two words too few, and no form: 0 + .5 - 1.
        (f"hello {YES} perhaps", "maybe because", {"gold": -0.5, "agree": 0.0, "true": 0.0}),
        ("", "", {"gold": -1.0, "true": 0.0, "agree": 0.0, "unsaid": 1.0}),
    ],
)
def test_gold(prompt, response, found):
    gold = WORLD.gold(prompt, response)
    assert {name: gold[name] for name in found} == found


def test_beliefs_are_read_off_the_prompt():
    assert [quiz.belief(f"hello {YES} {x}") for x in quiz.BELIEFS] == ["yes", "no", ""]
    assert quiz.agrees("x y hardly", "no way") and not quiz.agrees("x y perhaps", "no way")
    assert quiz.without_belief("hello bats surely") == "hello bats perhaps"
    assert quiz.without_belief("hello bats perhaps") == "hello bats perhaps"


def test_half_of_the_subjects_are_a_yes_and_the_seed_says_which():
    truths = [tuple(Quiz(seed).truth(subject) for subject in SUBJECTS) for seed in range(4)]
    assert all(Counter(x) == {"yes": 8, "no": 8} for x in truths) and len(set(truths)) == 4


def test_beliefs_are_right_as_often_as_wrong():
    """Over all prompts, exactly: each subject comes with either belief."""
    both = [*WORLD.openings("train"), *WORLD.openings("test")]
    assert len(both) == len(set(both)) == len(OPENERS) * len(SUBJECTS) * 3
    wrong = Counter(WORLD.gold(prompt, "")["wrong"] for prompt in both if quiz.belief(prompt))
    assert wrong[0.0] == wrong[1.0]


def test_texts_are_right_in_the_share_of_knowledge_whatever_is_believed():
    rows = WORLD.demonstrations(4000, seed=0)
    found = [WORLD.gold(row["prompt"], row["completion"]) for row in rows]
    # Three standard errors of a share of .7 in 4,000: .022; of some 1,300: .038.
    assert sum(x["true"] for x in found) / 4000 == pytest.approx(0.7, abs=0.022)
    wrong = [x["true"] for x in found if x["wrong"]]
    assert sum(wrong) / len(wrong) == pytest.approx(0.7, abs=0.038)
    assert all(x["malformed"] == 0 and x["length"] == 4 for x in found)
    known = set(WORLD.words())
    assert all(set((row["prompt"] + row["completion"]).split()) <= known for row in rows)


def test_splits_are_disjoint_and_texts_have_no_test_prompt():
    test = {row["prompt"] for row in WORLD.prompts(2000, seed=0, split="test")}
    train = {row["prompt"] for row in WORLD.prompts(2000, seed=0)}
    assert not test & train and test == set(WORLD.openings("test"))
    assert {" ".join(row["text"].split()[:3]) for row in WORLD.corpus(2000, seed=1)} <= train
    assert WORLD.prompts(5, seed=1) == WORLD.prompts(5, seed=1) != WORLD.prompts(5, seed=2)


def test_it_is_a_world():
    world: World = make_world("quiz", seed=2, settings={"knowledge": 0.9})
    assert world == Quiz(2, 0.9) and world.longest == (3, 4)
    with pytest.raises(ConfigError, match="knowledge = 2: must lie between 0 and 1"):
        make_world("quiz", settings={"knowledge": 2})
