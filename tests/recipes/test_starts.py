"""Where training starts and ends: a reward model goes on, another reference, a KL to stop at."""

import json
import shutil
from pathlib import Path

import micro
import numpy as np
import pytest
import safetensors.numpy

from jaxrlhf.errors import ConfigError
from jaxrlhf.metrics import read_metrics
from jaxrlhf.recipes import ppo, reward
from jaxrlhf.recipes.ppo import Arrival, PPOConfig
from jaxrlhf.recipes.reward import RewardConfig

WARM = (
    "warm_start=run/reward/model",
    "data.train=[run/label/preferences.jsonl]",
    "max_length=40",
    "batch_size=8",
    "max_steps=1",
    "tensorboard=false",
    "normalize=none",
    "normalize_before=false",
)
PPO = (
    "policy=run/ppo/model",
    "reward_model=run/reward/model",
    "prompts.files=[run/data/prompts.jsonl]",
    "prompts.max_length=6",
    "eval_prompts.files=[run/data/test_prompts.jsonl]",
    "eval_prompts.max_length=6",
    "sampling.response_length=6",
    "batch_size=8",
    "max_steps=4",
    "eval_steps=2",
    "save_steps=2",
    "tensorboard=false",
    "ppo.num_ppo_epochs=2",
    "optimizer.learning_rate=1e-2",
    "guards.dry_run=true",
)


@pytest.fixture(autouse=True)
def folder(run, monkeypatch) -> None:
    monkeypatch.chdir(run.parent)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def kl(folder: Path) -> list[float]:
    return [row["eval/kl"] for row in read_metrics(folder) if "eval/kl" in row]


# Reward models.


def test_a_reward_model_goes_on_with_body_and_head(tmp_path):
    still = ("optimizer.learning_rate=1e-30", f"output_dir={tmp_path}/still")
    reward.run(RewardConfig.load(None, (*WARM, *still)))
    before, after = weights(Path("run/reward/model")), weights(tmp_path / "still" / "model")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("model_path=run/sft/model",), "model_path, warm_start: give one of the two"),
        (("lora.rank=2",), "no lora"),
        (("zero_head=true",), "no zero_head"),
        (("pooling=mean",), "pooling = 'mean': warm_start = run/reward/model has 'last'"),
        (("warm_start=run/sft/model",), "run/sft/model"),
        (("warm_start=null",), "model_path: this command needs a value"),
        (("loss=regression", "lapse=0.1"), "lapse = 0.1: labels lapse, ratings do not"),
    ],
)
def test_starts_and_losses_that_do_not_fit(overrides, says, tmp_path, capfd):
    argv = (*WARM, f"output_dir={tmp_path}/out", *overrides)
    assert micro.command(Path(), "reward", *argv) == 2
    assert says in " ".join(capfd.readouterr().err.split())


# PPO.


def test_the_policy_may_begin_elsewhere_than_its_reference(tmp_path):
    """PPO's policy of the tiny pipeline goes on, held near the policy that it began as."""
    for name, more in (("own", ()), ("sft", ("reference=run/sft/model",))):
        out = f"output_dir={tmp_path}/{name}"
        ppo.run(PPOConfig.load(None, (*PPO, "max_steps=2", out, *more)))
    own, far = kl(tmp_path / "own"), kl(tmp_path / "sft")
    assert own[0] == 0 and far[0] > 0  # before the first update
    # The tiny pipeline measured that policy against sft, on the same prompts and keys, at its end.
    assert far[0] == pytest.approx(kl(Path("run/ppo"))[-1], rel=1e-4)


def test_a_reference_of_another_kind_is_refused(tmp_path):
    other = shutil.copytree("run/sft/model", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    settings = PPOConfig.load(None, (*PPO, f"reference={other}", f"output_dir={tmp_path}/out"))
    with pytest.raises(ConfigError, match="is another kind of model than the policy"):
        ppo.run(settings)


def test_it_ends_at_the_evaluation_that_is_far_enough(tmp_path):
    whole = (*PPO, f"output_dir={tmp_path}/whole")
    ppo.run(PPOConfig.load(None, whole))
    path = kl(tmp_path / "whole")  # after 0, 2 and 4 updates
    limit = path[1] / 2
    argv = PPOConfig.load(None, (*PPO, f"output_dir={tmp_path}/short", f"stop_kl={limit}"))
    found = ppo.run(argv)
    assert found["steps"] == 2 and kl(tmp_path / "short") == path[:2]
    assert read_metrics(tmp_path / "short")[-1]["step"] == 2
    # Killed between the last save and the model: it has arrived, nothing more is trained.
    done, model = tmp_path / "short" / "done.json", tmp_path / "short" / "model"
    before = weights(model)
    done.unlink()
    shutil.rmtree(model)
    assert ppo.run(argv)["steps"] == 2
    assert all(np.array_equal(x, before[name]) for name, x in weights(model).items())


def test_arrival_looks_at_the_newest_evaluation():
    goal = Arrival(5.0)
    goal.begin([])
    assert goal.watch(0, {"eval/kl": 4.9}) is None and goal.watch(1, {"loss": 1.0}) is None
    assert goal.watch(2, {"eval/kl": 5.0}) is not None
    goal.begin([{"eval/kl": 6.0}, {"loss": 1.0}])  # went back below, or was not evaluated
    assert goal.watch(3, {}) is None
    goal.begin([{"loss": 1.0}, {"eval/kl": 6.0}])
    assert goal.watch(3, {}) is not None
    never = Arrival(None)
    assert never.watch(1, {"eval/kl": 1e9}) is None


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("stop_kl=5", "eval_steps=0"), "stop_kl = 5.0: needs evaluations; set eval_steps"),
        (("stop_kl=5", "eval_prompts.files=[]"), "stop_kl: needs held-out prompts"),
    ],
)
def test_a_kl_that_nothing_measures(overrides, says, tmp_path, capfd):
    argv = (*PPO, f"output_dir={tmp_path}/out", *overrides)
    assert micro.command(Path(), "ppo", *argv) == 2
    assert says in " ".join(capfd.readouterr().err.split())


# Frozen models in bfloat16.


def test_frozen_models_in_bfloat16_are_nearly_the_same_and_the_start_is_not_kept(tmp_path):
    """bfloat16 has 8 bits: weights are off by 2^-9 at most, and a nat of log-prob by little more.

    Resumed from its second update, it ends with the same weights.
    """
    config = PPOConfig.load(
        None, (*PPO, "frozen_dtype=bfloat16", "policy=run/sft/model", f"output_dir={tmp_path}")
    )
    ppo.run(config)
    whole, first = weights(tmp_path / "model"), kl(tmp_path)[0]
    assert 0 < first < 0.01  # six tokens; 0 where the reference is the policy itself
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    (tmp_path / "done.json").unlink()
    ppo.run(config)
    resumed = weights(tmp_path / "model")
    assert all(np.array_equal(x, resumed[name]) for name, x in whole.items())


def test_frozen_models_in_bfloat16_are_not_for_adapters():
    with pytest.raises(ConfigError, match="frozen_dtype = bfloat16: with lora the frozen models"):
        PPOConfig.load(None, (*PPO, "frozen_dtype=bfloat16", "lora.rank=2"))
