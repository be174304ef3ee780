"""Models and their tokenizers on disk, as one stage leaves them for the next."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxrlhf import checkpoint, loop
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.errors import CheckpointError, UserError
from jaxrlhf.models import LM, ScalarModel, make_lm, make_scalar_model
from jaxrlhf.models.config import TransformerConfig


def save_lm(folder: Path, lm: LM, params: Any, tokenizer: Any) -> None:
    """A finished language model with its tokenizer."""
    save_tokenizer(folder, tokenizer)
    checkpoint.save_model(folder, params, kind="lm", config=dataclasses.asdict(lm.config))


def save_scalar(folder: Path, model: ScalarModel, params: Any, tokenizer: Any) -> None:
    """A finished reward model with its tokenizer."""
    save_tokenizer(folder, tokenizer)
    config = {
        "lm": dataclasses.asdict(model.config),
        "final_norm": model.final_norm,
        "pooling": model.pooling,
    }
    checkpoint.save_model(folder, params, kind="scalar", config=config)


def save_tokenizer(folder: Path, tokenizer: Any) -> None:
    """An ordinary tokenizer folder; a full disk is the user's to put right, not a bug."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(f"{folder}: the tokenizer could not be written ({error})") from error


def load_lm(folder: str, mesh: jax.sharding.Mesh) -> tuple[LM, Any, Any]:
    """Language model, parameters and tokenizer of a folder."""
    config = _model_config(folder, "lm", "a language model")
    lm = make_lm(_transformer(folder, config))
    params = checkpoint.load_params(folder, loop.abstract_params(lm.init, mesh=mesh))
    return lm, params, tokenizers.load_tokenizer(folder)


def load_scalar(folder: str, mesh: jax.sharding.Mesh) -> tuple[ScalarModel, Any, Any]:
    """Reward model, parameters and tokenizer of a folder."""
    config = _model_config(folder, "scalar", "a reward model")
    model = make_scalar_model(
        _transformer(folder, config["lm"]),
        final_norm=config["final_norm"],
        pooling=config["pooling"],
    )
    params = checkpoint.load_params(folder, loop.abstract_params(model.init, mesh=mesh))
    return model, params, tokenizers.load_tokenizer(folder)


def same_tokenizer(a: Any, b: Any, what: str) -> None:
    """Refuse two models that read different tokens: nothing is decoded and tokenised again."""
    if a.get_vocab() != b.get_vocab():
        raise UserError(f"{what} use different tokenizers; train them from the same one")


def _model_config(folder: str, kind: str, wanted: str) -> dict[str, Any]:
    found, config = checkpoint.describe_model(folder)
    if found != kind:
        raise CheckpointError(f"{folder}: holds a model of kind {found!r}, {wanted} is needed")
    return config


def _transformer(folder: str, config: Mapping[str, Any]) -> TransformerConfig:
    try:
        return TransformerConfig(**config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/model.json: {error}") from error
