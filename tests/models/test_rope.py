"""Frequencies of every kind of scaling against numbers worked out here, and what lengths decide."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.inference import generate
from jaxrlhf.models import make_lm, rope, transformer_config
from jaxrlhf.models.rope import RopeScaling
from jaxrlhf.sampling import Sampling

SIZES = dict(vocab_size=31, num_layers=2, num_heads=2, d_model=16, d_ff=24, max_positions=16)
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LONGROPE = dict(short_factor=(1.0, 1.5, 2.0, 2.5), long_factor=(1.0, 3.0, 5.0, 9.0))


def frequencies(scaling, *, size=8, theta=10_000.0, max_positions=16, lengths=None):
    lengths = None if lengths is None else jnp.array(lengths)
    return rope.frequencies(
        size, theta=theta, scaling=scaling, max_positions=max_positions, lengths=lengths
    )


# theta = 10⁴ and 8 columns: 10⁴^(-i/4) = 1, 0.1, 0.01, 0.001
PLAIN = np.array([1.0, 0.1, 0.01, 0.001])


def test_plain_and_linear():
    np.testing.assert_allclose(frequencies(None)[0], PLAIN, rtol=1e-6)
    scaled, gain = frequencies(RopeScaling("linear", factor=4.0))
    np.testing.assert_allclose(scaled, PLAIN / 4, rtol=1e-6)
    assert gain == 1 and scaled.dtype == jnp.float32


def test_llama3_keeps_short_waves_divides_long_ones_and_blends_between():
    # original length 256: a frequency f makes 256 f / 2π turns: 40.7, 4.074, 0.4074, 0.0407.
    # Above 4 turns: kept. Below 1: divided by 8.
    scaling = RopeScaling("llama3", **LLAMA3, original_max_position_embeddings=256)
    scaled, gain = frequencies(scaling)
    np.testing.assert_allclose(scaled, [1.0, 0.1, 0.01 / 8, 0.001 / 8], rtol=1e-6)
    assert gain == 1
    # original length 128: 2.037 turns for the second, of which (2.037 - 1) / 3 = 0.34574 is kept
    scaling = RopeScaling("llama3", **LLAMA3, original_max_position_embeddings=128)
    kept = (128 * 0.1 / (2 * math.pi) - 1) / 3
    expected = 0.1 * (kept + (1 - kept) / 8)
    np.testing.assert_allclose(frequencies(scaling)[0][1], expected, rtol=1e-6)


def test_yarn_ramp_and_gain():
    # Column pair that turns n times in 4096 positions: 8 log(4096 / 2πn) / (2 log 10⁴)
    #   n = 32: 8 * 3.0137 / 18.4207 = 1.3088, floor 1
    #   n =  1: 8 * 6.4799 / 18.4207 = 2.8142, ceil 3
    # so pairs 0, 1 stay, pair 2 is half of each, pair 3 is divided by the factor 4
    scaling = RopeScaling("yarn", factor=4.0, original_max_position_embeddings=4096)
    scaled, gain = frequencies(scaling)
    np.testing.assert_allclose(scaled, [1.0, 0.1, 0.01 * (0.5 + 0.125), 0.001 / 4], rtol=1e-6)
    assert gain == pytest.approx(0.1 * math.log(4) + 1)
    smooth = RopeScaling("yarn", factor=4.0, original_max_position_embeddings=4096, truncate=False)
    part = (2 - 1.30881) / (2.81417 - 1.30881)
    expected = 0.01 * (part / 4 + 1 - part)
    np.testing.assert_allclose(frequencies(smooth)[0][2], expected, rtol=1e-4)


def test_yarn_ramp_between_given_numbers_of_turns():
    # pairs that turn 8 and 2 times in 4096: 8 log(4096 / 2πn) / (2 log 10⁴) = 1.911 and 2.513
    scaling = RopeScaling(
        "yarn",
        factor=4.0,
        original_max_position_embeddings=4096,
        beta_fast=8.0,
        beta_slow=2.0,
        truncate=False,
    )
    part = (2 - 1.91109) / (2.51315 - 1.91109)
    expected = [1.0, 0.1, 0.01 * (part / 4 + 1 - part), 0.001 / 4]
    np.testing.assert_allclose(frequencies(scaling)[0], expected, rtol=1e-4)


def test_yarn_gain_by_mscale_by_hand_and_by_lengths():
    base = dict(original_max_position_embeddings=4096)
    deepseek = RopeScaling("yarn", factor=40.0, mscale=1.0, mscale_all_dim=0.5, **base)
    log = math.log(40)
    assert frequencies(deepseek)[1] == pytest.approx((0.1 * log + 1) / (0.05 * log + 1))
    assert frequencies(RopeScaling("yarn", factor=40.0, attention_factor=1.7, **base))[1] == 1.7
    # without a factor it is max_positions / original length = 2
    scaled, gain = frequencies(RopeScaling("yarn", **base), max_positions=8192)
    assert gain == pytest.approx(0.1 * math.log(2) + 1)
    np.testing.assert_allclose(scaled[3], 0.001 / 2, rtol=1e-6)


def test_dynamic_stretches_the_base_with_the_length_of_each_row():
    scaling = RopeScaling("dynamic", factor=2.0)
    np.testing.assert_allclose(frequencies(scaling)[0], PLAIN, rtol=1e-6)
    scaled, gain = frequencies(scaling, lengths=[5, 16, 24])
    assert scaled.shape == (3, 4) and gain == 1
    np.testing.assert_allclose(scaled[:2], [PLAIN, PLAIN], rtol=1e-6)
    # n = 24 of 16: the base is multiplied by (2 * 24 / 16 - 1)^(8 / 6) = 2^(4/3)
    base = 10_000 * 2 ** (4 / 3)
    np.testing.assert_allclose(scaled[2], base ** (-np.arange(4) / 4), rtol=1e-6)


def test_longrope_changes_factors_with_the_length_of_each_row():
    scaling = RopeScaling("longrope", **LONGROPE, original_max_position_embeddings=6)
    short, gain = frequencies(scaling)
    np.testing.assert_allclose(short, PLAIN / np.array(LONGROPE["short_factor"]), rtol=1e-6)
    # factor 16 / 6
    assert gain == pytest.approx(math.sqrt(1 + math.log(16 / 6) / math.log(6)))
    both, _ = frequencies(scaling, lengths=[6, 7])
    np.testing.assert_allclose(both[0], short, rtol=1e-6)
    np.testing.assert_allclose(both[1], PLAIN / np.array(LONGROPE["long_factor"]), rtol=1e-6)


def test_the_gain_multiplies_cosine_and_sine():
    scaling = RopeScaling(
        "yarn", factor=2.0, attention_factor=1.25, original_max_position_embeddings=8
    )
    table = rope.table(
        jnp.arange(5)[None],
        8,
        theta=100.0,
        scaling=scaling,
        max_positions=16,
        lengths=None,
    )
    np.testing.assert_allclose(
        table.cos**2 + table.sin**2, np.full((1, 5, 1, 4), 1.5625), rtol=1e-6
    )


def test_a_rotation_keeps_lengths_relative_and_the_rest_of_the_head():
    table = rope.table(
        jnp.array([[3, 8, 13]]), 4, theta=100.0, scaling=None, max_positions=16, lengths=None
    )
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 1, 2, 6)), (1, 3, 2, 6))
    turned = rope.rotate(x, table)
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )
    products = jnp.sum(turned[:, 1:] * turned[:, :-1], axis=-1)  # 5 apart, and 5 apart
    np.testing.assert_allclose(products[:, 0], products[:, 1], rtol=1e-4)


# ------------------------------------------------------------------ lengths in a model


@functools.cache
def compiled(lm):
    return lm._replace(
        hidden=jax.jit(lm.hidden, static_argnames="last"),
        prefill=jax.jit(lm.prefill, static_argnames="cache_length"),
        decode=jax.jit(lm.decode),
    )


def longrope_lm(original=6, **fields):
    scaling = RopeScaling("longrope", **LONGROPE, original_max_position_embeddings=original)
    lm = make_lm(transformer_config("llama", **{**SIZES, **fields}, rope_scaling=scaling))
    params = jax.jit(lm.init)(jax.random.key(0))
    return compiled(lm), jax.tree.map(lambda x: 4 * x, params)


def test_a_row_does_not_depend_on_its_neighbours_or_its_padding():
    lm, params = longrope_lm()
    tokens = jax.random.randint(jax.random.key(1), (2, 10), 0, 31)
    mask = jnp.arange(10)[None, :] >= jnp.array([0, 5])[:, None]  # 10 tokens, and 5
    hidden = lm.hidden(params, tokens, mask)
    for row, length in ((0, 10), (1, 5)):
        alone = lm.hidden(params, tokens[row : row + 1, -length:], jnp.ones((1, length), bool))
        np.testing.assert_allclose(hidden[row, -length:], alone[0], atol=1e-4)
    # and it does depend on its own length: the last tokens of the long row alone are turned less
    cut = lm.hidden(params, tokens[:1, :5], mask[:1, :5])
    assert jnp.abs(cut[0] - hidden[0, :5]).max() > 1e-2


def test_packed_rows_past_the_limit_are_refused():
    lm, params = longrope_lm()
    tokens = jnp.zeros((1, 7), jnp.int32)
    full, segments = jnp.ones((1, 7), bool), jnp.ones((1, 7), jnp.int32)
    with pytest.raises(ValueError, match=r"segment_ids in rows of 7 columns.*longrope"):
        lm.hidden(params, tokens, full, segment_ids=segments)
    lm.hidden(params, tokens[:, :6], full[:, :6], segment_ids=segments[:, :6])


@pytest.mark.parametrize(("original", "length", "new"), [(6, 2, 4), (6, 7, 6), (14, 5, 8)])
def test_prefill_and_decode_agree_with_the_forward_on_each_side_of_the_limit(original, length, new):
    lm, params = longrope_lm(original)
    tokens = jax.random.randint(jax.random.key(1), (2, length + new), 0, 31)
    expected = lm.hidden(params, tokens, jnp.ones(tokens.shape, bool))
    padded = jnp.pad(tokens[:, :length], ((0, 0), (3, 0)))
    mask = jnp.arange(length + 3)[None, :] >= jnp.array([3, 3])[:, None]
    weights = lm.decode_params(params)
    hidden, cache = lm.prefill(weights, padded, mask, cache_length=length + 3 + new)
    np.testing.assert_allclose(hidden, expected[:, length - 1], atol=1e-4)
    for t in range(length, length + new):
        hidden, cache = lm.decode(weights, tokens[:, t], cache)
    np.testing.assert_allclose(hidden, expected[:, -1], atol=1e-4)


def test_generate_refuses_to_cross_the_limit():
    lm, params = longrope_lm()
    keys = jax.random.split(jax.random.key(0), 2)
    prompts = np.ones((2, 8), np.int64)
    mask = np.arange(8)[None, :] >= np.array([5, 0])[:, None]  # 3 tokens, and 8
    with pytest.raises(
        ValueError, match=r"max_new_tokens=4 after a prompt of 3 tokens .* 6 tokens"
    ):
        generate(lm, params, prompts, mask, keys, Sampling(max_new_tokens=4))
    assert generate(lm, params, prompts, mask, keys, Sampling(max_new_tokens=3)).finished.shape


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(kind="ntk"), "kind='ntk' must be one of linear, dynamic"),
        (dict(kind="linear"), "factor is missing: rope scaling 'linear' needs it"),
        (dict(kind="linear", factor=0.0), "factor=0.0 must be positive"),
        (dict(kind="linear", factor=2.0, beta_fast=3.0), "beta_fast=3.0 is not read by .*'linear'"),
        (dict(kind="dynamic", factor=2.0, truncate=False), "truncate=False is not read by"),
        (
            dict(kind="llama3", **{**LLAMA3, "high_freq_factor": 1.0})
            | dict(original_max_position_embeddings=8),
            "high_freq_factor=1.0 must be above low_freq_factor=1.0",
        ),
        (
            dict(kind="longrope", short_factor=(1.0, -1.0), long_factor=(1.0, 1.0))
            | dict(original_max_position_embeddings=8),
            r"short_factor=\(1.0, -1.0\) must be positive",
        ),
    ],
)
def test_wrong_scalings_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        RopeScaling(**fields)


def test_a_list_is_as_good_as_a_tuple_and_hashable():
    lists = {name: list(values) for name, values in LONGROPE.items()}
    a, b = (
        RopeScaling("longrope", **factors, original_max_position_embeddings=8)
        for factors in (LONGROPE, lists)
    )
    assert a == b and hash(a) == hash(b)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(rope_fraction=0.4), "rope_fraction=0.4 must be such that an even number"),
        (dict(rope_fraction=1.5), "rope_fraction=1.5 must be at most 1"),
        (dict(layer_rope=("local", "main")), "local_rope_theta=None must be given"),
        (dict(layer_rope=("main",)), "layer_rope=.* must be one value for each of 2 layers"),
        (dict(layer_rope=("main", "nope")), "layer_rope=.* must be made of main, local, none"),
        (dict(layer_windows=(-1, 0)), "layer_windows=.* must be 0 .unlimited. or positive"),
        (
            dict(positions="none", layer_rope=("main", "main")),
            "layer_rope=.* must be None with positions='none'",
        ),
        (
            dict(
                rope_scaling=RopeScaling(
                    "longrope",
                    short_factor=(1.0,),
                    long_factor=(1.0,),
                    original_max_position_embeddings=8,
                )
            ),
            "rope_scaling=.* must be short_factor of 4 numbers",
        ),
        (
            dict(norm_placement="post", parallel_residual=True),
            "norm_placement='post' must be 'pre' with parallel_residual",
        ),
        (dict(attention_soft_cap=0.0), "attention_soft_cap=0.0 must be positive"),
        (dict(norm_offset=float("nan")), "norm_offset=nan must be finite"),
    ],
)
def test_wrong_flags_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        transformer_config("llama", **{**SIZES, **fields})


def test_a_table_looked_up_is_the_table_made():
    positions = jnp.array([[0, 0, 1, 2, 4], [0, 1, 2, 3, 3]])
    settings = dict(theta=10_000.0, scaling=None, max_positions=16, lengths=None)
    made = rope.table(positions, 8, **settings)
    looked_up = rope.table(positions, 8, **settings, below=5)
    assert made.cos.shape == looked_up.cos.shape == (2, 5, 1, 4)
    jax.tree.map(np.testing.assert_array_equal, made, looked_up)
