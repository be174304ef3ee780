"""Supervised fine-tuning, and pre-training: next-token cross-entropy on the marked tokens.

The batch says which tokens count (`loss_mask`): all of a document, or the assistant's alone.
Packed rows carry `segment_ids`; the first token of a segment is never predicted from the last
token of the one before.
"""

import jax.numpy as jnp
import optax

from jaxrlhf.algorithms.base import (
    Algorithm,
    Params,
    Sums,
    accumulated_grad,
    new_state,
    whole,
)
from jaxrlhf.inference import token_stats
from jaxrlhf.losses import log_probs, masked, supervised
from jaxrlhf.models import LM


def sft(
    lm: LM,
    optimizer: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
    chunk_size: int | None = None,
    frozen: Params = None,
) -> Algorithm:
    """Minimise the mean negative log-likelihood of the marked tokens, in nats a token.

    Args:
      lm: the model that is trained.
      optimizer: any optax transformation.
      micro_batches: pieces of the batch whose gradients are accumulated.
      chunk_size: vocabulary entries at a time in the output layer; None keeps `[B, T, V]`.
      frozen: the parameters that do not train (`lora.frozen`); those that do are then adapters.
    Batches: `tokens` `[B, T]`, `mask`, `loss_mask`, and `segment_ids` where rows are packed.
    """

    def init(params, key):
        return new_state(params, optimizer)

    def collect(state, next_batch, key):
        return next_batch(), {}

    def update(state, batch, key, frozen=None):
        counted = predicted(batch)
        total = jnp.maximum(jnp.sum(counted), 1).astype(jnp.float32)

        def loss_fn(params, rows):
            counted, params = predicted(rows), whole(params, frozen)
            hidden = lm.hidden(
                params, rows["tokens"], rows["mask"], segment_ids=rows.get("segment_ids")
            )
            stats = token_stats(
                lm, params, log_probs.shift(hidden), rows["tokens"], chunk_size=chunk_size
            )
            loss = masked.sum(supervised.cross_entropy(stats.log_probs), counted) / total
            entropy = masked.sum(stats.entropy, counted) / total
            return loss, Sums({"loss": loss, "entropy": entropy}, {})

        grads, sums = accumulated_grad(loss_fn, state.params, batch, micro_batches=micro_batches)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            **sums.add,
            "perplexity": jnp.exp(jnp.minimum(sums.add["loss"], 30.0)),
            "tokens": total,
            "grad_norm": optax.tree.norm(grads),
        }
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return Algorithm(init, collect, update, frozen)


def predicted(batch):
    """`[B, T]` bool: marked tokens that have a real predecessor in their own segment."""
    before = log_probs.shift(batch["mask"])
    if "segment_ids" in batch:
        before = before & (log_probs.shift(batch["segment_ids"]) == batch["segment_ids"])
    return batch["loss_mask"] & batch["mask"] & before
