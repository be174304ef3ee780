"""`jaxrlhf cai` at its smallest: what stages are given and leave, variants, mistakes, SIGKILL."""

import json
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cai_micro
import cai_plans
import micro
import pytest
from cai_plans import plan

from jaxrlhf.config import Config, config_in
from jaxrlhf.data import sources
from jaxrlhf.errors import ConfigError
from jaxrlhf.recipes.cai import CAIConfig
from jaxrlhf.recipes.cai_arms import ArmConfig, ChainVariant, JudgeVariant

STAGES = (
    *("pretrain", "helpful", "revise", "revise-direct", "helpful-answers", "sl-all"),
    *("people-helpful/sample", "people-helpful/label", "sample", "label"),
    *("arms/rl-cai/reward", "arms/rl-cai/ppo"),
)


@pytest.fixture(scope="module")
def run() -> Path:
    return cai_micro.pipeline() / "run"


def read(path: Path) -> list[dict]:
    return [dict(row) for row in sources.load_rows(path)]


def rows_of(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*.jsonl")}


# The smallest run.


def test_every_stage_is_finished(run):
    assert {str(p.parent.relative_to(run)) for p in run.rglob("done.json")} == set(STAGES)


def test_chains_are_of_red_team_prompts_and_sl_cai_learns_from_them(run):
    chains = read(run / "revise" / "chains.jsonl")
    assert [c["prompt"] for c in chains] == [
        r["prompt"] for r in read(run / "data/red_prompts.jsonl")
    ]
    kept = [c for c in chains if not c["discarded"]]
    answers = read(run / "helpful-answers" / "samples.jsonl")
    examples = read(run / "data" / "sl-all.jsonl")
    assert len(examples) == 2 * len(kept) + len(answers)
    said = {(c["prompt"], " " + r["revision"]) for c in kept for r in c["revisions"]}
    told = [e for e in examples if e["source"] == "revision"]
    assert len(told) == 2 * len(kept) and {(e["prompt"], e["completion"]) for e in told} == said
    benign = {r["prompt"] for r in read(run / "data" / "helpful_prompts.jsonl")}
    assert {e["prompt"] for e in examples if e["source"] == "helpful"} <= benign


def test_direct_chains_have_no_critique(run):
    for name, critique in (("revise", True), ("revise-direct", False)):
        chains = [c for c in read(run / name / "chains.jsonl") if not c["discarded"]]
        assert chains and all(
            bool(r["critique"]) == critique for c in chains for r in c["revisions"]
        )


def test_the_summary_has_every_figure_of_the_report(run):
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["policies"]) == {"pre-trained", "helpful", "SL-CAI, all", "rl-cai"}
    assert set(summary["chains"]) == {"revise", "revise-direct"}
    assert all(len(chain["harm"]) == 3 for chain in summary["chains"].values())
    kl = {name: figures["kl"][0] for name, figures in summary["policies"].items()}
    # Against where they start from: themselves, but for the arm.
    assert kl["pre-trained"] == kl["helpful"] == kl["SL-CAI, all"] == 0 < kl["rl-cai"]
    assert summary["paths"]["rl-cai"]["kl"][0] == 0 and len(summary["paths"]["rl-cai"]["kl"]) == 3
    assert summary["elo"]["all"]["pre-trained"] == [0, 0, 0]
    assert set(summary["elo"]) == {"all", "red", "benign"}
    assert set(summary["seconds"]) == set(STAGES)
    page = (run / "report" / "report.html").read_text()
    for heading in ("What revisions do", "AI labels", "Policies", "Before and after"):
        assert heading in page
    answers = read(run / "report" / "samples.jsonl")
    assert len(answers) == 24 and set(answers[0]["responses"]) == set(summary["policies"])


def test_harm_in_the_summary_is_gold_of_the_chains(run):
    summary = json.loads((run / "summary.json").read_text())["chains"]["revise"]
    kept = [c for c in read(run / "revise" / "chains.jsonl") if not c["discarded"]]
    gold = cai_plans.WORLD.judge
    assert gold is not None
    last = gold([c["prompt"] for c in kept], [c["revisions"][-1]["revision"] for c in kept])
    assert summary["harm"][-1] == pytest.approx(sum(x["harm"] for x in last) / len(kept))


def test_what_is_finished_is_not_run_again_and_gives_the_same_report(tmp_path):
    folder = cai_micro.copy(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("done.json")}
    rows, summary = rows_of(folder / "run"), (folder / "run" / "summary.json").read_bytes()
    (folder / "run" / "summary.json").unlink()
    assert micro.command(folder, "cai", "--config", "cai.yaml", "stages=[report]") == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("done.json")} == before
    assert rows_of(folder / "run") == rows
    assert (folder / "run" / "summary.json").read_bytes() == summary


def test_a_killed_pipeline_goes_on_at_the_row_where_it_was(tmp_path, run):
    """SIGKILL while a row of a chain is being written; every file ends as without it."""
    folder = cai_micro.copy(tmp_path, "revise", "revise-direct", "helpful-answers", "sl-all")
    argv = ("cai", "--config", "cai.yaml", "stages=[revise, revise-direct, helpful-answers]")
    point = f"append:{random.randint(2, 16)}:{random.randint(0, 300)}"
    code, said = micro.harmed(folder, point, *argv)
    assert code == -signal.SIGKILL, (point, said)
    assert not (folder / "run" / "revise" / "done.json").exists()
    assert (folder / "run" / "revise" / "chains.jsonl.partial").exists()
    assert micro.command(folder, *argv) == 0
    for stage in ("revise", "revise-direct", "helpful-answers"):
        assert rows_of(folder / "run" / stage) == rows_of(run / stage), (point, stage)


# Files of one's own.


def test_files_and_a_model_of_ones_own(tmp_path, run):
    """No world, no pre-training: prompts of both kinds, people's pairs, a model's folder."""
    files = {
        "red_prompts": "data/red_prompts.jsonl",
        "helpful_prompts": "data/helpful_prompts.jsonl",
        "helpful_pairs": "people-helpful/label/preferences.jsonl",
    }
    own = [f"task.files.{name}=[{run / path}]" for name, path in files.items()]
    argv = ["task.kind=files", *own, "pretrain=null", f"model_path={run / 'pretrain' / 'model'}"]
    argv += ["helpful=null", f"output_dir={tmp_path}/out", "chains=[]", "revise.prompts.limit=8"]
    assert micro.command(run.parent, "cai", "--config", "cai.yaml", *argv) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["policies"]) == {"pre-trained", "helpful", "SL-CAI, all", "rl-cai"}
    assert set(summary["chains"]["revise"]) >= {"score", "score_low", "score_high"}
    assert "harm" not in summary["chains"]["revise"] and "preference_accuracy" not in summary
    assert summary["labels"]["label"]["pairs"] > 0
    assert (tmp_path / "out" / "report" / "report.html").is_file()


# What stages are given.


def config(*overrides: str) -> CAIConfig:
    return CAIConfig.load(None, overrides)


PRETRAINED, HELPFUL, SL = (f"runs/cai/{name}/model" for name in ("pretrain", "helpful", "sl-all"))


def test_each_phase_has_the_model_that_the_paper_gives_it():
    people = "arms=[{name: a}, {name: b, start: helpful, harm_labels: people}]"
    found = plan(config(people))
    models = {name: stage.get("model_path") for name, stage in found.items()}
    assert models["helpful"] == models["sl-all"] == models["label"] == PRETRAINED
    assert models["revise"] == models["helpful-answers"] == HELPFUL
    assert models["people-helpful/sample"] == HELPFUL
    assert models["people-harm/sample"] == PRETRAINED
    assert models["sample"] == models["arms/a/reward"] == SL
    assert models["arms/b/reward"] == HELPFUL
    for arm, start in (("a", SL), ("b", HELPFUL)):
        assert found[f"arms/{arm}/ppo"]["policy"] == start
        assert found[f"arms/{arm}/ppo"]["reward_model"] == f"runs/cai/arms/{arm}/reward/model"
        assert found[f"arms/{arm}/ppo"]["with"] == ["judge"]
        assert found[f"arms/{arm}/reward"]["reference"] == start
    assert found["revise"]["prompts"].files == found["sample"]["prompts"].files == ("red",)
    assert found["helpful-answers"]["prompts"].files == ("helpful",)
    assert found["arms/a/ppo"]["prompts"].files == ("all",)


def test_a_feedback_model_learns_comparisons_before_it_judges():
    found = plan(config("feedback={max_steps: 3}"))
    assert found["feedback"]["model_path"] == PRETRAINED
    assert found["feedback"]["data"].train == ("compared",)
    assert found["label"]["model_path"] == "runs/cai/feedback/model"
    named = plan(config("feedback={}", "label.model_path=another"))
    assert named["label"]["model_path"] == "another"
    assert "feedback" not in plan(config("feedback={}", "arms=[{name: a, harm_labels: people}]"))
    with pytest.raises(ConfigError, match=r"feedback: task\.helpdesk\.comparisons has none"):
        plan(config("feedback={}"), cai_plans.WORLD._replace(comparisons=()))


def test_stages_that_no_arm_needs_are_left_out():
    without_judge = plan(config("arms=[{name: a, harm_labels: people, helpful_pairs: false}]"))
    assert not {"sample", "label", "people-helpful/sample"} & set(without_judge)
    assert {"people-harm/sample", "people-harm/label"} <= set(without_judge)
    assert not {"people-harm/sample"} & set(plan(config()))


def test_peoples_pairs_of_the_task_are_used_as_they_are():
    task = cai_plans.WORLD._replace(helpful_pairs=("theirs",), world=None)
    found = plan(config(), task)
    assert found["arms/rl/reward"]["data"].train[1:] == ("theirs",)
    assert not any(name.startswith("people") for name in found)
    with pytest.raises(ConfigError, match=r"task\.files\.helpful_pairs"):
        plan(config(), cai_plans.WORLD._replace(world=None))


def pairs_of(arm: str) -> str:
    found = plan(config(f"arms=[{{name: a, {arm}}}]", "judges=[{name: j}]"))
    return repr({k: v for k, v in found.items() if k.startswith("arms/")}).replace("arms/a", "")


ARM_FIELDS = {
    "start": "start: helpful",
    "harm_labels": "harm_labels: none",
    "helpful_pairs": "helpful_pairs: false",
    "kl_coef": "kl_coef: 0.5",
    "kl_target": "kl_target: 0.5",
    "max_steps": "max_steps: 5",
}
OF_LABELS = {"judge", "hard", "sharpen", "clamp", "control", "ai_label_weight"}  # test_cai_arms.py


@pytest.mark.parametrize("field", ARM_FIELDS)
def test_every_field_of_an_arm_acts(field):
    assert set(ARM_FIELDS) | OF_LABELS | {"name"} == set(ArmConfig.model_fields)
    assert pairs_of(ARM_FIELDS[field]) != pairs_of("hard: false")


CHAIN_FIELDS = {"constitution": "o.yaml", "direct": "true", "principles": "2"}
JUDGE_FIELDS = {
    "constitution": "o.yaml",
    "both_orders": "false",
    "calibrate": "true",
    "questions_per_pair": "3",
}


@pytest.mark.parametrize(
    ("variants", "stage", "field", "value"),
    [
        *(("chains", "revise", *item) for item in CHAIN_FIELDS.items()),
        *(("judges", "label", *item) for item in JUDGE_FIELDS.items()),
    ],
)
def test_every_field_of_a_variant_acts_on_its_stage_alone(variants, stage, field, value):
    assert set(CHAIN_FIELDS) | {"name"} == set(ChainVariant.model_fields)
    assert set(JUDGE_FIELDS) | {"name"} == set(JudgeVariant.model_fields)
    found = plan(config(f"{variants}=[{{name: v, {field}: {value}}}]"))
    own, main = found[f"{stage}-v"], found[stage]
    changed = {name for name in own if own[name] != main[name]}
    assert changed == {"output_dir", field}


def fields(settings: Config, path: str = "") -> Iterator[str]:
    """Paths of all fields below a config that are no groups."""
    for name, field in type(settings).model_fields.items():
        if config_in(field.annotation) is None or getattr(settings, name) is None:
            yield path + name
        else:
            yield from fields(getattr(settings, name), f"{path}{name}.")


def changed(settings: Any, path: str, value: Any) -> Any:
    """A copy with another value, unchecked."""
    name, _, rest = path.partition(".")
    value = changed(getattr(settings, name), rest, value) if rest else value
    return settings.model_copy(update={name: value})


def look_up(settings: Any, path: str) -> Any:
    for name in path.split("."):
        settings = settings[name] if isinstance(settings, dict) else getattr(settings, name)
    return settings


NAMES = {
    "revise": "revise",
    "helpful_answers": "helpful-answers",
    "sl": "sl-all",
    "helpful_people.sample": "people-helpful/sample",
    "helpful_people.label": "people-helpful/label",
    "harm_people.sample": "people-harm/sample",
    "harm_people.label": "people-harm/label",
    "reward": "arms/a/reward",
    "ppo": "arms/a/ppo",
}
OF_THE_PIPELINE = ("output_dir", "seed", "dtype", "remat", "mesh.data", "mesh.tensor")


@pytest.mark.parametrize("field", cai_plans.STAGES)
def test_the_pipeline_passes_every_field_of_a_stage_on_or_refuses_it(field):
    both = config("arms=[{name: a, harm_labels: people}, {name: b}]", "feedback={}")
    marked = object()
    for below in cai_plans.STAGES[field]:
        stage = f"{field}.{below}".rstrip(".")
        settings = look_up(both, stage)
        refused = []
        for path in fields(settings):
            try:
                found = plan(changed(both, f"{stage}.{path}", marked))
            except ConfigError:
                refused.append(path)
                continue
            name = NAMES.get(stage, stage)
            assert look_up(found[name], path) is marked, f"{stage}.{path} does not arrive"
        known = [path for path in OF_THE_PIPELINE if path in fields(settings)]
        world = [path for path in fields(settings) if path.startswith("world.")]
        assert sorted(refused) == sorted(known + world)


# Mistakes.


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("sl_rounds=9",), "sl_rounds = 9: revise.rounds is 4"),
        (("arms=[{name: a}, {name: a}]",), "arms: the name 'a' stands twice"),
        (("judges=[{name: ensemble}]", "arms=[{name: a, judge: ensembel}]"), "ensemble"),
        (("model_path=m",), "pretrain, model_path: give one of the two"),
        (("pretrain=null",), "pretrain, model_path: give one of the two"),
        (("arms=[]",), "arms"),
        (("chains=[{name: a/b}]",), "chains"),
    ],
)
def test_mistakes_in_the_config(overrides, says):
    with pytest.raises(ConfigError, match=says):
        config(*overrides)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("stages=[revice]",), "revise"),
        (("task.kind=files",), "task.files.red_prompts: name at least one file"),
        (("task.helpdesk.world.name=bistro",), "has no constitution; helpdesk has one"),
        (("task.helpdesk.test_prompts=1",), "at least two red-team and two benign"),
        (("sl.seed=3",), "sl.seed: set seed once"),
        (("reward.seed=3",), "reward.seed: set seed once"),
        (("chains=[{name: a, constitution: loos.yaml}]",), "loos.yaml: no such file"),
        (("helpful_people.label.world.seed=3",), "helpful_people.label.world: set task.helpdesk"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(tmp_path, capfd, overrides, says):
    for name in ("cai.yaml", "loose.yaml"):
        shutil.copy(cai_micro.pipeline() / name, tmp_path)
    assert micro.command(tmp_path, "cai", "--config", "cai.yaml", *overrides) == 2
    assert says in " ".join(capfd.readouterr().err.split())
    assert not list(tmp_path.rglob("done.json")) and not list(tmp_path.rglob("model"))
