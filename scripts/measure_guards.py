"""What guards cost a PPO run: their seconds a step, read off its log.

    python scripts/measure_guards.py runs/tiny-rlhf/ppo

The first updates are left out: they compile, and the direction probe looks at them alone. Whole
runs are given too, with evaluations and all. The rules themselves (`panel.watch`) are timed here,
on the figures of this very run.
"""

import sys
import tempfile
import time
from pathlib import Path

from jaxrlhf.guards.panel import GuardsConfig, Panel
from jaxrlhf.metrics import read_metrics

STEP = ("time/generate_s", "time/score_s", "time/update_s")
GUARDS = ("time/guards_s", "time/guards_held_out_s")
LOOKED_AT = GuardsConfig().direction.updates


def seconds(row: dict[str, float], names: tuple[str, ...]) -> float:
    return sum(row.get(name, 0.0) for name in names)


def rules(rows: list[dict[str, float]]) -> float:
    """Seconds a step of all guards looking at the figures."""
    with tempfile.TemporaryDirectory() as folder:
        panel = Panel(GuardsConfig(dry_run=True), Path(folder), blind={}, lowest=list)
        panel.begin([], {})
        started = time.perf_counter()
        for row in rows:
            panel.watch(int(row["step"]), row)
        return (time.perf_counter() - started) / len(rows)


def main(folder: str) -> None:
    rows = [row for row in read_metrics(folder) if row["step"]]
    later = [row for row in rows if row["step"] > LOOKED_AT]
    judging = rules(rows)
    for name, chosen in ((f"updates after the first {LOOKED_AT}", later), ("all updates", rows)):
        guards = sum(seconds(row, GUARDS) for row in chosen) / len(chosen) + judging
        step = sum(seconds(row, STEP) for row in chosen) / len(chosen)
        share = guards / (step + guards)
        print(f"{name}: {1000 * guards:.2f} ms of {step + guards:.3f} s a step, {share:.2%}")
    print(f"of which the rules: {1000 * judging:.3f} ms")


if __name__ == "__main__":
    main(sys.argv[1])
