"""Weak-to-strong: a student learns from a weaker teacher's labels (Burns et al. 2023, 2312.09390).

Labels are probabilities, part of the batch or asked of a teacher in `collect`. Every loss is the
cross-entropy to a target that the student's own predictions may be part of (`losses.confidence`);
a threshold is of the whole batch, so the student is asked about all of it before any micro-batch is
differentiated: the split changes nothing.

What is learnt is up to `predict`: texts by a classifier, or pairs of answers by a reward model,
whose logits are those of the two outcomes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrlhf.algorithms.base import (
    Algorithm,
    Array,
    Batch,
    Params,
    Sums,
    accumulated_grad,
    check_settings,
    new_state,
    setting,
    split_rows,
    whole,
)
from jaxrlhf.algorithms.reward import pair_scores
from jaxrlhf.losses import confidence
from jaxrlhf.models import Classifier, ScalarModel

Predict = Callable[[Params, Batch], Array]
"""`(params, rows) -> logits [B, K]`."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which loss, and its numbers. Names and forms are those of `losses.confidence`."""

    loss: Literal[
        "cross_entropy", "paper", "released", "mended", "entropic", "rolling", "window", "product"
    ] = setting(
        "mended",
        "cross_entropy: the weak labels alone (naive). Auxiliary confidence: paper, released (its "
        "ramp jumps), mended (that ramp as meant), entropic (own prediction not hardened), rolling "
        "(threshold over recent batches). window: where the student is undecided. product: what "
        "both believe",
    )
    max_weight: float = setting(
        0.5, "weight of the student's own prediction when its ramp is over", ge=0.0, le=1.0
    )
    ramp_share: float = setting(
        0.1, "share of training in which that weight rises (paper: always .2)", ge=0.0, le=1.0
    )
    threshold: Literal["quantile", "rank", "argmax"] = setting(
        "quantile",
        "mended: own predictions are hardened at an interpolated quantile, as released; "
        "by rank, exact with equal predictions too; by argmax, as more than 2 classes need",
    )
    positive_share: Literal["labels", "half"] = setting(
        "labels", "mended: as many own positives as the weak labels have, or half of the batch"
    )
    balance_labels: bool = setting(
        False, "shift each batch of weak labels in log-odds to mean 0 (EleutherAI's balance_batch)"
    )
    recent_predictions: int = setting(32, "rolling: predictions the threshold is over", ge=1)
    window_radius: float | None = setting(
        None, "window: distance from 1/2; null: the median of the batch's labels", ge=0.0, le=0.5
    )
    label_power: float = setting(1.0, "product: power of the weak label", ge=0.0)
    own_power: float = setting(1.0, "product: power of the student's own prediction", ge=0.0)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def thresholds(self) -> bool:
        """Whether two classes are told apart somewhere, so that there may not be more."""
        return (
            self.loss in ("paper", "released", "rolling", "window")
            or self.balance_labels
            or (self.loss == "mended" and self.threshold != "argmax")
        )


class Targets(NamedTuple):
    """What a batch is to learn."""

    target: Array  # [B, K]
    counts: Array  # [B] bool
    recent: Array | None  # [N], for `rolling`
    weight: Array  # scalar: of the own prediction


def weak_to_strong(
    predict: Predict,
    optimizer: optax.GradientTransformation,
    settings: Settings,
    *,
    total_steps: int,
    micro_batches: int = 1,
    teacher: Callable[[Batch], Array] | None = None,
    frozen: Params = None,
) -> Algorithm:
    """Minimise the cross-entropy to weak labels, or to a mixture with own predictions, over rows.

    Args:
      predict: `of_texts(classifier)` or `of_pairs(reward model)`.
      optimizer: any optax transformation.
      settings: the loss.
      total_steps: updates in the whole run, of which ramps take their share.
      micro_batches: pieces of the batch whose gradients are accumulated.
      teacher: asked for the labels of every batch; None takes those in it.
      frozen: what does not train: `{"lm": ...}` leaves a linear probe, `{"lm": lora.frozen(...)}`
        adapters and head.
    Batches: what `predict` reads, and `label` `[B, K]`, or `[B]`: the probability of class 1.
    """

    def init(params, key):
        rolling = settings.loss == "rolling"
        recent = jnp.full(settings.recent_predictions, confidence.EMPTY)
        return new_state(params, optimizer, {"recent": recent} if rolling else None)

    def collect(state, next_batch, key):
        batch = next_batch()
        return (batch if teacher is None else {**batch, "label": teacher(batch)}), {}

    def update(state, batch, key, frozen=None):
        size = batch["label"].shape[0]
        logits = _ask(predict, whole(state.params, frozen), batch, micro_batches)
        weak = two_columns(batch["label"])
        progress = state.step / total_steps
        made = targets(settings, logits, weak, progress, state.extra.get("recent"))
        batch = {**batch, "target": made.target, "counts": made.counts}

        def loss_fn(params, rows):
            logits = predict(whole(params, frozen), rows)
            loss = confidence.cross_entropy(logits, rows["target"])
            return jnp.sum(jnp.where(rows["counts"], loss, 0.0)) / size, Sums({}, {})

        grads, _ = accumulated_grad(loss_fn, state.params, batch, micro_batches=micro_batches)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        extra = state.extra if made.recent is None else {"recent": made.recent}
        metrics = _metrics(logits, weak, made) | {"grad_norm": optax.tree.norm(grads)}
        return state._replace(
            step=state.step + 1, params=params, opt_state=opt_state, extra=extra
        ), metrics

    return Algorithm(init, collect, update, frozen)


def of_texts(model: Classifier) -> Predict:
    """Logits of the classes of `tokens` `[B, T]` (`mask` says which are real)."""
    return lambda params, rows: model.logits(params, rows["tokens"], rows["mask"])


def of_pairs(model: ScalarModel) -> Predict:
    """Logits 0 and score(chosen) − score(rejected): class 1 is that "chosen" is the better answer.

    Their cross-entropy is the Bradley-Terry loss, soft labels included.
    """

    def predict(params, rows):
        chosen, rejected = pair_scores(model, params, rows)
        return jnp.stack([jnp.zeros_like(chosen), chosen - rejected], axis=1)

    return predict


def targets(
    settings: Settings, logits: Array, weak: Array, progress: Array, recent: Array | None = None
) -> Targets:
    """What the loss of `settings` makes of own logits and weak labels `[B, K]`; no gradient.

    Raises:
      ValueError: more than two classes, and a loss that thresholds.
    """
    if weak.shape[1] != 2 and settings.thresholds:
        raise ValueError(
            f"{weak.shape[1]} classes: {settings.loss} with threshold {settings.threshold!r} or "
            "balanced labels tells two apart; take threshold 'argmax', entropic or product"
        )
    if settings.balance_labels:
        weak = confidence.balanced(weak)
    everything = jnp.ones(weak.shape[0], bool)
    maximum = settings.max_weight
    weight = maximum * confidence.ramp(progress, share=settings.ramp_share)
    match settings.loss:
        case "paper":
            weight = maximum * confidence.ramp(progress, share=0.2)
            target = confidence.paper(logits, weak, progress=progress, max_weight=maximum)
        case "released":
            weight = 0.5 * confidence.released_ramp(progress)
            target = confidence.released(logits, weak, progress=progress)
        case "mended":
            target = confidence.mixed(weak, _own_labels(settings, logits, weak), weight)
        case "entropic":
            target = confidence.entropic(logits, weak, weight=weight)
        case "rolling":
            assert recent is not None
            recent = confidence.remember(recent, logits)
            target = confidence.rolling(logits, weak, recent, weight=weight)
        case "product":
            powers = {"alpha": settings.label_power, "beta": settings.own_power}
            weight, target = jnp.zeros(()), confidence.product(logits, weak, **powers)
        case _:  # cross_entropy, window
            weight, target = jnp.zeros(()), weak
    if settings.loss != "window":
        return Targets(target, everything, recent, weight)
    radius = settings.window_radius
    radius = confidence.window_radius(weak) if radius is None else radius
    return Targets(target, confidence.in_window(logits, radius=radius), recent, weight)


def two_columns(label: Array) -> Array:
    """`[B, K]` as it is; `[B]`, a probability of class 1, as `[B, 2]`."""
    return label if label.ndim == 2 else jnp.stack([1.0 - label, label], axis=1)


def _own_labels(settings: Settings, logits: Array, weak: Array) -> Array:
    if settings.threshold == "argmax":
        return confidence.argmax_labels(logits)
    by_quantile = settings.threshold == "quantile"
    harden = confidence.quantile_labels if by_quantile else confidence.rank_labels
    by_labels = settings.positive_share == "labels"
    return harden(logits, confidence.positive_share(weak) if by_labels else 0.5)


def _ask(predict: Predict, params: Params, batch: Batch, micro_batches: int) -> Array:
    """Logits `[B, K]` of a whole batch, a micro-batch at a time, without gradient."""
    if micro_batches == 1:
        return jax.lax.stop_gradient(predict(params, batch))
    pieces = jax.tree.map(lambda x: split_rows(x, micro_batches), dict(batch))
    logits = jax.lax.map(lambda rows: predict(params, rows), pieces)
    return logits.swapaxes(0, 1).reshape(-1, logits.shape[-1])


def _metrics(logits: Array, weak: Array, made: Targets) -> dict[str, Any]:
    """Of the student before the update."""
    loss = jnp.where(made.counts, confidence.cross_entropy(logits, made.target), 0.0)
    agrees = jnp.argmax(logits, axis=1) == jnp.argmax(weak, axis=1)
    return {
        "loss": jnp.mean(loss),
        "weak_loss": jnp.mean(confidence.cross_entropy(logits, weak)),
        "agreement": jnp.mean(agrees.astype(jnp.float32)),
        "confidence": jnp.mean(jnp.max(jax.nn.softmax(logits), axis=1)),
        "weight": jnp.asarray(made.weight, jnp.float32),
        "counted": jnp.mean(made.counts.astype(jnp.float32)),
    }
