"""Gemma 2 and Gemma 3 (text): sandwich norms with 1 + weight, scaled embeddings, local layers.

What it does not do: Gemma 3's image tower; a multimodal folder has another model_type and is
refused.
"""

from typing import Any

from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import rope_fields
from jaxrlhf.hf.families import llama
from jaxrlhf.hf.families.base import (
    FULL,
    GATED_MLP,
    SLIDING,
    per_layer,
    reverse,
    sliding,
    windows,
)
from jaxrlhf.hf.fields import Fields
from jaxrlhf.models.config import TransformerConfig

_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "attn_post_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}
# `hidden_act` is what Gemma 1 read; these two read `hidden_activation`.
_HARMLESS = ("hidden_act", "sliding_window_pattern", "_sliding_window_pattern")


def _core(fields: Fields) -> dict[str, Any]:
    """All but rotary positions and windows."""
    heads, width = fields.size("num_attention_heads"), fields.size("hidden_size")
    scalar = fields.number("query_pre_attn_scalar", 256)
    return {
        "vocab_size": fields.size("vocab_size"),
        "num_layers": fields.size("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": fields.size("num_key_value_heads", 4),
        "head_dim": fields.size("head_dim", 256),
        "d_model": width,
        "d_ff": fields.size("intermediate_size"),
        "max_positions": fields.size("max_position_embeddings"),
        "positions": "rope",
        "norm": "rms",
        "norm_epsilon": fields.number("rms_norm_eps", 1e-6),
        "norm_offset": 1.0,
        "norm_placement": "sandwich",
        "mlp": fields.choice("hidden_activation", "gelu_pytorch_tanh", GATED_MLP),
        "tied_head": fields.flag("tie_word_embeddings", True),
        "attention_scale": float(scalar) ** -0.5,
        "embed_scale": float(width) ** 0.5,
        "initializer_range": fields.number("initializer_range", 0.02),
        **llama.biases(fields),
    }


def _cap(fields: Fields, name: str, default: float | None) -> float | None:
    """A soft cap: null is off, absent is the class's default."""
    cap = fields.number(name, fields.unset(name, absent=default))
    return None if cap is None else float(cap)


def _types(fields: Fields, count: int, pattern: int) -> list[str]:
    types = fields.layers("layer_types", (FULL, SLIDING), count)
    if types is None:
        types = [SLIDING if (index + 1) % pattern else FULL for index in range(count)]
    return types


def _read_gemma2(fields: Fields) -> dict[str, Any]:
    values = _core(fields)
    rope = rope_fields.read(fields, max_positions=values["max_positions"])
    types = _types(fields, values["num_layers"], 2)
    window = fields.size("sliding_window", fields.unset("sliding_window", absent=4096))
    return {
        **values,
        **rope._asdict(),
        "attention_soft_cap": _cap(fields, "attn_logit_softcapping", 50.0),
        "final_soft_cap": _cap(fields, "final_logit_softcapping", 30.0),
        "layer_windows": windows(fields, types, window),
    }


def _read_gemma3(fields: Fields) -> dict[str, Any]:
    values = _core(fields)
    main, local = _gemma3_ropes(fields, values["max_positions"])
    pattern = fields.size("sliding_window_pattern", fields.size("_sliding_window_pattern", 6))
    types = _types(fields, values["num_layers"], pattern)
    window = fields.size("sliding_window", fields.unset("sliding_window", absent=4096))
    kinds = per_layer(("local" if kind == SLIDING else "main" for kind in types), "main")
    return {
        **values,
        **main._asdict(),
        "qk_norm": "head",
        "local_rope_theta": local.rope_theta if kinds else None,
        "layer_rope": kinds,
        "attention_soft_cap": _cap(fields, "attn_logit_softcapping", None),
        "final_soft_cap": _cap(fields, "final_logit_softcapping", None),
        "layer_windows": windows(fields, types, window),
    }


def _gemma3_ropes(fields: Fields, max_positions: int) -> tuple[rope_fields.Rope, rope_fields.Rope]:
    """The rotary positions of full layers (scaled, perhaps) and of sliding ones (never)."""
    nested = fields.take("rope_parameters", {})
    if not isinstance(nested, dict) or set(nested) - {FULL, SLIDING}:
        raise fields.error("rope_parameters", f"must have the fields {FULL} and {SLIDING}", nested)
    old = fields.take("rope_scaling", {})
    ropes = []
    for kind, legacy, theta in (
        (FULL, "rope_theta", 1_000_000.0),
        (SLIDING, "rope_local_base_freq", 10_000.0),
    ):
        inner = nested.get(kind) or {}
        if not isinstance(inner, dict) or not isinstance(old, dict):
            raise fields.error("rope_parameters", "must hold objects", nested)
        values = rope_fields.merged(fields, inner, old if kind == FULL else {})
        outside = fields.take(legacy, None)
        if outside is not None and values.setdefault("rope_theta", outside) != outside:
            raise fields.error(legacy, f"contradicts rope_parameters.{kind}", outside)
        values.setdefault("rope_theta", theta)
        where = f"rope_parameters.{kind}"
        ropes.append(rope_fields.parse(fields, where, values, max_positions=max_positions))
    main, local = ropes
    if local.rope_scaling is not None or (main.rope_fraction, local.rope_fraction) != (1.0, 1.0):
        raise fields.error(
            f"rope_parameters.{SLIDING}", "only the full layers' positions may be scaled"
        )
    return main, local


def _written(config: TransformerConfig) -> dict[str, Any]:
    scale = config.attention_scale or (config.head_dim or 1) ** -0.5
    scalar = round(scale**-2)
    if float(scalar) ** -0.5 != scale:
        raise CheckpointError(f"attention_scale={scale}: Gemma's is 1 / sqrt(a whole number)")
    window, types = sliding(config)
    values = llama.written_core(config)
    activation = reverse(GATED_MLP, config.mlp)
    return {
        **{name: value for name, value in values.items() if name != "hidden_act"},
        **llama.written_biases(config),
        "hidden_activation": activation,
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": config.attention_soft_cap,
        "final_logit_softcapping": config.final_soft_cap,
        # Never null: transformers wants a number also where no layer slides.
        "sliding_window": window or 4096,
        "layer_types": types,
    }


def _write_gemma3(config: TransformerConfig) -> dict[str, Any]:
    values = _written(config)
    local = config.local_rope_theta or 10_000.0
    main = rope_fields.Rope(config.rope_theta, 1.0, config.rope_scaling)
    values["rope_parameters"] = {
        FULL: rope_fields.flat(main),
        SLIDING: rope_fields.flat(rope_fields.Rope(local)),
    }
    return {**values, "rope_local_base_freq": local}


GEMMA2 = llama.family("gemma2", "Gemma2", _read_gemma2, _written, norms=_NORMS, harmless=_HARMLESS)
GEMMA3 = llama.family(
    "gemma3_text",
    "Gemma3",
    _read_gemma3,
    _write_gemma3,
    norms=_NORMS,
    classifier="Gemma3TextForSequenceClassification",
    harmless=_HARMLESS,
)._replace(bases=("Gemma3TextModel",))
