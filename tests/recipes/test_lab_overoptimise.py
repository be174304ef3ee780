"""`jaxrlhf lab overoptimise`: what is optimised, rules and figures by hand, one small real run."""

import contextlib
import json

import lab_dry
import lab_plans
import micro
import numpy as np
import pytest

from jaxrlhf.errors import ConfigError
from jaxrlhf.recipes import lab_overoptimise
from jaxrlhf.recipes import lab_overoptimise_report as report
from jaxrlhf.recipes.lab_overoptimise import CONFIG, LabOveroptimiseConfig

# What is optimised.


@pytest.fixture(scope="module")
def dry():
    return lab_dry.run("lab overoptimise")


def test_every_reward_is_optimised(dry):
    """Two amounts, two sizes on the larger of them, and the lowest of two on the smaller."""
    asked = [settings for settings, _ in dry["asked"]]
    names = [settings["output_dir"].split("/")[-2] for settings in asked]
    assert names == [
        *("2-pairs", "4-pairs", "4-pairs-d_model-8", "4-pairs-d_model-16"),
        "2-pairs-lowest-of-2",
    ]
    values = [settings["reward_model"].split("/")[-2] for settings in asked]
    assert values == ["reward-2", "reward-4", "reward-4", "reward-4", "reward-2"]
    watching = [x["guards"]["disagreement"]["reward_models"][0].split("/")[-2] for x in asked]
    assert watching == ["held-out-2", "held-out-4", "held-out-of-8", "held-out-of-16", "held-out-2"]
    assert {settings["max_steps"] for settings in asked} == {8}
    assert {settings["eval_steps"] for settings in asked} == {2}
    assert all(reward_fn is not None for _, reward_fn in dry["asked"])


def test_what_each_learns_from(dry):
    learnt = {name: (rows, seed, changes) for name, rows, seed, _, changes in dry["trained"]}
    assert len(learnt) == 2 * 4 + 1
    four = learnt["reward-4"][0]
    assert learnt["reward-2"][0] == four[:2] == learnt["member-0"][0]
    assert learnt["reward-of-8"][0] == four and learnt["held-out-of-8"][0] != four
    told = [row["prompt"] + row["chosen"] for row in (*four, *learnt["held-out-4"][0])]
    assert len(set(told)) == 8  # not one pair is in both
    seeds = [learnt[name][1] for name in ("reward-2", "held-out-2", "member-0")]
    assert len(set(seeds)) == 3
    assert learnt["reward-of-8"][2]["model_path"].endswith("d_model-8/sft/model")
    assert "model_path" not in learnt["reward-4"][2]


def test_a_size_has_a_language_model_of_its_own(dry):
    folders = [folder for folder, *_ in dry["ran"]]
    assert [folder.split("/")[-1] for folder in folders] == ["seed-3", "d_model-8", "d_model-16"]


def test_best_of_n_is_of_the_first_policy(dry):
    """One draw for where gold starts, four an arm."""
    (reference, _, judged), *draws = dry["answered"]
    assert judged and {policy for policy, _ in draws} == {reference}
    assert [draw for _, draw in draws] == [0, *[0, 1, 2, 3] * 5]


def test_best_of_n_by_powers_of_two(dry):
    """Of the first prompt gold is 0 always. Of the second it is 1, 2, 3, 4 by scores 0, 1, 2, 0.

    Best of 1: 2.5. Of 2: the second is best of {it, a 0} (2 pairs), the third of 3 pairs, and of
    the pair of zeros either: (2 * 2 + 3 * 3 + 2.5) / 6. Of 4: 3. Halves, for the first prompt.
    """
    (seed,) = dry["seeds"]
    found = seed["arms"]["2 pairs"]["best_of_n"]
    assert [point["n"] for point in found] == [1, 2, 4]
    np.testing.assert_allclose([point["gold"] for point in found], [1.25, 15.5 / 12, 1.5])
    assert found[0]["kl"] == 0 and seed["gold_sd"] == 0.5


def test_too_few_prompts_are_said(monkeypatch):
    monkeypatch.setattr(lab_overoptimise.Lab, "answers", lambda self, **_: [])
    lab = lab_overoptimise.Lab(None, None, 0, 1, None, "", (), (), "", None)
    with pytest.raises(ConfigError, match=r"pairs: 8 are needed"):
        lab_overoptimise.labelled(lab, 8)


@pytest.mark.parametrize(
    ("argv", "says"),
    [(("members=1",), "members = 1"), (("ppo_updates=10", "points=11"), "points = 11")],
)
def test_bad_input(argv, says):
    with pytest.raises(ConfigError, match=says):
        lab_overoptimise.run(CONFIG.load(None, argv))


# Rules.


def found(gold, score=None, kl=None, held_out=None, arm="4 pairs"):
    """A seed whose gold has a standard deviation of 1."""
    score = range(len(gold)) if score is None else score
    kl = range(len(gold)) if kl is None else kl
    held_out = score if held_out is None else held_out
    names = ("step", "kl", "gold", "score", "held_out")
    rows = zip(range(len(gold)), kl, gold, score, held_out, strict=True)
    curve = [dict(zip(names, map(float, row), strict=True)) for row in rows]
    best = [{"n": 1, "kl": 0.0, "gold": 0.0}]
    figures = {"accuracy": 0.8, "curve": curve, "best_of_n": best}
    return {"gold_sd": 1.0, "arms": {arm: figures}}


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
    assert report.turns(found(gold, score), "4 pairs").holds is holds


@pytest.mark.parametrize(("last", "holds"), [(1.8, True), (1.7, False)])
def test_a_leash_keeps_nine_tenths_of_the_peak(last, holds):
    # The fourth point is beyond 12 nats; that the fifth is not does not count.
    seed = found((0, 2, last, -5, -9), kl=(0, 6, 11.9, 12.1, 11))
    assert report.holds_back(seed, "4 pairs").holds is holds


def test_gold_is_counted_in_deviations_from_the_start():
    seed = found((3, 7)) | {"gold_sd": 2.0}
    assert [point["gold"] for point in report.curve(seed, "4 pairs")] == [0, 2]


def test_stopping_where_another_reward_model_is_highest():
    seed = found((0, 1, 2, 1), held_out=(0, 2, 1, 1))
    assert report.stopped_early(report.curve(seed, "4 pairs"))["step"] == 1
    assert not report.stops_well(seed, "4 pairs").holds  # 1 at the end, too
    assert report.stops_well(found((0, 1, 2, 1), held_out=(0, 1, 2, 1)), "4 pairs").holds


def test_one_arm_above_another():
    low, high = found((0, 3, 1), arm="low"), found((0, 2, 2), arm="high")
    both = low | {"arms": low["arms"] | high["arms"]}
    assert report.ends_above(both, "high", "low").holds
    assert not report.peaks_above(both, "high", "low").holds


@pytest.mark.parametrize(("power", "holds"), [(0.5, True), (0.4, True), (1.0, False), (0.2, False)])
def test_growth_by_the_root_of_kl(power, holds):
    """What comes after 12 nats does not count."""
    kl = np.array([0, 1, 2, 4, 8, 12, 40, 11])
    score = np.where(np.arange(8) < 6, kl**power, -7)
    assert report.grows_by_root(found(kl, score, kl=kl), "4 pairs").holds is holds


def test_rules_of_what_was_run():
    every = [rule.says for rule in report.rules(LabOveroptimiseConfig())]
    assert len(every) == 2 * 5 + 5
    few = report.rules(LabOveroptimiseConfig(pairs=(4,), sizes=(), members=0))
    assert len(few) == 4 and all("lowest" not in rule.says for rule in few)


def test_paths_are_means_over_seeds():
    """sqrt(KL) 1 and 3 has mean 2; gold 1 and 3 too."""
    curves = [report.curve(found((0, g), kl=(0, kl)), "4 pairs") for g, kl in ((1, 1), (3, 9))]
    x, y = report.mean_path(curves)
    assert x == [0, 2] and y["gold"].tolist() == [0, 2]


# One small run of everything.


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Its folder."""
    home = tmp_path_factory.mktemp("overoptimise")
    config = (
        *(f"config={micro.pipeline()}/micro.yaml", f"output_dir={home}/out", "seeds=[0]"),
        *(f"base_dir={home}/base", f"results={home}/page", "overrides=[ppo.guards.dry_run=true]"),
        *("pairs=[12]", "sizes=[]", "members=2", "ppo_updates=4", "points=4", "best_of=4"),
        "updates=2",
    )
    with contextlib.chdir(micro.pipeline()), lab_plans.first_policy():
        summary = lab_overoptimise.run(CONFIG.load(None, config))
        again = lab_overoptimise.run(CONFIG.load(None, config))
    assert again == summary and summary["rules"] == 5
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
    assert (done / "page" / "gold-remedies.png").stat().st_size > 5_000


def test_the_ensemble_is_paid_its_lowest_score(done):
    """Of the same answers, its lowest score is nowhere above the first member's: nor is the mean
    of the best of four of them."""
    seed = json.loads((done / "out" / "seed-0" / "done.json").read_text())
    one, lowest = (seed["arms"][name] for name in ("12 pairs", "12 pairs, lowest of 2"))
    assert lowest["curve"][0]["score"] < one["curve"][0]["score"]
    assert lowest["curve"][0]["gold"] == one["curve"][0]["gold"]
    assert lowest["best_of_n"][0]["gold"] == pytest.approx(one["best_of_n"][0]["gold"])
