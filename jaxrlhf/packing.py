"""Sequences of any padding laid end to end in rows without it: where each goes, on the host.

    padded [B, T]   a a . . . .        packed [R, W]   b b b b b c
                    b b b b b .                        d d d a a .
                    c . . . . .
                    d d d . . .

A forward pass then reads the rows alone, each sequence apart by `segment_ids`; all else that is
known of a batch stays `[B, ...]`. How what it says comes back there is `reading.py`.

Cells: a batch is S shards (one a device of the data axis) times G groups (micro-batches), row i of
a shard in group i % G, as `split_rows` deals them. Each of the C = S G cells is packed by itself,
so no device reads another's rows; all cells have one shape.

Every shape is a program to compile, so there are few: rows are rounded up from 17 on, tokens read
to sixteenths of the columns, and rows are as wide as the padded ones where that leaves less than
`ENOUGH` padding, else wider by sixteenths, up to twice as wide.

Deliberately not here: jax, and any model.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxrlhf.errors import UserError

Packing = Literal["none", "packed"]
ENOUGH = 0.1  # share of padding below which no wider rows are tried


class Packed(NamedTuple):
    """C cells of R rows of W columns, and where in them the tokens stand that are asked about."""

    tokens: Any  # [C, R, W] int32
    segment_ids: Any  # [C, R, W] int32: 1, 2, ... along a row; 0 is padding
    places: Any  # [C, M] int32: columns of the cell, 0 to R W - 1, as the batch has them; then 0s


class Plan(NamedTuple):
    """Which sequences of a cell stand in which row."""

    rows: int
    width: int
    bins: list[list[list[int]]]  # [C][at most R][sequences of that row]


def pack(
    tokens: np.ndarray,
    mask: np.ndarray,
    read: np.ndarray,
    *,
    shards: int = 1,
    groups: int = 1,
    widest: int | None = None,
) -> Packed:
    """Rows that hold every real token once.

    Args:
      tokens: `[B, T]` int, or `[B, K, T]`: K sequences that stay in one cell.
      mask: the same shape, bool: real tokens, wherever the padding is.
      read: the same shape, bool: those of them that are asked about, `Packed.places`.
      shards: S of the header; groups: G.
      widest: columns that a row may have; None: any number.
    Raises:
      UserError: B does not divide by S G, or a row wider than `widest` is needed.
    """
    tokens, mask, read = (_cells(x, shards, groups) for x in (tokens, mask, read))
    plan = narrowest(mask.sum(axis=2), tokens.shape[2], widest)
    starts, numbers = _starts(plan, mask)
    columns = starts[..., None] + np.cumsum(mask, axis=2) - 1
    where = np.nonzero(mask)[0], columns[mask]
    rows = np.zeros((2, len(mask), plan.rows * plan.width), np.int32)
    rows[0][where] = tokens[mask]
    rows[1][where] = np.broadcast_to(numbers[..., None], mask.shape)[mask]
    shape = len(mask), plan.rows, plan.width
    return Packed(rows[0].reshape(shape), rows[1].reshape(shape), _places(columns, read, plan))


def deal(lengths: np.ndarray, *, groups: Sequence[int], shards: int = 1) -> np.ndarray:
    """An order of rows `[B]` in which groups, and shards, have about as many tokens.

    Groups are dealt first, a minibatch's micro-batches within it, and shards within these: how many
    devices or micro-batches there are does not change what is learned from together.

    Args:
      lengths: `[B]` tokens a row.
      groups: minibatches, then micro-batches of each; row i of the order is in minibatch i % the
        first.
    Raises:
      UserError: B does not divide.
    """

    def dealt(rows: np.ndarray, ways: Sequence[int]) -> np.ndarray:
        if not ways:
            return _dealt(rows, lengths, shards)
        parts = _dealt(rows, lengths, ways[0])
        return np.stack([dealt(part, ways[1:]) for part in parts], axis=-1)

    return dealt(np.arange(len(lengths)), groups).ravel()


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices by bin: longest first, each into the fullest bin that still takes it."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (room left, bin), sorted
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(room, (lengths[i], -1))
        if at < len(room):
            left, number = room.pop(at)
        else:
            left, number = capacity, len(bins)
            bins.append([])
        bins[number].append(i)
        if left > lengths[i]:
            insort(room, (left - lengths[i], number))
    return bins


def narrowest(lengths: np.ndarray, width: int, widest: int | None = None) -> Plan:
    """Rows for cells of `lengths` `[C, n]`: the narrowest with little padding, else the fewest.

    Raises:
      UserError: `width` is above `widest`.
    """
    if widest is not None and width > widest:
        raise UserError(
            f"packing: rows of {width} columns, and this model's positions allow {widest} in a "
            "packed row; shorten the sequences, or do not pack"
        )
    tried = []
    for sixteenths in range(16, 33):
        columns = -(-width * sixteenths // 16)
        if widest is not None and columns > widest:
            break
        bins = [best_fit(cell, columns) for cell in lengths.tolist()]
        tried.append(Plan(_rounded(max(map(len, bins))), columns, bins))
        size = len(lengths) * tried[-1].rows * columns
        if lengths.sum() > (1 - ENOUGH) * size:
            return tried[-1]
    return min(tried, key=lambda plan: plan.rows * plan.width)


# ------------------------------------------------------------------ helpers


def _cells(x: np.ndarray, shards: int, groups: int) -> np.ndarray:
    """`[B, ..., T]` -> `[C, n, T]`."""
    if len(x) % (shards * groups):
        raise UserError(
            f"packing: batch of {len(x)} rows does not divide into {groups} groups on {shards} "
            "devices"
        )
    dealt = x.reshape(shards, -1, groups, *x.shape[1:]).swapaxes(1, 2)
    return dealt.reshape(shards * groups, -1, x.shape[-1])


def _dealt(rows: np.ndarray, lengths: np.ndarray, ways: int) -> np.ndarray:
    """`[ways, n]`: the longest rows first, a round at a time, to where the fewest tokens are."""
    if len(rows) % ways:
        raise UserError(
            f"packing: {len(rows)} rows do not divide into {ways} parts (minibatches, then "
            "micro-batches, then devices)"
        )
    longest = rows[np.argsort(-lengths[rows], kind="stable")].reshape(-1, ways)
    parts, total = np.empty_like(longest), np.zeros(ways, np.int64)
    for turn, some in enumerate(longest):
        fewest = np.argsort(total, kind="stable")
        parts[turn, fewest] = some
        total[fewest] += lengths[some]
    return np.sort(parts.T, axis=1)


def _rounded(rows: int) -> int:
    """Up to a number of at most 4 binary digits and zeros: 1, ..., 16, 18, 20, ..., 32, 36, ..."""
    step = max(1 << max(rows - 1, 1).bit_length() >> 4, 1)
    return -(-rows // step) * step


def _starts(plan: Plan, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[C, n]`: the column of each sequence's first token, and its segment's number."""
    lengths = mask.sum(axis=2)
    starts, numbers = np.zeros_like(lengths), np.zeros_like(lengths)
    for cell, rows in enumerate(plan.bins):
        for row, members in enumerate(rows):
            before = np.cumsum(lengths[cell, members]) - lengths[cell, members]
            starts[cell, members] = row * plan.width + before
            numbers[cell, members] = np.arange(1, len(members) + 1)
    return starts, numbers


def _places(columns: np.ndarray, read: np.ndarray, plan: Plan) -> np.ndarray:
    """`Packed.places`."""
    step = -(-plan.rows * plan.width // 16)
    count = -(-int(read.sum(axis=(1, 2)).max()) // step) * step
    places = np.zeros((len(read), count), np.int32)
    for place, column, chosen in zip(places, columns, read, strict=True):
        place[: chosen.sum()] = column[chosen]
    return places
