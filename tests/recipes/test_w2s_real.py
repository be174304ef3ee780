"""A weak-to-strong experiment in earnest: a tiny grid in real processes, one of them killed.

The student is a folder of Hugging Face's kind with random parameters, the teacher counts words.
Then PPO with one reward model, on the tiny pipeline's policy.
"""

import json
import signal

import hf_tiny
import micro
import numpy as np
import pytest

from jaxrlhf import config_file, inference
from jaxrlhf.data import preferences
from jaxrlhf.data.tokenizer import load_tokenizer
from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import folder
from jaxrlhf.models import heads, make_lm
from jaxrlhf.recipes import blocks, classify, reward, saved, w2s_ppo
from jaxrlhf.recipes.rlhf import RLHFConfig
from jaxrlhf.recipes.w2s_task import Task

COMMAND = ("w2s", "--config", "w2s.yaml")
GRID = {
    "output_dir": "grid",
    "task": {"kind": "files", "files": {"train": ["train.jsonl"], "test": ["test.jsonl"]}},
    "sizes": {"mine": {"path": "mine"}},
    "finetune": {"max_length": 16, "batch_size": 8, "max_steps": 3, "tensorboard": False},
    "grids": {"main": {"students": ["mine"], "losses": ["naive", "mended"]}},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Labelled texts, a random GPT-2 of Hugging Face's layout, and the config of a grid."""
    home = tmp_path_factory.mktemp("w2s")
    for name, count in (("train", 48), ("test", 16)):
        rows = [
            {"text": f"the {'warm' if i % 3 else 'cold'} soup {i % 5}", "label": int(i % 3 > 0)}
            for i in range(count)
        ]
        preferences.write_rows(home / f"{name}.jsonl", rows)
    tokenizer = load_tokenizer(micro.pipeline() / "run" / "sft" / "model")
    config = hf_tiny.config_of("gpt2", vocab_size=len(tokenizer))
    params = hf_tiny.params_of(config)
    folder.save_lm(home / "mine", make_lm(config), params, family="gpt2")
    tokenizer.save_pretrained(home / "mine")
    (home / "w2s.yaml").write_text(config_file.to_text(GRID))
    return home


def test_a_killed_grid_goes_on_and_makes_no_finished_cell_again(home):
    """Stages finish in this order: the teacher's labels, the ceiling, naive, mended."""
    code, out = micro.harmed(home, "done:3", *COMMAND)
    assert code == -signal.SIGKILL, out
    finished = sorted(home.glob("grid/seed-0/*/*/done.json"))
    assert [path.parent.name.split("-")[:2] for path in finished] == [["mine", "truth"], ["words"]]
    before = {
        path: path.stat().st_mtime_ns
        for done in finished
        for path in done.parent.rglob("*")
        if path.is_file()
    }
    assert len(before) > 8 and not (home / "grid" / "results.json").exists()

    assert micro.command(home, *COMMAND) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert micro.command(home, *COMMAND, "output_dir=whole") == 0
    found, whole = (json.loads((home / x / "results.json").read_text()) for x in ("grid", "whole"))
    assert [cell["loss"] for cell in found["main"]] == ["naive", "mended"] and not found["failed"]
    for killed, undisturbed in zip(found["main"], whole["main"], strict=True):
        del killed["seconds"], undisturbed["seconds"]
        assert killed == undisturbed


def test_a_classifier_of_others_is_no_language_model_to_start_from(home, tmp_path):
    """Its head is of its own classes; the error says what to take instead."""
    values = json.loads((home / "mine" / "config.json").read_text())
    values |= {"architectures": ["GPT2ForSequenceClassification"], "num_labels": 2}
    for path in (home / "mine").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = classify.ClassifyConfig(
        output_dir=str(tmp_path / "out"),
        model_path=str(tmp_path),
        data=blocks.DataConfig(train=(str(home / "train.jsonl"),)),
    )
    with pytest.raises(CheckpointError, match=r"num_labels = 2.*language model it was made of"):
        classify.run(config)
    assert not (tmp_path / "out").exists()


def test_a_policy_is_improved_with_a_reward_model_of_unit_scale(tmp_path):
    root = micro.pipeline() / "run"
    for name, source in (("second", "preferences"), ("test", "test_preferences")):
        (tmp_path / f"{name}.jsonl").write_bytes((root / f"label/{source}.jsonl").read_bytes())
    prompts = (str(root / "data" / "prompts.jsonl"),)
    task = Task(tmp_path, (), None, "pairs", policy=str(root / "sft/model"), prompts=prompts)
    config = RLHFConfig.load(str(root.parent / "micro.yaml"), ["output_dir=nowhere"])
    # one of another scale: 3 times the scores, and 5
    mesh = blocks.MeshConfig().build()
    model, params, tokenizer, family = saved.load_scalar(str(root / "reward/model"), mesh)
    louder = heads.affine(params, 3.0, 5.0)
    saved.save_scalar(tmp_path / "louder", model, louder, tokenizer, family=family)
    arm = w2s_ppo.Arm(0, "mine", tmp_path / "louder", 0.5, tmp_path / "arm")
    found = w2s_ppo.improve(arm, config, task)

    asked = config.reward.model_copy(
        update={
            "reference": task.policy,
            "prompts": config.ppo.prompts.model_copy(update={"files": prompts}),
        }
    )
    tokens, mask = reward.reference_texts(asked, tokenizer, mesh)
    model, params, _, _ = saved.load_scalar(str(arm.folder / w2s_ppo.NORMALISED), mesh)
    scores = np.asarray(inference.reward_scores(model, params, tokens, mask))
    assert scores.mean() == pytest.approx(0, abs=1e-4) and scores.std() == pytest.approx(1, 1e-4)

    assert found.summary["kl"] > 0 and np.isfinite(found.summary["gold_gain_sd"])
    kl, gold = w2s_ppo.path(found)
    assert kl[0] == pytest.approx(0, abs=1e-5) and gold[0] == 0 and len(kl) == 4  # 0, 3, 6, 8
    trained = (arm.folder / "ppo" / "done.json").stat().st_mtime_ns
    again = w2s_ppo.improve(arm, config, task)
    assert again.summary == found.summary
    assert (arm.folder / "ppo" / "done.json").stat().st_mtime_ns == trained
