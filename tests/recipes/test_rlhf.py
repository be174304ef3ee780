"""The pipeline end to end, at its smallest: what each stage leaves, what a second run does."""

import base64
import json
import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path

import jax
import micro
import numpy as np
import pytest

from jaxrlhf import config_file, inference, sharding
from jaxrlhf.config import Config
from jaxrlhf.data import sources
from jaxrlhf.errors import ConfigError
from jaxrlhf.metrics import read_completions, read_metrics, series
from jaxrlhf.recipes import RECIPES, rlhf, saved, tasks
from jaxrlhf.recipes.ppo import PPOConfig
from jaxrlhf.recipes.reward import RewardConfig, reference_texts
from jaxrlhf.sandbox import make_world

TRAINING = ("pretrain", "sft", "reward", "ppo")
STEPS = {"pretrain": 8, "sft": 8, "reward": 6, "ppo": 8}
PNG = b"\x89PNG\r\n\x1a\n"
MESH = sharding.make_mesh(1, 1)


def read(path: Path) -> list[dict]:
    return [dict(row) for row in sources.load_rows(path)]


def summary(run: Path, stage: str) -> dict:
    return json.loads((run / stage / "done.json").read_text())


def stored(run: Path, stage: str, cls: type[Config]) -> Config:
    return cls.load(run / stage / "config.yaml")


# What is there afterwards.


@pytest.mark.parametrize("stage", TRAINING)
def test_a_training_stage_leaves_config_log_checkpoints_and_model(run, stage):
    folder = run / stage
    rows = read_metrics(folder)
    assert sorted({row["step"] for row in rows if row["step"]}) == list(range(1, STEPS[stage] + 1))
    steps = sorted(int(p.name) for p in (folder / "checkpoints").iterdir())
    assert len(steps) == 2 and steps[-1] == STEPS[stage]
    names = {path.name for path in (folder / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert ("generation_config.json" in names) == (stage != "reward")
    described = {path.name for path in (folder / "model_config").iterdir()}
    assert described == names - {"model.safetensors", "README.md"}
    done = summary(run, stage)
    assert done["steps"] == STEPS[stage] and done["seconds"] > 0
    assert config_file.read(folder / "config.yaml").values["max_steps"] == STEPS[stage]
    assert not (folder / "tensorboard").exists()  # switched off in the config


@pytest.mark.parametrize("stage", [*TRAINING, "sample", "label"])
def test_the_config_of_a_stage_is_that_of_its_own_command(run, stage):
    """So that a stage can be run again, or changed, by itself."""
    command = {"pretrain": "sft", "label": "simulate-labels"}.get(stage, stage)
    assert command in RECIPES
    values = config_file.read(run / stage / "config.yaml").values
    assert values["output_dir"] == f"run/{stage}" and values["seed"] == 0
    code = micro.command(run.parent, command, "--config", f"run/{stage}/config.yaml")
    assert code == 0  # finished: nothing to do


def test_language_models_learn_something(run):
    for stage in ("pretrain", "sft"):
        _, loss = series(read_metrics(run / stage), "loss")
        assert loss[-1] < loss[0]
    assert summary(run, "pretrain")["loss"] < np.log(80) < loss[0] + 1


def test_the_fine_tuned_model_starts_from_the_pre_trained_one(run):
    first = saved.load_lm(str(run / "pretrain" / "model"), MESH).params
    second = saved.load_lm(str(run / "sft" / "model"), MESH).params
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    moved = [float(np.abs(a - b).max()) for a, b in pairs]
    # Eight steps of Adam at a peak rate of 0.01 move no weight further than 0.08 (and a little).
    assert 0 < max(moved) < 0.1


def test_samples_are_answers_to_the_prompts_with_their_origin(run):
    asked, rows = read(run / "data" / "prompts.jsonl"), read(run / "sample" / "samples.jsonl")
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in asked]
    for row in rows:
        assert len(row["responses"]) == len(row["complete"]) == 2
        assert row["model"] == "run/sft/model" and row["temperature"] == 1.0 and row["seed"] == 0
    assert sum(a != b for a, b in (row["responses"] for row in rows)) > len(rows) / 2
    assert summary(run, "sample")["samples"] == 2 * len(rows)


def test_answers_do_not_depend_on_the_batch_they_are_drawn_in(run, tmp_path):
    folder = run.parent
    argv = ["sample", "--config", "run/sample/config.yaml", "batch_size=5", "prompts.limit=9"]
    assert micro.command(folder, *argv, f"output_dir={tmp_path}/again") == 0
    assert read(tmp_path / "again" / "samples.jsonl") == read(run / "sample" / "samples.jsonl")[:9]


def test_labels_are_verdicts_on_samples_and_say_nothing_of_gold(run):
    rows = {tuple(r["responses"]): r for r in read(run / "sample" / "samples.jsonl")}
    train = read(run / "label" / "preferences.jsonl")
    test = read(run / "label" / "test_preferences.jsonl")
    equal = summary(run, "label")["equal_pairs_left_out"]
    assert len(test) == 8 and len(train) + len(test) + equal == len(rows)
    for row in train + test:
        assert set(row) == {"prompt", "chosen", "rejected"}
        pair = row["chosen"], row["rejected"]
        assert (rows.get(pair) or rows[pair[::-1]])["prompt"] == row["prompt"]


def test_the_labeller_prefers_gold(run):
    world = make_world("bistro")
    rows = read(run / "label" / "preferences.jsonl")
    gains = [
        world.gold(row["prompt"], row["chosen"])["gold"]
        - world.gold(row["prompt"], row["rejected"])["gold"]
        for row in rows
    ]
    assert np.mean(gains) > 0.5


def test_the_reward_model_is_normalised_on_the_reference(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    config = stored(run, "reward", RewardConfig)
    model, params, tokenizer, _ = saved.load_scalar("run/reward/model", MESH)
    texts = reference_texts(config, tokenizer, MESH)
    scores = np.asarray(inference.reward_scores(model, params, *texts))
    assert scores.mean() == pytest.approx(0, abs=1e-5) and scores.std() == pytest.approx(
        1, abs=1e-5
    )


def test_reward_is_tested_on_the_held_out_pairs(run):
    saved = json.loads((run / "reward" / "pair_scores.json").read_text())
    assert [len(saved[name]) for name in ("chosen", "rejected", "label")] == [8, 8, 8]
    accuracy = np.mean(np.greater(saved["chosen"], saved["rejected"]))
    assert summary(run, "reward")["eval/accuracy"] == pytest.approx(accuracy)
    assert series(read_metrics(run / "reward"), "eval/accuracy")[0] == [3, 6]


def test_ppo_moves_the_policy_and_leaves_the_reference(run):
    reference = saved.load_lm(str(run / "sft" / "model"), MESH).params
    policy = saved.load_lm(str(run / "ppo" / "model"), MESH).params
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(reference), jax.tree.leaves(policy), strict=True)
    )
    rows = read_metrics(run / "ppo")
    steps, kl = series(rows, "eval/kl")
    assert steps == [0, 3, 6, 8]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 1e-3
    assert series(rows, "objective/kl_k1")[1][0] == pytest.approx(0, abs=1e-5)


def test_ppo_logs_everything_that_must_be_logged(run):
    """Section E of the invariants, as metric names."""
    rows = read_metrics(run / "ppo")
    every = {
        f"{group}/{name}"
        for group, names in {
            "objective": "kl_k1 kl_k3 kl_coef entropy score score_total",
            "policy": "approx_kl clip_fraction ratio_mean ratio_max entropy",
            "value": "loss explained_variance clip_fraction mean var",
            "returns": "mean var",
            "rollout": "length eos_rate repetition sampler_logprob_gap",
            "time": "generate_s score_s update_s generated_tokens_per_s peak_memory_mib "
            "compilations compile_s",
        }.items()
        for name in names.split()
    }
    for row in rows[1:]:
        assert every <= set(row), every - set(row)
    assert "objective/score_heldout" in rows[0]


def test_the_table_of_completions_has_lowest_and_random_ones(run):
    rows = read_completions(run / "ppo")
    assert [len([r for r in rows if r["step"] == step]) for step in (0, 3, 6, 8)] == [8] * 4
    first = [row for row in rows if row["step"] == 0]
    lowest = [row["score"] for row in first if row["reason"] == "lowest"]
    assert len(lowest) == 4 and lowest == sorted(lowest)
    assert max(lowest) <= max(row["score"] for row in first)
    assert {"prompt", "completion", "gold", "kl"} <= set(first[0])


# The report.


def test_the_summarys_figures_are_those_of_the_samples(run):
    figures = json.loads((run / "summary.json").read_text())
    rows = read(run / "report" / "samples.jsonl")
    world = make_world("bistro")
    assert figures["prompts"] == len(rows) == 8
    golds = {}
    for side in ("before", "after"):
        golds[side] = np.array(
            [world.gold(row["prompt"], row[side]["completion"])["gold"] for row in rows]
        )
        assert figures[f"gold_{side}"] == pytest.approx(golds[side].mean())
        assert figures[f"score_{side}"] == pytest.approx(
            np.mean([row[side]["score"] for row in rows])
        )
    gain = (golds["after"] - golds["before"]).mean() / golds["before"].std()
    assert figures["gold_gain_sd"] == pytest.approx(gain)
    low, high = figures["gold_gain_sd_interval"]
    assert low <= gain <= high
    assert figures["kl_before"] == pytest.approx(0, abs=1e-6)
    assert figures["kl"] == pytest.approx(np.mean([row["after"]["kl"] for row in rows]))
    assert 0 <= figures["legal_share"] <= 1
    assert figures["reward_accuracy"] == summary(run, "reward")["eval/accuracy"]
    seconds = [summary(run, s)["seconds"] for s in micro.STAGES if s != "report"]
    assert figures["training_seconds"] == pytest.approx(sum(seconds))


def test_the_report_is_one_file_with_plots_and_completions(run):
    text = (run / "report" / "report.html").read_text()
    assert "http://" not in text and "https://" not in text and "<script" not in text
    shown = [base64.b64decode(x) for x in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]
    files = {path.stem: path.read_bytes() for path in (run / "report" / "plots").glob("*.png")}
    assert sorted(shown) == sorted(files.values())
    assert all(png.startswith(PNG) and len(png) > 2000 for png in shown)
    wanted = {"gold_by_steps", "gold_by_kl", "calibration", "margins", "lengths", "distribution"}
    assert wanted | {"pretrain_loss", "sft_loss", "ppo"} <= set(files)
    plain = unescape(text)
    for row in read(run / "report" / "samples.jsonl"):
        assert row["prompt"] in plain
        for side in ("before", "after"):
            assert row[side]["completion"] in plain
    assert "Lowest-scored after training" in plain and "d_model: 16" in plain


# Running again.


def state_of(folder: Path, stages: Sequence[str]) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for stage in stages
        for path in (folder / "run" / stage).rglob("*")
    }


def test_a_finished_run_does_nothing_again_but_the_report(tmp_path, capfd):
    folder = micro.copy(tmp_path)
    trained = [stage for stage in micro.STAGES if stage != "report"]
    before = state_of(folder, trained), (folder / "run" / "summary.json").read_text()
    capfd.readouterr()
    assert micro.command(folder, "rlhf", "--config", "micro.yaml") == 0
    assert (state_of(folder, trained), (folder / "run" / "summary.json").read_text()) == before
    err = capfd.readouterr().err
    numbered = re.findall(r"(\d)/7 (\w+)", err)
    assert numbered == [(str(i), name) for i, name in enumerate(micro.STAGES, start=1)]


def test_only_the_stages_asked_for_are_run(tmp_path):
    folder = micro.copy(tmp_path, "sample", "label", "ppo", "report")
    kept = state_of(folder, ["pretrain", "sft", "reward"])
    command = ("rlhf", "--config", "micro.yaml")
    assert micro.command(folder, *command, "stages=[label]") == 2  # there are no samples yet
    assert not (folder / "run" / "label" / "done.json").exists()
    assert micro.command(folder, *command, "stages=[sample, label]") == 0
    assert state_of(folder, ["pretrain", "sft", "reward"]) == kept
    assert not (folder / "run" / "ppo").exists()
    for name in ("sample/samples.jsonl", "label/preferences.jsonl"):
        whole = micro.pipeline() / "run" / name
        assert (folder / "run" / name).read_text() == whole.read_text()


def test_a_stage_whose_input_is_missing_says_what_is_missing(tmp_path, capfd):
    folder = micro.copy(tmp_path, "reward", "ppo", "report")
    capfd.readouterr()
    assert micro.command(folder, "rlhf", "--config", "micro.yaml", "stages=[ppo]") == 2
    err = " ".join(capfd.readouterr().err.split())
    assert "run/reward/model: no such folder" in err and "Traceback" not in err
    assert not (folder / "run" / "ppo").exists()


# What the pipeline makes of its config.


def planned(tmp_path: Path, task: tasks.Task = tasks.Task(), **changes) -> list[str]:
    config = rlhf.RLHFConfig.model_validate(
        micro.CONFIG | {"output_dir": str(tmp_path / "run")} | changes
    )
    return list(rlhf.plan(config, task))


def test_stages_that_are_not_needed_are_left_out(tmp_path):
    assert planned(tmp_path) == list(micro.STAGES)
    assert "sft" not in planned(tmp_path, sft=None)
    ready = ["pretrain", "sft", "reward", "ppo", "report"]
    assert planned(tmp_path, tasks.Task(preferences=("pairs.jsonl",))) == ready
    own = micro.CONFIG["reward"] | {"data": {"train": ["mine.jsonl"]}}
    assert planned(tmp_path, reward=own) == ready


def test_without_fine_tuning_the_pre_trained_model_is_the_reference(tmp_path, monkeypatch):
    seen: dict[str, Config] = {}
    for name in ("sample", "reward", "ppo"):
        module = getattr(rlhf, name)
        monkeypatch.setattr(
            module, "run", lambda config, name=name, **_: seen.update({name: config})
        )
    for fine, expected in ((None, "pretrain"), (micro.CONFIG["sft"], "sft")):
        config = rlhf.RLHFConfig.model_validate(micro.CONFIG | {"sft": fine})
        work = rlhf.plan(config, tasks.Task())
        for name in ("sample", "reward", "ppo"):
            work[name]()
        model = f"run/{expected}/model"
        found = seen["sample"], seen["reward"], seen["ppo"]
        assert [c.model_dump().get("model_path") for c in found] == [model, model, None]
        assert found[1].model_dump()["reference"] == found[2].model_dump()["policy"] == model


def test_what_a_stage_names_itself_is_kept(tmp_path, monkeypatch):
    seen: list[PPOConfig] = []
    monkeypatch.setattr(rlhf.ppo, "run", lambda config, **_: seen.append(config))
    own = micro.CONFIG["ppo"] | {"prompts": {"files": ["mine.jsonl"], "max_length": 6}}
    config = rlhf.RLHFConfig.model_validate(micro.CONFIG | {"ppo": own, "seed": 5})
    task = tasks.Task(prompts=("theirs.jsonl",), test_prompts=("test.jsonl",))
    rlhf.plan(config, task)["ppo"]()
    assert seen[0].prompts.files == ("mine.jsonl",)
    assert seen[0].eval_prompts.files == ("test.jsonl",)
    assert seen[0].seed == 5 and seen[0].output_dir == "run/ppo"


@pytest.mark.parametrize(
    ("stage", "field", "value"),
    [
        ("pretrain", "seed", 3),
        ("ppo", "output_dir", "elsewhere"),
        ("reward", "mesh", {"data": 2}),
        ("label", "world", {"seed": 4}),
    ],
)
def test_what_belongs_to_the_whole_pipeline_is_refused_in_a_stage(tmp_path, stage, field, value):
    own = micro.CONFIG.get(stage, {}) | {field: value}
    with pytest.raises(ConfigError, match=f"{stage}.{field}: set .*{field} once"):
        planned(tmp_path, **{stage: own})
