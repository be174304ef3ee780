"""Experiments that optimise a reward: a reward model of theirs, PPO by it, what is measured."""

import contextlib

import jax.numpy as jnp
import lab_plans
import micro
import numpy as np
import pytest

from jaxrlhf import rewards
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.metrics import read_metrics
from jaxrlhf.recipes import lab_policy, lab_reward, queries
from jaxrlhf.recipes.lab_policy import Reward
from jaxrlhf.recipes.lab_reward import LabConfig, Trained


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    with contextlib.chdir(folder), lab_plans.first_policy():
        config = f"config={micro.pipeline() / 'micro.yaml'}"
        settings = LabConfig.load(
            None, (config, f"output_dir={folder}/x", f"base_dir={folder}/base", "updates=2")
        )
        yield lab_reward.prepare(settings, 3)


def test_ppo_by_a_reward_model_of_our_own(lab):
    rows = [
        row
        for x in lab.answers(prompts=16, each=2)
        if (row := lab_reward.by_gold(lab.world, x["prompt"], *x["responses"]))
    ]
    trained = lab_policy.learn(lab, "arm", rows)
    assert (lab.root / "arm" / "done.json").is_file() and 0 <= trained.accuracy <= 1
    asked = {"updates": 2, "points": 2, "reward_model": trained.model}
    found = lab_policy.optimise(lab, "arm", **asked)
    assert [point["step"] for point in found] == [0, 1, 2]
    assert {"gold", "kl", "score", "length"} <= set(found[0])
    # A policy that has not learned anything is the reference; held-out prompts are held out.
    assert found[0]["kl"] == pytest.approx(0.0, abs=1e-5) and found[-1]["kl"] > 1e-5
    made = (lab.root / "arm" / "ppo" / "done.json").stat().st_mtime_ns
    assert lab_policy.optimise(lab, "arm", **asked) == found
    assert (lab.root / "arm" / "ppo" / "done.json").stat().st_mtime_ns == made


def test_any_reward_and_an_arms_own_settings(lab):
    seen = []

    def shortness(rollout: rewards.Rollout) -> np.ndarray:
        seen.append(rollout.prompt_length)
        return -np.asarray(rollout.mask).sum(axis=1)

    def no_penalty(settings):
        free = settings.ppo.model_copy(update={"kl_coef": 0.25, "kl_target": None})
        return settings.model_copy(update={"ppo": free})

    lab_policy.optimise(lab, "short", updates=1, points=1, reward_fn=shortness, change=no_penalty)
    logged = read_metrics(lab.root / "short" / "ppo")
    assert seen and logged[-1]["objective/kl_coef"] == pytest.approx(0.25)


# Rewards with something taken off.


def words(prompt, response):
    return len(response.split())


def test_a_feature_is_taken_off_the_score():
    tokens = tokenizers.word_tokenizer(["a", "soup", "pie"])
    rows = [tokens.convert_tokens_to_ids(x.split()) for x in ("a soup pie soup", "a soup pie pie")]
    mask = jnp.array([[True, True, True, True], [True, True, True, False]])
    rollout = rewards.Rollout(jnp.array(rows), mask, 1)
    score = lab_policy.less(Reward(lambda _: jnp.array([3.0, 3.0]), tokens), words, 0.5)
    assert score(rollout).tolist() == [3 - 1.5, 3 - 1.0]  # three words, and two that can be seen


def test_what_a_reward_model_pays_for_a_feature_is_found(monkeypatch):
    """Scores are .75 a word and noise of its own; gaps are read in nats, 4 a score."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6, size=(2000, 2))
    labels = [{"prompt": "a", "chosen": "x " * a, "rejected": "y " * b} for a, b in sizes.tolist()]
    truth = 0.75 * (sizes[:, 0] - sizes[:, 1]) + rng.normal(size=2000)
    monkeypatch.setattr(queries, "gaps_of", lambda settings, model, pairs: 4 * truth)
    monkeypatch.setattr(queries, "nats", lambda model: 4.0)

    class Lab:
        class pipeline:
            class reward:
                max_length = 16

    found = lab_policy.paid_for(Lab, Trained("", 0.0), labels, words)
    # Gaps of two uniform numbers of 1 to 5 have variance 4: standard error 1 / sqrt(8000) = .011.
    assert found == pytest.approx(0.75, abs=3 * 0.011)
