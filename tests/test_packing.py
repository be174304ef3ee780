"""Where sequences go in packed rows: every token once, segments apart, few shapes."""

import numpy as np
import pytest

from jaxrlhf import packing
from jaxrlhf.errors import UserError


def ragged(rng, rows: int, width: int, *, longest: int | None = None):
    """Tokens 1, 2, 3, ..., and masks with padding on either side or, in some rows, in between."""
    mask = np.arange(width) < rng.integers(1, (longest or width) + 1, rows)[:, None]
    mask[::3] = mask[::3, ::-1]
    mask[1::4] = rng.permuted(mask[1::4], axis=1)
    tokens = np.where(mask, 1 + np.arange(rows * width).reshape(rows, width), 0)
    return tokens, mask


@pytest.mark.parametrize(("shards", "groups"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_every_token_stands_once_in_its_cell_and_can_be_found(shards, groups):
    rng = np.random.default_rng(0)
    for width in (2, 5, 17):
        tokens, mask = ragged(rng, 24, width)
        read = mask & rng.integers(0, 2, mask.shape).astype(bool)
        packed = packing.pack(tokens, mask, read, shards=shards, groups=groups)
        cells = packed.tokens.shape[0]
        assert cells == shards * groups and packed.tokens.shape == packed.segment_ids.shape
        for cell in range(cells):
            # rows i of a shard, i % groups
            some = np.arange(24).reshape(shards, -1)[cell // groups, cell % groups :: groups]
            flat, segments = packed.tokens[cell].ravel(), packed.segment_ids[cell].ravel()
            assert sorted(flat[segments > 0]) == sorted(tokens[some][mask[some]])
            found = flat[packed.places[cell]][: read[some].sum()]
            np.testing.assert_array_equal(found, tokens[some][read[some]])
            for i in some:  # a segment is one sequence, whole, in order and in one row
                row, column = np.argwhere(packed.tokens[cell] == tokens[i][mask[i]][0])[0]
                same = packed.segment_ids[cell, row] == packed.segment_ids[cell, row, column]
                np.testing.assert_array_equal(packed.tokens[cell, row, same], tokens[i][mask[i]])
                assert np.diff(np.nonzero(same)[0]).tolist() == [1] * (same.sum() - 1)


def test_several_sequences_of_a_row_stay_in_its_cell():
    tokens, mask = ragged(np.random.default_rng(0), 16, 6)
    pairs = tokens.reshape(8, 2, 6), mask.reshape(8, 2, 6), mask.reshape(8, 2, 6)
    packed = packing.pack(*pairs, groups=2)
    for group in range(2):
        some = pairs[0][group::2][pairs[1][group::2]]
        np.testing.assert_array_equal(
            packed.tokens[group].ravel()[packed.places[group]][: len(some)], some
        )


@pytest.mark.parametrize(
    ("rows", "prompt", "response", "groups"),
    [(64, 16, 128, 1), (64, 64, 128, 4), (128, 16, 128, 8), (512, 64, 256, 32), (16, 16, 128, 1)],
)
def test_long_tailed_batches_have_less_than_a_tenth_of_padding_in_few_shapes(
    rows, prompt, response, groups
):
    """Geometric lengths whose mean is a quarter of the longest, as sampling ends them."""
    rng, shapes = np.random.default_rng(0), set()
    for _ in range(30):
        ends = prompt + np.minimum(rng.geometric(4 / response, rows), response)
        starts = rng.integers(0, prompt // 2, rows)
        columns = np.arange(prompt + response)
        mask = (columns >= starts[:, None]) & (columns < ends[:, None])
        mask = mask[packing.deal(mask.sum(axis=1), groups=[groups])]
        packed = packing.pack(mask.astype(int), mask, mask & (columns >= prompt), groups=groups)
        assert (packed.segment_ids == 0).mean() < packing.ENOUGH < 0.5 < 1 - mask.mean()
        shapes.add((packed.tokens.shape, packed.places.shape))
    assert len(shapes) <= 20


def test_rows_get_wider_where_that_leaves_less_padding():
    """Sequences of 6 columns of 10: one a row, 40 % padding; three in 18 columns, none."""
    lengths = np.full((1, 9), 6)
    plan = packing.narrowest(lengths, 10)
    assert (plan.rows, plan.width) == (3, 18)
    assert packing.narrowest(lengths, 10, widest=11).width == 10
    assert packing.narrowest(np.full((1, 9), 10), 10) == packing.Plan(
        9, 10, [[[i] for i in range(9)]]
    )


def test_groups_are_dealt_alike_whatever_the_micro_batches_and_devices():
    """Row i is in minibatch i % 2; a shard is a half, a quarter, ... of the order."""
    lengths = np.random.default_rng(0).geometric(0.05, 48)
    expected = None
    for micro, shards in [(1, 1), (2, 1), (1, 2), (3, 4)]:
        order = packing.deal(lengths, groups=(2, micro), shards=shards)
        assert sorted(order) == list(range(48))
        minibatches = [sorted(order[i::2]) for i in range(2)]
        expected = expected or minibatches
        assert minibatches == expected
        tokens = lengths[order.reshape(-1, 2 * micro)].sum(axis=0)
        assert tokens.max() - tokens.min() <= lengths.max()
    np.testing.assert_array_equal(packing.deal(lengths, groups=(1, 1)), np.arange(48))


def test_what_cannot_be_packed_is_refused():
    tokens, mask = ragged(np.random.default_rng(0), 8, 10)
    with pytest.raises(UserError, match="8 rows does not divide into 3 groups on 2 devices"):
        packing.pack(tokens, mask, mask, groups=3, shards=2)
    with pytest.raises(UserError, match="8 rows do not divide into 3 parts"):
        packing.deal(mask.sum(axis=1), groups=[3])
    with pytest.raises(UserError, match="rows of 10 columns, and this model's positions allow 9"):
        packing.pack(tokens, mask, mask, widest=9)
