"""Batches: which rows come when. Shuffled anew each epoch, endless or for some epochs, resumable.

Order and position are grain's; the rows are `arrays.Arrays` in memory. The position is a small
JSON object that goes into the checkpoint. It also says what it is a position *in*, so that a run
resumed with another batch size, seed or data stops instead of going on somewhere else.

Epochs follow each other without a gap: with 10 rows and batches of 4, the third batch holds the
last 2 rows of the first epoch and the first 2 of the second. So every row comes exactly once an
epoch and none is ever dropped, except, with a number of epochs given, the last (rows x epochs) %
batch_size rows, which do not fill a batch.

Padding costs as much as text. `group_by_length` gives a batch rows of like length and only the
columns they need: of every 16 batches the rows are sorted, and the batches come in any order. There
are at most 8 widths, so that little is compiled.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxrlhf.data.arrays import Arrays
from jaxrlhf.errors import DataError

SORTED, WIDTHS = 16, 8  # batches that are sorted together; widths that batches may have
PADDED = ("tokens", "mask", "segment_ids")  # how the names of columns end that have padding


def batches(
    dataset: Arrays,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    epochs: int | None = None,
    group_by_length: bool = False,
) -> "Batches":
    """An iterator of batches of `batch_size` rows.

    Args:
      dataset: rows of one shape.
      batch_size: rows a batch, never fewer.
      seed: from 0 to 2^32 - 1; another order for each seed and each epoch.
      shuffle: False keeps the order of the rows, every epoch.
      epochs: how often each row comes; None never ends.
      group_by_length: rows of like length together, and no wider than they need; for rows that are
        padded on the right.
    Raises:
      DataError: fewer rows than `batch_size`, or an argument out of range.
    """
    if batch_size < 1:
        raise DataError(f"batch_size = {batch_size}: must be 1 or more")
    if epochs is not None and epochs < 1:
        raise DataError(f"epochs = {epochs}: must be 1 or more")
    if not 0 <= seed < 2**32:
        raise DataError(f"seed = {seed}: must be from 0 to 2^32 - 1")
    if len(dataset) < batch_size:
        left_out = f" ({dataset.skipped})" if dataset.skipped.total else ""
        raise DataError(
            f"batch_size = {batch_size}, but there are only {len(dataset)} rows{left_out}"
        )
    return Batches(dataset, batch_size, seed, shuffle, epochs, group_by_length)


class Batches(Iterator[dict[str, np.ndarray]]):
    """See `batches`. `get_state()` is JSON; `set_state(state)` goes on with the batch after it."""

    def __init__(
        self,
        dataset: Arrays,
        batch_size: int,
        seed: int,
        shuffle: bool,
        epochs: int | None,
        group_by_length: bool,
    ):
        numbers, take = _order(len(dataset), seed, shuffle, epochs), dataset.take
        if group_by_length:
            numbers, take = _like_lengths(dataset, numbers, batch_size, seed)
        else:
            numbers = numbers.batch(batch_size, drop_remainder=True, batch_fn=np.array)
        self._batches = _iterator(numbers, take)
        self._identity = {
            "rows": len(dataset),
            "data": dataset.fingerprint(),
            "batch_size": batch_size,
            "seed": seed,
            "shuffle": shuffle,
            "group_by_length": group_by_length,
        }

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        return {"position": self._batches.get_state(), **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
          DataError: it belongs to other data, or another batch size, seed or order.
        """
        for name, mine in self._identity.items():
            if state.get(name) != mine:
                what = "the data have changed" if name == "data" else f"{name} is now {mine}"
                was = "" if name == "data" else f" and was {state.get(name)}"
                raise DataError(f"cannot continue from the saved data position: {what}{was}")
        self._batches.set_state(state["position"])


def in_order(
    dataset: Arrays, *, batch_size: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Each row once, for evaluation: batches of one shape, and which of their rows count.

    Returns:
      Pairs of a batch and `valid` `[batch_size]` bool. The last batch is filled up with copies of
      the last row, for which `valid` is False.
    """
    if batch_size < 1:
        raise DataError(f"batch_size = {batch_size}: must be 1 or more")
    for start in range(0, len(dataset), batch_size):
        indices = np.arange(start, start + batch_size)
        yield dataset.take(np.minimum(indices, len(dataset) - 1)), indices < len(dataset)


def _order(rows: int, seed: int, shuffle: bool, epochs: int | None) -> Any:
    """The numbers of the rows, as they come."""
    import grain  # slow to import, and not everywhere: only where batches are made

    order = grain.MapDataset.range(rows).seed(seed)
    if shuffle:
        order = order.shuffle()
    return order.repeat(epochs)


def _like_lengths(
    dataset: Arrays, order: Any, batch_size: int, seed: int
) -> tuple[Any, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    """Batches of numbers of rows of like length, and what makes a batch of them."""
    import grain

    masks = [mask for name, mask in dataset.columns.items() if name.endswith("mask")]
    width = masks[0].shape[1]
    lengths = np.max([width - np.argmax(mask[:, ::-1], axis=1) for mask in masks], axis=0)
    count, step = len(order) // batch_size, -(-width // WIDTHS)

    @functools.lru_cache(maxsize=2)
    def some(number: int) -> np.ndarray:
        """`[16 or fewer, batch_size]`."""
        first, last = (min(n * SORTED, count) * batch_size for n in (number, number + 1))
        rows = np.array([order[i] for i in range(first, last)])
        rows = rows[np.argsort(lengths[rows], kind="stable")].reshape(-1, batch_size)
        return np.random.default_rng([seed, number]).permutation(rows)

    def take(rows: np.ndarray) -> dict[str, np.ndarray]:
        columns = -(-int(lengths[rows].max()) // step) * step
        return {
            name: x[:, :columns] if name.endswith(PADDED) else x
            for name, x in dataset.take(rows).items()
        }

    return grain.MapDataset.range(count).map(lambda k: some(k // SORTED)[k % SORTED]), take


def _iterator(numbers: Any, take: Callable[[np.ndarray], dict[str, np.ndarray]]) -> Any:
    import grain

    # The rows are in memory: reading ahead in threads would only compete for the interpreter.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(numbers.map(take).to_iter_dataset(options))
