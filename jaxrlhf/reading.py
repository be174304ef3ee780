"""How a forward pass reads a batch: row by row, padding and all, or packed (`packing.py`).

Either way a model gets rows, and what it says in their columns comes back as `[B, N]`, about each
response token. The two differ here alone; losses and signals never see which it was.

Deliberately not here: jit, models, and which sequence goes where.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf import packing
from jaxrlhf.losses import log_probs
from jaxrlhf.models import heads
from jaxrlhf.models.config import TransformerConfig
from jaxrlhf.models.heads import ScalarModel
from jaxrlhf.packing import Packed

Array = jax.Array


class Reading(NamedTuple):
    """What a model reads, and the way from its columns to response tokens.

    `aligned` takes what a model says in all its columns, `[rows, columns, ...]`, to what it said
    before each response token, `[X, M, ...]`, as `tokens` lie; `spread` takes that to `[B, N]`.
    """

    inputs: dict[str, Any]  # arguments of `LM.hidden` and `ScalarModel.apply`
    tokens: Array  # [X, M] int32
    aligned: Callable[[Array], Array]
    spread: Callable[[Array], Array]  # 0 where the response is masked


def of(tokens: Array, mask: Array, *, length: int, packed: Packed | None = None) -> Reading:
    """Of the last `length` columns of `[B, T]`, from those rows or from `packed` ones."""
    if packed is not None:
        return of_packed(packed, mask[:, -length:])
    return of_padded(tokens, mask, length=length)


def of_padded(tokens: Array, mask: Array, *, length: int) -> Reading:
    """X = B and M = N: responses are the last N columns, which models are asked about alone."""
    response = mask[:, -length:]
    return Reading(
        # predictions stand one column before what they predict
        inputs={"tokens": tokens, "mask": mask, "last": length + 1},
        tokens=jnp.where(response, tokens[:, -length:], 0),
        aligned=lambda x: log_probs.shift(x)[:, -length:],
        spread=lambda x: jnp.where(response, x, 0.0),
    )


def of_packed(packed: Packed, mask: Array) -> Reading:
    """X is cells: only what stands before the response tokens, `packed.places`, is taken out.

    Args:
      mask: `[B, N]` bool, the response tokens; cells lie one after the other in it.
    """
    return Reading(
        inputs=_rows(packed),
        tokens=_taken(packed, _flat(packed.tokens)),
        aligned=lambda x: _taken(packed, log_probs.shift(x)),
        spread=lambda x: _spread(x, mask),
    )


def scores(model: ScalarModel, params: Any, packed: Packed, mask: Array) -> Array:
    """Scores of packed texts, `[B]` of a `mask` `[B, T]`, or `[B, K]` of `[B, K, T]`.

    `packed.places` must be those of all real tokens.
    """
    values = _spread(_taken(packed, model.apply(params, **_rows(packed))), mask)
    rows = -1, mask.shape[-1]
    pooled = heads.pooled(values.reshape(rows), mask.reshape(rows), model.pooling)
    return pooled.reshape(mask.shape[:-1])


def pack(
    tokens: Any,
    mask: Any,
    read: Any,
    *,
    like: Any,
    configs: Sequence[TransformerConfig],
    groups: int = 1,
) -> Packed:
    """`packing.pack` for models of these configs; a shard's cells lie where its rows of `like` do.

    Ordinary Python: arrays of devices are fetched from them.
    """
    limits = [c.rope_scaling.limit(c.max_positions) for c in configs if c.rope_scaling]
    widest = min((limit for limit in limits if limit is not None), default=None)
    tokens, mask, read = np.asarray(tokens), np.asarray(mask), np.asarray(read)
    made = packing.pack(tokens, mask, read, shards=shards(like), groups=groups, widest=widest)
    return placed(made, like)


def shards(x: Any) -> int:
    """Over how many devices the rows of `x` are spread; 1 where other axes are split too."""
    if not isinstance(x, jax.Array):
        return 1
    shape = x.sharding.shard_shape(x.shape)
    return x.shape[0] // shape[0] if shape[1:] == x.shape[1:] else 1


def placed(tree: Any, like: Any) -> Any:
    """Arrays whose rows are spread as those of `like`."""
    return jax.device_put(tree, like.sharding if shards(like) > 1 else None)


# ------------------------------------------------------------------ helpers


def _rows(packed):
    """`[C R, W]`: all cells' rows as one batch."""
    tokens, segment_ids = _flat(packed.tokens), _flat(packed.segment_ids)
    return {"tokens": tokens, "mask": segment_ids > 0, "segment_ids": segment_ids}


def _flat(x):
    return x.reshape(-1, x.shape[-1])


def _taken(packed, x):
    """`[C R, W, ...] -> [C, M, ...]`: the columns `places` of each cell."""
    cells = packed.places.shape[0]
    x = x.reshape(cells, -1, *x.shape[2:])
    return jax.vmap(lambda x, places: x[places])(x, packed.places)


def _spread(x, mask):
    """`[C, M]` to the shape of `mask`, whose real entries they are in order; 0 elsewhere."""
    real = mask.reshape(x.shape[0], -1)
    order = jnp.maximum(jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1, 0)
    spread = jnp.where(real, jnp.take_along_axis(x, order, axis=1), 0.0)
    return spread.reshape(mask.shape)
