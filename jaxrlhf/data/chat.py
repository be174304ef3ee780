"""Texts, prompts, examples and preferences to token ids, with the tokens to learn marked.

Messages are rendered with the tokenizer's chat template where it has one, and as Human/Assistant
dialogue (`dialogue.py`) with the end token after each assistant turn where it has none. A template
brings its own special tokens, so none are added; elsewhere a sequence begins with the bos token
exactly if the tokenizer puts one there itself. What is learnt is the content of the assistant's
turns and the token that closes each; nothing is kept after the last one, because that is where
sampling stops and where a reward is read.

Two properties hold by construction, whatever the tokenizer merges:

- the tokens of a prompt are a prefix of the tokens of every example and preference made from it,
  so the policy is trained on what it sees when it samples;
- text never turns into control tokens: "<eos>" in a plain text is ordinary characters, and a row
  that would smuggle a control token in (through a template, or a word tokenizer) is skipped.

Everything is tokenised at once and cut by prefix difference; only where a token would straddle the
cut is the rest tokenised by itself. Padding, packing and lengths are `arrays.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from jaxrlhf.data import dialogue
from jaxrlhf.data.columns import Content
from jaxrlhf.data.dialogue import Message
from jaxrlhf.data.formats import Example, Preference, Prompt, Text
from jaxrlhf.data.rows import BadRow, Loaded, OnBadRow, SkipRow, convert, shorten
from jaxrlhf.errors import DataError

Tokens = np.ndarray  # [T] int32


class EncodedExample(NamedTuple):
    """Tokens `[T]` int32, and `loss_mask` `[T]` bool: the tokens to be learnt."""

    tokens: Tokens
    loss_mask: np.ndarray


class EncodedPair(NamedTuple):
    """Prompt, and the two answers without it, each with its end token."""

    prompt: Tokens
    chosen: Tokens
    rejected: Tokens
    label: float = 1.0
    margin: float = 0.0


def encode_rows(tokenizer: Any, source: Loaded, *, on_bad_row: OnBadRow = "error") -> Loaded:
    """Tokens of every item: `EncodedExample` of a text or example, `EncodedPair` of a preference,
    a token array of a prompt.

    Raises:
      DataError: a row that the chat template refuses (named by file and line), or none is left.
    """
    kinds: dict[type, tuple[Callable, str]] = {
        Text: (_encode_text, "tokenised texts"),
        Prompt: (encode_prompt, "tokenised prompts"),
        Example: (encode_example, "tokenised examples"),
        Preference: (_encode_pair, "tokenised preferences"),
    }
    encode, what = kinds[type(source.items[0])]
    return convert(source, lambda item: encode(tokenizer, item), on_bad_row=on_bad_row, what=what)


def encode_text(tokenizer: Any, text: str, *, eos: bool = True) -> Tokens:
    """Tokens `[T]` of a plain text, with the end token unless `eos` is False."""
    tokens = _encode_text(tokenizer, Text(text)).tokens
    return tokens if eos else tokens[:-1]


def encode_prompt(tokenizer: Any, prompt: Prompt | Content) -> Tokens:
    """Tokens `[P]` of a prompt, up to where the answer begins."""
    content = prompt.prompt if isinstance(prompt, Prompt) else prompt
    ids = [i for part in _parts(tokenizer, content, None) for i in part.ids]
    if not ids:
        raise BadRow("empty prompt", shorten(content))
    return np.array(ids, np.int32)


def encode_example(tokenizer: Any, example: Example) -> EncodedExample:
    """Tokens and loss mask of prompt and completion.

    Raises:
      SkipRow: nothing to learn, or a control token in the text.
      BadRow: the chat template refuses the messages.
      DataError: no end token, or a template whose parts cannot be told apart.
    """
    ids: list[int] = []
    learn: list[bool] = []
    for part in _parts(tokenizer, example.prompt, example.completion):
        ids += part.ids
        learn += part.learn
    if not any(learn):
        raise SkipRow("empty completion")
    end = len(learn) - learn[::-1].index(True)
    facts = _facts_of(tokenizer)
    closing = [] if ids[end - 1] in facts.control_ids else [facts.eos_id]
    tokens = np.array(ids[:end] + closing, np.int32)
    return EncodedExample(tokens, np.array(learn[:end] + [True] * len(closing), bool))


def encode_preference(tokenizer: Any, preference: Preference) -> tuple[Tokens, Tokens, Tokens]:
    """Tokens of the prompt, of the chosen and of the rejected answer (both with end token)."""
    sides = [
        encode_example(tokenizer, Example(preference.prompt, completion))
        for completion in (preference.chosen, preference.rejected)
    ]
    start = int(np.argmax(sides[0].loss_mask))  # the first token that is learnt ends the prompt
    chosen, rejected = (side.tokens for side in sides)
    assert np.array_equal(chosen[:start], rejected[:start])
    return chosen[:start], chosen[start:], rejected[start:]


def render(
    tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool = False
) -> str:
    """Messages as the string a model reads: the tokenizer's chat template, or our dialogue."""
    if not has_template(tokenizer):
        return dialogue.render(messages, add_generation_prompt=add_generation_prompt)
    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except ImportError as problem:
        raise DataError(
            f"the tokenizer has a chat template, which needs jinja2: {problem}"
        ) from None
    except Exception as problem:  # templates raise jinja2 errors of their own choosing
        if not type(problem).__module__.startswith("jinja2"):
            raise
        detail = f"{problem}: {shorten(list(messages))}"
        raise BadRow("refused by the chat template", detail) from None


def has_template(tokenizer: Any) -> bool:
    """Whether messages are rendered by the tokenizer's own chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def stop_ids(tokenizer: Any) -> tuple[int, ...]:
    """Tokens at which an answer ends: the end token, and what the template closes a turn with."""
    facts = _facts_of(tokenizer)
    if not has_template(tokenizer):
        return (facts.eos_id,)
    turns = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    last = int(encode_example(tokenizer, Example(*turns)).tokens[-1])
    return (facts.eos_id,) if last == facts.eos_id else (facts.eos_id, last)


def _encode_text(tokenizer: Any, text: Text) -> EncodedExample:
    return encode_example(tokenizer, Example("", text.text))


def _encode_pair(tokenizer: Any, preference: Preference) -> EncodedPair:
    tokens = encode_preference(tokenizer, preference)
    return EncodedPair(*tokens, preference.label, preference.margin)


# A sequence is a list of pieces of text, cut where learning starts and stops; `END` is the end
# token. Where the cuts are depends on the roles only, never on what is learnt, so that a prompt
# with an answer in it is cut alike everywhere.


class Piece(NamedTuple):
    text: str
    learn: bool


class Part(NamedTuple):
    ids: list[int]
    learn: list[bool]


END = None  # in a list of pieces


def _parts(tokenizer: Any, prompt: Content, completion: Content | None) -> Iterator[Part]:
    """Token ids, part by part; `completion` None means up to where the answer begins."""
    facts = _facts_of(tokenizer)
    if isinstance(prompt, str):
        if not (completion is None or isinstance(completion, str)):
            raise BadRow("wrong type", "the prompt is text and the completion is messages")
        pieces = [Piece(prompt, False)]
        pieces += [] if completion is None else [Piece(completion, True), END]
    elif isinstance(completion, str):
        raise BadRow("wrong type", "the prompt is messages and the completion is text")
    else:
        messages, first = [*prompt, *(completion or [])], len(prompt)
        if has_template(tokenizer):
            _refuse_control(facts, messages)
            pieces = _template_pieces(tokenizer, messages, first, is_open=completion is None)
            yield from (_closed(facts, part) for part in _tokenise(tokenizer, pieces, control=True))
            return
        pieces = _dialogue_pieces(messages, first, is_open=completion is None)
    yield Part(list(facts.lead), [False] * len(facts.lead))
    for section, end in _sections(pieces):
        for part in _tokenise(tokenizer, section, control=False):
            if facts.control_ids.intersection(part.ids):
                raise SkipRow("control token in text")
            yield part
        if end is not None:
            yield Part([facts.eos_id], [end])


def _dialogue_pieces(messages: list[Message], first: int, *, is_open: bool) -> list[Piece | None]:
    pieces: list[Piece | None] = []
    text = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            text += dialogue.header(message) + message["content"]
            continue
        pieces.append(Piece(text + dialogue.ASSISTANT, False))
        pieces += [Piece(" " + message["content"], i >= first), END]
        text = ""
    return [*pieces, Piece(text + dialogue.ASSISTANT, False)] if is_open else pieces


def _sections(pieces: Sequence[Piece | None]) -> Iterator[tuple[list[Piece], bool | None]]:
    """Pieces between end tokens, with whether that end token is learnt (None: there is none)."""
    section: list[Piece] = []
    for piece in pieces:
        if piece is not None:
            section.append(piece)
        else:
            yield section, section[-1].learn
            section = []
    if section:
        yield section, None


def _template_pieces(
    tokenizer: Any, messages: list[Message], first: int, *, is_open: bool
) -> list[Piece]:
    pieces: list[Piece] = []
    done = ""

    def add(rendered: str, learn: bool) -> str:
        if not rendered.startswith(done):
            raise DataError(
                "the chat template does not render the beginning of a conversation as the beginning"
                " of the whole, so assistant turns cannot be told apart in it;"
                f" {shorten(done)} became {shorten(rendered)}"
            )
        pieces.append(Piece(rendered[len(done) :], learn))
        return rendered

    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            if i == 0:
                raise BadRow("no user turn before the answer", shorten(messages))
            done = add(render(tokenizer, messages[:i], add_generation_prompt=True), False)
            done = add(render(tokenizer, messages[: i + 1]), i >= first)
    if is_open:
        add(render(tokenizer, messages, add_generation_prompt=True), False)
    return pieces


def _tokenise(tokenizer: Any, pieces: Sequence[Piece], *, control: bool) -> list[Part]:
    """Ids of pieces that follow each other: those of the whole text, where they can be cut.

    Each prefix of the text is tokenised; where it continues the ids so far, cut at the right
    character, the rest belongs to the new piece; otherwise the new piece is tokenised alone.
    So the ids of the first k pieces never depend on the pieces after them.
    """
    pieces = [piece for piece in pieces if piece.text]
    prefixes = list(accumulate(piece.text for piece in pieces))
    done: list[int] = []
    parts = []
    for k, (ids, offsets) in enumerate(_ids(tokenizer, prefixes, control=control)):
        start = len(prefixes[k - 1]) if k else 0
        if ids[: len(done)] == done and _cut_at(offsets, len(done), start):
            new = ids[len(done) :]
        else:
            new = _ids(tokenizer, [pieces[k].text], control=control)[0][0]
        done = done + new
        parts.append(Part(new, [pieces[k].learn] * len(new)))
    return parts


def _cut_at(offsets: list[tuple[int, int]] | None, k: int, character: int) -> bool:
    """Whether the first k tokens are exactly the text before `character`."""
    if offsets is None:  # not known for tokenizers in pure Python
        return True
    before = k == 0 or offsets[k - 1][1] <= character
    return before and (k == len(offsets) or offsets[k][0] >= character)


def _ids(tokenizer: Any, texts: list[str], *, control: bool) -> list[tuple[list[int], Any]]:
    if not texts:
        return []
    fast = bool(getattr(tokenizer, "is_fast", False))
    out = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=not control,
        return_attention_mask=False,
        return_offsets_mapping=fast,
        verbose=False,
    )
    offsets = out["offset_mapping"] if fast else [None] * len(texts)
    return list(zip(out["input_ids"], offsets, strict=True))


def _closed(facts: "Facts", part: Part) -> Part:
    """Learn an assistant turn of a template up to the control token that closes it."""
    closers = [i for i, token in enumerate(part.ids) if token in facts.control_ids]
    if not closers or not any(part.learn):
        return part
    end = closers[-1] + 1
    return Part(part.ids, [True] * end + [False] * (len(part.ids) - end))


class Facts(NamedTuple):
    """What must be known of a tokenizer's special tokens; unk is not one that controls."""

    eos_id: int
    lead: tuple[int, ...]  # what the tokenizer puts before every text: bos, or nothing
    control_ids: frozenset[int]
    control_strings: tuple[str, ...]


def _facts_of(tokenizer: Any) -> Facts:
    return _facts(tokenizer, len(tokenizer), tokenizer.eos_token_id)


@lru_cache(maxsize=8)
def _facts(tokenizer: Any, size: int, eos_id: int | None) -> Facts:
    if eos_id is None:
        raise DataError(
            "the tokenizer has no end-of-sequence token, so a model could never learn to stop: set"
            ' one, as in tokenizer.eos_token = "</s>", and save it'
        )
    bos = tokenizer.bos_token_id
    lead = (bos,) if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else ()
    added = {i: token for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = {i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id} | {eos_id}
    unk = tokenizer.unk_token_id if tokenizer.unk_token_id != eos_id else None
    ids = frozenset((named | set(added)) - {unk})
    return Facts(eos_id, lead, ids, tuple(tokenizer.convert_ids_to_tokens(sorted(ids))))


def _refuse_control(facts: Facts, messages: Sequence[Message]) -> None:
    for message in messages:
        for string in facts.control_strings:
            if string in message["content"]:
                raise SkipRow("control token in text", repr(string))
