"""A log in which nothing is wrong, and for each guard one in which it alone sees a fault."""

from pathlib import Path
from typing import NamedTuple

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
    "guards/andon_labels": 8.0,
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


def panel(folder: Path, *overrides: str) -> Panel:
    config = GuardsConfig.load(None, overrides)
    made = Panel(config, folder, blind={}, lowest=list)
    made.begin([], {})
    return made


class Stop(NamedTuple):
    """After how many bad updates a run stopped, and the guards that found something."""

    after: int
    names: set[str]


NEVER = Stop(0, set())


def stopped(folder: Path, changed: dict[str, float], *overrides: str, updates: int = 6) -> Stop:
    """Two healthy updates, then these figures."""
    made = panel(folder, *overrides)
    for step in (1, 2):
        assert made.watch(step, HEALTHY) is None
    for count in range(1, updates + 1):
        if made.watch(2 + count, HEALTHY | changed):
            return Stop(count, set(made.found))
    return NEVER
