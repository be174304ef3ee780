"""Reward-model training on a table: a step against numpy, labels, margins, lapses, centring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tables

SETTINGS = {"center_rewards_coefficient": 0.1, "lapse": 0.1}


@pytest.fixture(scope="module")
def run() -> tables.Run:
    return tables.reward_run(**SETTINGS)


@pytest.fixture(scope="module")
def plain() -> tables.Run:
    return tables.reward_run()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def last_tokens(batch, side: str) -> list[int]:
    """The token that the score is read at: the last real one of each row."""
    tokens, mask = np.asarray(batch[f"{side}_tokens"]), np.asarray(batch[f"{side}_mask"])
    return [int(row[np.nonzero(real)[0][-1]]) for row, real in zip(tokens, mask, strict=True)]


@pytest.fixture(scope="module")
def regression() -> tables.Run:
    return tables.reward_run(huber_delta=0.7)


def by_hand(
    params,
    batch,
    *,
    center_rewards_coefficient: float = 0.0,
    lapse: float = 0.0,
    huber_delta: float | None = None,
):
    """Metrics and gradient. The score of a row is w · table[x] + b, x its last token.

    P(Δ) = (1 − ε) σ(Δ) + ε/2;  L = w (−p log P(Δ − m) − (1 − p) log P(−Δ − m) + c (r + r')²);
    ∂ log P / ∂Δ = (1 − ε) σ(1 − σ) / P.
    With δ: L = w H_δ(Δ − m), which is e²/2 or δ(|e| − δ/2); ∂L/∂Δ is e cut at ±δ.
    """
    table = np.asarray(params["lm"]["embed"]["embedding"], np.float64)
    kernel = np.asarray(params["head"]["kernel"], np.float64)
    bias, size = float(params["head"]["bias"]), len(batch["label"])
    grads = {"table": np.zeros_like(table), "kernel": np.zeros_like(kernel), "bias": 0.0}
    losses, correct, pairs = [], [], []

    def choice(gap):
        p = (1 - lapse) * sigmoid(gap) + lapse / 2
        return np.log(p), (1 - lapse) * sigmoid(gap) * sigmoid(-gap) / p

    rows = zip(last_tokens(batch, "chosen"), last_tokens(batch, "rejected"), strict=True)
    for i, (good, bad) in enumerate(rows):
        r, r_bad = kernel @ table[good] + bias, kernel @ table[bad] + bias
        p, m, w = (float(batch[name][i]) for name in ("label", "margin", "weight"))
        log_won, slope_won = choice(r - r_bad - m)
        log_lost, slope_lost = choice(r_bad - r - m)
        centre = center_rewards_coefficient
        error, loss = r - r_bad - m, -p * log_won - (1 - p) * log_lost
        d_gap = -p * slope_won + (1 - p) * slope_lost
        if huber_delta is not None:
            beyond = abs(error) > huber_delta
            loss = huber_delta * (abs(error) - huber_delta / 2) if beyond else error**2 / 2
            d_gap = np.clip(error, -huber_delta, huber_delta)
        losses.append(w * (loss + centre * (r + r_bad) ** 2))
        correct.append((r > r_bad) == (p > 0.5))
        pairs.append((r, r_bad))
        for token, sign in ((good, 1), (bad, -1)):
            d_score = w * (sign * d_gap + 2 * centre * (r + r_bad)) / size
            grads["table"][token] += d_score * kernel
            grads["kernel"] += d_score * table[token]
            grads["bias"] += d_score
    chosen, rejected = np.array(pairs).T
    metrics = {
        "loss": np.mean(losses),
        "accuracy": np.mean(correct),
        "margin": np.mean(chosen - rejected),
        "score_mean": np.mean(pairs),
        "score_std": np.std(pairs),
        "grad_norm": np.sqrt(sum(np.sum(g**2) for g in grads.values())),
        "padding": 1 - np.mean([batch[f"{side}_mask"] for side in ("chosen", "rejected")]),
    }
    return metrics, grads


OPTIONS = {"run": SETTINGS, "plain": {}, "regression": {"huber_delta": 0.7}}


@pytest.mark.parametrize("which", OPTIONS)
def test_a_step_equals_the_one_written_out_in_numpy(which, request):
    run, options = request.getfixturevalue(which), OPTIONS[which]
    expected, grads = by_hand(run.state.params, run.batch, **options)
    new, metrics = run.update(run.state, run.batch, run.key)
    assert metrics.keys() == expected.keys()
    for name, x in expected.items():
        assert float(metrics[name]) == pytest.approx(x, rel=1e-5, abs=1e-6), name
    before, after = run.state.params, new.params
    moved = {
        "table": before["lm"]["embed"]["embedding"] - after["lm"]["embed"]["embedding"],
        "kernel": before["head"]["kernel"] - after["head"]["kernel"],
        "bias": before["head"]["bias"] - after["head"]["bias"],
    }
    for name, grad in grads.items():
        np.testing.assert_allclose(moved[name], grad, atol=1e-6, err_msg=name)


def test_equal_scores_cost_log_two(plain):
    """A zero head scores everything 0: log 2 whatever the label, and no pair is right."""
    params = {**plain.state.params, "head": jax.tree.map(jnp.zeros_like, tables.head(2))}
    batch = {**plain.batch, "margin": jnp.zeros(8), "weight": jnp.ones(8)}
    _, metrics = plain.update(plain.state._replace(params=params), batch, plain.key)
    assert float(metrics["loss"]) == pytest.approx(np.log(2), rel=1e-6)
    assert float(metrics["margin"]) == float(metrics["score_std"]) == 0
    # chosen > rejected is false, which agrees with the labels .3 and 0 alone
    assert float(metrics["accuracy"]) == 2 / 8


def test_a_step_widens_the_margin_towards_the_preferred_answer(plain):
    for label, sign in [(1.0, 1), (0.0, -1)]:
        batch = {**plain.batch, "label": jnp.full(8, label), "margin": jnp.zeros(8)}
        batch["weight"] = jnp.ones(8)
        state = tables.at_rate(plain.state, 0.1)
        new, before = plain.update(state, batch, plain.key)
        _, after = plain.update(new, batch, plain.key)
        assert sign * float(after["margin"] - before["margin"]) > 0.01
        assert float(after["loss"]) < float(before["loss"])


def test_swapping_the_sides_and_the_labels_changes_nothing(run):
    batch = run.batch
    swapped = {
        **batch,
        **{f"chosen_{x}": batch[f"rejected_{x}"] for x in ("tokens", "mask")},
        **{f"rejected_{x}": batch[f"chosen_{x}"] for x in ("tokens", "mask")},
        "label": 1 - batch["label"],
    }
    new, metrics = run.update(run.state, batch, run.key)
    other, other_metrics = run.update(run.state, swapped, run.key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, other.params)
    assert float(metrics["loss"]) == pytest.approx(float(other_metrics["loss"]), rel=1e-6)
    assert float(metrics["margin"]) == pytest.approx(-float(other_metrics["margin"]), rel=1e-5)


def test_a_weight_of_two_is_the_pair_twice_and_of_nothing_is_the_pair_left_out(plain):
    """Rows 0 to 3 with weights (2, 1, 1, 0), against rows 0, 0, 1, 2: the same sum over 4 rows."""
    rows = {name: x[:4] for name, x in plain.batch.items()}
    twice = {name: x[jnp.array([0, 0, 1, 2])] for name, x in plain.batch.items()}
    weighted = {**rows, "weight": jnp.array([2.0, 1.0, 1.0, 0.0])}
    new, metrics = plain.update(plain.state, weighted, plain.key)
    other, other_metrics = plain.update(plain.state, {**twice, "weight": jnp.ones(4)}, plain.key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, other.params)
    assert float(metrics["loss"]) == pytest.approx(float(other_metrics["loss"]), rel=1e-6)
