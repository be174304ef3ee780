"""A scalar head on a language model: one number a token (value model) or a sequence (reward model).

What it does not do: losses, normalisation statistics (`affine` only folds given ones in), the shift
(values come unshifted: entry t is read at token t, after it).
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.models.config import TransformerConfig
from jaxrlhf.models.transformer import LM, Params, make_lm

Pooling = Literal["last", "mean"]


class ScalarModel(NamedTuple):
    """A scalar model as pure functions over `{"lm": ..., "head": {"kernel": [D], "bias": []}}`.

    `config` is the language model's; `final_norm` False reads the residual stream before that norm;
    `pooling` makes a sequence's score of its tokens' values: the last one, or their mean.
    """

    config: TransformerConfig
    final_norm: bool
    pooling: Pooling
    init: Callable[..., Params]
    apply: Callable[..., jax.Array]
    scores: Callable[..., jax.Array]


def make_scalar_model(
    lm_config: TransformerConfig, *, final_norm: bool = True, pooling: Pooling = "last"
) -> ScalarModel:
    """The scalar model of a config; cached. `final_norm=False` leaves the score unbounded.

    Mean pooling adds up evidence over the text, as a bag of words does; the last token has to learn
    what to remember, which takes more pairs.
    """
    return _make_scalar_model(lm_config, final_norm, pooling)


@functools.cache  # one object for one model, however it was asked for: jit compares by identity
def _make_scalar_model(
    lm_config: TransformerConfig, final_norm: bool, pooling: Pooling
) -> ScalarModel:
    lm = make_lm(lm_config)
    return ScalarModel(
        config=lm_config,
        final_norm=final_norm,
        pooling=pooling,
        init=functools.partial(_init, lm),
        apply=functools.partial(_apply, lm, final_norm),
        scores=functools.partial(_scores, lm, final_norm, pooling),
    )


def affine(params: Params, gain: jax.Array | float, bias: jax.Array | float) -> Params:
    """Parameters whose scores are gain * s + bias, s the scores of `params`."""
    head = params["head"]
    head = {"kernel": head["kernel"] * gain, "bias": head["bias"] * gain + bias}
    return {**params, "head": head}


def read(head: Params, hidden: jax.Array) -> jax.Array:
    """Values `[..., T]` float32 of hidden states `[..., T, D]`, for a head on another's trunk."""
    return hidden.astype(jnp.float32) @ head["kernel"] + head["bias"]


def body(lm_params: Params) -> Params:
    """What a scalar model has of a language model: all but the output head; not copied."""
    return {name: value for name, value in lm_params.items() if name != "lm_head"}


def init_head(width: int, key: jax.Array, *, zero: bool = False) -> Params:
    """A fresh head for hidden states of `width`: kernel ~ N(0, 1/(D+1)) (a variance), bias 0.

    Both zero with `zero`. Source: Stiennon et al. 2020, appendix B.1, where 1/(d+1) is the
    variance, as in the code of Ziegler et al. 2019.
    """
    kernel = jax.random.normal(key, (width,)) / math.sqrt(width + 1)
    return {"kernel": jnp.zeros_like(kernel) if zero else kernel, "bias": jnp.zeros(())}


def _init(lm: LM, key: jax.Array, lm_params: Params | None = None, *, zero: bool = False) -> Params:
    """A language model, fresh without `lm_params`, and a head of `init_head`.

    `lm_params` are the caller's own arrays, not copied. The output head is dropped.
    """
    lm_key, head_key = jax.random.split(key)
    if lm_params is None:
        lm_params = lm.init(lm_key)
    return {"lm": body(lm_params), "head": init_head(lm.config.d_model, head_key, zero=zero)}


def _apply(
    lm: LM, final_norm: bool, params: Params, tokens: jax.Array, mask: jax.Array
) -> jax.Array:
    """Values `[B, T]` float32, unshifted: entry t has read tokens <= t."""
    return read(params["head"], lm.hidden(params["lm"], tokens, mask, final_norm=final_norm))


def _scores(
    lm: LM,
    final_norm: bool,
    pooling: Pooling,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    """Scores `[B]` float32: the value at the last real token, whatever side the padding is on.

    With mean pooling: the mean of the values at all real tokens. An empty row scores 0.
    """
    values = _apply(lm, final_norm, params, tokens, mask)
    if pooling == "mean":
        total = jnp.sum(jnp.where(mask, values, 0.0), axis=1)
        return total / jnp.maximum(jnp.sum(mask, axis=1), 1)
    after = jnp.cumsum(mask[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]
    return jnp.sum(jnp.where(mask & (after == 1), values, 0.0), axis=1)
