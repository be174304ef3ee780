"""One decoder-only transformer; the families are flags on one config.

Outside this package a model is an `LM`: a tuple of pure functions over a plain dict of arrays. The
layers are stacked under `params["blocks"]` and scanned for training, the loop written out where
they are few; for decoding they are unstacked once (`decode_params`), because a scan over a stacked
cache copies the whole cache at every step.

What it does not do: dropout (policy, reference and value must agree), sampling (`inference.py`),
sharding (it only names the logical axes, `PARAM_AXES`), jit.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxrlhf.models import attention, lora
from jaxrlhf.models.config import TransformerConfig
from jaxrlhf.models.layers import TURNED, Block, Norm, product, turned

Params = dict[str, Any]

# Up to so many layers the scan is written out. Measured on a CPU core (2, 4 and 8 layers): a step
# takes 6 to 25 % less, because residuals are not copied into stacks; compiling takes no longer.
WRITTEN_OUT = 8

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
    "q_norm/scale": (None,),  # of one head or of all: a short vector, not worth splitting
    "k_norm/scale": (None,),
    "o_proj/kernel": ("heads", "embed"),
    "o_proj/bias": ("embed",),
    "attn_post_norm/scale": ("embed",),
    "attn_post_norm/bias": ("embed",),
    "mlp_norm/scale": ("embed",),
    "mlp_norm/bias": ("embed",),
    "gate_proj/kernel": ("embed", "mlp"),
    "gate_proj/bias": ("mlp",),
    "up_proj/kernel": ("embed", "mlp"),
    "up_proj/bias": ("mlp",),
    "down_proj/kernel": ("mlp", "embed"),
    "down_proj/bias": ("embed",),
    "mlp_post_norm/scale": ("embed",),
    "mlp_post_norm/bias": ("embed",),
    "final_norm/scale": ("embed",),
    "final_norm/bias": ("embed",),
    "lm_head/kernel": ("embed", "vocab"),
    "head/kernel": ("embed",),
    "head/bias": (),
    "classifier/kernel": ("embed", None),
    "extra/recent": (None,),  # no parameter: predictions that weak-to-strong keeps
}
for _name in lora.PROJECTIONS:  # an adapter is split as its kernel is; the rank is short
    _in, _out = PARAM_AXES[f"{_name}/kernel"]
    PARAM_AXES |= {
        f"{_name}/{lora.A}": (_in, None),
        f"{_name}/{lora.B}": (None, _out),
        f"{_name}/{lora.SCALE}": (),
    }


class Cache(NamedTuple):
    """Keys and values of the columns seen so far; `slot` is the column the next token goes to.

    Layers with a window keep every column too. Prompts are left-padded, so one `slot` serves rows
    that began together; rows that began at different times have one each.
    """

    keys: tuple[jax.Array, ...]  # a layer: [B, K, S, head_dim]
    values: tuple[jax.Array, ...]
    mask: jax.Array  # [B, S] bool, columns that may be attended to
    positions: jax.Array  # [B] int32, the next token's position
    slot: jax.Array  # int32: a scalar, or [B]


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
    """Fresh float32 parameters: N(0, initializer_range²), biases 0, norms 1 (offset included).

    The two projections into the residual stream are divided by sqrt(2 * num_layers).

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    normal = nn.initializers.normal(config.initializer_range)
    embed_key, position_key, block_key, norm_key, head_key = jax.random.split(key, 5)
    x = jnp.zeros((1, 1, config.d_model))

    def init_block(key):
        return Block(config).init(key, x, None, lambda q, k, v: (q, None))["params"]

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
    last: int | None = None,
) -> jax.Array:
    """Hidden states `[B, T, D]` in the compute dtype; entry t has read tokens <= t.

    Args:
      tokens: `[B, T]` int; what stands where `mask` is False is never read.
      mask: `[B, T]` bool, real tokens, padding on any side.
      positions: `[B, T]` int; by default the exclusive cumulative sum of `mask`, starting again at
        0 wherever `segment_ids` changes.
      segment_ids: `[B, T]` int; a token attends only within its own segment (packed rows).
      final_norm: False returns the residual stream before the last norm.
      last: only so many last columns are returned, `[B, last, D]`; the last layer makes no others,
        where the layers are written out.

    Finite at padded positions too. A real token out of the vocabulary, or past `max_positions`
    where positions are learned, gives NaN rather than a silent neighbour. Raises ValueError for
    packed rows longer than the limit of a `rope_scaling` that looks at lengths.
    """
    columns = tokens.shape[1]
    at_most = columns if positions is None else None
    if positions is None:
        positions = _positions(mask, segment_ids)
    positions = jnp.where(mask, positions, 0)
    lengths = _lengths(config, positions, at_most)
    seen = mask[:, None, None, :]
    if segment_ids is not None:
        if lengths is not None:
            raise ValueError(_packed_past_limit(config, columns))
        seen &= (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]

    ranks = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    distinct, which = attention.kinds(config, columns)
    views = attention.views(config, distinct, positions, lengths, at_most)
    stacked = None if len(views) == 1 else attention.stacked(views)

    def layer(x, scanned, last=columns):
        block_params, index = scanned
        view = views[0] if stacked is None else attention.picked(stacked, index)

        def attend(q, k, v):
            visible = attention.visible(seen[:, :, -last:], view, ranks[:, -last:], ranks)
            return attention.attend(config, q, k, v, visible, is_causal=True), None

        return Block(config).apply({"params": block_params}, x, view.rope, attend, last)

    if config.remat:
        layer = jax.checkpoint(layer, prevent_cse=False)
    x = _embed(config, params, jnp.where(mask, tokens, 0), positions)
    which = None if stacked is None else jnp.stack([jnp.int32(index) for index in which])
    # Outside a loop XLA on a CPU merges what remat computes twice, and saves nothing.
    written_out = config.num_layers <= WRITTEN_OUT and not config.remat
    layers, last = (params["blocks"], which), columns if last is None else min(last, columns)
    if written_out and last < columns:
        layers, final = _split(layers, config.num_layers - 1)
        if config.num_layers > 1:  # a scan over nothing is traced all the same
            x, _ = lax.scan(layer, x, layers, unroll=True)
        x, _ = layer(x, jax.tree.map(lambda leaf: leaf[0], final), last)
    else:
        x, _ = lax.scan(layer, x, layers, unroll=written_out)
        x = x[:, -last:]
    return _final_norm(config, params, x) if final_norm else x


def unembed(config: TransformerConfig, params: Params) -> jax.Array:
    """The output head's kernel `[D, V]` in the compute dtype, tied to the embedding or not."""
    if config.tied_head:
        kernel = params["embed"]["embedding"].T
    elif TURNED in params["lm_head"]:
        kernel = params["lm_head"][TURNED].T
    else:
        kernel = params["lm_head"]["kernel"]
    return kernel.astype(config.dtype)


def logits(config: TransformerConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Logits `[..., V]`, accumulated, capped and returned in float32. Takes `decode_params` too."""
    kernel = unembed(config, params)
    flat = hidden.reshape(-1, hidden.shape[-1])
    out: jax.Array = product(flat, kernel, jnp.float32)
    if config.final_soft_cap is not None:
        out = config.final_soft_cap * jnp.tanh(out / config.final_soft_cap)
    return out.reshape(*hidden.shape[:-1], kernel.shape[-1])


def decode_params(config: TransformerConfig, params: Params) -> Params:
    """Parameters for `prefill` and `decode`: blocks a tuple of layers, in the compute dtype.

    Norms stay float32, as the training forward applies them in float32 too. Adapters are merged, a
    layer at a time, before the cast; large kernels are laid out for few rows (`layers.turned`).
    Make this once a rollout: it copies every parameter.
    """

    def cast(path, leaf):
        is_norm = any("norm" in str(getattr(part, "key", "")) for part in path)
        return leaf.astype(jnp.float32 if is_norm else config.dtype)

    def unstacked(layer):
        block = jax.tree.map(lambda leaf: leaf[layer], params["blocks"])
        return turned(jax.tree_util.tree_map_with_path(cast, lora.merge(block)))

    blocks = tuple(unstacked(layer) for layer in range(config.num_layers))
    rest = {name: value for name, value in params.items() if name != "blocks"}
    rest = jax.tree_util.tree_map_with_path(cast, rest)
    return {**turned(rest), "blocks": blocks}


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
    lengths = _lengths(config, positions, cache_length)
    ranks = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    x = _embed(config, decode_params, jnp.where(mask, tokens, 0), positions)
    distinct, which = attention.kinds(config, cache_length)
    views = attention.views(config, distinct, positions, lengths, width)
    masks = [attention.visible(mask[:, None, None, :], view, ranks, ranks) for view in views]
    cached = []
    for block_params, index in zip(decode_params["blocks"], which, strict=True):

        def attend(q, k, v, visible=masks[index]):
            out = attention.attend(config, q, k, v, visible, is_causal=True)
            return out, (_to_cache(k, cache_length), _to_cache(v, cache_length))

        x, pair = Block(config).apply({"params": block_params}, x, views[index].rope, attend)
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

    The caller keeps `cache.slot` below the cache's length: past it the last column is overwritten
    (one slot for all), or nothing is written (a slot a row).
    """
    mask = _at_slot(cache.mask[:, None], jnp.ones((token.shape[0], 1, 1), bool), cache.slot)[:, 0]
    positions = cache.positions[:, None]
    columns = mask.shape[1]
    lengths = _lengths(config, positions, columns)
    key_ranks = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    x = _embed(config, decode_params, token[:, None], positions)
    distinct, which = attention.kinds(config, columns)
    views = attention.views(config, distinct, positions, lengths)
    seen = mask[:, None, None, :]
    masks = [attention.visible(seen, view, positions + 1, key_ranks) for view in views]
    cached = []
    layers = zip(decode_params["blocks"], cache.keys, cache.values, which, strict=True)
    for block_params, old_keys, old_values, index in layers:

        def attend(q, k, v, old_keys=old_keys, old_values=old_values, visible=masks[index]):
            keys = _at_slot(old_keys, k.swapaxes(1, 2), cache.slot)
            values = _at_slot(old_values, v.swapaxes(1, 2), cache.slot)
            pair = keys.swapaxes(1, 2), values.swapaxes(1, 2)
            return attention.attend(config, q, *pair, visible, is_causal=False), (keys, values)

        x, pair = Block(config).apply({"params": block_params}, x, views[index].rope, attend)
        cached.append(pair)
    keys, values = zip(*cached, strict=True)
    cache = Cache(keys, values, mask, cache.positions + 1, cache.slot + 1)
    return _final_norm(config, decode_params, x[:, 0]), cache


# ------------------------------------------------------------------ helpers


def _embed(config, params, tokens, positions):
    x = jnp.take(params["embed"]["embedding"], tokens, axis=0).astype(config.dtype)
    if config.embed_scale is not None:
        x = x * jnp.asarray(config.embed_scale, config.dtype)
    if config.positions == "learned":
        table = params["pos_embed"]["embedding"]
        x = x + jnp.take(table, positions, axis=0).astype(config.dtype)
    return x


def _final_norm(config, params, x) -> Any:
    return Norm(config).apply({"params": params["final_norm"]}, x)


def _split(tree, index):
    """Two trees of what lies before `index` and from it on; their gradients are concatenated."""
    leaves, structure = jax.tree.flatten(tree)
    parts = zip(*(jnp.split(leaf, [index]) for leaf in leaves), strict=True)
    return [jax.tree.unflatten(structure, part) for part in parts]


def _positions(mask, segment_ids):
    """Exclusive cumulative sum of the mask, starting again at every new segment."""
    count = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - mask
    if segment_ids is None:
        return count
    starts = segment_ids[:, 1:] != segment_ids[:, :-1]
    starts = jnp.pad(starts, ((0, 0), (1, 0)), constant_values=True)
    return count - lax.cummax(jnp.where(starts, count, 0), axis=1)


def _lengths(config, positions, at_most):
    """Lengths `[B]` for `rope.table`; None where no row can be past the scaling's limit.

    `at_most` bounds the length of every row where it is known before the program runs.
    """
    limit = config.rope_scaling and config.rope_scaling.limit(config.max_positions)
    if limit is None or (at_most is not None and at_most <= limit):
        return None
    return jnp.max(positions, axis=1) + 1


def _packed_past_limit(config, columns):
    limit = config.rope_scaling.limit(config.max_positions)
    return (
        f"segment_ids in rows of {columns} columns: past {limit} tokens "
        f"{config.rope_scaling.kind!r} rope scaling looks at the length of a row, and a packed "
        f"row has none; pack rows of at most {limit}, or do not pack"
    )


def _to_cache(x, cache_length):
    """`[B, P, K, h]` -> `[B, K, S, h]`: the layout that attention reads without a transpose."""
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, cache_length - x.shape[1]), (0, 0)))


def _at_slot(old, new, slot):
    """`old` `[B, K, S, ...]` with column `slot` replaced by `new` `[B, K, 1, ...]`."""
    if slot.ndim == 0:
        return lax.dynamic_update_slice_in_dim(old, new, slot, axis=2)
    return old.at[jnp.arange(old.shape[0]), :, slot].set(new[:, :, 0])
