"""Several seeds of `cai`: processes, failures, what is not run again, and the page."""

import re
from pathlib import Path
from typing import Any

import cai_micro
import micro
import pytest

from jaxrlhf.errors import ConfigError, UserError
from jaxrlhf.recipes import cai_seeds, stages
from jaxrlhf.recipes.cai_seeds import CAISeedsConfig


@pytest.fixture
def repeat(tmp_path, monkeypatch):
    """Run `jaxrlhf cai seeds` in `tmp_path`, where a seed ends as `ends[seed]`: its exit code."""
    monkeypatch.chdir(cai_micro.copy(tmp_path))
    started: list[int] = []

    def repeat(ends: dict[int, int], **settings: Any) -> tuple[dict, list[int]]:
        def run(config: CAISeedsConfig, seed: int, root: Path) -> tuple[int, float]:
            started.append(seed)
            root.mkdir(parents=True, exist_ok=True)
            (root / "log.txt").write_text("1/13 pretrain\nerror: no such file\n")
            if ends[seed] == 0:
                for name in ("revise/chains.jsonl", "report/samples.jsonl", "summary.json"):
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    (root / name).write_bytes((tmp_path / "run" / name).read_bytes())
            return ends[seed], 60.0

        monkeypatch.setattr(cai_seeds, "in_a_process", run)
        config = {"output_dir": "out", "config": "cai.yaml", "seeds": tuple(ends), "jobs": 1}
        del started[:]
        return cai_seeds.run(CAISeedsConfig.model_validate(config | settings)), list(started)

    return repeat


def test_a_seed_that_fails_does_not_lose_the_others(repeat, capfd):
    found, started = repeat({3: 1, 4: 0}, results="page")
    assert started == [3, 4] and (found["seeds"], found["finished"]) == (2, 1)
    assert found["verdict"] == "FAIL" and found["held"] < found["rules"]
    said = capfd.readouterr().err
    assert "seed 3 failed" in said and "error: no such file" in said
    assert "| rule | seed 4 |" in Path("page.md").read_text()


def test_finished_seeds_are_not_run_again_and_time_adds_up(repeat):
    assert repeat({0: 0, 1: 1})[1] == [0, 1]
    found, started = repeat({0: 0, 1: 0}, results="page")
    assert started == [1] and found["finished"] == 2
    # A minute of the first seed, two of the second.
    assert "processor time by seed: 1.0, 2.0; 3 in all" in Path("page.md").read_text()


def test_a_folder_of_another_config_is_refused(repeat):
    repeat({0: 0})
    stages.write_text(Path("out/seed-0/config.yaml"), "sl_rounds: 1\n")
    stages.write_json(Path("out/seed-0/pretrain/done.json"), {})
    with pytest.raises(UserError, match="sl_rounds"):
        repeat({0: 0})


def test_without_a_world_there_are_no_rules(repeat):
    with pytest.raises(ConfigError, match="kind = files: rules need a world"):
        repeat({0: 0}, overrides=("task.kind=files",))


def test_the_page_has_every_figure_of_the_summary(repeat):
    repeat({0: 0, 1: 0}, results="docs/page")
    text = Path("docs/page.md").read_text()
    assert "jaxrlhf cai seeds output_dir=out config=cai.yaml seeds=[0, 1] jobs=1" in text
    for name in re.findall(r"\]\((\S+\.png)\)", text):
        assert (Path("docs") / name).read_bytes().startswith(b"\x89PNG")
    summary = stages.read_json(Path("run/summary.json"))
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    table = {line.split(" | ")[0].removeprefix("| "): line for line in lines}
    harm = table["revise, harm"].split(" | ")[1:4]
    assert harm == [f"{x:.2f}" for x in summary["chains"]["revise"]["harm"]]
    (policy,) = (line for line in lines if line.startswith("| rl-cai |") and line.count("|") == 11)
    # Two seeds with the same figures: a t interval of no width.
    kl = summary["policies"]["rl-cai"]["kl"][0]
    assert f"{kl:.2f} [{kl:.2f}, {kl:.2f}]" in policy
    first = summary["labels"]["label"]["first_place_on_ties"]
    verdict = "PASS" if abs(first - 0.5) <= 0.03 else "**FAIL**"
    rule = table["AI labels: P(first place) on ties .5 ± 0.03"]
    assert rule.count(f"{first:.3f}") == 2 and verdict in rule


def test_of_one_seed_its_own_intervals_are_shown(repeat):
    repeat({0: 0}, results="page")
    harm = stages.read_json(Path("run/summary.json"))["policies"]["helpful"]["harm_red"]
    low, high = (f"{x:.2f}" for x in harm[1:])
    assert f"| helpful | {harm[0]:.2f} [{low}, {high}]" in Path("page.md").read_text()


def test_a_seed_is_a_process_of_its_own(tmp_path, monkeypatch):
    """A real one; what it says and takes is kept."""
    (tmp_path / "cai.yaml").write_text((cai_micro.pipeline() / "cai.yaml").read_text())
    (tmp_path / "loose.yaml").write_text((cai_micro.pipeline() / "loose.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(micro.ROOT))
    config = CAISeedsConfig(
        output_dir="out", config="cai.yaml", overrides=("stages=[revice]",), seeds=(7,)
    )
    code, seconds = cai_seeds.in_a_process(config, 7, Path("out/seed-7"))
    assert code == 2 and 0.1 < seconds < 100
    assert "did you mean 'revise'" in Path("out/seed-7/log.txt").read_text()
    assert Path("out/seed-7/data/corpus.jsonl").is_file()
