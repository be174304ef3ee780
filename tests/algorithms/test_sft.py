"""Supervised fine-tuning on a table of logits: a step against numpy, and which tokens count."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tables
from ppo_by_hand import log_softmax

from jaxrlhf.algorithms.sft import predicted, sft


@pytest.fixture(scope="module")
def run() -> tables.Run:
    return tables.sft_run()


def by_hand(batch, table):
    """Loss, entropy, tokens and gradient of the marked tokens, one at a time.

    ∂ −log π(y) / ∂ table[x] = π − onehot(y).
    """
    losses, entropies, grad = [], [], np.zeros_like(table)
    for tokens, mask, loss_mask in zip(
        *(np.asarray(batch[name]) for name in ("tokens", "mask", "loss_mask")), strict=True
    ):
        (real,) = np.nonzero(mask)
        for before, at in itertools.pairwise(real):
            if loss_mask[at]:
                x, y = tokens[before], tokens[at]
                log_pi = log_softmax(table[x])
                losses.append(-log_pi[y])
                entropies.append(-np.sum(np.exp(log_pi) * log_pi))
                grad[x] += np.exp(log_pi) - np.eye(len(log_pi))[y]
    return np.mean(losses), np.mean(entropies), len(losses), grad / len(losses)


def test_a_step_equals_the_one_written_out_in_numpy(run):
    table = np.asarray(run.state.params["embed"]["embedding"], np.float64)
    loss, entropy, count, grad = by_hand(run.batch, table)
    new, metrics = run.update(run.state, run.batch, run.key)
    np.testing.assert_allclose(new.params["embed"]["embedding"], table - grad, atol=1e-6)
    expected = {
        "loss": loss,
        "entropy": entropy,
        "perplexity": np.exp(loss),
        "tokens": count,
        "grad_norm": np.sqrt(np.sum(grad**2)),
    }
    assert metrics.keys() == expected.keys()
    for name, x in expected.items():
        assert float(metrics[name]) == pytest.approx(x, rel=1e-5), name
    assert int(new.step) == 1


def test_only_marked_tokens_count(run):
    """With one marked token the loss is its negative log-likelihood; with none it is 0."""
    tokens, table = run.batch["tokens"], run.state.params["embed"]["embedding"]
    one = jnp.zeros_like(run.batch["mask"]).at[1, 2].set(True)
    _, metrics = run.update(run.state, {**run.batch, "loss_mask": one}, run.key)
    expected = -jax.nn.log_softmax(table[tokens[1, 1]])[tokens[1, 2]]
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-6)
    assert float(metrics["tokens"]) == 1
    new, metrics = run.update(run.state, {**run.batch, "loss_mask": one & False}, run.key)
    assert float(metrics["loss"]) == 0
    np.testing.assert_array_equal(new.params["embed"]["embedding"], table)


def test_a_token_without_a_predecessor_is_not_predicted():
    mask = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    found = predicted({"mask": mask, "loss_mask": jnp.ones_like(mask)})
    np.testing.assert_array_equal(found, [[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]])
    segments = jnp.array([[0, 0, 1, 1, 2], [1, 1, 2, 0, 0]])
    found = predicted({"mask": mask, "loss_mask": jnp.ones_like(mask), "segment_ids": segments})
    np.testing.assert_array_equal(found, [[0, 0, 0, 1, 0], [0, 1, 0, 0, 0]])
    none = predicted({"mask": mask, "loss_mask": jnp.zeros_like(mask)})
    assert not none.any()


def test_packed_rows_cost_what_their_texts_cost_apart(run):
    """Texts of 3 and 4 tokens, in a row each and in one row of seven."""
    text = jnp.array([[2, 3, 4, 0, 0, 0, 0], [5, 1, 3, 2, 0, 0, 0]])
    mask = jnp.array([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0]], bool)
    rows = {"tokens": text, "mask": mask, "loss_mask": mask}
    segments = jnp.where(mask, 1, 0)
    apart, apart_metrics = run.update(run.state, rows | {"segment_ids": segments}, run.key)
    packed = jnp.concatenate([text[:1, :3], text[1:, :4]], axis=1)
    rows = {
        "tokens": jnp.concatenate([packed, text[:1] * 0]),
        "mask": jnp.array([[True] * 7, [False] * 7]),
        "loss_mask": jnp.array([[True] * 7, [False] * 7]),
        "segment_ids": jnp.array([[1, 1, 1, 2, 2, 2, 2], [0] * 7]),
    }
    new, metrics = run.update(run.state, rows, run.key)
    assert float(metrics["tokens"]) == float(apart_metrics["tokens"]) == 5
    assert float(metrics["loss"]) == pytest.approx(float(apart_metrics["loss"]), rel=1e-6)
    np.testing.assert_allclose(
        new.params["embed"]["embedding"], apart.params["embed"]["embedding"], atol=1e-6
    )


def test_the_model_is_told_where_texts_begin(run):
    """A table cannot look back, so it would not notice; a transformer attends within a segment."""
    seen = []

    def hidden(*args, segment_ids=None):
        seen.append(segment_ids)
        return tables.LM_TABLE.hidden(*args)

    algorithm = sft(tables.LM_TABLE._replace(hidden=hidden), tables.sgd(1.0))
    segments = jnp.where(run.batch["mask"], 3, 0)
    algorithm.update(run.state, {**run.batch, "segment_ids": segments}, run.key)
    assert seen[0].shape == segments.shape
    seen.clear()
    algorithm.update(run.state, run.batch, run.key)
    assert seen == [None]


def test_a_vocabulary_in_chunks_changes_nothing(run):
    new, metrics = run.update(run.state, run.batch, run.key)
    chunked = tables.sft_run(chunk_size=4)
    again, chunked_metrics = chunked.update(run.state, run.batch, run.key)
    np.testing.assert_allclose(
        again.params["embed"]["embedding"], new.params["embed"]["embedding"], atol=1e-6
    )
    for name, x in metrics.items():
        assert float(chunked_metrics[name]) == pytest.approx(float(x), rel=1e-5), name


def test_collect_hands_on_the_batch():
    run = tables.sft_run()
    assert run.algorithm.collect(run.state, lambda: run.batch, run.key) == (run.batch, {})
