"""Guards on figures: each is shown a log in which it alone sees something wrong; and its limits.

`HEALTHY` is a run in which nothing happens. A case changes figures of it from some update on.
"""

import math
from typing import NamedTuple

import pytest

from jaxrlhf.errors import ConfigError
from jaxrlhf.guards import judged
from jaxrlhf.guards.base import Seen
from jaxrlhf.guards.panel import GuardsConfig, Panel

HEALTHY = {
    "guards/canary": 0.9,
    "guards/canary_pairs": 64.0,
    "guards/push_of_score": 0.1,
    "guards/push_of_kl": -0.1,
    "guards/readings": 1.0,
    "guards/direction_z": 1.0,
    "objective/kl_coef": 0.1,
    "objective/kl_k3": 0.5,
    "objective/score_gain": 1.0,
    "objective/kl_k1": 3.0,
    "guards/ref_log_prob": -1.5,
    "guards/entropy": 1.4,
    "rollout/repetition": 0.2,
    "rollout/length": 20.0,
    "rollout/eos_rate": 0.9,
    "guards/andon": 0.0,
    "guards/andon_agreed": 0.9,
    "guards/win_rate": 0.8,
    "guards/win_rate_sum": 0.0,
    "guards/heldout_z": 2.0,
    "guards/disagreement": 1.1,
}


class Case(NamedTuple):
    """What is wrong, what is just right, and in how many updates the guard stops the run."""

    wrong: dict[str, float]
    right: dict[str, float]
    after: int
    limit: str  # an override with which the wrong is right


# Limits are each guard's defaults, and the case stands just beyond and just within them.
CASES = {
    # 25 of 64 right: the 99 % interval ends at .55; 22 of 64: at .503; 21 of 64: at .487.
    "canary": Case({"guards/canary": 21 / 64}, {"guards/canary": 22 / 64}, 1, "min_right=0.4"),
    "sign_test": Case({"guards/push_of_score": 0.0}, {"guards/push_of_score": 1e-9}, 1, ""),
    "readings": Case(
        {"guards/readings": 0.9899}, {"guards/readings": 0.9901}, 1, "min_correlation=0.98"
    ),
    # Two healthy values of 1 and one of x: (2 + x) / √3 < -4 from x = -8.93 on.
    "direction": Case(
        {"guards/direction_z": -9.0}, {"guards/direction_z": -8.9}, 1, "standard_errors=5"
    ),
    "signs": Case({"objective/kl_coef": -1e-3}, {"objective/kl_coef": 0.0}, 1, ""),
    "kl_budget": Case({"objective/kl_k1": 50.1}, {"objective/kl_k1": 49.9}, 1, "max_kl=51"),
    "fluency": Case({"guards/ref_log_prob": -2.6}, {"guards/ref_log_prob": -2.4}, 3, "max_drop=2"),
    "entropy": Case({"guards/entropy": 0.13}, {"guards/entropy": 0.15}, 3, "min_share=0.05"),
    "repetition": Case({"rollout/repetition": 0.51}, {"rollout/repetition": 0.49}, 3, "max_rise=1"),
    "length": Case({"rollout/length": 7.9}, {"rollout/length": 8.1}, 3, "max_factor=3"),
    "eos_rate": Case({"rollout/eos_rate": 0.44}, {"rollout/eos_rate": 0.46}, 3, "min_share=0.4"),
    "andon": Case({"guards/andon": 5.1}, {"guards/andon": 4.9}, 1, "limit=6"),
    "win_rate": Case({"guards/win_rate_sum": 5.1}, {"guards/win_rate_sum": 4.9}, 1, "limit=6"),
    "trend": Case({"guards/heldout_z": -3.1}, {"guards/heldout_z": -2.9}, 2, "standard_errors=4"),
    "disagreement": Case(
        {"guards/disagreement": 2.1}, {"guards/disagreement": 1.9}, 1, "max_ratio=3"
    ),
}


def panel(folder, *overrides: str) -> Panel:
    config = GuardsConfig.load(None, overrides)
    made = Panel(config, folder, blind={}, lowest=list)
    made.begin([], {})
    return made


def stopped_after(folder, changed: dict[str, float], *overrides: str, updates: int = 6) -> int:
    """Two healthy updates, then these figures: after how many of them the run stops; 0: never."""
    made = panel(folder, *overrides)
    for step in (1, 2):
        assert made.watch(step, HEALTHY) is None
    for count in range(1, updates + 1):
        if made.watch(2 + count, HEALTHY | changed):
            stopped_after.names = set(made.found)
            return count
    return 0


@pytest.mark.parametrize("name", CASES)
def test_only_this_guard_sees_what_is_wrong(tmp_path, name):
    case = CASES[name]
    assert stopped_after(tmp_path, case.wrong) == case.after
    assert stopped_after.names == {name}
    assert stopped_after(tmp_path, case.wrong, f"off=[{name}]") == 0
    assert stopped_after(tmp_path, case.wrong, f"warn=[{name}]") == 0
    assert stopped_after(tmp_path, case.wrong, "dry_run=true") == 0


@pytest.mark.parametrize("name", CASES)
def test_within_its_limits_a_guard_says_nothing(tmp_path, name):
    case = CASES[name]
    assert stopped_after(tmp_path, case.right, updates=1) == 0
    if case.limit:
        assert stopped_after(tmp_path, case.wrong, f"{name}.{case.limit}", updates=1) == 0


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
    assert stopped_after(tmp_path, wrong) in (1, 3)
    assert stopped_after.names == {name}


def test_a_drift_has_to_last(tmp_path):
    """Two bad updates, a good one, two bad ones: nothing; with `updates=2` the second stops."""
    bad, good = HEALTHY | {"rollout/length": 5.0}, HEALTHY

    def stops(*overrides: str) -> list[bool]:
        made = panel(tmp_path, *overrides)
        rows = [good, bad, bad, good, bad, bad]
        return [made.watch(step, row) is not None for step, row in enumerate(rows, start=1)]

    assert not any(stops())
    assert stops("length.updates=2") == [False, False, True, False, False, True]


def test_one_bad_evaluation_is_not_a_trend(tmp_path):
    assert stopped_after(tmp_path, {"guards/heldout_z": -9.0}, updates=1) == 0
    assert stopped_after(tmp_path, {"guards/heldout_z": -9.0}, "trend.evaluations=1") == 1


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
