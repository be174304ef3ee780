"""Heads on a language model: one number a token (value model) or a sequence (reward model), or one
logit a class (classifier).

What it does not do: losses, normalisation statistics (`affine` only folds given ones in), the shift
(values come unshifted: entry t is read at token t, after it).
"""

import functools
import math
from collections.abc import Callable, Sequence
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


class Classifier(NamedTuple):
    """K classes as pure functions over `{"lm": ..., "classifier": {"kernel": [D, K]}}`.

    `logits` `[B, K]` are read where a `ScalarModel` with the same flags reads its score; without
    a bias, as sequence classifiers of `transformers` are.
    """

    config: TransformerConfig
    classes: int
    final_norm: bool
    pooling: Pooling
    init: Callable[..., Params]
    logits: Callable[..., jax.Array]


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


def make_classifier(
    lm_config: TransformerConfig,
    *,
    classes: int = 2,
    final_norm: bool = True,
    pooling: Pooling = "last",
) -> Classifier:
    """The classifier of a config; cached. Arguments as `make_scalar_model`."""
    return _make_classifier(lm_config, classes, final_norm, pooling)


@functools.cache
def _make_classifier(
    lm_config: TransformerConfig, classes: int, final_norm: bool, pooling: Pooling
) -> Classifier:
    lm = make_lm(lm_config)
    return Classifier(
        config=lm_config,
        classes=classes,
        final_norm=final_norm,
        pooling=pooling,
        init=functools.partial(_init_classifier, lm, classes),
        logits=functools.partial(_class_logits, lm, final_norm, pooling),
    )


def affine(params: Params, gain: jax.Array | float, bias: jax.Array | float) -> Params:
    """Parameters whose scores are gain * s + bias, s the scores of `params`."""
    head = params["head"]
    head = {"kernel": head["kernel"] * gain, "bias": head["bias"] * gain + bias}
    return {**params, "head": head}


def read(head: Params, hidden: jax.Array) -> jax.Array:
    """Values `[..., T]` float32 of hidden states `[..., T, D]`, for a head on another's trunk."""
    return hidden.astype(jnp.float32) @ head["kernel"] + head["bias"]


def pooled(values: jax.Array, mask: jax.Array, pooling: Pooling) -> jax.Array:
    """`[B, T, ...]` -> `[B, ...]`: the value at the last real token, or the mean over real ones."""
    if pooling == "last":
        after = jnp.cumsum(mask[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]
        mask = mask & (after == 1)
    counted = mask.reshape(*mask.shape, *(1,) * (values.ndim - 2))
    total = jnp.sum(jnp.where(counted, values, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(counted, axis=1), 1)


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


def _init_classifier(
    lm: LM,
    classes: int,
    key: jax.Array,
    lm_params: Params | None = None,
    *,
    tokens: Sequence[int] | None = None,
) -> Params:
    """A language model, as `_init` has it, and a head of zeros: every class is equally probable.

    With `tokens`, one a class, the head is their rows of the output layer: the logits are then
    those of the language model for these words (Burns et al. 2023, appendix A).

    Raises:
      ValueError: not one token a class.
    """
    lm_params = lm.init(key) if lm_params is None else lm_params
    kernel = jnp.zeros((lm.config.d_model, classes))
    if tokens is not None:
        if len(tokens) != classes:
            raise ValueError(f"{len(tokens)} tokens for {classes} classes: name one a class")
        kernel = lm.unembed(lm_params)[:, jnp.asarray(tokens)].astype(jnp.float32)
    return {"lm": body(lm_params), "classifier": {"kernel": kernel}}


def _apply(
    lm: LM,
    final_norm: bool,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    last: int | None = None,
) -> jax.Array:
    """Values `[B, T]` float32, unshifted: entry t has read tokens <= t; or the `last` of them.

    Where rows are packed, those of its own segment.
    """
    hidden = lm.hidden(
        params["lm"], tokens, mask, segment_ids=segment_ids, final_norm=final_norm, last=last
    )
    return read(params["head"], hidden)


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
    return pooled(_apply(lm, final_norm, params, tokens, mask), mask, pooling)


def _class_logits(
    lm: LM,
    final_norm: bool,
    pooling: Pooling,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    """Logits `[B, K]` float32, pooled as `_scores`; an empty row has zeros."""
    hidden = lm.hidden(params["lm"], tokens, mask, final_norm=final_norm)
    logits = hidden.astype(jnp.float32) @ params["classifier"]["kernel"]
    return pooled(logits, mask, pooling)
