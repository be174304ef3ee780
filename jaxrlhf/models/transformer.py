"""One decoder-only transformer; the families (GPT-2, Llama) are flags on one config.

Outside this file a model is an `LM`: a tuple of pure functions over a plain dict of arrays. The
Linen modules below never leave it. The layers are stacked under `params["blocks"]` and scanned for
training; for decoding they are unstacked once (`decode_params`), because a scan over a stacked
cache copies the whole cache at every step.

What it does not do: dropout (policy, reference and value must agree), sampling (`inference.py`),
sharding (it only names the logical axes, `PARAM_AXES`), jit.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxrlhf.models.config import TransformerConfig

Params = dict[str, Any]

# Last two parts of a leaf's path -> its logical axes, without the blocks' leading "layers" axis.
PARAM_AXES: dict[str, tuple[str | None, ...]] = {
    "embed/embedding": ("vocab", "embed"),
    "pos_embed/embedding": ("positions", "embed"),
    "attn_norm/scale": ("embed",),
    "attn_norm/bias": ("embed",),
    "q_proj/kernel": ("embed", "heads"),
    "q_proj/bias": ("heads",),
    "k_proj/kernel": ("embed", "kv_heads"),
    "k_proj/bias": ("kv_heads",),
    "v_proj/kernel": ("embed", "kv_heads"),
    "v_proj/bias": ("kv_heads",),
    "o_proj/kernel": ("heads", "embed"),
    "o_proj/bias": ("embed",),
    "mlp_norm/scale": ("embed",),
    "mlp_norm/bias": ("embed",),
    "gate_proj/kernel": ("embed", "mlp"),
    "gate_proj/bias": ("mlp",),
    "up_proj/kernel": ("embed", "mlp"),
    "up_proj/bias": ("mlp",),
    "down_proj/kernel": ("mlp", "embed"),
    "down_proj/bias": ("embed",),
    "final_norm/scale": ("embed",),
    "final_norm/bias": ("embed",),
    "lm_head/kernel": ("embed", "vocab"),
    "head/kernel": ("embed",),
    "head/bias": (),
}


class Cache(NamedTuple):
    """Keys and values of the columns seen so far; `slot` is the column the next token goes to."""

    keys: tuple[jax.Array, ...]  # a layer: [B, K, S, head_dim]
    values: tuple[jax.Array, ...]
    mask: jax.Array  # [B, S] bool, columns that may be attended to
    positions: jax.Array  # [B] int32, the next token's position
    slot: jax.Array  # int32 scalar, the same for every row: prompts are left-padded


class LM(NamedTuple):
    """A language model as pure functions; hashable, so it can be a static argument of jit.

    The functions are those of this module with the config bound; their docstrings are there.
    """

    config: TransformerConfig
    init: Callable[..., Params]
    hidden: Callable[..., jax.Array]
    unembed: Callable[..., jax.Array]
    logits: Callable[..., jax.Array]
    decode_params: Callable[..., Params]
    prefill: Callable[..., tuple[jax.Array, Cache]]
    decode: Callable[..., tuple[jax.Array, Cache]]


@functools.cache
def make_lm(config: TransformerConfig) -> LM:
    """The model of a config. Cached: the same config gives the same object, so jit hits too."""
    bind = functools.partial
    return LM(
        config=config,
        init=bind(init, config),
        hidden=bind(hidden, config),
        unembed=bind(unembed, config),
        logits=bind(logits, config),
        decode_params=bind(decode_params, config),
        prefill=bind(prefill, config),
        decode=bind(decode, config),
    )


# ------------------------------------------------------- the LM's functions, config first


def init(config: TransformerConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters: N(0, initializer_range²), biases 0, norms 1.

    The two projections into the residual stream are divided by sqrt(2 * num_layers).

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    normal = nn.initializers.normal(config.initializer_range)
    embed_key, position_key, block_key, norm_key, head_key = jax.random.split(key, 5)
    x = jnp.zeros((1, 1, config.d_model))
    positions = jnp.zeros((1, 1), jnp.int32)

    def init_block(key):
        return Block(config).init(key, x, positions, lambda q, k, v: (q, None))["params"]

    params: Params = {
        "embed": {"embedding": normal(embed_key, (config.vocab_size, config.d_model))},
        "blocks": jax.vmap(init_block)(jax.random.split(block_key, config.num_layers)),
        "final_norm": Norm(config).init(norm_key, x)["params"],
    }
    if config.positions == "learned":
        shape = (config.max_positions, config.d_model)
        params["pos_embed"] = {"embedding": normal(position_key, shape)}
    if not config.tied_head:
        params["lm_head"] = {"kernel": normal(head_key, (config.d_model, config.vocab_size))}
    return params


def hidden(
    config: TransformerConfig,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    final_norm: bool = True,
) -> jax.Array:
    """Hidden states `[B, T, D]` in the compute dtype; entry t has read tokens <= t.

    Args:
      tokens: `[B, T]` int; what stands where `mask` is False is never read.
      mask: `[B, T]` bool, real tokens, padding on any side.
      positions: `[B, T]` int; by default the exclusive cumulative sum of `mask`, starting again at
        0 wherever `segment_ids` changes.
      segment_ids: `[B, T]` int; a token attends only within its own segment (packed rows).
      final_norm: False returns the residual stream before the last norm.

    Finite at padded positions too. A real token out of the vocabulary, or past `max_positions`
    where positions are learned, gives NaN rather than a silent neighbour.
    """
    if positions is None:
        positions = _positions(mask, segment_ids)
    positions = jnp.where(mask, positions, 0)
    visible = mask[:, None, None, :]
    if segment_ids is not None:
        visible &= (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]

    def attend(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=visible, is_causal=True), None

    def layer(x, block_params):
        return Block(config).apply({"params": block_params}, x, positions, attend)

    if config.remat:
        layer = jax.checkpoint(layer, prevent_cse=False)
    x = _embed(config, params, jnp.where(mask, tokens, 0), positions)
    x, _ = lax.scan(layer, x, params["blocks"])
    return _final_norm(config, params, x) if final_norm else x


def unembed(config: TransformerConfig, params: Params) -> jax.Array:
    """The output head's kernel `[D, V]` in the compute dtype, tied to the embedding or not."""
    tied = config.tied_head
    kernel = params["embed"]["embedding"].T if tied else params["lm_head"]["kernel"]
    return kernel.astype(config.dtype)


def logits(config: TransformerConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Logits `[..., V]`, accumulated and returned in float32. Takes `decode_params` too."""
    kernel = unembed(config, params)
    flat = hidden.reshape(-1, hidden.shape[-1])
    out = jnp.matmul(flat, kernel, preferred_element_type=jnp.float32)
    return out.reshape(*hidden.shape[:-1], kernel.shape[-1])


def decode_params(config: TransformerConfig, params: Params) -> Params:
    """Parameters for `prefill` and `decode`: blocks a tuple of layers, in the compute dtype.

    Norms stay float32, as the training forward applies them in float32 too. Make this once a
    rollout: it copies every parameter.
    """

    def cast(path, leaf):
        is_norm = any("norm" in str(getattr(part, "key", "")) for part in path)
        return leaf if is_norm else leaf.astype(config.dtype)

    params = jax.tree_util.tree_map_with_path(cast, params)
    layers = range(config.num_layers)
    blocks = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in layers)
    return {**params, "blocks": blocks}


def prefill(
    config: TransformerConfig,
    decode_params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    cache_length: int,
) -> tuple[jax.Array, Cache]:
    """Read LEFT-padded prompts `[B, P]` into a new cache of `cache_length` columns.

    Returns the last column's hidden state `[B, D]` and the cache. Raises ValueError if they do not
    fit into it.
    """
    width = tokens.shape[1]
    if cache_length < width:
        raise ValueError(f"cache_length={cache_length} is less than the prompts' {width} columns")
    positions = jnp.where(mask, _positions(mask, None), 0)
    visible = mask[:, None, None, :]

    def attend(q, k, v):
        out = jax.nn.dot_product_attention(q, k, v, mask=visible, is_causal=True)
        return out, (_to_cache(k, cache_length), _to_cache(v, cache_length))

    x = _embed(config, decode_params, jnp.where(mask, tokens, 0), positions)
    cached = []
    for block_params in decode_params["blocks"]:
        x, pair = Block(config).apply({"params": block_params}, x, positions, attend)
        cached.append(pair)
    keys, values = zip(*cached, strict=True)
    cache = Cache(
        keys=keys,
        values=values,
        mask=jnp.pad(mask, ((0, 0), (0, cache_length - width))),
        positions=jnp.sum(mask, axis=1, dtype=jnp.int32),
        slot=jnp.int32(width),
    )
    return _final_norm(config, decode_params, x[:, -1]), cache


def decode(
    config: TransformerConfig, decode_params: Params, token: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Read one token `[B]` a row at the cache's slot; its hidden `[B, D]` and the cache with it in.

    The caller keeps `cache.slot` below the cache's length: past it the last column is overwritten.
    """
    mask = lax.dynamic_update_slice(
        cache.mask, jnp.ones((token.shape[0], 1), bool), (0, cache.slot)
    )
    visible = mask[:, None, None, :]
    positions = cache.positions[:, None]
    x = _embed(config, decode_params, token[:, None], positions)
    cached = []
    layers = zip(decode_params["blocks"], cache.keys, cache.values, strict=True)
    for block_params, old_keys, old_values in layers:

        def attend(q, k, v, old_keys=old_keys, old_values=old_values):
            start = (0, 0, cache.slot, 0)
            keys = lax.dynamic_update_slice(old_keys, k.swapaxes(1, 2), start)
            values = lax.dynamic_update_slice(old_values, v.swapaxes(1, 2), start)
            out = jax.nn.dot_product_attention(
                q, keys.swapaxes(1, 2), values.swapaxes(1, 2), mask=visible
            )
            return out, (keys, values)

        x, pair = Block(config).apply({"params": block_params}, x, positions, attend)
        cached.append(pair)
    keys, values = zip(*cached, strict=True)
    cache = Cache(keys, values, mask, cache.positions + 1, cache.slot + 1)
    return _final_norm(config, decode_params, x[:, 0]), cache


# ------------------------------------------------------------------ modules


class Block(nn.Module):
    """Pre-norm attention and MLP.

    `attend(q, k, v) -> (out, extra)` is what differs between training, prefill and decode; `extra`
    is handed back beside the new residual stream.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x, positions, attend):
        config = self.config
        head_dim, kv_heads = config.head_dim, config.num_kv_heads
        assert head_dim is not None and kv_heads is not None
        residual_std = config.initializer_range / math.sqrt(2 * config.num_layers)

        def heads(name, num_heads, y):
            y = Projection(config, num_heads * head_dim, name=name)(y)
            return y.reshape(*y.shape[:2], num_heads, head_dim)

        y = Norm(config, name="attn_norm")(x)
        q = heads("q_proj", config.num_heads, y)
        k = heads("k_proj", kv_heads, y)
        v = heads("v_proj", kv_heads, y)
        if config.positions == "rope":
            q = _rotate(q, positions, theta=config.rope_theta)
            k = _rotate(k, positions, theta=config.rope_theta)
        y, extra = attend(q, k, v)
        y = y.reshape(*y.shape[:2], config.num_heads * head_dim)
        x = x + Projection(config, config.d_model, residual_std, name="o_proj")(y)

        y = Norm(config, name="mlp_norm")(x)
        up = Projection(config, config.d_ff, name="up_proj")(y)
        if config.mlp == "swiglu":
            y = jax.nn.silu(Projection(config, config.d_ff, name="gate_proj")(y)) * up
        else:
            y = jax.nn.gelu(up, approximate=True)
        x = x + Projection(config, config.d_model, residual_std, name="down_proj")(y)
        return x, extra


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, computed in float32, given in the compute dtype."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x):
        config, shape = self.config, (x.shape[-1],)
        ones = (1,) * (x.ndim - 1)
        x = x.astype(jnp.float32)
        if config.norm == "layer":
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        x = x * lax.rsqrt(variance + config.norm_epsilon)
        x = x * self.param("scale", nn.initializers.ones, shape).reshape(*ones, -1)
        if config.norm == "layer":
            x = x + self.param("bias", nn.initializers.zeros, shape).reshape(*ones, -1)
        return x.astype(config.dtype)


class Projection(nn.Module):
    """A linear map of the last axis in the compute dtype.

    The leading axes are flattened first: on CPU the backward pass of a 2-D matmul is 20 % faster.
    """

    config: TransformerConfig
    features: int
    std: float | None = None

    @nn.compact
    def __call__(self, x):
        config = self.config
        normal = nn.initializers.normal(self.std or config.initializer_range)
        kernel = self.param("kernel", normal, (x.shape[-1], self.features))
        y = x.reshape(-1, x.shape[-1]) @ kernel.astype(config.dtype)
        if config.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(config.dtype)[None, :]
        return y.reshape(*x.shape[:-1], self.features)


# ------------------------------------------------------------------ helpers


def _embed(config, params, tokens, positions):
    x = jnp.take(params["embed"]["embedding"], tokens, axis=0).astype(config.dtype)
    if config.positions == "learned":
        table = params["pos_embed"]["embedding"]
        x = x + jnp.take(table, positions, axis=0).astype(config.dtype)
    return x


def _final_norm(config, params, x) -> Any:
    return Norm(config).apply({"params": params["final_norm"]}, x)


def _positions(mask, segment_ids):
    """Exclusive cumulative sum of the mask, starting again at every new segment."""
    count = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - mask
    if segment_ids is None:
        return count
    starts = segment_ids[:, 1:] != segment_ids[:, :-1]
    starts = jnp.pad(starts, ((0, 0), (1, 0)), constant_values=True)
    return count - lax.cummax(jnp.where(starts, count, 0), axis=1)


def _rotate(x, positions, *, theta):
    """Rotary positions, half-split convention: pairs are (i, i + head_dim / 2).

    Source: Su et al. 2021 (RoFormer), equation 34, in the order of Hugging Face's checkpoints.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _to_cache(x, cache_length):
    """`[B, P, K, h]` -> `[B, K, S, h]`: the layout that attention reads without a transpose."""
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, cache_length - x.shape[1]), (0, 0)))
