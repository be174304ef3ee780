"""GPT-NeoX (Pythia): rotary positions on part of each head, parallel residual, q/k/v fused by head.

Their fused rows are (head, q|k|v, head_dim); a reshape tells them apart.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrlhf.hf import rope_fields
from jaxrlhf.hf.entries import Entry, linear, norm, plain, prefix_optional, transposed
from jaxrlhf.hf.families.base import PLAIN_MLP, Family, config_from, reverse
from jaxrlhf.hf.fields import Fields
from jaxrlhf.models.config import TransformerConfig

_LEGACY = rope_fields.Legacy(theta="rotary_emb_base", fraction="rotary_pct")
# Never read by a causal model: nothing in it is a decoder of another's states.
_HARMLESS = ("is_decoder", "rope_theta", "partial_rotary_factor")


def read_config(
    values: Mapping[str, Any], *, ignore: tuple[str, ...] = (), where: str = "config.json"
) -> TransformerConfig:
    fields = Fields(values, where=where)
    positions = fields.size("max_position_embeddings")
    rope = rope_fields.read(fields, max_positions=positions, default_fraction=0.25, legacy=_LEGACY)
    attention = fields.flag("attention_bias", True)
    flags = {
        "vocab_size": fields.size("vocab_size"),
        "num_layers": fields.size("num_hidden_layers"),
        "num_heads": fields.size("num_attention_heads"),
        "d_model": fields.size("hidden_size"),
        "d_ff": fields.size("intermediate_size"),
        "max_positions": positions,
        "positions": "rope",
        **rope._asdict(),
        "norm": "layer",
        "norm_epsilon": fields.number("layer_norm_eps", 1e-5),
        "parallel_residual": fields.flag("use_parallel_residual", True),
        "mlp": fields.choice("hidden_act", "gelu", PLAIN_MLP),
        "qkv_bias": attention,
        "o_bias": attention,
        "mlp_bias": True,
        "tied_head": fields.flag("tie_word_embeddings", False),
        "initializer_range": fields.number("initializer_range", 0.02),
    }
    fields.finish(_HARMLESS, ignore=ignore)
    return config_from(fields, flags)


def write_config(config: TransformerConfig) -> dict[str, Any]:
    rope = rope_fields.Rope(config.rope_theta, config.rope_fraction, config.rope_scaling)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": reverse(PLAIN_MLP, config.mlp),
        "use_parallel_residual": config.parallel_residual,
        "attention_bias": config.qkv_bias,
        "tie_word_embeddings": config.tied_head,
        "initializer_range": config.initializer_range,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        # The class's default is a quarter: always said.
        **rope_fields.write(rope, legacy=_LEGACY, always_fraction=True),
    }


def entries(config: TransformerConfig) -> list[Entry]:
    width, hidden, vocabulary = config.d_model, config.d_ff, config.vocab_size
    # transformers 5 calls the head lm_head in memory, and writes embed_out as ever.
    head = ("embed_out.weight", "lm_head.weight")
    found = [
        plain(
            "gpt_neox.embed_in.weight",
            "embed/embedding",
            vocabulary,
            width,
            aliases=head if config.tied_head else (),
        )
    ]
    for i in range(config.num_layers):
        theirs = f"gpt_neox.layers.{i}"
        found += norm(f"{theirs}.input_layernorm", "blocks/attn_norm", width, bias=True, layer=i)
        found += _fused(config, f"{theirs}.attention.query_key_value", i)
        for name, ours, d_in, d_out, bias in (
            ("attention.dense", "o_proj", width, width, config.o_bias),
            ("mlp.dense_h_to_4h", "up_proj", width, hidden, True),
            ("mlp.dense_4h_to_h", "down_proj", hidden, width, True),
        ):
            found += linear(
                f"{theirs}.{name}", f"blocks/{ours}", d_in=d_in, d_out=d_out, bias=bias, layer=i
            )
        name = f"{theirs}.post_attention_layernorm"
        found += norm(name, "blocks/mlp_norm", width, bias=True, layer=i)
    found += norm("gpt_neox.final_layer_norm", "final_norm", width, bias=True)
    found = prefix_optional(found, "gpt_neox.")
    if not config.tied_head:
        found.append(transposed(head[0], "lm_head/kernel", vocabulary, width, aliases=head[1:]))
    return found


def _fused(config: TransformerConfig, name: str, layer: int) -> list[Entry]:
    heads, width = config.num_heads, config.d_model
    ours = [f"blocks/{part}_proj" for part in "qkv"]

    def split(theirs):
        parts = theirs.reshape(heads, 3, width // heads, *theirs.shape[1:])
        return tuple(parts[:, i].reshape(width, *theirs.shape[1:]).T for i in range(3))

    def join(*parts):
        rows = [part.T.reshape(heads, width // heads, *part.shape[:-1]) for part in parts]
        return np.stack(rows, axis=1).reshape(3 * width, *parts[0].shape[:-1])

    leaves: list[tuple[str, str, tuple[int, ...]]] = [("weight", "kernel", (3 * width, width))]
    if config.qkv_bias:
        leaves.append(("bias", "bias", (3 * width,)))
    return [
        Entry(f"{name}.{leaf}", tuple(f"{o}/{mine}" for o in ours), shape, layer, split, join)
        for leaf, mine, shape in leaves
    ]


NEOX = Family(
    name="gpt_neox",
    causal="GPTNeoXForCausalLM",
    classifier="GPTNeoXForSequenceClassification",
    bases=("GPTNeoXModel",),
    read_config=read_config,
    write_config=write_config,
    entries=entries,
    ignored=(r"(.*\.)?attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
)
