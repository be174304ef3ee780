"""Llama and its relatives: RMS norms, rotary positions, gated MLP, one tensor a projection.

Llama 1-3.x, Mistral, Qwen2, Qwen3, OLMo 2 and SmolLM3 are small differences of one reader, one
writer and one name map.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import rope_fields
from jaxrlhf.hf.entries import Entry, linear, norm, plain, prefix_optional, transposed
from jaxrlhf.hf.families.base import (
    GATED_MLP,
    SLIDING,
    Family,
    config_from,
    per_layer,
    reverse,
    sliding,
    windows,
)
from jaxrlhf.hf.fields import Fields
from jaxrlhf.models.config import TransformerConfig

# Buffers that old releases saved beside the weights.
IGNORED = (r"(.*\.)?rotary_emb\.inv_freq", r"(.*\.)?rotary_emb\.(cos|sin)_cached")


# ------------------------------------------------------------------ what all of them share


def core(
    fields: Fields,
    *,
    default_theta: float = 10_000.0,
    norm_epsilon: float = 1e-6,
    tied: bool = False,
    head_dim: int | None = None,
    kv_heads: int | None = None,
) -> dict[str, Any]:
    """The fields of TransformerConfig that every relative reads alike.

    `kv_heads` is the class's number where the field is absent; null is one a head in all of them.
    """
    positions = fields.size("max_position_embeddings")
    heads = fields.size("num_attention_heads")
    kv = fields.unset("num_key_value_heads", absent=kv_heads or heads, null=heads)
    rope = rope_fields.read(fields, max_positions=positions, default_theta=default_theta)
    return {
        "vocab_size": fields.size("vocab_size"),
        "num_layers": fields.size("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": fields.size("num_key_value_heads", kv),
        "head_dim": fields.size("head_dim", head_dim),
        "d_model": fields.size("hidden_size"),
        "d_ff": fields.size("intermediate_size"),
        "max_positions": positions,
        "positions": "rope",
        **rope._asdict(),
        "norm": "rms",
        "norm_epsilon": fields.number("rms_norm_eps", norm_epsilon),
        "mlp": fields.choice("hidden_act", "silu", GATED_MLP),
        "tied_head": fields.flag("tie_word_embeddings", tied),
        "initializer_range": fields.number("initializer_range", 0.02),
    }


def biases(fields: Fields, *, mlp: bool = False) -> dict[str, bool]:
    """`attention_bias` puts one on all four projections of the attention."""
    attention = fields.flag("attention_bias", False)
    return {
        "qkv_bias": attention,
        "o_bias": attention,
        "mlp_bias": fields.flag("mlp_bias", False) if mlp else False,
    }


def written_core(config: TransformerConfig) -> dict[str, Any]:
    """The reverse of `core`."""
    rope = rope_fields.Rope(config.rope_theta, config.rope_fraction, config.rope_scaling)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "hidden_act": reverse(GATED_MLP, config.mlp),
        "tie_word_embeddings": config.tied_head,
        "initializer_range": config.initializer_range,
        "attention_dropout": 0.0,
        **rope_fields.write(rope),
    }


def written_biases(config: TransformerConfig, *, mlp: bool = False) -> dict[str, bool]:
    """The reverse of `biases`."""
    written = {"attention_bias": config.qkv_bias}
    return {**written, "mlp_bias": config.mlp_bias} if mlp else written


def entries(
    config: TransformerConfig, *, norms: Mapping[str, str] | None = None, head: str = "lm_head"
) -> list[Entry]:
    """Every tensor; `norms` maps the names of a layer's norms to ours."""
    norms = norms or {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}
    tied_name = (f"{head}.weight",) if config.tied_head else ()
    width, vocabulary = config.d_model, config.vocab_size
    embedding = plain(
        "model.embed_tokens.weight", "embed/embedding", vocabulary, width, aliases=tied_name
    )
    found = [embedding]
    for index in range(config.num_layers):
        found += _layer(config, index, norms)
    found += norm("model.norm", "final_norm", width, bias=False)
    found = prefix_optional(found, "model.")
    if not config.tied_head:
        found.append(transposed(f"{head}.weight", "lm_head/kernel", vocabulary, width))
    return found


def _layer(config: TransformerConfig, index: int, norms: Mapping[str, str]) -> list[Entry]:
    theirs, width = f"model.layers.{index}", config.d_model
    head_dim, kv_heads = config.head_dim or 0, config.num_kv_heads or 0
    queries, keys = config.num_heads * head_dim, kv_heads * head_dim
    found = []
    for name, d_in, d_out, bias in (
        ("self_attn.q_proj", width, queries, config.qkv_bias),
        ("self_attn.k_proj", width, keys, config.qkv_bias),
        ("self_attn.v_proj", width, keys, config.qkv_bias),
        ("self_attn.o_proj", queries, width, config.o_bias),
        ("mlp.gate_proj", width, config.d_ff, config.mlp_bias),
        ("mlp.up_proj", width, config.d_ff, config.mlp_bias),
        ("mlp.down_proj", config.d_ff, width, config.mlp_bias),
    ):
        ours = f"blocks/{name.partition('.')[2]}"
        found += linear(f"{theirs}.{name}", ours, d_in=d_in, d_out=d_out, bias=bias, layer=index)
    for name, ours in norms.items():
        found += norm(f"{theirs}.{name}", f"blocks/{ours}", width, bias=False, layer=index)
    if config.qk_norm != "none":
        sizes = (head_dim, head_dim) if config.qk_norm == "head" else (queries, keys)
        for ours, size in zip(("q_norm", "k_norm"), sizes, strict=True):
            name = f"{theirs}.self_attn.{ours}"
            found += norm(name, f"blocks/{ours}", size, bias=False, layer=index)
    return found


# ------------------------------------------------------------------ one by one


def _read_llama(fields: Fields) -> dict[str, Any]:
    return {**core(fields), **biases(fields, mlp=True)}


def _write_llama(config: TransformerConfig) -> dict[str, Any]:
    return {**written_core(config), **written_biases(config, mlp=True)}


def _read_mistral(fields: Fields) -> dict[str, Any]:
    values = core(fields, kv_heads=8)
    # Absent is the class's 4096, null is off.
    window = fields.size("sliding_window", fields.unset("sliding_window", absent=4096))
    fields.only("layer_types", [SLIDING if window else "full_attention"] * values["num_layers"])
    values["layer_windows"] = per_layer([window or 0] * values["num_layers"], 0)
    return values


def _write_mistral(config: TransformerConfig) -> dict[str, Any]:
    window, types = sliding(config)
    if len(set(types)) > 1:
        raise CheckpointError("layer_windows: Mistral has the same window in every layer")
    return {**written_core(config), "sliding_window": window}


def _qwen_windows(fields: Fields, count: int) -> tuple[int, ...] | None:
    on = fields.flag("use_sliding_window", False)
    window = fields.size("sliding_window", fields.unset("sliding_window", absent=4096))
    first = fields.take("max_window_layers", 28)
    if type(first) is not int or first < 0:
        raise fields.error("max_window_layers", "must be a whole number from 0 up", first)
    types = fields.layers("layer_types", ("full_attention", SLIDING), count)
    if types is None:
        use = on and window is not None
        types = [SLIDING if use and i >= first else "full_attention" for i in range(count)]
    return windows(fields, types, window if on else None)


def _write_qwen_windows(config: TransformerConfig) -> dict[str, Any]:
    window, types = sliding(config)
    first = types.index(SLIDING) if window else config.num_layers
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": first,
        "layer_types": types,
    }


def _read_qwen2(fields: Fields) -> dict[str, Any]:
    values = core(fields, kv_heads=32)
    return {
        **values,
        "qkv_bias": True,
        "layer_windows": _qwen_windows(fields, values["num_layers"]),
    }


def _write_qwen2(config: TransformerConfig) -> dict[str, Any]:
    return {**written_core(config), **_write_qwen_windows(config)}


def _read_qwen3(fields: Fields) -> dict[str, Any]:
    values = core(fields, head_dim=128, kv_heads=32)
    return {
        **values,
        **biases(fields),
        "qk_norm": "head",
        "layer_windows": _qwen_windows(fields, values["num_layers"]),
    }


def _write_qwen3(config: TransformerConfig) -> dict[str, Any]:
    return {**written_core(config), **written_biases(config), **_write_qwen_windows(config)}


def _read_olmo2(fields: Fields) -> dict[str, Any]:
    values = core(fields, norm_epsilon=1e-5)
    return {**values, **biases(fields), "qk_norm": "full", "norm_placement": "post"}


def _write_olmo2(config: TransformerConfig) -> dict[str, Any]:
    return {**written_core(config), **written_biases(config)}


def _read_smollm3(fields: Fields) -> dict[str, Any]:
    values = core(fields, default_theta=2_000_000.0, tied=True, kv_heads=4)
    count = values["num_layers"]
    interval = fields.size("no_rope_layer_interval", 4)
    rotary = fields.take("no_rope_layers", None)
    if rotary is None:
        rotary = [int((index + 1) % interval != 0) for index in range(count)]
    listed = isinstance(rotary, list) and len(rotary) >= count
    if not listed or any(one not in (0, 1) for one in rotary):
        raise fields.error(
            "no_rope_layers", f"must list a 0 or 1 for each of {count} layers", rotary
        )
    rotary = rotary[:count]
    on, window = fields.flag("use_sliding_window", False), fields.size("sliding_window", None)
    types = fields.layers("layer_types", ("full_attention", SLIDING), count)
    if types is None:
        use = on and window is not None
        types = [SLIDING if use and not one else "full_attention" for one in rotary]
    return {
        **values,
        **biases(fields, mlp=True),
        "layer_rope": per_layer(("main" if one else "none" for one in rotary), "main"),
        "layer_windows": windows(fields, types, window if on else None),
    }


def _write_smollm3(config: TransformerConfig) -> dict[str, Any]:
    window, types = sliding(config)
    ropes = config.layer_rope or ("main",) * config.num_layers
    return {
        **written_core(config),
        **written_biases(config, mlp=True),
        "no_rope_layers": [int(kind != "none") for kind in ropes],
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": types,
    }


_POST_NORMS = {
    "post_attention_layernorm": "attn_post_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}


def family(
    name: str,
    prefix: str,
    read: Callable[[Fields], dict[str, Any]],
    write: Callable[[TransformerConfig], dict[str, Any]],
    *,
    norms: Mapping[str, str] | None = None,
    classifier: str | None = None,
    harmless: tuple[str, ...] = (),
) -> Family:
    """A relative of Llama; `prefix` is that of its classes."""

    def read_config(
        values: Mapping[str, Any], *, ignore: tuple[str, ...] = (), where: str = "config.json"
    ) -> TransformerConfig:
        fields = Fields(values, where=where)
        flags = read(fields)
        fields.finish(harmless, ignore=ignore)
        return config_from(fields, flags)

    return Family(
        name=name,
        causal=f"{prefix}ForCausalLM",
        classifier=classifier or f"{prefix}ForSequenceClassification",
        bases=(f"{prefix}Model",),
        read_config=read_config,
        write_config=write,
        entries=functools.partial(entries, norms=norms),
        ignored=IGNORED,
    )


LLAMA = family("llama", "Llama", _read_llama, _write_llama)
MISTRAL = family("mistral", "Mistral", _read_mistral, _write_mistral)
# Fields that these classes never read: Hugging Face's own releases carry them along.
QWEN2 = family("qwen2", "Qwen2", _read_qwen2, _write_qwen2, harmless=("attention_bias",))
QWEN3 = family("qwen3", "Qwen3", _read_qwen3, _write_qwen3)
OLMO2 = family("olmo2", "Olmo2", _read_olmo2, _write_olmo2, norms=_POST_NORMS)
SMOLLM3 = family(
    "smollm3", "SmolLM3", _read_smollm3, _write_smollm3, harmless=("max_window_layers",)
)
