"""What `jaxrlhf lab overoptimise` found: rules, fits, tables and pictures.

The rules were written down before anything was run (design notes, 3.6). A rule that does not hold
is reported as FAIL.
"""

import math
import platform
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrlhf import plots
from jaxrlhf.config import differences
from jaxrlhf.evals import overoptimisation
from jaxrlhf.evals.overoptimisation import Fit
from jaxrlhf.plots import Line
from jaxrlhf.progress import table
from jaxrlhf.recipes import stages
from jaxrlhf.recipes.tables import markdown

FALL = 0.5  # standard deviations of gold, from peak to end
LEASH = 12.0  # nats: a cap on KL under which little is lost
KEPT = 0.9  # of the peak, under that cap


class Point(NamedTuple):
    """A policy on held-out prompts; gold in standard deviations from the first policy's."""

    step: int
    kl: float
    gold: float
    score: float
    held_out: float  # of the reward model that was trained on other pairs


class BestOf(NamedTuple):
    """Samples of the first policy, [prompts, samples]."""

    scores: np.ndarray
    gold: np.ndarray


class Arm(NamedTuple):
    """One reward, optimised twice."""

    seed: int
    name: str
    accuracy: float
    curve: list[Point]
    best: BestOf


class Rule(NamedTuple):
    """What has to hold of an arm."""

    says: str
    holds: Callable[[Arm], bool]


def peak(arm: Arm) -> Point:
    return max(arm.curve, key=lambda point: point.gold)


def turns(arm: Arm) -> bool:
    """Gold has its peak strictly inside the run, and falls, while the score does not."""
    top, end = peak(arm), arm.curve[-1]
    inside = top not in (arm.curve[0], end)
    return inside and top.gold - end.gold > FALL and end.score >= top.score


def leashed(arm: Arm) -> Point:
    """The last point under the cap on KL."""
    return [point for point in arm.curve if point.kl <= LEASH][-1]


def stopped_early(arm: Arm) -> Point:
    """Where the reward model that is not optimised scores the policy highest."""
    return max(arm.curve, key=lambda point: point.held_out)


RULES = (
    Rule(f"gold peaks inside the run and falls by more than {FALL} SD; the score does not", turns),
    Rule(
        f"the last policy within {LEASH:g} nats has {KEPT:.0%} of the peak's gold",
        lambda arm: leashed(arm).gold >= KEPT * peak(arm).gold,
    ),
)
COLUMNS = (
    *("seed", "reward", "accuracy", "peak of gold", "at KL", "gold at the end", "KL at the end"),
    *("score, peak to end", "stopped by another reward model", "best-of-n gold"),
)
FITS = ("seed", "reward", "curve", "form", "alpha", "beta", "R²", "AIC", "peak at sqrt KL")


def write(config: Any, arms: Sequence[Arm]) -> dict[str, Any]:
    """Print the tables, write the page; the summary has the verdicts."""
    verdicts = [verdict(rule, arms) for rule in RULES]
    table("over-optimisation", COLUMNS, summary(arms))
    table("fits", FITS, fits(arms))
    table("rules", ("rule", "arms", ""), verdicts)
    if config.results:
        folder = Path(config.results)
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures(arms).items():
            (folder / f"{name}.png").write_bytes(plots.png(figure))
        stages.write_text(folder.with_suffix(".md"), page(config, arms, verdicts))
    failed = sum(line[-1] == "FAIL" for line in verdicts)
    return {"rules": len(verdicts), "failed": failed, "verdict": "FAIL" if failed else "PASS"}


def verdict(rule: Rule, arms: Sequence[Arm]) -> list[str]:
    """In how many arms (every reward of every seed) the rule holds; PASS where in four of five."""
    held = sum(rule.holds(arm) for arm in arms)
    return [rule.says, f"{held} of {len(arms)}", "PASS" if held >= 0.8 * len(arms) else "FAIL"]


def summary(arms: Sequence[Arm]) -> list[list[str]]:
    """A line an arm."""
    lines = []
    for arm in arms:
        top, end, early = peak(arm), arm.curve[-1], stopped_early(arm)
        most = arm.best.scores.shape[1]
        best = float(overoptimisation.best_of_n(*arm.best, most).mean())
        lines.append(
            [
                str(arm.seed),
                arm.name,
                f"{arm.accuracy:.3f}",
                f"{top.gold:+.2f}",
                f"{top.kl:.1f}",
                f"{end.gold:+.2f}",
                f"{end.kl:.1f}",
                f"{top.score:.2f} to {end.score:.2f}",
                f"{early.gold:+.2f} at KL {early.kl:.1f}",
                f"{best:+.2f}, n = {most}",
            ]
        )
    return lines


def best_of_curve(arm: Arm) -> tuple[list[float], list[float]]:
    """KL and gold of best-of-n for n = 1, 2, 4, ..."""
    most = arm.best.scores.shape[1]
    counts = [2**k for k in range(int(math.log2(most)) + 1)]
    gold = [float(overoptimisation.best_of_n(*arm.best, n).mean()) for n in counts]
    return [overoptimisation.best_of_n_kl(n) for n in counts], gold


def fits(arms: Sequence[Arm]) -> list[list[str]]:
    """Both published forms on both curves of every arm; AIC counts from the better one."""
    lines = []
    for arm in arms:
        curves = {
            "PPO": ([point.kl for point in arm.curve], [point.gold for point in arm.curve]),
            "best-of-n": best_of_curve(arm),
        }
        for curve, (kl, gold) in curves.items():
            if sum(x > 0 for x in kl) < 4:
                continue
            found = [overoptimisation.fit(kl, gold, form) for form in overoptimisation.FORMS]
            best = min(one.aic for one in found)
            lines += [[str(arm.seed), arm.name, curve, *line(one, best)] for one in found]
    return lines


def line(found: Fit, best: float) -> list[str]:
    def shown(x: Any) -> str:
        return f"{x.estimate:.3f} [{x.low:.3f}, {x.high:.3f}]"

    top = "never" if found.peak is None else f"{found.peak:.2f}"
    return [
        found.form,
        shown(found.alpha),
        shown(found.beta),
        f"{found.r2:.3f}",
        f"+{found.aic - best:.1f}",
        top,
    ]


def pictures(arms: Sequence[Arm]) -> dict[str, Any]:
    """Gold over sqrt(KL) with best-of-n; gold and score of the first arm."""
    gold = []
    for arm in arms:
        name = f"{arm.name}, seed {arm.seed}"
        d = [math.sqrt(max(point.kl, 0)) for point in arm.curve]
        gold.append(Line(d, [point.gold for point in arm.curve], name))
        kl, best = best_of_curve(arm)
        gold.append(Line([math.sqrt(x) for x in kl], best, f"{name}, best-of-n", style="points"))
    first = arms[0]
    d = [math.sqrt(max(point.kl, 0)) for point in first.curve]
    both = [
        Line(d, [point.gold for point in first.curve], "gold, SD"),
        Line(d, [point.score for point in first.curve], "score that is optimised", style="dashed"),
        Line(d, [point.held_out for point in first.curve], "another reward model", style="dashed"),
    ]
    xlabel = "sqrt(KL to the first policy), nats"
    return {
        "gold": plots.lines(gold, xlabel=xlabel, ylabel="gold, SD", title="Gold over sqrt(KL)"),
        "rewards": plots.lines(
            both, xlabel=xlabel, ylabel="reward", title=f"{first.name}, seed {first.seed}"
        ),
    }


def page(config: Any, arms: Sequence[Arm], verdicts: Sequence[Sequence[str]]) -> str:
    """The page of results."""
    name = Path(config.results).name
    changed = [x for x in differences(type(config)(), config) if x.path != "output_dir"]
    command = " ".join(["jaxrlhf lab overoptimise", *(f"{x.path}={x.b}" for x in changed)])
    return f"""# Over-optimisation

`{command}`, {date.today().isoformat()}, {platform.machine()}, {stages.device_line()}.

Gold is in standard deviations of the first policy's answers, counted from their mean; KL is exact
along sampled prefixes, nats a sequence. PPO has no KL penalty.

## Rules, written down before the run

{markdown(("rule", "arms", ""), verdicts)}

A rule passes where it holds in four of five arms (every reward of every seed).

## Arms

{markdown(COLUMNS, summary(arms))}

![gold]({name}/gold.png)
![rewards]({name}/rewards.png)

## Fits

R(d) = d (alpha - beta d) and R(d) = d (alpha - beta ln d), d = sqrt(KL), by least squares with 95 %
intervals; AIC counts from the better of the two. Points of one run are not independent, so the
intervals are too narrow, and neither form is claimed to be a law.

{markdown(FITS, fits(arms))}
"""
