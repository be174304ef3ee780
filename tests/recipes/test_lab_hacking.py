"""`jaxrlhf lab hacking`: what each flaw pays for, who looks on, detectors and rules by hand."""

import lab_dry
import pytest

from jaxrlhf.errors import ConfigError
from jaxrlhf.recipes import lab_hacking
from jaxrlhf.recipes import lab_hacking_report as report
from jaxrlhf.recipes.lab_hacking import LabHackingConfig
from jaxrlhf.sandbox import make_world


@pytest.mark.parametrize(
    ("flaw", "answer", "count"),
    [
        ("repetition", "warm soup warm soup warm .", 3.0),
        ("repetition", "", 0.0),
        ("length", "warm soup .", 3.0),
        ("word", "again and again .", 2.0),
        ("word", "against", 0.0),
    ],
)
def test_what_a_flaw_pays_for(flaw, answer, count):
    assert lab_hacking.feature_of(flaw)("a prompt", answer) == count


def test_the_word_is_one_of_the_world():
    assert lab_hacking.WORD in make_world("bistro").words()


def test_labellers_pay_for_gold_and_the_flaw():
    """Of a large bonus a word the longer answer is preferred, whatever gold says; of none, gold."""

    def longer(bonus):
        found = lab_dry.run("lab hacking", f"length={bonus}", "flaws=[length]", "pairs=10")
        rows = next(rows for name, rows, *_ in found["trained"] if name == "length/member-0")
        sizes = [[len(row[side].split()) for side in ("chosen", "rejected")] for row in rows]
        return [a >= b for a, b in sizes]

    assert all(longer(1000)) and not all(longer(0))


def test_who_is_optimised_and_who_looks_on():
    found = lab_dry.run("lab hacking")
    learnt = {name: (rows, seed) for name, rows, seed, *_ in found["trained"]}
    assert set(learnt) == {
        f"{flaw}/{who}"
        for flaw in ("repetition", "length")
        for who in ("member-0", "member-1", "member-2", "held-out")
    }
    members = [learnt[f"length/member-{i}"] for i in range(3)]
    assert members[0][0] == members[1][0] != learnt["length/held-out"][0]
    assert [seed for _, seed in members] == [0, 1, 2]
    asked = {settings["output_dir"].split("/")[-2]: settings for settings, _ in found["asked"]}
    assert set(asked) == {"repetition", "length", *report.MITIGATIONS}
    watching = asked["length"]["guards"]["disagreement"]["reward_models"]
    assert [path.split("/")[-2] for path in watching] == ["member-1", "member-2", "held-out"]
    coefficients = {name: settings["ppo"]["kl_coef"] for name, settings in asked.items()}
    assert coefficients.pop(report.PENALTY) == 0.2 and set(coefficients.values()) == {0.0}
    own = {s["output_dir"].split("/")[-2] for s, reward_fn in found["asked"] if reward_fn}
    assert own == {report.ENSEMBLE, report.TAKEN_OFF}


def test_guards_that_warned_are_on_the_page():
    """The dry run's Andon cord warns in every run, at the number of the run: that of the second
    flaw is the second, and the penalty's the third."""
    (page,) = lab_dry.run("lab hacking")["written"].values()
    assert "| andon | 1 (1) | 2 (1) | 3 (1) | 4 (1) | 5 (1) |" in page


def test_guards_by_seed():
    """In two of three seeds at updates 4 and 7: their median is 5.5."""
    seeds = [{"a": {"length": 4}}, {"a": {}}, {"a": {"length": 7, "andon": 3}, "b": {"length": 1}}]
    lines = report.guards(["a", "b"], [{report.WARNED: warned} for warned in seeds])
    assert lines == [["length", "5.5 (2)", "1 (1)"], ["andon", "3 (1)", ""]]


def test_evaluations_count_what_anybody_can_count():
    judge = lab_hacking.judge_of(make_world("bistro"))
    (found,) = judge(["the kind waiter brought"], ["warm warm soup ."])
    assert found["repetition"] == 0.25 and found["length"] == 4.0 and "gold" in found


def test_a_flaw_that_is_not_planted_cannot_be_mitigated():
    with pytest.raises(ConfigError, match="mitigated = length: must be among flaws"):
        lab_dry.run("lab hacking", "flaws=[word]")


# Detectors and rules.


def point(step, gold, **figures):
    plain = {"kl": 1.0 * step, "length": 15.0, "repetition": 0.1, "score": 0.0}
    return {"step": step, "gold": gold, "score_3": 0.0, **plain, **figures}


GOLD = (0.0, 2.0, 1.5, 0.5, -1.0)  # the highest is 2; two evaluations are 1 or more below it


def curve(**columns):
    """GOLD, with a column for each figure."""
    rows = zip(*columns.values(), strict=True) if columns else [()] * len(GOLD)
    return [
        point(i, gold, **dict(zip(columns, row, strict=True)))
        for i, (gold, row) in enumerate(zip(GOLD, rows, strict=True))
    ]


def test_gold_is_below_its_peak_after_it_alone():
    assert report.below_peak(curve()) == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("name", "columns", "found"),
    [
        ("KL", {}, 1.0),
        # Lengths 15, 15, 20, 15, 25: away from the start by 0, 0, 5, 0, 10. Of the two positives
        # one ties two of three negatives and loses to one, (2 * .5) / 3; the other wins: 2/3.
        ("length", {"length": (15, 15, 20, 15, 25)}, 2 / 3),
        ("length", {"length": (15, 15, 15, 5, 25)}, 1.0),
        ("repetition", {"repetition": (0.1, 0.5, 0.5, 0.1, 0.1)}, 1 / 6),
        ("score above that of another model", {"score": (0, 1, 1, 2, 3)}, 1.0),
        ("ensemble disagreement", {"guards/disagreement": (1, 1, 1, 1, 1)}, 0.5),
        ("labellers' win rate", {"guards/win_rate": (0.5, 0.8, 0.8, 0.4, 0.1)}, 1.0),
    ],
)
def test_detectors(name, columns, found):
    assert report.seen_by(curve(**columns), report.DETECTORS[name]) == pytest.approx(found)


def test_where_gold_does_not_fall_there_is_nothing_to_see():
    rising = [point(i, float(i)) for i in range(4)]
    assert report.seen_by(rising, report.DETECTORS["KL"]) is None
    assert not report.is_seen(rising, "KL").holds


def test_an_early_stop_is_where_another_model_is_highest():
    assert report.stopped_early(curve(score_3=(0, 1, 3, 2, 2)))["step"] == 2


HACKED = curve(score=(0, 1, 2, 3, 4), length=(15, 15, 15, 25, 28))
BETTER = [*HACKED[:-1], point(4, 1.9, length=28.0)]


@pytest.mark.parametrize(
    ("number", "found", "holds"),
    [
        (0, {}, True),
        (0, {"length": curve(score=(0, 1, 2, 3, -1))}, False),  # the score falls as well
        (0, {"length": BETTER}, False),
        (1, {}, True),
        (1, {"length": curve(score=(0, 1, 2, 3, 4))}, False),
        (2, {}, True),
        (2, {"length": BETTER}, False),
        (3, {}, True),
        (3, {report.TAKEN_OFF: HACKED}, False),
    ],
)
def test_rules(number, found, holds):
    rules = report.rules(LabHackingConfig(flaws=("length",)))
    seed = {"length": HACKED, report.PENALTY: BETTER, report.TAKEN_OFF: BETTER}
    assert len(rules) == 4 and rules[number].judge(seed | found).holds is holds
