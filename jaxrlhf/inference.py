"""Everything that only runs forward, compiled here: sampling, log-probs, exact KL, values, scores.

Language models, scalar models, `Sampling` and lengths are static arguments; arrays are traced. The
number of compilations stays small because `generate` rounds the prompt's columns up to a bucket.

What it does not do: gradients, choosing a token (`sampling.py`), chat templates, tokenizing, moving
arrays between devices.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrlhf import continuous, reading
from jaxrlhf.losses import divergences, log_probs
from jaxrlhf.models.heads import Classifier, ScalarModel
from jaxrlhf.models.transformer import LM, Params
from jaxrlhf.packing import Packed
from jaxrlhf.sampling import Sampling, first_token, next_token, repeated


class Generation(NamedTuple):
    """Left-padded prompts, and the responses drawn after them from column P on in every row."""

    tokens: jax.Array  # [B, P + N] int32
    mask: jax.Array  # [B, P + N] bool: prompt and sampled tokens, the stop token included
    log_probs: jax.Array  # [B, N] f32, of the distribution sampled from; 0 where masked
    finished: jax.Array  # [B] bool: a stop id was sampled (False: cut by length)

    @property
    def prompt_length(self) -> int:
        """Columns P of the prompt, its padding and bucket included."""
        return self.tokens.shape[1] - self.log_probs.shape[1]

    @property
    def response_tokens(self) -> jax.Array:
        """`[B, N]`, `pad_id` after the end."""
        return self.tokens[:, self.prompt_length :]

    @property
    def response_mask(self) -> jax.Array:
        """`[B, N]` bool, sampled tokens, the stop token included."""
        return self.mask[:, self.prompt_length :]


def generate(
    lm: LM,
    params: Params,
    prompts: jax.Array | np.ndarray,
    prompt_mask: jax.Array | np.ndarray,
    keys: jax.Array,
    sampling: Sampling,
) -> Generation:
    """Draw a response, or K of them, to every prompt.

    Args:
      prompts: `[M, T]` int, left- or right-padded; `prompt_mask` `[M, T]` bool says which are real.
      keys: `[M]` typed PRNG keys, or `[M, K]` for K responses to each prompt, which is read once.
        Token t of a response is drawn with `fold_in(key, t)`, so a response does not depend on the
        batch it is in.

    Returns: a `Generation` of B = M K rows, those of a prompt side by side, whose P is T rounded up
    to a bucket (1, 2, 3, 4, 6, 8, 12, 16, 24, ...). Its log-probs are of the distribution actually
    sampled from: after temperature, filters and forbidden stop ids. Greedy sampling is a point
    mass: its log-probs are 0.

    Raises ValueError: wrong shapes or keys, an empty prompt, a prompt that leaves no room for
    `max_new_tokens` within the model's `max_positions` or on one side of the length at which its
    `rope_scaling` changes, an id outside the vocabulary in `sampling`.
    """
    _check_generate(lm, prompts, prompt_mask, keys, sampling)
    prompts, prompt_mask = _widened(lm, prompts, prompt_mask, sampling)
    return _generate(lm, params, prompts, prompt_mask, keys, sampling)


@jax.jit
def answer_keys(root: jax.Array, prompts: jax.Array, numbers: jax.Array) -> jax.Array:
    """Keys `[M, K]` for answers `numbers` `[K]` to `prompts` `[M]`, both integers.

    Each depends on the two numbers and `root` alone, whatever the batch it is in.
    """
    fold = jax.random.fold_in
    return jax.vmap(lambda row: jax.vmap(lambda n: fold(fold(root, row), n))(numbers))(prompts)


@jax.jit
def row_keys(root: jax.Array, numbers: jax.Array | np.ndarray) -> jax.Array:
    """Keys `[B]`, each of `root` and all the integers of its row `[B, K]`, in their order."""
    return jax.vmap(lambda row: functools.reduce(jax.random.fold_in, row, root))(numbers)


@functools.partial(jax.jit, static_argnames=("lm",))
def decode_weights(lm: LM, params: Params) -> Params:
    """What `stream` reads: the parameters laid out for decoding, made once for many answers."""
    return lm.decode_params(params)


def stream(
    lm: LM, weights: Params, prompt: Sequence[int], key: jax.Array, sampling: Sampling
) -> Iterator[int]:
    """The tokens of one response as they are drawn, the stop token included.

    They are those that `generate` gives for this prompt and key; it is faster, as nothing returns
    to the host in between.

    Args:
      weights: `decode_weights(lm, params)`.
      prompt: token ids, at least one.
      key: a typed PRNG key.
    Raises:
      ValueError: as `generate`.
    """
    tokens = np.asarray(prompt, np.int32)[None]
    mask, keys = np.ones(tokens.shape, bool), key[None]
    _check_generate(lm, tokens, mask, keys, sampling)
    tokens, mask = _widened(lm, tokens, mask, sampling)
    loop, cache = _begin(lm, weights, tokens, mask, keys, sampling)
    for step in range(sampling.max_new_tokens):
        if step:
            loop, cache = _advance(lm, weights, loop, cache, keys, sampling)
        yield int(loop.last[0])
        if bool(loop.finished[0]):
            return


@functools.partial(jax.jit, static_argnames=("lm",))
def last_residual(lm: LM, params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """`[B, D]` float32: the residual stream before the last norm, in the last column."""
    return lm.hidden(params, tokens, mask, final_norm=False)[:, -1].astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("lm", "response_length", "chunk_size"))
def score(
    lm: LM,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    response_length: int,
    temperature: float | jax.Array = 1.0,
    chunk_size: int | None = None,
    segment_ids: jax.Array | None = None,
    packed: Packed | None = None,
) -> log_probs.TokenStats:
    """Log-prob and entropy `[B, N]` of the last N = `response_length` tokens, 0 where masked.

    Entry n is about column P + n given the columns before it, logits divided by `temperature`.
    `chunk_size` (vocabulary) bounds memory: `[B, N, V]` is never kept. Rows that hold several texts
    bring `segment_ids`; the log-prob of a segment's first token then means nothing. `packed` are
    the same texts without padding, which are read in place of `tokens`.
    """
    _check_response(tokens, response_length)
    read = reading.of(tokens, mask, length=response_length, packed=packed)
    own = {} if segment_ids is None else {"segment_ids": segment_ids}
    stats = token_stats(
        lm,
        params,
        read.aligned(lm.hidden(params, **read.inputs, **own)),
        read.tokens,
        temperature=temperature,
        chunk_size=chunk_size,
    )
    return jax.tree.map(read.spread, stats)


def token_stats(
    lm: LM,
    params: Params,
    hidden: jax.Array,
    tokens: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    chunk_size: int | None = None,
) -> log_probs.TokenStats:
    """Log-prob and entropy `[B, T]` float32 of `tokens` from ALIGNED hidden states `[B, T, D]`.

    Not compiled here: algorithms differentiate it, `score` runs it forward.
    """
    if chunk_size is None:
        logits = lm.logits(params, hidden)
        return log_probs.from_logits(logits, tokens, temperature=temperature)
    return log_probs.chunked(
        hidden,
        lm.unembed(params),
        tokens,
        temperature=temperature,
        chunk_size=chunk_size,
        logit_cap=lm.config.final_soft_cap,
    )


@functools.partial(jax.jit, static_argnames=("lm", "response_length"))
def exact_kl(
    lm: LM,
    params: Params,
    ref_params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    response_length: int,
    temperature: float | jax.Array = 1.0,
) -> jax.Array:
    """KL(pi || ref) `[B, N]` in nats, exact, at each of the last N tokens; 0 where masked."""
    _check_response(tokens, response_length)
    read = reading.of_padded(tokens, mask, length=response_length)

    def logits(params):
        return lm.logits(params, read.aligned(lm.hidden(params, **read.inputs)))

    kl = divergences.exact(logits(params), logits(ref_params), temperature=temperature)
    return read.spread(kl)


@functools.partial(jax.jit, static_argnames=("model", "response_length"))
def values(
    model: ScalarModel,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    response_length: int,
    packed: Packed | None = None,
) -> jax.Array:
    """Values `[B, N]` float32 of the state BEFORE each of the last N tokens; 0 where masked.

    `packed` as in `score`.
    """
    _check_response(tokens, response_length)
    read = reading.of(tokens, mask, length=response_length, packed=packed)
    return read.spread(read.aligned(model.apply(params, **read.inputs)))


@functools.partial(jax.jit, static_argnames=("model",))
def reward_scores(
    model: ScalarModel,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    packed: Packed | None = None,
) -> jax.Array:
    """Scores `[B]` float32 at the last real token of each row; `packed` as in `score`."""
    if packed is not None:
        return reading.scores(model, params, packed, mask)
    return model.scores(params, tokens, mask)


@functools.partial(jax.jit, static_argnames=("model",))
def class_probs(model: Classifier, params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Probabilities `[B, K]` float32 of the classes of each row."""
    return jax.nn.softmax(model.logits(params, tokens, mask))


def bucket(length: int, room: int | None = None) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is >= `length`.

    Cut to `room` (where that still holds `length`), so that rounding up never makes an array wider
    than the model's positions.
    """
    power = 1 << max(length - 1, 0).bit_length()
    size = power * 3 // 4 if power >= 4 and length <= power * 3 // 4 else power
    return size if room is None or room < length else min(size, room)


# ------------------------------------------------------------------ helpers


@functools.partial(jax.jit, static_argnames=("lm", "sampling"))
def _generate(lm, params, prompts, prompt_mask, keys, sampling):
    prompts, prompt_mask = _left_pad(prompts, prompt_mask.astype(bool), sampling.pad_id)
    weights = lm.decode_params(params)
    queued = sampling.slots is not None and sampling.slots < keys.size
    draw = continuous.respond if queued else _together
    drawn = draw(lm, weights, prompts, prompt_mask, keys, sampling)
    prompts, prompt_mask = repeated((prompts, prompt_mask), keys.size // prompts.shape[0])
    return Generation(
        tokens=jnp.concatenate([prompts, drawn.tokens], axis=1),
        mask=jnp.concatenate([prompt_mask, drawn.mask], axis=1),
        log_probs=drawn.log_probs,
        finished=drawn.finished,
    )


def _together(lm, weights, prompts, prompt_mask, keys, sampling):
    """All responses begin at once, and the loop goes on until all have ended."""
    keys = keys.reshape(-1)

    def go_on(carry):
        loop, _ = carry
        return (loop.step < sampling.max_new_tokens) & ~jnp.all(loop.finished)

    def body(carry):
        loop, cache = carry
        return next_token(lm, weights, loop, cache, keys, sampling)

    start = first_token(lm, weights, prompts, prompt_mask, keys, sampling)
    loop, _ = lax.while_loop(go_on, body, start)
    return loop


# As `_generate`, a step at a time.


@functools.partial(jax.jit, static_argnames=("lm", "sampling"))
def _begin(lm, weights, prompts, prompt_mask, keys, sampling):
    return first_token(lm, weights, prompts, prompt_mask, keys, sampling)


@functools.partial(jax.jit, static_argnames=("lm", "sampling"), donate_argnames=("loop", "cache"))
def _advance(lm, weights, loop, cache, keys, sampling):
    return next_token(lm, weights, loop, cache, keys, sampling)


def _check_response(tokens, response_length):
    columns = tokens.shape[1]
    if not 1 <= response_length < columns:
        raise ValueError(
            f"response_length={response_length} must be between 1 and {columns - 1}: "
            "the first column has nothing before it"
        )


def _widened(lm, prompts, prompt_mask, sampling):
    """Prompts with columns of padding in front, up to a bucket."""
    room = lm.config.max_positions - sampling.max_new_tokens
    added = bucket(prompts.shape[1], room) - prompts.shape[1]
    # numpy stays numpy: an eager jnp.pad would compile once for every new length
    pad = np.pad if isinstance(prompts, np.ndarray) else jnp.pad
    widths = ((0, 0), (added, 0))
    return pad(prompts, widths), pad(prompt_mask, widths)


def _left_pad(tokens, mask, pad_id):
    """Roll each row to the right until its last column is real."""
    width = tokens.shape[1]
    after = jnp.argmax(mask[:, ::-1], axis=1)  # columns after the last real one
    source = (jnp.arange(width)[None, :] - after[:, None]) % width
    tokens = jnp.take_along_axis(tokens.astype(jnp.int32), source, axis=1)
    mask = jnp.take_along_axis(mask, source, axis=1)
    return jnp.where(mask, tokens, pad_id), mask


def _check_generate(lm, prompts, prompt_mask, keys, sampling):
    if prompts.ndim != 2 or prompts.shape != prompt_mask.shape:
        raise ValueError(
            f"prompts and prompt_mask must both be [B, T]; got {prompts.shape}, {prompt_mask.shape}"
        )
    is_key = isinstance(keys, jax.Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    rows = prompts.shape[0]
    if not is_key or keys.shape[:1] != (rows,) or keys.ndim > 2 or not keys.size:
        raise ValueError(
            f"keys must be [{rows}] typed PRNG keys, one a prompt, or [{rows}, K] for K responses "
            f"to each (jax.random.split of a jax.random.key); got {keys.dtype} {keys.shape}"
        )
    vocab = lm.config.vocab_size
    sampling.check_ids(vocab)
    lengths = prompt_mask.astype(bool).sum(axis=1)
    if int(lengths.min()) == 0:
        raise ValueError("a prompt is empty: its row of prompt_mask is all False")
    longest, limit = int(lengths.max()), lm.config.max_positions
    if longest + sampling.max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens leaves no room for max_new_tokens="
            f"{sampling.max_new_tokens} within max_positions={limit}"
        )
    _check_one_regime(lm.config, lengths, sampling.max_new_tokens)


def _check_one_regime(config, lengths, new):
    """Refuse to decode across the length where rotary frequencies change: see `models.rope`."""
    limit = config.rope_scaling and config.rope_scaling.limit(config.max_positions)
    if limit is None:
        return
    crossing = lengths[(lengths <= limit) & (lengths + new > limit)]
    if crossing.size:
        raise ValueError(
            f"max_new_tokens={new} after a prompt of {int(crossing.min())} tokens passes the "
            f"{limit} tokens at which {config.rope_scaling.kind!r} rope scaling changes its "
            f"frequencies; keep all of it below, or prompts above"
        )
