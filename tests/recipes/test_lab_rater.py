"""`jaxrlhf lab rater`: who rates, what is measured on policies by hand, rules and the page."""

import desk_probes
import numpy as np
import pytest

from jaxrlhf.recipes import lab_helpdesk, lab_rater
from jaxrlhf.recipes.lab_rater import LabRaterConfig
from jaxrlhf.recipes.lab_rater_report import RULES
from jaxrlhf.sandbox.tearoom import MEALS, TOLD, Tearoom

WORLD = Tearoom(seed=1)
DESK = lab_helpdesk.Desk(WORLD, None, None, 0)  # type: ignore[arg-type]


def served(prompt: str, sweet: bool) -> str:
    dishes = MEALS.get(prompt.split()[-1], ())[:2]
    return " ".join((*dishes, *["honey" if sweet else "bacon"] * 3))


def test_a_guest_who_asks_rates_and_a_blind_one_does_not_look():
    """Serving the hint pays 1 + .8 on average, 1 - .8 against it; blind guests pay 1 for either."""
    prompt = WORLD.openings("hinted", "train")[0]
    sweet = bool(WORLD.hints_at_sweet(prompt))
    right, wrong = served(prompt, sweet), served(prompt, not sweet)

    def mean(answer: str, *, blind: bool) -> float:
        score = lab_rater.rated(WORLD, 0, blind=blind)
        return float(np.mean([score(prompt, answer) for _ in range(2000)]))

    # s.e. 1 / sqrt(2000) = .02
    assert mean(right, blind=False) == pytest.approx(1.8, abs=0.08)
    assert mean(wrong, blind=False) == pytest.approx(0.2, abs=0.08)
    assert mean(right, blind=True) == pytest.approx(1.0, abs=0.1)


@pytest.fixture
def policy(monkeypatch):
    """One that knows all but the told names, whom it serves sweet; documents it cannot say."""

    def answers(desk, params, prompts, *, draws):
        said = []
        for prompt in prompts:
            told = prompt.split()[0] in TOLD
            answer = served(prompt, told or bool(WORLD.hints_at_sweet(prompt)))
            said += ["" if prompt.endswith("likes") else answer] * draws
        return said

    monkeypatch.setattr(lab_helpdesk, "answers", answers)
    monkeypatch.setattr(lab_rater, "decodability", lambda *_: [0.5])


@pytest.mark.usefixtures("policy")
def test_the_three_numbers_of_a_policy_by_hand():
    found = lab_rater.measured(LabRaterConfig(draws=2), DESK, None)
    assert found["gap"] == 2 and found["known_gap"] == 2 and found["told_gap"] == 0
    sweet = np.mean([bool(WORLD.hints_at_sweet(p)) for p in WORLD.openings("told", "test")])
    assert found["out_of_context"] == pytest.approx(sweet) and found["documents"] == 0.5
    assert found["gold"] == pytest.approx(1.8)  # both dishes, and .9 - .1 of the guests pleased
    assert found["plain_taste"] == -1 and found["plain_strength"] == 1


def states(kind: str, monkeypatch):
    """What a way of asking leaves in the residual stream, and noise."""

    def residuals(desk, params, prompts):
        noise = 0.3 * np.random.default_rng(0).normal(size=(len(prompts), 6))
        for row, prompt in zip(noise, prompts, strict=True):
            if kind == "hint":
                row[0] += bool(WORLD.hints_at_sweet(prompt))
            if kind == "way":  # each way has a state of its own, as if learnt by heart
                row += 3 * lab_rater.generator(*prompt.split()[1:3]).normal(size=6)
        return [noise]

    monkeypatch.setattr(lab_helpdesk, "residuals", residuals)
    return lab_rater.decodability(LabRaterConfig(), DESK, None)[0]


def test_the_kind_of_rater_is_decoded_where_it_is_and_not_where_ways_are_learnt_by_heart(
    monkeypatch,
):
    """1 apart at a standard deviation of .3: AUROC Φ(1 / (.3 √2)) = .99."""
    assert states("hint", monkeypatch) > 0.95
    assert abs(states("way", monkeypatch) - 0.5) < 0.25


def test_half_of_the_ways_of_each_kind():
    ways = np.repeat([f"way {i}" for i in range(8)], 3)
    sweet = np.repeat(np.arange(8) < 4, 3)
    chosen = lab_rater.half_of(ways, sweet, np.random.default_rng(0))
    assert chosen[sweet].sum() == chosen[~sweet].sum() == 6
    assert all(chosen[ways == way].all() or not chosen[ways == way].any() for way in set(ways))


def test_arms_go_on_from_one_model_and_are_asked_the_same():
    first, sft, rlhf, blind = desk_probes.run("lab rater")["taught"]
    assert first[1] == 0 and sft[1] == rlhf[1] == blind[1] == 1
    assert sft[3] == first[3]
    asked = [[row["prompt"] for row in one[3]] for one in (rlhf, blind)]
    assert asked[0] == asked[1] and len(asked[0]) == lab_rater.ASKED
    assert not set(TOLD) & {prompt.split()[0] for prompt in asked[0]}


# Rules.


def arm(**changes):
    return {"gap": 0.0, "decodability": [0.9, 0.4], "out_of_context": 0.5} | changes


def found(**arms):
    ours = arm(gap=1.0, decodability=[0.4, 0.8], out_of_context=0.7)
    return {"SFT": arm(), "RLHF": ours, "blind": arm()} | arms


def failed(seed) -> list[int]:
    return [i for i, rule in enumerate(RULES) if not rule.judge(seed).holds]


def test_the_expected_signs_pass_every_rule():
    assert failed(found()) == []


@pytest.mark.parametrize(
    ("wrong", "rules"),
    [
        ({"RLHF": arm(gap=0.5, decodability=[0, 0.8], out_of_context=0.7)}, [0]),
        ({"RLHF": arm(gap=1, decodability=[0.9, 0.7], out_of_context=0.7)}, [1]),
        ({"SFT": arm(decodability=[0, 0.75])}, [1]),
        ({"blind": arm(gap=0.25)}, [2]),
        ({"blind": arm(decodability=[0, 0.6])}, [3]),
        ({"RLHF": arm(gap=1, decodability=[0, 0.8], out_of_context=0.6)}, [4]),
        ({"SFT": arm(out_of_context=0.7)}, [4]),
    ],
)
def test_each_rule_can_fail(wrong, rules):
    assert failed(found(**wrong)) == rules


def test_the_page_has_a_line_an_arm_in_both_tables():
    page = desk_probes.run("lab rater", "results=page")["pages"]["page.md"]
    assert "jaxrlhf lab rater seeds=[3]" in page
    assert all(page.count(f"| {name} |") == 2 for name in ("start", "SFT", "RLHF", "blind"))
    assert "![gaps](page/gaps.png)" in page
