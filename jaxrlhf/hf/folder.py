"""A model's folder as Hugging Face lays it out: read into ours, written from ours.

Reading takes `config.json` and safetensors, runs nothing, and refuses what it would compute
differently. Writing gives a folder that `transformers` loads without us; what the two kinds of
folder say is `description.py`.

What it does not do: tokenizers (handed in, and asked to save themselves), LoRA adapters, the hub.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf import sharding
from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import description, shards, vocabulary, weights
from jaxrlhf.hf.description import CONFIG, TOKENS, Description, load_config
from jaxrlhf.hf.entries import Entry
from jaxrlhf.hf.families import FAMILIES, Family
from jaxrlhf.hf.staging import replacing, write_json
from jaxrlhf.models import LM, ScalarModel, make_lm, make_scalar_model
from jaxrlhf.models.config import TransformerConfig

__all__ = [
    "Description",
    "LoadedLM",
    "LoadedScalar",
    "describe_lm",
    "describe_scalar",
    "lm_entries",
    "load_config",
    "load_generation",
    "load_lm",
    "load_scalar",
    "save_lm",
    "save_scalar",
    "scalar_entries",
]

GENERATION, CARD = "generation_config.json", "README.md"
OUTPUT_HEADS = (r"lm_head\.weight", r"embed_out\.weight")  # a reward model has no use for them


class LoadedLM(NamedTuple):
    """A language model, and the family to save it as."""

    lm: LM
    params: Any
    family: str


class LoadedScalar(NamedTuple):
    """A reward model, and the family to save it as."""

    model: ScalarModel
    params: Any
    family: str


# ------------------------------------------------------------------ reading


def load_lm(
    folder: str | Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    param_dtype: Literal["float32", "bfloat16"] = "float32",
    remat: bool = False,
    ignore_fields: tuple[str, ...] = (),
) -> LoadedLM:
    """A language model of a folder.

    Args:
      mesh: where its parameters go; None is the default device.
      dtype: the compute dtype. It is ours to choose, whatever the weights are stored in.
      param_dtype: what the parameters are kept in; bfloat16 for models that are not trained.
      ignore_fields: of config.json, that are known not to change what the model computes.
    Raises:
      CheckpointError: see `load_config` and `weights.load_params`.
    """
    found = load_config(folder, ignore_fields=ignore_fields)
    if found.kind != "lm":
        raise CheckpointError(f"{folder}: holds a reward model, a language model is needed")
    lm = make_lm(dataclasses.replace(found.config, dtype=dtype, remat=remat))
    family = FAMILIES[found.family]
    entries = lm_entries(family, lm.config)
    params = _load(folder, family.ignored, entries, lm.init, mesh, param_dtype)
    return LoadedLM(lm, params, found.family)


def load_scalar(
    folder: str | Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    param_dtype: Literal["float32", "bfloat16"] = "float32",
    remat: bool = False,
    ignore_fields: tuple[str, ...] = (),
) -> LoadedScalar:
    """A reward model of a folder: a sequence classifier with one label. Arguments as `load_lm`."""
    found = load_config(folder, ignore_fields=ignore_fields)
    if found.kind != "scalar":
        raise CheckpointError(f"{folder}: holds a language model, a reward model is needed")
    config = dataclasses.replace(found.config, dtype=dtype, remat=remat)
    model = make_scalar_model(config, final_norm=found.final_norm, pooling=found.pooling)
    family = FAMILIES[found.family]
    entries = scalar_entries(family, config)
    ignored = (*family.ignored, *OUTPUT_HEADS)
    params = _load(folder, ignored, entries, _without_bias(model), mesh, param_dtype)
    bias = jnp.float32(found.score_bias)
    if mesh is not None:
        bias = jax.device_put(bias, sharding.replicated(mesh))
    params["head"]["bias"] = bias
    return LoadedScalar(model, params, found.family)


def load_generation(folder: str | Path) -> dict[str, Any]:
    """generation_config.json, over the special tokens of config.json: what ends a text, and more.

    Ids may be lists. Nothing here has been checked but that it is JSON.
    """
    folder = Path(folder)
    config = shards.read_json(folder, CONFIG)
    values = description.present({name: config.get(name) for name in TOKENS})
    if shards.stands(folder / GENERATION):
        values |= shards.read_json(folder, GENERATION)
    return values


# ------------------------------------------------------------------ writing


def save_lm(
    folder: str | Path,
    lm: LM,
    params: Any,
    *,
    tokenizer: Any = None,
    family: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    vocab_size: int | None = None,
    generation: Mapping[str, Any] | None = None,
    card: str | None = None,
    max_shard_size: int = 5 * 10**9,
) -> None:
    """Write what `AutoModelForCausalLM.from_pretrained` loads; replaces a model that was there.

    Args:
      tokenizer: saved beside it (`save_pretrained`); its special tokens go into the configs.
      family: what to save it as, such as the `family` it was loaded with; None is the first one
        that has this architecture.
      dtype: of the stored weights.
      vocab_size: rows past it, padding of ours, are left out.
      generation: further fields of generation_config.json.
      card: the text of README.md.
    Raises:
      CheckpointError: the family cannot express the architecture, or the disk refused.
    """
    config, params = vocabulary.resize(lm.config, params, vocab_size or lm.config.vocab_size)
    chosen, values = description.lm_values(config, family=family, dtype=dtype, tokenizer=tokenizer)

    def write_weights(staging: Path) -> None:
        entries = lm_entries(chosen, config)
        weights.save_params(staging, entries, params, dtype=dtype, max_shard_size=max_shard_size)

    more = {GENERATION: _generation(tokenizer, generation)}
    _write(folder, {CONFIG: values, **more}, tokenizer, card, write_weights)


def save_scalar(
    folder: str | Path,
    model: ScalarModel,
    params: Any,
    *,
    tokenizer: Any = None,
    family: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    vocab_size: int | None = None,
    card: str | None = None,
    max_shard_size: int = 5 * 10**9,
) -> None:
    """Write what `AutoModelForSequenceClassification.from_pretrained` loads. As `save_lm`."""
    size = vocab_size or model.config.vocab_size
    config, body = vocabulary.resize(model.config, params["lm"], size)
    head = params["head"]
    chosen, values = description.scalar_values(
        model,
        config,
        bias=float(head["bias"]),
        family=family,
        dtype=dtype,
        tokenizer=tokenizer,
    )
    params = {"lm": body, "head": {"kernel": head["kernel"]}}

    def write_weights(staging: Path) -> None:
        entries = scalar_entries(chosen, config)
        weights.save_params(staging, entries, params, dtype=dtype, max_shard_size=max_shard_size)

    _write(folder, {CONFIG: values}, tokenizer, card, write_weights)


def describe_lm(
    folder: str | Path,
    lm: LM,
    *,
    tokenizer: Any = None,
    family: str | None = None,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """All that `save_lm` writes but weights and card. A reader of models takes it for none."""
    _, values = description.lm_values(
        lm.config, family=family, dtype="float32", tokenizer=tokenizer
    )
    _write(folder, {CONFIG: values, GENERATION: _generation(tokenizer, generation)}, tokenizer)


def describe_scalar(
    folder: str | Path, model: ScalarModel, *, tokenizer: Any = None, family: str | None = None
) -> None:
    """All that `save_scalar` writes but weights, bias and card."""
    _, values = description.scalar_values(
        model, model.config, bias=0.0, family=family, dtype="float32", tokenizer=tokenizer
    )
    _write(folder, {CONFIG: values}, tokenizer)


def _write(
    folder: str | Path,
    objects: Mapping[str, Any],
    tokenizer: Any,
    card: str | None = None,
    write_weights: Callable[[Path], None] | None = None,
) -> None:
    with replacing(folder) as staging:
        if write_weights is not None:
            write_weights(staging)
        for name, values in objects.items():
            write_json(staging / name, values)
        if card is not None:
            (staging / CARD).write_text(card, encoding="utf-8")
        _save_tokenizer(tokenizer, staging, folder)


def _generation(tokenizer: Any, more: Mapping[str, Any] | None) -> dict[str, Any]:
    return {**description.present(description.special_tokens(tokenizer)), **(more or {})}


# ------------------------------------------------------------------ tensors


def lm_entries(family: Family, config: TransformerConfig) -> list[Entry]:
    """Every tensor of a language model."""
    return family.entries(config)


def scalar_entries(family: Family, config: TransformerConfig) -> list[Entry]:
    """Every tensor of a reward model; its head's bias is none of them."""
    body = [
        entry._replace(ours=tuple(f"lm/{path}" for path in entry.ours))
        for entry in family.entries(config)
        if entry.ours != ("lm_head/kernel",)
    ]
    score = Entry(
        "score.weight",
        ("head/kernel",),
        (1, config.d_model),
        split=lambda theirs: (theirs[0],),
        join=lambda ours: ours[None, :],
    )
    return [*body, score]


def _load(folder, ignored, entries, init, mesh, param_dtype):
    abstract = jax.eval_shape(init, jax.random.key(0))
    if mesh is None:
        layouts = jax.tree.map(lambda leaf: None, abstract)
    else:
        layouts = sharding.tree_sharding(mesh, abstract)

    def with_layout(leaf, layout):
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(param_dtype), sharding=layout)

    abstract = jax.tree.map(with_layout, abstract, layouts, is_leaf=lambda leaf: leaf is None)
    return weights.load_params(folder, entries, abstract, ignored=ignored)


@functools.cache  # one function for one model, so that its shapes are worked out once
def _without_bias(model: ScalarModel):
    def init(key):
        params = model.init(key)
        return {"lm": params["lm"], "head": {"kernel": params["head"]["kernel"]}}

    return init


def _save_tokenizer(tokenizer: Any, staging: Path, folder: str | Path) -> None:
    if tokenizer is None:
        return
    try:
        tokenizer.save_pretrained(staging)
    except OSError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(f"{folder}: the tokenizer could not be written ({error})") from error
