"""Experiments of the laboratory: seeds are not run twice, rules are judged over seeds, the page."""

from pathlib import Path

import pytest
from pydantic import Field

from jaxrlhf.errors import UserError
from jaxrlhf.recipes import experiment
from jaxrlhf.recipes.experiment import ExperimentConfig, Outcome, Page, Rule, Table, Verdict


class Coins(ExperimentConfig):
    output_dir: str = Field(default="runs/coins", description="here")
    throws: int = Field(default=3, description="of a coin")


RISES = Rule("it rises", lambda found: Outcome(found["x"] > 0, f"{found['x']}"))


def found(config, calls):
    def run_seed(seed: int, folder: Path):
        assert folder == Path(config.output_dir) / f"seed-{seed}"
        calls.append(seed)
        if seed == 7:
            raise RuntimeError("broke")
        return {"x": seed - 1}

    return experiment.over_seeds(config, run_seed)


def test_a_finished_seed_is_not_run_again(tmp_path):
    calls = []
    with pytest.raises(RuntimeError):
        found(Coins(output_dir=str(tmp_path), seeds=(2, 7)), calls)
    assert found(Coins(output_dir=str(tmp_path), seeds=(2, 3)), calls) == [{"x": 1}, {"x": 2}]
    assert calls == [2, 7, 3]


def test_another_config_is_refused(tmp_path):
    found(Coins(output_dir=str(tmp_path), seeds=(2,)), [])
    with pytest.raises(UserError, match="throws: 3 there, 4 now"):
        found(Coins(output_dir=str(tmp_path), seeds=(2,), throws=4), [])


@pytest.mark.parametrize(
    ("held", "of", "passes"),
    # Four of five; of four, three are .75 and not enough; of one, that one.
    [(5, 5, True), (4, 5, True), (3, 5, False), (3, 4, False), (4, 4, True), (0, 1, False)],
)
def test_a_rule_passes_in_four_of_five_seeds(held, of, passes):
    outcomes = tuple(Outcome(i < held, "x") for i in range(of))
    verdict = Verdict(RISES, outcomes)
    assert verdict.passes is passes
    assert verdict.line()[2:] == [f"{held} of {of}", "PASS" if passes else "FAIL"]


def test_the_page_has_rules_tables_and_the_command(tmp_path):
    config = Coins(output_dir=str(tmp_path / "run"), seeds=(0, 2), results=str(tmp_path / "page"))
    page = Page("Coins", "jaxrlhf lab coins", "Thrown.", [Table("Heads", ("seed", "n"), [(0, 1)])])
    summary = experiment.report(config, [RISES], found(config, []), page)
    assert summary == {"rules": 1, "failed": 1, "verdict": "FAIL"}
    text = (tmp_path / "page.md").read_text()
    assert f"jaxrlhf lab coins seeds=[0,2] results={tmp_path / 'page'}" in text
    assert "| it rises | -1 **fails**; 1 | 1 of 2 | FAIL |" in text
    assert "Heads\n\n| seed | n |" in text
    assert (tmp_path / "run" / "report.md").read_text() == text
