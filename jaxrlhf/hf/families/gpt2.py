"""GPT-2: learned positions, layer norms, fused q/k/v in a Conv1D (kernels stand `[in, out]`)."""

from collections.abc import Mapping
from typing import Any

from jaxrlhf.hf.entries import Entry, conv1d, norm, plain, prefix_optional, transposed
from jaxrlhf.hf.families.base import PLAIN_MLP, Family, config_from, reverse
from jaxrlhf.hf.fields import Fields
from jaxrlhf.models.config import TransformerConfig

# n_ctx was n_positions' twin; the summary head and the double-heads model are not ours;
# reorder_and_upcast_attn changes the order of operations in half precision alone.
_HARMLESS = (
    *("n_ctx", "reorder_and_upcast_attn", "summary_type", "summary_use_proj"),
    *("summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
)


def read_config(
    values: Mapping[str, Any], *, ignore: tuple[str, ...] = (), where: str = "config.json"
) -> TransformerConfig:
    fields = Fields(values, where=where)
    width = fields.size("n_embd")
    fields.only("scale_attn_weights", True)
    fields.only("scale_attn_by_inverse_layer_idx", False)
    flags = {
        "vocab_size": fields.size("vocab_size"),
        "num_layers": fields.size("n_layer"),
        "num_heads": fields.size("n_head"),
        "d_model": width,
        "d_ff": fields.size("n_inner", 4 * width),
        "max_positions": fields.size("n_positions"),
        "positions": "learned",
        "norm": "layer",
        "norm_epsilon": fields.number("layer_norm_epsilon", 1e-5),
        "mlp": fields.choice("activation_function", "gelu_new", PLAIN_MLP),
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "tied_head": fields.flag("tie_word_embeddings", True),
        "initializer_range": fields.number("initializer_range", 0.02),
    }
    fields.finish(_HARMLESS, ignore=ignore)
    return config_from(fields, flags)


def write_config(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_inner": config.d_ff,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": reverse(PLAIN_MLP, config.mlp),
        "tie_word_embeddings": config.tied_head,
        "initializer_range": config.initializer_range,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    }


def entries(config: TransformerConfig) -> list[Entry]:
    width, hidden, vocabulary = config.d_model, config.d_ff, config.vocab_size
    tied_name = ("lm_head.weight",) if config.tied_head else ()
    found = [
        plain("transformer.wte.weight", "embed/embedding", vocabulary, width, aliases=tied_name),
        plain("transformer.wpe.weight", "pos_embed/embedding", config.max_positions, width),
    ]
    for i in range(config.num_layers):
        theirs = f"transformer.h.{i}"
        qkv = [f"blocks/{name}_proj" for name in "qkv"]
        found += norm(f"{theirs}.ln_1", "blocks/attn_norm", width, bias=True, layer=i)
        found += conv1d(f"{theirs}.attn.c_attn", qkv, d_in=width, d_out=width, layer=i)
        found += conv1d(
            f"{theirs}.attn.c_proj", ["blocks/o_proj"], d_in=width, d_out=width, layer=i
        )
        found += norm(f"{theirs}.ln_2", "blocks/mlp_norm", width, bias=True, layer=i)
        found += conv1d(f"{theirs}.mlp.c_fc", ["blocks/up_proj"], d_in=width, d_out=hidden, layer=i)
        found += conv1d(
            f"{theirs}.mlp.c_proj", ["blocks/down_proj"], d_in=hidden, d_out=width, layer=i
        )
    found += norm("transformer.ln_f", "final_norm", width, bias=True)
    found = prefix_optional(found, "transformer.")
    if not config.tied_head:
        found.append(transposed("lm_head.weight", "lm_head/kernel", vocabulary, width))
    return found


GPT2 = Family(
    name="gpt2",
    causal="GPT2LMHeadModel",
    classifier="GPT2ForSequenceClassification",
    bases=("GPT2Model", "GPT2ForCausalLM"),
    read_config=read_config,
    write_config=write_config,
    entries=entries,
    ignored=(r"(.*\.)?attn\.(bias|masked_bias)",),  # the causal mask, which old releases saved
)
