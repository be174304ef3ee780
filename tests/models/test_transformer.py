"""The transformer against plain numpy in float64, and what must not change its output."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.models import PARAM_AXES, layers, make_lm, transformer_config

SOME = ["gpt2", "llama_gqa", "gemma"]  # gradients take long to compile
SIZES = dict(vocab_size=31, num_layers=2, num_heads=4, d_model=16, d_ff=24, max_positions=32)


def changed(lm, **fields):
    return compiled(make_lm(dataclasses.replace(lm.config, **fields)))


def compiled(lm):
    jit = jax.jit
    return lm._replace(
        hidden=jit(lm.hidden),
        prefill=jit(lm.prefill, static_argnames="cache_length"),
        decode=jit(lm.decode),
    )


# ------------------------------------------------------------------ an independent forward pass


def numpy_forward(config, params, tokens):
    """Hidden states and logits of ONE unpadded row, in float64, with explicit loops over heads."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = params["embed"]["embedding"][tokens] * (config.embed_scale or 1)
    if config.positions == "learned":
        x = x + params["pos_embed"]["embedding"][: len(tokens)]
    for i in range(config.num_layers):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])

        def normed(name, y, block=block):
            return numpy_norm(config, block[name], y) if name in block else y

        branch = numpy_attention(config, block, i, normed("attn_norm", x))
        after = x + normed("attn_post_norm", branch)
        branch = normed("mlp_norm", x if config.parallel_residual else after)
        x = after + normed("mlp_post_norm", numpy_mlp(config, block, branch))
    x = numpy_norm(config, params["final_norm"], x)
    tied = config.tied_head
    logits = x @ (params["embed"]["embedding"].T if tied else params["lm_head"]["kernel"])
    return x, numpy_cap(logits, config.final_soft_cap)


def numpy_cap(x, cap):
    return x if cap is None else cap * np.tanh(x / cap)


def numpy_norm(config, p, x):
    scale = p["scale"] + config.norm_offset
    if "bias" in p:
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + config.norm_epsilon) * scale + p["bias"]
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_epsilon) * scale


def numpy_linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def numpy_rope(config, layer, x):
    # Hugging Face: cos and sin of the angles written twice, x * cos + rotate_half(x) * sin with
    # rotate_half((a, b)) = (-b, a); columns past the fraction stay as they are
    kind = "main" if config.layer_rope is None else config.layer_rope[layer]
    if config.positions != "rope" or kind == "none":
        return x
    theta = config.local_rope_theta if kind == "local" else config.rope_theta
    d = round(x.shape[-1] * config.rope_fraction)
    inverse = 1.0 / theta ** (np.arange(0, d, 2) / d)
    if config.rope_scaling is not None and kind == "main":
        inverse = inverse / config.rope_scaling.factor  # the linear kind
    angles = np.outer(np.arange(len(x)), inverse)
    angles = np.concatenate([angles, angles], -1)
    x, rest = x[:, :d], x[:, d:]
    turned = np.concatenate([-x[:, d // 2 :], x[:, : d // 2]], -1)
    return np.concatenate([x * np.cos(angles) + turned * np.sin(angles), rest], -1)


def numpy_attention(config, block, layer, x):
    q, k, v = (numpy_linear(block[f"{name}_proj"], x) for name in "qkv")
    if config.qk_norm == "full":
        q, k = (numpy_norm(config, block[f"{n}_norm"], y) for n, y in (("q", q), ("k", k)))
    h, group = config.head_dim, config.num_heads // config.num_kv_heads
    scale = config.attention_scale or 1 / math.sqrt(h)
    window = (config.layer_windows or (0,) * config.num_layers)[layer] or len(x)
    out = np.zeros((len(x), config.num_heads * h))
    for head in range(config.num_heads):
        mine = slice(head * h, (head + 1) * h)
        shared = slice(head // group * h, (head // group + 1) * h)
        q_head, k_head = q[:, mine], k[:, shared]
        if config.qk_norm == "head":
            q_head = numpy_norm(config, block["q_norm"], q_head)
            k_head = numpy_norm(config, block["k_norm"], k_head)
        q_head, k_head = (numpy_rope(config, layer, y) for y in (q_head, k_head))
        for t in range(len(x)):
            seen = slice(max(0, t + 1 - window), t + 1)
            scores = numpy_cap(k_head[seen] @ q_head[t] * scale, config.attention_soft_cap)
            weights = np.exp(scores - scores.max())
            out[t, mine] = weights / weights.sum() @ v[seen, shared]
    return numpy_linear(block["o_proj"], out)


def numpy_mlp(config, block, x):
    up = numpy_linear(block["up_proj"], x)
    gate = numpy_linear(block["gate_proj"], x) if "gate_proj" in block else up
    if config.mlp in ("swiglu", "silu"):
        gate = gate / (1 + np.exp(-gate))
    elif config.mlp == "gelu_exact":
        gate = gate * (1 + np.vectorize(math.erf)(gate / math.sqrt(2))) / 2
    else:  # gelu_new: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
        gate = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    return numpy_linear(block["down_proj"], gate * up if "gate_proj" in block else gate)


def test_forward_equals_plain_numpy(model, tokens, full):
    lm, params = model
    hidden = lm.hidden(params, tokens, full)
    logits = lm.logits(params, hidden)
    for row in range(len(tokens)):
        expected = numpy_forward(lm.config, params, np.asarray(tokens[row]))
        # f32 against f64 through two layers of O(1) numbers
        np.testing.assert_allclose(hidden[row], expected[0], atol=2e-5, rtol=2e-5)
        np.testing.assert_allclose(logits[row], expected[1], atol=5e-5, rtol=5e-5)


# ------------------------------------------------------------------ what changes nothing


def test_the_future_changes_nothing_earlier(model, tokens, full):
    lm, params = model
    before = lm.hidden(params, tokens, full)
    after = lm.hidden(params, tokens.at[:, 6].set((tokens[:, 6] + 1) % 31), full)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert jnp.all(jnp.any(before[:, 6:] != after[:, 6:], axis=-1))


@pytest.mark.parametrize("pads", [0, 3, 7])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, tokens, full, side, pads):
    lm, params = model
    expected = lm.hidden(params, tokens, full)
    widths = (pads, 0) if side == "left" else (0, pads)
    padded = jnp.pad(tokens, ((0, 0), widths), constant_values=5)
    mask = jnp.pad(full, ((0, 0), widths))
    hidden = lm.hidden(params, padded, mask)
    assert jnp.all(jnp.isfinite(lm.logits(params, hidden)))
    real = hidden[:, widths[0] : widths[0] + tokens.shape[1]]
    np.testing.assert_allclose(real, expected, atol=2e-5)


def test_no_array_is_captured_by_a_traced_program(model, tokens, full):
    lm, params = model
    closed = jax.make_jaxpr(make_lm(lm.config).hidden)(params, tokens, full)
    assert [c.shape for c in closed.consts if np.size(c) > 1] == []


def test_what_stands_in_the_padding_changes_nothing_at_all(model, tokens, full):
    lm, params = model
    mask = full.at[0, :4].set(False).at[1, 7:].set(False)
    hidden = lm.hidden(params, tokens, mask)
    for garbage in (0, 17, -100, 10_000):  # an id outside the vocabulary would give NaN if read
        other = lm.hidden(params, jnp.where(mask, tokens, garbage), mask)
        np.testing.assert_array_equal(hidden, other)


def test_a_row_may_fill_all_positions_and_still_be_padded(models):
    # the pads after it would sit at position 32 of 32: as NaN they would spoil the real tokens
    lm, params = models["gpt2"]
    tokens, mask = jnp.zeros((1, 36), jnp.int32), jnp.arange(36)[None, :] < 32
    assert jnp.isfinite(lm.hidden(params, tokens, mask)).all()


def test_packed_rows_equal_separate_rows(model, tokens, full):
    lm, params = model
    lengths = (4, 3, 3)  # three documents in one row of ten columns
    packed = jnp.concatenate([tokens[i, :n] for i, n in enumerate(lengths)])[None]
    segment_ids = jnp.repeat(jnp.arange(1, 4), jnp.array(lengths))[None]
    hidden = lm.hidden(params, packed, full[:1], segment_ids=segment_ids)[0]
    start = 0
    for i, n in enumerate(lengths):
        alone = lm.hidden(params, tokens[i : i + 1, :n], full[:1, :n])[0]
        np.testing.assert_allclose(hidden[start : start + n], alone, atol=2e-5)
        start += n


def test_a_hole_in_a_row_is_skipped(model, tokens, full):
    # as if the row were shorter: positions and windows count real tokens
    lm, params = model
    kept = jnp.array([0, 1, 4, 5, 6, 9])
    expected = lm.hidden(params, tokens[:, kept], full[:, kept])
    mask = jnp.zeros(tokens.shape, bool).at[:, kept].set(True)
    np.testing.assert_allclose(lm.hidden(params, tokens, mask)[:, kept], expected, atol=2e-5)


def test_positions_can_be_given(model, tokens, full):
    lm, params = model
    columns = jnp.broadcast_to(jnp.arange(10), (3, 10))
    given = lm.hidden(params, tokens, full, positions=columns)
    np.testing.assert_array_equal(given, lm.hidden(params, tokens, full))
    moved = lm.hidden(params, tokens, full, positions=columns.at[:, 5:].add(3))
    assert not np.allclose(given[:, 5:], moved[:, 5:], atol=1e-3)


def test_without_final_norm_the_residual_stream_comes_out(model, tokens, full):
    lm, params = model
    hidden = lm.hidden(params, tokens, full)
    stream = lm.hidden(params, tokens, full, final_norm=False)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["final_norm"])
    normed = numpy_norm(lm.config, p, np.asarray(stream, np.float64))
    np.testing.assert_allclose(hidden, normed, atol=1e-5)


# ------------------------------------------------------------------ gradients, remat, dtypes


def loss(lm, params, tokens, mask):
    logits = lm.logits(params, lm.hidden(params, tokens, mask))
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(mask, chosen, 0.0))


@functools.partial(jax.jit, static_argnums=0)
def value_and_grad(lm, params, tokens, mask):
    return jax.value_and_grad(lambda p: loss(lm, p, tokens, mask))(params)


def test_remat_saves_memory():
    """Of the 4 layers' residuals one is kept, and one layer's are made again: under half."""

    def temporary(remat: bool) -> int:
        config = transformer_config(
            "llama", **SIZES | {"num_layers": 4, "max_positions": 64}, remat=remat
        )
        lm = make_lm(config)
        rows = jnp.ones((16, 64), jnp.int32), jnp.ones((16, 64), bool)
        grad = jax.jit(jax.grad(lambda params: jnp.sum(lm.hidden(params, *rows) ** 2)))
        compiled = grad.lower(jax.eval_shape(lm.init, jax.random.key(0))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(True) < temporary(False) / 2


@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_remat_changes_neither_loss_nor_gradient(models, name, tokens, full):
    lm, params = models[name]
    value, grad = value_and_grad(lm, params, tokens, full)
    again = changed(lm, remat=True)
    remat_value, remat_grad = value_and_grad(again, params, tokens, full)
    np.testing.assert_allclose(value, remat_value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), grad, remat_grad)
    # remat is really there: the backward pass of one layer stands behind a checkpoint
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda p: loss(again, p, tokens, full)))(params))
    assert "checkpoint" in jaxpr or "remat" in jaxpr


@pytest.mark.parametrize("name", SOME)
def test_gradients_are_finite_and_equal_with_padding(models, name, tokens, full):
    lm, params = models[name]
    _, expected = value_and_grad(lm, params, tokens, full)
    for widths in ((3, 4), (0, 7)):
        padded, mask = (jnp.pad(x, ((0, 0), widths)) for x in (tokens, full))
        _, grad = value_and_grad(lm, params, padded, mask)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), expected, grad)


@pytest.mark.parametrize("name", SOME)
def test_every_parameter_gets_gradient(models, name, tokens, full):
    lm, params = models[name]
    _, grad = value_and_grad(lm, params, tokens, full)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grad):
        layers = len(leaf) if path[0].key == "blocks" else 1
        per_layer = leaf.reshape(layers, -1)
        if path[-2].key == "k_proj" and path[-1].key == "bias":
            continue  # softmax does not see what all keys have in common: this gradient is 0
        assert jnp.all(jnp.any(per_layer != 0, axis=-1)), path


def test_bfloat16_computes_close_to_float32_and_keeps_parameters(model, tokens, full):
    lm, params = model
    low = changed(lm, dtype="bfloat16")
    hidden = low.hidden(params, tokens, full)
    assert hidden.dtype == jnp.bfloat16
    logits = low.logits(params, hidden)
    assert logits.dtype == jnp.float32
    expected = lm.logits(params, lm.hidden(params, tokens, full))
    # bf16 carries 8 bits: 0.4 % a rounding, some tens of roundings, logits of standard deviation ~5
    assert jnp.sqrt(jnp.mean((logits - expected) ** 2)) < 0.03 * jnp.std(expected)
    fresh = jax.eval_shape(low.init, jax.random.key(0))
    _, grad = jax.eval_shape(lambda p: value_and_grad(low, p, tokens, full), params)
    assert {leaf.dtype for leaf in jax.tree.leaves((fresh, grad))} == {jnp.dtype("float32")}
    assert low.unembed(params).dtype == jnp.bfloat16


# ------------------------------------------------------------------ decoding


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("gpt2", "float32"),
        ("llama", "float32"),
        ("llama_gqa", "float32"),
        ("neox", "float32"),
        ("gemma", "float32"),
        ("olmo", "float32"),
        ("gpt2", "bfloat16"),
        ("gemma", "bfloat16"),
    ],
)
def test_prefill_and_decode_equal_the_full_forward(models, name, dtype, tokens):
    lm, params = models[name]
    lm = lm if dtype == "float32" else changed(lm, dtype=dtype)
    pads = jnp.array([0, 2, 5])[:, None]
    mask = jnp.arange(10)[None, :] >= pads
    full_hidden = lm.hidden(params, tokens, mask).astype(jnp.float32)
    weights = lm.decode_params(params)
    # f32: two layers of rounding; bf16: the same operations on the same numbers in another order
    tolerance = 3e-5 if dtype == "float32" else 0.1
    hidden, cache = lm.prefill(weights, tokens[:, :6], mask[:, :6], cache_length=12)
    np.testing.assert_allclose(hidden, full_hidden[:, 5], atol=tolerance)
    for t in range(6, 10):
        hidden, cache = lm.decode(weights, tokens[:, t], cache)
        np.testing.assert_allclose(hidden, full_hidden[:, t], atol=tolerance)
    assert int(cache.slot) == 10
    np.testing.assert_array_equal(cache.positions, [10, 8, 5])
    assert cache.mask.shape == (3, 12) and not cache.mask[:, 10:].any()
    logits = lm.logits(weights, hidden)
    np.testing.assert_allclose(logits, lm.logits(params, hidden), atol=1e-5)


def test_large_kernels_are_turned_for_decoding_and_say_the_same(models, monkeypatch):
    lm, params = models["llama"]
    tokens, mask = jnp.arange(12).reshape(2, 6) % 7, jnp.ones((2, 6), bool)
    monkeypatch.setattr(layers, "LARGE", 0)
    weights = lm.decode_params(params)
    kernels = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(weights["blocks"])}
    assert layers.TURNED in kernels and "kernel" not in kernels
    assert set(weights["lm_head"]) == {layers.TURNED}
    up = params["blocks"]["up_proj"]["kernel"][1]
    np.testing.assert_array_equal(weights["blocks"][1]["up_proj"][layers.TURNED], up.T)
    hidden, cache = lm.prefill(weights, tokens[:, :5], mask[:, :5], cache_length=6)
    hidden, _ = lm.decode(weights, tokens[:, 5], cache)
    expected = lm.logits(params, lm.hidden(params, tokens, mask))[:, 5]
    np.testing.assert_allclose(lm.logits(weights, hidden), expected, atol=3e-5)


def test_decode_params_are_cast_once_but_for_norms(models):
    lm, params = models["gpt2"]
    weights = changed(lm, dtype="bfloat16").decode_params(params)
    assert len(weights["blocks"]) == 2
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        norm = any("norm" in str(part) for part in path)
        assert leaf.dtype == (jnp.float32 if norm else jnp.bfloat16), path
    np.testing.assert_array_equal(
        weights["blocks"][1]["attn_norm"]["scale"], params["blocks"]["attn_norm"]["scale"][1]
    )


def test_a_cache_shorter_than_the_prompt_is_refused(models, tokens, full):
    lm, params = models["llama"]
    with pytest.raises(ValueError, match=r"cache_length=4 .* 10 columns"):
        lm.prefill(lm.decode_params(params), tokens, full, cache_length=4)


# ------------------------------------------------------------------ parameters and config


def test_parameters_are_plain_float32_and_every_leaf_has_axes(model):
    lm = make_lm(model[0].config)
    params = jax.eval_shape(lm.init, jax.random.key(0))
    assert type(params) is dict and type(params["blocks"]) is dict
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [part.key for part in path]
        axes = PARAM_AXES["/".join(names[-2:])]
        stacked = names[0] == "blocks"
        assert leaf.ndim == len(axes) + stacked, names
        assert leaf.dtype == jnp.float32
        if stacked:
            assert leaf.shape[0] == lm.config.num_layers


def test_the_axes_are_on_the_right_dimensions(model):
    config = model[0].config
    params = jax.eval_shape(make_lm(config).init, jax.random.key(0))
    sizes = {"vocab": 31, "embed": 16, "mlp": 24, "positions": 32}
    sizes |= {"heads": 4 * config.head_dim, "kv_heads": config.num_kv_heads * config.head_dim}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        axes = PARAM_AXES["/".join(part.key for part in path[-2:])]
        if axes != (None,):
            assert leaf.shape[-len(axes) :] == tuple(sizes[axis] for axis in axes), path


def test_a_fresh_norm_scales_by_one(models):
    # with Gemma's offset the parameter itself starts at 0
    blocks = jax.jit(models["gemma"][0].init)(jax.random.key(0))["blocks"]
    for name in ("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm", "q_norm", "k_norm"):
        assert not blocks[name]["scale"].any(), name


def test_parameters_may_be_bfloat16(models, tokens, full):
    # a frozen model in half the memory: every operation casts, so only the rounding is lost
    for name in ("gpt2", "gemma"):
        lm, params = models[name]
        low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        rounded = jax.tree.map(lambda x: x.astype(jnp.float32), low)
        weights, expected = lm.decode_params(low), lm.decode_params(rounded)
        jax.tree.map(np.testing.assert_array_equal, weights, expected)
        assert jax.tree.map(lambda x: x.dtype, weights) == jax.tree.map(lambda x: x.dtype, expected)
        np.testing.assert_allclose(
            lm.logits(low, lm.hidden(low, tokens, full)),
            lm.logits(rounded, lm.hidden(rounded, tokens, full)),
            atol=2e-5,
        )


def test_initial_standard_deviations():
    sizes = {**SIZES, "vocab_size": 500, "d_model": 64, "d_ff": 128, "num_layers": 8}
    params = jax.jit(make_lm(transformer_config("gpt2", **sizes)).init)(jax.random.key(0))
    blocks = params["blocks"]
    # residual projections: 0.02 / sqrt(2 * 8) = 0.005; 8 * 64 * 64 numbers: relative error 0.4 %
    for name, std in (("q_proj", 0.02), ("up_proj", 0.02), ("o_proj", 0.005), ("down_proj", 0.005)):
        assert jnp.std(blocks[name]["kernel"]) == pytest.approx(std, rel=0.03), name
        assert not blocks[name]["bias"].any()
    assert jnp.std(params["embed"]["embedding"]) == pytest.approx(0.02, rel=0.03)
    assert jnp.all(blocks["attn_norm"]["scale"] == 1)
    assert jnp.all(blocks["q_proj"]["kernel"][0] != blocks["q_proj"]["kernel"][1])


def test_real_tokens_out_of_range_give_nan_rather_than_a_neighbour(models, tokens, full):
    lm, params = models["gpt2"]
    hidden = lm.hidden(params, tokens.at[0, 4].set(31), full)
    assert jnp.isnan(hidden[0]).all() and jnp.isfinite(hidden[1:]).all()
    columns = jnp.broadcast_to(jnp.arange(10), (3, 10))
    hidden = lm.hidden(params, tokens, full, positions=columns.at[0].add(23))
    assert jnp.isnan(hidden[0]).all() and jnp.isfinite(hidden[1:]).all()


def test_a_parameter_of_another_shape_is_named(models, tokens, full):
    lm, params = models["gpt2"]
    blocks = params["blocks"] | {"up_proj": {"kernel": jnp.zeros((2, 16, 25))}}
    with pytest.raises(ValueError, match=r"up_proj/kernel has shape \(16, 25\), .* \(16, 24\)"):
        lm.hidden({**params, "blocks": blocks}, tokens, full)


def test_the_same_config_gives_the_same_object():
    a, b = (make_lm(transformer_config("llama", **SIZES)) for _ in range(2))
    assert a is b and hash(a) == hash(b)
    assert make_lm(transformer_config("gpt2", **SIZES)) != a


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("vocab_size", 0, "at least 1"),
        ("num_layers", 0, "at least 1"),
        ("num_kv_heads", 3, "divisor of num_heads=4"),
        ("num_kv_heads", 0, "divisor of num_heads=4"),
        ("d_model", 18, "multiple of num_heads=4"),
        ("head_dim", 5, "even with rope"),
        ("positions", "alibi", "learned, rope, none"),
        ("norm", "batch", "layer, rms"),
        ("mlp", "mish", "gelu, gelu_exact, relu, silu, swiglu, geglu"),
        ("dtype", "float16", "float32, bfloat16"),
        ("norm_epsilon", 0.0, "positive"),
    ],
)
def test_wrong_config_values_name_field_value_and_rule(field, value, allowed):
    with pytest.raises(ValueError, match=f"{field}={value!r} must be .*{allowed}"):
        transformer_config("llama", **{**SIZES, field: value})


def test_unknown_family_and_field():
    with pytest.raises(ValueError, match=r"'bert' is not one of gpt2, llama"):
        transformer_config("bert", **SIZES)
    with pytest.raises(ValueError, match=r"'n_heads'.*nearest is 'num_heads'"):
        transformer_config("gpt2", **SIZES, n_heads=3)
