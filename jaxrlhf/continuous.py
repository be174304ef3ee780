"""Continuous batching: where a response ends, the next one begins, in the same step.

The loop of `sampling.py` holds a row for every response until the longest has ended. Here there are
fewer rows, `Sampling.slots`, and a queue: a row whose response has ended takes the next one. All
prompts are read first, together and once, however many responses each gets; to begin a response is
to copy its prompt's keys and values into a row. What is drawn is what the plain loop draws, since a
token depends on its own row alone.

Pure functions; `inference.py` compiles them.

What it does not do: choosing a token (`sampling.py`); a queue for every device of a mesh (there is
one queue, so rows go between devices).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrlhf.models.transformer import LM, Cache, Params
from jaxrlhf.sampling import Sampling, choose, is_stop


class Responses(NamedTuple):
    """The B responses of a queue, as far as they are drawn."""

    tokens: jax.Array  # [B, N]
    mask: jax.Array  # [B, N]
    log_probs: jax.Array  # [B, N]
    finished: jax.Array  # [B]


class Slots(NamedTuple):
    """What the S rows do; a row without a response has number B."""

    number: jax.Array  # [S] int32, the response that is drawn
    step: jax.Array  # [S] int32, tokens drawn of it
    last: jax.Array  # [S] int32, the token drawn last
    hidden: jax.Array  # [S, D], what the next token is drawn from
    cache: Cache  # S rows


class Queue(NamedTuple):
    """M prompts as they were read; response b is to prompt b // (B / M)."""

    hidden: jax.Array  # [M, D]
    cache: Cache  # M rows, P columns
    keys: jax.Array  # [B]


def respond(
    lm: LM,
    weights: Params,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    keys: jax.Array,
    sampling: Sampling,
) -> Responses:
    """Draw B = `keys.size` responses to left-padded prompts `[M, P]`, `sampling.slots` at a time.

    B is a multiple K of M; the K responses to a prompt stand side by side.
    """
    count, new = keys.size, sampling.max_new_tokens
    read = lm.prefill(weights, prompts, prompt_mask, cache_length=prompts.shape[1])
    queue = Queue(*read, keys.reshape(-1))

    def going_on(carry):
        slots, begun, _ = carry
        return jnp.any(slots.number < count) | (begun < count)

    def body(carry):
        slots, begun, responses = carry
        hidden, cache = lm.decode(weights, slots.last, slots.cache)
        slots, begun = _fill(slots._replace(hidden=hidden, cache=cache), begun, queue)
        return draw(slots, begun, responses)

    def draw(slots, begun, responses):
        row_keys = queue.keys[jnp.minimum(slots.number, count - 1)]
        logits = lm.logits(weights, slots.hidden)
        drawn, log_probs = choose(logits, row_keys, slots.step, sampling)
        stops = is_stop(drawn, sampling)
        place = slots.number, slots.step  # outside for a row without a response: nothing is written
        responses = Responses(
            tokens=responses.tokens.at[place].set(drawn),
            mask=responses.mask.at[place].set(True),
            log_probs=responses.log_probs.at[place].set(log_probs),
            finished=responses.finished.at[slots.number].set(stops),
        )
        ended = stops | (slots.step + 1 == new)
        number = jnp.where(ended, count, slots.number)
        return slots._replace(number=number, step=slots.step + 1, last=drawn), begun, responses

    empty = Responses(
        tokens=jnp.full((count, new), sampling.pad_id, jnp.int32),
        mask=jnp.zeros((count, new), bool),
        log_probs=jnp.zeros((count, new)),
        finished=jnp.zeros((count,), bool),
    )
    slots, begun = _fill(_idle(queue, sampling), jnp.int32(0), queue)
    return lax.while_loop(going_on, body, draw(slots, begun, empty))[2]


def _idle(queue: Queue, sampling: Sampling) -> Slots:
    """Rows that draw nothing yet, with caches for a prompt and its response."""
    assert sampling.slots is not None
    rows = sampling.slots
    # the last token is never read, hence one column less
    columns = queue.cache.mask.shape[1] + sampling.max_new_tokens - 1

    def wider(x):  # [M, K, P, h] -> [S, K, P + N - 1, h]
        return jnp.zeros((rows, x.shape[1], columns, x.shape[3]), x.dtype)

    zeros = jnp.zeros((rows,), jnp.int32)
    return Slots(
        number=zeros + queue.keys.size,
        step=zeros,
        last=zeros,
        hidden=jnp.zeros((rows, queue.hidden.shape[1]), queue.hidden.dtype),
        cache=Cache(
            keys=jax.tree.map(wider, queue.cache.keys),
            values=jax.tree.map(wider, queue.cache.values),
            mask=jnp.zeros((rows, columns), bool),
            positions=zeros,
            slot=zeros,
        ),
    )


def _fill(slots: Slots, begun: jax.Array, queue: Queue) -> tuple[Slots, jax.Array]:
    """Rows without a response take the next of the queue; `begun` counts those taken."""
    count = queue.keys.size
    samples = count // queue.hidden.shape[0]
    width, columns = queue.cache.mask.shape[1], slots.cache.mask.shape[1]

    def has_room(carry):
        slots, begun = carry
        return jnp.any(slots.number == count) & (begun < count)

    def begin(carry):
        slots, begun = carry
        row, prompt = jnp.argmax(slots.number == count), begun // samples

        def put(into, source):
            """The prompt's row of `source` into the row's first columns."""
            piece = lax.dynamic_slice_in_dim(source, prompt, 1)
            return lax.dynamic_update_slice(into, piece, (row, *(0,) * (into.ndim - 1)))

        old, read = slots.cache, queue.cache
        cache = Cache(
            keys=jax.tree.map(put, old.keys, read.keys),
            values=jax.tree.map(put, old.values, read.values),
            mask=put(old.mask, jnp.pad(read.mask, ((0, 0), (0, columns - width)))),
            positions=put(old.positions, read.positions),
            slot=old.slot.at[row].set(width),
        )
        return slots._replace(
            number=slots.number.at[row].set(begun),
            step=slots.step.at[row].set(0),
            hidden=put(slots.hidden, queue.hidden),
            cache=cache,
        ), begun + 1

    return lax.while_loop(has_room, begin, (slots, begun))
