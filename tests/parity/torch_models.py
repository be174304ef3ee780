"""Tiny random models of torch `transformers`, one a case, and what they compute.

Nothing here knows jaxrlhf. Every parameter is random, norms and biases too: what is 1 or 0 in a
fresh model hides mistakes. Windows, bases and caps are chosen so small that they matter within the
28 columns of a test.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

SIZES: dict[str, Any] = dict(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    tie_word_embeddings=False,
)
NEOX = {
    **{name: SIZES[name] for name in ("vocab_size", "hidden_size", "intermediate_size")},
    **dict(num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=128),
    **dict(rotary_pct=0.5, rotary_emb_base=100, hidden_act="gelu", tie_word_embeddings=False),
}
FULL, SLIDING = "full_attention", "sliding_attention"
MIXED = [SLIDING, FULL, SLIDING]


def scaled(kind: str, **fields: Any) -> dict[str, Any]:
    """Sizes of a Llama with rope scaling."""
    return {**SIZES, "rope_parameters": {"rope_type": kind, "rope_theta": 100.0, **fields}}


# case -> (model_type, fields of its config)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "gpt2",
        dict(vocab_size=64, n_positions=128, n_embd=16, n_layer=3, n_head=2, n_inner=24),
    ),
    "gpt_neox": ("gpt_neox", NEOX),
    "gpt_neox_sequential": (
        "gpt_neox",
        {**NEOX, "use_parallel_residual": False, "rotary_pct": 1.0, "attention_bias": False},
    ),
    "llama": ("llama", SIZES),
    "llama_biased": (
        "llama",
        {**SIZES, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama_linear": ("llama", scaled("linear", factor=4.0)),
    "llama_dynamic": ("llama", {**scaled("dynamic", factor=3.0), "max_position_embeddings": 18}),
    "llama_llama3": (
        "llama",
        scaled(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=24,
        ),
    ),
    # Pairs 0 to 2 stay, 3 is half divided; with the default beta_fast the ramp would start at 0.
    "llama_yarn": (
        "llama",
        {
            **scaled("yarn", factor=4.0, original_max_position_embeddings=512, beta_fast=8.0),
            "max_position_embeddings": 2048,
        },
    ),
    "llama_longrope": (
        "llama",
        scaled(
            "longrope",
            short_factor=[1.0, 1.1, 1.3, 1.6],
            long_factor=[1.0, 2.0, 3.0, 5.0],
            original_max_position_embeddings=16,
        ),
    ),
    "mistral": ("mistral", {**SIZES, "sliding_window": 5}),
    "qwen2": (
        "qwen2",
        {
            **{name: value for name, value in SIZES.items() if name != "head_dim"},
            **dict(use_sliding_window=True, sliding_window=6, max_window_layers=1),
        },
    ),
    "qwen3": (
        "qwen3",
        {**SIZES, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    ),
    "gemma2": (
        "gemma2",
        {
            **SIZES,
            **dict(sliding_window=6, layer_types=MIXED, query_pre_attn_scalar=12),
            **dict(attn_logit_softcapping=1.5, final_logit_softcapping=2.0),
            "tie_word_embeddings": True,
        },
    ),
    "gemma3_text": (
        "gemma3_text",
        {
            **SIZES,
            **dict(sliding_window=6, layer_types=MIXED, query_pre_attn_scalar=12),
            "rope_parameters": {
                FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0},
                SLIDING: {"rope_type": "default", "rope_theta": 10.0},
            },
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": (
        "olmo2",
        {name: value for name, value in SIZES.items() if name != "head_dim"},
    ),
    "smollm3": (
        "smollm3",
        {
            **{name: value for name, value in SIZES.items() if name != "head_dim"},
            **dict(no_rope_layers=[1, 0, 1], use_sliding_window=True, sliding_window=6),
            "layer_types": [FULL, SLIDING, FULL],
        },
    ),
}
# Cases whose frequencies depend on the length of a row (of the whole batch, in torch).
BY_LENGTH = {"llama_dynamic": 18, "llama_longrope": 16}


@functools.cache
def torch_model(case: str) -> Any:
    """The language model of a case in float32, every parameter random; do not change it."""
    return _random(case, transformers.AutoModelForCausalLM)


def torch_reward_model(case: str) -> Any:
    """The sequence classifier with one label."""
    return _random(case, transformers.AutoModelForSequenceClassification, num_labels=1)


def _random(case, auto_class, **fields):
    model_type, sizes = CASES[case]
    ids = dict(bos_token_id=None, eos_token_id=None, pad_token_id=0)
    config = transformers.AutoConfig.for_model(model_type, **sizes, **ids, **fields)
    config._attn_implementation = "eager"
    model = auto_class.from_config(config).eval()
    generator = torch.Generator().manual_seed(sorted(CASES).index(case))
    offset = model_type.startswith("gemma")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            if is_norm and not offset:
                parameter.add_(1.0)
            if is_norm and offset and ".post_" in name:
                parameter.add_(2.0)  # else the embedding outweighs the layers: it repeats itself
    return model


def forget(model: Any) -> None:
    """Undo what "dynamic" rope remembers of the longest text it has seen: one short text does."""
    logits(model, np.ones((1, 1), np.int64), np.ones((1, 1), bool))


def save(case: str, folder: Path, model: Any = None) -> Path:
    """The model as an ordinary folder."""
    (model or torch_model(case)).save_pretrained(folder)
    return folder


def logits(model: Any, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits `[B, T, V]`; positions count real tokens, as in `generate`."""
    mask = torch.tensor(np.asarray(mask), dtype=torch.long)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(np.asarray(tokens)),
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
        )
    return out.logits.float().numpy()


def greedy(model: Any, prompts: np.ndarray, mask: np.ndarray, new: int) -> np.ndarray:
    """The `new` tokens that `generate` puts after left-padded prompts."""
    out = model.generate(
        torch.tensor(np.asarray(prompts)),
        attention_mask=torch.tensor(np.asarray(mask), dtype=torch.long),
        do_sample=False,
        max_new_tokens=new,
        min_new_tokens=new,
    )
    return out[:, prompts.shape[1] :].numpy()


def some_tokens(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Random ids; 0 is padding."""
    return np.random.default_rng(seed).integers(1, 64, (rows, columns))


def cached_logits(model: Any, tokens: np.ndarray, mask: np.ndarray, prompt: int) -> np.ndarray:
    """Logits `[T - P + 1, B, V]` after the prompt and after each token, read one by one."""
    tokens, mask = torch.tensor(np.asarray(tokens)), torch.tensor(mask, dtype=torch.long)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found, cache, start = [], None, 0
    with torch.no_grad():
        for end in range(prompt, tokens.shape[1] + 1):
            out = model(
                input_ids=tokens[:, start:end],
                attention_mask=mask[:, :end],
                position_ids=positions[:, start:end],
                past_key_values=cache,
                use_cache=True,
            )
            found.append(out.logits[:, -1].numpy())
            cache, start = out.past_key_values, end
    return np.stack(found)
