"""Weak-to-strong training on tables: a step against numpy for every loss, probes, teachers."""

import dataclasses
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tables
import tiny

from jaxrlhf.algorithms.weak_to_strong import Settings, of_texts, targets, weak_to_strong
from jaxrlhf.losses import preference

LOSSES = get_args(get_type_hints(Settings)["loss"])
OPTIONS = {
    "mended, by rank": Settings(threshold="rank"),
    "mended, half": Settings(positive_share="half", max_weight=0.8, ramp_share=0.5),
    "mended, argmax": Settings(threshold="argmax"),
    "balanced": Settings(balance_labels=True),
    "a given window": Settings(loss="window", window_radius=0.1),
    "product of powers": Settings(loss="product", label_power=2.0, own_power=0.5),
}
CASES = {**{name: Settings(loss=name) for name in LOSSES}, **OPTIONS}


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def target_by_hand(settings: Settings, z, w, s):
    """Target [B, 2] and which rows count, at a share s of training; a buffer holds this batch."""
    p, rows = softmax(z), np.arange(len(z))
    if settings.balance_labels:
        odds = np.log(w[:, 1] / w[:, 0])
        positive = 1 / (1 + np.exp(odds.mean() - odds))
        w = np.stack([1 - positive, positive], axis=1)
    weight = settings.max_weight * min(1, s / settings.ramp_share)
    share = w[:, 1].mean() if settings.positive_share == "labels" else 0.5
    is_first = p[:, 0] >= np.quantile(p[:, 0], share)
    counts = np.ones(len(z), bool)
    match settings.loss:
        case "cross_entropy":
            return w, counts
        case "product":
            t = p**settings.own_power * w**settings.label_power
            return t / t.sum(-1, keepdims=True), counts
        case "window":
            radius = settings.window_radius
            radius = np.median(np.abs(w[:, 1] - 0.5)) if radius is None else radius
            return w, p.max(-1) < 0.5 + radius
        case "entropic":
            return (1 - weight) * w + weight * p, counts
        case "paper":
            weight = settings.max_weight * min(1, s / 0.2)
            is_first = ~np.isin(rows, np.argsort(p[:, 0])[: len(z) // 2])
        case "released":
            weight = 0.5 * (s if s <= 0.1 else 1)
        case "mended" if settings.threshold == "rank":
            chosen = np.argsort(p[:, 0], kind="stable")[: round(share * len(z))]
            is_first = ~np.isin(rows, chosen)
        case "mended" if settings.threshold == "argmax":
            is_first = p[:, 0] >= p[:, 1]
    own = np.stack([is_first, ~is_first], axis=1)
    return (1 - weight) * w + weight * own, counts


@pytest.mark.parametrize("name", CASES)
def test_a_step_equals_the_one_written_out_in_numpy(name):
    """Logits of a row are table[x]·K, x its last token; ∂CE/∂z = (softmax z − t)/B."""
    settings = CASES[name]
    run = tables.weak_run(settings, step=1)  # s = .05: inside every ramp
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), run.state.params)
    embedding, kernel = params["lm"]["embed"]["embedding"], params["classifier"]["kernel"]
    tokens, mask = np.asarray(run.batch["tokens"]), np.asarray(run.batch["mask"])
    last = [int(row[np.nonzero(real)[0][-1]]) for row, real in zip(tokens, mask, strict=True)]
    z = embedding[last] @ kernel
    w = np.asarray(run.batch["label"], np.float64)
    t, counts = target_by_hand(settings, z, w, 0.05)
    loss = -(t * np.log(softmax(z))).sum(-1) * counts
    slope = (softmax(z) - t) * counts[:, None] / len(z)

    new, metrics = run.update(run.state, run.batch, run.key)
    assert float(metrics["loss"]) == pytest.approx(loss.mean(), rel=1e-5)
    agreement = (z.argmax(1) == w.argmax(1)).mean()
    assert float(metrics["agreement"]) == pytest.approx(agreement)
    assert float(metrics["counted"]) == pytest.approx(counts.mean())
    moved = jax.tree.map(lambda a, b: np.asarray(a - b), run.state.params, new.params)
    np.testing.assert_allclose(moved["classifier"]["kernel"], embedding[last].T @ slope, atol=1e-6)
    body = np.zeros_like(embedding)
    np.add.at(body, last, slope @ kernel.T)
    np.testing.assert_allclose(moved["lm"]["embed"]["embedding"], body, atol=1e-6)


@pytest.mark.parametrize("name", ["mended", "rolling", "window", "balanced"])
def test_micro_batches_change_nothing(name):
    """A threshold per micro-batch would: each has another quantile."""
    one, four = (tables.weak_run(CASES[name], micro_batches=n) for n in (1, 4))
    a, first = one.update(one.state, one.batch, one.key)
    b, second = four.update(four.state, four.batch, four.key)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    for key in first:
        np.testing.assert_allclose(first[key], second[key], rtol=1e-5, atol=1e-6)


def test_pairs_are_bradley_terry_with_soft_labels():
    run = tables.weak_run(Settings(loss="cross_entropy"), pairs=True)
    _, metrics = run.update(run.state, run.batch, run.key)
    chosen, rejected = (
        tables.SCALAR.scores(
            run.state.params, run.batch[f"{side}_tokens"], run.batch[f"{side}_mask"]
        )
        for side in ("chosen", "rejected")
    )
    expected = preference.bradley_terry(chosen, rejected, label=run.batch["label"]).mean()
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-6)


def test_the_weight_follows_the_share_of_training():
    for loss, expected in {"mended": (0.25, 0.5), "released": (0.05, 0.5)}.items():
        for step, weight in zip((1, 4), expected, strict=True):  # .05 and .2 of 20 updates
            run = tables.weak_run(Settings(loss=loss), step=step)  # type: ignore[arg-type]
            _, metrics = run.update(run.state, run.batch, run.key)
            expected_weight = 0.025 if (loss, step) == ("released", 1) else weight
            assert float(metrics["weight"]) == pytest.approx(expected_weight), (loss, step)


def test_the_buffer_of_rolling_outlives_an_update():
    run = tables.weak_run(Settings(loss="rolling", recent_predictions=12))
    once, _ = run.update(run.state, run.batch, run.key)
    twice, _ = run.update(once, run.batch, run.key)
    first, second = np.asarray(once.extra["recent"]), np.asarray(twice.extra["recent"])
    assert (first[:4] == -1).all() and (first[4:] >= 0).all()
    np.testing.assert_array_equal(second[:4], first[8:])


def test_a_probe_trains_its_head_alone_on_what_the_teacher_says():
    case = tiny.case("weak-to-strong-probe")

    def next_batch():
        return {**case.batches[0], "label": np.full((8, 2), np.nan, np.float32)}

    state = case.algorithm.init(case.params, jax.random.key(0))
    batch, _ = case.algorithm.collect(state, next_batch, jax.random.key(0))
    np.testing.assert_allclose(batch["label"], case.batches[0]["label"])
    assert set(state.params) == {"classifier"}
    new, _ = jax.jit(case.algorithm.update)(state, batch, jax.random.key(0), case.algorithm.frozen)
    assert float(jnp.abs(new.params["classifier"]["kernel"]).max()) > 0


@pytest.mark.parametrize(
    "settings", [s for s in CASES.values() if s.thresholds], ids=lambda s: s.loss
)
def test_three_classes_are_refused_where_two_are_told_apart(settings):
    three = jnp.full((4, 3), 1 / 3)
    with pytest.raises(ValueError, match="3 classes"):
        targets(settings, three, three, jnp.float32(0.5), jnp.zeros(4))


@pytest.mark.parametrize("loss", ["cross_entropy", "entropic", "product", "mended"])
def test_three_classes_are_learnt_where_nothing_is(loss):
    settings = Settings(loss=loss, threshold="argmax", ramp_share=0.0)
    weak = jnp.array([[0.2, 0.2, 0.6]])
    made = targets(settings, jnp.log(jnp.array([[0.5, 0.3, 0.2]])), weak, jnp.float32(1.0))
    expected = {
        "cross_entropy": [0.2, 0.2, 0.6],
        "entropic": [0.35, 0.25, 0.4],
        "mended": [0.6, 0.1, 0.3],
        "product": [0.1 / 0.28, 0.06 / 0.28, 0.12 / 0.28],
    }[loss]
    np.testing.assert_allclose(made.target, [expected], rtol=1e-5)


def test_settings_out_of_range_are_named():
    for field, value in {"max_weight": 1.5, "loss": "logconf", "recent_predictions": 0}.items():
        with pytest.raises(ValueError, match=field):
            dataclasses.replace(Settings(), **{field: value})
    assert weak_to_strong(of_texts(tiny.CLASSIFIER), tiny.adam(), Settings(), total_steps=1)
