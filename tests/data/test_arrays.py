"""Rows of one shape: every token kept, masks right, over-long rows by the stated rule."""

import random

import numpy as np
import pytest

from jaxrlhf.data import arrays
from jaxrlhf.data.chat import EncodedExample, EncodedPair
from jaxrlhf.data.rows import Loaded, Rows, Skipped
from jaxrlhf.errors import DataError


def example(tokens, learnt=None):
    tokens = np.array(tokens, np.int32)
    mask = np.ones(len(tokens), bool) if learnt is None else np.array(learnt, bool)
    return EncodedExample(tokens, mask)


def pair(prompt, chosen, rejected, **more):
    arrays_of = [np.array(side, np.int32) for side in (prompt, chosen, rejected)]
    return EncodedPair(arrays_of[0], arrays_of[1], arrays_of[2], **more)


def named(items):
    """Items from lines 11, 12, ... of a file."""
    places = [f"f.jsonl:{i + 11}" for i in range(len(items))]
    rows = Rows([{}] * len(items), name="f.jsonl", places=places)
    return Loaded(items, list(range(len(items))), rows, Skipped())


def test_wrapped():
    data = arrays.wrapped([example([5, 6, 2]), example([7, 2])], length=3, pad_id=0)
    assert data.columns["tokens"].tolist() == [[5, 6, 2], [7, 2, 0]]
    assert data.columns["mask"].tolist() == [[True] * 3, [True, True, False]]
    # The first token of a row has nothing before it to be predicted from.
    assert data.columns["loss_mask"].tolist() == [[False, True, True], [False, True, False]]
    assert data.columns["segment_ids"].tolist() == [[1, 1, 1], [1, 1, 0]]
    dtypes = {name: str(column.dtype) for name, column in data.columns.items()}
    assert dtypes == {
        "tokens": "int32",
        "mask": "bool",
        "loss_mask": "bool",
        "segment_ids": "int32",
    }


def test_packed():
    items = [example([5, 2]), example([6, 7, 8, 2], [0, 0, 1, 1]), example([9, 9, 2])]
    data = arrays.packed(items, length=5, pad_id=0)
    # Longest first: 4 alone (1 left), then 3, and 2 fits exactly beside it.
    assert data.columns["tokens"].tolist() == [[6, 7, 8, 2, 0], [9, 9, 2, 5, 2]]
    assert data.columns["segment_ids"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 2, 2]]
    assert data.columns["loss_mask"].astype(int).tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 0, 1]]


def test_padded():
    data = arrays.padded([example([5, 2]), example([6, 7, 2], [0, 1, 1])], length=4, pad_id=2)
    assert data.columns["tokens"].tolist() == [[5, 2, 2, 2], [6, 7, 2, 2]]
    assert data.columns["mask"].sum(1).tolist() == [2, 3]  # a real end token is not padding
    assert data.columns["loss_mask"].astype(int).tolist() == [[0, 1, 0, 0], [0, 1, 1, 0]]
    assert len(data) == 2


@pytest.mark.parametrize("seed", range(20))
def test_packing_keeps_every_example_whole_and_once(seed):
    rng = random.Random(seed)
    length = rng.randrange(4, 20)
    items = [example(rng.choices(range(3, 99), k=rng.randrange(2, length + 1))) for _ in range(40)]
    data = arrays.packed(items, length=length, pad_id=0)
    found = []
    for tokens, segments in zip(data.columns["tokens"], data.columns["segment_ids"], strict=True):
        found += [tokens[segments == n].tolist() for n in range(1, segments.max() + 1)]
    assert sorted(found) == sorted(item.tokens.tolist() for item in items)
    total = sum(len(item.tokens) for item in items)
    assert data.columns["mask"].sum() == total
    assert data.columns["loss_mask"].sum() == total - len(items)
    # Two rows at most half full would have been one, so fewer than 2 x the tokens / length + 1.
    assert len(data) < 2 * total / length + 1
    stream = arrays.wrapped(items, length=length, pad_id=0)
    flat = stream.columns["tokens"][stream.columns["mask"]].tolist()
    assert flat == [token for item in items for token in item.tokens]


def test_pairs():
    items = [
        pair([5, 6], [7, 2], [8, 9, 2], label=0.75, margin=1.5, weight=0.5),
        pair([5], [6, 2], [7, 2]),
    ]
    columns = arrays.pairs(items, length=6, pad_id=0).columns
    assert columns["chosen_tokens"].tolist() == [[5, 6, 7, 2, 0, 0], [5, 6, 2, 0, 0, 0]]
    assert columns["rejected_tokens"].tolist() == [[5, 6, 8, 9, 2, 0], [5, 7, 2, 0, 0, 0]]
    assert columns["chosen_mask"].sum(1).tolist() == [4, 3]
    assert columns["rejected_mask"].sum(1).tolist() == [5, 3]
    assert columns["label"].tolist() == [0.75, 1.0] and columns["label"].dtype == np.float32
    assert columns["margin"].tolist() == [1.5, 0.0] and columns["margin"].dtype == np.float32
    assert columns["weight"].tolist() == [0.5, 1.0] and columns["weight"].dtype == np.float32


def test_pairs_truncate_both_prompts_alike():
    items = [pair([3, 4, 5, 6], [7, 2], [8, 9, 2]), pair([3], [4] * 5, [5]), pair([3], [4], [5])]
    data = arrays.pairs(items, length=5, pad_id=0, over_long="truncate_left")
    assert data.columns["chosen_tokens"].tolist() == [[5, 6, 7, 2, 0], [3, 4, 0, 0, 0]]
    assert data.columns["rejected_tokens"].tolist() == [[5, 6, 8, 9, 2], [3, 5, 0, 0, 0]]
    assert data.skipped.counts == {"answer longer than 5 tokens": 1}


def test_prompts():
    source = named([np.array([5, 6]), np.array([7] * 9), np.array([8])])
    data = arrays.prompts(source, length=3, pad_id=0)
    assert data.columns["prompt_tokens"].tolist() == [[0, 5, 6], [0, 0, 8]]
    assert data.columns["prompt_mask"].tolist() == [[False, True, True], [False, False, True]]
    assert data.columns["row"].tolist() == [0, 2] and data.columns["row"].dtype == np.int32
    assert source.at_row(2).tolist() == [8]
    cut = arrays.prompts([np.arange(5)], length=3, pad_id=0, over_long="truncate_left")
    assert cut.columns["prompt_tokens"].tolist() == [[2, 3, 4]]


def test_over_long():
    items = named([example([5, 2]), example([3, 4, 5, 6, 2])])
    for function in (arrays.padded, arrays.packed):
        data = function(items, length=4, pad_id=0)
        assert data.skipped.counts == {"longer than 4 tokens": 1}
        assert data.skipped.first == {"longer than 4 tokens": "f.jsonl:12"} and len(data) == 1
        with pytest.raises(
            DataError, match=r"f.jsonl:12: over-long row: 5 tokens, .* at most 4 fit"
        ):
            function(items, length=4, pad_id=0, over_long="error")
    data = arrays.padded(items, length=4, pad_id=0, over_long="truncate_left")
    assert data.columns["tokens"].tolist() == [[5, 2, 0, 0], [4, 5, 6, 2]]
    assert not items.skipped.total  # reports are copies: making arrays twice counts once
    with pytest.raises(DataError, match=r"f.jsonl: no examples that fit left: 1 rows skipped"):
        arrays.padded(named([example([5] * 9)]), length=4, pad_id=0)
    long_pair = named([pair([3] * 9, [4], [5])])
    with pytest.raises(DataError, match=r"f.jsonl:11: over-long row: 10 tokens"):
        arrays.pairs(long_pair, length=4, pad_id=0, over_long="error")
    with pytest.raises(DataError, match="over_long = 'cut': must be skip, truncate_left or error"):
        arrays.padded(items, length=4, pad_id=0, over_long="cut")  # type: ignore[arg-type]


def test_nothing_to_learn_is_counted():
    data = arrays.padded([example([5, 6], [1, 0]), example([5, 6])], length=4, pad_id=0)
    assert len(data) == 1 and data.skipped.counts == {"nothing to learn": 1}


def test_arguments():
    with pytest.raises(DataError, match="length = 1: must be 2 or more"):
        arrays.wrapped([example([5, 2])], length=1, pad_id=0)
    with pytest.raises(DataError, match="data: there are no rows"):
        arrays.wrapped([], length=4, pad_id=0)


def test_mask_from_ids():
    tokens = np.array([[5, 2, 0, 0]])
    assert arrays.mask_from_ids(tokens, pad_id=0, eos_id=2).tolist() == [[True, True, False, False]]
    with pytest.raises(DataError, match="pad and end token are the same id"):
        arrays.mask_from_ids(tokens, pad_id=2, eos_id=2)


def test_fingerprint_sees_every_change():
    def make(token, pad_id=0):
        return arrays.padded([example([5, token, 2])], length=4, pad_id=pad_id).fingerprint()

    assert make(6) == make(6) and len({make(6), make(7), make(6, pad_id=1)}) == 3
