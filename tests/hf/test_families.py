"""config.json of every family: both layouts read alike, nothing overlooked, written and read back.

The configs of released models are typed in from their folders on the hub, without the fields that
only name tokens, files and versions.
"""

import dataclasses
import json

import pytest
import transformers
from hf_tiny import CONFIGS, config_of

from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf.families import FAMILIES, family_of, written_config
from jaxrlhf.models import TransformerConfig, transformer_config
from jaxrlhf.models.rope import RopeScaling

CLASSES = {
    "gpt2": transformers.GPT2Config,
    "gpt_neox": transformers.GPTNeoXConfig,
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "gemma2": transformers.Gemma2Config,
    "gemma3_text": transformers.Gemma3TextConfig,
    "olmo2": transformers.Olmo2Config,
    "smollm3": transformers.SmolLM3Config,
}


def theirs(family, **fields):
    """config.json as transformers 5 writes it, with every default spelled out."""
    made = CLASSES[family](**CONFIGS[family] | fields)
    return json.loads(made.to_json_string(use_diff=False))


def read(family, values):
    return FAMILIES[family].read_config(values)


def sizes_of(family):
    return {name: value for name, value in CONFIGS[family].items() if "window" not in name}


# ------------------------------------------------------------------ reading


def test_every_family_is_tested():
    assert set(CONFIGS) == set(CLASSES) == set(FAMILIES)


def test_what_transformers_writes_in_full_reads_like_what_it_leaves_out(family):
    assert read(family.name, theirs(family.name)) == config_of(family.name)


def test_our_defaults_are_those_of_the_classes(family):
    sizes = sizes_of(family.name)
    full = json.loads(CLASSES[family.name](**sizes).to_json_string(use_diff=False))
    assert read(family.name, full) == read(family.name, sizes)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"gpt2", "gpt_neox"}))
def test_absent_and_null_kv_heads_are_what_the_classes_make_of_them(name):
    sizes = {**sizes_of(name), "num_attention_heads": 32, "hidden_size": 64}
    del sizes["num_key_value_heads"]
    made = CLASSES[name](**sizes)
    assert read(name, sizes).num_kv_heads == made.num_key_value_heads
    if name not in ("mistral", "gemma2", "gemma3_text"):  # those classes refuse null
        null = sizes | {"num_key_value_heads": None}
        assert read(name, null).num_kv_heads == CLASSES[name](**null).num_key_value_heads == 32


RELEASED = {
    "gpt2": (
        {
            "activation_function": "gelu_new",
            "architectures": ["GPT2LMHeadModel"],
            "attn_pdrop": 0.1,
            "embd_pdrop": 0.1,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05,
            "model_type": "gpt2",
            "n_ctx": 1024,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 1024,
            "resid_pdrop": 0.1,
            "summary_activation": None,
            "summary_first_dropout": 0.1,
            "summary_proj_to_labels": True,
            "summary_type": "cls_index",
            "summary_use_proj": True,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
            "vocab_size": 50257,
        },
        TransformerConfig(
            **{"vocab_size": 50257, "num_layers": 12, "num_heads": 12, "d_model": 768},
            **{"d_ff": 3072, "max_positions": 1024, "positions": "learned", "norm": "layer"},
            **{"mlp": "gelu", "qkv_bias": True, "o_bias": True, "mlp_bias": True},
            tied_head=True,
        ),
    ),
    "gpt_neox": (  # pythia-70m
        {
            "hidden_act": "gelu",
            "hidden_size": 512,
            "initializer_range": 0.02,
            "intermediate_size": 2048,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 2048,
            "model_type": "gpt_neox",
            "num_attention_heads": 8,
            "num_hidden_layers": 6,
            "rotary_emb_base": 10000,
            "rotary_pct": 0.25,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "use_cache": True,
            "use_parallel_residual": True,
            "vocab_size": 50304,
        },
        TransformerConfig(
            **{"vocab_size": 50304, "num_layers": 6, "num_heads": 8, "d_model": 512},
            **{"d_ff": 2048, "max_positions": 2048, "norm": "layer", "rope_fraction": 0.25},
            **{"mlp": "gelu_exact", "qkv_bias": True, "o_bias": True, "mlp_bias": True},
            parallel_residual=True,
        ),
    ),
    "llama": (  # Llama-3.1-8B
        {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "eos_token_id": [128001, 128008, 128009],
            "hidden_act": "silu",
            "hidden_size": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 14336,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": 128256,
        },
        TransformerConfig(
            **{"vocab_size": 128256, "num_layers": 32, "num_heads": 32, "num_kv_heads": 8},
            **{"d_model": 4096, "d_ff": 14336, "max_positions": 131072, "rope_theta": 500000.0},
            rope_scaling=RopeScaling(
                kind="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8192,
            ),
        ),
    ),
    "qwen2": (  # Qwen2.5-0.5B; its window is switched off
        {
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 24,
            "model_type": "qwen2",
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "use_mrope": False,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        TransformerConfig(
            **{"vocab_size": 151936, "num_layers": 24, "num_heads": 14, "num_kv_heads": 2},
            **{"d_model": 896, "d_ff": 4864, "max_positions": 32768, "rope_theta": 1e6},
            **{"norm_epsilon": 1e-6, "qkv_bias": True, "tied_head": True},
        ),
    ),
    "gemma3_text": (  # gemma-3-1b
        {
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "cache_implementation": "hybrid",
            "final_logit_softcapping": None,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "max_position_embeddings": 32768,
            "model_type": "gemma3_text",
            "num_attention_heads": 4,
            "num_hidden_layers": 26,
            "num_key_value_heads": 1,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 10000,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
            "vocab_size": 262144,
        },
        TransformerConfig(
            **{"vocab_size": 262144, "num_layers": 26, "num_heads": 4, "num_kv_heads": 1},
            **{"d_model": 1152, "d_ff": 6912, "head_dim": 256, "max_positions": 32768},
            **{"rope_theta": 1e6, "local_rope_theta": 1e4, "norm_epsilon": 1e-6},
            # Layers 6, 12, 18 and 24 of 26 see everything.
            layer_rope=(*("local",) * 5, "main") * 4 + ("local",) * 2,
            layer_windows=(*(512,) * 5, 0) * 4 + (512,) * 2,
            **{"norm_offset": 1.0, "norm_placement": "sandwich", "qk_norm": "head"},
            # 256 ** -0.5 = 1 / 16; sqrt(1152) = 33.94.
            **{"mlp": "geglu", "attention_scale": 0.0625, "embed_scale": 1152**0.5},
            tied_head=True,
        ),
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_in_the_layout_of_transformers_4(name):
    values, config = RELEASED[name]
    assert read(name, values) == config


def test_windows_by_layer():
    # Qwen: layers from max_window_layers on. Mistral: all. Gemma 2: every other, from the first.
    # Gemma 3: all but every pattern-th. SmolLM3: those without positions.
    assert config_of("qwen2").layer_windows == (0, 5, 5)
    assert config_of("mistral").layer_windows == (5, 5, 5)
    assert config_of("mistral", sliding_window=None).layer_windows is None
    assert config_of("gemma2").layer_windows == (5, 0, 5)
    assert config_of("gemma3_text").layer_windows == (5, 0, 5)
    assert config_of("gemma3_text").layer_rope == ("local", "main", "local")
    on = {"use_sliding_window": True, "sliding_window": 5}
    assert config_of("smollm3", **on).layer_windows == (0, 5, 0)
    assert config_of("smollm3").layer_rope == ("main", "none", "main")
    types = ["full_attention", "sliding_attention", "full_attention"]
    assert config_of("qwen2", layer_types=types).layer_windows == (0, 5, 0)
    assert config_of("gemma2", layer_types=types).layer_windows == (0, 5, 0)


SCALINGS = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "beta_fast": 16},
    {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7, "mscale_all_dim": 0.5, "truncate": False},
    {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.5],
        "long_factor": [2.0, 3.0],
        "original_max_position_embeddings": 16,
        "attention_factor": 1.1,
    },
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["rope_type"])
def test_rope_scaling_in_both_layouts(scaling):
    old = config_of("llama", rope_theta=5e5, rope_scaling=scaling)
    oldest = {("type" if k == "rope_type" else k): v for k, v in scaling.items()}
    new = {"rope_theta": 5e5, **scaling}
    assert old.rope_scaling is not None and old.rope_scaling.kind == scaling["rope_type"]
    assert config_of("llama", rope_parameters=new) == old
    assert config_of("llama", rope_theta=5e5, rope_scaling=oldest) == old
    assert config_of("llama", rope_theta=5e5, rope_scaling=scaling, rope_parameters=new) == old
    for name, value in scaling.items():
        if name != "rope_type":
            value = tuple(value) if isinstance(value, list) else value
            assert getattr(old.rope_scaling, name) == value
    assert read("llama", dict(written_config(FAMILIES["llama"], old))) == old


def test_rope_factor_that_is_left_out_is_the_ratio_of_the_lengths():
    # 32 positions, trained on 8: 4.
    scaling = {"rope_type": "yarn", "original_max_position_embeddings": 8}
    found = config_of("llama", rope_scaling=scaling).rope_scaling
    assert found is not None and found.factor == 4.0


def test_gemma_3_scales_its_full_layers_only():
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = config_of("gemma3_text", rope_theta=1e6, rope_scaling=scaling)
    nested = {
        "full_attention": {"rope_theta": 1e6, **scaling},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert config_of("gemma3_text", rope_parameters=nested) == old
    assert old.rope_scaling == RopeScaling(kind="linear", factor=8.0)
    nested["sliding_attention"] = {"rope_theta": 1e4, **scaling}
    with pytest.raises(CheckpointError, match="only the full layers"):
        config_of("gemma3_text", rope_parameters=nested)


# ------------------------------------------------------------------ refusing

REFUSED = [
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = false: only true"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "only false can be computed"),
    ("gpt2", {"activation_function": "gelu_neww"}, "did you mean 'gelu_new'"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention = true: only false"),
    ("gpt2", {"n_head": 5}, "d_model=16 must be a multiple of num_heads=5"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu': only silu"),
    ("llama", {"is_causal": False}, "is_causal = false: only true"),
    ("llama", {"is_causal": 1}, "is_causal = 1: only true"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved"),
    ("llama", {"sliding_window": 7}, "sliding_window = 7. A field that is not understood"),
    ("llama", {"brand_new": False, "newer": 0}, "unknown: brand_new = false, newer = 0"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantised weights cannot be read"),
    ("llama", {"per_layer_config": {"0": {"num_attention_heads": 2}}}, "per_layer_config"),
    ("llama", {"num_key_value_heads": 3}, "num_kv_heads=3 must be a divisor"),
    ("llama", {"head_dim": 5}, "head_dim=5 must be even"),
    ("llama", {"rms_norm_eps": 0}, "rms_norm_eps = 0: must be a positive number"),
    ("llama", {"rms_norm_eps": float("nan")}, "must be a positive number"),
    ("llama", {"tie_word_embeddings": "no"}, "must be true or false"),
    ("llama", {"rope_parameters": []}, "rope_parameters = []: must be an object"),
    ("llama", {"rope_scaling": {"rope_type": "mrope"}}, "must be one of default, linear"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": -1}}, "positive number"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2, "alpha": 1}}, "alpha = 1: rope_t"),
    ("llama", {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4}}, "contradicts"),
    (
        "llama",
        {
            "rope_scaling": {"type": "linear", "factor": 2},
            "rope_parameters": {"rope_type": "default"},
        },
        "contradicts rope_parameters",
    ),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5: only 1 can"),
    (
        "gemma3_text",
        {
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0}},
        },
        "rope_scaling.factor: contradicts",
    ),
    ("gemma3_text", {"rope_parameters": {"rope_theta": 1e6}}, "full_attention and sliding"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types = "),
    ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "one value for each of 3 layers"),
    ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "layer_types[0] = 'chunked_attention'"),
    (
        "qwen3",
        {"layer_types": ["sliding_attention"] * 3, "sliding_window": 4},
        "sliding_window: is off",
    ),
    ("qwen2", {"use_mrope": True}, "use_mrope = true: only false"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = true"),
    ("gemma2", {"hidden_activation": "relu"}, "hidden_activation = 'relu'"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "0 or 1 for each of 3 layers"),
    ("smollm3", {"no_rope_layers": [1, 0, 2]}, "0 or 1 for each of 3 layers"),
]


@pytest.mark.parametrize(("name", "fields", "says"), REFUSED)
def test_what_cannot_be_computed_is_refused_by_name(name, fields, says):
    with pytest.raises(CheckpointError) as caught:
        config_of(name, **fields)
    assert says in str(caught.value) and "config.json" in str(caught.value)


BAD_SIZES = [0, -1, 1.5, "16", True, 2**40, [16], 1e300]


@pytest.mark.parametrize("value", BAD_SIZES)
def test_no_size_is_believed_unless_it_is_one(family, value):
    for name in set(sizes_of(family.name)) - {"query_pre_attn_scalar"}:
        with pytest.raises(CheckpointError, match=name):
            config_of(family.name, **{name: value})


def test_a_million_layers_are_refused_before_they_are_listed():
    with pytest.raises(CheckpointError, match="num_hidden_layers = 1000000"):
        config_of("llama", num_hidden_layers=10**6)


def test_every_size_must_be_there(family):
    optional = {"num_key_value_heads", "head_dim", "query_pre_attn_scalar"}
    for name in set(sizes_of(family.name)) - optional - {"no_rope_layer_interval"}:
        values = {k: v for k, v in CONFIGS[family.name].items() if k != name}
        with pytest.raises(CheckpointError, match=f"{name}: is missing"):
            read(family.name, values)


def test_null_means_not_set_also_in_an_unknown_field():
    assert config_of("llama", brand_new=None, rope_scaling=None) == config_of("llama")


def test_who_knows_better_may_ignore_a_field():
    values = {**CONFIGS["llama"], "brand_new": 3}
    assert FAMILIES["llama"].read_config(values, ignore=("brand_new",)) == config_of("llama")


def test_no_two_lists_claim_a_field():
    from jaxrlhf.hf.fields import FIXED, HARMLESS

    assert not HARMLESS & set(FIXED)
    # What every reader maps must not be waved through elsewhere.
    assert not HARMLESS & set(CONFIGS["gemma3_text"])


# ------------------------------------------------------------------ writing


def test_written_and_read_back(family):
    config = config_of(family.name)
    assert read(family.name, dict(written_config(family, config))) == config


def test_transformers_reads_what_we_write(family):
    made = CLASSES[family.name](**theirs(family.name))
    ours = CLASSES[family.name](**written_config(family, config_of(family.name)))
    # What differs is said out loud where theirs is a default: no dropout, and sizes.
    spelled = {"attn_pdrop", "embd_pdrop", "resid_pdrop", "n_inner", "head_dim"}
    spelled |= {"_sliding_window_pattern", "sliding_window_pattern", "no_rope_layer_interval"}
    spelled |= {"max_window_layers"} if family.name == "qwen3" else set()  # no layer has a window
    tokens = {"bos_token_id", "eos_token_id", "pad_token_id"}
    for name, value in made.to_dict().items():
        if name not in spelled | tokens:
            assert ours.to_dict().get(name) == value, name


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["rope_type"])
def test_transformers_reads_our_rope_scaling(scaling):
    config = config_of("llama", rope_theta=5e5, rope_scaling=scaling)
    ours = transformers.LlamaConfig(**written_config(FAMILIES["llama"], config)).rope_parameters
    assert ours["rope_theta"] == 5e5
    for name, value in scaling.items():
        assert ours[name] == value


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_finds_its_family(name):
    # Plain SmolLM3 or Mistral is a Llama; here each has what makes it itself.
    assert family_of(config_of(name)).name == name


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_models_trained_from_nothing_have_a_family(name):
    sizes = {"vocab_size": 8, "num_layers": 2, "num_heads": 2, "d_model": 8, "d_ff": 16}
    config = transformer_config(name, **sizes, max_positions=16, dtype="bfloat16", remat=True)
    assert family_of(config).name == name


INEXPRESSIBLE = [
    ("llama", {"qkv_bias": True}, "o_bias=False (it has True)"),
    ("llama", {"norm_placement": "post"}, "norm_placement='post'"),
    ("llama", {"layer_windows": (4, 4, 4)}, "layer_windows"),
    ("llama", {"mlp": "gelu"}, "mlp='gelu'"),
    ("mistral", {"layer_windows": (4, 0, 4)}, "same window in every layer"),
    ("qwen2", {"layer_windows": (4, 2, 0)}, "one size of window"),
    ("gemma2", {"attention_scale": 0.3}, "attention_scale=0.3"),
    ("gemma2", {"embed_scale": 2.0}, "embed_scale=2.0"),
    ("gpt2", {"num_kv_heads": 2}, "num_kv_heads=2"),
    ("gpt2", {"attention_soft_cap": 3.0}, "attention_soft_cap=3.0"),
]


@pytest.mark.parametrize(("name", "changes", "says"), INEXPRESSIBLE)
def test_what_a_family_cannot_say_is_not_written(name, changes, says):
    config = dataclasses.replace(config_of(name), **changes)
    with pytest.raises(CheckpointError) as caught:
        written_config(FAMILIES[name], config)
    assert says in str(caught.value)


def test_an_architecture_of_no_family():
    config = dataclasses.replace(config_of("gemma2"), embed_scale=2.0)
    with pytest.raises(CheckpointError, match="no family of Hugging Face has this"):
        family_of(config)
