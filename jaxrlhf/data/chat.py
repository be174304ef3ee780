"""Texts, prompts, examples and preferences to token ids, with the tokens to learn marked.

Messages are rendered with the tokenizer's chat template where it has one (`templates.py`), and as
Human/Assistant dialogue (`dialogue.py`) with the end token after each assistant turn where it has
none. A template brings its own special tokens, so none are added and bos never stands twice;
elsewhere a sequence begins with the bos token exactly if the tokenizer puts one there itself. What
is learnt is the content of the assistant's turns and the token that closes each; nothing is kept
after the last one, because that is where sampling stops and where a reward is read.

Two properties hold by construction, whatever the tokenizer merges:

- the tokens of a prompt are a prefix of the tokens of every example and preference made from it,
  so the policy is trained on what it sees when it samples;
- text never turns into control tokens: "<eos>" in a plain text is ordinary characters, and a row
  that would smuggle a control token in (through a template, or a word tokenizer) is skipped.

Everything is tokenised at once and cut by prefix difference; only where a token would straddle the
cut is the rest tokenised by itself. Padding, packing and lengths are `arrays.py`.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, product
from typing import Any, NamedTuple

import numpy as np

from jaxrlhf.data import dialogue, templates
from jaxrlhf.data.columns import Content
from jaxrlhf.data.dialogue import Message
from jaxrlhf.data.formats import Example, Preference, Prompt, Text
from jaxrlhf.data.rows import BadRow, Loaded, OnBadRow, SkipRow, convert, shorten
from jaxrlhf.data.templates import Piece, has_template, render
from jaxrlhf.errors import DataError

__all__ = [
    "EncodedExample",
    "EncodedPair",
    "adds_bos",
    "encode_example",
    "encode_preference",
    "encode_prompt",
    "encode_rows",
    "encode_text",
    "has_template",
    "render",
    "stop_ids",
    "template_kind",
]

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
    weight: float = 1.0


def encode_rows(tokenizer: Any, source: Loaded, *, on_bad_row: OnBadRow = "error") -> Loaded:
    """Tokens of every item: `EncodedExample` of a text or example, `EncodedPair` of a preference,
    a token array of a prompt. Much faster than one item at a time.

    Raises:
      DataError: a row that the chat template refuses (named by file and line), or none is left.
    """
    what = f"tokenised {type(source.items[0]).__name__.lower()}s"
    planned = convert(
        source, lambda item: (item, _plan(tokenizer, item)), on_bad_row=on_bad_row, what=what
    )
    ids = _tokenise(tokenizer, (part for _, plan in planned for one in plan for part in one))
    return convert(
        planned, lambda pair: _encode(tokenizer, *pair, ids), on_bad_row=on_bad_row, what=what
    )


def encode_text(tokenizer: Any, text: str, *, eos: bool = True) -> Tokens:
    """Tokens `[T]` of a plain text, with the end token unless `eos` is False."""
    tokens = _encode_one(tokenizer, Text(text)).tokens
    return tokens if eos else tokens[:-1]


def encode_prompt(tokenizer: Any, prompt: Prompt | Content) -> Tokens:
    """Tokens `[P]` of a prompt, up to where the answer begins."""
    return _encode_one(tokenizer, prompt if isinstance(prompt, Prompt) else Prompt(prompt))


def encode_example(tokenizer: Any, example: Example) -> EncodedExample:
    """Tokens and loss mask of prompt and completion.

    Raises:
      SkipRow: nothing to learn, or a control token in the text.
      BadRow: the chat template refuses the messages.
      DataError: no end token, or a template whose parts cannot be told apart.
    """
    return _encode_one(tokenizer, example)


def encode_preference(tokenizer: Any, preference: Preference) -> tuple[Tokens, Tokens, Tokens]:
    """Tokens of the prompt, of the chosen and of the rejected answer (both with end token)."""
    pair = _encode_one(tokenizer, preference)
    return pair.prompt, pair.chosen, pair.rejected


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer begins every text with its bos token. Templates bring their own."""
    return bool(_facts_of(tokenizer).lead)


def template_kind(tokenizer: Any) -> str:
    """How conversations are rendered, and how their answers are found, in words."""
    if not has_template(tokenizer):
        return "none: Human/Assistant dialogue"
    if templates.marks_answers(tokenizer):
        return "yes, with marked answers"
    return "yes, answers found by prefix difference"


def stop_ids(tokenizer: Any) -> tuple[int, ...]:
    """Tokens at which an answer ends: the end token, and what the template closes a turn with."""
    facts = _facts_of(tokenizer)
    if not has_template(tokenizer):
        return (facts.eos_id,)
    turns = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    try:
        last = int(encode_example(tokenizer, Example(*turns)).tokens[-1])
    except (BadRow, SkipRow):  # then no row of the kind will pass either
        return (facts.eos_id,)
    return (facts.eos_id,) if last == facts.eos_id else (facts.eos_id, last)


# An item is one or two sequences; a sequence is sections of text with an end token between them;
# a section is pieces of text, cut where learning may start and stop. Where the cuts are depends on
# the roles only, never on what is learnt, so a prompt with an answer in it is cut alike everywhere.


class Section(NamedTuple):
    pieces: list[Piece]
    end: bool | None  # whether the end token after it is learnt; None: there is no end token
    control: bool  # whether strings of control tokens mean the tokens (rendered templates only)

    def prefixes(self) -> Iterator[tuple[Piece, int, str]]:
        """Every piece, the character at which it begins, and the text up to its end."""
        pieces = [piece for piece in self.pieces if piece.text]
        start = 0
        for piece, text in zip(pieces, accumulate(piece.text for piece in pieces), strict=True):
            yield piece, start, text
            start = len(text)


Sequences = list[list[Section]]
Ids = dict[tuple[str, int, bool], tuple[Tokens, int]]  # see _tokenise


def _encode_one(tokenizer: Any, item: Any) -> Any:
    plan = _plan(tokenizer, item)
    return _encode(
        tokenizer, item, plan, _tokenise(tokenizer, (part for one in plan for part in one))
    )


def _plan(tokenizer: Any, item: Any) -> Sequences:
    match item:
        case Text(text):
            return [_sections(tokenizer, "", text)]
        case Prompt(prompt):
            return [_sections(tokenizer, prompt, None)]
        case Example(prompt, completion):
            return [_sections(tokenizer, prompt, completion)]
        case Preference(prompt, chosen, rejected):
            return [_sections(tokenizer, prompt, answer) for answer in (chosen, rejected)]
    raise TypeError(f"cannot tokenise {type(item).__name__}")


def _encode(tokenizer: Any, item: Any, plan: Sequences, ids: Ids) -> Any:
    made = [_assemble(tokenizer, sections, ids) for sections in plan]
    if isinstance(item, Prompt):
        if not len(made[0].tokens):
            raise BadRow("empty prompt", shorten(item.prompt))
        return made[0].tokens
    sides = [_until_closed(tokenizer, one) for one in made]
    if not isinstance(item, Preference):
        return sides[0]
    start = int(np.argmax(sides[0].loss_mask))  # the first token that is learnt ends the prompt
    chosen, rejected = (side.tokens for side in sides)
    assert np.array_equal(chosen[:start], rejected[:start])
    about = item.label, item.margin, item.weight
    return EncodedPair(chosen[:start], chosen[start:], rejected[start:], *about)


def _sections(tokenizer: Any, prompt: Content, completion: Content | None) -> list[Section]:
    """What is to be tokenised; `completion` None means up to where the answer begins."""
    if isinstance(prompt, str):
        if not (completion is None or isinstance(completion, str)):
            raise BadRow("wrong type", "the prompt is text and the completion is messages")
        if completion is None:
            return [Section([Piece(prompt, False)], None, False)]
        return [Section([Piece(prompt, False), Piece(completion, True)], True, False)]
    if isinstance(completion, str):
        raise BadRow("wrong type", "the prompt is messages and the completion is text")
    messages = [*prompt, *(completion or [])]
    make = _template_sections if has_template(tokenizer) else _dialogue_sections
    return make(tokenizer, messages, len(prompt), is_open=completion is None)


def _dialogue_sections(
    tokenizer: Any, messages: list[Message], first: int, *, is_open: bool
) -> list[Section]:
    sections = []
    text = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            text += dialogue.header(message) + message["content"]
            continue
        learn = i >= first
        before = Piece(text + dialogue.ASSISTANT, False)
        sections.append(Section([before, Piece(" " + message["content"], learn)], learn, False))
        text = ""
    if is_open:
        sections.append(Section([Piece(text + dialogue.ASSISTANT, False)], None, False))
    return sections


def _template_sections(
    tokenizer: Any, messages: list[Message], first: int, *, is_open: bool
) -> list[Section]:
    facts = _facts_of(tokenizer)
    _refuse_control(facts, messages)
    control = facts.control_strings
    pieces = templates.pieces(tokenizer, messages, first, is_open=is_open, control=control)
    return [Section(pieces, None, True)]


ANYWHERE = -1
NOWHERE = -2
CALL = 2048  # texts a call of the tokenizer


def _tokenise(tokenizer: Any, sections: Iterable[Section]) -> Ids:
    """Ids of every prefix of every section, and after how many of them its last piece begins.

    That number is NOWHERE if a token straddles the place, ANYWHERE if the tokenizer cannot tell.
    """
    wanted = {
        (text, start, section.control)
        for section in sections
        for _, start, text in section.prefixes()
    }
    ids: Ids = {}
    for control, cut in product((False, True), repeat=2):
        keys = sorted(key for key in wanted if (key[2], key[1] > 0) == (control, cut))
        for some in (keys[i : i + CALL] for i in range(0, len(keys), CALL)):
            made = _call(tokenizer, [text for text, _, _ in some], control=control, offsets=cut)
            for key, (tokens, offsets) in zip(some, made, strict=True):
                ids[key] = np.array(tokens, np.int32), _cut(offsets, key[1])
    return ids


def _call(
    tokenizer: Any, texts: list[str], *, control: bool, offsets: bool
) -> list[tuple[list[int], Any]]:
    offsets = offsets and bool(getattr(tokenizer, "is_fast", False))
    out = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=not control,
        return_attention_mask=False,
        return_offsets_mapping=offsets,
        verbose=False,
    )
    spans = out["offset_mapping"] if offsets else [None] * len(texts)
    return list(zip(out["input_ids"], spans, strict=True))


def _cut(offsets: list[tuple[int, int]] | None, character: int) -> int:
    """How many tokens are exactly the text before `character`."""
    if character == 0:
        return 0
    if offsets is None:  # tokenizers in pure Python do not know
        return ANYWHERE
    k = bisect_left(offsets, character, key=lambda span: span[0])
    return k if k == 0 or offsets[k - 1][1] <= character else NOWHERE


def _assemble(tokenizer: Any, sections: list[Section], ids: Ids) -> EncodedExample:
    """Tokens of a sequence, and which of them are learnt.

    Where the tokens of the text so far begin with those of the pieces before, cut at the right
    character, the rest are the new piece's; otherwise the new piece is tokenised alone. So the
    tokens of the first k pieces never depend on the pieces after them.
    """
    facts = _facts_of(tokenizer)
    lead = () if any(section.control for section in sections) else facts.lead
    tokens, learn = [np.array(lead, np.int32)], [np.zeros(len(lead), bool)]
    for section in sections:
        done = np.zeros(0, np.int32)
        for piece, start, text in section.prefixes():
            whole, cut = ids[text, start, section.control]
            n = len(done)
            if cut in (n, ANYWHERE) and np.array_equal(whole[:n], done):
                new = whole[n:]
            else:
                alone = _call(tokenizer, [piece.text], control=section.control, offsets=False)
                new = np.array(alone[0][0], np.int32)
            done = np.concatenate([done, new])
            tokens.append(new)
            learn.append(_learnt(facts, new) if piece.learn else np.zeros(len(new), bool))
        if not section.control and not facts.control_ids.isdisjoint(done.tolist()):
            raise SkipRow("control token in text")
        if section.end is not None:
            tokens.append(np.array([facts.eos_id], np.int32))
            learn.append(np.array([section.end]))
    return EncodedExample(np.concatenate(tokens), np.concatenate(learn))


def _learnt(facts: "Facts", tokens: Tokens) -> np.ndarray:
    """An answer up to the control token that closes it: templates write a line end after that."""
    closers = [i for i, token in enumerate(tokens.tolist()) if token in facts.control_ids]
    return np.arange(len(tokens)) <= (closers[-1] if closers else len(tokens))


def _until_closed(tokenizer: Any, made: EncodedExample) -> EncodedExample:
    """Cut after the last token that is learnt; close the answer where a template does not."""
    learnt = np.flatnonzero(made.loss_mask)
    if not len(learnt):
        raise SkipRow("empty completion")
    facts = _facts_of(tokenizer)
    end = learnt[-1] + 1
    if int(made.tokens[end - 1]) in facts.control_ids:
        return EncodedExample(made.tokens[:end], made.loss_mask[:end])
    tokens = np.append(made.tokens[:end], np.int32(facts.eos_id))
    return EncodedExample(tokens, np.append(made.loss_mask[:end], True))


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
