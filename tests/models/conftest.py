"""Tiny models of every family, built once a session; scales and biases are random too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.models import make_lm, transformer_config
from jaxrlhf.models.rope import RopeScaling

SIZES = dict(vocab_size=31, num_layers=2, num_heads=4, d_model=16, d_ff=24, max_positions=32)
VARIANTS = {
    "gpt2": ("gpt2", {}),
    "llama": ("llama", {}),
    "llama_gqa": ("llama", {"num_kv_heads": 2, "head_dim": 6, "rope_theta": 100.0}),
    "neox": (
        "gpt2",
        {
            "positions": "rope",
            "head_dim": 8,
            "rope_fraction": 0.5,
            "parallel_residual": True,
            "o_bias": False,
            "mlp": "gelu_exact",
            "tied_head": False,
        },
    ),
    "gemma": (
        "llama",
        {
            "num_layers": 3,
            "num_kv_heads": 1,
            "head_dim": 6,
            "rope_theta": 100.0,
            "rope_scaling": RopeScaling("linear", factor=3.0),
            "local_rope_theta": 7.0,
            "layer_rope": ("local", "main", "local"),
            "layer_windows": (3, 0, 3),
            "norm_offset": 1.0,
            "norm_placement": "sandwich",
            "qk_norm": "head",
            "mlp": "geglu",
            "attention_scale": 0.7,
            "attention_soft_cap": 1.5,
            "final_soft_cap": 2.0,
            "embed_scale": 4.0,
            "tied_head": True,
        },
    ),
    "olmo": (
        "llama",
        {
            "num_layers": 3,
            "num_kv_heads": 2,
            "rope_theta": 50.0,
            "layer_rope": ("main", "none", "main"),
            "layer_windows": (0, 4, 6),
            "norm_placement": "post",
            "qk_norm": "full",
            "qkv_bias": True,
            "mlp": "silu",
        },
    ),
}


def random_params(lm, seed):
    """Every leaf N(0, 0.3²), scales around 1: a fresh model is nearly linear and hides mistakes."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    one = 1 - lm.config.norm_offset

    def draw(path, leaf):
        mean = one if path[-1].key == "scale" else 0.0
        return jnp.array(rng.normal(mean, 0.3, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def compiled(lm):
    """The same model with its forward functions compiled: operation by operation is much slower."""
    return lm._replace(
        hidden=jax.jit(lm.hidden, static_argnames=("final_norm", "last")),
        prefill=jax.jit(lm.prefill, static_argnames="cache_length"),
        decode=jax.jit(lm.decode),
    )


@pytest.fixture(scope="session")
def models():
    built = {}
    for seed, (name, (family, flags)) in enumerate(VARIANTS.items()):
        lm = make_lm(transformer_config(family, **{**SIZES, **flags}))
        built[name] = (compiled(lm), random_params(lm, seed))
    return built


@pytest.fixture(params=list(VARIANTS))
def model(request, models):
    return models[request.param]


@pytest.fixture(scope="session")
def tokens():
    return jax.random.randint(jax.random.key(9), (3, 10), 0, SIZES["vocab_size"])


@pytest.fixture(scope="session")
def full(tokens):
    return jnp.ones(tokens.shape, bool)
