"""How much memory a device needs to train a model, from shapes alone: nothing is loaded or run.

Exact are the arrays that a run keeps, per device of a (data, tensor) mesh (weights are split over
the tensor axis by `sharding.py`, and repeated over the data axis), P the parameters of a model:

    parameters, gradients     4 P bytes each, of every model that is trained; gradients twice where
                              they are accumulated over micro-batches
    Adam's moments            8 P bytes; 6 P with a mean of gradients in bfloat16
    frozen models             4 P bytes each, or 2 P: reference policy, reward model
    with LoRA                 the above of the adapters alone (and of a head); what they are trained
                              beside c P bytes, which is the reference or the reward model as well
    sampling                  P numbers in the compute dtype (weights laid out for decoding), and
                              the cache: 2 · layers · rows · columns · kv_heads · head_dim numbers

Estimated is what the backward pass keeps of a forward pass over N tokens in rows of T columns:

    a layer                   N · c · (16 D + (5 (H + K) h + 4 F) / tensor) + 10 N H T / tensor
    all layers                layers times that; with remat 4 N D a layer, and one layer whole
    logits                    14 N V / tensor bytes; of chunks as many columns as a chunk has

D width, H and K heads and key/value heads of h columns, F width of the MLP, V vocabulary, c bytes
of the compute dtype. The coefficients were fitted to what XLA reports for CPUs (`memory_analysis`,
float32, widths of 256); other backends fuse more and need less.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxrlhf import sharding
from jaxrlhf.models import Lora, lora, make_lm, make_scalar_model
from jaxrlhf.models.config import TransformerConfig

F32 = 4


Parts = dict[str, float]  # what -> bytes a device


class Setting(NamedTuple):
    """What decides, beside the model. `rows` and tokens are those of one update, on all devices."""

    data: int = 1
    tensor: int = 1
    rows: int = 1
    columns: int = 128
    pieces: int = 1  # micro-batches (and minibatches) that `rows` are cut into
    accumulated: bool = False
    chunk_size: int | None = None
    remat: bool = False
    dtype_bytes: int = F32
    mu_bytes: int = F32
    frozen_bytes: int = F32
    lora: Lora | None = None


def sft(config: TransformerConfig, setting: Setting) -> Parts:
    """Supervised training of a language model."""
    rows = rows_at_a_time(setting)
    return {
        **trained(config, setting, lm_elements),
        "activations": activations(config, setting, rows=rows, columns=setting.columns),
        "logits": logits(config, setting, tokens=rows * setting.columns),
    }


def reward(config: TransformerConfig, setting: Setting) -> Parts:
    """Training of a reward model; a pair is two rows."""
    rows = 2 * rows_at_a_time(setting)
    return {
        **trained(config, setting, scalar_elements),
        "activations": activations(config, setting, rows=rows, columns=setting.columns),
    }


def ppo(
    config: TransformerConfig,
    setting: Setting,
    *,
    new_tokens: int,
    shared_value: bool = False,
    reward_model: bool = True,
) -> Parts:
    """PPO with a reference, a value network (or a head on the policy) and a reward model.

    `setting.columns` are those of prompt and response; `setting.rows` are sampled at once.
    """
    lm, scalar = (elements(config, setting.tensor) for elements in (lm_elements, scalar_elements))
    rows = rows_at_a_time(setting)
    one = activations(config, setting, rows=rows, columns=setting.columns)
    sampled = -(-setting.rows // setting.data)
    models = (lm_elements,) if shared_value else (lm_elements, scalar_elements)
    parts = trained(config, setting, *models)
    if setting.lora is None:
        frozen = {"reference policy": lm, "reward model": scalar if reward_model else 0}
        parts |= {name: setting.frozen_bytes * n for name, n in frozen.items()}
    else:  # the policy's base is the reference, the value network's the reward model
        beside = {"policy": lm, "reward model": scalar if reward_model else 0}
        parts |= {f"base: {name}": setting.dtype_bytes * n for name, n in beside.items()}
        del parts["base"]
    return {
        **parts,
        "sampling: weights": setting.dtype_bytes * lm,
        "sampling: KV cache": kv_cache(config, setting, rows=sampled),
        "activations": one if shared_value else 2 * one,
        "logits": logits(config, setting, tokens=rows * new_tokens),
    }


def lm_elements(config: TransformerConfig, tensor: int = 1) -> int:
    """Parameters of a language model on each device."""
    shapes = jax.eval_shape(make_lm(config).init, jax.random.key(0))
    return sharding.elements_per_device(shapes, tensor=tensor)


def scalar_elements(config: TransformerConfig, tensor: int = 1) -> int:
    """The same of a reward or value model."""
    shapes = jax.eval_shape(make_scalar_model(config).init, jax.random.key(0))
    return sharding.elements_per_device(shapes, tensor=tensor)


def adapter_elements(config: TransformerConfig, setting: Setting) -> int:
    """Parameters of a model's adapters on each device."""
    spec = setting.lora
    assert spec is not None
    base = jax.eval_shape(make_lm(config).init, jax.random.key(0))
    shapes = jax.eval_shape(lambda: lora.init(spec, jax.random.key(0), base))
    return sharding.elements_per_device(shapes, tensor=setting.tensor)


def trained(
    config: TransformerConfig, setting: Setting, *models: Callable[[TransformerConfig, int], int]
) -> Parts:
    """What an optimiser keeps of these models, or of their adapters beside what does not train."""
    elements = sum(count(config, setting.tensor) for count in models)
    beside: Parts = {}
    if setting.lora is not None:
        heads = (config.d_model + 1) * sum(count is scalar_elements for count in models)
        beside = {"base": setting.dtype_bytes * elements}
        elements = len(models) * adapter_elements(config, setting) + heads
    return beside | {
        "parameters": F32 * elements,
        "gradients": F32 * elements * (2 if setting.accumulated else 1),
        "Adam's moments": (setting.mu_bytes + F32) * elements,
    }


def rows_at_a_time(setting: Setting) -> int:
    """Rows of one forward and backward pass on one device."""
    return -(-setting.rows // (setting.data * setting.pieces))


def activations(config: TransformerConfig, setting: Setting, *, rows: int, columns: int) -> float:
    """What the backward pass keeps; see the header."""
    tokens, width = rows * columns, config.d_model
    heads, kv_heads = config.num_heads, config.num_kv_heads or config.num_heads
    split = 5 * (heads + kv_heads) * (config.head_dim or 0) + 4 * config.d_ff
    layer = tokens * setting.dtype_bytes * (16 * width + split / setting.tensor)
    layer += 10 * tokens * heads * columns / setting.tensor
    if setting.remat:
        return config.num_layers * F32 * tokens * width + layer
    return config.num_layers * layer


def logits(config: TransformerConfig, setting: Setting, *, tokens: int) -> float:
    """Of the output layer; see the header."""
    columns = min(setting.chunk_size or config.vocab_size, config.vocab_size)
    return 14 * tokens * columns / setting.tensor


def kv_cache(config: TransformerConfig, setting: Setting, *, rows: int) -> float:
    """Keys and values of every column."""
    numbers = 2 * config.num_layers * rows * setting.columns
    heads = (config.num_kv_heads or config.num_heads) / setting.tensor
    return numbers * heads * (config.head_dim or 0) * setting.dtype_bytes


def peak(parts: Parts) -> float:
    """What has to fit: sampling and the update take turns."""
    sampling = sum(x for name, x in parts.items() if name.startswith("sampling"))
    update = parts["activations"] + parts.get("logits", 0.0) + parts["gradients"]
    rest = sum(parts.values()) - sampling - update
    return rest + max(sampling, update)
