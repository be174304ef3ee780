"""Over-optimisation: the rules on curves by hand, and one small run of everything."""

import contextlib
import json

import lab_plans
import micro
import numpy as np
import pytest

from jaxrlhf.errors import ConfigError
from jaxrlhf.recipes import lab_overoptimise
from jaxrlhf.recipes import lab_overoptimise_report as report
from jaxrlhf.recipes.lab_overoptimise import CONFIG
from jaxrlhf.recipes.lab_overoptimise_report import Arm, BestOf, Point


def arm(gold, score, kl=None, held_out=None):
    kl = range(len(gold)) if kl is None else kl
    held_out = score if held_out is None else held_out
    curve = [
        Point(i, *map(float, row))
        for i, row in enumerate(zip(kl, gold, score, held_out, strict=True))
    ]
    best = BestOf(np.arange(8.0)[None], np.arange(8.0)[None])
    return Arm(0, "4 pairs", 0.8, curve, best)


TURNS, LEASH = report.RULES


@pytest.mark.parametrize(
    ("gold", "score", "holds"),
    [
        ((0, 1, 2, 1), (0, 1, 2, 3), True),
        ((0, 1, 2, 1.6), (0, 1, 2, 3), False),  # falls by .4
        ((0, 1, 2, 3), (0, 1, 2, 3), False),  # the peak is the end
        ((3, 2, 1, 0), (0, 1, 2, 3), False),  # the peak is the start
        ((0, 1, 2, 1), (0, 1, 2, 1.9), False),  # the score falls too
    ],
)
def test_turning_over(gold, score, holds):
    assert TURNS.holds(arm(gold, score)) is holds


@pytest.mark.parametrize(("last", "holds"), [(1.8, True), (1.7, False)])
def test_a_leash_keeps_nine_tenths_of_the_peak(last, holds):
    # Within 12 nats the last point is the third; the fourth is beyond.
    assert LEASH.holds(arm((0, 2, last, -5), (0, 1, 2, 3), kl=(0, 6, 11.9, 12.1))) is holds


def test_stopping_where_another_reward_model_is_highest():
    found = arm((0, 1, 2, 1), (0, 1, 2, 3), held_out=(0, 2, 1, 1))
    assert report.stopped_early(found).step == 1


def test_four_of_five_pass():
    good, bad = arm((0, 1, 2, 1), (0, 1, 2, 3)), arm((0, 1, 2, 3), (0, 1, 2, 3))
    assert report.verdict(TURNS, [good] * 4 + [bad])[1:] == ["4 of 5", "PASS"]
    assert report.verdict(TURNS, [good] * 3 + [bad] * 2)[1:] == ["3 of 5", "FAIL"]


def test_best_of_n_by_powers_of_two():
    # Scores 0 ... 7 are their own gold: the best of n of N has mean n (N + 1) / (n + 1) - 1.
    kl, gold = report.best_of_curve(arm((0, 1), (0, 1)))
    np.testing.assert_allclose(gold, [3.5, 5.0, 6.2, 7.0])
    assert kl[0] == 0 and len(kl) == 4


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A small run, and its folder."""
    home = tmp_path_factory.mktemp("overoptimise")
    config = (
        *(f"config={micro.pipeline()}/micro.yaml", f"output_dir={home}/out"),
        *(f"base_dir={home}/base", f"results={home}/page", "overrides=[ppo.guards.dry_run=true]"),
        *("pairs=[12]", "members=2", "ppo_updates=4", "points=4", "best_of=4", "updates=2"),
    )
    with contextlib.chdir(micro.pipeline()), lab_plans.first_policy():
        summary = lab_overoptimise.run(CONFIG.load(None, config))
        again = lab_overoptimise.run(CONFIG.load(None, config))
    assert again == summary and summary["rules"] == 2
    return home


def test_every_arm_is_optimised_and_measured(done):
    arms = [path.name for path in (done / "out" / "seed-0").iterdir() if (path / "ppo").is_dir()]
    assert sorted(arms) == ["12-pairs", "12-pairs-lowest-of-2"]
    for name in arms:
        lines = (done / "out" / "seed-0" / name / "ppo" / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["step"] for row in rows if "eval/gold" in row] == [0, 1, 2, 3, 4]
        assert all("eval/score_1" in row for row in rows)
    page = (done / "page.md").read_text()
    assert "12 pairs, lowest of 2" in page and "best-of-n" in page
    assert (done / "page" / "gold.png").stat().st_size > 5_000


def test_the_ensemble_is_paid_its_lowest_score(done):
    folder = done / "out" / "seed-0"
    answers = folder / "12-pairs-lowest-of-2" / "best-of-n" / "answers.jsonl"
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(rows[0]["score"]) == 4 and len({tuple(row["gold"]) for row in rows}) > 1


@pytest.mark.parametrize(
    ("argv", "says"),
    [(("members=1",), "members = 1"), (("ppo_updates=10", "points=11"), "points = 11")],
)
def test_bad_input(argv, says):
    with pytest.raises(ConfigError, match=says):
        lab_overoptimise.run(CONFIG.load(None, argv))


def test_too_few_prompts_are_said(done, monkeypatch):
    monkeypatch.setattr(lab_overoptimise.Lab, "answers", lambda self, **_: [])
    lab = lab_overoptimise.Lab(done, done, 0, 1, None, "", (), (), "", None)
    with pytest.raises(ConfigError, match=r"pairs: 8 are needed"):
        lab_overoptimise.labelled(lab, 8)
