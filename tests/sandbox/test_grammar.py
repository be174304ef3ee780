"""Drawing a grammar: what is legal, what is reachable, how often a successor comes."""

import numpy as np
import pytest

from jaxrlhf.sandbox.grammar import Grammar, Rule, build_grammar

LEXICON = {"noun": ("cat", "dog", "cow"), "verb": ("runs", "eats"), "stop": (".",)}
RULES = {
    "noun": (Rule("verb", 2, 3.0), Rule("noun", 1, 1.0)),
    "verb": (Rule("stop", 1, 1.0),),
    "stop": (Rule("noun", 2, 1.0),),
}


def grammar(seed: int = 0) -> Grammar:
    return build_grammar(LEXICON, RULES, rng=np.random.default_rng(seed))


def test_rules_fix_the_number_of_successors_and_the_mass_of_each_class():
    # A noun may be followed by both verbs (mass 3 of 4) and one other noun (mass 1 of 4).
    drawn = grammar()
    assert drawn.words == ("cat", "dog", "cow", "runs", "eats", ".")
    np.testing.assert_array_equal(drawn.legal.sum(axis=1), [3, 3, 3, 1, 1, 2])
    np.testing.assert_allclose(drawn.probabilities.sum(axis=1), 1.0)
    np.testing.assert_allclose(drawn.probabilities[:3, 3:5].sum(axis=1), 0.75)
    np.testing.assert_allclose(drawn.probabilities[:3, :3].sum(axis=1), 0.25)
    assert not drawn.legal.diagonal().any()


def test_every_word_that_a_rule_can_produce_is_produced():
    # Three nouns choose one other noun each; if one of them was never chosen, it is among the two
    # that the full stop then takes, because those are the least used.
    for seed in range(20):
        assert grammar(seed).legal.any(axis=0).all()


def test_the_same_generator_state_draws_the_same_grammar():
    np.testing.assert_array_equal(grammar(3).probabilities, grammar(3).probabilities)
    assert (grammar(3).probabilities != grammar(4).probabilities).any()


def test_next_words_come_as_often_as_the_table_says_and_are_always_legal():
    drawn, n = grammar(), 40_000
    for word in range(len(drawn.words)):
        following = drawn.next_words(np.full(n, word), np.random.default_rng(word))
        frequency = np.bincount(following, minlength=len(drawn.words)) / n
        expected = drawn.probabilities[word]
        # 5 standard errors of a share; where the probability is 0 that is exactly 0.
        assert (np.abs(frequency - expected) <= 5 * np.sqrt(expected * (1 - expected) / n)).all()


def test_text_and_numbers():
    drawn = grammar()
    assert drawn.encode(" cat eats\n. ") == [0, 4, 5]
    assert drawn.encode("cat barks") == [0, -1]
    assert drawn.encode("") == []
    assert drawn.decode([0, 4, 5]) == "cat eats ."


@pytest.mark.parametrize(
    ("lexicon", "rules", "message"),
    [
        ({"a": ("x",), "b": ("x",)}, {}, "twice"),
        ({"a": ("x", "y")}, {"a": (Rule("c", 1, 1.0),)}, "unknown class 'c'"),
        ({"a": ("x", "y")}, {"a": (Rule("a", 2, 1.0),)}, "asks for 2 words"),  # not itself: 1 left
        (
            {"a": ("x", "y"), "b": ("z",)},
            {"a": (Rule("a", 1, 1.0),), "b": (Rule("a", 1, 1.0),)},
            "no word leads to 'z'",
        ),
    ],
)
def test_a_table_that_cannot_be_drawn_is_refused(lexicon, rules, message):
    with pytest.raises(ValueError, match=message):
        build_grammar(lexicon, rules, rng=np.random.default_rng(0))
