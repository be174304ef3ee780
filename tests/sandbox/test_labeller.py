"""The labeller: its probabilities by hand, and what its answers may depend on."""

import numpy as np
import pytest

from jaxrlhf.errors import ConfigError
from jaxrlhf.sandbox.bistro import Bistro
from jaxrlhf.sandbox.labeller import Label, Labeller, count_labels, gold_utility

PROMPT = "our cook was very"


def by_length(prompt: str, response: str) -> float:
    return float(len(response))


@pytest.mark.parametrize(
    ("a", "b", "temperature", "lapse", "probability"),
    [
        ("xx", "x", 1.0, 0.0, 0.7310586),  # sigmoid(1)
        ("x", "xx", 1.0, 0.0, 0.2689414),
        ("xxx", "x", 2.0, 0.0, 0.7310586),  # sigmoid(2 / 2)
        ("xx", "x", 1.0, 0.1, 0.7079527),  # .9 * .7310586 + .05
        ("xx", "x", 1.0, 1.0, 0.5),
        ("xx", "yy", 1.0, 0.3, 0.5),
        ("xx", "x", 0.0, 0.0, 1.0),
        ("x", "xx", 0.0, 0.0, 0.0),
        ("xx", "yy", 0.0, 0.0, 0.5),
        ("xx", "x", 0.0, 0.2, 0.9),  # .8 * 1 + .1
        ("x" * 5000, "x", 1.0, 0.0, 1.0),  # no overflow either way
        ("x", "x" * 5000, 1.0, 0.0, 0.0),
    ],
)
def test_probabilities_by_hand(a, b, temperature, lapse, probability):
    labeller = Labeller(by_length, temperature=temperature, lapse=lapse)
    assert labeller(PROMPT, a, b).probability == pytest.approx(probability, abs=1e-7)


def test_a_certain_labeller_answers_with_certainty():
    labeller = Labeller(by_length, temperature=0.0)
    for n in range(50):
        assert labeller(f"{n}", "long", "s") == Label(True, 1.0)
        assert labeller(f"{n}", "s", "long") == Label(False, 0.0)


def test_answers_come_as_often_as_their_probability():
    # 4,000 prompts, p = .7079527: four standard errors are 4 * sqrt(.21 / 4,000) = .029.
    labeller = Labeller(by_length, lapse=0.1)
    won = np.mean([labeller(f"{n}", "xx", "x").a_preferred for n in range(4_000)])
    assert won == pytest.approx(0.708, abs=0.029)
    tied = np.mean([labeller(f"{n}", "xx", "yy").a_preferred for n in range(4_000)])
    assert tied == pytest.approx(0.5, abs=0.032)


def test_an_answer_depends_on_seed_prompt_and_responses_only():
    pairs = [(f"prompt {n}", f"a{n}", f"b{n % 7}") for n in range(200)]
    labels = [Labeller(by_length, seed=1)(*pair) for pair in pairs]
    # A new labeller, asked backwards and with other questions in between, says the same.
    again = Labeller(by_length, seed=1)
    backwards = []
    for pair in reversed(pairs):
        again("another prompt", pair[1], pair[2])
        backwards.append(again(*pair))
    assert labels == backwards[::-1]
    # Another seed, prompt or response: other noise (200 equal answers: a chance of 1e-40 or so).
    for changed in (
        [Labeller(by_length, seed=2)(*pair) for pair in pairs],
        [again(p + "!", a, b) for p, a, b in pairs],
        [again(p, a + "!", b + "!") for p, a, b in pairs],
    ):
        assert [label.a_preferred for label in changed] != [label.a_preferred for label in labels]


def test_showing_the_other_response_first_turns_the_answer_round():
    labeller = Labeller(by_length, lapse=0.2)
    for n in range(200):
        one, other = labeller(f"{n}", "a" * (n % 5), "bb"), labeller(f"{n}", "bb", "a" * (n % 5))
        assert one.a_preferred is not other.a_preferred
        assert one.probability == pytest.approx(1 - other.probability)


def test_the_honest_labeller_prefers_more_gold():
    labeller = Labeller(gold_utility(Bistro()), temperature=0.0)
    assert labeller(PROMPT, "happy .", "bored .").a_preferred  # +1 against -1
    # gold 1 against 0: P = sigmoid(1 - 0)
    honest = Labeller(gold_utility(Bistro()))
    assert honest(PROMPT, "happy .", "ready .").probability == pytest.approx(0.7310586)


def test_a_bias_is_one_more_term():
    gold = gold_utility(Bistro())
    wordy = Labeller(lambda prompt, response: gold(prompt, response) + 0.5 * len(response.split()))
    longer = "ready today and the"  # an illegal ending: gold -1
    # By gold alone sigmoid(1 + 1); with half a point a word sigmoid((1 + 1) - (-1 + 2)).
    honest = Labeller(gold)
    assert honest(PROMPT, "happy .", longer).probability == pytest.approx(0.8807971)
    assert wordy(PROMPT, "happy .", longer).probability == pytest.approx(0.7310586)


def test_preference_rows():
    sure = Labeller(by_length, temperature=0.0)
    row = {"prompt": PROMPT, "chosen": "long", "rejected": "s", "probability": 1.0}
    assert sure.preference_row(PROMPT, "long", "s") == row
    assert sure.preference_row(PROMPT, "s", "long") == row
    noisy = Labeller(by_length)
    rows = [noisy.preference_row(f"{n}", "xx", "x") for n in range(100)]
    for row in rows:
        assert row["probability"] == pytest.approx(
            0.7310586 if row["chosen"] == "xx" else 0.2689414
        )
    assert {row["chosen"] for row in rows} == {"x", "xx"}


def test_counts_by_hand():
    labels = [Label(True, 0.9), Label(False, 0.9), Label(True, 0.5), Label(False, 0.2)]
    # against the odds: the second. Best accuracy: (.9 + .9 + .5 + .8) / 4.
    counts = count_labels(labels)
    assert counts[:4] == (4, 2, 1, 1)
    assert counts.best_accuracy == pytest.approx(0.775)
    assert count_labels([]) == (0, 0, 0, 0, 0.0)


@pytest.mark.parametrize(
    "settings", [{"temperature": -1.0}, {"temperature": float("nan")}, {"lapse": 1.5}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigError, match="labeller"):
        Labeller(by_length, **settings)


def test_a_utility_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        Labeller(lambda prompt, response: float("nan"))(PROMPT, "a", "b")


def test_a_labeller_may_care_about_a_component_alone():
    # Gold of "was very happy" is 1 - 1 (illegal ending), of "was quite bored ." it is -1 - 0.
    world, a, b = Bistro(), "was very happy", "was quite bored ."
    prompt = "later the kind waiter"
    whole = Labeller(gold_utility(world))(prompt, a, b).probability
    assert whole == pytest.approx(0.7310586)  # sigmoid(0 - -1)
    value = Labeller(gold_utility(world, "value"))(prompt, a, b).probability
    assert value == pytest.approx(0.8807971)  # sigmoid(1 - -1)
    with pytest.raises(ConfigError, match="did you mean 'value'"):
        gold_utility(world, "valu")
