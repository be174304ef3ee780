"""Continuous batching draws what the plain loop draws, and takes fewer steps for it."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrlhf import continuous, inference
from jaxrlhf.inference import generate
from jaxrlhf.models import make_lm, transformer_config
from jaxrlhf.sampling import Sampling

SIZES = dict(vocab_size=16, num_layers=2, num_heads=4, d_model=16, d_ff=24, max_positions=64)
STOPS = Sampling(max_new_tokens=8, stop_ids=(3, 4, 5), pad_id=1)


@pytest.fixture(scope="module")
def model():
    return a_model("llama", num_kv_heads=2)


def a_model(family, **flags):
    """Every leaf N(0, .3), norms around 1: a fresh model draws almost uniformly."""
    lm = make_lm(transformer_config(family, **{**SIZES, **flags}))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        return rng.normal(path[-1].key == "scale", 0.3, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    return lm, jax.tree_util.tree_map_with_path(draw, shapes)


def prompts_of(*lengths):
    """Right-padded random prompts, six columns: tokens and mask."""
    mask = np.arange(6)[None, :] < np.array(lengths)[:, None]
    return np.random.default_rng(1).integers(6, 16, mask.shape) * mask, mask


def equal(one, other):
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_array_equal(one.finished, other.finished)
    np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)


PROMPTS = prompts_of(6, 2, 1, 4, 5, 3, 6)
KEYS = jax.random.split(jax.random.key(1), 7)


def test_a_queue_draws_what_the_plain_loop_draws(model):
    plain = generate(*model, *PROMPTS, KEYS, STOPS)
    lengths = np.asarray(plain.response_mask).sum(axis=1)
    assert {1, 8} < set(lengths.tolist())  # responses end at different steps
    assert not plain.finished.all()  # one at least by its length
    equal(generate(*model, *PROMPTS, KEYS, dataclasses.replace(STOPS, slots=3)), plain)


def test_rows_that_begin_at_different_times_keep_their_own_positions_and_windows():
    model = a_model("gpt2", layer_windows=(3, 0))
    sampling = dataclasses.replace(STOPS, min_new_tokens=2, temperature=0.7)
    plain = generate(*model, *PROMPTS, KEYS, sampling)
    equal(generate(*model, *PROMPTS, KEYS, dataclasses.replace(sampling, slots=2)), plain)


def test_responses_to_one_prompt_are_those_to_as_many_rows(model):
    keys = KEYS[:6].reshape(2, 3)
    prompts, mask = (x[:2] for x in PROMPTS)
    rows = generate(*model, prompts.repeat(3, axis=0), mask.repeat(3, axis=0), KEYS[:6], STOPS)
    equal(generate(*model, prompts, mask, keys, STOPS), rows)
    equal(generate(*model, prompts, mask, keys, dataclasses.replace(STOPS, slots=4)), rows)


def test_the_queue_takes_the_steps_of_its_busiest_row(model):
    """Response b begins in the row that is free first: the steps follow from the lengths alone."""
    lengths = np.asarray(generate(*model, *PROMPTS, KEYS, STOPS).response_mask).sum(axis=1)
    rows = [0, 0]
    for length in lengths:
        rows[rows.index(min(rows))] += length
    assert max(rows) < 8 * 4  # the plain loop, two rows at a time: four times eight steps
    lm, params = model
    taken = []

    def counted(weights, token, cache):
        jax.debug.callback(lambda: taken.append(1))
        return lm.decode(weights, token, cache)

    sampling = dataclasses.replace(STOPS, slots=2)
    prompts, mask = inference._left_pad(*PROMPTS, 1)
    continuous.respond(
        lm._replace(decode=counted), lm.decode_params(params), prompts, mask, KEYS, sampling
    )
    jax.effects_barrier()
    assert len(taken) + 1 == max(rows)  # a prompt's first token takes no step of its own


def test_slots_below_one_are_refused():
    with pytest.raises(ValueError, match=r"slots=0 must be at least 1"):
        Sampling(max_new_tokens=1, slots=0)
