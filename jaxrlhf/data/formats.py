"""What rows mean: texts, prompts, examples and preferences, from the column names people use.

TRL's formats load unchanged: `text`; `messages`; `prompt`; `prompt` + `completion`; `prompt` +
`chosen` + `rejected`; each as strings or as lists of {"role", "content"} messages; also `chosen` +
`rejected` alone, whose prompt is implicit. Strings that begin with "\\n\\nHuman: " are dialogues
and become messages (`dialogue.py`). Alpaca's `instruction`, `input`, `output` become one exchange.
Other names are mapped: `columns={"text": "sentence"}` reads our `text` from their `sentence`.

Plain strings are joined as they are: a completion brings its own leading space. Which columns are
meant is decided once for all rows, from the names present; the first line of each table below that
is complete wins. Nothing here knows tokens.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jaxrlhf.data import dialogue
from jaxrlhf.data.columns import Content, Row
from jaxrlhf.data.dialogue import Message
from jaxrlhf.data.rows import BadRow, Loaded, OnBadRow, Rows, Skipped, SkipRow, convert, shorten
from jaxrlhf.errors import DataError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Text:
    """Plain text; every token of it is learnt."""

    text: str


@dataclass(frozen=True)
class Prompt:
    """Something to answer. `columns` holds the other columns of its row, for rewards to look at."""

    prompt: Content
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """Something to imitate: the completion, or every assistant message in it, is learnt.

    A row of `messages` has an empty prompt: all its assistant turns are learnt.
    """

    prompt: Content
    completion: Content


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt. `label` is P(chosen is the better one), `margin` in nats.

    `weight` is how much the pair counts in the loss, against other pairs.
    """

    prompt: Content
    chosen: Content
    rejected: Content
    label: float = 1.0
    margin: float = 0.0
    weight: float = 1.0


def texts(
    rows: Rows, *, columns: Mapping[str, str] | None = None, on_bad_row: OnBadRow = "error"
) -> Loaded[Text]:
    """Rows as plain text, for pre-training and for training tokenizers.

    Conversations are rendered as Human/Assistant dialogue, whatever the tokenizer's own format.
    A preference pair is two texts, the prompt with either answer: a language model may read both.

    Args:
      rows: what to read.
      columns: {our name: their name} for columns called otherwise.
      on_bad_row: "error", or "skip" to leave malformed rows out and count them.
    Raises:
      DataError: names file, line, column and value; or the nearest column name.
    """
    if _are_pairs(rows, columns or {}):
        return _texts_of_pairs(rows, columns or {}, on_bad_row)
    return _read(rows, TEXTS, columns, on_bad_row, "texts")


def prompts(
    rows: Rows, *, columns: Mapping[str, str] | None = None, on_bad_row: OnBadRow = "error"
) -> Loaded[Prompt]:
    """Rows as prompts to answer. An answer at the end of a conversation is dropped."""
    return _read(rows, PROMPTS, columns, on_bad_row, "prompts")


def examples(
    rows: Rows, *, columns: Mapping[str, str] | None = None, on_bad_row: OnBadRow = "error"
) -> Loaded[Example]:
    """Rows as examples to imitate, for supervised fine-tuning."""
    return _read(rows, EXAMPLES, columns, on_bad_row, "examples")


def supervised(
    rows: Rows, *, columns: Mapping[str, str] | None = None, on_bad_row: OnBadRow = "error"
) -> Loaded[Text] | Loaded[Example]:
    """Rows as their columns ask to be learnt, as in TRL: examples by their answers, texts whole."""
    columns = columns or {}
    answers = [names for names in EXAMPLES if "text" not in names]
    present = {name for name in _names(EXAMPLES) if columns.get(name, name) in rows.columns}
    whole = "text" in present or not any(present.issuperset(names) for names in answers)
    return (texts if whole else examples)(rows, columns=columns, on_bad_row=on_bad_row)


def preferences(
    rows: Rows, *, columns: Mapping[str, str] | None = None, on_bad_row: OnBadRow = "error"
) -> Loaded[Preference]:
    """Rows as preference pairs.

    Optional columns: `label` in [0, 1], `margin` (0 or more) and `weight` (0 or more).

    Skipped and counted: "prompts differ" (see `dialogue.split_pair`), "empty completion" and
    "chosen equals rejected".
    """
    return _read(rows, PREFERENCES, columns, on_bad_row, "preferences")


# One function a shape of row.


def _text(row: Row) -> Text:
    return Text(row.text("text"))


def _text_or_messages(row: Row) -> Text:
    value = row.content("text")
    return Text(dialogue.render(value)) if isinstance(value, list) else _text(row)


def _text_of_messages(row: Row) -> Text:
    return Text(dialogue.render(_conversation(row, "messages")))


def _text_of_pair(row: Row) -> Text:
    example = _prompt_completion(row)
    if isinstance(example.prompt, str) and isinstance(example.completion, str):
        return Text(example.prompt + example.completion)
    return Text(dialogue.render([*example.prompt, *example.completion]))  # type: ignore[list-item]


def _text_of_instruction(row: Row) -> Text:
    example = _instruction_output(row)
    return Text(dialogue.render([*example.prompt, *example.completion]))  # type: ignore[list-item]


def _prompt(row: Row) -> Prompt:
    return Prompt(_without_answer(_question(row)), row.others("prompt"))


def _prompt_of_messages(row: Row) -> Prompt:
    return Prompt(_without_answer(_conversation(row, "messages")), row.others("messages"))


def _prompt_of_instruction(row: Row) -> Prompt:
    return Prompt(_instruction(row), row.others("instruction", "input"))


def _prompt_of_implicit(row: Row) -> Prompt:
    return Prompt(_implicit(row).prompt, row.others("chosen", "rejected"))


def _example_of_messages(row: Row) -> Example:
    return Example([], _learnable(_conversation(row, "messages"), row.called("messages")))


def _example_of_text(row: Row) -> Example:
    text = row.text("text")
    if dialogue.is_dialogue(text):
        return Example([], _learnable(dialogue.parse(text), row.called("text")))
    return Example("", text)


def _prompt_completion(row: Row) -> Example:
    prompt = _question(row)
    completion = _answer(row, "completion", prompt)
    _require_reply(prompt, row.called("prompt"))
    if isinstance(completion, list):
        _learnable(completion, row.called("completion"))
    return Example(prompt, completion)


def _instruction_output(row: Row) -> Example:
    output = row.string("output")
    if not output.strip():
        raise SkipRow("empty completion")
    return Example(_instruction(row), [{"role": "assistant", "content": output}])


def _preference(row: Row) -> Preference:
    if _whole_conversations(row):
        return _implicit(row)
    prompt = _question(row)
    _require_reply(prompt, row.called("prompt"))
    return _pair(row, prompt, *(_answer(row, name, prompt) for name in ("chosen", "rejected")))


def _preference_of_instruction(row: Row) -> Preference:
    prompt = _instruction(row)
    return _pair(row, prompt, *(_answer(row, name, prompt) for name in ("chosen", "rejected")))


def _implicit(row: Row) -> Preference:
    """A pair given as two whole conversations, or as two strings with a common beginning."""
    chosen, rejected = (_parsed(row.content(name)) for name in ("chosen", "rejected"))
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt = _common_words(chosen, rejected)
        return _pair(row, prompt, chosen[len(prompt) :], rejected[len(prompt) :])
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRow(
            "wrong type", "one of 'chosen' and 'rejected' is a conversation, the other not"
        )
    prompt, good, bad = dialogue.split_pair(chosen, rejected)
    _require_reply(prompt, row.called("chosen"))
    return _pair(row, prompt, [good], [bad])


# The parts that these are made of.


def _conversation(row: Row, name: str) -> list[Message]:
    value = row.content(name)
    return dialogue.parse(value) if isinstance(value, str) else value


def _parsed(content: Content) -> Content:
    is_dialogue = isinstance(content, str) and dialogue.is_dialogue(content)
    return dialogue.parse(content) if is_dialogue else content  # type: ignore[arg-type]


def _question(row: Row) -> Content:
    value = row.content("prompt")
    if isinstance(value, list):
        return value
    row.text("prompt")
    return dialogue.parse_prompt(value) if dialogue.is_dialogue(value) else value


def _answer(row: Row, name: str, prompt: Content) -> Content:
    """A completion, as messages where the prompt is messages; an empty one is skipped."""
    value = row.content(name)
    if isinstance(value, list):
        if isinstance(prompt, str):
            raise BadRow("wrong type", f"{row.called(name)!r} is messages where the prompt is text")
        if value[: len(prompt)] == prompt:  # the whole conversation was repeated
            value = value[len(prompt) :]
        dialogue.require_answer(value, row.called(name))
    elif isinstance(prompt, list):
        value = _spoken(row.get("prompt"), prompt, value)
    if _is_empty(value):
        raise SkipRow("empty completion")
    return value


def _spoken(original: Any, prompt: list[Message], answer: str) -> list[Message]:
    """An answer given as a string to a prompt that is messages, or was a dialogue string.

    After a dialogue string the answer may bring the space of "Assistant: ", the whole marker, or
    further turns.
    """
    if not isinstance(original, str):
        return [{"role": "assistant", "content": answer}]
    if not original.endswith(dialogue.ASSISTANT + " "):
        answer = answer.removeprefix(dialogue.ASSISTANT).removeprefix(" ")
    whole = dialogue.render(prompt, add_generation_prompt=True) + " " + answer
    return dialogue.parse(whole)[len(prompt) :]


def _instruction(row: Row) -> list[Message]:
    """Alpaca's instruction and optional input, a blank line between them."""
    more = row.get("input")
    parts = [row.text("instruction"), "" if more is None else row.string("input")]
    return [{"role": "user", "content": "\n\n".join(part for part in parts if part.strip())}]


def _pair(row: Row, prompt: Content, chosen: Content, rejected: Content) -> Preference:
    if _is_empty(chosen) or _is_empty(rejected):
        raise SkipRow("empty completion")
    if chosen == rejected:
        raise SkipRow("chosen equals rejected")
    label = row.number("label", 1.0, 0.0, 1.0)
    margin = row.number("margin", 0.0, 0.0, math.inf)
    weight = row.number("weight", 1.0, 0.0, math.inf)
    return Preference(prompt, chosen, rejected, label, margin, weight)


def _whole_conversations(row: Row) -> bool:
    """Whether `chosen` repeats the prompt, which then need not be looked at (as TRL does)."""
    prompt, chosen = row.get("prompt"), row.get("chosen")
    if isinstance(chosen, str):
        return dialogue.is_dialogue(chosen)
    return isinstance(prompt, str) and isinstance(chosen, list) and len(chosen) > 1


def _without_answer(prompt: Content) -> Content:
    if isinstance(prompt, str):
        return prompt
    end = len(prompt)
    while end and prompt[end - 1]["role"] == "assistant":
        end -= 1
    if not end:
        raise BadRow("no user turn", shorten(prompt))
    return prompt[:end]


def _require_reply(prompt: Content, name: str) -> None:
    if isinstance(prompt, list) and (not prompt or prompt[-1]["role"] == "assistant"):
        raise BadRow("no user turn before the answer", f"column {name!r}: {shorten(prompt)}")


def _learnable(messages: list[Message], name: str) -> list[Message]:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise BadRow("no assistant turn", f"in column {name!r}: {shorten(messages)}")
    if not any(message["content"].strip() for message in answers):
        raise SkipRow("empty completion")
    return messages


def _common_words(a: str, b: str) -> str:
    """Longest common beginning that ends at a word: the next character is white space in both.

    >>> _common_words("the film is good", "the film is great")
    'the film is'
    """
    end = 0
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            break
        if x.isspace() and (i == 0 or not a[i - 1].isspace()):
            end = i
    return a[:end]


def _is_empty(content: Content) -> bool:
    if isinstance(content, str):
        return not content.strip()
    return not any(message["content"].strip() for message in content)


# Which columns make which shape; the first complete line wins.

Shapes = Mapping[tuple[str, ...], Callable[[Row], Any]]

TEXTS: Shapes = {
    ("text",): _text,
    ("messages",): _text_of_messages,
    ("prompt", "completion"): _text_of_pair,
    ("instruction", "output"): _text_of_instruction,
}
PROMPTS: Shapes = {
    ("prompt",): _prompt,
    ("messages",): _prompt_of_messages,
    ("instruction",): _prompt_of_instruction,
    ("chosen", "rejected"): _prompt_of_implicit,
}
EXAMPLES: Shapes = {
    ("messages",): _example_of_messages,
    ("prompt", "completion"): _prompt_completion,
    ("instruction", "output"): _instruction_output,
    ("text",): _example_of_text,
}
PREFERENCES: Shapes = {
    ("prompt", "chosen", "rejected"): _preference,
    ("instruction", "chosen", "rejected"): _preference_of_instruction,
    ("chosen", "rejected"): _implicit,
}
OPTIONAL = ("input", "label", "margin", "weight")
SIDES = ("chosen", "rejected")


def _read(rows: Rows, shapes: Shapes, columns, on_bad_row: OnBadRow, what: str) -> Loaded:
    columns = dict(columns or {})
    _check_mapping(rows, shapes, columns, what)
    function = _shape(rows, shapes, columns, what)
    source = Loaded(list(rows), list(range(len(rows))), rows, Skipped())
    return convert(
        source, lambda row: function(Row(row, columns)), on_bad_row=on_bad_row, what=what
    )


def _are_pairs(rows: Rows, columns: Mapping[str, str]) -> bool:
    """Whether the rows are preference pairs and nothing that is one text."""
    present = {name for name in (*_names(TEXTS), *SIDES) if columns.get(name, name) in rows.columns}
    return present.issuperset(SIDES) and not any(present.issuperset(names) for names in TEXTS)


def _texts_of_pairs(rows: Rows, columns: Mapping[str, str], on_bad_row: OnBadRow) -> Loaded[Text]:
    """Chosen, then rejected, of each row; either side is read as a text or a completion."""
    _check_mapping(rows, PREFERENCES, columns, "texts of pairs")
    prompted = columns.get("prompt", "prompt") in rows.columns
    name, function = ("completion", _text_of_pair) if prompted else ("text", _text_or_messages)
    views = [Row(row, {**columns, name: columns.get(side, side)}) for row in rows for side in SIDES]
    index = [i for i in range(len(rows)) for _ in SIDES]
    source = Loaded(views, index, rows, Skipped())
    return convert(source, function, on_bad_row=on_bad_row, what="texts")


def _check_mapping(rows: Rows, shapes: Shapes, columns: Mapping[str, str], what: str) -> None:
    ours = _names(shapes)
    for name, theirs in columns.items():
        if name not in (*ours, *OPTIONAL):
            choices = ", ".join((*ours, *OPTIONAL))
            raise DataError(f"columns: {what} have no column {name!r}: must be one of {choices}")
        if theirs not in rows.columns:
            raise DataError(f"{rows.name}: no column {theirs!r}{_hint(theirs, rows.columns)}")


def _shape(rows: Rows, shapes: Shapes, columns: Mapping[str, str], what: str) -> Callable:
    present = set(rows.columns)
    for names, function in shapes.items():
        if all(columns.get(name, name) in present for name in names):
            return function
    wanted = " or ".join("+".join(names) for names in shapes)
    near = [
        f"{guess!r} is near {name!r}"
        for name in _names(shapes)
        if (guess := nearest(name, rows.columns)) and guess != name
    ]
    hint = "; ".join([*near[:2], 'other names are mapped with columns, as in {"text": "sentence"}'])
    raise DataError(
        f"{rows.name}: {what} need the columns {wanted}; it has {', '.join(rows.columns)}; {hint}"
    )


def _names(shapes: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in shapes for name in names))


def _hint(name: str, choices: list[str]) -> str:
    guess = nearest(name, choices)
    return f"; did you mean {guess!r}?" if guess else f"; it has {', '.join(choices)}"
