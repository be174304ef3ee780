"""The learning signal, through the real algorithms: what must hold in every run.

Every invariant, by its number in the project's list, and the tests that hold it:

    A1  test_invariants_signal        test_kl_is_zero_at_the_reference
    A1  test_invariants_signal        test_kl_of_a_transformer_is_zero_at_the_reference
    A1  losses/test_log_probs         test_same_policy_means_no_divergence
    A2  test_invariants_signal        test_the_ratio_is_one_until_the_first_step
    A2  losses/test_policy            test_at_the_policy_that_sampled_the_ratio_is_exactly_one
    A3  test_rewards                  test_any_number_becomes_float32_and_arrives_whole
    A3  losses/test_advantages        test_a_score_of_point_seven_arrives_as_point_seven
    A4  test_invariants_signal        test_the_sampler_and_the_scorer_agree
    A4  algorithms/test_ppo           test_a_filtered_distribution_is_refused_for_training
    A4  algorithms/test_ppo           test_collect_records_what_the_tables_say
    A4  test_inference                test_stored_log_probs_equal_the_score_at_the_same_temperature
    A4  test_inference                test_filtered_log_probs_are_of_the_filtered_distribution
    A5  test_invariants_signal        test_a_sampled_eos_is_trained_on
    A5  test_invariants_signal        test_what_stands_after_the_end_changes_nothing
    A5  test_inference                test_responses_end_with_the_stop_token
    A5  test_inference                test_responses_cut_by_length_get_no_stop_token
    A5  test_inference                test_pad_equal_to_stop_is_told_apart_by_the_mask
    A6  test_invariants_signal        test_what_stands_after_the_end_changes_nothing
    A6  test_invariants_signal        test_what_a_supervised_mask_hides_changes_nothing
    A6  losses/test_advantages        test_the_score_sits_on_the_last_real_token_and_the_row_adds_up
    A6  losses/test_advantages        test_nothing_behind_the_mask_leaks
    A6  losses/test_losses_nan        test_masked_positions_reach_neither_the_loss_nor_its_gradient
    A6  models/test_transformer       test_what_stands_in_the_padding_changes_nothing_at_all
    A7  test_invariants_signal        test_no_two_samples_share_their_randomness
    A7  test_inference                test_keys_decide
    A7  test_inference                test_a_row_does_not_depend_on_its_batch
    A8  test_invariants_signal        test_micro_batches_change_nothing
    A8  test_invariants_signal        test_padding_on_either_side_changes_nothing
    A8  test_invariants_signal        test_prompts_padded_on_the_right_give_the_same_rollout
    A8  test_invariants_signal        test_pads_before_the_prompt_change_nothing
    A8  test_invariants_signal        test_eight_devices_train_as_one
    A8  algorithms/test_contract      test_one_device_and_a_2_by_2_mesh_agree
    A8  models/test_transformer       test_padding_changes_nothing
    A8  test_inference                test_padding_of_the_prompt_changes_nothing
    A9  test_invariants_signal        test_whitening_is_over_all_devices
    A9  algorithms/test_ppo           test_returns_come_from_unwhitened_advantages
    A9  losses/test_masked            test_whitening_oracle
    A9  losses/test_masked            test_whitening_sees_only_the_mask
    A9  losses/test_masked            test_across_devices_the_mean_is_of_the_whole_batch
    A10 losses/test_divergences       test_values_and_reward_gradients_of_the_table
    A10 losses/test_divergences       test_k2_is_the_one_for_a_loss
    A10 losses/test_divergences       test_k3_in_the_reward_hardly_pulls_near_the_reference
    A10 algorithms/test_ppo           test_settings_that_make_no_sense_are_refused
    A11 losses/test_advantages        test_gae_equals_the_definition_on_the_real_tokens
    A11 losses/test_advantages        test_gae_oracle
    A11 losses/test_advantages        test_without_values_or_discount_gae_is_the_reward_to_come
    A11 algorithms/test_ppo           test_a_step_equals_the_one_written_out_in_numpy
    A12 losses/test_preference        test_equal_scores_cost_log_two
    A12 losses/test_preference        test_it_falls_as_the_chosen_one_wins_by_more
    A12 algorithms/test_reward        test_equal_scores_cost_log_two
    A12 test_invariants_direction     test_a_bandit_ends_where_the_coefficient_says
    A12 test_invariants_direction     test_the_controller_moves_towards_its_target
    A12 losses/test_divergences       test_adaptive_coefficient_oracle
    A13 algorithms/test_contract      test_learning_rate_zero_changes_no_bit
    A13 test_invariants_signal        test_models_have_no_dropout
    A13 test_optim                    test_a_zero_rate_leaves_parameters_bit_equal
    A14 test_invariants_signal        test_the_reference_outlives_donated_steps
    A15 test_invariants_signal        test_the_tokens_trained_on_are_those_sampled
    A15 test_layers                   test_imports_go_one_way
    B1  test_invariants_direction     test_the_two_readings_of_the_score_agree
    B8  test_invariants_direction     test_a_bandit_ends_where_the_coefficient_says
    B8  test_invariants_direction     test_without_a_reward_the_policy_returns_to_the_reference
    B8  test_invariants_direction     test_a_negated_reward_mirrors_the_step
    B8  losses/test_losses_direction  test_many_steps_find_the_better_arm
    D   losses/test_masked            test_whitening_oracle
    D   losses/test_divergences       test_adaptive_coefficient_oracle
    D   losses/test_divergences       test_exact_value_and_gradient
    D   losses/test_divergences       test_the_ratio_of_k3_is_the_right_way_up
    D   losses/test_advantages        test_gae_oracle
    D   test_invariants_direction     test_the_tensorflow_epsilon_moves_a_policy_less
    D   test_optim                    test_both_epsilon_forms_equal_numpy
    E   test_invariants_direction     test_a_run_logs_every_figure
    F   algorithms/test_reward        test_a_step_equals_the_one_written_out_in_numpy
    F   models/test_heads             test_the_score_is_the_value_at_the_last_real_token
    F   models/test_heads             test_initial_head
    F   models/test_heads             test_affine
    F   losses/test_preference        test_best_of_k
    F   algorithms/test_ppo           test_a_step_equals_the_one_written_out_in_numpy
    F   algorithms/test_ppo           test_its_metrics_equal_those_written_out_in_numpy
    F   algorithms/test_ppo           test_a_kl_above_the_target_stops_further_updates
    F   algorithms/test_ppo           test_a_fresh_permutation_every_epoch
    F   algorithms/test_ppo           test_the_reward_sees_less_than_the_policy_trains_on
    F   algorithms/test_ppo           test_whitened_rewards_keep_their_mean_and_are_scaled_to_one
    F   algorithms/test_ppo           test_the_running_moments_of_scores_live_in_the_state
    F   algorithms/test_rollouts      test_running_moments_equal_numpy_over_several_batches
    F   algorithms/test_rollouts      test_scores_are_shaped_in_order
    F   algorithms/test_rollouts      test_what_the_reward_sees
    F   models/test_transformer       test_positions_can_be_given
    F   test_optim                    test_schedules_are_those_of_hugging_face
    F   test_optim                    test_the_rate_is_exactly_zero_at_the_end
    F   test_optim                    test_clipping_bounds_the_norm_and_keeps_the_direction
    F   test_optim                    test_clipping_comes_before_adam

What is here runs on `tiny.first_update` where a transformer could break it (padding, masks, leaks),
and otherwise on `tables`, where a step compiles in a second.
"""

import ast
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import ppo_by_hand
import pytest
import tables
import tiny

from jaxrlhf import inference, loop, rewards, sharding
from jaxrlhf.algorithms import ppo as module
from jaxrlhf.algorithms.ppo import Settings, ppo

HELD_BY = [line.split() for line in str(__doc__).splitlines() if line.startswith("    ")]
SHARED = Settings(value_model="shared", num_ppo_epochs=1)
SAMPLING = tables.sampling()


def test_the_table_names_tests_that_exist():
    assert {f"A{i}" for i in range(1, 16)} < {invariant for invariant, _, _ in HELD_BY}
    for _, file, name in HELD_BY:
        assert name in functions(file), (file, name)


@functools.cache
def functions(file: str) -> set[str]:
    tree = ast.parse((Path(__file__).parent / f"{file}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@functools.cache
def one_update():
    """The compiled update of `SHARED`; reward, reference and rate are not part of it."""
    return tables.ppo_run(SHARED).update


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
    new, _ = one_update()(run.state, run.batch, run.key)
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
    batch = {name: np.asarray(x) for name, x in tables.prompts().items()}
    batch |= {name: np.tile(batch[name][1:2], (8, 1)) for name in ("prompt_tokens", "prompt_mask")}
    found = {}
    for name, devices, seed in [("one", 1, 0), ("again", 1, 0), ("other", 1, 1), ("eight", 8, 0)]:
        found[name] = rollouts(batch, devices=devices, seed=seed)
    texts = {tuple(row) for row in found["one"].reshape(16, -1)}
    assert len(texts) > 12
    np.testing.assert_array_equal(found["one"], found["again"])
    np.testing.assert_array_equal(found["one"], found["eight"])
    assert (found["one"] != found["other"]).any()


def rollouts(batch, *, devices: int, seed: int) -> np.ndarray:
    """Responses `[2, 8, N]` of two steps of `loop.fit` in which nothing is learned."""
    found = []
    algorithm = ppo(
        tables.LM_TABLE, tables.table(4), tables.odd_share, tables.sgd(0.0), SAMPLING, SHARED
    )

    def collect(state, next_batch, key):
        batch, metrics = algorithm.collect(state, next_batch, key)
        found.append(np.asarray(batch["tokens"])[:, tables.PROMPT_LENGTH :])
        return batch, metrics

    def update(state, batch, key):
        return state._replace(step=state.step + 1), {}

    loop.fit(
        algorithm._replace(collect=collect, update=update),
        tables.params(SHARED),
        tiny.Cycle([batch]),
        steps=2,
        seed=seed,
        mesh=sharding.make_mesh(devices, 1),
    )
    return np.array(found)


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


@pytest.mark.parametrize("pads", [3, 7])
@pytest.mark.parametrize("name", ["sft", "reward"])
def test_padding_on_either_side_changes_nothing(name, pads):
    """Texts with all pads after them, against `pads` before and the others after.

    Adam's first step turns rounding into as much as 1e-4, hence the tolerance on parameters.
    """
    first = tiny.first_update(name)
    moved = {key: jnp.roll(x, pads, axis=1) if x.ndim == 2 else x for key, x in first.batch.items()}
    new, metrics = first.update(first.state, moved)
    assert_close(new.params, first.new.params, atol=2e-4)
    assert_close(metrics, first.metrics, atol=1e-5)


def test_prompts_padded_on_the_right_give_the_same_rollout():
    first = tiny.first_update("ppo")
    given = first.case.batches[0]
    moved = {
        key: jnp.asarray(np.roll(x, 3, axis=1) if x.ndim == 2 else x) for key, x in given.items()
    }
    assert not moved["prompt_mask"][:, 3:].any()
    batch, _ = first.case.algorithm.collect(first.state, lambda: moved, jax.random.key(1))
    assert_equal(batch, first.batch)


def test_pads_before_the_prompt_change_nothing():
    """An update on a rollout of 3 + 4 columns, against the same one after nine columns of pads."""
    first = tiny.first_update("ppo")
    assert not first.batch["mask"][:, :9].any() and first.batch["mask"][:, 9].any()
    narrow = {key: first.batch[key][:, 9:] for key in ("tokens", "mask")}
    new, metrics = first.update(first.state, {**first.batch, **narrow})
    assert_close(new.params, first.new.params, atol=2e-4)
    expected = dict(first.metrics)
    assert metrics.pop("rollout/padding") < expected.pop("rollout/padding")
    assert_close(metrics, expected, atol=1e-5)


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


# ------------------------------------------------------------------ A13, A14, A15


def test_models_have_no_dropout():
    for path in (Path(module.__file__).parent.parent / "models").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "id", "") or getattr(node, "attr", "") or getattr(node, "arg", "")
            assert "dropout" not in str(name).lower(), path


def test_the_reference_outlives_donated_steps():
    """It is the very array that training starts from; so is the reward model's value network."""
    settings = Settings(num_ppo_epochs=1)
    params = tables.params(settings)
    before = jax.tree.map(lambda x: np.array(x, copy=True), params)
    algorithm = ppo(
        tables.LM_TABLE, params["policy"], tables.odd_share, tables.sgd(1.0), SAMPLING, settings
    )
    batches = tiny.Cycle([jax.tree.map(np.asarray, tables.prompts())])
    state = loop.fit(algorithm, params, batches, steps=2, seed=0)
    assert not any(x.is_deleted() for x in jax.tree.leaves(params))
    assert_equal(params, before)
    moved = state.params["policy"]["embed"]["embedding"] - params["policy"]["embed"]["embedding"]
    assert np.max(abs(np.asarray(moved))) > 1e-3


def test_the_tokens_trained_on_are_those_sampled(monkeypatch):
    """Even where the reward reads text that cannot be turned back into tokens."""
    sampled, trained = [], []
    generate = inference.generate

    def record(*args):
        sampled.append(generate(*args))
        return sampled[-1]

    monkeypatch.setattr(inference, "generate", record)
    lossy = rewards.from_text(lambda prompts, completions: [0.5] * 8, lambda ids: "")
    algorithm = ppo(tables.LM_TABLE, tables.table(4), lossy, tables.sgd(1.0), SAMPLING, SHARED)

    def spy(state, batch, key):
        jax.debug.callback(lambda *x: trained.append(x), batch["tokens"], batch["mask"])
        return algorithm.update(state, batch, key)

    batches = tiny.Cycle([jax.tree.map(np.asarray, tables.prompts())])
    loop.fit(algorithm._replace(update=spy), tables.params(SHARED), batches, steps=2, seed=0)
    jax.effects_barrier()
    assert len(sampled) == len(trained) == 2
    for rollout, (tokens, mask) in zip(sampled, trained, strict=True):
        np.testing.assert_array_equal(rollout.tokens, tokens)
        np.testing.assert_array_equal(rollout.mask, mask)


# ------------------------------------------------------------------ helpers


def assert_equal(found, expected) -> None:
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_close(found, expected, *, atol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found, expected)
