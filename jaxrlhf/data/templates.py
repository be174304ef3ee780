"""Chat templates: messages to the text a model reads, cut where learning may start and stop.

Where a template marks what the assistant says (`{% generation %}`), the marks decide, and with them
the control token that closes the turn, be it marked or not. Elsewhere an answer is what a
rendering with it has more than the rendering before it. That takes a template that renders the
beginning of a conversation as the beginning of the whole. Some do not (they drop the reasoning of
earlier turns, or move the system prompt): there only the last answer can be learnt, after a prompt
in one piece, and a conversation of which more is to be learnt is refused.

What it does not do: tokenise (`chat.py`). Without a template messages are Human/Assistant dialogue
(`dialogue.py`).
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from jaxrlhf.data import dialogue
from jaxrlhf.data.dialogue import Message
from jaxrlhf.data.rows import BadRow, shorten
from jaxrlhf.errors import DataError

_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Piece(NamedTuple):
    """Text between two cuts, and whether it is learnt."""

    text: str
    learn: bool


def render(
    tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool = False
) -> str:
    """Messages as the string a model reads: the tokenizer's chat template, or our dialogue.

    Raises:
      BadRow: the template refuses them.
    """
    if not has_template(tokenizer):
        return dialogue.render(messages, add_generation_prompt=add_generation_prompt)
    return _applied(
        tokenizer, messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )


def has_template(tokenizer: Any) -> bool:
    """Whether messages are rendered by the tokenizer's own chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def marks_answers(tokenizer: Any) -> bool:
    """Whether the template says itself what the assistant's words are, and the tokenizer where."""
    template = getattr(tokenizer, "chat_template", None)
    fast = bool(getattr(tokenizer, "is_fast", False))
    return fast and isinstance(template, str) and bool(_MARK.search(template))


def pieces(
    tokenizer: Any,
    messages: list[Message],
    first: int,
    *,
    is_open: bool,
    control: Sequence[str] = (),
) -> list[Piece]:
    """A rendered conversation in pieces; answers from message `first` on are learnt.

    The pieces of a prompt (`is_open`: up to where an answer begins) do not depend on what is
    learnt, so that a prompt with an answer is cut alike up to there.

    Args:
      control: strings of control tokens.
    Raises:
      BadRow: the template refuses the messages, or does not let the answers be told apart.
    """
    if messages and messages[0]["role"] == "assistant":
        raise BadRow("no user turn before the answer", shorten(messages))
    if marks_answers(tokenizer):
        return _marked(tokenizer, messages, first, is_open=is_open, control=control)
    return _by_prefix(tokenizer, messages, first, is_open=is_open)


def _by_prefix(
    tokenizer: Any, messages: list[Message], first: int, *, is_open: bool
) -> list[Piece]:
    found: list[Piece] = []
    done = ""

    def add(rendered: str, *, learn: bool) -> str:
        start = done
        if not rendered.startswith(done):
            if learn or any(piece.learn for piece in found):
                raise _rewritten(done, rendered)
            found.clear()  # nothing of it is learnt: one piece will do
            start = ""
        found.append(Piece(rendered[len(start) :], learn))
        return rendered

    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = render(tokenizer, messages[:i], add_generation_prompt=True)
            done = add(before, learn=False)
            done = add(render(tokenizer, messages[: i + 1]), learn=i >= first)
    if is_open:
        add(render(tokenizer, messages, add_generation_prompt=True), learn=False)
    return found


def _marked(
    tokenizer: Any, messages: list[Message], first: int, *, is_open: bool, control: Sequence[str]
) -> list[Piece]:
    text = render(tokenizer, messages, add_generation_prompt=is_open)
    prompt_end = len(text) if is_open else _prompt_end(tokenizer, messages, first, text)
    answers = [
        (start, _closed(text, end, control))
        for start, end in _marks(tokenizer, messages, text, add_generation_prompt=is_open)
    ]
    cuts = sorted({0, prompt_end, len(text), *(place for span in answers for place in span)})
    found = []
    for start, end in pairwise(cuts):
        inside = any(a <= start and end <= b for a, b in answers)
        found.append(Piece(text[start:end], inside and start >= prompt_end))
    return found


def _prompt_end(tokenizer: Any, messages: list[Message], first: int, text: str) -> int:
    """The character at which the answers that are learnt may begin."""
    if first == 0:
        return 0
    answered = first < len(messages) and messages[first]["role"] == "assistant"
    prompt = render(tokenizer, messages[:first], add_generation_prompt=answered)
    if not text.startswith(prompt):
        raise _rewritten(prompt, text)
    return len(prompt)


def _marks(
    tokenizer: Any, messages: list[Message], text: str, *, add_generation_prompt: bool
) -> list[tuple[int, int]]:
    """Characters `[start, end)` of `text` that the template marks, to the edges of tokens."""
    out = _applied(
        tokenizer,
        messages,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        add_generation_prompt=add_generation_prompt,
        tokenizer_kwargs={"return_offsets_mapping": True},
    )
    spans: list[tuple[int, int]] = []
    before = False
    for (start, end), marked in zip(out["offset_mapping"], out["assistant_masks"], strict=True):
        if marked:
            spans = [*spans[:-1], (spans[-1][0], end)] if before else [*spans, (start, end)]
        before = bool(marked)
    return [(start, min(end, len(text))) for start, end in spans]


def _closed(text: str, end: int, control: Sequence[str]) -> int:
    """The end of an answer with the control token right after it, where it has none yet."""
    if any(text.endswith(token, 0, end) for token in control):
        return end
    return next((end + len(token) for token in control if text.startswith(token, end)), end)


def _applied(tokenizer: Any, messages: Sequence[Message], **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(list(messages), **options)
    except ImportError as problem:
        raise DataError(
            f"the tokenizer has a chat template, which needs jinja2: {problem}"
        ) from None
    except Exception as problem:  # templates raise jinja2 errors of their own choosing
        if not type(problem).__module__.startswith("jinja2"):
            raise
        detail = f"{problem}: {shorten(list(messages))}"
        raise BadRow("refused by the chat template", detail) from None


def _rewritten(before: str, after: str) -> BadRow:
    pairs = enumerate(zip(before, after, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(before), len(after)))
    start = max(place - 10, 0)  # a little of what is still the same
    detail = (
        "the chat template does not render the beginning of this conversation as the beginning of "
        f"the whole, so assistant turns cannot be told apart; {shorten(before[start:])} became "
        f"{shorten(after[start:])}"
    )
    return BadRow("turns rewritten by the chat template", detail)
