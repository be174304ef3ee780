"""A model's folder as Hugging Face lays it out: read into ours, written from ours.

Reading takes `config.json` and safetensors, runs nothing, and refuses what it would compute
differently. Writing gives a folder that `transformers` loads without us.

Reward models are sequence classifiers with one label: `score.weight` `[1, D]` on the hidden state
of the last real token. Two things of ours have no place there. Our head's bias stands in
config.json as `"jaxrlhf": {"score_bias": b}`: others' scores lack that constant, and rank alike.
A head that reads the stream before the last norm (`final_norm` False) would be scored wrongly by
others, so such a folder says a `model_type` that they do not know.

What it does not do: tokenizers (handed in, and asked to save themselves), LoRA adapters, the hub.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf import sharding
from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import shards, vocabulary, weights
from jaxrlhf.hf.entries import Entry
from jaxrlhf.hf.families import FAMILIES, Family, family_named, family_of, written_config
from jaxrlhf.hf.staging import replacing, write_json
from jaxrlhf.models import LM, ScalarModel, make_lm, make_scalar_model
from jaxrlhf.models.config import TransformerConfig

log = logging.getLogger(__name__)

CONFIG, GENERATION = "config.json", "generation_config.json"
_OURS_ONLY = "jaxrlhf_"  # before the model_type of what others would compute wrongly
_OUTPUT_HEADS = (r"lm_head\.weight", r"embed_out\.weight")  # a reward model has no use for them
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


class Description(NamedTuple):
    """What a folder's config.json says."""

    kind: Literal["lm", "scalar"]
    family: str  # a key of FAMILIES
    config: TransformerConfig
    final_norm: bool = True  # scalar: whether the head reads after the last norm
    score_bias: float = 0.0


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


def load_config(folder: str | Path, *, ignore_fields: tuple[str, ...] = ()) -> Description:
    """What the folder holds, from its config.json alone.

    Raises:
      CheckpointError: missing, damaged, of an unknown family, or a field that we cannot honour.
    """
    folder = Path(folder)
    values = shards.read_json(folder, CONFIG)
    where = str(folder / CONFIG)
    extra = _extra(values, where)
    model_type = values.get("model_type")
    if not extra["final_norm"] and isinstance(model_type, str):
        model_type = model_type.removeprefix(_OURS_ONLY)
    family = family_named(model_type, where=where)
    if values.get("auto_map"):
        log.warning(
            "%s: auto_map names code of the model's makers; it is not run, the model is computed "
            "as an ordinary %s",
            where,
            family.name,
        )
    kind = _kind(family, values, where)
    config = family.read_config(values, ignore=ignore_fields, where=where)
    return Description(kind, family.name, config, extra["final_norm"], extra["score_bias"])


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
    model = make_scalar_model(config, final_norm=found.final_norm)
    family = FAMILIES[found.family]
    entries = scalar_entries(family, config)
    ignored = (*family.ignored, *_OUTPUT_HEADS)
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
    values = _present({name: config.get(name) for name in _TOKENS})
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
    Raises:
      CheckpointError: the family cannot express the architecture, or the disk refused.
    """
    config, params = vocabulary.resize(lm.config, params, vocab_size or lm.config.vocab_size)
    chosen = _family(family, config)
    tokens = _special_tokens(tokenizer)
    values = {
        **_head_of_config(chosen.causal, chosen.name, dtype),
        **written_config(chosen, config),
        **tokens,
    }
    with replacing(folder) as staging:
        entries = lm_entries(chosen, config)
        weights.save_params(staging, entries, params, dtype=dtype, max_shard_size=max_shard_size)
        write_json(staging / CONFIG, values)
        write_json(staging / GENERATION, {**_present(tokens), **(generation or {})})
        _save_tokenizer(tokenizer, staging, folder)


def save_scalar(
    folder: str | Path,
    model: ScalarModel,
    params: Any,
    *,
    tokenizer: Any = None,
    family: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    vocab_size: int | None = None,
    max_shard_size: int = 5 * 10**9,
) -> None:
    """Write what `AutoModelForSequenceClassification.from_pretrained` loads. As `save_lm`.

    Others find a row's last token as the last that is not padding, so the tokenizer should have a
    padding token, and one that no text ends in.
    """
    size = vocab_size or model.config.vocab_size
    config, body = vocabulary.resize(model.config, params["lm"], size)
    head = params["head"]
    chosen = _family(family, config)
    extra: dict[str, Any] = {}
    if float(head["bias"]):
        extra["score_bias"] = float(head["bias"])
    architecture, model_type = chosen.classifier, chosen.name
    if not model.final_norm:
        extra["final_norm"] = False
        architecture, model_type = "JaxrlhfRewardModel", _OURS_ONLY + model_type
    values = {
        **_head_of_config(architecture, model_type, dtype),
        **written_config(chosen, config),
        **_special_tokens(tokenizer),
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        **({"jaxrlhf": extra} if extra else {}),
    }
    params = {"lm": body, "head": {"kernel": head["kernel"]}}
    with replacing(folder) as staging:
        entries = scalar_entries(chosen, config)
        weights.save_params(staging, entries, params, dtype=dtype, max_shard_size=max_shard_size)
        write_json(staging / CONFIG, values)
        _save_tokenizer(tokenizer, staging, folder)


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


def _without_bias(model: ScalarModel):
    def init(key):
        params = model.init(key)
        return {"lm": params["lm"], "head": {"kernel": params["head"]["kernel"]}}

    return init


# ------------------------------------------------------------------ config.json


def _kind(family: Family, values: Mapping[str, Any], where: str) -> Literal["lm", "scalar"]:
    found = values.get("architectures") or [family.causal]
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], str):
        raise CheckpointError(f"{where}: architectures = {found!r}: must name one")
    name = found[0]
    if name in (family.causal, *family.bases):
        return "lm"
    if name not in (family.classifier, "JaxrlhfRewardModel"):
        known = (family.causal, *family.bases, family.classifier)
        raise CheckpointError(
            f"{where}: architectures = {name!r}: of {family.name}, {', '.join(known)} can be read"
        )
    labels = values.get("id2label")
    count = len(labels) if isinstance(labels, dict) else values.get("num_labels", 2)
    if count != 1:
        raise CheckpointError(
            f"{where}: num_labels = {count!r} (2 where it is not said): a reward model has 1"
        )
    return "scalar"


def _extra(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Our own object in config.json."""
    found = values.get("jaxrlhf") or {}
    known = {"final_norm": True, "score_bias": 0.0}
    if not isinstance(found, dict) or set(found) - set(known):
        allowed = ", ".join(known)
        raise CheckpointError(f"{where}: jaxrlhf = {found!r}: must be an object with {allowed}")
    extra = {**known, **found}
    bias = extra["score_bias"]
    if type(extra["final_norm"]) is not bool:
        raise CheckpointError(f"{where}: jaxrlhf.final_norm must be true or false")
    if type(bias) not in (int, float) or not math.isfinite(bias):
        raise CheckpointError(f"{where}: jaxrlhf.score_bias = {bias!r}: must be a finite number")
    return extra


def _head_of_config(architecture: str, model_type: str, dtype: str) -> dict[str, Any]:
    # Both names of the dtype: transformers 5 reads the one, everything older the other.
    named = {"dtype": dtype, "torch_dtype": dtype}
    return {"architectures": [architecture], "model_type": model_type, **named}


def _family(name: str | None, config: TransformerConfig) -> Family:
    return family_of(config) if name is None else family_named(name, where="save as")


def _special_tokens(tokenizer: Any) -> dict[str, Any]:
    return {name: getattr(tokenizer, name, None) for name in _TOKENS}


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _save_tokenizer(tokenizer: Any, staging: Path, folder: str | Path) -> None:
    if tokenizer is None:
        return
    try:
        tokenizer.save_pretrained(staging)
    except OSError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(f"{folder}: the tokenizer could not be written ({error})") from error
