"""PPO on a table of logits: a whole step against numpy, and what each setting does.

What a step must keep whatever the settings (signal, direction) is in `test_invariants_signal.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import ppo_by_hand
import pytest
import tables

from jaxrlhf import rewards
from jaxrlhf.algorithms import ppo as module
from jaxrlhf.algorithms.base import split_rows
from jaxrlhf.algorithms.ppo import Settings, ppo
from jaxrlhf.algorithms.rollouts import Truncation
from jaxrlhf.losses.log_probs import TokenStats
from jaxrlhf.sampling import Sampling

# ------------------------------------------------------------------ a whole step, by hand

# Every setting stands away from its default somewhere, and SGD's rate is large enough for the
# ratio and the values to be clipped in the second epoch.
BY_HAND = {
    "one update": (Settings(value_model="shared", num_ppo_epochs=1, kl_coef=0.3), 1.0, 0.3),
    "everything": (
        Settings(
            value_model="shared",
            num_ppo_epochs=2,
            num_mini_batches=2,
            gradient_accumulation_steps=2,
            gamma=0.9,
            lam=0.8,
            cliprange=0.1,
            cliprange_value=0.05,
            vf_coef=0.5,
            entropy_coef=0.2,
            kl_coef=0.3,
            kl_target=2.6,  # the error, .10, is not clipped
            kl_horizon=100,
            missing_eos_penalty=1.0,
            missing_eos_rule="subtract",
            reward_clip=0.8,
            normalize_scores=True,
            whiten_rewards=True,
        ),
        0.7,
        0.5,
    ),
    "separate value network": (
        Settings(
            num_ppo_epochs=2,
            cliprange_value=None,
            vf_coef=0.05,
            kl_coef=0.5,
            kl_in="loss",
            kl_estimator="k2",
            missing_eos_penalty=-1.0,
            whiten_advantages=False,
        ),
        1.3,
        8.0,
    ),
}


@pytest.fixture(scope="module")
def by_hand():
    """For each case: the run, its new state and metrics, and the same in numpy."""
    found = {}
    for name, (settings, temperature, rate) in BY_HAND.items():
        run = tables.ppo_run(
            settings, optimizer=tables.sgd(rate), sample=tables.sampling(temperature=temperature)
        )
        new = run.update(run.state, run.batch, run.key)
        expected = ppo_by_hand.update(
            flat(run.state.params),
            run.batch,
            settings,
            prompt_length=tables.PROMPT_LENGTH,
            beta=settings.kl_coef,
            orders=orders(run),
            temperature=temperature,
            learning_rate=rate,
        )
        found[name] = run, new, expected
    return found


def flat(params) -> dict[str, np.ndarray]:
    """The names of `ppo_by_hand`, float64."""
    names = {"table": params["policy"]["embed"]["embedding"], **params["value"]["head"]}
    if "lm" in params["value"]:
        names["value_table"] = params["value"]["lm"]["embed"]["embedding"]
    return {name: np.asarray(x, np.float64) for name, x in names.items()}


def orders(run: tables.Run) -> list[list[np.ndarray]]:
    """Rows of every minibatch: a permutation an epoch, dealt out like cards."""
    settings, size = run.settings, len(run.batch["scores"])
    found = []
    for key in jax.random.split(run.key, settings.num_ppo_epochs):
        order = np.asarray(jax.random.permutation(key, size))
        found.append(
            [order[i :: settings.num_mini_batches] for i in range(settings.num_mini_batches)]
        )
    return found


@pytest.mark.parametrize("name", BY_HAND)
def test_a_step_equals_the_one_written_out_in_numpy(by_hand, name):
    run, (new, _), (expected, beta, metrics) = by_hand[name]
    assert metrics["rollout/eos_rate"] not in (0, 1)  # ragged, and with both endings
    found = flat(new.params)
    assert found.keys() == expected.keys()
    for leaf, x in expected.items():
        np.testing.assert_allclose(found[leaf], x, atol=1e-5, err_msg=leaf)
        assert np.max(abs(found[leaf] - flat(run.state.params)[leaf])) > 1e-3, leaf
    assert float(new.extra["kl_coef"]) == pytest.approx(beta, rel=1e-6)
    assert int(new.step) == 1


@pytest.mark.parametrize("name", BY_HAND)
def test_its_metrics_equal_those_written_out_in_numpy(by_hand, name):
    run, (_, found), (_, _, metrics) = by_hand[name]
    if run.settings.num_ppo_epochs > 1:
        assert metrics["policy/clip_fraction"] > 0.1
        limited = run.settings.cliprange_value is not None
        assert (metrics["value/clip_fraction"] > 0.1) == limited
    for metric, x in metrics.items():
        np.testing.assert_allclose(found[metric], x, rtol=2e-5, atol=2e-5, err_msg=metric)
    # Entropy of the rollout, from the table: the one figure that a batch does not imply.
    table = flat(run.state.params)["table"]
    temperature = BY_HAND[name][1]
    total = 0.0
    for row in range(len(run.batch["scores"])):
        for x in ppo_by_hand.Sequence(run.batch, row, tables.PROMPT_LENGTH).x:
            log_pi = ppo_by_hand.log_softmax(table[x] / temperature)
            total -= np.sum(np.exp(log_pi) * log_pi)
    expected = total / len(run.batch["scores"])
    np.testing.assert_allclose(found["objective/entropy"], expected, rtol=1e-5)
    others = {"objective/entropy", "policy/updates", "objective/score_gain"}
    assert found.keys() - metrics.keys() <= others


@pytest.mark.parametrize("name", BY_HAND)
def test_collect_records_what_the_tables_say(by_hand, name):
    run, temperature = by_hand[name][0], BY_HAND[name][1]
    batch, params = run.batch, flat(run.state.params)
    reference = np.asarray(tables.table(4)["embed"]["embedding"], np.float64)
    for row in range(len(batch["scores"])):
        s = ppo_by_hand.Sequence(batch, row, tables.PROMPT_LENGTH)
        for t, (x, y) in enumerate(zip(s.x, s.y, strict=True)):
            assert s.old[t] == pytest.approx(
                ppo_by_hand.log_softmax(params["table"][x] / temperature)[y], abs=1e-5
            )
            assert s.ref[t] == pytest.approx(
                ppo_by_hand.log_softmax(reference[x] / temperature)[y], abs=1e-5
            )
            value = params["kernel"] @ params.get("value_table", params["table"])[x]
            assert s.values[t] == pytest.approx(value + params["bias"], abs=1e-5)
        assert s.score == pytest.approx(3 * np.mean(s.y % 2 == 1), abs=1e-6)
        assert s.complete == (s.y[-1] == tables.EOS)


# ------------------------------------------------------------------ settings, one by one


def test_a_fresh_permutation_every_epoch(by_hand):
    """The step equals numpy's for these orders alone; they are permutations, and they differ."""
    first, second = (np.concatenate(epoch) for epoch in orders(by_hand["everything"][0]))
    assert sorted(first) == sorted(second) == list(range(8))
    assert list(first) != list(second)


def test_a_kl_above_the_target_stops_further_updates():
    """Whole-batch minibatches, so that the order of rows does not matter.

    The first update is made on the policy that sampled (approx_kl 0), the second one measures a
    step of SGD at rate 1. With a target between the two, five epochs are two. At rate 0 the policy
    does not move, approx_kl stays 0, and all five are made.
    """
    settings = Settings(value_model="shared", num_ppo_epochs=5, target_kl=1e-4, kl_coef=0.3)
    run = tables.ppo_run(settings)
    state, metrics = run.update(run.state, run.batch, run.key)
    expected, _, expected_metrics = ppo_by_hand.update(
        flat(run.state.params),
        run.batch,
        settings,
        prompt_length=tables.PROMPT_LENGTH,
        beta=0.3,
        orders=[[np.arange(8)]] * 2,
        temperature=1.0,
        learning_rate=1.0,
    )
    assert expected_metrics["policy/approx_kl"] > 1e-4
    assert float(metrics["policy/updates"]) == 2
    for leaf, x in flat(state.params).items():
        np.testing.assert_allclose(x, expected[leaf], atol=1e-5, err_msg=leaf)
    for name, x in expected_metrics.items():  # means over the updates made, not over five
        np.testing.assert_allclose(metrics[name], x, rtol=2e-5, atol=2e-5, err_msg=name)
    _, metrics = run.update(tables.at_rate(run.state, 0.0), run.batch, run.key)
    assert float(metrics["policy/updates"]) == 5


def test_whitened_rewards_keep_their_mean_and_are_scaled_to_one():
    batch = hand_batch()
    plain = module.signal(batch, jnp.float32(0.1), Settings(whiten_advantages=False, lam=0.0))
    white = module.signal(
        batch, jnp.float32(0.1), Settings(whiten_advantages=False, lam=0.0, whiten_rewards=True)
    )
    # With V = 0 and lambda = 0 the advantage of a token is its reward.
    mask = np.asarray(plain.response_mask)
    before, after = np.asarray(plain.advantages)[mask], np.asarray(white.advantages)[mask]
    assert after.mean() == pytest.approx(before.mean(), abs=1e-6)
    assert after.std() == pytest.approx(1.0, abs=1e-4)
    assert before.std() > 1.1


def test_returns_come_from_unwhitened_advantages():
    batch = hand_batch(values=0.5)
    white = module.signal(batch, jnp.float32(0.1), Settings())
    plain = module.signal(batch, jnp.float32(0.1), Settings(whiten_advantages=False))
    np.testing.assert_array_equal(white.returns, plain.returns)
    mask = np.asarray(white.response_mask)
    advantages = np.asarray(white.advantages)[mask]
    assert advantages.mean() == pytest.approx(0, abs=1e-6)
    assert advantages.std() == pytest.approx(1, abs=1e-4)
    assert np.asarray(plain.advantages)[mask].std() > 1.1


def hand_batch(values: float = 0.0) -> dict[str, jax.Array]:
    """Two rows of 1 + 3 tokens, the second one a token shorter; log ratios .5; scores 3 and −2."""
    mask = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
    return {
        "tokens": jnp.ones((2, 4), jnp.int32),
        "mask": mask,
        "log_probs": jnp.full((2, 3), -1.0),
        "ref_log_probs": jnp.full((2, 3), -1.5),
        "values": jnp.where(mask[:, 1:], values, 0.0),
        "shaped_scores": jnp.array([3.0, -2.0]),
    }


@pytest.mark.parametrize(
    ("kl_in", "estimator", "expected"),
    # d = .5: k1 = .5, k3 = exp(−.5) − 1 + .5 = .10653; in the loss the reward is left alone.
    [
        ("reward", "k1", [[-0.1, -0.1, 2.9], [-0.1, -2.1, 0]]),
        ("reward", "k3", [[-0.021306, -0.021306, 2.978694], [-0.021306, -2.021306, 0]]),
        ("loss", "k2", [[0, 0, 3], [0, -2, 0]]),
    ],
)
def test_token_rewards_by_hand(kl_in, estimator, expected):
    settings = Settings(kl_in=kl_in, kl_estimator=estimator)
    found = module.token_rewards(hand_batch(), jnp.float32(0.2), settings)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def losses_by_hand(settings: Settings, *, log_ratio: float, value: float):
    """One token: advantage 1, entropy 2, old value 0, return 1, log ratio to the reference .5."""
    one = jnp.ones((1, 1))
    rows = module.Minibatch(
        tokens=jnp.ones((1, 2), jnp.int32),
        mask=jnp.ones((1, 2), bool),
        response_mask=jnp.ones((1, 1), bool),
        old_log_probs=-one,
        ref_log_probs=-1.5 * one + log_ratio,
        old_values=0 * one,
        advantages=one,
        returns=one,
    )
    stats = TokenStats(-one + log_ratio, 2 * one)
    loss, sums = module.losses(rows, stats, value * one, jnp.float32(0.4), jnp.float32(1), settings)
    return float(loss), {name: float(x) for name, x in (sums.add | sums.maximum).items()}


def test_the_loss_is_the_sum_of_its_parts_with_the_right_signs():
    # Ratio exp(.1) = 1.10517 inside the clip: −1.10517. Value 2: error 1; clipped to .2: −.8,
    # so ½·1. Entropy 2, subtracted. k2 = .5²/2 = .125, times β = .4.
    loss, parts = losses_by_hand(Settings(vf_coef=0.1), log_ratio=0.1, value=2.0)
    assert loss == pytest.approx(-1.105171 + 0.1 * 0.5, abs=1e-5)
    assert parts["policy/loss"] == pytest.approx(-1.105171, abs=1e-5)
    assert parts["value/loss"] == pytest.approx(0.5, abs=1e-6)
    assert parts["value/clip_fraction"] == 1
    assert parts["policy/entropy"] == 2
    bonus, _ = losses_by_hand(Settings(vf_coef=0.1, entropy_coef=0.3), log_ratio=0.1, value=2.0)
    assert bonus == pytest.approx(loss - 0.3 * 2, abs=1e-5)  # more entropy, less loss
    penalty, _ = losses_by_hand(
        Settings(vf_coef=0.1, kl_in="loss", kl_estimator="k2"), log_ratio=0.1, value=2.0
    )
    assert penalty == pytest.approx(loss + 0.4 * 0.125, abs=1e-5)


def test_ratios_and_values_beyond_their_range():
    # Ratio exp(.5) = 1.6487, clipped to 1.2: −1.2. Value .5 clipped to .2: ½·.8² against ½·.5².
    loss, parts = losses_by_hand(Settings(vf_coef=1.0), log_ratio=0.5, value=0.5)
    assert loss == pytest.approx(-1.2 + 0.32, abs=1e-5)
    assert parts["policy/clip_fraction"] == 1
    assert parts["policy/ratio_max"] == pytest.approx(1.648721, abs=1e-5)
    assert parts["policy/approx_kl"] == pytest.approx(0.125, abs=1e-6)
    # Without a limit on the values: ½·.5².
    loss, parts = losses_by_hand(
        Settings(vf_coef=1.0, cliprange_value=None), log_ratio=0.5, value=0.5
    )
    assert loss == pytest.approx(-1.2 + 0.125, abs=1e-5)


def test_the_running_moments_of_scores_live_in_the_state(by_hand):
    run, (new, metrics), _ = by_hand["everything"]
    scores = np.asarray(run.batch["scores"], np.float64)
    assert float(new.extra["score_count"]) == 8
    assert float(new.extra["score_mean"]) == pytest.approx(scores.mean(), abs=1e-6)
    assert float(metrics["objective/score_gain"]) == pytest.approx(1 / scores.std(), rel=1e-5)
    other = {**run.batch, "scores": run.batch["scores"] * 2 + 1}
    third, _ = run.update(new, other, run.key)
    everything = np.concatenate([scores, np.asarray(other["scores"], np.float64)])
    assert float(third.extra["score_count"]) == 16
    assert float(third.extra["score_mean"]) == pytest.approx(everything.mean(), abs=1e-5)
    assert float(third.extra["score_m2"]) == pytest.approx(16 * everything.var(), rel=1e-5)


def test_the_reward_sees_less_than_the_policy_trains_on():
    seen: list[rewards.Rollout] = []

    def record(rollout):
        seen.append(rollout)
        return tables.odd_share(rollout)

    run = tables.ppo_run(
        Settings(value_model="shared"), reward_fn=record, truncation=Truncation((3,), after=1)
    )
    (view,), start = seen, tables.PROMPT_LENGTH
    sampled = np.asarray(run.batch["mask"])[:, start:]
    tokens = np.asarray(run.batch["tokens"])[:, start:]
    shown = np.asarray(view.mask)[:, start:]
    complete = np.asarray(run.batch["complete"])
    for row in range(8):
        stops = [t for t in range(1, 5) if sampled[row, t] and tokens[row, t] == 3]
        end = stops[0] + 1 if stops else sampled[row].sum()
        assert shown[row].sum() == end and shown[row, :end].all()
        assert complete[row] == bool(stops)
    assert (shown != sampled).any() and complete.any() and not complete.all()
    np.testing.assert_array_equal(view.tokens, run.batch["tokens"])
    np.testing.assert_array_equal(view.mask[:, :start], run.batch["mask"][:, :start])


def test_rows_reach_the_reward():
    rows = []
    tables.ppo_run(
        Settings(value_model="shared"),
        reward_fn=lambda rollout: (rows.append(rollout.rows), np.zeros(8))[1],
    )
    assert isinstance(rows[0], np.ndarray) and list(rows[0]) == list(range(8))


def test_a_value_network_of_another_kind_is_used_in_rollout_and_update():
    """One that says three times as much: were only one of the two to ask it, values would jump."""

    def apply(params, tokens, mask, *, last=None):
        return 3 * tables.SCALAR.apply(params, tokens, mask, last=last)

    network = tables.SCALAR._replace(apply=apply)
    settings = Settings(num_ppo_epochs=1, cliprange_value=1e-4)
    run = tables.ppo_run(settings, value_network=network)
    other = tables.ppo_run(settings)
    np.testing.assert_allclose(run.batch["values"], 3 * other.batch["values"], atol=1e-6)
    _, metrics = run.update(run.state, run.batch, run.key)
    assert float(metrics["value/clip_fraction"]) == 0


def test_a_vocabulary_in_chunks_changes_nothing(by_hand):
    """The loss and the rollout, one vocabulary entry in four at a time."""
    run, (new, metrics), _ = by_hand["one update"]
    chunked = tables.ppo_run(run.settings, optimizer=tables.sgd(0.3), chunk_size=4)
    np.testing.assert_allclose(chunked.batch["log_probs"], run.batch["log_probs"], atol=1e-6)
    again, again_metrics = chunked.update(run.state, run.batch, run.key)
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(new.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for name, x in metrics.items():
        np.testing.assert_allclose(again_metrics[name], x, atol=1e-5, err_msg=name)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_estimator": "k2"}, "k2 is for kl_in: loss"),
        ({"kl_coef": 0.0, "kl_target": 6.0}, "kl_coef = 0 stays 0"),
        ({"kl_in": "loss"}, "k1 in the loss has the wrong gradient; use k2"),
        ({"kl_in": "loss", "kl_estimator": "k3"}, "k3 in the loss has the wrong gradient"),
        ({"kl_target": 0.0}, "kl_target 0.0: must be above 0"),
        ({"kl_target": -1.0}, "kl_target"),
        ({"kl_coef": -0.1}, "kl_coef"),
        ({"num_ppo_epochs": 0}, "num_ppo_epochs"),
        ({"gamma": 1.1}, "gamma"),
        ({"lam": -0.1}, "lam"),
        ({"cliprange": 0.0}, "cliprange"),
        ({"cliprange_value": 0.0}, "cliprange_value"),
        ({"reward_clip": 0.0}, "reward_clip"),
        ({"target_kl": 0.0}, "target_kl"),
        ({"vf_coef": -1.0}, "vf_coef"),
        ({"value_model": "both"}, "value_model"),
        ({"missing_eos_rule": "ignore"}, "missing_eos_rule"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Settings(**settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 3}, "top_k 3"),
        ({"top_p": 0.9}, "top_p 0.9"),
        ({"min_p": 0.1}, "min_p 0.1"),
        ({"temperature": 0.0}, "temperature 0"),
        ({"min_new_tokens": 2}, "min_new_tokens 2"),
    ],
)
def test_a_filtered_distribution_is_refused_for_training(change, message):
    sampling: Sampling = dataclasses.replace(tables.sampling(), **change)
    with pytest.raises(ValueError, match=message):
        ppo(tables.LM_TABLE, {}, tables.odd_share, optax.sgd(1.0), sampling, Settings())


def test_a_batch_that_does_not_divide_into_minibatches_is_refused():
    with pytest.raises(ValueError, match="batch of 8 rows does not divide into 3"):
        split_rows(jnp.zeros((8, 2)), 3)
    run = tables.ppo_run(Settings(value_model="shared", num_mini_batches=3))
    with pytest.raises(ValueError, match="batch of 8 rows does not divide into 3"):
        run.update(run.state, run.batch, run.key)


def test_rows_are_dealt_like_cards():
    pieces = split_rows(jnp.arange(6), 3)
    np.testing.assert_array_equal(pieces, [[0, 3], [1, 4], [2, 5]])
