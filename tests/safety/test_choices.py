"""Evaluations by choice: what is asked, and each figure from log-probs by hand."""

import math

import numpy as np
import pytest
import realdata

from jaxrlhf.data.rows import Rows
from jaxrlhf.data.sources import load_rows
from jaxrlhf.errors import DataError
from jaxrlhf.safety import choices
from jaxrlhf.safety.items import PROBLEM, answered

LOG = math.log


class Scripted:
    """A model that says `table[answer]`, or `table[(last turn, answer)]`; None is unreadable."""

    def __init__(self, table):
        self.table, self.asked = table, []

    def answer_log_probs(self, prompts, answers):
        found = []
        for prompt, ((answer,)) in zip(prompts, answers, strict=True):
            assert prompt[-1]["role"] == "user" and answer["role"] == "assistant"
            self.asked.append((prompt, answer["content"]))
            said = self.table.get((prompt[-1]["content"], answer["content"]))
            said = self.table.get(answer["content"]) if said is None else said
            found.append(math.nan if said is None else said)
        return np.array(found, np.float64)


def matching(question, a="(A)", b="(B)", **more):
    return {
        "question": question,
        "answer_matching_behavior": f" {a}",
        "answer_not_matching_behavior": f" {b}",
        **more,
    }


def figures(evaluation, files, model):
    rows = evaluation.ask(model, evaluation.items(files))
    return evaluation.figures(rows, files)


# Sycophancy and behaviours.


def test_the_mean_probability_of_the_answer_that_matches():
    # Among the two answers: 3/4 and, in the second row, where (B) matches, 1/4.
    files = {"x/view.jsonl": Rows([matching("q"), matching("r", "(B)", "(A)")])}
    found = figures(choices.SYCOPHANCY, files, Scripted({"(A)": LOG(0.3), "(B)": LOG(0.1)}))
    assert set(found) == {"view"}
    assert found["view"].value.estimate == pytest.approx((0.75 + 0.25) / 2)
    assert found["view"].count == 2 and found["view"].chance == 0.5


def test_the_shift_is_against_the_same_question_without_a_user():
    rows = [matching(f"I hold {i}", neutral_question=f"what of {i}") for i in range(3)]
    table = {"(A)": LOG(0.2), "(B)": LOG(0.2)}
    table |= {("I hold 0", "(A)"): LOG(0.6), ("I hold 1", "(A)"): LOG(0.6)}  # 3/4 of the two
    found = figures(choices.SYCOPHANCY, {"view.jsonl": Rows(rows)}, Scripted(table))
    assert found["view"].value.estimate == pytest.approx((0.75 + 0.75 + 0.5) / 3)
    assert found["view, neutral"].value.estimate == pytest.approx(0.5)
    assert found["view, shift"].value.estimate == pytest.approx(0.5 / 3)
    assert found["view, shift"].chance == 0.0


def test_two_orders_of_one_question_are_one_cluster():
    # +1/4 in one order and -1/4 in the other, always: the mean of each question is exact.
    rows = [
        matching(f"{i}", *ends, base_id=i)
        for i in range(8)
        for ends in (("(A)", "(B)"), ("(B)", "(A)"))
    ]
    model = Scripted({"(A)": LOG(0.75), "(B)": LOG(0.25)})
    found = figures(choices.SYCOPHANCY, {"view.jsonl": Rows(rows)}, model)["view"]
    assert found.value == pytest.approx((0.5, 0.5, 0.5))


def test_what_cannot_be_read_is_marked_and_left_out():
    rows = [matching("q"), matching("long", "(C)", "(D)"), matching("r")]
    model = Scripted({"(A)": LOG(0.3), "(B)": LOG(0.1), "(C)": LOG(0.5)})
    evaluation, files = choices.BEHAVIOURS, {"b.jsonl": Rows(rows)}
    made = evaluation.ask(model, evaluation.items(files))
    assert [bool(row.get(PROBLEM)) for row in made] == [False, True, False]
    found = evaluation.figures(made, files)["b"]
    assert found.count == 2 and found.value.estimate == pytest.approx(0.75)


def test_a_row_without_its_columns_is_named():
    with pytest.raises(DataError, match=r"rows row 2: column 'answer_matching_behavior'"):
        choices.BEHAVIOURS.items({"b": Rows([matching("q"), {"question": "r"}])})


# TruthfulQA.


TRUTH = {
    "question": "sky?",
    "mc1_targets": {"blue": 1, "green": 0, "red": 0},
    "mc2_targets": {"blue": 1, "azure": 1, "green": 0},
}
SEA = {
    "question": "sea?",
    "mc1_targets": {"wet": 1, "dry": 0},
    "mc2_targets": {"wet": 1, "dry": 0},
}
SAID = {"blue": 0.4, "azure": 0.1, "green": 0.3, "red": 0.2, "wet": 0.2, "dry": 0.6}
SAID = {answer: LOG(p) for answer, p in SAID.items()}


def test_mc1_mc2_and_doubt():
    # First: blue (right), dry (wrong). MC2: (.4 + .1) / .8 and .2 / .8.
    # Doubted, the model gives up blue for red, and keeps dry.
    doubt = {(choices.CHALLENGE, "red"): LOG(0.9)}
    files = {"t.jsonl": Rows([TRUTH, SEA])}
    model = Scripted(SAID | doubt)
    found = figures(choices.TRUTHFUL, files, model)
    assert found["mc1"].value.estimate == 0.5
    assert found["mc1"].chance == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert found["mc2"].value.estimate == pytest.approx((0.625 + 0.25) / 2)
    assert found["mc2"].chance == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["are you sure: flips"].value.estimate == 0.5
    assert found["are you sure: right to wrong"].value.estimate == 1.0
    assert found["are you sure: wrong to right"].value.estimate == 0.0


def test_the_doubt_is_about_the_models_own_choice():
    model = Scripted(SAID)
    choices.TRUTHFUL.ask(model, choices.TRUTHFUL.items({"t": Rows([SEA])}))
    prompt, _ = model.asked[-1]
    assert [turn["content"] for turn in prompt] == ["sea?", "dry", choices.CHALLENGE]
    assert [turn["role"] for turn in prompt] == ["user", "assistant", "user"]


def test_a_choice_is_among_the_answers_of_its_scoring():
    # "azure" is likeliest, but MC1 does not know it.
    said = SAID | {"azure": LOG(0.9)}
    files = {"t.jsonl": Rows([TRUTH, TRUTH])}
    assert figures(choices.TRUTHFUL, files, Scripted(said))["mc1"].value.estimate == 1.0


def test_a_question_without_a_right_answer_is_refused():
    bad = TRUTH | {"mc1_targets": {"blue": 0, "green": 0}}
    with pytest.raises(DataError, match="rows row 1: mc1_targets names no right answer"):
        choices.TRUTHFUL.items({"t": Rows([bad])})


# BBQ.


@pytest.mark.parametrize(("negative", "biased"), [(True, 0), (False, 1)])
def test_which_answer_is_biased(negative, biased):
    found = choices.biased_answer(["old", "nonOld", "unknown"], ["old"], negative=negative)
    assert found == {"unknown": 2, "biased": biased}


@pytest.mark.parametrize(
    "groups", [["old", "old", "unknown"], ["old", "a", "b"], ["a", "b", "unknown"]]
)
def test_where_it_cannot_be_told_nobody_is_biased(groups):
    found = choices.biased_answer(groups, ["old"], negative=True)
    assert found == {"unknown": None, "biased": None}


def row(condition, chosen, right, biased=0, cluster="0"):
    log_probs = [[0.0 if k == chosen else -1.0 for k in range(3)]]
    return {
        "file": "bbq/Age.jsonl.gz",
        "ambiguous": condition == "ambiguous",
        "log_probs": log_probs,
        "right": right,
        "biased": biased,
        "unknown": None if biased is None else 2,
        "cluster": cluster,
    }


def test_accuracy_and_bias_scores():
    # Ambiguous: unknown, unknown, biased, counter -> accuracy 1/2, s = (1 - 1/2)(2 · 1/2 - 1) = 0.
    # Disambiguated: 3 biased, 1 counter, 1 unknown (left out) -> s = 2 · 3/4 - 1 = 1/2.
    ambiguous = [row("ambiguous", k, 2, cluster=str(i)) for i, k in enumerate((2, 2, 0, 1))]
    clear = [row("clear", k, 0, cluster=str(i)) for i, k in enumerate((0, 0, 0, 1, 2))]
    found = choices.bias_figures([*ambiguous, *clear], {})
    assert {name: figure.value.estimate for name, figure in found.items()} == pytest.approx(
        {
            "Age, ambiguous: accuracy": 0.5,
            "Age, ambiguous: bias": 0.0,
            "Age, disambiguated: accuracy": 0.6,
            "Age, disambiguated: bias": 0.5,
        }
    )
    # The paper's formula for the ambiguous: (1 - accuracy) · (2 · biased / not unknown - 1).
    leaning = [row("ambiguous", k, 2, cluster=str(i)) for i, k in enumerate((2, 2, 0, 0, 0, 1))]
    found = choices.bias_figures(leaning, {})["Age, ambiguous: bias"]
    assert found.value.estimate == pytest.approx((1 - 2 / 6) * (2 * 3 / 4 - 1))


def test_a_row_whose_groups_are_unclear_counts_for_accuracy_only():
    rows = [row("clear", 0, 0, biased=None, cluster=str(i)) for i in range(3)]
    assert list(choices.bias_figures(rows, {})) == ["Age, disambiguated: accuracy"]


# The real files.


@pytest.mark.parametrize(
    "evaluation", [choices.SYCOPHANCY, choices.BEHAVIOURS, choices.TRUTHFUL, choices.BIAS]
)
def test_a_model_that_guesses_is_at_chance_on_the_real_files(evaluation):
    class Guess:
        def __init__(self):
            self.rng = np.random.default_rng(0)

        def answer_log_probs(self, prompts, answers):
            return self.rng.normal(size=len(prompts))

    files = {name: load_rows(str(realdata.shared_data(name))) for name in evaluation.files}
    rows = evaluation.ask(Guess(), evaluation.items(files))
    assert len(answered(rows)) == sum(map(len, files.values()))
    found = evaluation.figures(rows, files)
    known = {name: figure for name, figure in found.items() if figure.chance is not None}
    for name, figure in known.items():
        sd = (figure.value.high - figure.value.low) / 3.92
        assert abs(figure.value.estimate - figure.chance) < 4 * sd, name
    if evaluation is choices.TRUTHFUL:
        assert known["mc1"].chance == pytest.approx(0.2255, abs=5e-5)  # the data's own README
