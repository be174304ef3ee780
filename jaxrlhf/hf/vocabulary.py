"""Changing the number of tokens a model knows.

What it does not do: the tokenizer's side.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.models.config import TransformerConfig


def resize(
    config: TransformerConfig, params: Any, vocab_size: int
) -> tuple[TransformerConfig, Any]:
    """The same language model with `vocab_size` tokens: new rows are the mean of the old ones.

    The mean gives a new token a logit near the average, so the distribution over the old ones
    hardly moves. With fewer tokens the last rows go: padding of ours, or of the model's makers.
    Other leaves are shared with `params`, and so is everything where nothing changes.

    Source: J. Hewitt 2021, "Initializing new word embeddings for pretrained language models".
    """
    if vocab_size < 1:
        raise ValueError(f"vocab_size={vocab_size} must be at least 1")
    if vocab_size == config.vocab_size:
        return config, params
    resized = dict(params)
    resized["embed"] = {"embedding": _resized(params["embed"]["embedding"], vocab_size, axis=0)}
    if "lm_head" in params:
        resized["lm_head"] = {"kernel": _resized(params["lm_head"]["kernel"], vocab_size, axis=1)}
    return dataclasses.replace(config, vocab_size=vocab_size), resized


def _resized(leaf: jax.Array, size: int, *, axis: int) -> jax.Array:
    extra = size - leaf.shape[axis]
    if extra <= 0:
        return jax.lax.slice_in_dim(leaf, 0, size, axis=axis)
    mean = jnp.mean(leaf, axis=axis, keepdims=True, dtype=jnp.float32).astype(leaf.dtype)
    return jnp.concatenate([leaf, jnp.repeat(mean, extra, axis=axis)], axis=axis)
