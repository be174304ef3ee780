"""`jaxrlhf lab noise`: which labels are wrong and how, what is trained on them, rules by hand."""

import lab_dry
import pytest

from jaxrlhf.errors import ConfigError
from jaxrlhf.recipes import lab_noise, lab_noise_report
from jaxrlhf.recipes.lab_noise import LabNoiseConfig

PAIRS = [
    {"prompt": f"p{i}", "chosen": "good " * (1 + i % 3), "rejected": "bad " * (1 + i % 2)}
    for i in range(3000)
]
ERROR = 3 * (0.25 / len(PAIRS)) ** 0.5  # three standard errors of a share, at most


def changed(rows):
    return {i for i, (a, b) in enumerate(zip(PAIRS, rows, strict=True)) if a != b}


def test_flips_are_a_share_of_the_pairs_and_those_of_fewer_are_among_them():
    few, many = (changed(lab_noise.flips(PAIRS, share, 0)) for share in (0.1, 0.4))
    assert len(few) / 3000 == pytest.approx(0.1, abs=ERROR) and few < many
    assert len(many) / 3000 == pytest.approx(0.4, abs=ERROR)
    assert changed(lab_noise.flips(PAIRS, 0.1, 1)) != few and not changed(
        lab_noise.flips(PAIRS, 0.0, 0)
    )
    row = lab_noise.flips(PAIRS, 0.4, 0)[min(many)]
    assert row["chosen"].startswith("bad") and row["rejected"].startswith("good")


def test_the_longer_answer_is_chosen_in_twice_the_share():
    rows = lab_noise.by_length(PAIRS, 0.25, 0)
    # Lengths are 1 + i mod 3 against 1 + i mod 2: the worse one is longer for i = 3 mod 6 alone,
    # one pair of six. Of these half are judged by length, and turned round: one of twelve.
    worse_is_longer = {i for i in range(3000) if i % 6 == 3}
    assert changed(rows) < worse_is_longer
    assert len(changed(rows)) / 3000 == pytest.approx(1 / 12, abs=ERROR)
    assert all(len(rows[i]["chosen"]) > len(rows[i]["rejected"]) for i in changed(rows))


def test_every_way_labels_the_same_pairs():
    found = lab_dry.run("lab noise")
    trained = {name: (rows, changes) for name, rows, *_, changes in found["trained"]}
    arms = {name: trained[name.replace(" ", "-")] for name in found["seeds"][0]}
    shares = ("flips 0", "flips 0.2", "lapse 0.2", "smoothed 0.2", "length 0.2")
    assert set(arms) == {*shares, "one 0.4", "majority 0.4", "aggregated 0.4"}
    sides = [[{row["chosen"], row["rejected"]} for row in rows] for rows, _ in arms.values()]
    assert all(one == sides[0] for one in sides)
    # A share e of wrong labels is that of 2 e coin flips.
    lapses = {name: changes["lapse"] for name, (_, changes) in arms.items() if changes["lapse"]}
    assert lapses == {"lapse 0.2": 0.4}
    smoothed, flipped = arms["smoothed 0.2"][0], arms["flips 0.2"][0]
    assert [row.pop("label") for row in smoothed] == [0.8] * len(smoothed)
    assert smoothed == flipped == arms["lapse 0.2"][0]
    assert found["seeds"][0]["flips 0"]["wrong"] == 0.0


def test_some_go_on_to_ppo_and_all_for_as_long():
    found = lab_dry.run("lab noise", "ppo_updates=4")
    with_curve = {name for name, x in found["seeds"][0].items() if "curve" in x}
    assert with_curve == {*("flips 0", "flips 0.2", "length 0.2", "majority 0.4", "aggregated 0.4")}
    asked = [settings for settings, _ in found["asked"]]
    assert len(asked) == 5 and {one["max_steps"] for one in asked} == {4}
    assert len({one["output_dir"] for one in asked}) == 5


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("errors=[0,0.5]", r"errors = 0.5: must be 0 or more, and below 1/2"),
        ("treated=[0.1]", r"treated = \[0.1\]: must be among errors"),
        ("verdicts=6", "verdicts = 6: the crowd has 5"),
    ],
)
def test_shares_that_make_no_sense_are_refused(override, says):
    with pytest.raises(ConfigError, match=says):
        lab_dry.run("lab noise", override)


# The rules.


def arm(accuracy=0.8, margin=1.0, gold=3.0, length=0.0):
    start, end = {"gold": 1.0, "length": 10.0}, {"gold": 1.0 + gold, "length": 10.0 + length}
    return {"accuracy": accuracy, "margin": margin, "curve": [start, end]}


def seed(**arms):
    made = {"flips 0": arm(), "flips 0.2": arm(), "length 0.2": arm()}
    return made | {name.replace("_", " "): x for name, x in arms.items()}


FLIPS, LENGTH = "flips 0.2", "length 0.2"


@pytest.mark.parametrize(
    ("number", "found", "holds"),
    [
        (0, {FLIPS: arm(accuracy=0.76)}, True),
        (0, {FLIPS: arm(accuracy=0.74)}, False),
        (1, {FLIPS: arm(margin=0.89)}, True),
        (1, {FLIPS: arm(margin=0.91)}, False),
        (2, {FLIPS: arm(gold=2.5)}, True),
        (2, {FLIPS: arm(gold=2.3)}, False),
        (2, {"flips 0": arm(gold=-2.0), FLIPS: arm(gold=-1.0)}, False),  # PPO that loses gold
        (3, {LENGTH: arm(length=2.5), FLIPS: arm(length=0.5)}, True),
        (3, {LENGTH: arm(length=2.5), FLIPS: arm(length=1.0)}, False),
        (4, {LENGTH: arm(gold=2.9)}, True),
        (4, {LENGTH: arm(gold=3.0)}, False),
        (5, {"majority 0.4": arm(), "aggregated 0.4": arm(accuracy=0.81)}, True),
        (5, {"majority 0.4": arm(), "aggregated 0.4": arm(accuracy=0.8)}, False),
    ],
)
def test_rules(number, found, holds):
    rule = lab_noise_report.rules(LabNoiseConfig())[number]
    assert rule.judge(seed() | found).holds is holds


def test_rules_are_those_of_arms_that_were_run():
    few = LabNoiseConfig(errors=(0.1,), treated=(), adversaries=(0.0,))
    assert lab_noise_report.rules(few) == []
    assert len(lab_noise_report.rules(LabNoiseConfig())) == 6


def test_lines_of_a_table_stand_in_the_order_of_ways_and_shares():
    names = ["aggregated 0.4", "flips 0.4", "length 0.2", "flips 0", "one 0.4", "flips 0.2"]
    wanted = ["flips 0", "flips 0.2", "flips 0.4", "length 0.2", "one 0.4", "aggregated 0.4"]
    assert lab_noise_report.ordered(names) == wanted
