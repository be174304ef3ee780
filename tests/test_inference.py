"""Sampling and scoring: the stored log-probs are those of the distribution sampled from, and a
row's response depends on its prompt and its key alone."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxrlhf import inference
from jaxrlhf.inference import bucket, generate
from jaxrlhf.models import LM, PARAM_AXES, Cache, make_lm, make_scalar_model, transformer_config
from jaxrlhf.sampling import Sampling, filtered_logits

SIZES = dict(vocab_size=16, num_layers=1, num_heads=4, d_model=16, d_ff=24, max_positions=64)
VOCAB, NEW = 16, 6


@pytest.fixture(scope="module")
def models():
    built = {}
    for seed, (family, flags) in enumerate(
        [("gpt2", {}), ("llama", {"num_kv_heads": 2, "num_layers": 2})]
    ):
        lm = make_lm(transformer_config(family, **{**SIZES, **flags}))
        built[family] = (lm, random_params(lm, seed))
    return built


def random_params(lm, seed):
    """Every leaf N(0, 0.3²), scales around 1: a fresh model draws almost uniformly."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lm.init, jax.random.key(0))

    def draw(path, leaf):
        return jnp.array(rng.normal(path[-1].key == "scale", 0.3, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.partial(jax.jit, static_argnums=0)
def device_logits(lm, params, tokens, mask):
    return lm.logits(params, lm.hidden(params, tokens, mask))


def logits_of(lm, params, tokens, mask):
    """Logits `[B, T, V]` of the full forward pass, unshifted, as numpy float64."""
    return np.asarray(device_logits(lm, params, tokens, mask), np.float64)


def log_softmax(logits):
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def on_host(tree):
    """As numpy: operations on device arrays would compile one by one."""
    return jax.tree.map(np.asarray, tree)


def prompts_of(lengths, columns=10, side="left"):
    """Random prompts of these lengths, as numpy: tokens and mask."""
    tokens = np.random.default_rng(0).integers(1, VOCAB, (len(lengths), columns))
    column, lengths = np.arange(columns)[None, :], np.array(lengths)[:, None]
    mask = column >= columns - lengths if side == "left" else column < lengths
    return np.where(mask, tokens, 0), mask


def keys_of(rows, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


PROMPTS = prompts_of([10, 7, 1, 4])
KEYS = keys_of(4)
# three rows of nine columns: left-padded, right-padded, full
ROWS = (
    np.random.default_rng(1).integers(0, VOCAB, (3, 9)),
    np.stack([np.arange(9) >= 4, np.arange(9) < 7, np.arange(9) < 9]),
)


# ------------------------------------------------------- log-probs (invariants A1, A2, A4)


@pytest.mark.parametrize(
    ("family", "temperature"),
    [("llama", 0.5), ("llama", 0.7), ("llama", 1.0), ("llama", 1.3), ("gpt2", 0.7)],
)
def test_stored_log_probs_equal_the_score_at_the_same_temperature(models, family, temperature):
    lm, params = models[family]
    sampling = Sampling(max_new_tokens=NEW, temperature=temperature, stop_ids=(3,))
    assert sampling.unfiltered
    g = on_host(generate(lm, params, *PROMPTS, KEYS, sampling))
    stats = on_host(
        inference.score(lm, params, g.tokens, g.mask, response_length=NEW, temperature=temperature)
    )
    assert g.log_probs.dtype == stats.log_probs.dtype == stats.entropy.dtype == np.float32
    np.testing.assert_allclose(g.log_probs, stats.log_probs, atol=1e-5)
    assert not stats.log_probs[~g.response_mask].any()
    assert not g.log_probs[~g.response_mask].any()


def test_bfloat16_sampler_and_scorer_agree(models):
    lm, params = models["llama"]
    lm = make_lm(dataclasses.replace(lm.config, dtype="bfloat16"))
    g = on_host(generate(lm, params, *PROMPTS, KEYS, Sampling(max_new_tokens=NEW)))
    stats = on_host(inference.score(lm, params, g.tokens, g.mask, response_length=NEW))
    # the same operations on the same bf16 numbers, in another order: roundings of 0.4 %
    np.testing.assert_allclose(g.log_probs, stats.log_probs, atol=0.15)
    assert np.mean(np.abs(g.log_probs - stats.log_probs)) < 0.03


def test_filtered_log_probs_are_of_the_filtered_distribution(models):
    lm, params = models["llama"]
    sampling = Sampling(max_new_tokens=NEW, temperature=0.9, top_k=6, top_p=0.8, min_p=0.1)
    assert not sampling.unfiltered
    rows = 16
    prompts, mask = (np.repeat(x, 4, axis=0) for x in PROMPTS)
    g = generate(lm, params, prompts, mask, keys_of(rows), sampling)
    g = on_host(g)
    logits = logits_of(lm, params, g.tokens, g.mask)[:, g.prompt_length - 1 : -1]
    removed = 0
    for row in range(rows):
        for t in range(NEW):
            probs = numpy_filter(logits[row, t], sampling)
            removed += np.sum(probs == 0)
            chosen = probs[g.response_tokens[row, t]]
            assert chosen > 0
            assert g.log_probs[row, t] == pytest.approx(np.log(chosen), abs=2e-5)
    assert removed > rows * NEW * VOCAB / 4  # the filters did something


def numpy_filter(logits, sampling):
    """temperature -> top_k -> top_p -> min_p on one row of float64 logits, by index."""
    probs = np.exp((logits - logits.max()) / sampling.temperature)
    order = np.argsort(-probs)
    probs[order[sampling.top_k :]] = 0
    probs /= probs.sum()
    kept = np.searchsorted(np.cumsum(probs[order]), sampling.top_p) + 1
    probs[order[kept:]] = 0
    probs[probs < sampling.min_p * probs.max()] = 0
    return probs / probs.sum()


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        (dict(), [0, 1, 2, 3, 4]),
        (dict(top_k=2), [0, 1]),
        (dict(top_k=3), [0, 1, 2, 3]),  # 2 and 3 tie for third place: both stay
        (dict(top_k=99), [0, 1, 2, 3, 4]),
        (dict(top_p=0.39), [0]),  # .4 alone reaches it
        (dict(top_p=0.41), [0, 1]),  # .4 does not, .4 + .3 does
        (dict(top_p=0.85), [0, 1, 2, 3]),  # .7 + .125 does not, the next one ties
        (dict(min_p=0.5), [0, 1]),  # at least .2
        (dict(min_p=0.1), [0, 1, 2, 3, 4]),  # at least .04
        (dict(top_k=2, top_p=0.55), [0]),  # after top_k the first has 4/7 = .571
        (dict(temperature=0.5, min_p=0.5), [0, 1]),  # .09/.16 = .5625 of the largest
        (dict(temperature=0.5, min_p=0.6), [0]),  # temperature comes first: .3/.4 would have stayed
    ],
)
def test_filters_by_hand(fields, kept):
    probs = jnp.array([[0.4, 0.3, 0.125, 0.125, 0.05]])
    logits = filtered_logits(jnp.log(probs) + 3.0, Sampling(max_new_tokens=1, **fields))
    assert np.flatnonzero(np.isfinite(logits[0])).tolist() == kept


def test_exact_kl(models):
    lm, params = models["gpt2"]
    other = jax.tree.map(lambda x: np.asarray(x) * np.float32(1.1), params)
    tokens, mask = ROWS
    for temperature in (0.5, 0.7, 1.0, 1.3):
        ask = dict(response_length=4, temperature=temperature)
        zero = inference.exact_kl(lm, params, params, tokens, mask, **ask)
        np.testing.assert_allclose(zero, 0.0, atol=1e-6)  # invariant A1
        kl = np.asarray(inference.exact_kl(lm, params, other, tokens, mask, **ask))
        log_p, log_q = (
            log_softmax(logits_of(lm, p, tokens, mask)[:, 4:-1] / temperature)
            for p in (params, other)
        )
        expected = np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
        np.testing.assert_allclose(kl, np.where(mask[:, 5:], expected, 0.0), atol=1e-5)
        assert np.all(kl[2] > 0)


# ------------------------------------------------------------------ randomness (invariant A7)


def test_a_key_is_made_of_all_numbers_of_its_row():
    root, fold = jax.random.key(3), jax.random.fold_in
    keys = inference.row_keys(root, np.array([[5, 0], [5, 1]], np.uint32))
    expected = [fold(fold(root, 5), 0), fold(fold(root, 5), 1)]
    assert [k.tolist() for k in jax.random.key_data(keys)] == [
        jax.random.key_data(k).tolist() for k in expected
    ]


def test_keys_decide(models):
    lm, params = models["llama"]
    sampling = Sampling(max_new_tokens=NEW, temperature=1.3)
    prompts, mask = (np.repeat(x[:1], 4, axis=0) for x in PROMPTS)
    first = on_host(generate(lm, params, prompts, mask, KEYS, sampling))
    again = generate(lm, params, prompts, mask, KEYS, sampling)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = on_host(generate(lm, params, prompts, mask, keys_of(4, seed=1), sampling))
    responses = np.concatenate([first.response_tokens, other.response_tokens])
    assert len(np.unique(responses, axis=0)) == 8  # four samples of one prompt, two seeds


def test_a_row_does_not_depend_on_its_batch(models):
    lm, params = models["llama"]
    sampling = Sampling(max_new_tokens=NEW, stop_ids=(3,))
    together = on_host(generate(lm, params, *PROMPTS, KEYS, sampling))
    order = np.array([2, 0, 3, 1])
    moved = generate(lm, params, PROMPTS[0][order], PROMPTS[1][order], KEYS[order], sampling)
    np.testing.assert_array_equal(together.tokens[order], moved.tokens)
    np.testing.assert_array_equal(together.mask[order], moved.mask)
    for row in range(4):
        one = slice(row, row + 1)
        alone = generate(lm, params, PROMPTS[0][one], PROMPTS[1][one], KEYS[one], sampling)
        np.testing.assert_array_equal(together.tokens[one], alone.tokens)
        # matrix products of another batch size round differently
        np.testing.assert_allclose(together.log_probs[one], alone.log_probs, atol=1e-5)


def test_first_tokens_follow_the_softmax(models):
    lm, params = models["gpt2"]
    rows, temperature = 4096, 0.7
    prompts, mask = (np.repeat(x[1:2], rows, axis=0) for x in PROMPTS)
    sampling = Sampling(max_new_tokens=1, temperature=temperature)
    g = generate(lm, params, prompts, mask, keys_of(rows), sampling)
    counts = np.bincount(g.response_tokens[:, 0], minlength=VOCAB)
    logits = logits_of(lm, params, prompts[:1], mask[:1])[0, -1]
    expected = rows * np.exp(log_softmax(logits / temperature))
    # rare tokens in one cell, as the chi-square approximation wants 5 a cell
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum() + 1e-9)
    chi_square = np.sum((counts - expected) ** 2 / expected)
    # at most 15 degrees of freedom: the 99.9 % quantile is 37.7
    assert len(counts) > 5 and chi_square < 37.7


# ------------------------------------------------------------------ a model that counts upwards


def counting_lm(calls=None):
    """After token i comes i + 1 (mod V), always: an LM whose hidden state is the token itself."""

    def prefill(params, tokens, mask, *, cache_length):
        nothing = jnp.zeros((), jnp.int32)
        return tokens[:, -1:].astype(jnp.float32), Cache((), (), mask, nothing, nothing)

    def decode(params, token, cache):
        if calls is not None:
            jax.debug.callback(lambda: calls.append(1))
        return token[:, None].astype(jnp.float32), cache

    def logits(params, hidden):
        following = (hidden.astype(jnp.int32) + 1) % VOCAB
        return jnp.where(jnp.arange(VOCAB)[None, :] == following, 0.0, -30.0)

    lm = make_lm(transformer_config("gpt2", **SIZES))
    return lm._replace(
        prefill=prefill, decode=decode, logits=logits, decode_params=lambda params: params
    )


COUNTING = counting_lm()


def count_from(starts, sampling, lm=None):
    prompts = np.array(starts)[:, None]
    keys = keys_of(len(starts))
    mask = np.ones_like(prompts, bool)
    return on_host(generate(lm or COUNTING, {}, prompts, mask, keys, sampling))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_responses_end_with_the_stop_token(temperature):
    sampling = Sampling(max_new_tokens=5, temperature=temperature, stop_ids=(4, 12), pad_id=1)
    g = count_from([0, 3, 7, 10], sampling)
    np.testing.assert_array_equal(
        g.response_tokens,
        [[1, 2, 3, 4, 1], [4, 1, 1, 1, 1], [8, 9, 10, 11, 12], [11, 12, 1, 1, 1]],
    )
    np.testing.assert_array_equal(
        g.response_mask.astype(int),
        [[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]],
    )
    assert g.finished.all()
    assert g.prompt_length == 1 and g.tokens.dtype == jnp.int32


def test_responses_cut_by_length_get_no_stop_token():
    g = count_from([0, 5], Sampling(max_new_tokens=3, stop_ids=(2,), pad_id=2))
    np.testing.assert_array_equal(g.response_tokens, [[1, 2, 2], [6, 7, 8]])
    np.testing.assert_array_equal(g.response_mask, [[True, True, False], [True, True, True]])
    np.testing.assert_array_equal(g.finished, [True, False])


def test_pad_equal_to_stop_is_told_apart_by_the_mask():
    # invariant A5: the sampled stop token counts, the same id after it does not
    g = count_from([14], Sampling(max_new_tokens=4, stop_ids=(0,), pad_id=0))
    np.testing.assert_array_equal(g.response_tokens, [[15, 0, 0, 0]])
    np.testing.assert_array_equal(g.response_mask, [[True, True, False, False]])


def test_no_stop_before_the_minimum(models):
    lm, params = models["gpt2"]
    stops = tuple(range(0, VOCAB, 2))
    sampling = Sampling(max_new_tokens=NEW, min_new_tokens=3, stop_ids=stops)
    assert not sampling.unfiltered
    g = generate(lm, params, *PROMPTS, KEYS, sampling)
    g = on_host(g)
    assert g.response_mask[:, :4].all()
    assert (g.response_tokens[:, :3] % 2 == 1).all()
    assert g.finished.any()  # after the minimum half of the vocabulary stops
    # the log-probs are of the distribution without the stop ids
    logits = logits_of(lm, params, g.tokens, g.mask)[:, g.prompt_length - 1]
    odd = log_softmax(logits[:, 1::2])
    expected = odd[np.arange(4), g.response_tokens[:, 0] // 2]
    np.testing.assert_allclose(g.log_probs[:, 0], expected, atol=1e-5)


def test_the_loop_stops_when_every_row_is_done():
    calls = []
    sampling = Sampling(max_new_tokens=40, stop_ids=(4,))
    g = count_from([0, 2], sampling, counting_lm(calls))
    jax.effects_barrier()
    # the first token comes from the prompt; the slower row needs 2, 3, 4 after it
    assert len(calls) == 3
    np.testing.assert_array_equal(g.response_mask.sum(axis=1), [4, 2])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": 0.9, "top_p": 0.8}])
def test_a_stream_gives_the_tokens_that_generate_gives(models, family, fields):
    lm, params = models[family]
    weights = inference.decode_weights(lm, params)
    tokens, mask = prompts_of([5, 9, 1])
    sampling = Sampling(max_new_tokens=NEW, stop_ids=(3, 5, 8, 13), **fields)
    keys = keys_of(3)
    whole = on_host(generate(lm, params, tokens, mask, keys, sampling))
    for i in range(3):
        prompt = tokens[i][mask[i]]
        drawn = list(inference.stream(lm, weights, prompt, keys[i], sampling))
        assert drawn == whole.response_tokens[i][whole.response_mask[i]].tolist()
    lengths = whole.response_mask.sum(axis=1)
    assert family == "gpt2" or len(set(lengths)) > 1  # some end early, by a stop token


def test_a_stream_refuses_what_generate_refuses(models):
    lm, params = models["llama"]
    for prompt, says in (([], "a prompt is empty"), ([1] * 60, "leaves no room")):
        with pytest.raises(ValueError, match=says):
            next(inference.stream(lm, params, prompt, keys_of(1)[0], Sampling(max_new_tokens=NEW)))


def test_a_stream_compiles_once_for_prompts_of_a_bucket(models):
    lm, params = models["llama"]
    weights = inference.decode_weights(lm, params)
    sampling = Sampling(max_new_tokens=NEW, temperature=0.123)
    before = [f._cache_size() for f in (inference._begin, inference._advance)]
    for length in (9, 10, 11, 12):
        assert len(list(inference.stream(lm, weights, [1] * length, KEYS[0], sampling))) == NEW
    after = [f._cache_size() for f in (inference._begin, inference._advance)]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1]


def test_greedy_takes_the_most_probable_token(models):
    lm, params = models["llama"]
    g = generate(lm, params, *PROMPTS, KEYS, Sampling(max_new_tokens=NEW, temperature=0.0))
    g = on_host(g)
    best = logits_of(lm, params, g.tokens, g.mask)[:, g.prompt_length - 1 : -1].argmax(axis=-1)
    np.testing.assert_array_equal(g.response_tokens, best)
    assert not g.log_probs.any()  # a point mass: log 1


# ------------------------------------------------------------------ padding and buckets


@pytest.mark.parametrize(("side", "extra"), [("right", 0), ("left", 2), ("right", 2), ("left", 7)])
def test_padding_of_the_prompt_changes_nothing(models, side, extra):
    lm, params = models["llama"]
    sampling = Sampling(max_new_tokens=NEW, stop_ids=(3,), pad_id=9)
    expected = on_host(generate(lm, params, *PROMPTS, KEYS, sampling))
    tokens, mask = PROMPTS
    if side == "right":
        order = np.argsort(~mask, axis=1, kind="stable")
        tokens, mask = (np.take_along_axis(x, order, axis=1) for x in (tokens, mask))
    widths = (extra, 0) if side == "left" else (0, extra)
    tokens = np.pad(tokens, ((0, 0), widths), constant_values=5)
    mask = np.pad(mask, ((0, 0), widths))
    g = on_host(generate(lm, params, tokens, mask, KEYS, sampling))
    np.testing.assert_array_equal(g.response_tokens, expected.response_tokens)
    np.testing.assert_array_equal(g.response_mask, expected.response_mask)
    np.testing.assert_allclose(g.log_probs, expected.log_probs, atol=1e-5)
    assert g.prompt_length == (12 if extra < 7 else 24)
    prompt, real = g.tokens[:, : g.prompt_length], g.mask[:, : g.prompt_length]
    np.testing.assert_array_equal(real.sum(axis=1), [10, 7, 1, 4])
    assert (np.diff(real.astype(int), axis=1) >= 0).all()  # left-padded
    assert (prompt[~real] == 9).all()
    np.testing.assert_array_equal(prompt[0, -10:], PROMPTS[0][0])


def test_buckets():
    sizes = [bucket(n) for n in (1, 2, 3, 4, 5, 6, 7, 9, 13, 17, 25, 33, 49, 65, 1000)]
    assert sizes == [1, 2, 3, 4, 6, 6, 8, 12, 16, 24, 32, 48, 64, 96, 1024]
    assert all(n <= bucket(n) <= max(n * 1.5, n + 1) for n in range(1, 3000))
    # rounding up stops at the room that the positions leave, unless the prompt is wider already
    assert bucket(33, 40) == 40 and bucket(33, 20) == 48


def test_new_prompt_lengths_seldom_compile(caplog):
    lm, sampling = COUNTING, Sampling(max_new_tokens=2)

    def run(columns):
        prompts = np.ones((2, columns), int)
        generate(lm, {}, prompts, np.ones_like(prompts, bool), keys_of(2), sampling)

    before = inference._generate._cache_size()
    for columns in range(9, 49, 3):
        run(columns)
    assert inference._generate._cache_size() - before == 5  # 12, 16, 24, 32, 48
    prompts = np.ones((2, 37), int)
    keys = keys_of(2)
    with jax.log_compiles(), caplog.at_level("WARNING"):  # nothing else compiles either
        generate(lm, {}, prompts[:, :35], np.ones((2, 35), bool), keys, sampling)
        generate(lm, {}, prompts, np.ones((2, 37), bool), keys, sampling)
    assert not [r for r in caplog.records if "ompil" in r.getMessage()]


def test_device_arrays_are_accepted_as_prompts(models):
    lm, params = models["llama"]
    sampling = Sampling(max_new_tokens=NEW, stop_ids=(3,))
    host = generate(lm, params, *PROMPTS, KEYS, sampling)
    device = generate(lm, params, *map(jnp.asarray, PROMPTS), KEYS, sampling)
    np.testing.assert_array_equal(host.tokens, device.tokens)


# ------------------------------------------------------------------ the cache is not copied


def test_decoding_does_not_copy_the_cache(models):
    lm, params = models["llama"]
    # a cache of 7 rows, 2 key-value heads, 24 + 6 - 1 = 29 columns, 4 numbers a head
    prompts, mask = prompts_of([20] * 7, columns=24)
    sampling = Sampling(max_new_tokens=NEW)
    lowered = inference._generate.lower(lm, params, prompts, mask, keys_of(7), sampling)
    body = while_body(lowered.compile().as_text(), of="7,2,29,4")
    cache = [line for line in body if sorted(largest_shape(line)) == [2, 4, 7, 29]]
    updates = [line for line in cache if "dynamic-update-slice" in line]
    assert updates, "the cache is not in the loop: this test looks for the wrong shape"
    copies = [line for line in cache if re.search(r"\b(copy|copy-start|transpose)\(", line)]
    assert not copies, copies


def while_body(hlo, *, of):
    """Lines of every computation reachable from the bodies of the loops that carry that shape."""
    computations, name = {}, None
    for line in hlo.splitlines():
        start = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if start:
            name = start.group(1)
            computations[name] = []
        elif name:
            computations[name].append(line)
    loops = [line for lines in computations.values() for line in lines if " while(" in line]
    todo = [re.search(r"body=%?([\w.\-]+)", line).group(1) for line in loops if f"[{of}]" in line]
    seen = {}
    while todo:
        name = todo.pop()
        if name in computations and name not in seen:
            seen[name] = computations[name]
            for line in seen[name]:
                todo += re.findall(r"(?:calls|to_apply|body)=%?([\w.\-]+)", line)
    return [line for lines in seen.values() for line in lines]


def largest_shape(line):
    """Dimensions of the result of one HLO instruction."""
    shape = re.search(r"= \w+\[([\d,]*)\]", line)
    return [int(n) for n in shape.group(1).split(",") if n] if shape else []


# ------------------------------------------------------------------ scores and values


def test_score_reads_only_what_it_should(models):
    lm, params = models["gpt2"]
    tokens, mask = ROWS
    stats = on_host(inference.score(lm, params, tokens, mask, response_length=4))
    chunked = inference.score(lm, params, tokens, mask, response_length=4, chunk_size=5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), stats, chunked)
    logs = log_softmax(logits_of(lm, params, tokens, mask)[:, 4:8])
    expected = np.take_along_axis(logs, tokens[:, 5:, None], axis=-1)[..., 0]
    entropy = -np.sum(np.exp(logs) * logs, axis=-1)
    real = mask[:, 5:]
    np.testing.assert_allclose(stats.log_probs, np.where(real, expected, 0.0), atol=1e-5)
    np.testing.assert_allclose(stats.entropy, np.where(real, entropy, 0.0), atol=1e-5)
    # invariant A6: what stands under the mask changes nothing, even an id outside the vocabulary
    garbage = np.where(mask, tokens, 99)
    other = inference.score(lm, params, garbage, mask, response_length=4)
    jax.tree.map(np.testing.assert_array_equal, stats, other)


def test_values_are_of_the_state_before_the_token(models):
    lm, lm_params = models["llama"]
    model = make_scalar_model(lm.config)
    kernel = np.random.default_rng(3).normal(size=16).astype(np.float32)
    params = {"lm": lm_params, "head": {"kernel": kernel, "bias": np.float32(0.5)}}
    tokens, mask = ROWS
    values = inference.values(model, params, tokens, mask, response_length=4)
    unshifted = np.asarray(jax.jit(model.apply)(params, tokens, mask))
    np.testing.assert_allclose(values, np.where(mask[:, 5:], unshifted[:, 4:8], 0.0), atol=1e-6)
    last_changed = tokens.copy()
    last_changed[:, 8] = (tokens[:, 8] + 1) % VOCAB
    other = inference.values(model, params, last_changed, mask, response_length=4)
    np.testing.assert_array_equal(values, other)
    scores = inference.reward_scores(model, params, tokens, mask)
    np.testing.assert_allclose(scores, unshifted[np.arange(3), [8, 6, 8]], atol=1e-6)


@pytest.mark.parametrize("response_length", [0, 9, 20])
def test_impossible_response_lengths_are_refused(models, response_length):
    lm, params = models["gpt2"]
    tokens, mask = jnp.ones((1, 9), jnp.int32), jnp.ones((1, 9), bool)
    with pytest.raises(ValueError, match=f"response_length={response_length} .* 1 and 8"):
        inference.score(lm, params, tokens, mask, response_length=response_length)


# ------------------------------------------------------------------ a (data, tensor) mesh


def test_a_sharded_model_generates_and_scores_the_same(models):
    lm, params = models["llama"]
    sampling = Sampling(max_new_tokens=NEW, stop_ids=(3,))
    mesh = jax.make_mesh(
        (2, 2), ("data", "tensor"), (AxisType.Auto,) * 2, devices=jax.devices()[:4]
    )
    rows = NamedSharding(mesh, PartitionSpec("data"))

    def place(path, leaf):
        axes = PARAM_AXES["/".join(part.key for part in path[-2:])]
        split = {"vocab", "heads", "kv_heads", "mlp"}
        names = ["tensor" if axis in split else None for axis in axes]
        stacked = [None] if path[0].key == "blocks" else []
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*stacked, *names)))

    sharded = jax.tree_util.tree_map_with_path(place, params)
    prompts, mask, keys = (jax.device_put(x, rows) for x in (*PROMPTS, KEYS))
    expected = generate(lm, params, *PROMPTS, KEYS, sampling)
    g = generate(lm, sharded, prompts, mask, keys, sampling)
    np.testing.assert_array_equal(g.tokens, expected.tokens)
    np.testing.assert_array_equal(g.mask, expected.mask)
    np.testing.assert_allclose(g.log_probs, expected.log_probs, atol=1e-5)
    stats = inference.score(lm, sharded, g.tokens, g.mask, response_length=NEW)
    np.testing.assert_allclose(stats.log_probs, expected.log_probs, atol=1e-5)
    queued = generate(lm, sharded, prompts, mask, keys, dataclasses.replace(sampling, slots=2))
    np.testing.assert_array_equal(queued.tokens, expected.tokens)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("min_new_tokens", 7),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 1.0),
        ("pad_id", -1),
        ("stop_ids", (2, -1)),
    ],
)
def test_wrong_sampling_values_name_the_field(field, value):
    with pytest.raises(ValueError, match=re.escape(f"{field}={value!r} must be")):
        Sampling(**{"max_new_tokens": 6, field: value})


def test_sampling_is_hashable_whatever_the_stop_ids_came_in():
    assert hash(Sampling(max_new_tokens=1, stop_ids=[1, 2])) == hash(
        Sampling(max_new_tokens=1, stop_ids=(1, 2))
    )


def test_generate_refuses_what_it_cannot_do(models):
    lm: LM = models["gpt2"][0]
    prompts, mask = PROMPTS
    sampling = Sampling(max_new_tokens=NEW)

    def refused(match, prompts=prompts, mask=mask, keys=KEYS, sampling=sampling):
        with pytest.raises(ValueError, match=match):
            generate(lm, {}, prompts, mask, keys, sampling)

    refused(r"both be \[B, T\]", mask=mask[:, 1:])
    refused(r"keys must be \[4\] typed", keys=keys_of(3))
    refused("typed PRNG keys", keys=jnp.zeros((4, 2), jnp.uint32))
    refused("a prompt is empty", mask=np.where(np.arange(4)[:, None] == 2, False, mask))
    refused(
        "10 tokens leaves no room for max_new_tokens=55 within max_positions=64",
        sampling=Sampling(max_new_tokens=55),
    )
    refused("stop_ids=.* below vocab_size=16", sampling=Sampling(max_new_tokens=1, stop_ids=(16,)))
    refused("pad_id=16 must be below", sampling=Sampling(max_new_tokens=1, pad_id=16))
