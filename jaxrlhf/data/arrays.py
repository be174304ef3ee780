"""Token lists to rows of one shape, as numpy arrays that can be read in any order.

Six kinds: `wrapped` (plain text as one stream, cut to length), `packed` (several examples a row,
kept apart by `segment_ids`), `padded` (one example a row), `labelled`, `pairs`, `prompts`.
Everything is padded on the right, except prompts: on the left, so that every answer starts in the
same column. Masks say what is real; padding may be any id. Order, epochs and batches are
`pipeline.py`.

A row longer than `length` is, by `over_long`, left out and counted ("skip"), cut at its beginning
("truncate_left"), or an error that names the row ("error").
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from jaxrlhf.data.chat import EncodedExample, EncodedPair
from jaxrlhf.data.rows import BadRow, Loaded, Skipped, SkipRow, convert, loaded
from jaxrlhf.errors import DataError
from jaxrlhf.packing import best_fit

OverLong = Literal["skip", "truncate_left", "error"]


@dataclass(frozen=True)
class Arrays:
    """Rows of one shape: `columns[name][i]` is row i. `skipped` tells what was left out before."""

    columns: Mapping[str, np.ndarray]
    skipped: Skipped = field(default_factory=Skipped)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of those numbers, as a batch."""
        return {name: column[indices] for name, column in self.columns.items()}

    def fingerprint(self) -> int:
        """A checksum of all content, by which a resumed run sees that its data have changed."""
        total = 0
        for name, column in sorted(self.columns.items()):
            head = f"{name} {column.dtype} {column.shape}".encode()
            total = zlib.crc32(np.ascontiguousarray(column).data, zlib.crc32(head, total))
        return total


def wrapped(
    texts: Sequence[EncodedExample] | Loaded[EncodedExample], *, length: int, pad_id: int
) -> Arrays:
    """All tokens one after the other, cut every `length` tokens; the last row is padded.

    Texts end with their end token, which is all that divides them: attention crosses it, as in
    GPT-2's pre-training.

    Returns:
      `tokens` `[N, length]` int32, `mask`, `loss_mask` bool, `segment_ids` int32 (1, padding 0).
    """
    source = _checked(loaded(texts), length)
    tokens = np.concatenate([text.tokens for text in source])
    learn = np.concatenate([text.loss_mask for text in source])
    count = -(-len(tokens) // length)
    rows = [slice(i * length, (i + 1) * length) for i in range(count)]
    return _language_rows(
        [[EncodedExample(tokens[row], learn[row])] for row in rows], length, pad_id, source.skipped
    )


def packed(
    examples: Sequence[EncodedExample] | Loaded[EncodedExample],
    *,
    length: int,
    pad_id: int,
    over_long: OverLong = "skip",
) -> Arrays:
    """Several whole examples a row, by best-fit decreasing; each is a segment of its own.

    Returns:
      As `wrapped`; `segment_ids` count 1, 2, ... along a row, and 0 is padding.
    """
    source = _fit_examples(examples, length, over_long)
    bins = best_fit([len(example.tokens) for example in source], length)
    rows = [[source[i] for i in row] for row in bins]
    return _language_rows(rows, length, pad_id, source.skipped)


def padded(
    examples: Sequence[EncodedExample] | Loaded[EncodedExample],
    *,
    length: int,
    pad_id: int,
    over_long: OverLong = "skip",
) -> Arrays:
    """One example a row. Returns as `wrapped`."""
    source = _fit_examples(examples, length, over_long)
    return _language_rows([[example] for example in source], length, pad_id, source.skipped)


def labelled(
    encoded: Loaded[EncodedExample],
    labels: np.ndarray,
    *,
    length: int,
    pad_id: int,
    over_long: OverLong = "skip",
) -> Arrays:
    """One text a row to be classified, without its end token: a class is read at the last word.

    Args:
      labels: `[rows of the file, K]` probabilities, by row of the file.
    Returns:
      `tokens` `[N, length]` int32, `mask` bool, `label` `[N, K]` f32, and `row` `[N]` int32: the
      position of the text's row in the file.
    """

    def fit(example: EncodedExample) -> np.ndarray:
        tokens = example.tokens[:-1]
        if len(tokens) > length:
            _over_long(len(tokens), length, over_long)
        return tokens[-length:]

    source = _fit(encoded, fit, length, over_long, "texts that fit")
    tokens, mask = pad(source.items, length=length, pad_id=pad_id)
    rows = np.array(source.index, np.int32)
    columns = {"tokens": tokens, "mask": mask, "label": labels[rows], "row": rows}
    return Arrays(columns, source.skipped)


def pairs(
    encoded: Sequence[EncodedPair] | Loaded[EncodedPair],
    *,
    length: int,
    pad_id: int,
    over_long: OverLong = "skip",
) -> Arrays:
    """Preference pairs, each side prompt and answer.

    "truncate_left" cuts both sides' prompt alike and never an answer: a pair whose longer answer
    alone does not fit is skipped.

    Returns:
      `chosen_tokens` `[N, length]` int32, `chosen_mask` bool, `rejected_tokens`, `rejected_mask`,
      `label` `[N]` f32 (P(chosen is better)), `margin` `[N]` f32, `weight` `[N]` f32.
    """

    def fit(pair: EncodedPair) -> EncodedPair:
        room = length - max(len(pair.chosen), len(pair.rejected))
        if len(pair.prompt) <= room:
            return pair
        _over_long(len(pair.prompt) + length - room, length, over_long)
        if room < 1:
            raise SkipRow(f"answer longer than {length} tokens")
        return pair._replace(prompt=pair.prompt[-room:])

    source = _fit(encoded, fit, length, over_long, "pairs that fit")
    columns: dict[str, np.ndarray] = {}
    for side in ("chosen", "rejected"):
        rows = [np.concatenate([pair.prompt, getattr(pair, side)]) for pair in source]
        columns[f"{side}_tokens"], columns[f"{side}_mask"] = pad(rows, length=length, pad_id=pad_id)
    for name in ("label", "margin", "weight"):
        columns[name] = np.array([getattr(pair, name) for pair in source], np.float32)
    return Arrays(columns, source.skipped)


def prompts(
    encoded: Sequence[np.ndarray] | Loaded[np.ndarray],
    *,
    length: int,
    pad_id: int,
    over_long: OverLong = "skip",
) -> Arrays:
    """Prompts, padded on the left to `length` columns.

    Returns:
      `prompt_tokens` `[N, length]` int32, `prompt_mask` bool, and `row` `[N]` int32: the position
      of the prompt's row in the file (`loaded.rows[row]`, `loaded.at_row(row)`) or in the list.
    """

    def fit(tokens: np.ndarray) -> np.ndarray:
        if len(tokens) > length:
            _over_long(len(tokens), length, over_long)
        return tokens[-length:]

    source = _fit(encoded, fit, length, over_long, "prompts that fit")
    tokens, mask = pad(source.items, length=length, pad_id=pad_id, side="left")
    rows = np.array(source.index, np.int32)
    return Arrays({"prompt_tokens": tokens, "prompt_mask": mask, "row": rows}, source.skipped)


def pad(
    rows: Sequence[np.ndarray],
    *,
    length: int,
    pad_id: int,
    side: Literal["left", "right"] = "right",
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of at most `length` tokens as `tokens` `[N, length]` int32 and `mask` bool."""
    tokens = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        part = slice(length - len(row), length) if side == "left" else slice(len(row))
        tokens[i, part], mask[i, part] = row, True
    return tokens, mask


def mask_from_ids(tokens: np.ndarray, *, pad_id: int, eos_id: int) -> np.ndarray:
    """Mask of padded `tokens` for which nobody kept one: whatever is not `pad_id`.

    Raises:
      DataError: `pad_id == eos_id`, where real end tokens cannot be told from padding: the model
        would never learn to stop.
    """
    if pad_id == eos_id:
        raise DataError(
            f"pad and end token are the same id ({pad_id}), so no mask can be read off the tokens:"
            " give the mask, or use a tokenizer with a pad token of its own"
        )
    return np.asarray(tokens) != pad_id


def _language_rows(
    rows: Sequence[Sequence[EncodedExample]], length: int, pad_id: int, skipped: Skipped
) -> Arrays:
    """Rows of one or more segments. A segment's first token is never learnt: in its own segment
    nothing stands before it to predict it from."""
    tokens = np.full((len(rows), length), pad_id, np.int32)
    learn = np.zeros((len(rows), length), bool)
    segments = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        start = 0
        for number, example in enumerate(row, 1):
            end = start + len(example.tokens)
            tokens[i, start:end] = example.tokens
            learn[i, start + 1 : end] = example.loss_mask[1:]
            segments[i, start:end] = number
            start = end
    columns = {"tokens": tokens, "mask": segments > 0, "loss_mask": learn, "segment_ids": segments}
    return Arrays(columns, skipped)


def _fit_examples(examples, length: int, over_long: OverLong) -> Loaded[EncodedExample]:
    def fit(example: EncodedExample) -> EncodedExample:
        if len(example.tokens) > length:
            _over_long(len(example.tokens), length, over_long)
            example = EncodedExample(example.tokens[-length:], example.loss_mask[-length:])
        if not example.loss_mask[1:].any():
            raise SkipRow("nothing to learn")
        return example

    return _fit(examples, fit, length, over_long, "examples that fit")


def _fit(encoded, fit: Callable, length: int, over_long: OverLong, what: str) -> Loaded[Any]:
    if over_long not in ("skip", "truncate_left", "error"):
        raise DataError(f"over_long = {over_long!r}: must be skip, truncate_left or error")
    return convert(_checked(loaded(encoded), length), fit, on_bad_row="error", what=what)


def _over_long(tokens: int, length: int, over_long: OverLong) -> None:
    """Raise what `over_long` asks for; return where the caller is to cut."""
    if over_long == "skip":
        raise SkipRow(f"longer than {length} tokens")
    if over_long == "error":
        raise BadRow("over-long row", f"{tokens} tokens, where at most {length} fit")


def _checked(source: Loaded, length: int) -> Loaded:
    if length < 2:
        raise DataError(f"length = {length}: must be 2 or more")
    if not len(source):
        raise DataError(f"{source.rows.name}: there are no rows")
    return source
