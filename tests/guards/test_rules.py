"""Guards on figures: each is shown a log in which it alone sees something wrong; and its limits.

The cases are `guard_cases.py`; a case changes figures of a healthy log from some update on.
"""

import math

import pytest
from guard_cases import CASES, HEALTHY, NEVER, panel, stopped

from jaxrlhf.errors import ConfigError
from jaxrlhf.guards import judged
from jaxrlhf.guards.base import Lasting, Seen
from jaxrlhf.guards.panel import GuardsConfig


@pytest.mark.parametrize("name", CASES)
def test_only_this_guard_sees_what_is_wrong(tmp_path, name):
    case = CASES[name]
    assert stopped(tmp_path, case.wrong) == (case.after, {name})
    for mild in (f"off=[{name}]", f"warn=[{name}]", "dry_run=true"):
        assert stopped(tmp_path, case.wrong, mild) == NEVER


@pytest.mark.parametrize("name", CASES)
def test_within_its_limits_a_guard_says_nothing(tmp_path, name):
    case = CASES[name]
    assert stopped(tmp_path, case.right, updates=case.after) == NEVER
    if case.limit:
        limit = f"{name}.{case.limit}"
        assert stopped(tmp_path, case.wrong, limit, updates=case.after) == NEVER


def test_every_guard_has_a_case():
    assert {*CASES, "stop_file"} == set(GuardsConfig.names())


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"guards/push_of_kl": 0.0}, "sign_test"),
        ({"objective/kl_k3": -0.01}, "signs"),
        ({"objective/score_gain": -1.0}, "signs"),
        ({"rollout/length": 51.0}, "length"),
    ],
)
def test_the_other_side_of_a_guard(tmp_path, wrong, name):
    assert stopped(tmp_path, wrong).names == {name}


def test_a_drift_has_to_last(tmp_path):
    """Two bad updates, a good one, two bad ones: nothing; with `updates=2` the second stops."""
    bad, good = HEALTHY | {"rollout/length": 5.0}, HEALTHY

    def stops(*overrides: str) -> list[bool]:
        made = panel(tmp_path, *overrides)
        rows = [good, bad, bad, good, bad, bad]
        return [made.watch(step, row) is not None for step, row in enumerate(rows, start=1)]

    assert not any(stops())
    assert stops("length.updates=2") == [False, False, True, False, False, True]


def test_what_has_not_lasted_yet_is_not_judged_even_if_all_of_it_is_wrong():
    """Guards with an absolute limit can be wrong from the first update on."""
    seen, guard = Seen(), Lasting(updates=3)
    for count in (1, 2, 3):
        seen.add({"a": float(count)})
        assert guard.running(seen, "a", lambda x: x > 0) == (3.0 if count == 3 else None)
    assert guard.running(seen, "b", lambda x: x > 0) is None


def test_one_bad_evaluation_is_not_a_trend(tmp_path):
    low = {"guards/heldout_z": -9.0}
    assert stopped(tmp_path, low, updates=1) == NEVER
    assert stopped(tmp_path, low, "trend.evaluations=1").after == 1


def test_a_figure_that_is_not_there_is_not_judged(tmp_path):
    made = panel(tmp_path)
    assert made.watch(1, {}) is None and not made.found


def test_the_stop_file_alone_stops_a_healthy_run(tmp_path):
    made = panel(tmp_path)
    assert made.watch(1, HEALTHY) is None
    (tmp_path / "STOP").touch()
    error = made.watch(2, HEALTHY)
    assert error and "the file STOP is there; remove it to go on" in str(error)
    assert set(made.found) == {"stop_file"}
    other = panel(tmp_path, "stop_file.name=HALT")
    assert other.watch(1, HEALTHY) is None
    assert panel(tmp_path, "off=[stop_file]").watch(1, HEALTHY) is None


@pytest.mark.parametrize("field", ["off", "warn"])
def test_a_guard_that_is_not_there_cannot_be_named(field):
    with pytest.raises(ConfigError) as error:
        GuardsConfig.load(None, (f"{field}=[kl_buget]",))
    assert "no guard 'kl_buget'; did you mean 'kl_budget'?" in str(error.value)


# The cumulative sums.

STEP = math.log(0.7 / 0.3)  # .847


def test_the_sum_of_the_cord_by_hand():
    """Up by log(7/3) for each disagreement, down for each agreement, never below 0."""

    def total(*well: bool, before: float = 0.0) -> float:
        return judged.cusum(before, well, right=0.7, wrong=0.3)

    assert total(False, False, True) == pytest.approx(STEP)
    assert total(True, True, False) == pytest.approx(STEP)
    assert total(False, before=4.0) == pytest.approx(4.0 + STEP)
    # Six more disagreements than agreements: 6 · .847 = 5.08 > 5, and five are 4.24.
    assert total(*[False] * 6) > 5 > total(*[False] * 5)


def test_the_sum_of_the_win_rate_by_hand():
    """log(.3/.5) = -.511 for a win, log(.7/.5) = .336 for a loss: at one half it falls."""
    lost = judged.cusum(0.0, [False] * 4, right=0.5, wrong=0.3)
    assert lost == pytest.approx(4 * math.log(1.4))
    assert judged.cusum(lost, [True], right=0.5, wrong=0.3) == pytest.approx(lost + math.log(0.6))
    assert judged.cusum(0.0, [True, False] * 50, right=0.5, wrong=0.3) < 0.4


# What is remembered.


def test_figures_are_remembered_from_the_first_and_the_last():
    seen = Seen()
    for value in range(100):
        seen.add({"a": float(value)})
    assert seen.first("a") == 0.0 and seen.last("a", 2) == [98.0, 99.0]
    assert len(seen.last("a")) == 64
    assert seen.first("b") is None and seen.last("b") == []
