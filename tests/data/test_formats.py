"""Rows to texts, prompts, examples and preferences: TRL's formats, dialogues, and bad rows."""

import random

import pytest

from jaxrlhf.data import dialogue, formats
from jaxrlhf.data.formats import Example, Preference, Prompt, Text
from jaxrlhf.data.rows import Rows, shorten
from jaxrlhf.data.sources import load_rows
from jaxrlhf.errors import DataError

USER, BOT = {"role": "user", "content": "sky?"}, {"role": "assistant", "content": "blue"}
BAD = {"role": "assistant", "content": "green"}
SYSTEM = {"role": "system", "content": "be brief"}
HH = "\n\nHuman: sky?\n\nAssistant: blue"
HH_BAD = "\n\nHuman: sky?\n\nAssistant: green"


def one(function, row, **options):
    """The item made of a single row."""
    return function(Rows([row]), **options).items[0]


def test_trl_texts():
    assert one(formats.texts, {"text": "abc"}) == Text("abc")
    assert one(formats.texts, {"messages": [USER, BOT]}) == Text(HH)
    assert one(formats.texts, {"messages": [SYSTEM, USER, BOT]}) == Text("be brief" + HH)
    assert one(formats.texts, {"prompt": "a b", "completion": " c"}) == Text("a b c")
    assert one(formats.texts, {"prompt": [USER], "completion": [BOT]}) == Text(HH)
    assert one(formats.texts, {"instruction": "sky?", "output": "blue"}) == Text(HH)


@pytest.mark.parametrize(
    ("row", "columns", "item"),
    [
        ({"text": "abc"}, {}, Text("abc")),
        ({"messages": [USER, BOT]}, {}, Example([], [USER, BOT])),
        ({"prompt": "a b", "completion": " c"}, {}, Example("a b", " c")),
        ({"instruction": "sky?", "output": "blue"}, {}, Example([USER], [BOT])),
        # a text beside them is what is meant; so is a mapped one
        ({"text": "abc", "prompt": "a", "completion": "b"}, {}, Text("abc")),
        ({"story": "abc", "prompt": "a"}, {"text": "story"}, Text("abc")),
        ({"prompt": "a", "answer": " c"}, {"completion": "answer"}, Example("a", " c")),
        # a pair is no example: as text, either side
        ({"prompt": "a", "chosen": " b", "rejected": " c"}, {}, Text("a b")),
    ],
)
def test_supervised_rows_are_what_their_columns_say(row, columns, item):
    assert one(formats.supervised, row, columns=columns) == item


def test_a_pair_is_two_texts():
    implicit = Rows([{"chosen": HH, "rejected": HH_BAD}, {"chosen": "a", "rejected": "b"}])
    found = formats.texts(implicit)
    assert found.items == [Text(HH), Text(HH_BAD), Text("a"), Text("b")]
    assert [found.where(i) for i in range(4)] == ["rows row 1"] * 2 + ["rows row 2"] * 2
    explicit = Rows([{"prompt": "a", "chosen": " b", "rejected": " c"}])
    assert formats.texts(explicit).items == [Text("a b"), Text("a c")]
    messages = Rows([{"prompt": [USER], "chosen": [BOT], "rejected": [BAD]}])
    assert formats.texts(messages).items == [Text(HH), Text(HH_BAD)]
    whole = Rows([{"chosen": [USER, BOT], "rejected": [USER, BAD]}])
    assert formats.texts(whole).items == [Text(HH), Text(HH_BAD)]
    # A named column, or a row that is a text already, is one text as ever.
    assert formats.texts(implicit, columns={"text": "chosen"}).items == [Text(HH), Text("a")]
    assert one(formats.texts, {"text": "x", "chosen": HH, "rejected": HH_BAD}) == Text("x")
    renamed = Rows([{"good": "a", "rejected": "b"}])
    assert formats.texts(renamed, columns={"chosen": "good"}).items == [Text("a"), Text("b")]


def test_a_side_of_a_pair_that_is_no_text_is_named():
    rows = Rows([{"chosen": "a", "rejected": "b"}, {"chosen": "a", "rejected": 7}])
    with pytest.raises(DataError, match=r"rows row 2: .*'rejected'"):
        formats.texts(rows)
    assert len(formats.texts(rows, on_bad_row="skip")) == 3


def test_trl_prompts():
    assert one(formats.prompts, {"prompt": "a b", "gold": 7}) == Prompt("a b", {"gold": 7})
    assert one(formats.prompts, {"prompt": [USER]}).prompt == [USER]
    assert one(formats.prompts, {"messages": [USER, BOT, USER, BOT]}).prompt == [USER, BOT, USER]
    assert one(formats.prompts, {"prompt": HH}).prompt == [USER]
    assert one(formats.prompts, {"prompt": "\n\nHuman: sky?\n\nAssistant:"}).prompt == [USER]
    assert one(formats.prompts, {"chosen": HH, "rejected": HH_BAD, "n": 1}) == Prompt(
        [USER], {"n": 1}
    )
    alpaca = one(formats.prompts, {"instruction": "Add.", "input": "1 2", "output": "3"})
    user = {"role": "user", "content": "Add.\n\n1 2"}
    assert alpaca == Prompt([user], {"output": "3"})


def test_trl_examples():
    assert one(formats.examples, {"text": "abc"}) == Example("", "abc")
    assert one(formats.examples, {"text": HH}) == Example([], [USER, BOT])
    assert one(formats.examples, {"messages": [USER, BOT]}) == Example([], [USER, BOT])
    assert one(formats.examples, {"messages": HH}) == Example([], [USER, BOT])
    assert one(formats.examples, {"prompt": "a", "completion": " b"}) == Example("a", " b")
    assert one(formats.examples, {"prompt": [USER], "completion": [BOT]}) == Example([USER], [BOT])
    assert one(formats.examples, {"prompt": [USER], "completion": "blue"}) == Example([USER], [BOT])
    empty = {"instruction": "sky?", "input": "", "output": "blue"}
    assert one(formats.examples, empty) == Example([USER], [BOT])
    assert one(formats.examples, {**empty, "input": None}) == Example([USER], [BOT])


def test_trl_preferences():
    want = Preference([USER], [BOT], [BAD])
    plain = {"prompt": "sky?", "chosen": " blue", "rejected": " green"}
    assert one(formats.preferences, plain) == Preference("sky?", " blue", " green")
    assert one(formats.preferences, {"prompt": [USER], "chosen": [BOT], "rejected": [BAD]}) == want
    assert one(formats.preferences, {"chosen": [USER, BOT], "rejected": [USER, BAD]}) == want
    assert one(formats.preferences, {"chosen": HH, "rejected": HH_BAD}) == want
    # UltraFeedback: the prompt as a string beside whole conversations
    ultra = {"prompt": "sky?", "chosen": [USER, BOT], "rejected": [USER, BAD]}
    assert one(formats.preferences, ultra) == want
    repeated = {**ultra, "prompt": [USER]}
    assert one(formats.preferences, repeated) == want
    assert (
        one(formats.preferences, {"prompt": [USER], "chosen": "blue", "rejected": "green"}) == want
    )
    alpaca = {
        "instruction": "sky?",
        "input": "",
        "output": "x",
        "chosen": "blue",
        "rejected": "green",
    }
    assert one(formats.preferences, alpaca) == want


def test_implicit_prompt_of_plain_strings():
    pair = {"chosen": "the film is good", "rejected": "the film is great"}
    assert one(formats.preferences, pair) == Preference("the film is", " good", " great")
    nothing = {"chosen": "good", "rejected": "bad"}
    assert one(formats.preferences, nothing) == Preference("", "good", "bad")


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("\n\nHuman: sky?\n\nAssistant:", " blue"),
        ("\n\nHuman: sky?\n\nAssistant:", "blue"),
        ("\n\nHuman: sky?\n\nAssistant: ", "blue"),
        ("\n\nHuman: sky?", "\n\nAssistant: blue"),
        ("\n\nHuman: sky?", "blue"),
    ],
)
def test_dialogue_prompt_and_string_answer(prompt, answer):
    row = {"prompt": prompt, "completion": answer}
    assert one(formats.examples, row) == Example([USER], [BOT])


def test_dialogue_answer_of_several_turns():
    row = {
        "prompt": "\n\nHuman: sky?\n\nAssistant:",
        "completion": " blue\n\nHuman: sky?\n\nAssistant: blue",
    }
    assert one(formats.examples, row) == Example([USER], [BOT, USER, BOT])


def test_label_margin_and_weight():
    pair = {"prompt": "a", "chosen": " b", "rejected": " c"}
    made = one(formats.preferences, {**pair, "label": 0.25, "margin": 2, "weight": 3})
    assert (made.label, made.margin, made.weight) == (0.25, 2.0, 3.0)
    made = one(formats.preferences, {**pair, "label": "0.25", "margin": ""})  # from CSV
    assert (made.label, made.margin) == (0.25, 0.0)
    made = one(formats.preferences, {**pair, "label": None})
    assert (made.label, made.margin, made.weight) == (1.0, 0.0, 1.0)


def test_column_mapping():
    columns = {"text": "sentence"}
    assert one(formats.texts, {"sentence": "abc", "label": 1}, columns=columns) == Text("abc")
    row = {"conversation": [USER], "good": "blue", "rejected": "green"}
    columns = {"prompt": "conversation", "chosen": "good"}
    assert one(formats.preferences, row, columns=columns) == Preference([USER], [BOT], [BAD])
    assert one(formats.prompts, row, columns={"prompt": "conversation"}).columns == {
        "good": "blue",
        "rejected": "green",
    }


def test_mapping_errors():
    rows = Rows([{"sentence": "abc"}], name="f.jsonl")
    with pytest.raises(
        DataError, match=r"f.jsonl: no column 'sentense'; did you mean 'sentence'\?"
    ):
        formats.texts(rows, columns={"text": "sentense"})
    with pytest.raises(
        DataError, match="texts have no column 'txt': must be one of text, messages"
    ):
        formats.texts(rows, columns={"txt": "sentence"})
    with pytest.raises(
        DataError, match=r"f.jsonl: texts need the columns text or .* it has sentence"
    ):
        formats.texts(rows)
    with pytest.raises(DataError, match=r"'promt' is near 'prompt'"):
        formats.prompts(Rows([{"promt": "a"}]))


PAIR = {"prompt": "p", "chosen": " a", "rejected": " b"}
BAD_ROWS = {
    "number": (formats.texts, {"text": 7}, "wrong type: column 'text' must be text, not int: 7"),
    "null": (formats.texts, {"text": None}, "wrong type: column 'text' must be text, not null"),
    "missing": (formats.texts, {"other": 1}, "missing column: 'text'"),
    "empty": (formats.texts, {"text": " \n"}, "empty text: in column 'text'"),
    "surrogate": (formats.texts, {"text": "\ud800"}, "not valid Unicode: half a surrogate pair"),
    "no bot": (formats.examples, {"messages": [USER]}, "no assistant turn: in column 'messages'"),
    "no messages": (
        formats.examples,
        {"messages": []},
        "empty text: column 'messages' has no mess",
    ),
    "message": (formats.examples, {"messages": ["x"]}, "message 1 must be an object: 'x'"),
    "content": (
        formats.examples,
        {"messages": [USER, {"role": "assistant", "content": None}]},
        "column 'messages', message 2: 'content' must be text",
    ),
    "role": (
        formats.examples,
        {"messages": [USER, {"role": "asistant", "content": "x"}]},
        "unknown role: column 'messages', message 2: 'asistant'; did you mean 'assistant'",
    ),
    "not a dialogue": (formats.examples, {"messages": "hello"}, "not a dialogue"),
    "prefilled": (
        formats.examples,
        {"prompt": [USER, BOT], "completion": [BOT]},
        "no user turn before the answer: column 'prompt'",
    ),
    "mixed": (
        formats.examples,
        {"prompt": "a", "completion": [BOT]},
        "messages where the prompt is t",
    ),
    "label": (formats.preferences, {**PAIR, "label": 1.5}, "'label' must be from 0.0 to 1.0: 1.5"),
    "label text": (formats.preferences, {**PAIR, "label": "x"}, "'label' must be a number: 'x'"),
    "margin": (formats.preferences, {**PAIR, "margin": float("inf")}, "value out of range"),
    "weight": (formats.preferences, {**PAIR, "weight": -1}, "'weight' must be from 0.0 to inf: -1"),
    "last": (
        formats.preferences,
        {"chosen": HH + "\n\nHuman: and?", "rejected": HH_BAD},
        "no assistant turn at the end: column 'chosen' ends with a turn of the user",
    ),
    "no answer": (
        formats.preferences,
        {"chosen": HH, "rejected": "\n\nHuman: sky?"},
        "no assistant turn: in column 'rejected'",
    ),
    "only bot": (formats.prompts, {"messages": [BOT]}, "no user turn"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row_names_its_place_or_is_counted(case):
    function, row, message = BAD_ROWS[case]
    shape = [name for name in ("messages", "prompt", "chosen", "text") if name in row]
    good = {
        "messages": {"messages": [USER, BOT]},
        "prompt": {**PAIR, "completion": " b"},
        "chosen": {"chosen": HH, "rejected": HH_BAD},
        "text": {"text": "fine"},
    }[shape[0] if shape else "text"]
    rows = Rows([good, row, good], name="f", places=["f.jsonl:3", "f.jsonl:5", "f.jsonl:6"])
    with pytest.raises(DataError, match="f.jsonl:5: .*" + message):
        function(rows)
    made = function(rows, on_bad_row="skip")
    assert made.index == [0, 2] and made.skipped.total == 1
    assert list(made.skipped.first.values()) == ["f.jsonl:5"]


SKIPPED = {
    "prompts differ": {"chosen": HH, "rejected": HH_BAD.replace("sky", "sea")},
    "empty completion": {"chosen": HH, "rejected": "\n\nHuman: sky?\n\nAssistant: "},
    "chosen equals rejected": {"chosen": HH, "rejected": HH},
}


@pytest.mark.parametrize("reason", SKIPPED)
def test_content_that_cannot_be_learnt_from_is_counted(reason):
    good = {"chosen": HH, "rejected": HH_BAD}
    made = formats.preferences(Rows([SKIPPED[reason], good, SKIPPED[reason]], name="f"))
    assert len(made) == 1 and made.index == [1] and made.where(0) == "f row 2"
    assert made.skipped.counts == {reason: 2} and made.skipped.first == {reason: "f row 1"}
    assert str(made.skipped) == f"2 rows skipped: 2 {reason} (first: f row 1)"
    assert made.at_row(1) is made[0]
    with pytest.raises(DataError, match=f"f: no preferences left: 1 rows skipped: 1 {reason}"):
        formats.preferences(Rows([SKIPPED[reason]], name="f"))


def test_more_turns_on_one_side_differ():
    longer = HH + "\n\nHuman: sky?\n\nAssistant: blue"
    made = formats.preferences(
        Rows([{"chosen": longer, "rejected": HH_BAD}, {"chosen": HH, "rejected": HH_BAD}])
    )
    assert made.skipped.counts == {"prompts differ": 1}


def test_on_bad_row_is_checked():
    with pytest.raises(DataError, match="on_bad_row = 'ignore'"):
        formats.texts(Rows([{"text": "a"}]), on_bad_row="ignore")  # type: ignore[arg-type]


def test_file_to_error_line(write):
    path = write(
        "a.jsonl", '{"prompt": "a", "completion": " b"}\n\n{"prompt": "a", "completion": 3}\n'
    )
    with pytest.raises(DataError, match=r"a.jsonl:3: wrong type: column 'completion' must be text"):
        formats.examples(load_rows(path))


def test_long_values_are_shortened():
    with pytest.raises(DataError) as error:
        one(formats.texts, {"text": ["x" * 10_000]})
    assert len(str(error.value)) < 300
    assert shorten("ab") == "'ab'" and len(shorten("x" * 1000, 20)) == 20


def random_messages(rng):
    pools = ["abc ", "äß漢🙂", " \n", "Human: ", "\n\nHuman:", "\n\nAssistant:x", "\t\r\n"]
    messages = []
    for i in range(rng.randrange(1, 6)):
        content = "".join(rng.choice(pools) for _ in range(rng.randrange(6)))
        messages.append({"role": ["user", "assistant"][i % 2], "content": content})
    return messages


@pytest.mark.parametrize("seed", range(50))
def test_dialogue_round_trip(seed):
    """render o parse is the identity on strings, whatever stands in them."""
    messages = random_messages(random.Random(seed))
    text = dialogue.render(messages)
    assert dialogue.render(dialogue.parse(text)) == text
    clean = [
        {**m, "content": m["content"].replace("\n\nHuman:", "").replace("\n\nAssistant:", "")}
        for m in messages
    ]
    assert dialogue.parse(dialogue.render(clean)) == clean


def test_dialogue_markers():
    """A marker counts only with its space; the last open one is not a message."""
    parsed = dialogue.parse("\n\nHuman: a\n\nHuman:b\n\nAssistant: ")
    assert parsed == [
        {"role": "user", "content": "a\n\nHuman:b"},
        {"role": "assistant", "content": ""},
    ]
    assert dialogue.parse_prompt("\n\nHuman: a \n\nAssistant: ") == [
        {"role": "user", "content": "a "}
    ]
    assert not dialogue.is_dialogue("Human: a") and not dialogue.is_dialogue("x\n\nHuman: a")
