"""Each guard against an inverted run is shown a fault that no other guard can see.

Everything is real but for the fault: PPO on the table model, through `loop.fit`, under all guards.
"""

import dataclasses

import faulty
import jax.numpy as jnp
import optax
import pytest
from faulty import good_share, run, with_signs

from jaxrlhf.algorithms import ppo as algorithm


def test_a_healthy_run_is_left_alone(tmp_path):
    found = run(tmp_path, steps=30, compare=faulty.better_share)
    assert found.error is None and not found.names
    first, last = found.rows[1][1], found.rows[-1][1]
    assert last["objective/score"] > first["objective/score"] + 0.2  # it did learn
    assert first["guards/direction_z"] > 2 and first["guards/readings"] > 0.999
    assert found.rows[0][1]["guards/canary"] == 1.0
    assert not (tmp_path / "guards.md").exists()


def test_the_canary_alone_sees_a_reward_that_is_upside_down(tmp_path):
    """All that follows is right: the policy learns what it is told."""
    found = run(tmp_path, reward_fn=lambda rollout: -good_share(rollout))
    assert found.names == {"canary"}
    assert found.error and "0.0% of 40 canary pairs" in str(found.error)
    assert "nothing has been trained" in str(found.error) and not found.store.saved


def test_the_sign_test_alone_sees_that_kl_is_paid_for(tmp_path):
    """Before the first update: there is no KL yet that a reading could show."""
    found = run(tmp_path, token_rewards=with_signs(kl=-1), steps=1)
    assert found.names == {"sign_test"}
    assert "a higher KL pushes tokens by +" in str(found.error)
    assert "a higher score" not in str(found.error)


def test_the_sign_test_sees_both_signs_of_2019(tmp_path):
    """The score's with the canary and, one update later, the readings; the KL's alone."""
    found = run(tmp_path, token_rewards=with_signs(reward=-1, kl=-1))
    assert {"canary", "sign_test"} <= found.names and len(found.rows) == 1
    assert "a higher score" in str(found.error) and "a higher KL" in str(found.error)


def test_the_readings_alone_see_scores_that_were_made_integers(tmp_path):
    """As in a library that wrote them into an int32 array: .7 is paid as 0, and 1 as 1."""
    right = algorithm.token_rewards

    def cut(rows, kl_coef, settings):
        scores = jnp.floor(rows["shaped_scores"])
        return right(rows | {"shaped_scores": scores}, kl_coef, settings)

    found = run(tmp_path, token_rewards=cut)
    assert found.names == {"readings"}
    assert len(found.rows) == 2 and 1 in found.store.saved  # at the first update; it was saved


def test_the_direction_alone_sees_an_optimizer_that_climbs_the_loss(tmp_path):
    found = run(tmp_path, optimizer=optax.sgd(-2.0))
    assert found.names == {"direction"}
    assert "became less likely" in str(found.error)


def test_the_direction_is_that_of_the_scores_whatever_the_reward(tmp_path):
    """A reward that is upside down is learned all the same, as the canary's test asserts: so a
    policy that follows it is in order here."""
    found = run(tmp_path, "off=[canary]", reward_fn=lambda rollout: -good_share(rollout))
    assert found.error is None and found.rows[1][1]["guards/direction_z"] > 2


def test_the_andon_cord_alone_sees_a_reward_model_that_people_disagree_with(tmp_path):
    """The reward goes by a hidden rule; without canaries only people can say that it is bad."""
    found = run(
        tmp_path,
        "off=[canary]",
        reward_fn=lambda rollout: 1 - good_share(rollout),
        compare=faulty.better_share,
    )
    assert found.names == {"andon"}
    step, row = found.rows[-1]
    # 8 verdicts of disagreement an update are 8 log(.8/.5) = 3.8, and 7.5 > 5 after the second:
    # then the other 7 pairs of its batch that differ are labelled too, and contradict as well.
    assert step == 2 and row["guards/andon"] == pytest.approx(23 * 0.4700036, rel=1e-5)
    assert row["guards/andon_labels"] == 15 and 2 in found.store.saved


@pytest.mark.parametrize("settings", ["whiten_rewards", "normalize_scores", "kl_in_loss", "clip"])
def test_the_sign_test_holds_whatever_the_settings(tmp_path, settings):
    changes = {
        "whiten_rewards": {"whiten_rewards": True, "gamma": 0.9},
        "normalize_scores": {"normalize_scores": True, "missing_eos_penalty": -1.0},
        "kl_in_loss": {"kl_in": "loss", "kl_estimator": "k2"},
        "clip": {"reward_clip": 0.3, "whiten_advantages": False, "kl_estimator": "k3"},
    }[settings]
    made = dataclasses.replace(faulty.SETTINGS, **changes)
    # What is clipped is no longer what was given: the readings say so, and rightly.
    found = run(tmp_path, "readings.min_correlation=0.5", settings=made, steps=2)
    assert found.error is None and not found.names
    start = found.rows[0][1]
    assert start["guards/push_of_score"] > 0 > start["guards/push_of_kl"]


def test_without_a_kl_penalty_its_sign_is_not_asked_for(tmp_path):
    made = dataclasses.replace(faulty.SETTINGS, kl_coef=0.0)
    found = run(tmp_path, settings=made, steps=1)
    assert found.error is None and "guards/push_of_kl" not in found.rows[0][1]
