"""Critique and revision with a model that follows a script: what is asked when, and what counts."""

import re
from collections.abc import Sequence

import pytest

from jaxrlhf.constitutional.constitution import Constitution
from jaxrlhf.constitutional.critique import critique_revise, discards, last, sft_rows
from jaxrlhf.constitutional.sampler import Drawn
from jaxrlhf.errors import ConfigError, DataError

CONSTITUTION = Constitution.model_validate(
    {
        "name": "test",
        "principles": [
            {"id": f"p{n}", "critique_request": f"ask{n}", "revision_request": f"do{n}"}
            for n in range(3)
        ],
        "layout": {
            "respond": "{prompt} >",
            "critique": " {request} ?",
            "revise": " {request} !",
            "stops": ["END"],
            "critique_pattern": "(?!odd).*",
        },
    }
)
PROMPTS = [f"q{n}" for n in range(10)]


class Script:
    """Answers "r" and the prompt, then "c" and "v" and a count; and notes what it was asked."""

    def __init__(self, batch_size: int = 4, answers: dict[str, Drawn] | None = None):
        self.batch_size, self.answers = batch_size, answers or {}
        self.asked: list[tuple[str, tuple[int, ...]]] = []

    def generate(self, texts: Sequence[str], keys, *, stops: Sequence[str] = ()) -> list[Drawn]:
        assert list(stops) == ["END"] and len(texts) == len(keys) <= self.batch_size
        self.asked += [(text, tuple(key)) for text, key in zip(texts, keys, strict=True)]
        return [self.answer(text) for text in texts]

    def answer(self, text: str) -> Drawn:
        for ending, drawn in self.answers.items():
            if text.endswith(ending):
                return drawn
        kind = {">": "r", "?": "c", "!": "v"}[text[-1]]
        return Drawn(f"{kind}({text})", -1.5, True)

    def option_log_probs(self, texts, options):
        raise AssertionError("nothing is compared here")


def chains(model: Script, **options) -> list[dict]:
    return list(critique_revise(model, PROMPTS, CONSTITUTION, **{"seed": 5, **options}))


def number(principle: str) -> str:
    return principle[1:]


def test_each_round_sees_the_prompt_and_the_last_revision_and_nothing_before():
    for row, prompt in zip(chains(Script(), rounds=3), PROMPTS, strict=True):
        text = f"r({prompt} >)"
        assert row["response"] == text and row["prompt"] == prompt
        for one in row["revisions"]:
            n = number(one["principle"])
            asked = f"{prompt} > {text} ask{n} ?"
            assert one["critique"] == f"c({asked})"
            text = f"v({asked} c({asked}) do{n} !)"
            assert one["revision"] == text
            assert one["log_prob"] == one["critique_log_prob"] == row["log_prob"] == -1.5
        assert len(row["revisions"]) == 3 and row["discarded"] is None
        assert last(row) == text
    assert [row["row"] for row in chains(Script())] == list(range(10))


def test_a_direct_revision_asks_for_no_critique():
    for row, prompt in zip(chains(Script(), rounds=1, direct=True), PROMPTS, strict=True):
        (one,) = row["revisions"]
        asked = f"{prompt} > r({prompt} >) do{number(one['principle'])} !"
        assert (one["critique"], one["critique_log_prob"]) == (None, None)
        assert one["revision"] == f"v({asked})"


def test_no_rounds_are_responses_alone():
    rows = chains(Script(), rounds=0)
    assert all(row["response"] and not row["revisions"] for row in rows)


def test_principles_depend_on_seed_and_row_and_round_not_on_the_batch_or_the_mode():
    def drawn(model, **options):
        return [[r["principle"] for r in row["revisions"]] for row in chains(model, **options)]

    whole = drawn(Script())
    assert whole == drawn(Script(batch_size=3)) == drawn(Script(), direct=True)
    assert [one[:2] for one in whole] == drawn(Script(), rounds=2)
    assert whole != drawn(Script(), seed=6)
    assert len({tuple(one) for one in whole}) > 5


def test_every_text_is_drawn_with_a_key_of_its_own():
    model = Script()
    chains(model, rounds=3)
    keys = [key for _, key in model.asked]
    assert len(set(keys)) == len(keys) == 10 * (1 + 3 * 2)


def test_rows_that_are_done_are_not_made_again_and_the_others_are_the_same():
    whole = chains(Script())
    for done in ({0, 1, 2, 3}, {1, 2, 9}, set(range(9)), set(range(10))):
        model = Script()
        rest = chains(model, done=done)
        assert rest == [row for row in whole if row["row"] not in done]
    assert not model.asked  # everything was there
    model = Script()
    chains(model, done={0, 1, 2, 3})
    assert {key[0] for _, key in model.asked} == set(range(4, 10))


EMPTY, CUT = Drawn("", -1.0, True), Drawn("no end", -1.0, False)
TOO_LONG = Drawn("", None, False, "longer than the model reads")


@pytest.mark.parametrize(
    ("ending", "drawn", "reason", "revisions"),
    [
        ("q3 >", EMPTY, "response: empty", 0),
        ("q3 >", CUT, "response: unfinished", 0),
        ("q3 >", TOO_LONG, "response: longer than the model reads", 0),
        ("q3 > r(q3 >) ask{0} ?", EMPTY, "critique 1: empty", 0),
        (
            "q3 > r(q3 >) ask{0} ?",
            Drawn("odd", -1.0, True),
            "critique 1: does not match the layout's pattern",
            0,
        ),
        ("c(q3 > r(q3 >) ask{0} ?) do{0} !", EMPTY, "revision 1: empty", 0),
        ("q3 > v(q3 > r(q3 >) ask{0} ? c(q3 > r(q3 >) ask{0} ?) do{0} !) ask{1} ?", CUT,
         "critique 2: unfinished", 1),
    ],
)  # fmt: skip
def test_what_does_not_follow_the_format_is_discarded_and_said_where(
    ending, drawn, reason, revisions
):
    whole = chains(Script())
    order = [number(one["principle"]) for one in whole[3]["revisions"]]
    rows = chains(Script(answers={ending.format(*order): drawn}))
    assert rows[:3] + rows[4:] == whole[:3] + whole[4:]
    assert rows[3]["discarded"] == reason and len(rows[3]["revisions"]) == revisions
    assert discards(rows) == {reason: 1}
    assert len(sft_rows(rows, CONSTITUTION, which="last")) == 9


def test_unfinished_texts_may_be_kept():
    rows = chains(Script(answers={"q3 >": CUT}), keep_unfinished=True)
    assert rows[3]["response"] == "no end" and not discards(rows)


def test_where_every_row_was_discarded_nothing_goes_on():
    rows = chains(Script(answers={" ?": EMPTY}))
    with pytest.raises(DataError, match="no row is left of 10: 10 critique 1: empty"):
        discards(rows)
    with pytest.raises(DataError, match="no revision is left"):
        sft_rows(rows, CONSTITUTION)
    with pytest.raises(DataError, match="there were none"):
        discards([])


def test_discards_are_counted_by_reason():
    rows = chains(Script(answers={"q3 >": EMPTY, "q5 >": EMPTY, "q6 >": CUT}))
    assert discards(rows) == {"response: empty": 2, "response: unfinished": 1}
    assert list(discards(rows)) == ["response: empty", "response: unfinished"]


def test_rounds_need_principles():
    none = CONSTITUTION.model_copy(update={"principles": ()})
    with pytest.raises(ConfigError, match="test: 4 rounds of 0 principles"):
        list(critique_revise(Script(), PROMPTS, none))
    assert len(list(critique_revise(Script(), PROMPTS, none, rounds=0))) == 10


# What is fine-tuned on.

HELPFUL = [{"prompt": f"h{n}", "completion": f" a{n}"} for n in range(30)]


def test_all_revisions_or_the_last_with_the_prompt_that_the_response_was_asked_with():
    rows = chains(Script(), rounds=2)
    every = sft_rows(rows, CONSTITUTION)
    assert [row["prompt"] for row in every] == [f"q{n} >" for n in range(10) for _ in range(2)]
    texts = [one["revision"] for row in rows for one in row["revisions"]]
    assert [row["completion"] for row in every] == [f" {text}" for text in texts]
    assert {row["source"] for row in every} == {"revision"}
    assert [row["completion"] for row in sft_rows(rows, CONSTITUTION, which="last")] == [
        f" {text}" for text in texts[1::2]
    ]


def test_a_conversation_stays_one():
    turns = [{"role": "user", "content": "hi"}]
    (chain,) = critique_revise(Script(), [turns], CONSTITUTION, rounds=1)
    assert chain["response"] == "r(hi >)"
    (row,) = sft_rows([chain], CONSTITUTION)
    assert row["prompt"] == turns
    assert row["completion"] == [{"role": "assistant", "content": last(chain)}]


def test_helpful_answers_are_mixed_in_by_ratio():
    rows = chains(Script(), rounds=1)
    for ratio, count in ((None, 30), (0.0, 0), (0.5, 5), (3.0, 30)):
        mixed = sft_rows(rows, CONSTITUTION, helpful=HELPFUL, helpful_ratio=ratio)
        chosen = [row for row in mixed if row["source"] == "helpful"]
        assert len(mixed) == 10 + count == 10 + len(chosen)
        assert len({row["prompt"] for row in chosen}) == count  # none twice
    some = sft_rows(rows, CONSTITUTION, helpful=HELPFUL, helpful_ratio=0.5)
    assert some == sft_rows(rows, CONSTITUTION, helpful=HELPFUL, helpful_ratio=0.5)
    assert some != sft_rows(rows, CONSTITUTION, helpful=HELPFUL, helpful_ratio=0.5, seed=1)


def test_too_few_helpful_answers_are_an_error_that_says_what_would_do():
    message = "helpful_ratio = 3.1: 10 rows ask for 31 helpful rows, there are 30; at most 3 would"
    with pytest.raises(DataError, match=re.escape(message)):
        sft_rows(chains(Script(), rounds=1), CONSTITUTION, helpful=HELPFUL, helpful_ratio=3.1)
