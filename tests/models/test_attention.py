"""Windows, soft caps, and layers that differ: what `test_transformer.py` does not already pin."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import inference
from jaxrlhf.models import attention, layers, make_lm, transformer_config

SIZES = dict(vocab_size=31, num_layers=3, num_heads=4, d_model=16, d_ff=24, max_positions=32)


def queries_keys_values(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((2, 7, 4, 6), (2, 7, 2, 6), (2, 7, 2, 6))
    return [jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("scale", [None, 0.9])
def test_a_huge_soft_cap_is_no_cap(scale):
    # tanh(x) = x - x³/3 + ...: at c = 300 and |score| < 10 the relative change is below 4e-4, and
    # a change of 1e4 in c shows that what remains falls with 1 / c²
    lm_config = transformer_config("llama", **SIZES, attention_scale=scale)
    q, k, v = queries_keys_values()
    mask = jnp.ones((2, 1, 1, 7), bool).at[0, :, :, 0].set(False)

    @functools.partial(jax.jit, static_argnums=0)
    def run(cap, q):
        config = dataclasses.replace(lm_config, attention_soft_cap=cap)
        return attention.attend(config, q, k, v, mask, is_causal=True)[:, 1:]

    def loss(cap, q):
        return jnp.sum(run(cap, q) ** 2)

    gradient = jax.jit(jax.grad(loss, 1), static_argnums=0)
    for cap, tolerance in ((300.0, 1e-3), (3000.0, 2e-5)):
        np.testing.assert_allclose(run(cap, q), run(None, q), atol=tolerance)
        np.testing.assert_allclose(gradient(cap, q), gradient(None, q), atol=10 * tolerance)
    assert jnp.abs(run(1.0, q) - run(None, q)).max() > 0.05


def test_the_soft_cap_bounds_attention_scores():
    # scores of ±1000 become ±c: with c = 1 and two keys the weights are e / (e + 1/e) = 0.8808
    q = jnp.full((1, 1, 1, 1), 1000.0)
    k = jnp.array([1.0, -1.0]).reshape(1, 2, 1, 1)
    v = jnp.array([1.0, 0.0]).reshape(1, 2, 1, 1)
    mask = jnp.ones((1, 1, 1, 2), bool)
    out = attention.capped_attention(q, k, v, mask, scale=1.0, soft_cap=1.0)
    np.testing.assert_allclose(out[0, 0, 0, 0], 0.880797, rtol=1e-5)


def test_capped_attention_is_computed_in_float32_and_given_in_the_compute_dtype():
    q, k, v = queries_keys_values(jnp.bfloat16)
    mask = jnp.ones((2, 1, 1, 7), bool)
    out = attention.capped_attention(q, k, v, mask, scale=0.4, soft_cap=5.0)
    exact = attention.capped_attention(
        *(x.astype(jnp.float32) for x in (q, k, v)), mask, scale=0.4, soft_cap=5.0
    )
    assert out.dtype == jnp.bfloat16
    # weights and sums are rounded to 8 bits; scores rounded so would be wrong by 0.02 already
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.02)


def test_a_window_holds_the_token_itself_and_those_just_before():
    mask = jnp.ones((1, 1, 1, 5), bool)
    ranks = jnp.arange(1, 6)[None]
    view = attention.View(jnp.int32(2), None)
    seen = attention.visible(mask, view, ranks, ranks)[0, 0] & jnp.tril(jnp.ones((5, 5), bool))
    expected = np.eye(5, dtype=bool) | np.eye(5, k=-1, dtype=bool)
    np.testing.assert_array_equal(seen, expected)


def test_kinds_of_layers():
    config = transformer_config(
        "llama",
        **{**SIZES, "num_layers": 4},
        local_rope_theta=7.0,
        layer_rope=("local", "main", "local", "none"),
        layer_windows=(3, 0, 3, 9),
    )
    distinct, which = attention.kinds(config, columns=9)
    assert distinct == [(3, "local"), (0, "main"), (0, "none")]  # 9 columns fit a window of 9
    assert which == [0, 1, 0, 2]
    assert attention.kinds(config, columns=10)[0][2] == (9, "none")


def test_layers_that_agree_cost_nothing(tokens, full):
    # windows wider than the row, and layer_rope all "main", trace to the very same program
    plain = make_lm(transformer_config("llama", **SIZES))
    same = dataclasses.replace(plain.config, layer_windows=(10, 32, 0), layer_rope=("main",) * 3)
    params = jax.jit(plain.init)(jax.random.key(0))

    def program(lm):
        return str(jax.make_jaxpr(lm.hidden)(params, tokens, full))

    assert program(plain) == program(make_lm(same))
    narrow = dataclasses.replace(plain.config, layer_windows=(9, 32, 0))
    assert program(plain) != program(make_lm(narrow))


def test_a_window_changes_only_what_lies_past_it(tokens, full):
    plain = make_lm(transformer_config("llama", **SIZES))
    params = jax.jit(plain.init)(jax.random.key(0))
    one = make_lm(dataclasses.replace(plain.config, layer_windows=(0, 4, 0)))
    before, after = (jax.jit(lm.hidden)(params, tokens, full) for lm in (plain, one))
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert jnp.all(jnp.any(jnp.abs(before - after)[:, 4:] > 1e-6, axis=-1))


# ------------------------------------------------------------------ the cap of the logits


def test_final_soft_cap_reaches_every_logit_and_score(models, tokens, full):
    lm, params = models["gemma"]
    cap = lm.config.final_soft_cap
    open_lm = make_lm(dataclasses.replace(lm.config, final_soft_cap=None))
    hidden = lm.hidden(params, tokens, full)
    raw, logits = open_lm.logits(params, hidden), lm.logits(params, hidden)
    assert jnp.abs(raw).max() > 2 * cap > jnp.abs(logits).max()
    np.testing.assert_allclose(logits, cap * np.tanh(np.asarray(raw) / cap), atol=1e-5)
    # log-probs of the capped logits, whole or in chunks of the vocabulary
    aligned = jax.nn.log_softmax(logits[:, 4:-1] / 0.7)
    expected = jnp.take_along_axis(aligned, tokens[:, 5:, None], axis=-1)[..., 0]
    for chunk_size in (None, 7):
        stats = inference.score(
            lm, params, tokens, full, response_length=5, temperature=0.7, chunk_size=chunk_size
        )
        np.testing.assert_allclose(stats.log_probs, expected, atol=1e-5)


def test_gradients_go_through_the_final_soft_cap_in_chunks_too(models, tokens):
    lm, params = models["gemma"]
    hidden = 3 * jax.random.normal(jax.random.key(3), (*tokens.shape, 16))

    def loss(params, hidden, lm, chunk_size):
        stats = inference.token_stats(lm, params, hidden, tokens, chunk_size=chunk_size)
        return jnp.sum(stats.log_probs) + 0.3 * jnp.sum(stats.entropy)

    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=(2, 3))
    whole = gradient(params, hidden, lm, None)
    chunked = gradient(params, hidden, lm, 7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), whole, chunked)
    open_lm = make_lm(dataclasses.replace(lm.config, final_soft_cap=None))
    assert jnp.abs(gradient(params, hidden, open_lm, 7)[1] - chunked[1]).max() > 0.1


def test_the_written_backward_pass_is_the_derived_one():
    # 2 rows, 5 queries at the end of 7 columns, 4 heads on 2 key heads; padding on both sides
    keys = jax.random.split(jax.random.key(0), 4)
    q, grad = (jax.random.normal(key, (2, 5, 4, 6)) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, 7, 2, 6)) for key in keys[2:])
    real = jnp.ones((2, 1, 1, 7), bool).at[0, 0, 0, :2].set(False).at[1, 0, 0, 6:].set(False)
    mask = real & jnp.tril(jnp.ones((1, 1, 5, 7), bool), k=2)

    def derived(q, k, v):
        return jnp.sum(grad * jax.nn.dot_product_attention(q, k, v, mask=mask, scale=0.3))

    def written(q, k, v):
        return jnp.sum(grad * attention.written_attention(q, k, v, mask, 0.3))

    ours, theirs = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(q, k, v) for f in (written, derived)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)


@pytest.mark.parametrize("name", ["gemma", "llama"])
def test_the_last_columns_alone_are_those_of_all(models, tokens, full, name):
    lm, params = models[name]
    mask = full.at[0, :2].set(False).at[1, -1:].set(False)
    whole = lm.hidden(params, tokens, mask)
    np.testing.assert_allclose(
        lm.hidden(params, tokens, mask, last=3), whole[:, -3:], rtol=1e-5, atol=1e-5
    )


def test_early_and_late_halves_are_the_whole(monkeypatch):
    # 5 queries at the end of 7 columns: the first 2 see columns up to 3, by position
    keys = jax.random.split(jax.random.key(0), 4)
    q, grad = (jax.random.normal(key, (2, 5, 4, 6)) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, 7, 2, 6)) for key in keys[2:])
    real = jnp.ones((2, 1, 1, 7), bool).at[0, 0, 0, :2].set(False)
    config = transformer_config("llama", **{**SIZES, "num_heads": 4, "num_kv_heads": 2})

    def attended(halved):
        monkeypatch.setattr(attention, "HALVED", halved)

        def loss(q, k, v):
            return jnp.sum(grad * attention.attend(config, q, k, v, real, is_causal=True))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)

    halves, whole = attended(5), attended(6)
    np.testing.assert_allclose(halves[0], whole[0], rtol=1e-5)
    for mine, other in zip(halves[1], whole[1], strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_the_product_has_the_gradients_of_a_product(shape, dtype):
    """Accumulated in float32, as logits are; bfloat16 is rounded once, to 8 bits, at the end."""
    keys = jax.random.split(jax.random.key(1), 3)
    x = jax.random.normal(keys[0], (4, shape[0])).astype(dtype)
    kernel = jax.random.normal(keys[1], shape).astype(dtype)
    grad = jax.random.normal(keys[2], (4, shape[1]))

    @jax.jit
    def both(x, kernel):
        y, pull = jax.vjp(lambda x, kernel: layers.product(x, kernel, jnp.float32), x, kernel)
        return y, *pull(grad)

    y, *slopes = both(x, kernel)
    wide = x.astype(jnp.float32), kernel.astype(jnp.float32)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, wide[0] @ wide[1], rtol=1e-5, atol=1e-6)
    tolerance = 1e-5 if dtype == jnp.float32 else 2**-8
    for found, expected in zip(slopes, (grad @ wide[1].T, wide[0].T @ grad), strict=True):
        assert found.dtype == dtype
        np.testing.assert_allclose(
            found.astype(jnp.float32), expected, rtol=tolerance, atol=tolerance / 10
        )
