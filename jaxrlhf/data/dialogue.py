r"""The dialogue strings of HH-RLHF: `\n\nHuman: ...\n\nAssistant: ...`, to messages and back.

A turn begins at `\n\nHuman: ` or `\n\nAssistant: ` (with the space) and its content is everything
up to the next turn, white space included: rendering a parsed string gives the same string. A
marker without the space is content. Text before the first turn has no place in such a string, so
a string that does not begin with `\n\nHuman: ` is not a dialogue; rendering puts a system message
there. Tokens are `chat.py`'s business.
"""

import re
from collections.abc import Sequence

from jaxrlhf.data.rows import BadRow, SkipRow, shorten

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant): ")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_dialogue(text: str) -> bool:
    r"""Whether a string is a dialogue: it begins with `\n\nHuman: `."""
    return text.startswith(HUMAN + " ")


def parse(text: str) -> list[Message]:
    r"""Messages of a dialogue string.

    Raises:
      BadRow: the string does not begin with a human turn.

    >>> parse("\n\nHuman: hi\n\nAssistant: yes?")
    [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'yes?'}]
    """
    if not is_dialogue(text):
        raise BadRow("not a dialogue", f"does not begin with {HUMAN + ' '!r}: {shorten(text)}")
    _, *parts = _TURN.split(text)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": _ROLES[who], "content": content} for who, content in turns]


def parse_prompt(text: str) -> list[Message]:
    r"""Messages of a dialogue string that waits for an answer.

    An open `\n\nAssistant:` at the end (with or without the space) is not a message.
    """
    return parse(text.removesuffix(" ").removesuffix(ASSISTANT) if is_open(text) else text)


def is_open(text: str) -> bool:
    r"""Whether a string ends in `\n\nAssistant:`, where an answer would begin."""
    return text.removesuffix(" ").endswith(ASSISTANT)


def render(messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
    r"""The dialogue string of messages; a system message stands in front, without a marker.

    >>> render([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    '\n\nHuman: hi\n\nAssistant:'
    """
    parts = [header(message) + message["content"] for message in messages]
    return "".join(parts) + (ASSISTANT if add_generation_prompt else "")


def header(message: Message) -> str:
    """What stands before the content of a message in a dialogue string."""
    headers = {"system": "", "user": HUMAN + " ", "assistant": ASSISTANT + " "}
    if message["role"] not in headers:
        known = "system, user and assistant"
        raise BadRow("unknown role", f"{message['role']!r}: the default chat format has {known}")
    return headers[message["role"]]


def split_pair(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[list[Message], Message, Message]:
    """Prompt and the two answers of a pair given as two whole conversations.

    The prompt is the longest common prefix that ends where an assistant turn begins. The rule for
    pairs that do not agree: what follows the prompt must be exactly one assistant turn on either
    side; otherwise the conversations differ in an earlier turn (or in their number of turns), the
    two answers are not answers to one prompt, and the pair is skipped as "prompts differ".

    Raises:
      BadRow: a conversation does not end with an assistant turn.
      SkipRow: the prompts differ.
    """
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        require_answer(messages, name)
    if list(chosen[:-1]) != list(rejected[:-1]):
        raise SkipRow("prompts differ")
    return list(chosen[:-1]), chosen[-1], rejected[-1]


def require_answer(messages: Sequence[Message], name: str) -> None:
    """Raise `BadRow` unless a conversation ends with an assistant turn."""
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRow("no assistant turn", f"in column {name!r}: {shorten(list(messages))}")
    if messages[-1]["role"] != "assistant":
        detail = f"column {name!r} ends with a turn of the {messages[-1]['role']}"
        raise BadRow("no assistant turn at the end", detail)
