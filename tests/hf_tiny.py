"""Tiny models of every family: config.json as a plain dict, and parameters that all differ."""

import jax
import numpy as np

from jaxrlhf.hf.families import FAMILIES
from jaxrlhf.models import make_lm

SIZES = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
NEOX = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
NEOX |= {"hidden_size": 32}  # a quarter of each head is turned: two columns of eight
GPT2 = {"vocab_size": 24, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32}

# As short as the files of each family can be; what is left out has its class's default.
CONFIGS = {
    "gpt2": GPT2,
    "gpt_neox": NEOX,
    "llama": SIZES,
    "mistral": {**SIZES, "sliding_window": 5},
    "qwen2": {**SIZES, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {**SIZES, "head_dim": 8},
    "gemma2": {**SIZES, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 6},
    "gemma3_text": {**SIZES, "head_dim": 8, "sliding_window": 5, "sliding_window_pattern": 2},
    "olmo2": SIZES,
    "smollm3": {**SIZES, "no_rope_layer_interval": 2},
}


def config_of(family, **fields):
    """The TransformerConfig of a tiny model, with other fields of config.json."""
    return FAMILIES[family].read_config({**CONFIGS[family], **fields})


def params_of(config, seed=0):
    """Random parameters; norms and biases too, or a mistake in them would not show."""
    abstract = jax.eval_shape(make_lm(config).init, jax.random.key(0))
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(random.normal(0.1, 0.3, leaf.shape), leaf.dtype), abstract
    )


def equal(a, b):
    """Whether two trees hold the same names, dtypes and numbers."""

    def same(x, y):
        return x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y))

    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(same, a, b))
