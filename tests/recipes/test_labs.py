"""Experiments on reward models: what each arm learns, equal budgets, the page; and one for real."""

import contextlib
from collections import Counter

import lab_plans
import micro
import numpy as np
import pytest

from jaxrlhf.data import sources
from jaxrlhf.errors import ConfigError, UserError
from jaxrlhf.recipes import lab_annotators, lab_queries, lab_reward
from jaxrlhf.recipes.lab_annotators import LabAnnotatorsConfig
from jaxrlhf.recipes.lab_reward import LabConfig, Words


def learnt(found: dict) -> dict[str, list[dict]]:
    return {name: rows for name, rows, *_ in found["trained"]}


# The trainer and the held-out pairs, for real.


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    with contextlib.chdir(folder), lab_plans.first_policy():
        config = f"config={micro.pipeline() / 'micro.yaml'}"
        settings = LabConfig.load(
            None, (config, f"output_dir={folder}/x", f"base_dir={folder}/base", "updates=4")
        )
        yield lab_reward.prepare(settings, 3)


def test_held_out_pairs_have_the_better_answer_as_chosen(lab):
    rows = [dict(row) for row in sources.load_rows(lab.test)]
    gold = [
        [lab.world.gold(row["prompt"], row[side])["gold"] for side in ("chosen", "rejected")]
        for row in rows
    ]
    assert rows and all(chosen > rejected for chosen, rejected in gold)
    held_out = {r["prompt"] for r in sources.load_rows(str(lab.base / "data/test_prompts.jsonl"))}
    assert {row["prompt"] for row in rows} <= held_out
    trained = {row["prompt"] for row in lab.answers(prompts=4, each=2)}
    assert len(trained) == 4 and not trained & held_out


def test_a_reward_model_learns_the_rows_and_is_not_trained_twice(lab):
    rows = [
        {"prompt": row["prompt"], "chosen": row["responses"][0], "rejected": row["responses"][1]}
        for row in lab.answers(prompts=16, each=2)
        if row["responses"][0] != row["responses"][1]
    ]
    first = lab_reward.train(lab, "one", rows)
    made = (lab.root / "one" / "done.json").stat().st_mtime_ns
    assert lab_reward.train(lab, "one", rows) == first and 0 <= first.accuracy <= 1
    assert (lab.root / "one" / "done.json").stat().st_mtime_ns == made


# Active queries.


def test_arms_begin_alike_and_spend_the_same_labels():
    found = lab_plans.run("lab queries")
    rows = learnt(found)
    assert rows["first/member-0"] != rows["first/member-1"]  # a bootstrap sample each
    counts = Counter(name.rsplit("/", 1)[0] for name, *_ in found["trained"])
    arms = ("random", "disagreement", "information")
    assert counts == {"first": 6, **{f"{arm}/8": 2 for arm in arms}}
    assert all(len(rows[f"{arm}/8/member-1"]) == 8 for arm in arms)
    assert set(found["found"]) == {f"{arm}/{n}" for arm in arms for n in (4, 8)}
    first = [found["found"][f"{arm}/4"]["mean"] for arm in arms]
    assert len(set(first)) == 1


def test_an_arm_asks_about_what_its_ensemble_differs_on(lab, monkeypatch):
    pool = lab_queries.pairs(lab, 14)
    size = np.array([float(len(str(pair.a))) for pair in pool])
    monkeypatch.setattr(lab_queries, "gaps", lambda *_: np.stack([size / 99, -size / 99]))
    for arm in ("disagreement", "information"):
        worth = lab_queries.priorities(arm, lab, ("one", "two"), pool)
        assert (worth[np.argsort(size, kind="stable")][1:] >= np.sort(worth)[:-1]).all()
        assert worth.argmax() == size.argmax() and worth.min() > 0
    assert set(lab_queries.priorities("random", lab, (), pool)) == {0.0}  # the order is random


@pytest.mark.parametrize("budgets", ["[8, 4]", "[4, 4]", "[4, 99]"])
def test_budgets_must_rise_within_the_pool(budgets):
    with pytest.raises(ConfigError, match="must rise, up to at most pool = 14"):
        lab_plans.run("lab queries", f"budgets={budgets}")


# Ratings.


def test_all_three_learn_from_the_same_comparisons():
    found = lab_plans.run("lab ratings")
    rows = learnt(found)
    pairs = rows["comparisons-4/pairs"]
    each = Counter((row["prompt"], row[side]) for row in pairs for side in ("chosen", "rejected"))
    four = {prompt for (prompt, _), _ in each.items()}
    complete = [p for p in four if sum(key[0] == p for key in each) == 4]
    assert complete and all(each[key] == 4 for key in each if key[0] in complete)
    # Those of fewer comparisons are the first of more.
    assert {str(row) for row in rows["comparisons-2/pairs"]} <= {str(row) for row in pairs}
    soft, gaps = rows["comparisons-4/soft"], rows["comparisons-4/regression"]
    assert all(0.5 <= row["label"] < 1 and "margin" not in row for row in soft)
    assert all(row["margin"] >= 0 and row["weight"] > 0 for row in gaps)
    assert [row["chosen"] for row in soft] == [row["chosen"] for row in gaps]
    changes = {name: changed for name, *_, changed in found["trained"]}
    assert changes["comparisons-4/regression"] == {"loss": "regression"}
    assert changes["comparisons-4/pairs"] == changes["comparisons-4/soft"] == {}


# Annotators.


def test_labels_of_all_arms_are_about_the_same_pairs():
    found = lab_plans.run("lab annotators")
    rows = learnt(found)
    sides = {
        name: [{row["chosen"], row["rejected"]} for row in some] for name, some in rows.items()
    }
    for arm in ("majority", "soft"):
        assert sides[f"verdicts-5/{arm}"] == sides["truth"]
    assert all("label" not in row for row in rows["truth"])
    assert {row["label"] for row in rows["verdicts-5/majority"]} == {1.0}
    assert all(0.5 <= row["label"] < 1 for row in rows["verdicts-5/soft"])


def test_annotators_are_right_as_often_as_they_are_reliable(lab):
    config = LabAnnotatorsConfig(reliabilities=(0.9, 0.6, 0.2), verdicts=(3,))
    true = [{"prompt": f"p{i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(2000)]
    said = lab_annotators.verdicts(config, lab, true, 3)
    right = Counter()
    for row in said:
        better = "a" if row["a"].startswith("yes") else "b"
        right[row["annotator"]] += row["verdict"] == better
    for who, reliability in enumerate(config.reliabilities, start=1):
        # Three standard errors of 2,000 verdicts: 3 * sqrt(.25 / 2000) = .034 at most.
        assert right[f"annotator {who}"] / 2000 == pytest.approx(reliability, abs=0.034)
    assert 800 < sum(row["a"].startswith("yes") for row in said[::3]) < 1200  # which is a is drawn
    most = lab_annotators.majority(true, said)
    votes = Counter((row["pair_id"], row["verdict"] == "a") for row in said)
    for number, row in enumerate(most):
        a = said[3 * number]["a"]
        assert (row["chosen"] == a) == (votes[str(number), True] >= 2)


def test_there_must_be_as_many_annotators():
    with pytest.raises(ConfigError, match="there are 12 annotators"):
        lab_plans.run("lab annotators", "verdicts=[13]")


# Pages.

WORDS = Words("Curves", "jaxrlhf lab x", "labels", "gold accuracy", "plain", "Words of the page.")
CURVES = {
    ("plain", 2): [0.5, 0.6, 0.7],
    ("plain", 4): [0.7, 0.7, 0.7],
    ("other", 2): [0.6, 0.7, 0.8],
    ("other", 4): [0.6, 0.5, 0.7],
}


def test_differences_are_paired_by_seed():
    headers, lines = lab_reward.tabled(WORDS, CURVES)
    assert headers == ["labels", "plain", "other", "other − plain"]
    # The same rise in every seed has no spread; the other way: mean −.1, SD .1, t(2) = 4.303.
    assert lines[0] == ["2", "0.600 [0.352, 0.848]", "0.700 [0.452, 0.948]", lines[0][3]]
    assert lines[0][3] == "+0.100 [0.100, 0.100]"
    half = 4.302653 * 0.1 / np.sqrt(3)
    assert lines[1][3] == f"-0.100 [{-0.1 - half:.3f}, {-0.1 + half:.3f}]"


def test_the_page_says_how_it_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = LabConfig(results="page", seeds=(0, 1, 2), updates=7)
    found = lab_reward.report(config, WORDS, CURVES)
    assert found["other/4"]["difference"] == pytest.approx(-0.1)
    page = (tmp_path / "page.md").read_text()
    for words in (
        "# Curves",
        "jaxrlhf lab x seeds=[0,1,2] results=page updates=7",
        "Words of the page.",
    ):
        assert words in page
    assert (tmp_path / "page" / "curve.png").stat().st_size > 1000


def test_a_config_that_is_no_sandbox_is_refused(tmp_path):
    config = LabConfig(
        config=str(micro.ROOT / "configs" / "hh_rlhf.yaml"), output_dir=str(tmp_path)
    )
    with pytest.raises(ConfigError, match=r"needs task.kind: sandbox, and sft"):
        lab_reward.prepare(config, 0)


def test_an_experiment_with_other_settings_needs_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = {"seeds": (), "output_dir": "out"}
    config = LabConfig.model_construct(**LabConfig().model_dump() | run)
    with pytest.raises(IndexError):  # no seed, no curve
        lab_reward.over_seeds(config, lambda lab: {})
    (tmp_path / "out" / "seed-0").mkdir()
    (tmp_path / "out" / "seed-0" / "done.json").write_text("{}")
    with pytest.raises(UserError, match="updates: 60 there, 9 now"):
        lab_reward.over_seeds(config.model_copy(update={"updates": 9}), lambda lab: {})
