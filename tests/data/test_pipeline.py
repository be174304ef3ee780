"""Batches: every row once an epoch, exactly resumable, also in another process."""

import functools
import json
import subprocess
import sys

import numpy as np
import pytest

from jaxrlhf.data import pipeline
from jaxrlhf.data.arrays import Arrays
from jaxrlhf.errors import DataError


def dataset(n=10, shift=0):
    rows = np.arange(n, dtype=np.int32) + shift
    return Arrays({"row": rows, "tokens": np.stack([rows, rows * 2], axis=1)})


def rows_of(batches, count):
    return [next(batches)["row"].tolist() for _ in range(count)]


def flat(lists):
    return [x for part in lists for x in part]


def test_every_row_once_an_epoch_and_reshuffled():
    """10 rows in batches of 4: 5 batches are exactly 2 epochs, the third straddles them."""
    stream = flat(rows_of(pipeline.batches(dataset(), batch_size=4, seed=0), 15))
    epochs = [stream[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_batches_are_the_rows():
    batch = next(pipeline.batches(dataset(), batch_size=4, seed=3))
    assert batch["tokens"].shape == (4, 2) and batch["tokens"].dtype == np.int32
    assert np.array_equal(batch["tokens"], np.stack([batch["row"], batch["row"] * 2], axis=1))


def test_seeds_and_order():
    def make(**options):
        return flat(rows_of(pipeline.batches(dataset(), batch_size=5, **options), 2))

    assert make(seed=1) == make(seed=1) != make(seed=2)
    assert make(seed=1, shuffle=False) == list(range(10))


def test_epochs_end():
    """3 epochs of 10 rows: 7 batches of 4; the last 30 % 4 = 2 rows fill none."""
    batches = [b["row"] for b in pipeline.batches(dataset(), batch_size=4, seed=0, epochs=3)]
    assert len(batches) == 7 and all(len(b) == 4 for b in batches)
    assert len(list(pipeline.batches(dataset(8), batch_size=4, seed=0, epochs=1))) == 2


@pytest.mark.parametrize("done", [0, 1, 3, 5, 12])
def test_resume_is_exact(done):
    """Before the first batch, mid-epoch, at an epoch's end (5 batches = 2 epochs), later."""
    batches = pipeline.batches(dataset(), batch_size=4, seed=7)
    rows_of(batches, done)
    state = json.loads(json.dumps(batches.get_state()))
    want = rows_of(batches, 9)
    fresh = pipeline.batches(dataset(), batch_size=4, seed=7)
    rows_of(fresh, 2)  # wherever it stands
    fresh.set_state(state)
    assert rows_of(fresh, 9) == want
    batches.set_state(state)  # and back, on the same iterator
    assert rows_of(batches, 9) == want


def test_state_is_of_the_last_batch_taken():
    """Nothing is read ahead: the state does not run away from the batches."""
    batches = pipeline.batches(dataset(), batch_size=4, seed=7)
    before = batches.get_state()
    assert batches.get_state() == before
    next(batches)
    assert batches.get_state() != before


SCRIPT = """
import json, sys
import numpy as np
from jaxrlhf.data import pipeline
from jaxrlhf.data.arrays import Arrays
rows = np.arange(10, dtype=np.int32)
data = Arrays({"row": rows, "tokens": np.stack([rows, rows * 2], axis=1)})
batches = pipeline.batches(data, batch_size=4, seed=7)
batches.set_state(json.loads(sys.argv[1]))
print(json.dumps([next(batches)["row"].tolist() for _ in range(6)]))
"""


def test_resume_in_another_process():
    batches = pipeline.batches(dataset(), batch_size=4, seed=7)
    rows_of(batches, 4)
    state = json.dumps(batches.get_state())
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, state], capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout) == rows_of(batches, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 8}, "seed is now 8 and was 7"),
        ({"batch_size": 5}, "batch_size is now 5 and was 4"),
        ({"shuffle": False}, "shuffle is now False and was True"),
        ({"dataset": dataset(11)}, "rows is now 11 and was 10"),
        ({"dataset": dataset(shift=1)}, "the data have changed"),
    ],
)
def test_a_state_of_something_else_is_refused(change, message):
    options = {"dataset": dataset(), "batch_size": 4, "seed": 7, "shuffle": True}
    state = pipeline.batches(**options).get_state()
    other = {**options, **change}
    with pytest.raises(DataError, match=f"cannot continue from the saved data position: {message}"):
        pipeline.batches(**other).set_state(state)


def test_arguments():
    with pytest.raises(DataError, match="batch_size = 11, but there are only 10 rows"):
        pipeline.batches(dataset(), batch_size=11, seed=0)
    with pytest.raises(DataError, match="batch_size = 0"):
        pipeline.batches(dataset(), batch_size=0, seed=0)
    with pytest.raises(DataError, match="epochs = 0"):
        pipeline.batches(dataset(), batch_size=1, seed=0, epochs=0)
    with pytest.raises(DataError, match="seed = -1"):
        pipeline.batches(dataset(), batch_size=1, seed=-1)


def test_one_row():
    assert rows_of(pipeline.batches(dataset(1), batch_size=1, seed=0), 3) == [[0]] * 3


def test_in_order():
    got = list(pipeline.in_order(dataset(5), batch_size=2))
    assert [batch["row"].tolist() for batch, _ in got] == [[0, 1], [2, 3], [4, 4]]
    assert [valid.tolist() for _, valid in got] == [[True, True], [True, True], [True, False]]


LIGHT = """
import sys
from jaxrlhf.data import arrays, chat, dialogue, formats, pipeline, preferences, rows, sources
from jaxrlhf.data import tokenizer
print(sorted({"jax", "grain", "datasets", "transformers", "tokenizers"} & set(sys.modules)))
"""


def test_imports_are_light():
    run = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# ------------------------------------------------------------------ rows of like length


def ragged(n=70, width=64):
    """Row i has 1 + 7 i % 64 tokens of number i; a label of two numbers, as long as no text."""
    lengths = 1 + np.arange(n) * 7 % width
    mask = np.arange(width)[None, :] < lengths[:, None]
    tokens = np.where(mask, np.arange(n)[:, None], -1)
    return Arrays({"tokens": tokens, "mask": mask, "label": np.stack([lengths, lengths], axis=1)})


def test_rows_of_like_length_come_together_and_none_is_lost_or_cut():
    made = list(pipeline.batches(ragged(), batch_size=4, seed=0, epochs=2, group_by_length=True))
    assert len(made) == 35  # 2 x 70 / 4: two windows of 16 batches and one of 3
    seen = []
    for batch in made:
        assert batch["tokens"].shape == batch["mask"].shape
        width, longest = batch["mask"].shape[1], batch["label"].max()
        assert width % 8 == 0 and longest <= width < longest + 8  # the next of 8, 16, ..., 64
        assert np.array_equal(batch["mask"].sum(axis=1), batch["label"][:, 0])
        seen += batch["tokens"][:, 0].tolist()
    assert sorted(seen) == sorted(2 * list(range(70)))
    widths = [batch["mask"].shape[1] for batch in made[:16]]
    assert widths != sorted(widths)  # the batches of a window come in any order
    padding = 1 - sum(b["mask"].sum() for b in made[:32]) / sum(b["mask"].size for b in made[:32])
    assert padding < 0.15  # 4 (half of 8 columns) of 32.5 tokens, and neighbours in length; was .49


def test_a_run_resumes_within_a_window_of_like_lengths():
    make = functools.partial(pipeline.batches, ragged(), batch_size=4, seed=1, group_by_length=True)
    first = make()
    for _ in range(19):
        next(first)
    state, expected = json.loads(json.dumps(first.get_state())), next(first)
    second = make()
    second.set_state(state)
    np.testing.assert_array_equal(next(second)["tokens"], expected["tokens"])
    with pytest.raises(DataError, match="group_by_length is now False and was True"):
        pipeline.batches(ragged(), batch_size=4, seed=1).set_state(state)
