"""The page of `rounds seeds`: the rule, what every seed and round came to, and the pictures.

Takes finished seeds; nothing is computed here but means over them.
"""

import dataclasses
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from jaxrlhf import plots
from jaxrlhf.config import differences
from jaxrlhf.evals.statistics import Interval, format_interval, t_interval
from jaxrlhf.plots import Line
from jaxrlhf.recipes import report_rounds, stages
from jaxrlhf.recipes.tables import markdown

NEVER = "never"


def write(config: Any, seeds: Sequence[Any], passes: int, verdict: str) -> Path:
    """`results`.md and its pictures."""
    folder = Path(config.results)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures(config, seeds).items():
        (folder / f"{name}.png").write_bytes(plots.png(figure))
    fewest, most = config.arms[0], config.arms[-1]
    parts = [
        f"# One budget of labels, in {_list(config.arms)} rounds",
        f"    {command(config)}",
        f"{date.today().isoformat()}, {platform.machine()}, {stages.device_line()}; seeds "
        f"{', '.join(str(seed.seed) for seed in seeds)}.",
        f"{config.labels:,} labels in every arm, split evenly over its rounds; each round samples "
        "from the newest policy, trains a reward model on all labels so far, and runs PPO. "
        f"Settings: `{config.config}`.",
        f"Rule, written down before the run: where the last PPO first reaches a KL of "
        f"{config.kl:g} nats to the first policy, {most} rounds beat {fewest} by "
        f"{config.min_gain:g} standard deviations of the first policy's gold, in "
        f"{config.min_passes} of {len(config.seeds)} seeds. **{verdict}: {passes} of "
        f"{len(seeds)} that were run.**",
        "## By seed",
        markdown(*by_seed(config, seeds)),
        f"Gold gained at {config.kl:g} nats, in standard deviations of the first policy's answers "
        "to held-out prompts; *never*: the KL was not reached. Last line: mean [95 %, Student's t "
        "over seeds].",
        f"![gold against KL]({folder.name}/gold_by_kl.png)",
        "## By round",
        markdown(*by_round(seeds)),
        "Means over seeds, at the end of a round's PPO. Accuracy of the round's reward model "
        "against gold, on pairs of held-out answers: of the first policy, of the policy whose "
        "answers its newest labels compare, and of the policy that was then trained against it.",
        f"![accuracy by round]({folder.name}/accuracy.png)",
    ]
    path = folder.with_suffix(".md")
    stages.write_text(path, "\n\n".join(parts) + "\n")
    return path


def command(config: Any) -> str:
    """What made the page."""
    changed = [x for x in differences(type(config)(), config) if x.path != "output_dir"]
    return " ".join(["jaxrlhf rounds seeds", *(f"{x.path}={_value(x.b)}" for x in changed)])


def by_seed(config: Any, seeds: Sequence[Any]) -> tuple[list[str], list[list[str]]]:
    """Header and a line a seed: gold gained at the KL, by arm."""
    headers = ["seed", *(_rounds(arm) for arm in config.arms), "most against fewest", ""]
    lines = [
        [
            str(seed.seed),
            *(_number(arm.gain_at_kl) for arm in seed.arms),
            _number(seed.difference, sign=True),
            "PASS" if seed.passed else "FAIL",
        ]
        for seed in seeds
    ]
    columns = [[seed.arms[i].gain_at_kl for seed in seeds] for i in range(len(config.arms))]
    columns.append([seed.difference for seed in seeds])
    lines.append(["mean [95 %, t]", *map(_mean, columns), ""])
    return headers, lines


def by_round(seeds: Sequence[Any]) -> tuple[list[str], list[list[str]]]:
    """Header and a line an arm and round, means over seeds."""
    headers = ["arm", "round", "labels so far", "gold gained, SD", "KL, nats", "legal"]
    headers += [f"accuracy, {name} policy" for name in report_rounds.POLICIES]
    accuracies = tuple(f"accuracy_{when}" for when in report_rounds.ACCURACIES)
    names = ("labels", "gold_gain_sd", "kl", "legal_share", *accuracies)
    digits = (0, 2, 1, 3, 3, 3, 3)
    lines = []
    for i, arm in enumerate(seeds[0].arms):
        for n in range(arm.rounds):
            rows = [seed.arms[i].by_round[n] for seed in seeds]
            means = [sum(row[name] for row in rows) / len(rows) for name in names]
            figures = [f"{x:.{d}f}" for x, d in zip(means, digits, strict=True)]
            lines.append([_rounds(arm.rounds), str(n + 1), *figures])
    return headers, lines


def pictures(config: Any, seeds: Sequence[Any]) -> dict[str, Any]:
    """The last PPO of every arm (first seed), and accuracy on the new policy by round."""
    first = seeds[0]
    paths = [
        report_rounds.path(Path(arm.config.output_dir), arm.rounds, _rounds(arm.rounds))
        for arm in first.arms
    ]
    lines = []
    for i, arm in enumerate(first.arms):
        found = [
            t_interval([seed.arms[i].by_round[n]["accuracy_after"] for seed in seeds])
            for n in range(arm.rounds)
        ]
        spent = [row["labels"] for row in arm.by_round]
        line = Line(spent, [x.estimate for x in found], _rounds(arm.rounds), style="connected")
        if len(seeds) > 1:
            low, high = ([getattr(x, side) for x in found] for side in ("low", "high"))
            line = dataclasses.replace(line, low=low, high=high)
        lines.append(line)
    return {
        "gold_by_kl": plots.lines(
            paths,
            xlabel="√KL to the first policy, √nats",
            ylabel="gold, held out",
            title=f"The last round's PPO, seed {first.seed}",
        ),
        "accuracy": plots.lines(
            lines,
            xlabel="labels so far",
            ylabel="accuracy on the new policy's pairs",
            title="Reward models after every round",
        ),
    }


def _rounds(number: int) -> str:
    return "1 round" if number == 1 else f"{number} rounds"


def _list(arms: Sequence[int]) -> str:
    return f"{', '.join(map(str, arms[:-1]))} or {arms[-1]}"


def _number(x: float | None, *, sign: bool = False) -> str:
    return NEVER if x is None else f"{x:{'+' if sign else ''}.2f}"


def _mean(values: Sequence[float | None]) -> str:
    known = [x for x in values if x is not None]
    return format_interval(t_interval(known) if known else Interval(float("nan"), 0, 0))


def _value(x: Any) -> str:
    return "[" + ",".join(map(str, x)) + "]" if isinstance(x, list | tuple) else str(x)
