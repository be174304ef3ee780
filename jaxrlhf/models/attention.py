"""What a layer sees: its window, its rotary positions, and attention with or without a soft cap.

Layers that agree share one `View`. Where several kinds of layers alternate (Gemma, SmolLM3), the
scan over layers picks each one's view by its index; where all agree nothing is picked.

A window counts real tokens: padding on any side, or between, is skipped. For rows without holes
that is the distance in columns, as in Hugging Face.

What it does not do: projections (`layers.py`), caches (`transformer.py`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrlhf.models import rope
from jaxrlhf.models.config import LayerRope, TransformerConfig

UNLIMITED = np.iinfo(np.int32).max
HALVED = 64  # columns from which causal attention on a CPU is made in two halves


class Kind(NamedTuple):
    """What distinguishes a layer from its neighbours."""

    window: int
    rope: LayerRope


class View(NamedTuple):
    """A kind of layer on the positions of a batch; None where it has no window or no rotation."""

    window: jax.Array | None  # int32 scalar
    rope: rope.Rope | None


def kinds(config: TransformerConfig, columns: int) -> tuple[list[Kind], list[int]]:
    """The kinds of layers there are, and for each layer the index of its kind.

    A window that holds all `columns` is none.
    """
    windows = config.layer_windows or (0,) * config.num_layers
    windows = [0 if window >= columns else window for window in windows]
    ropes = config.layer_rope or ("main",) * config.num_layers
    if config.positions != "rope":
        ropes = ("none",) * config.num_layers
    layers = [Kind(window, kind) for window, kind in zip(windows, ropes, strict=True)]
    distinct = list(dict.fromkeys(layers))
    return distinct, [distinct.index(layer) for layer in layers]


def views(
    config: TransformerConfig,
    distinct: list[Kind],
    positions: jax.Array,
    lengths: jax.Array | None,
    below: int | None = None,
) -> list[View]:
    """A `View` for each kind; `positions` `[B, T]`, `lengths` `[B]`, `below` as in `rope.table`."""
    tables = {kind.rope: _table(config, kind.rope, positions, lengths, below) for kind in distinct}
    return [
        View(None if kind.window == 0 else jnp.int32(kind.window), tables[kind.rope])
        for kind in distinct
    ]


def stacked(several: list[View]) -> View:
    """Views of one structure with a leading axis of kinds, for `picked`."""
    windows = rotations = None
    if any(view.window is not None for view in several):
        windows = [UNLIMITED if view.window is None else view.window for view in several]
        windows = jnp.stack([jnp.int32(window) for window in windows])
    given = [view.rope for view in several if view.rope is not None]
    if given:
        still = rope.Rope(jnp.ones_like(given[0].cos), jnp.zeros_like(given[0].sin))
        tables = [still if view.rope is None else view.rope for view in several]
        rotations = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tables)
    return View(windows, rotations)


def picked(several: View, index: jax.Array) -> View:
    """The view at a (traced) index of stacked views."""
    return jax.tree.map(lambda leaf: leaf[index], several)


def visible(mask: jax.Array, view: View, query_ranks: jax.Array, key_ranks: jax.Array) -> jax.Array:
    """`mask`, `[B, 1, T or 1, S]`, less the keys outside the view's window.

    Ranks `[B, T]`, `[B, S]` count the real tokens of a row up to each column.
    """
    if view.window is None:
        return mask
    distance = query_ranks[:, None, :, None] - key_ranks[:, None, None, :]
    return mask & (distance < view.window)


def attend(
    config: TransformerConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    *,
    is_causal: bool,
) -> jax.Array:
    """Attention of `q` `[B, T, H, h]` to `k` and `v` `[B, S, K, h]` where `mask` allows it.

    Causal queries are those of the last T columns. A query that sees nothing (padding) gives the
    mean of the values: finite, and never read.
    """
    scale, columns, all_columns = config.attention_scale, q.shape[1], k.shape[1]
    soft_cap, causal = config.attention_soft_cap, is_causal
    written = soft_cap is None and columns > 1 and jax.default_backend() == "cpu"
    # jax.nn's own causal mask is for the first T columns
    if is_causal and (soft_cap is not None or written or columns < all_columns):
        mask, is_causal = mask & _causal(columns, all_columns), False
    if soft_cap is None and not written:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, is_causal=is_causal)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if soft_cap is None:
        by_halves = causal and columns >= HALVED
        return (_early_and_late if by_halves else written_attention)(q, k, v, mask, scale)
    return capped_attention(q, k, v, mask, scale=scale, soft_cap=soft_cap)


def _early_and_late(q, k, v, mask, scale):
    """Causal attention of each half of the queries: early ones see no late key, so that a quarter
    of the scores (for T = S) is never made."""
    half = q.shape[1] // 2
    seen = k.shape[1] - q.shape[1] + half
    early = q[:, :half], k[:, :seen], v[:, :seen], mask[:, :, :half, :seen]
    late = q[:, half:], k, v, mask[:, :, half:]
    return jnp.concatenate([written_attention(*part, scale) for part in (early, late)], axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def written_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float
) -> jax.Array:
    """softmax(scale·q·k)·v, its backward pass written down: on a CPU quicker than the derived one.

    Arguments as `attend`, `mask` `[B, 1, T or 1, S]`. With E = exp(scores − max), l its sums, and
    O = E·V / l the result, the gradient of the scores is E·(dO·Vᵀ − Σ dO·O) / l. What goes with a
    row alone, 1 / l and the scale, is applied to a head's columns and never to the S scores.

    Source: Dao et al. 2022 (FlashAttention), appendix B.2.
    """
    return _written_forward(q, k, v, mask, scale)[0]


def _written_forward(q, k, v, mask, scale):
    shape, kv_heads = q.shape, k.shape[2]
    q, k, v = _grouped(q * scale, kv_heads), _grouped(k, kv_heads), _grouped(v, kv_heads)
    scores = _product(q, k, 3, 3).reshape(shape[0], kv_heads, -1, shape[1], k.shape[2])
    scores = jnp.where(mask[:, :, None], scores, -0.7 * jnp.finfo(jnp.float32).max)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    weights = weights.reshape(*q.shape[:3], k.shape[2])
    sums = _row_sums(weights)
    weights = weights.astype(v.dtype)
    out = _product(weights, v, 3, 2) / sums
    return _ungrouped(out.astype(v.dtype), shape), (q, k, v, weights, sums, out)


def _written_backward(scale, kept, grad):
    q, k, v, weights, sums, out = kept
    shape, kv_shape = grad.shape, (grad.shape[0], k.shape[2], k.shape[1], k.shape[3])
    grad = _grouped(grad, k.shape[1]).astype(jnp.float32) / sums
    inner = _row_sums(grad * out)
    grad = grad.astype(v.dtype)
    slope = (weights * (_product(grad, v, 3, 3) - inner)).astype(v.dtype)
    dq = _ungrouped((_product(slope, k, 3, 2) * scale).astype(q.dtype), shape)
    dk = _ungrouped(_product(slope, q, 2, 2).astype(k.dtype), kv_shape)
    dv = _ungrouped(_product(weights, grad, 2, 2).astype(v.dtype), kv_shape)
    return dq, dk, dv, None


written_attention.defvjp(_written_forward, _written_backward)


def _grouped(x, kv_heads):
    """`[B, T, H, h]` -> `[B, K, (H / K)·T, h]`: queries of one key head in a row."""
    rows, columns, heads, size = x.shape
    x = x.reshape(rows, columns, kv_heads, heads // kv_heads, size).transpose(0, 2, 3, 1, 4)
    return x.reshape(rows, kv_heads, -1, size)


def _ungrouped(x, shape):
    """The inverse of `_grouped`, to `shape`."""
    rows, columns, heads, size = shape
    x = x.reshape(rows, x.shape[1], heads // x.shape[1], columns, size)
    return x.transpose(0, 3, 1, 2, 4).reshape(shape)


def _row_sums(x):
    """`[..., S]` -> `[..., 1]`: a product with ones, which is quicker than a sum on a CPU."""
    flat = x.reshape(-1, x.shape[-1])
    return (flat @ jnp.ones((x.shape[-1], 1), x.dtype)).reshape(*x.shape[:-1], 1)


def _product(a, b, of_a, of_b):
    """Contraction of an axis of each, for every row and key head, in float32."""
    axes = (((of_a,), (of_b,)), ((0, 1), (0, 1)))
    return lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def capped_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *, scale: float, soft_cap: float
) -> jax.Array:
    """softmax(c·tanh(scale·q·k / c))·v, scores and softmax in float32.

    Source: Gemma 2 (2024), section 2. No kernel of `jax.nn.dot_product_attention` has the cap.
    """
    heads, kv_heads = q.shape[2], k.shape[2]
    grouped = q.reshape(*q.shape[:2], kv_heads, heads // kv_heads, q.shape[3])
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32)
    scores = soft_cap * jnp.tanh(scores * (scale / soft_cap))
    scores = jnp.where(mask[:, :, None], scores, -0.7 * jnp.finfo(jnp.float32).max)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(q.shape)


def _causal(columns, all_columns):
    """`[1, 1, T, S]`: each of the last T of S columns sees itself and those before it."""
    ones = jnp.ones((1, 1, columns, all_columns), bool)
    return jnp.tril(ones, k=all_columns - columns)


def _table(config, kind, positions, lengths, below):
    if kind == "none":
        return None
    local = kind == "local"
    return rope.table(
        positions,
        config.rotary_size,
        theta=config.local_rope_theta if local else config.rope_theta,
        scaling=None if local else config.rope_scaling,
        max_positions=config.max_positions,
        lengths=lengths,
        below=below,
    )
