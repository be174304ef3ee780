"""Logits, cached decoding and greedy continuations against torch `transformers`, every case."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: bash scripts/test.sh --parity")

import torch_models
from torch_models import BY_LENGTH, CASES

from jaxrlhf.inference import generate
from jaxrlhf.models import LM
from jaxrlhf.sampling import Sampling

ROWS, COLUMNS = 2, 28  # more than any window


@functools.cache
def forward(lm: LM):
    return jax.jit(lambda params, t, mask: lm.logits(params, lm.hidden(params, t, mask)))


@functools.cache
def compiled(lm: LM):
    return jax.jit(lm.prefill, static_argnames="cache_length"), jax.jit(lm.decode)


@pytest.mark.parametrize("case", CASES)
def test_logits_without_and_with_padding(loaded, case):
    # f32 in two frameworks: sums in another order, three layers, logits of standard deviation 1
    model, lm, params = loaded(case)
    tokens = torch_models.some_tokens(ROWS, COLUMNS)
    for left, right in ((0, 0), (3, 0), (7, 0), (0, 3), (0, 7)):
        mask = np.zeros(tokens.shape, bool)
        mask[:, left : COLUMNS - right] = True
        torch_models.forget(model)
        expected = torch_models.logits(model, tokens * mask, mask)
        found = np.asarray(forward(lm)(params, jnp.array(tokens * mask), jnp.array(mask)))
        np.testing.assert_allclose(found[mask], expected[mask], atol=1e-4, err_msg=f"{left, right}")


# Not where lengths decide: torch takes the longest row's frequencies for all (models/rope.py).
@pytest.mark.parametrize("case", [case for case in CASES if case not in BY_LENGTH])
def test_rows_of_different_lengths_in_one_batch(loaded, case):
    model, lm, params = loaded(case)
    tokens = torch_models.some_tokens(3, COLUMNS)
    mask = np.arange(COLUMNS) >= np.array([0, 3, 7])[:, None]
    expected = torch_models.logits(model, tokens * mask, mask)
    found = np.asarray(forward(lm)(params, jnp.array(tokens * mask), jnp.array(mask)))
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_step_by_step_with_the_cache(loaded, case):
    model, lm, params = loaded(case)
    tokens = torch_models.some_tokens(3, COLUMNS, seed=1)
    pads, prompt, end = np.array([0, 3, 7]), 10, COLUMNS
    if case in BY_LENGTH:  # equal lengths, and all on one side of the change
        pads = np.array([2, 2, 2])
        prompt, end = {"llama_dynamic": (8, 20), "llama_longrope": (20, COLUMNS)}[case]
    mask = np.arange(COLUMNS) >= pads[:, None]
    tokens = tokens * mask
    torch_models.forget(model)
    expected = torch_models.cached_logits(model, tokens[:, :end], mask[:, :end], prompt)
    prefill, decode = compiled(lm)
    weights = lm.decode_params(params)
    hidden, cache = prefill(
        weights, jnp.array(tokens[:, :prompt]), jnp.array(mask[:, :prompt]), cache_length=end + 2
    )
    for t in range(prompt, end + 1):
        found = lm.logits(weights, hidden)
        np.testing.assert_allclose(found, expected[t - prompt], atol=1e-4, err_msg=f"column {t}")
        if t < end:
            hidden, cache = decode(weights, jnp.array(tokens[:, t]), cache)


@pytest.mark.parametrize("case", CASES)
def test_greedy_decoding_of_64_tokens_is_token_identical(loaded, case):
    model, lm, params = loaded(case)
    tokens, pads, new = torch_models.some_tokens(3, 12, seed=2), np.array([0, 3, 7]), 64
    if case in BY_LENGTH:
        pads = np.array([2, 2, 2])
    if case == "llama_longrope":
        tokens = torch_models.some_tokens(3, 22, seed=2)  # all past the change
    if case == "llama_dynamic":
        new = lm.config.max_positions - 10  # the change is its last position
    mask = np.arange(tokens.shape[1]) >= pads[:, None]
    torch_models.forget(model)
    expected = torch_models.greedy(model, tokens * mask, mask, new)
    keys = jax.random.split(jax.random.key(0), len(tokens))
    sampling = Sampling(max_new_tokens=new, temperature=0)
    found = generate(lm, params, tokens * mask, mask, keys, sampling).response_tokens
    np.testing.assert_array_equal(found, expected)
