"""Several seeds: the verdict, the table and the picture, with stand-ins for the pipelines."""

import json
import shutil
from pathlib import Path

import micro
import pytest

from jaxrlhf.errors import DataError
from jaxrlhf.recipes import rlhf, seeds
from jaxrlhf.recipes.seeds import SeedsConfig

GOOD = {"gold_gain_sd": 1.5, "kl": 4.0, "legal_share": 0.98}


@pytest.fixture
def repeat(run, tmp_path, monkeypatch):
    """Run `jaxrlhf seeds` where the pipeline of seed n ends as `ends[n]`."""
    real = json.loads((run / "summary.json").read_text())

    def repeat(ends: dict[int, dict | Exception], **settings) -> dict:
        def pipeline(config: rlhf.RLHFConfig) -> dict:
            end = ends[config.seed]
            if isinstance(end, Exception):
                raise end
            root = Path(config.output_dir)
            assert root == tmp_path / "out" / f"seed-{config.seed}"
            shutil.copytree(run / "ppo", root / "ppo", dirs_exist_ok=True)
            shutil.copy(run / "summary.json", root)
            return {name: x for name, x in (real | end).items() if x is not None}

        monkeypatch.setattr(rlhf, "run", pipeline)
        config = {
            "output_dir": str(tmp_path / "out"),
            "config": str(micro.pipeline() / "micro.yaml"),
            "seeds": tuple(ends),
            "min_passes": 1,
        }
        return seeds.run(SeedsConfig.model_validate(config | settings))

    return repeat


@pytest.mark.parametrize(
    ("end", "passes"),
    [
        (GOOD, 1),
        (GOOD | {"gold_gain_sd": 1.2, "kl": 15.0, "legal_share": 0.97}, 1),  # the rule's edge
        (GOOD | {"gold_gain_sd": 1.19}, 0),
        (GOOD | {"kl": 15.1}, 0),
        (GOOD | {"legal_share": 0.96}, 0),
    ],
)
def test_a_seed_passes_by_the_rule_alone(repeat, end, passes):
    assert repeat({3: end})["passes"] == passes


@pytest.mark.parametrize(("least", "verdict"), [(2, "PASS"), (3, "FAIL")])
def test_so_many_seeds_must_pass(repeat, least, verdict):
    bad = GOOD | {"kl": 99.0}
    found = repeat({0: GOOD, 1: bad, 2: GOOD}, min_passes=least)
    assert found == {"seeds": 3, "passes": 2, "verdict": verdict}


def test_a_seed_that_fails_does_not_lose_the_others(repeat, capfd):
    found = repeat({0: DataError("no such file"), 1: GOOD})
    assert found == {"seeds": 2, "passes": 1, "verdict": "PASS"}
    assert "seed 0 failed: no such file" in capfd.readouterr().err
    assert repeat({0: DataError("no such file")})["verdict"] == "FAIL"


def test_table_and_picture_are_written_where_asked(repeat, tmp_path):
    repeat({0: GOOD, 1: GOOD | {"kl": 99.0}}, results=str(tmp_path / "results"), min_passes=2)
    text = (tmp_path / "results" / "results.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [(row[0], row[-1]) for row in rows[2:4]] == [("| 0", "PASS |"), ("| 1", "FAIL |")]
    assert rows[2][2] == "4.00" and rows[3][2] == "99.00"
    assert "**FAIL: 1 of 2.**" in text and "gold_by_kl.png" in text
    assert (tmp_path / "results" / "gold_by_kl.png").read_bytes().startswith(b"\x89PNG")


def test_a_pipeline_without_gold_cannot_be_judged(repeat, capfd):
    assert repeat({0: GOOD | {"legal_share": None}})["verdict"] == "FAIL"
    assert "no legal_share; the pass rule needs a sandbox" in " ".join(
        capfd.readouterr().err.split()
    )
