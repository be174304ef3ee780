"""The learning signal, through the real algorithms: what must hold in every run.

`HELD_BY` says for each invariant which tests hold it; a test below checks that they exist. Here
are those that cross module borders. They run on `tiny.first_update` where a transformer could
break them (padding, masks, leaks), and otherwise on `tables`, where a step compiles in a second.
"""

import ast
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import ppo_by_hand
import pytest
import tables
import tiny

from jaxrlhf import inference, loop, rewards, sharding
from jaxrlhf.algorithms import ppo as module
from jaxrlhf.algorithms.ppo import Settings, ppo
from jaxrlhf.losses import advantages, policy
from jaxrlhf.optim import make_optimizer

HELD_BY = {
    "A1 KL is 0 at the reference": (
        "test_invariants_signal.py::test_kl_is_zero_at_the_reference",
        "test_invariants_signal.py::test_kl_of_a_transformer_is_zero_at_the_reference",
        "losses/test_log_probs.py::test_same_policy_means_no_divergence",
    ),
    "A2 ratio 1 at first": (
        "test_invariants_signal.py::test_the_ratio_is_one_until_the_first_step",
        "losses/test_policy.py::test_at_the_policy_that_sampled_the_ratio_is_exactly_one",
    ),
    "A3 a score of .7 stays .7": (
        "test_rewards.py::test_any_number_becomes_float32_and_arrives_whole",
        "losses/test_advantages.py::test_a_score_of_point_seven_arrives_as_point_seven",
    ),
    "A4 sampled = scored": (
        "test_invariants_signal.py::test_the_sampler_and_the_scorer_agree",
        "algorithms/test_ppo.py::test_a_filtered_distribution_is_refused_for_training",
        "algorithms/test_ppo.py::test_collect_records_what_the_tables_say",
        "test_inference.py::test_stored_log_probs_equal_the_score_at_the_same_temperature",
        "test_inference.py::test_filtered_log_probs_are_of_the_filtered_distribution",
    ),
    "A5 a sampled EOS counts": (
        "test_invariants_signal.py::test_a_sampled_eos_is_trained_on",
        "test_invariants_signal.py::test_what_stands_after_the_end_changes_nothing",
        "test_inference.py::test_responses_end_with_the_stop_token",
        "test_inference.py::test_responses_cut_by_length_get_no_stop_token",
        "test_inference.py::test_pad_equal_to_stop_is_told_apart_by_the_mask",
    ),
    "A6 score on the last token, nothing leaks": (
        "test_invariants_signal.py::test_what_stands_after_the_end_changes_nothing",
        "test_invariants_signal.py::test_what_a_supervised_mask_hides_changes_nothing",
        "losses/test_advantages.py::test_the_score_sits_on_the_last_real_token_and_the_row_adds_up",
        "losses/test_advantages.py::test_nothing_behind_the_mask_leaks",
        "losses/test_losses_nan.py::test_masked_positions_reach_neither_the_loss_nor_its_gradient",
        "models/test_transformer.py::test_what_stands_in_the_padding_changes_nothing_at_all",
    ),
    "A7 randomness": (
        "test_invariants_signal.py::test_no_two_samples_share_their_randomness",
        "test_inference.py::test_keys_decide",
        "test_inference.py::test_a_row_does_not_depend_on_its_batch",
    ),
    "A8 however the batch is split and padded": (
        "test_invariants_signal.py::test_micro_batches_change_nothing",
        "test_invariants_signal.py::test_the_place_of_the_padding_changes_nothing",
        "test_invariants_signal.py::test_eight_devices_train_as_one",
        "algorithms/test_contract.py::test_one_device_and_a_2_by_2_mesh_agree",
        "models/test_transformer.py::test_padding_changes_nothing",
        "test_inference.py::test_padding_of_the_prompt_changes_nothing",
    ),
    "A9 whitening over the whole minibatch": (
        "test_invariants_signal.py::test_whitening_is_over_all_devices",
        "algorithms/test_ppo.py::test_returns_come_from_unwhitened_advantages",
        "losses/test_masked.py::test_whitening_oracle",
        "losses/test_masked.py::test_whitening_sees_only_the_mask",
        "losses/test_masked.py::test_across_devices_the_mean_is_of_the_whole_batch",
    ),
    "A10 which KL estimator where": (
        "losses/test_divergences.py::test_values_and_reward_gradients_of_the_table",
        "losses/test_divergences.py::test_k2_is_the_one_for_a_loss",
        "losses/test_divergences.py::test_k3_in_the_reward_hardly_pulls_near_the_reference",
        "algorithms/test_ppo.py::test_settings_that_make_no_sense_are_refused",
    ),
    "A11 GAE": (
        "losses/test_advantages.py::test_gae_equals_the_definition_on_the_real_tokens",
        "losses/test_advantages.py::test_gae_oracle",
        "losses/test_advantages.py::test_without_values_or_discount_gae_is_the_reward_to_come",
        "algorithms/test_ppo.py::test_a_step_equals_the_one_written_out_in_numpy",
    ),
    "A12 Bradley-Terry, coefficient, controller": (
        "losses/test_preference.py::test_equal_scores_cost_log_two",
        "losses/test_preference.py::test_it_falls_as_the_chosen_one_wins_by_more",
        "algorithms/test_reward.py::test_equal_scores_cost_log_two",
        "test_invariants_signal.py::test_a_bandit_ends_where_the_coefficient_says",
        "test_invariants_signal.py::test_the_controller_moves_towards_its_target",
        "losses/test_divergences.py::test_adaptive_coefficient_oracle",
    ),
    "A13 rate 0, no dropout": (
        "algorithms/test_contract.py::test_learning_rate_zero_changes_no_bit",
        "test_invariants_signal.py::test_models_have_no_dropout",
        "test_optim.py::test_a_zero_rate_leaves_parameters_bit_equal",
    ),
    "A14 the reference": (
        "test_invariants_signal.py::test_the_reference_outlives_donated_steps",
    ),
    "A15 tokens in, tokens out": (
        "test_invariants_signal.py::test_the_tokens_trained_on_are_those_sampled",
        "test_layers.py::test_imports_go_one_way",
    ),
    "B1 two readings": ("test_invariants_signal.py::test_the_two_readings_of_the_score_agree",),
    "B8 direction": (
        "test_invariants_signal.py::test_a_bandit_ends_where_the_coefficient_says",
        "test_invariants_signal.py::test_without_a_reward_the_policy_returns_to_the_reference",
        "test_invariants_signal.py::test_a_negated_reward_mirrors_the_step",
        "losses/test_losses_direction.py::test_many_steps_find_the_better_arm",
    ),
    "D oracles": (
        "losses/test_masked.py::test_whitening_oracle",
        "losses/test_divergences.py::test_adaptive_coefficient_oracle",
        "losses/test_divergences.py::test_exact_value_and_gradient",
        "losses/test_divergences.py::test_the_ratio_of_k3_is_the_right_way_up",
        "losses/test_advantages.py::test_gae_oracle",
        "test_invariants_signal.py::test_the_tensorflow_epsilon_moves_a_policy_less",
        "test_optim.py::test_both_epsilon_forms_equal_numpy",
    ),
    "E what a run logs": ("test_invariants_signal.py::test_a_run_logs_every_figure",),
    "F reward model": (
        "algorithms/test_reward.py::test_a_step_equals_the_one_written_out_in_numpy",
        "models/test_heads.py::test_the_score_is_the_value_at_the_last_real_token",
        "models/test_heads.py::test_initial_head",
        "models/test_heads.py::test_affine",
        "losses/test_preference.py::test_best_of_k",
    ),
    "F policy": (
        "algorithms/test_ppo.py::test_a_step_equals_the_one_written_out_in_numpy",
        "algorithms/test_ppo.py::test_its_metrics_equal_those_written_out_in_numpy",
        "algorithms/test_ppo.py::test_a_kl_above_the_target_stops_further_updates",
        "algorithms/test_ppo.py::test_minibatches_are_dealt_from_a_fresh_permutation_every_epoch",
        "algorithms/test_ppo.py::test_the_reward_sees_the_truncated_text_and_the_policy_trains_on_all_of_it",
        "algorithms/test_ppo.py::test_whitened_rewards_keep_their_mean_and_are_scaled_to_one",
        "algorithms/test_ppo.py::test_the_running_moments_of_scores_live_in_the_state",
        "algorithms/test_rollouts.py::test_running_moments_equal_numpy_over_several_batches",
        "algorithms/test_rollouts.py::test_scores_are_shaped_in_order",
        "algorithms/test_rollouts.py::test_what_the_reward_sees",
        "models/test_transformer.py::test_positions_can_be_given",
    ),
    "F optimizer": (
        "test_optim.py::test_schedules_are_those_of_hugging_face",
        "test_optim.py::test_the_rate_is_exactly_zero_at_the_end",
        "test_optim.py::test_clipping_bounds_the_norm_and_keeps_the_direction",
        "test_optim.py::test_clipping_comes_before_adam",
    ),
}


@pytest.mark.parametrize("invariant", HELD_BY)
def test_the_table_names_tests_that_exist(invariant):
    for test in HELD_BY[invariant]:
        file, name = test.split("::")
        assert name in functions(file), test


@functools.cache
def functions(file: str) -> set[str]:
    tree = ast.parse((Path(__file__).parent / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


# ------------------------------------------------------------------ A1, A2, A4: log-probs


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 1.3])
def test_kl_is_zero_at_the_reference(temperature):
    """Exactly: the same program on the same numbers. Away from it, it is not."""
    sample = tables.sampling(temperature=temperature)
    same = tables.ppo_run(SHARED, reference=tables.table(1), sample=sample).batch
    np.testing.assert_array_equal(same["log_probs"], same["ref_log_probs"])
    other = tables.ppo_run(SHARED, sample=sample).batch
    assert np.max(abs(np.asarray(other["log_probs"] - other["ref_log_probs"]))) > 0.1


def test_kl_of_a_transformer_is_zero_at_the_reference():
    first = tiny.first_update("ppo")  # prompts of two and three tokens in twelve columns
    np.testing.assert_array_equal(first.batch["log_probs"], first.batch["ref_log_probs"])
    assert float(first.metrics["objective/kl_k1"]) == float(first.metrics["objective/kl_k3"]) == 0
    _, metrics = first.update(first.new, first.batch)
    assert float(metrics["policy/approx_kl"]) > 0  # it can be seen: the policy has moved


def test_the_ratio_is_one_until_the_first_step():
    """`ppo` makes one update on the batch, `ppo-shared` four, three of them on a moved policy."""
    metrics = tiny.first_update("ppo").metrics
    assert float(metrics["policy/updates"]) == 1
    assert float(metrics["policy/ratio_mean"]) == pytest.approx(1, abs=1e-5)
    assert float(metrics["policy/ratio_max"]) == pytest.approx(1, abs=1e-5)
    assert float(metrics["policy/approx_kl"]) < 1e-10
    assert float(metrics["policy/clip_fraction"]) == 0
    metrics = tiny.first_update("ppo-shared").metrics
    assert float(metrics["policy/updates"]) == 4
    assert float(metrics["policy/ratio_max"]) > 1.01
    assert float(metrics["policy/approx_kl"]) > 1e-5


@pytest.mark.parametrize("name", ["ppo", "ppo-shared"])
def test_the_sampler_and_the_scorer_agree(name):
    """Decoding with a cache against the forward pass that is trained."""
    first = tiny.first_update(name)
    assert float(first.metrics["rollout/sampler_logprob_gap"]) < 1e-5
    assert np.asarray(first.batch["sampler_log_probs"]).min() < -1


# ------------------------------------------------------------------ A5, A6: masks


def poisoned(batch, *, junk_token: int):
    """The same batch with NaN, and another token, wherever the mask hides."""
    hidden, response = ~batch["mask"], ~batch["mask"][:, -batch["log_probs"].shape[1] :]
    changed = {"tokens": jnp.where(hidden, junk_token, batch["tokens"])}
    for name in ("log_probs", "ref_log_probs", "values", "entropy", "sampler_log_probs"):
        changed[name] = jnp.where(response, jnp.nan, batch[name])
    return {**batch, **changed}


@pytest.mark.parametrize("junk_token", [tiny.EOS, tiny.GOOD])
@pytest.mark.parametrize("name", ["ppo", "ppo-shared"])
def test_what_stands_after_the_end_changes_nothing(name, junk_token):
    """With EOS as the junk: padding with the stop token is no different from any other."""
    first = tiny.first_update(name)
    ends = np.asarray(first.batch["mask"])[:, 12:].sum(axis=1)
    assert (ends < 4).any()
    new, metrics = first.update(first.state, poisoned(first.batch, junk_token=junk_token))
    assert_equal(new.params, first.new.params)
    assert_equal(metrics, first.metrics)


def test_what_a_supervised_mask_hides_changes_nothing():
    sft = tiny.first_update("sft")
    tokens = jnp.where(sft.batch["mask"], sft.batch["tokens"], tiny.GOOD)
    new, metrics = sft.update(sft.state, {**sft.batch, "tokens": tokens})
    assert_equal(new.params, sft.new.params)
    assert_equal(metrics, sft.metrics)
    pairs = tiny.first_update("reward")
    changed = {
        f"{side}_tokens": jnp.where(
            pairs.batch[f"{side}_mask"], pairs.batch[f"{side}_tokens"], tiny.GOOD
        )
        for side in ("chosen", "rejected")
    }
    new, metrics = pairs.update(pairs.state, {**pairs.batch, **changed})
    assert_equal(new.params, pairs.new.params)
    assert_equal(metrics, pairs.metrics)


@pytest.mark.parametrize("pad_id", [tables.PAD, tables.EOS])
def test_a_sampled_eos_is_trained_on(pad_id):
    """Reward for having ended: EOS becomes likelier after every token it was sampled after."""
    run = tables.ppo_run(
        SHARED,
        reward_fn=lambda rollout: jnp.any(
            (rollout.tokens == tables.EOS) & rollout.mask & (jnp.arange(7) >= 2)[None, :], axis=1
        ),
        reference=tables.table(1),
        sample=tables.sampling(pad_id=pad_id),
    )
    scores = np.asarray(run.batch["scores"])
    np.testing.assert_array_equal(scores, run.batch["complete"])
    assert 0 < scores.sum() < 8
    new, _ = table_update()(run.state, run.batch, run.key)
    ended = [ppo_by_hand.Sequence(run.batch, row, 2) for row in range(8) if scores[row]]
    for s in ended:
        assert s.y[-1] == tables.EOS
        assert eos_logit(new, s.x[-1]) > eos_logit(run.state, s.x[-1])


def eos_logit(state, token: int) -> float:
    row = state.params["policy"]["embed"]["embedding"][token]
    return float(jax.nn.log_softmax(row)[tables.EOS])


# ------------------------------------------------------------------ A7: randomness


def test_no_two_samples_share_their_randomness():
    """Eight samples of one prompt, two consecutive rollouts, eight devices; and a second run."""
    batch = tables.prompts()
    batch = {**batch, **{k: jnp.tile(batch[k][1:2], (8, 1)) for k in batch if k != "row"}}
    algorithm = ppo(
        tables.LM_TABLE, tables.table(4), tables.odd_share, tables.sgd(0.0), SAMPLING, SHARED
    )
    found = {}
    for name, data, seed in [("one", 1, 0), ("again", 1, 0), ("other", 1, 1), ("eight", 8, 0)]:
        found[name] = []
        loop.fit(
            algorithm._replace(collect=recorder(algorithm.collect, found[name])),
            tables.params(SHARED),
            tiny.Cycle([jax.tree.map(np.asarray, batch)]),
            steps=2,
            seed=seed,
            mesh=sharding.make_mesh(data, 1),
        )
    first, second = found["one"]
    assert len({tuple(row) for row in np.concatenate([first, second])}) > 12  # 15 of 16 expected
    np.testing.assert_array_equal(found["one"], found["again"])
    np.testing.assert_array_equal(found["one"], found["eight"])
    assert (np.asarray(found["one"]) != np.asarray(found["other"])).any()


def recorder(collect, found: list):
    def wrapped(*args):
        batch, metrics = collect(*args)
        found.append(np.asarray(batch["tokens"])[:, tables.PROMPT_LENGTH :])
        return batch, metrics

    return wrapped


# ------------------------------------------------------------------ A8, A9: splits and devices


@pytest.mark.parametrize("method", ["sft", "reward", "ppo"])
def test_micro_batches_change_nothing(method):
    """1, 2, 4 and 8 pieces of eight ragged rows; the rate is 1, so parameters hold gradients."""
    found = [first_step(method, pieces) for pieces in (1, 2, 4, 8)]
    for new, metrics in found[1:]:
        assert_close(new.params, found[0][0].params, atol=2e-6)
        assert_close(metrics, found[0][1], atol=2e-5)


def first_step(method: str, pieces: int):
    if method == "ppo":
        run = tables.ppo_run(
            Settings(value_model="shared", num_ppo_epochs=1, gradient_accumulation_steps=pieces)
        )
    else:
        make = {"sft": tables.sft_run, "reward": tables.reward_run}[method]
        run = make(micro_batches=pieces)
    return run.update(run.state, run.batch, run.key)


@pytest.mark.parametrize("pads", ["right", "3 left", "all in front"])
def test_the_place_of_the_padding_changes_nothing(pads):
    """Prompts of two and three tokens that end at column 3, 6 or 12 of twelve; pads around them.

    Adam's first step turns rounding into as much as 1e-4, hence the tolerance on parameters.
    """
    first = tiny.first_update("ppo")
    shift = {"right": 9, "3 left": 6, "all in front": 0}[pads]
    assert np.asarray(first.batch["mask"])[:, :9].sum() == 0
    moved = {
        name: jnp.concatenate(
            [jnp.roll(first.batch[name][:, :12], -shift, axis=1), first.batch[name][:, 12:]], axis=1
        )
        for name in ("tokens", "mask")
    }
    state = tiny.at_rate(first.state, 1e-2)
    new, metrics = first.update(state, {**first.batch, **moved})
    assert_close(new.params, first.new.params, atol=2e-4)
    assert_close(metrics, first.metrics, atol=1e-5)
    # The frozen passes of `collect` as well.
    tokens, mask = (np.asarray({**first.batch, **moved}[name]) for name in ("tokens", "mask"))
    again = inference.score(tiny.LM, first.case.params["policy"], tokens, mask, response_length=4)
    np.testing.assert_allclose(again.log_probs, first.batch["log_probs"], atol=1e-5)


def test_eight_devices_train_as_one():
    """One row a device: means, whitening, moments, stopping and metrics are of the whole batch."""
    settings = Settings(
        value_model="shared",
        num_ppo_epochs=2,
        kl_target=0.5,
        normalize_scores=True,
        whiten_rewards=True,
    )
    algorithm = ppo(
        tables.LM_TABLE, tables.table(4), tables.odd_share, tables.sgd(0.5), SAMPLING, settings
    )
    batches = [jax.tree.map(np.asarray, tables.prompts())]
    found = []
    for devices in (1, 8):
        rows = []
        state = loop.fit(
            algorithm,
            tables.params(settings),
            tiny.Cycle(batches),
            steps=2,
            seed=0,
            mesh=sharding.make_mesh(devices, 1),
            on_step=lambda step, metrics, rows=rows: rows.append(metrics),
        )
        found.append((state, rows))
    (one, one_rows), (eight, eight_rows) = found
    assert_close(eight.params, one.params, atol=1e-5)
    assert_close(eight.extra, one.extra, atol=1e-5)
    for a, b in zip(one_rows, eight_rows, strict=True):
        for name in a:
            if not name.startswith("time/"):
                np.testing.assert_allclose(b[name], a[name], atol=5e-5, err_msg=name)


def test_whitening_is_over_all_devices():
    """Advantages of eight rows on eight devices: standardised together, not each row by itself."""
    batch = tables.ppo_run(SHARED).batch
    rows = {**batch, "shaped_scores": batch["scores"]}
    plain = module.signal(rows, jnp.float32(0.1), Settings(whiten_advantages=False))
    mask, raw = np.asarray(plain.response_mask), np.asarray(plain.advantages, np.float64)
    expected = np.where(mask, (raw - raw[mask].mean()) / raw[mask].std(), 0)
    mesh = sharding.make_mesh(8, 1)
    signal = jax.jit(lambda rows: module.signal(rows, jnp.float32(0.1), Settings()))
    found = signal(sharding.shard_batch(mesh, rows)).advantages
    assert len(found.sharding.device_set) == 8
    np.testing.assert_allclose(found, expected, atol=1e-5)
    alone = raw[0] - raw[0][mask[0]].mean()
    assert np.max(abs(expected[0] - np.where(mask[0], alone / raw[0][mask[0]].std(), 0))) > 0.1


# ------------------------------------------------------------------ A12, B8: direction

SHARED = Settings(value_model="shared", num_ppo_epochs=1, whiten_advantages=False)
SAMPLING = tables.sampling()
ARM, OTHER = 2, 3


@functools.cache
def table_update():
    """The compiled update of `SHARED`: coefficient, rate and reward are not part of it."""
    return tables.ppo_run(SHARED).update


def bandit(*, reward, beta, start, steps, rate=2.0, vf_coef=0.5):
    """Train on one decision after one token between two arms; the share of `ARM` at every step.

    The other logits are −30 in both policies. The update is compiled once: β and the rate are part
    of the state, the reward of `collect`.
    """
    reference = two_arms(0.0)
    algorithm, update = bandit_algorithm(vf_coef)
    collect = ppo(
        tables.LM_TABLE,
        reference,
        lambda rollout: reward * (rollout.tokens[:, -1] == ARM),
        tables.sgd(rate),
        ONE_TOKEN,
        BANDIT,
    ).collect
    zero = {"kernel": jnp.zeros(tables.VOCAB), "bias": jnp.zeros(())}
    params = {"policy": two_arms(start), "value": {"head": zero}}
    state = tables.at_rate(algorithm.init(params, jax.random.key(0)), rate)
    state = state._replace(extra={"kl_coef": jnp.float32(beta)})
    prompts = {
        "prompt_tokens": jnp.full((256, 1), 4),
        "prompt_mask": jnp.ones((256, 1), bool),
        "row": jnp.arange(256),
    }
    shares = [arm_share(state)]
    for step in range(steps):
        key = jax.random.key(step)
        batch, _ = collect(state, lambda: prompts, key)
        state, _ = update(state, batch, key)
        shares.append(arm_share(state))
    return np.array(shares)


BANDIT = Settings(value_model="shared", num_ppo_epochs=1, whiten_advantages=False, vf_coef=0.0)
ONE_TOKEN = tables.sampling(max_new_tokens=1, stop_ids=())


@functools.cache
def bandit_algorithm(vf_coef):
    algorithm = ppo(
        tables.LM_TABLE, {}, tables.odd_share, tables.sgd(1.0), ONE_TOKEN, BANDIT
    )
    return algorithm, jax.jit(algorithm.update)


def two_arms(logit: float):
    embedding = jnp.full((tables.VOCAB,) * 2, -30.0).at[:, ARM].set(logit).at[:, OTHER].set(0.0)
    return {"embed": {"embedding": embedding}}


def arm_share(state) -> float:
    return float(jax.nn.softmax(state.params["policy"]["embed"]["embedding"][4])[ARM])
