"""Reward (preference) models: learnt from pairs, the score read at the last real token.

Chosen and rejected texts go through the model as one batch. Labels may be soft (the probability
that "chosen" is better), margins and a centring term are optional, and so is a labeller's lapse
rate; or differences of scores are regressed onto differences of ratings. Normalising the finished
model is the recipe's job (`models.heads.affine`).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jaxrlhf import reading
from jaxrlhf.algorithms.base import (
    Algorithm,
    Batch,
    Params,
    Sums,
    accumulated_grad,
    new_state,
    whole,
)
from jaxrlhf.losses import preference
from jaxrlhf.models.heads import ScalarModel
from jaxrlhf.packing import Packing, deal


def reward(
    model: ScalarModel,
    optimizer: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
    center_rewards_coefficient: float = 0.0,
    lapse: float = 0.0,
    huber_delta: float | None = None,
    packing: Packing = "none",
    frozen: Params = None,
) -> Algorithm:
    """Minimise -weight log sigmoid(score(chosen) - score(rejected) - margin), mean over pairs.

    With `huber_delta`, weight huber(score(chosen) - score(rejected) - margin) instead: margins are
    then differences of ratings.

    Args:
      model: scalar model that is trained.
      optimizer: any optax transformation.
      micro_batches: pieces of the batch whose gradients are accumulated.
      center_rewards_coefficient: weight of (chosen + rejected)^2, which keeps scores near 0.
      lapse: share of labels assumed to be coin flips (Christiano et al. 2017, 2.2.3).
      huber_delta: nats from which on the regression is straight; None: Bradley-Terry.
      packing: "packed" has the model read rows without padding, several texts in each: see
        `jaxrlhf.packing`; the loss is the same up to rounding.
      frozen: `{"lm": lora.frozen(...)}`; what trains is then `{"lm": adapters, "head": ...}`.
    Batches: `chosen_tokens` `[B, T]`, `chosen_mask`, `rejected_tokens`, `rejected_mask`, `label`
    `[B]` = P(chosen is better), `margin` `[B]` in nats, `weight` `[B]`, how much
    a pair counts in the loss and the gradient (all other figures count each once).
    Raises:
      UserError: from `collect`, packed batches that do not divide into micro-batches on devices, or
        a model whose positions do not allow packed rows.
    """

    def init(params, key):
        return new_state(params, optimizer)

    def collect(state, next_batch, key):
        batch = next_batch()
        return (packed_pairs(model, batch, micro_batches) if packing == "packed" else batch), {}

    def pair_loss(chosen, rejected, rows):
        if huber_delta is not None:
            return preference.rating_regression(
                chosen, rejected, gap=rows["margin"], delta=huber_delta
            )
        return preference.bradley_terry(
            chosen, rejected, margin=rows["margin"], label=rows["label"], lapse=lapse
        )

    def update(state, batch, key, frozen=None):
        total = batch["label"].shape[0]

        def loss_fn(params, rows):
            chosen, rejected = pair_scores(model, whole(params, frozen), rows)
            loss = pair_loss(chosen, rejected, rows)
            penalty = preference.centering(chosen, rejected)
            loss = loss + center_rewards_coefficient * penalty
            loss = jnp.sum(rows["weight"] * loss) / total
            agrees = (chosen > rejected) == (rows["label"] > 0.5)
            parts = {
                "loss": loss,
                "accuracy": jnp.sum(agrees) / total,
                "margin": jnp.sum(chosen - rejected) / total,
                "score_mean": jnp.sum(chosen + rejected) / (2 * total),
                "score_square": jnp.sum(chosen**2 + rejected**2) / (2 * total),
            }
            return loss, Sums(parts, {})

        grads, sums = accumulated_grad(loss_fn, state.params, batch, micro_batches=micro_batches)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = dict(sums.add)
        variance = metrics.pop("score_square") - metrics["score_mean"] ** 2
        metrics["score_std"] = jnp.sqrt(jnp.maximum(variance, 0.0))
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["padding"] = 1.0 - jnp.mean(held(batch).astype(jnp.float32))
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return Algorithm(init, collect, update, frozen)


def pair_scores(model, params, rows):
    """Scores `[B]` of the chosen and of the rejected texts, from one forward pass."""
    if "packed" in rows:
        scores = reading.scores(model, params, rows["packed"], _both(rows, "mask"))
        return scores[:, 0], scores[:, 1]
    tokens = jnp.concatenate([rows["chosen_tokens"], rows["rejected_tokens"]])
    mask = jnp.concatenate([rows["chosen_mask"], rows["rejected_mask"]])
    chosen, rejected = jnp.split(model.scores(params, tokens, mask), 2)
    return chosen, rejected


def packed_pairs(model: ScalarModel, batch: Batch, micro_batches: int) -> Batch:
    """The batch in an order in which micro-batches hold about as many tokens, and its packed rows.

    Both texts of a pair are in one micro-batch, on one device.
    """
    like, mask = batch["chosen_tokens"], _both(batch, "mask", np.stack)
    order = deal(mask.sum(axis=(1, 2)), groups=[micro_batches], shards=reading.shards(like))
    tokens, mask = _both(batch, "tokens", np.stack)[order], mask[order]
    packed = reading.pack(
        tokens, mask, mask, like=like, configs=[model.config], groups=micro_batches
    )
    rows = {name: reading.placed(np.asarray(x)[order], like) for name, x in batch.items()}
    return rows | {"packed": packed}


def held(batch: Batch) -> Any:
    """Which of the columns that the model reads hold a token."""
    return batch["packed"].segment_ids > 0 if "packed" in batch else _both(batch, "mask")


def _both(rows: Batch, what: str, stack: Any = jnp.stack) -> Any:
    """`[B, 2, T]`: chosen and rejected."""
    return stack([rows[f"chosen_{what}"], rows[f"rejected_{what}"]], axis=1)
