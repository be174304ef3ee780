"""How a token is chosen: temperature and filters, the draw, and the responses that grow by it.

Pure functions of one step; `inference.py` compiles them, in a loop or one at a time.

What it does not do: prompts and their padding, the KV cache (an argument, which the model knows).
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrlhf.models.transformer import LM, Params


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How responses are drawn. Hashable; wrong values raise ValueError naming the field.

    The logits pass through, in this order: stop ids forbidden (in the first `min_new_tokens`),
    temperature, top_k, top_p, min_p; every filter sees what the one before it left, renormalised.

    temperature: logits are divided by it; 0 is greedy.
    top_k: keep the k most probable tokens (and ties with the k-th); 0 keeps all.
    top_p: keep the smallest set of most probable tokens that holds at least this mass (and ties).
    min_p: keep tokens of at least this share of the most probable token's probability; 0 keeps all.
    stop_ids: tokens that end a response; the one sampled belongs to the response.
    pad_id: what fills the columns after it; may be a stop id, since the mask alone decides.
    slots: responses drawn at a time, the next one beginning where one ends (`continuous.py`); None:
      all at once. It changes the time that drawing takes, not what is drawn.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_ids: tuple[int, ...] = ()
    pad_id: int = 0
    slots: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop_ids", tuple(int(i) for i in self.stop_ids))
        low, high = self.min_new_tokens, self.max_new_tokens
        _check(self, "max_new_tokens", high >= 1, "at least 1")
        _check(self, "min_new_tokens", 0 <= low <= high, f"between 0 and max_new_tokens={high}")
        _check(self, "temperature", 0 <= self.temperature < float("inf"), "0 (greedy) or positive")
        _check(self, "top_k", self.top_k >= 0, "0 (off) or positive")
        _check(self, "top_p", 0 < self.top_p <= 1, "in (0, 1]")
        _check(self, "min_p", 0 <= self.min_p < 1, "in [0, 1)")
        _check(self, "pad_id", self.pad_id >= 0, "a token id")
        _check(self, "slots", self.slots is None or self.slots >= 1, "at least 1, or None")
        _check(self, "stop_ids", all(i >= 0 for i in self.stop_ids), "token ids")

    def check_ids(self, vocab_size: int) -> None:
        """Raise ValueError where an id is outside the vocabulary."""
        rule = f"below vocab_size={vocab_size}"
        _check(self, "pad_id", self.pad_id < vocab_size, rule)
        _check(self, "stop_ids", max((0, *self.stop_ids)) < vocab_size, rule)

    @property
    def unfiltered(self) -> bool:
        """True if the stored log-probs equal `score` at the same temperature (invariant A4)."""
        filtered = self.top_k > 0 or self.top_p < 1 or self.min_p > 0 or self.temperature == 0
        return not filtered and not (self.stop_ids and self.min_new_tokens > 0)


class Drawn(NamedTuple):
    """The responses so far; N is `max_new_tokens`."""

    step: jax.Array  # int32 scalar: tokens drawn so far
    tokens: jax.Array  # [B, N]
    mask: jax.Array  # [B, N]
    log_probs: jax.Array  # [B, N]
    last: jax.Array  # [B] the tokens drawn last
    finished: jax.Array  # [B]


def first_token(
    lm: LM,
    weights: Params,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    keys: jax.Array,
    sampling: Sampling,
) -> tuple[Drawn, Any]:
    """Read left-padded prompts `[M, P]` and draw the first token of each of B responses.

    B = `keys.size` is a multiple K of M: the K responses to a prompt stand side by side.
    """
    rows, new = keys.size, sampling.max_new_tokens
    # the last token is never read, hence one column less
    length = prompts.shape[1] + new - 1
    hidden, cache = lm.prefill(weights, prompts, prompt_mask, cache_length=length)
    hidden, cache = repeated((hidden, cache), rows // prompts.shape[0])
    empty = Drawn(
        step=jnp.int32(0),
        tokens=jnp.full((rows, new), sampling.pad_id, jnp.int32),
        mask=jnp.zeros((rows, new), bool),
        log_probs=jnp.zeros((rows, new)),
        last=jnp.zeros((rows,), jnp.int32),
        finished=jnp.zeros((rows,), bool),
    )
    return _draw(empty, lm.logits(weights, hidden), keys, sampling), cache


def next_token(
    lm: LM, weights: Params, so_far: Drawn, cache: Any, keys: jax.Array, sampling: Sampling
) -> tuple[Drawn, Any]:
    """Read the tokens drawn last and draw the next."""
    hidden, cache = lm.decode(weights, so_far.last, cache)
    return _draw(so_far, lm.logits(weights, hidden), keys, sampling), cache


def repeated(tree: Any, times: int) -> Any:
    """Every row of every array `times` times, side by side; scalars as they are."""
    if times == 1:
        return tree
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0) if x.ndim else x, tree)


def choose(
    logits: jax.Array, keys: jax.Array, step: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
    """Token `[B]` int32 drawn from `logits` `[B, V]`, and its log-prob `[B]` float32.

    `step` counts the tokens drawn before: a scalar, or `[B]` where rows began at different times.
    Token t of a row is drawn with `fold_in(key, t)`.
    """
    step = jnp.broadcast_to(step, keys.shape)
    if sampling.stop_ids and sampling.min_new_tokens:
        stops = is_stop(jnp.arange(logits.shape[-1]), sampling)
        forbidden = stops[None, :] & (step < sampling.min_new_tokens)[:, None]
        logits = jnp.where(forbidden, -jnp.inf, logits)
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.zeros(step.shape)
    logits = filtered_logits(logits, sampling)
    step_keys = jax.vmap(jax.random.fold_in)(keys, step)
    return draw(step_keys, logits)


def is_stop(tokens: jax.Array, sampling: Sampling) -> jax.Array:
    """Which of `tokens` end a response."""
    return jnp.isin(tokens, jnp.array(sampling.stop_ids, jnp.int32))


def _draw(so_far: Drawn, logits: jax.Array, keys: jax.Array, sampling: Sampling) -> Drawn:
    """Draw the next token of every row that goes on, and write it into column `so_far.step`."""
    drawn, log_probs = choose(logits, keys, so_far.step, sampling)
    going = ~so_far.finished

    def write(array, column):
        return lax.dynamic_update_slice(array, column[:, None], (0, so_far.step))

    return Drawn(
        step=so_far.step + 1,
        tokens=write(so_far.tokens, jnp.where(going, drawn, sampling.pad_id)),
        mask=write(so_far.mask, going),
        log_probs=write(so_far.log_probs, jnp.where(going, log_probs, 0.0)),
        last=jnp.where(going, drawn, sampling.pad_id),
        finished=so_far.finished | is_stop(drawn, sampling),
    )


def draw(keys: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A token of each row of `logits` `[B, V]`, and its log-prob, both `[B]`.

    By inversion: the first token whose cumulative probability exceeds a uniform number, found
    first among blocks of the vocabulary, then within one. The Gumbel trick needs a random number
    and two logarithms for each entry, and took a seventh of generation's time on a CPU.
    """
    rows, size = logits.shape
    width = math.isqrt(size - 1) + 1
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.pad(jnp.exp(logits - top), ((0, 0), (0, -size % width)))
    blocks = weights.reshape(rows, -1, width)
    ends = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    total = ends[:, -1]
    point = jax.vmap(jax.random.uniform)(keys) * total
    block, before = _first_above(ends, point)
    chosen = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    within, _ = _first_above(jnp.cumsum(chosen, axis=-1), point - before)
    token = block * width + within
    picked = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token, picked - top[:, 0] - jnp.log(total)


def _first_above(ends: jax.Array, point: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where rising sums `[B, N]` first exceed `point` `[B]`, and the sum before that.

    Rounding can leave none that does: then the last rise, so that nothing of weight 0 is drawn.
    """
    last = jnp.argmax(ends == ends[:, -1:], axis=-1)
    first = jnp.minimum(jnp.sum(ends <= point[:, None], axis=-1), last).astype(jnp.int32)
    before = jnp.take_along_axis(ends, jnp.maximum(first - 1, 0)[:, None], axis=-1)[:, 0]
    return first, jnp.where(first > 0, before, 0.0)


def filtered_logits(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits `[B, V]` after temperature, top_k, top_p and min_p; -inf marks what was removed.

    Sources: Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p), Nguyen et al. 2024 (min-p).
    """
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kept = _largest(logits, lambda kept: jnp.sum(kept, -1, keepdims=True) >= sampling.top_k)
        logits = jnp.where(kept, logits, -jnp.inf)
    if sampling.top_p < 1:
        probs = jax.nn.softmax(logits)
        kept = _largest(
            probs,
            lambda kept: jnp.sum(probs, -1, where=kept, keepdims=True) >= sampling.top_p,
        )
        logits = jnp.where(kept, logits, -jnp.inf)
    if sampling.min_p > 0:
        largest = jnp.max(logits, axis=-1, keepdims=True)
        logits = jnp.where(logits < largest + np.log(sampling.min_p), -jnp.inf, logits)
    return logits


def _largest(values, enough):
    """The fewest largest of `values` `[B, V]` float32, and ties, that are `enough`, as a mask.

    Bisection over the bits of the least one kept, which is exact: 32 sums, where sorting a
    vocabulary takes far longer.
    """

    def ordered(x):  # int32 in the order of the floats
        bits = lax.bitcast_convert_type(x, jnp.int32)
        return bits ^ ((bits >> 31) & 0x7FFFFFFF)

    def halve(_, bounds):
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        holds = enough(keys >= middle)
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle)

    keys, ends = ordered(values), ordered(jnp.float32([-jnp.inf, jnp.inf]))
    bounds = tuple(jnp.full((values.shape[0], 1), end) for end in ends)
    return keys >= lax.fori_loop(0, 32, halve, bounds)[0]


def _check(config, field, holds, rule):
    if not holds:
        raise ValueError(f"{field}={getattr(config, field)!r} must be {rule}")
