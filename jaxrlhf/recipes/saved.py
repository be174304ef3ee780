"""Models and their tokenizers on disk: Hugging Face folders, in and out.

Wherever a config names a model it may be any such folder, ours or not, a PEFT adapter's folder
(read with its base, merged), or a name on the hub.
"""

import logging
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax

from jaxrlhf.config import Config, dump
from jaxrlhf.data import chat
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.errors import CheckpointError, UserError
from jaxrlhf.hf import adapted, base_model, card, folder, hub, vocabulary
from jaxrlhf.models import LM, ScalarModel, make_lm

Dtype = Literal["float32", "bfloat16"]

log = logging.getLogger(__name__)


class SavedLM(NamedTuple):
    """A language model, its tokenizer, and the family to save it as."""

    lm: LM
    params: Any
    tokenizer: Any
    family: str


class SavedScalar(NamedTuple):
    """A reward model, its tokenizer, and the family to save it as."""

    model: ScalarModel
    params: Any
    tokenizer: Any
    family: str


def load_lm(
    path: str,
    mesh: jax.sharding.Mesh,
    *,
    dtype: Dtype = "float32",
    param_dtype: Dtype = "float32",
    remat: bool = False,
    resize_vocabulary: bool = False,
) -> SavedLM:
    """A language model by folder or hub name. `dtype` and `remat` say how it is computed.

    Args:
      param_dtype: what its parameters are kept in.
      resize_vocabulary: tokens that the tokenizer has and the model has not get a row, the mean of
        the others.
    """
    where = find(path)
    found = reader(where).load_lm(
        where, mesh=mesh, dtype=dtype, param_dtype=param_dtype, remat=remat
    )
    tokenizer = load_tokenizer(where)
    lm, params, rows = found.lm, found.params, found.lm.config.vocab_size
    if resize_vocabulary and len(tokenizer) > rows:
        config, params = vocabulary.resize(lm.config, params, len(tokenizer))
        lm = make_lm(config)
        log.info("%s: %d tokens are new to the model", path, len(tokenizer) - rows)
    return SavedLM(lm, params, tokenizer, found.family)


def load_scalar(
    path: str,
    mesh: jax.sharding.Mesh,
    *,
    dtype: Dtype = "float32",
    param_dtype: Dtype = "float32",
    remat: bool = False,
) -> SavedScalar:
    """A reward model by folder or hub name. Arguments as `load_lm`."""
    where = find(path)
    found = reader(where).load_scalar(
        where, mesh=mesh, dtype=dtype, param_dtype=param_dtype, remat=remat
    )
    return SavedScalar(found.model, found.params, load_tokenizer(where), found.family)


def find(path: str) -> Path:
    """The folder of a model; one of a stage that holds a model is no model itself, but near one.

    Raises:
      CheckpointError: there is none.
    """
    where = hub.folder_of(path)
    if not ((where / folder.CONFIG).is_file() or adapted.is_adapter(where)):
        inner = where / "model"
        hint = f"; did you mean {inner}?" if (inner / folder.CONFIG).is_file() else ""
        raise CheckpointError(f"{path}: no model here ({folder.CONFIG} is missing){hint}")
    return where


def reader(where: Path) -> ModuleType:
    """What reads a folder that `find` found, with `load_config`, `load_lm` and `load_scalar`."""
    return adapted if adapted.is_adapter(where) else folder


def base_of(where: Path) -> Path:
    """The folder itself, or that of the base where it holds an adapter."""
    return adapted.base_of(where) if adapted.is_adapter(where) else where


def load_tokenizer(where: Path) -> Any:
    """The folder's own; an adapter without one has its base's."""
    own = any((where / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    return tokenizers.load_tokenizer(where if own else base_of(where))


def identify(path: str) -> base_model.BaseModel:
    """What adapters are trained beside, to be known again by."""
    where = find(path)
    parts = [where] if where == base_of(where) else [base_of(where), where]
    return base_model.identify(*parts)


def save_lm(
    where: Path,
    lm: LM,
    params: Any,
    tokenizer: Any,
    *,
    family: str | None = None,
    readme: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    vocab_size: int | None = None,
    max_shard_size: int = 5 * 10**9,
) -> None:
    """A finished language model with its tokenizer, as `AutoModelForCausalLM` reads it."""
    folder.save_lm(
        where,
        lm,
        params,
        tokenizer=tokenizer,
        family=family,
        generation=generation(tokenizer),
        card=readme,
        dtype=dtype,
        vocab_size=vocab_size,
        max_shard_size=max_shard_size,
    )


def save_scalar(
    where: Path,
    model: ScalarModel,
    params: Any,
    tokenizer: Any,
    *,
    family: str | None = None,
    readme: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    vocab_size: int | None = None,
    max_shard_size: int = 5 * 10**9,
) -> None:
    """A finished reward model, as `AutoModelForSequenceClassification` reads it."""
    folder.save_scalar(
        where,
        model,
        params,
        tokenizer=tokenizer,
        family=family,
        card=readme,
        dtype=dtype,
        vocab_size=vocab_size,
        max_shard_size=max_shard_size,
    )


def describe(where: Path, model: LM | ScalarModel, tokenizer: Any, *, family: str | None) -> None:
    """All of a model's folder but its weights: `jaxrlhf export` needs it beside a checkpoint."""
    if isinstance(model, LM):
        more = generation(tokenizer)
        folder.describe_lm(where, model, tokenizer=tokenizer, family=family, generation=more)
    else:
        folder.describe_scalar(where, model, tokenizer=tokenizer, family=family)


def generation(tokenizer: Any) -> dict[str, Any]:
    """What generation_config.json says beyond the special tokens: all that ends an answer."""
    stops = chat.stop_ids(tokenizer)
    return {"eos_token_id": list(stops)} if len(stops) > 1 else {}


def model_card(
    kind: Literal["lm", "scalar"],
    recipe: str,
    config: Config,
    *,
    base: str | None,
    data: tuple[str, ...],
    summary: dict[str, Any],
    model: ScalarModel | None = None,
) -> str:
    """README.md of what a training stage made."""
    plain = model is None or (model.final_norm and model.pooling == "last")
    return card.text(
        card.Card(
            kind=kind,
            recipe=recipe,
            config=dump(config),
            base=base,
            hub_base=base is not None and hub.is_hub_name(base),
            data=data,
            metrics=summary,
            others_can_load=plain,
        )
    )


def same_tokenizer(a: Any, b: Any, what: str) -> None:
    """Refuse two models that read different tokens: nothing is decoded and tokenised again."""
    if a.get_vocab() != b.get_vocab():
        raise UserError(f"{what} use different tokenizers; train them from the same one")
