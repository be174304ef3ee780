"""The contract every training method keeps: three functions and the state between them.

    init(params, key)          -> State             copies params: donation never hits the caller's
    collect(state, next, key)  -> (batch, metrics)  ordinary Python: samples, asks frozen models
    update(state, batch, key)  -> (state, metrics)  pure; jitted and donated; sees no frozen model

Where a model is trained in part (LoRA), its frozen part is a fourth field, which `update` is handed
as a fourth argument: read, never donated, never in a checkpoint. `state.params` are then the
trained part alone; `whole` unites them.

What is shared by several methods lives here too: settings with a description, and gradients
accumulated over micro-batches. Nothing here knows a loop, a mesh, a file or a config format.
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

import jax
import jax.numpy as jnp

from jaxrlhf.models import lora

Array = jax.Array
Params = Any
Batch = Mapping[str, Any]  # arrays, or tuples of them, whose first axis is the batch
Metrics = dict[str, Any]  # f32 scalars by name
NextBatch = Callable[[], Batch]
LIMITS = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "above"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "below"),
}


class State(NamedTuple):
    """Everything a run must keep to go on after a crash. A pytree."""

    step: Array  # int32 scalar: updates done
    params: Params
    opt_state: Any
    extra: Any  # what else must survive: KL coefficient, running moments


class Algorithm(NamedTuple):
    """A training method: see the header of this file.

    `frozen` has to lie where training runs (the caller's mesh), as any frozen model has.
    """

    init: Callable[[Params, Array], State]
    collect: Callable[[State, NextBatch, Array], tuple[Batch, Metrics]]
    update: Callable[..., tuple[State, Metrics]]
    frozen: Params = None


class Sums(NamedTuple):
    """What a loss function reports beside its value: additive parts, and maxima."""

    add: dict[str, Array]
    maximum: dict[str, Array]


def setting(default: Any, description: str, **limits: Any) -> Any:
    """A dataclass field that carries its own description and limits (`ge`, `gt`, `le`, `lt`)."""
    return dataclasses.field(default=default, metadata={"description": description, **limits})


def check_settings(settings: Any) -> None:
    """Raise ValueError, naming the field, where a dataclass of `setting`s is out of its limits."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        choices = get_args(field.type) if get_origin(field.type) is Literal else (value,)
        if value not in choices:
            raise ValueError(f"{field.name} {value!r}: must be one of {', '.join(choices)}")
        for name, (holds, words) in LIMITS.items():
            limit = field.metadata.get(name)
            if limit is not None and value is not None and not holds(value, limit):
                raise ValueError(f"{field.name} {value}: must be {words} {limit}")


def new_state(params: Params, optimizer: Any, extra: Any = None) -> State:
    """A state at step 0 that owns its arrays: `params` are copied, never aliased.

    Without the copy a donated update would delete the caller's arrays, for instance the
    reference policy that a PPO run starts from.
    """
    params = jax.tree.map(jnp.copy, params)
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), extra or {})


def whole(params: Params, frozen: Params) -> Params:
    """The parameters that a model computes with: trained ones, and frozen ones if there are any."""
    return params if frozen is None else lora.attach(frozen, params)


def accumulated_grad(
    loss_fn: Callable[[Params, Batch], tuple[Array, Sums]],
    params: Params,
    batch: Batch,
    *,
    micro_batches: int,
) -> tuple[Params, Sums]:
    """Gradient of `loss_fn` over `batch`, one micro-batch in memory at a time.

    The loss must be a sum over rows divided by *whole-batch* constants: then the sum of the
    micro-batch gradients is the gradient of the batch, whatever the split.

    Args:
      loss_fn: `(params, micro_batch) -> (loss, Sums)`.
      params: pytree to differentiate.
      batch: arrays `[B, ...]`; B must be a multiple of `micro_batches`.
      micro_batches: how many pieces, taken with a stride so that every device holds rows of each.
    Returns:
      Gradients, and the `Sums` over all pieces (added, or the maximum).
    """
    grad_fn = jax.grad(loss_fn, has_aux=True)
    if micro_batches == 1:
        return grad_fn(params, batch)
    pieces = jax.tree.map(lambda x: split_rows(x, micro_batches), batch)
    first = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
    grads, sums = zeros
    start = grads, sums._replace(maximum=jax.tree.map(lambda x: x - jnp.inf, sums.maximum))

    def add(total, piece):
        (grads, sums), (more, new) = total, grad_fn(params, piece)
        return (jax.tree.map(jnp.add, grads, more), combine(sums, new)), None

    return jax.lax.scan(add, start, pieces)[0]


def combine(a: Sums, b: Sums) -> Sums:
    """Sums of two disjoint sets of rows."""
    return Sums(
        jax.tree.map(jnp.add, a.add, b.add), jax.tree.map(jnp.maximum, a.maximum, b.maximum)
    )


def split_rows(x: Array, pieces: int) -> Array:
    """`[B, ...] -> [pieces, B // pieces, ...]`, row i to piece i % pieces."""
    if x.shape[0] % pieces:
        raise ValueError(f"batch of {x.shape[0]} rows does not divide into {pieces} pieces")
    return x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]).swapaxes(0, 1)
