"""`jaxrlhf lab sign-flip`: the fault, one cell run for real on the tiny models, rules and pages."""

import json

import jax.numpy as jnp
import micro
import numpy as np
import pytest

from jaxrlhf.algorithms import ppo
from jaxrlhf.algorithms.ppo import Settings
from jaxrlhf.recipes import faults, lab_sign_flip_report
from jaxrlhf.recipes.lab_sign_flip import SignFlipConfig
from jaxrlhf.recipes.lab_sign_flip_report import RULES, Cell, Guarded, Round


@pytest.mark.parametrize(("reward", "kl"), [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_the_fault_is_the_net_sign_of_score_and_kl(reward, kl):
    """One token, score 2, KL .5, β .1: ±2 ∓ .05; and afterwards all is as it was."""
    rows = {
        "mask": jnp.ones((1, 2), bool),
        "log_probs": jnp.full((1, 1), -1.0),
        "ref_log_probs": jnp.full((1, 1), -1.5),
        "shaped_scores": jnp.full(1, 2.0),
    }
    right = ppo.token_rewards
    with faults.net_signs(reward=reward, kl=kl):
        found = float(ppo.token_rewards(rows, jnp.float32(0.1), Settings())[0, 0])
    assert found == pytest.approx(reward * 2 - kl * 0.1 * 0.5)
    assert ppo.token_rewards is right
    with pytest.raises(RuntimeError), faults.net_signs(reward=-1, kl=1):
        raise RuntimeError
    assert ppo.token_rewards is right


def test_the_incident_is_run_with_and_without_guards(tmp_path):
    """Two rounds of one update; the tiny reward model is no better than chance, which does not
    matter to the sign test."""
    folder = micro.copy(tmp_path)
    code = micro.command(
        folder,
        *("lab", "sign-flip", "config=micro.yaml", "output_dir=lab", "results=results"),
        *("cells=[incident]", "rounds=2", "updates=1", "pairs=24", "test_pairs=8"),
    )
    assert code == 0
    root = folder / "lab" / "seed-0"
    guarded, loose = (
        json.loads((root / f"incident-{kind}" / "guards.json").read_text())
        for kind in ("guarded", "unguarded")
    )
    assert guarded["stopped"] == 0 and "sign_test" in guarded["found"]
    assert loose["stopped"] is None and loose["found"]["sign_test"]["first"] == 0
    assert not (root / "incident-guarded" / "checkpoints").joinpath("1").exists()
    done = json.loads((root / "incident-unguarded" / "done.json").read_text())
    assert done["steps"] == 2 and done["guards/readings"] < -0.9
    # After the first round a reward model was trained on the labels of before and the new ones.
    made = root / "incident-unguarded" / "round-1"
    labelled = [json.loads(line) for line in (made / "train.jsonl").read_text().splitlines()]
    assert 0 < len(labelled) <= 16 and set(labelled[0]) == {"prompt", "chosen", "rejected"}
    assert (made / "reward" / "done.json").exists()
    assert not (root / "incident-unguarded" / "round-2").exists()
    page = (folder / "results.md").read_text()
    assert "| incident | legal share at least .95: fluent | 0 of 1 | FAIL |" in page
    assert "| 0 | incident | 0 | " in page and "sign_test 0" in page
    assert (folder / "results" / "rude.png").stat().st_size > 1000


# Rules.

START = Round(0, -0.6, 0.98, 0.03, 0.0, 0.8)
ENDS = {
    "normal": Round(80, 4.0, 0.98, 0.01, 5.0, None),
    "incident": Round(80, -9.0, 0.97, 0.2, 5.0, None),
    "unbounded": Round(80, 1.0, 0.1, 0.0, 120.0, None),
    "inverted": Round(80, -20.0, 0.1, 0.1, 120.0, None),
}


def cell(name: str, *, seed: int = 0, **changes) -> Cell:
    stopped = Guarded(None if name == "normal" else 0, (), 0, "")
    found = {} if name == "normal" else {"sign_test": 0, "andon": 1}
    made = Cell(seed, name, [START, ENDS[name]], found, stopped, "")
    return made._replace(**changes)


def failed(*cells: Cell) -> list[str]:
    lines = [lab_sign_flip_report.verdict(rule, cells) for rule in RULES]
    return [says for name, says, _, verdict in lines if verdict == "FAIL" and has(cells, name)]


def has(cells, name: str) -> bool:
    return any(cell.name == name for cell in cells)


def test_the_published_signs_pass_every_rule():
    assert failed(*map(cell, ENDS)) == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (cell("normal", rounds=[START, START._replace(gold=-0.7)]), "gold rises"),
        (cell("normal", found={"length": 60}), "no guard stops it"),
        (cell("incident", rounds=[START, ENDS["incident"]._replace(legal=0.9)]), "legal share"),
        (cell("incident", rounds=[START, ENDS["incident"]._replace(gold=-5.5)]), "gold falls"),
        (
            cell("incident", rounds=[START, ENDS["incident"]._replace(rude=0.02)]),
            "the share of rude",
        ),
        (
            cell("incident", rounds=[START._replace(accuracy=0.5), ENDS["incident"]]),
            "reward models",
        ),
        (cell("incident", guarded=Guarded(4, (), 32, "")), "its guards stop it within 3"),
        (cell("incident", guarded=Guarded(3, (), 72, "")), "its guards stop it within 3"),
        (cell("incident", guarded=Guarded(None, (), 0, "")), "its guards stop it within 3"),
        (cell("incident", found={"sign_test": 0, "andon": 4}), "labellers alone"),
        (
            cell("unbounded", rounds=[START, ENDS["unbounded"]._replace(gold=-1)]),
            "gold rises above",
        ),
        (cell("unbounded", guarded=Guarded(None, (), 0, "")), "its guards stop it"),
        (
            cell("inverted", rounds=[START, ENDS["inverted"]._replace(legal=0.6)]),
            "legal share below",
        ),
    ],
)
def test_each_rule_can_fail(wrong, says):
    assert [found[: len(says)] for found in failed(wrong)] == [says]


def test_a_rule_passes_in_four_seeds_of_five_and_not_in_three():
    bad = [START, ENDS["normal"]._replace(gold=-2)]
    cells = [cell("normal", seed=i) for i in range(4)]
    assert failed(*cells, cell("normal", seed=4, rounds=bad)) == []
    assert failed(*cells[:3], *[cell("normal", rounds=bad)] * 2) == ["gold rises"]


def test_a_rule_about_guards_passes_in_every_seed_alone():
    cells = [cell("normal", seed=i) for i in range(19)]
    alarm = cell("normal", seed=19, found={"length": 60})
    assert failed(*cells, alarm) == ["no guard stops it, nor would have in any round"]


def test_of_one_round_only_guards_are_judged():
    cells = [cell(name) for name in ENDS]
    found = lab_sign_flip_report.asked(cells, rounds=1)
    assert [rule.cell for rule in found] == [
        *("normal", "incident", "incident", "unbounded", "inverted")
    ]
    assert all(rule.of_guards for rule in found)
    assert lab_sign_flip_report.asked(cells, rounds=2) == list(RULES)


def test_detection_over_seeds():
    late = Guarded(3, (), 24, "")
    cells = [
        cell("incident"),
        cell("incident", seed=1, found={"andon": 2, "length": 9}, guarded=late),
        cell("normal"),
    ]
    assert lab_sign_flip_report.stops_table(cells) == [
        ["incident", "2", "2", "1.00 [0.34, 1.00]", "3", "24"],  # Wilson: 2 / (2 + 1.96²) = .34
        ["normal", "1", "0", "0.00 [0.00, 0.79]", "", "0"],
    ]
    assert lab_sign_flip_report.seen_table(cells) == [
        ["incident", "andon", "2 of 2", "1.5", "2"],
        ["incident", "sign_test", "1 of 2", "0", "0"],
        ["incident", "length", "1 of 2", "9", "9"],
    ]


def test_a_cell_that_broke_off_is_reported():
    broken = cell("unbounded", error="step 9: value/loss is nan")
    page = lab_sign_flip_report.page(SignFlipConfig(), [broken], [], folder="out")
    assert "Seed 0, cell unbounded broke off: step 9: value/loss is nan" in page
    assert np.isfinite(broken.rounds[-1].gold)
