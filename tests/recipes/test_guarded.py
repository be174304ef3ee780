"""Guards in `jaxrlhf ppo` and the pipeline, through the command line, on the tiny models.

That the figures are right is `guards/test_faults.py`, the rules `guards/test_rules.py`.
"""

import json
from pathlib import Path

import micro
import numpy as np
import pytest
import safetensors.numpy

from jaxrlhf.metrics import read_metrics

PPO = ("rlhf", "--config", "micro.yaml", "stages=[ppo]")
TIGHT = "ppo.guards.kl_budget.max_kl=0.1"


def weights(stage: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(stage / "model" / "model.safetensors")


def steps(stage: Path) -> list[int]:
    return [int(row["step"]) for row in read_metrics(stage)]


@pytest.fixture
def command(capfd):
    def command(folder: Path, *argv: str) -> tuple[int, str]:
        capfd.readouterr()
        code = micro.command(folder, *argv)
        return code, " ".join(capfd.readouterr().err.split())

    return command


def test_the_pipeline_is_watched_by_all_it_can_be(run):
    status = json.loads((run / "ppo" / "guards.json").read_text())["guards"]
    blind = {name: says for name, says in status.items() if says != "watches; found nothing"}
    assert blind == {"disagreement": "cannot look: no guards.disagreement.reward_models"}
    card = (run / "ppo" / "model" / "README.md").read_text()
    assert "## Guards" in card and "| canary | watches; found nothing |" in card
    assert "What the guards saw" in (run / "report" / "report.html").read_text()


def test_the_pipeline_logs_what_guards_look_at(run):
    rows = read_metrics(run / "ppo")
    start, first, last = rows[0], rows[1], rows[-1]
    assert start["guards/canary_pairs"] == 8 and 0 <= start["guards/canary"] <= 1
    assert start["guards/push_of_score"] > 0 > start["guards/push_of_kl"]
    assert {"guards/andon", "guards/readings", "guards/direction_z"} <= first.keys()
    assert {"guards/heldout_z", "guards/win_rate", "guards/canary"} <= last.keys()
    assert "guards/direction_z" not in last  # of the first five updates alone
    # At first the policy is the reference: its entropy is minus its mean log-prob, but for luck.
    assert first["guards/ref_log_prob"] == pytest.approx(-first["guards/entropy"], abs=0.5)


def test_a_guard_stops_the_run_saves_it_and_says_so(tmp_path, command, run):
    folder = micro.copy(tmp_path, "ppo", "report")
    stage = folder / "run" / "ppo"
    code, err = command(folder, *PPO, TIGHT)
    assert code == 4 and "Traceback" not in err
    stopped = steps(stage)[-1]
    assert f"stopped after update {stopped} by guard kl_budget: KL to the reference is" in err
    assert f"the state is checkpoint {stopped}" in err
    assert (stage / "checkpoints" / str(stopped)).is_dir() and not (stage / "done.json").exists()
    report = (stage / "guards.md").read_text()
    assert "lowest-scored samples" in report and "| objective/kl_k1 |" in report

    # The same command stops again, and trains nothing.
    code, err = command(folder, *PPO, TIGHT)
    assert code == 4 and steps(stage)[-1] == stopped

    # To go on is a decision; a run in which guards only warn is the one that was not guarded.
    code, err = command(folder, *PPO, TIGHT, "ppo.guards.warn=[kl_budget]")
    assert code == 0, err
    mine, whole = weights(stage), weights(run / "ppo")
    assert all(np.array_equal(mine[name], whole[name]) for name in whole)
    card = (stage / "model" / "README.md").read_text()
    assert "| kl_budget | only warns; " in card


def test_anybody_can_stop_a_run_by_a_file(tmp_path, command):
    folder = micro.copy(tmp_path, "ppo", "report")
    (folder / "run" / "ppo").mkdir()
    (folder / "run" / "ppo" / "STOP").touch()
    code, err = command(folder, *PPO)
    assert code == 4 and "guard stop_file: the file STOP is there; remove it to go on" in err
    assert steps(folder / "run" / "ppo") == [0]


def test_what_is_switched_off_is_said_in_the_terminal_and_on_the_card(tmp_path, command):
    folder = micro.copy(tmp_path, "ppo", "report")
    short = ("ppo.max_steps=1", "ppo.guards.off=[andon, canary]")
    (folder / "run" / "config.yaml").unlink()  # of the pipeline with more steps
    code, err = command(folder, *PPO, *short)
    assert code == 0 and "off: andon, canary" in err
    card = (folder / "run" / "ppo" / "model" / "README.md").read_text()
    assert "| andon | off |" in card and "| canary | off |" in card
    assert "guards/andon" not in read_metrics(folder / "run" / "ppo")[-1]


def test_further_reward_models_are_asked_about_held_out_answers(tmp_path, command):
    folder = micro.copy(tmp_path, "ppo", "report")
    (folder / "run" / "config.yaml").unlink()
    more = "ppo.guards.disagreement.reward_models=[run/reward/model]"
    code, err = command(folder, *PPO, "ppo.max_steps=1", more)
    assert code == 0, err
    last = read_metrics(folder / "run" / "ppo")[-1]
    assert last["eval/score_1"] == last["eval/score"]  # the same model twice
    assert "guards/disagreement" not in last  # which never disagrees with itself


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("guards.off=[kl_buget]", "there is no guard 'kl_buget'; did you mean 'kl_budget'?"),
        ("guards.canary.files=[nowhere.jsonl]", "nowhere.jsonl"),
        ("guards.labeller=recipe_probes:nobody", "guards.labeller = 'recipe_probes:nobody'"),
        ("guards.disagreement.reward_models=[nowhere]", "nowhere"),
        ("guards.kl_budget.max_kl=0", "guards.kl_budget.max_kl = 0: must be greater than 0"),
    ],
)
def test_mistakes_name_the_field(tmp_path, command, run, override, says):
    given = ("--config", "run/ppo/config.yaml", f"output_dir={tmp_path}/out", override)
    code, err = command(run.parent, "ppo", *given)
    assert code == 2 and says in err and "Traceback" not in err
    assert not (tmp_path / "out" / "checkpoints").exists()
