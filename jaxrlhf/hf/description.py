"""What config.json says a folder holds, read and written: everything about a model but its weights.

Reward models are sequence classifiers with one label: `score.weight` `[1, D]` on the hidden state
of the last real token. Three things of ours have no place there. Our head's bias stands in
config.json as `"jaxrlhf": {"score_bias": b}`: others' scores lack that constant, and rank alike.
A head that reads the stream before the last norm (`final_norm` False), or that scores a text by the
mean over its tokens (`pooling` "mean"), would be computed wrongly by others, so such a folder says
a `model_type` that they do not know.

What it does not do: weights (`folder.py`), fields of one family (`families/`).
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import shards
from jaxrlhf.hf.families import Family, family_named, family_of, written_config
from jaxrlhf.models import ScalarModel
from jaxrlhf.models.config import TransformerConfig
from jaxrlhf.models.heads import Pooling

log = logging.getLogger(__name__)

CONFIG = "config.json"
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_OURS_ONLY = "jaxrlhf_"  # before the model_type of what others would compute wrongly
_OUR_CLASS = "JaxrlhfRewardModel"


class Description(NamedTuple):
    """What a folder's config.json says."""

    kind: Literal["lm", "scalar"]
    family: str  # a key of FAMILIES
    config: TransformerConfig
    final_norm: bool = True  # scalar: whether the head reads after the last norm
    pooling: Pooling = "last"  # scalar: which of the tokens' values make the score
    score_bias: float = 0.0


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
    if not _others_can(extra) and isinstance(model_type, str):
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
    return Description(kind, family.name, config, **extra)


def lm_values(
    config: TransformerConfig, *, family: str | None, dtype: str, tokenizer: Any
) -> tuple[Family, dict[str, Any]]:
    """The family to save a language model as, and its config.json."""
    chosen = chosen_family(family, config)
    values = {
        **_heading(chosen.causal, chosen.name, dtype),
        **written_config(chosen, config),
        **special_tokens(tokenizer),
    }
    return chosen, values


def scalar_values(
    model: ScalarModel,
    config: TransformerConfig,
    *,
    bias: float,
    family: str | None,
    dtype: str,
    tokenizer: Any,
) -> tuple[Family, dict[str, Any]]:
    """The family to save a reward model as, and its config.json.

    Others find a row's last token as the last that is not padding. Where texts end in the padding
    token they would read the token before, so no padding token is said then: they score one text at
    a time, or refuse.
    """
    chosen = chosen_family(family, config)
    extra: dict[str, Any] = {}
    if bias:
        extra["score_bias"] = bias
    if not model.final_norm:
        extra["final_norm"] = False
    if model.pooling != "last":
        extra["pooling"] = model.pooling
    architecture, model_type = chosen.classifier, chosen.name
    if not _others_can(extra):
        architecture, model_type = _OUR_CLASS, _OURS_ONLY + model_type
    tokens = special_tokens(tokenizer)
    if tokens["pad_token_id"] == tokens["eos_token_id"]:
        tokens["pad_token_id"] = None
    values = {
        **_heading(architecture, model_type, dtype),
        **written_config(chosen, config),
        **tokens,
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        **({"jaxrlhf": extra} if extra else {}),
    }
    return chosen, values


def chosen_family(name: str | None, config: TransformerConfig) -> Family:
    """The family named, or the first that has this architecture."""
    return family_of(config) if name is None else family_named(name, where="save as")


def special_tokens(tokenizer: Any) -> dict[str, Any]:
    """Ids of a tokenizer's special tokens, None where it has none."""
    return {name: getattr(tokenizer, name, None) for name in TOKENS}


def present(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is None."""
    return {name: value for name, value in values.items() if value is not None}


def _others_can(extra: Mapping[str, Any]) -> bool:
    """Whether a sequence classifier of `transformers` computes the same, but for the bias."""
    return extra.get("final_norm", True) and extra.get("pooling", "last") == "last"


def _kind(family: Family, values: Mapping[str, Any], where: str) -> Literal["lm", "scalar"]:
    found = values.get("architectures") or [family.causal]
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], str):
        raise CheckpointError(f"{where}: architectures = {found!r}: must name one")
    name = found[0]
    if name in (family.causal, *family.bases):
        return "lm"
    if name not in (family.classifier, _OUR_CLASS):
        known = (family.causal, *family.bases, family.classifier)
        raise CheckpointError(
            f"{where}: architectures = {name!r}: of {family.name}, {', '.join(known)} can be read"
        )
    labels = values.get("id2label")
    count = len(labels) if isinstance(labels, dict) else values.get("num_labels", 2)
    if count != 1:
        raise CheckpointError(
            f"{where}: num_labels = {count!r} (2 where it is not said): a reward model has 1; of "
            "other classifiers, name the language model it was made of"
        )
    return "scalar"


def _extra(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Our own object in config.json."""
    found = values.get("jaxrlhf") or {}
    known = {"final_norm": True, "pooling": "last", "score_bias": 0.0}
    if not isinstance(found, dict) or set(found) - set(known):
        allowed = ", ".join(known)
        raise CheckpointError(f"{where}: jaxrlhf = {found!r}: must be an object with {allowed}")
    extra = {**known, **found}
    bias = extra["score_bias"]
    if type(extra["final_norm"]) is not bool:
        raise CheckpointError(f"{where}: jaxrlhf.final_norm must be true or false")
    if extra["pooling"] not in get_args(Pooling):
        allowed = " or ".join(get_args(Pooling))
        raise CheckpointError(f"{where}: jaxrlhf.pooling = {extra['pooling']!r}: must be {allowed}")
    if type(bias) not in (int, float) or not math.isfinite(bias):
        raise CheckpointError(f"{where}: jaxrlhf.score_bias = {bias!r}: must be a finite number")
    return extra


def _heading(architecture: str, model_type: str, dtype: str) -> dict[str, Any]:
    # Both names of the dtype: transformers 5 reads the one, everything older the other.
    named = {"dtype": dtype, "torch_dtype": dtype}
    return {"architectures": [architecture], "model_type": model_type, **named}
