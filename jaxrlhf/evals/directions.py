"""Directions in the residual stream: read after a block, found as a difference of means, removed.

    r = mean h(some prompts) - mean h(other prompts),     r^ = r / |r|

A projection h . r^ is a probe; weights that cannot write along r^ are a model without it: every
matrix W that writes to the stream becomes W - (W r^) r^T, which is the same as h <- h - (h . r^) r^
after each of them (Arditi et al. 2024, 2406.11717, section 4.1).

What it does not do: choose prompts or a layer, and models that norm what a block writes (Gemma,
OLMo 2): there the norm comes after the matrix.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrlhf import inference
from jaxrlhf.models import LM, make_lm

WRITES = ("embed", "pos_embed", "o_proj", "down_proj")
"""What writes to the residual stream."""


def residuals(lm: LM, params: Any, tokens: np.ndarray, mask: np.ndarray) -> list[jax.Array]:
    """`[B, D]` float32 a block, at the last real token of each row.

    Args:
      tokens: `[B, T]` padded on the left, so that all rows end in the last column.
    """
    asked = jnp.asarray(tokens), jnp.asarray(mask)
    found = []
    for layers in range(1, lm.config.num_layers + 1):
        blocks = jax.tree.map(lambda x, layers=layers: x[:layers], params["blocks"])
        part = {**params, "blocks": blocks}
        found.append(inference.last_residual(_lower(lm, layers), part, *asked))
    return found


def _lower(lm: LM, layers: int) -> LM:
    """The first blocks of a model."""
    config = lm.config
    windows = config.layer_windows and config.layer_windows[:layers]
    rope = config.layer_rope and config.layer_rope[:layers]
    return make_lm(
        dataclasses.replace(config, num_layers=layers, layer_windows=windows, layer_rope=rope)
    )


def between(a: ArrayLike, b: ArrayLike) -> jax.Array:
    """The unit vector `[D]` from the mean of `b` `[M, D]` to that of `a` `[N, D]`."""
    difference = jnp.asarray(a).mean(axis=0) - jnp.asarray(b).mean(axis=0)
    return difference / jnp.linalg.norm(difference)


def without(params: Any, direction: jax.Array) -> Any:
    """Parameters of the model that cannot write along the unit vector `direction` `[D]`.

    A head that is tied to the embedding changes with it. Adapters are to be merged first.
    """

    def removed(path, x):
        names = [str(getattr(part, "key", "")) for part in path]
        if not set(names) & set(WRITES):
            return x
        return x - jnp.einsum("...d,d,e->...e", x, direction, direction)

    return jax.tree_util.tree_map_with_path(removed, params)
