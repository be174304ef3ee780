"""Log-probabilities of tokens and the entropy of the distributions that they were drawn from.

`shift` is the only place in the code base where predictions move to the token that they predict;
after it entry t of every [B, T] array is about token t given the tokens before it. (Entry 0 has no
prediction: it holds zeros, and no mask of a loss contains it.)

`from_logits` and `chunked` return the same numbers; the first takes [B, T, V] logits, the second
never makes them. Both pick a token's logit by comparing and summing: a gather along a vocabulary
that is sharded over a mesh with Explicit axes raises, and an automatic one would collect the
logits. A position whose row is not finite, or whose token is not in [0, V) (a label of -100), is
NaN with zero gradient: harmless under a mask, loud outside it.

Deliberately not here: the model, masks over [B, T], and sampling.
"""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from jaxrlhf.losses import masked
from jaxrlhf.losses._boundary import as_float32, float32


class TokenStats(NamedTuple):
    """What is known of a token and the distribution it was drawn from."""

    log_probs: jax.Array  # [B, T] f32, nats: log π(token t | tokens < t)
    entropy: jax.Array  # [B, T] f32, nats: of π(· | tokens < t)


def shift(x: chex.Array) -> jax.Array:
    """Predictions moved one step right, onto the token that they predict: y[:, t] = x[:, t − 1].

    Args: `x` [B, T, ...] of any dtype (hidden states, logits, values). Returns: the same shape and
    dtype, zeros at t = 0; what was predicted after the last token drops out.

    >>> shift(jnp.array([[1, 2, 3]])).tolist()
    [[0, 1, 2]]
    """
    x = jnp.asarray(x)
    return jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :-1]], axis=1)


def from_logits(
    logits: chex.Array, tokens: chex.Array, *, temperature: chex.Numeric = 1.0
) -> TokenStats:
    """log π(token) and entropy: z = logits / temperature, log π(token) = z_token − log Σ exp z.

    Args: `logits` [B, T, V], any float dtype, already shifted; -inf marks a token that cannot be
    drawn; `tokens` [B, T] integer; `temperature` > 0, the one that was sampled with.
    Returns: `TokenStats`, each [B, T] float32. Raises: AssertionError on wrong types or shapes.

    >>> stats = from_logits(jnp.log(jnp.array([[[0.5, 0.25, 0.25]]])), jnp.array([[1]]))
    >>> round(stats.log_probs.item(), 4)  # log ¼
    -1.3863
    >>> round(stats.entropy.item(), 4)  # 1.5 log 2
    1.0397
    """
    logits = as_float32(logits)
    tokens = _checked_tokens(tokens, logits)
    size = logits.shape[-1]
    ok = _in_vocabulary(tokens, size) & jnp.isfinite(jnp.max(logits, axis=-1))
    clean = jnp.where(ok[..., None], logits, 0.0)
    columns = jnp.arange(size, dtype=jnp.int32)
    return _finish(_partial(clean, tokens, columns, temperature), ok, temperature)


def chunked(
    hidden: chex.Array,
    kernel: chex.Array,
    tokens: chex.Array,
    *,
    temperature: chex.Numeric = 1.0,
    chunk_size: int,
    bias: chex.Array | None = None,
    logit_cap: float | None = None,
) -> TokenStats:
    """`from_logits` of hidden @ kernel (+ bias) without the [B, T, V] logits, forward or backward.

    A scan over chunks of the vocabulary keeps a running maximum, Σ exp and Σ p·log p for each
    position; the backward pass computes each chunk's logits again. Cost: one more matrix product in
    the backward pass and one copy of `kernel`; the most that lives is [B, T, chunk_size].

    Chunk i holds the columns i, i + n, i + 2n, ... (n chunks), so a vocabulary sharded over a mesh
    stays sharded: every device works on its share of every chunk. For that `chunk_size` must divide
    V and be a multiple of the number of shards; a replicated kernel takes any `chunk_size` (V is
    padded).

    Args: `hidden` [B, T, D] already shifted, bf16 or f32: the products are made in its dtype and
    summed in f32; `kernel` [D, V] float; `tokens` [B, T]; `temperature` > 0; `chunk_size` the most
    columns at a time; `bias` [V]; `logit_cap` c turns logits z into c·tanh(z / c) before the
    temperature.
    Returns: `TokenStats`, each [B, T] float32. Raises: ValueError on chunk_size < 1.

    >>> hidden, kernel = jnp.ones((1, 1, 2)), jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]])
    >>> stats = jax.jit(partial(chunked, chunk_size=2))(hidden, kernel, jnp.array([[2]]))
    >>> round(stats.log_probs.item(), 4)  # logits 1, 1, 4:  4 − log(2e + e⁴)
    -0.0949
    """
    hidden, kernel = jnp.asarray(hidden), jnp.asarray(kernel)
    tokens = _checked_tokens(tokens, hidden)
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1")
    size = kernel.shape[-1]
    chunks = -(-size // chunk_size)
    kernels = _interleave(kernel, chunks)
    biases = None if bias is None else _interleave(as_float32(bias), chunks)

    ok = _in_vocabulary(tokens, size) & jnp.all(jnp.isfinite(hidden), axis=-1)
    # In float32 so that the gradient, a sum over chunks, is added up in float32.
    clean = jnp.where(ok[..., None], hidden.astype(jnp.float32), 0.0)

    @partial(jax.checkpoint, prevent_cse=False)  # a scan's body cannot be merged with its forward
    def part(clean: jax.Array, chunk: tuple[jax.Array, jax.Array | None, jax.Array]) -> _Partial:
        weights, offsets, index = chunk
        logits = jnp.matmul(
            clean.astype(hidden.dtype),
            weights.astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
        if offsets is not None:
            logits = logits + offsets.reshape((1,) * tokens.ndim + (-1,))
        if logit_cap is not None:
            logits = logit_cap * jnp.tanh(logits / logit_cap)
        columns = jnp.arange(weights.shape[-1], dtype=jnp.int32) * chunks + index
        real = (columns < size).reshape((1,) * tokens.ndim + (-1,))
        return _partial(jnp.where(real, logits, -jnp.inf), tokens, columns, temperature)

    # The first chunk starts the sums: a carry made of zeros would not have the sharding that a mesh
    # with Explicit axes, or shard_map, asks for.
    everything = (kernels, biases, jnp.arange(chunks, dtype=jnp.int32))
    first = part(clean, jax.tree.map(lambda x: lax.index_in_dim(x, 0, keepdims=False), everything))
    rest = jax.tree.map(lambda x: lax.slice_in_dim(x, 1, chunks), everything)

    def add(sums: _Partial, chunk: tuple) -> tuple[_Partial, None]:
        return _merge(sums, part(clean, chunk), temperature), None

    total, _ = lax.scan(add, first, rest)
    return _finish(total, ok, temperature)


def sequence(log_probs: chex.Array, mask: chex.Array) -> jax.Array:
    """Log-probability of each sequence: Σ_t mask_t · log π(token t), in nats.

    Args: `log_probs` [B, T] float32; `mask` [B, T] bool, the tokens that count. Returns: [B]
    float32.

    >>> sequence(jnp.array([[-1.0, -2.0, -4.0]]), jnp.array([[False, True, True]])).tolist()
    [-6.0]
    """
    (log_probs,) = float32(log_probs=log_probs)
    return masked.sum(log_probs, mask, axis=-1)


class _Partial(NamedTuple):
    """Softmax sums over some of the vocabulary, relative to `top`, so that they can be merged.

    Logits are divided by the temperature after `top` is subtracted: the difference is exact where
    it matters, and the largest one is exactly 0 whatever the compiler does with the division.
    """

    top: jax.Array  # max z, before the temperature τ
    total: jax.Array  # Σ exp((z − top) / τ)
    weighted: jax.Array  # Σ exp((z − top) / τ)·(z − top) / τ
    target: jax.Array  # z of the token, 0 where it is in another part


def _partial(
    logits: jax.Array, tokens: jax.Array, columns: jax.Array, temperature: chex.Numeric
) -> _Partial:
    top = jnp.max(lax.stop_gradient(logits), axis=-1)
    # Two wheres: -inf would be NaN in Σ w·z (0 · inf) and in the gradient of the temperature.
    barred = jnp.isneginf(logits)
    below = jnp.where(barred, 0.0, logits - top[..., None]) / temperature
    weights = jnp.where(barred, 0.0, jnp.exp(below))
    is_token = tokens[..., None] == columns.reshape((1,) * tokens.ndim + (-1,))
    return _Partial(
        top=top,
        total=jnp.sum(weights, axis=-1),
        weighted=jnp.sum(weights * below, axis=-1),
        target=jnp.sum(jnp.where(is_token, logits, 0.0), axis=-1),
    )


def _merge(a: _Partial, b: _Partial, temperature: chex.Numeric) -> _Partial:
    top = jnp.maximum(a.top, b.top)

    def lowered(x: _Partial) -> tuple[jax.Array, jax.Array]:
        below = (x.top - top) / temperature
        return x.total * jnp.exp(below), (x.weighted + x.total * below) * jnp.exp(below)

    (total_a, weighted_a), (total_b, weighted_b) = lowered(a), lowered(b)
    return _Partial(top, total_a + total_b, weighted_a + weighted_b, a.target + b.target)


def _finish(sums: _Partial, ok: jax.Array, temperature: chex.Numeric) -> TokenStats:
    log_total = jnp.log(sums.total)
    log_probs = (sums.target - sums.top) / temperature - log_total
    return TokenStats(
        log_probs=jnp.where(ok, log_probs, jnp.nan),
        entropy=jnp.where(ok, log_total - sums.weighted / sums.total, jnp.nan),
    )


def _interleave(x: jax.Array, chunks: int) -> jax.Array:
    """[..., V] -> [chunks, ..., width]: chunk i holds columns i, i + chunks, ...; padded with 0."""
    width = -(-x.shape[-1] // chunks)
    padding = chunks * width - x.shape[-1]
    if padding:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)])
    return jnp.moveaxis(x.reshape((*x.shape[:-1], width, chunks)), -1, 0)


def _in_vocabulary(tokens: jax.Array, size: int) -> jax.Array:
    return (tokens >= 0) & (tokens < size)


def _checked_tokens(tokens: chex.Array, per_token: jax.Array) -> jax.Array:
    tokens = jnp.asarray(tokens)
    chex.assert_type(tokens, int, custom_message=f"`tokens` is {tokens.dtype}; not integer")
    chex.assert_shape(tokens, per_token.shape[:-1], custom_message="`tokens` against its features")
    return tokens.astype(jnp.int32)
