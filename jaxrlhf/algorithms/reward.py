"""Reward (preference) models: learnt from pairs, the score read at the last real token.

Chosen and rejected texts go through the model as one batch. Labels may be soft (the probability
that "chosen" is better), margins and a centring term are optional, and so is a labeller's lapse
rate; or differences of scores are regressed onto differences of ratings. Normalising the finished
model is the recipe's job (`models.heads.affine`).
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
from jaxrlhf.losses import preference
from jaxrlhf.models.heads import ScalarModel


def reward(
    model: ScalarModel,
    optimizer: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
    center_rewards_coefficient: float = 0.0,
    lapse: float = 0.0,
    huber_delta: float | None = None,
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
      frozen: `{"lm": lora.frozen(...)}`; what trains is then `{"lm": adapters, "head": ...}`.
    Batches: `chosen_tokens` `[B, T]`, `chosen_mask`, `rejected_tokens`, `rejected_mask`, `label`
    `[B]` = P(chosen is better), `margin` `[B]` in nats, `weight` `[B]`, how much
    a pair counts in the loss and the gradient (all other figures count each once).
    """

    def init(params, key):
        return new_state(params, optimizer)

    def collect(state, next_batch, key):
        return next_batch(), {}

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
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return Algorithm(init, collect, update, frozen)


def pair_scores(model, params, rows):
    """Scores `[B]` of the chosen and of the rejected texts, from one forward pass."""
    tokens = jnp.concatenate([rows["chosen_tokens"], rows["rejected_tokens"]])
    mask = jnp.concatenate([rows["chosen_mask"], rows["rejected_mask"]])
    chosen, rejected = jnp.split(model.scores(params, tokens, mask), 2)
    return chosen, rejected
