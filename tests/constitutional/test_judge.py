"""Labels from log-probs that are known: orders, questions, thoughts, and the pairs they become."""

import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from jaxrlhf.constitutional.constitution import Constitution
from jaxrlhf.constitutional.judge import Pair, label_pairs, preference_rows, probabilities
from jaxrlhf.constitutional.sampler import Drawn
from jaxrlhf.errors import ConfigError, DataError

CONSTITUTION = Constitution.model_validate(
    {
        "name": "test",
        "comparisons": [{"id": f"c{n}", "question": f"ask{n}"} for n in range(4)],
        "layout": {
            "compare": "{prompt} {question} {a} | {b} =>",
            "options": [" A", " B"],
            "think": "{prompt} {question} {a} | {b} hm",
            "conclude": " so =>",
        },
        "comparison_examples": [{"prompt": "e", "better": "1", "worse": "0"}],
    }
)
PAIRS = [Pair(f"q{n}", str(n), str(9 - n)) for n in range(10)]


def shown(text: str) -> list[int]:
    """Of "... q<prompt> ask<question> <a> | <b> =>": the four numbers."""
    return [int(number) for number in re.findall(r"\d+", text[text.rindex("q") :])]


def by_number(text: str) -> list[float]:
    """Likes the larger response, by half a nat a step, and the first place by .3 nats."""
    _, _, a, b = shown(text)
    return [0.3 + 0.5 * (a - b) - 2.0, -2.0]


class Script:
    """Log-probs by a rule on the text; thoughts that say the text is thought about."""

    def __init__(
        self,
        log_probs: Callable[[str], list[float]] = by_number,
        *,
        thought: Drawn | None = None,
        batch_size: int = 4,
    ):
        self.log_probs, self.thought, self.batch_size = log_probs, thought, batch_size
        self.asked: list[str] = []
        self.keys: list[tuple[int, ...]] = []

    def option_log_probs(self, texts: Sequence[str], options: Sequence[str]) -> np.ndarray:
        assert list(options) == [" A", " B"]
        self.asked += texts
        return np.array([self.log_probs(text) for text in texts])

    def generate(self, texts: Sequence[str], keys, *, stops: Sequence[str] = ()) -> list[Drawn]:
        assert list(stops) == list(CONSTITUTION.layout.stops)
        self.keys += [tuple(key) for key in keys]
        return [self.thought or Drawn("thinks", -1.0, True) for _ in texts]


def labels(model: Script | None = None, **options) -> list[dict]:
    return list(label_pairs(model or Script(), PAIRS, CONSTITUTION, **{"seed": 2, **options}))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_the_label_is_the_normalised_probability_averaged_over_both_orders():
    """a first: log-odds .3 + (a - b) / 2; b first: those of b are .3 + (b - a) / 2."""
    for row, pair in zip(labels(), PAIRS, strict=True):
        gap = 0.5 * (int(pair.a) - int(pair.b))
        ab, ba = sigmoid(0.3 + gap), 1 - sigmoid(0.3 - gap)
        assert row["probability"] == pytest.approx((ab + ba) / 2, rel=1e-9)
        p = row["probability"]
        assert row["entropy"] == pytest.approx(-p * np.log(p) - (1 - p) * np.log(1 - p))
        first, second = row["judgements"]
        assert (first["order"], second["order"]) == ("ab", "ba")
        assert first["question"] == second["question"]
        assert first["log_probs"] == pytest.approx([0.3 + gap - 2, -2])
        assert second["log_probs"] == pytest.approx([0.3 - gap - 2, -2])
        found = probabilities(row)
        assert (found["ab"][0], found["ba"][0]) == pytest.approx((ab, ba))
        assert row["responses"] == [pair.a, pair.b] and row["prompt"] == pair.prompt


def test_a_judge_that_looks_at_the_place_alone_says_one_half():
    """P(A) = sigmoid(2) = .881 in either order: (.881 + .119) / 2."""
    for row in labels(Script(lambda text: [2.0, 0.0])):
        assert row["probability"] == pytest.approx(0.5, abs=1e-12)
        assert row["entropy"] == pytest.approx(np.log(2))


def test_only_the_difference_of_log_probs_counts():
    far = labels(Script(lambda text: [x - 800 for x in by_number(text)]))
    assert [r["probability"] for r in far] == pytest.approx([r["probability"] for r in labels()])


def test_one_order_is_drawn_and_labels_by_it_alone():
    rows = labels(both_orders=False)
    orders = [row["judgements"][0]["order"] for row in rows]
    assert set(orders) == {"ab", "ba"} and all(len(row["judgements"]) == 1 for row in rows)
    for row, pair in zip(rows, PAIRS, strict=True):
        gap = 0.5 * (int(pair.a) - int(pair.b))
        asked = sigmoid(0.3 + gap) if "ab" in probabilities(row) else 1 - sigmoid(0.3 - gap)
        assert row["probability"] == pytest.approx(asked)
    many = list(label_pairs(Script(), PAIRS * 40, CONSTITUTION, both_orders=False))
    share = np.mean([row["judgements"][0]["order"] == "ab" for row in many])
    assert abs(share - 0.5) < 4 * 0.5 / 20  # four standard errors of 400 coins


def test_several_questions_are_different_and_averaged():
    def one(text: str) -> list[float]:
        """Finds pair.a (which is the prompt's number) better, by the number of the question."""
        prompt, question, a, _ = shown(text)
        return [float(question), 0.0] if a == prompt else [0.0, float(question)]

    model = Script(one)
    rows = list(label_pairs(model, PAIRS[1:5], CONSTITUTION, questions_per_pair=4))
    for row in rows:
        assert sorted({x["question"] for x in row["judgements"]}) == ["c0", "c1", "c2", "c3"]
        assert len(row["judgements"]) == 8
        assert row["probability"] == pytest.approx(np.mean([sigmoid(n) for n in range(4)]))
    few = list(label_pairs(Script(one), PAIRS[1:5], CONSTITUTION, questions_per_pair=2))
    for row in few:
        asked = [int(x["question"][1]) for x in row["judgements"]]
        assert len(set(asked)) == 2
        assert row["probability"] == pytest.approx(np.mean([sigmoid(n) for n in asked]))
    with pytest.raises(ConfigError, match="5 are to be drawn, but the constitution has 4"):
        list(label_pairs(Script(one), PAIRS, CONSTITUTION, questions_per_pair=5))


def test_both_orders_are_asked_with_the_same_examples():
    model = Script()
    labels(model, few_shot=None)
    for first, second in zip(model.asked[::2], model.asked[1::2], strict=True):
        assert first.split("q")[0] == second.split("q")[0] != ""
    bare = Script()
    labels(bare, few_shot=0)
    assert all(text.startswith("q") for text in bare.asked)


def test_thinking_first_asks_after_the_thoughts():
    model = Script()
    rows = labels(model, think=True)
    assert all(text.endswith(" hm thinks so =>") for text in model.asked)
    assert {x["reasoning"] for row in rows for x in row["judgements"]} == {"thinks"}
    assert [row["probability"] for row in rows] == [row["probability"] for row in labels()]
    assert len(set(model.keys)) == len(model.keys) == 20  # a thought for each order


@pytest.mark.parametrize(
    ("thought", "reason"),
    [
        (Drawn("", None, True), "reasoning: empty"),
        (Drawn("on and on", None, False), "reasoning: unfinished"),
        (Drawn("", None, False, "longer than the model reads"), "reasoning: longer than the mode"),
    ],
)
def test_thoughts_that_do_not_follow_the_format_are_discarded(thought, reason):
    rows = labels(Script(thought=thought), think=True)
    assert all(row["discarded"].startswith(reason) for row in rows)
    assert all(row["probability"] is None for row in rows)
    if "unfinished" in reason:
        kept = labels(Script(thought=thought), think=True, keep_unfinished=True)
        assert all(row["discarded"] is None for row in kept)


def test_a_pair_of_which_one_order_cannot_be_read_is_discarded():
    def some(text: str) -> list[float]:
        return [np.nan, np.nan] if " 3 | 6 " in text else by_number(text)

    rows = labels(Script(some))
    assert [row["row"] for row in rows if row["discarded"]] == [3, 6]
    assert rows[3]["discarded"] == "no option could be read"
    assert rows[3]["probability"] is None and rows[3]["judgements"][0]["log_probs"] is None
    assert len(preference_rows(rows)) == 8


def test_rows_that_are_done_are_not_made_again_and_the_others_are_the_same():
    whole = labels()
    for done in ({0, 1, 2, 3}, {1, 9}, set(range(10))):
        model = Script()
        assert labels(model, done=done) == [row for row in whole if row["row"] not in done]
    assert not model.asked
    assert labels(Script(batch_size=3)) == whole
    assert [r["judgements"][0]["question"] for r in whole] != [
        r["judgements"][0]["question"] for r in labels(seed=3)
    ]


def test_a_constitution_without_questions_is_refused():
    none = CONSTITUTION.model_copy(update={"comparisons": ()})
    with pytest.raises(ConfigError, match="test: has no comparisons"):
        list(label_pairs(Script(), PAIRS, none))


# What a preference model is trained on.


def test_the_better_one_is_chosen_and_the_label_is_its_probability():
    for row, label, pair in zip(preference_rows(labels()), labels(), PAIRS, strict=True):
        p = label["probability"]
        better = (pair.a, pair.b) if p >= 0.5 else (pair.b, pair.a)
        assert (row["chosen"], row["rejected"]) == (f" {better[0]}", f" {better[1]}")
        assert row["label"] == row["probability"] == pytest.approx(max(p, 1 - p))
        assert row["prompt"] == pair.prompt and row["entropy"] == label["entropy"]
        assert row["questions"] == [label["judgements"][0]["question"]]
        assert (row["weight"], row["source"]) == (1.0, "ai")


def made(probability: float, **options) -> dict:
    label = {"row": 0, "prompt": "q", "responses": ["x", "y"], "probability": probability}
    rest = {"entropy": 0.1, "judgements": [], "discarded": None}
    return preference_rows([label | rest], **options)[0]


@pytest.mark.parametrize(
    ("p", "soft", "hard", "clamped"),
    [(0.9, 0.9, 1.0, 0.6), (0.55, 0.55, 1.0, 0.55), (0.5, 0.5, 0.5, 0.5), (0.2, 0.8, 1.0, 0.6)],
)
def test_soft_hard_and_clamped(p, soft, hard, clamped):
    assert made(p)["label"] == pytest.approx(soft)
    assert made(p, hard=True)["label"] == hard
    assert made(p, clamp=(0.4, 0.6))["label"] == pytest.approx(clamped)
    assert made(p, clamp=(0.4, 0.6))["probability"] == pytest.approx(soft)
    assert made(p)["chosen"] == (" x" if p >= 0.5 else " y")


def test_the_weight_is_written():
    assert made(0.9, weight=0.25)["weight"] == 0.25


@pytest.mark.parametrize("clamp", [(0.6, 0.4), (0.3, 0.6), (-0.1, 1.1)])
def test_a_clamp_is_about_one_half(clamp):
    with pytest.raises(ConfigError, match="clamp = "):
        made(0.9, clamp=clamp)


def test_where_no_pair_is_left_there_is_no_empty_file():
    rows = labels(Script(lambda text: [np.nan, np.nan]))
    with pytest.raises(DataError, match="no labelled pair is left"):
        preference_rows(rows)


def test_answers_to_a_conversation_are_turns():
    turns = [{"role": "user", "content": "q1"}]
    (row,) = preference_rows(label_pairs(Script(), [Pair(turns, "8", "1")], CONSTITUTION))
    assert row["prompt"] == turns
    assert row["chosen"] == [{"role": "assistant", "content": "8"}]
