"""What `jaxrlhf lab overoptimise` found: rules, fits, tables and pictures.

The rules were written down before anything was run (design notes, 3.6; signs of Gao et al. 2022,
Coste et al. 2023 and Bai et al. 2022).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from jaxrlhf import plots
from jaxrlhf.evals import overoptimisation
from jaxrlhf.evals.overoptimisation import Growth
from jaxrlhf.evals.statistics import format_interval, t_interval
from jaxrlhf.plots import Line
from jaxrlhf.recipes.experiment import Found, Outcome, Page, Rule, Table

FALL = 0.5  # standard deviations of gold, from peak to end
LEASH = 12.0  # nats: a cap on KL under which little is lost; "early" is within it
KEPT = 0.9  # of the peak, under that cap
EXPONENTS = (0.35, 0.65)  # of KL, early: 1/2 is the published one
ENSEMBLE = "{reward}, lowest of {members}"
SAYS = """Gold is in standard deviations of the first policy's answers, counted from its mean at
the start of each curve; KL is exact along sampled prefixes, nats a sequence. Reward models learn
from pairs of the first policy's answers, of which gold says the better one, and start from it;
those of another d_model from a language model of their own, made like it. PPO: {updates} updates
without a KL penalty; the value network is of one size in all arms. Best-of-n: the unbiased estimate
from {best_of} answers to each held-out prompt."""
AFTER = """Fits: R(d) = d (alpha - beta d), called best-of-n, and R(d) = d (alpha - beta ln d),
called rl (Gao et al. 2022), d = sqrt(KL), by least squares in every seed. AIC: how much lower it is
than that of the other form. Neither is claimed to be a law.

Before 12 nats there are few points: an update moves the policy by some nats there. Exponents and R²
of three points mean little.

Settings were chosen on seed 0. At a third of this learning rate gold had fallen by less than .1 SD
after 60 updates. From 100 pairs (accuracy .70) gold had not fallen after 80.

Intervals are 95 %, Student's t over seeds."""


def learned(pairs: int) -> str:
    """The name of an arm: a reward model of the policy's size."""
    return f"{pairs:,} pairs"


def of_size(pairs: int, size: int) -> str:
    """The name of an arm: a reward model of another size."""
    return f"{learned(pairs)}, d_model {size}"


def names(config: Any) -> tuple[list[str], list[str]]:
    """The arms of single reward models, and the ensemble, if there is one."""
    single = [learned(count) for count in config.pairs]
    single += [of_size(max(config.pairs), size) for size in config.sizes]
    few = learned(min(config.pairs))
    ensemble = [ENSEMBLE.format(reward=few, members=config.members)] if config.members else []
    return single, ensemble


# What a seed's arm says. Points are objects with step, kl, gold, score and held_out.


def curve(found: Found, arm: str, of: str = "curve") -> list[dict[str, float]]:
    """The points of PPO, or of best-of-n; gold in deviations from the first one's."""
    points = found["arms"][arm][of]
    start, sd = points[0]["gold"], found["gold_sd"]
    return [{**point, "gold": (point["gold"] - start) / sd} for point in points]


def best_of_n(found: Found, arm: str) -> list[dict[str, float]]:
    """The points of best-of-n, of which the first is best-of-1."""
    return curve(found, arm, "best_of_n")


def peak(points: Sequence[dict[str, float]]) -> dict[str, float]:
    return max(points, key=lambda point: point["gold"])


def within(points: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """The points before KL first exceeds the cap."""
    return list(itertools.takewhile(lambda point: point["kl"] <= LEASH, points))


def stopped_early(points: Sequence[dict[str, float]]) -> dict[str, float]:
    """Where the reward model that is not optimised scores the policy highest."""
    return max(points, key=lambda point: point["held_out"])


def early(points: Sequence[dict[str, float]], what: str = "score") -> Growth | None:
    """How fast a reward grows with KL, as long as that is within the cap."""
    start = within(points)
    gains = [point[what] - points[0][what] for point in start]
    return overoptimisation.growth([point["kl"] for point in start], gains)


# The rules.


def rules(config: Any) -> list[Rule]:
    """Two for each reward model; how sizes, amounts and remedies compare."""
    few, most = (learned(count) for count in (min(config.pairs), max(config.pairs)))
    single, ensemble = names(config)
    made = []
    for arm in single:
        says = (
            f"{arm}: gold peaks inside the run and falls by more than {FALL} SD; the score does not"
        )
        made.append(Rule(says, partial(turns, arm=arm)))
    for arm in single:
        says = f"{arm}: the last policy before {LEASH:g} nats has {KEPT:.0%} of the peak's gold"
        made.append(Rule(says, partial(holds_back, arm=arm)))
    says = f"{few}: stopped where another reward model is highest, more gold than at the end"
    made.append(Rule(says, partial(stops_well, arm=few)))
    if ensemble:
        says = f"the lowest of {config.members} ends with more gold than one of them"
        made.append(Rule(says, partial(ends_above, arm=ensemble[0], other=few)))
    if few != most:
        says = f"{most} peak higher than {few}"
        made.append(Rule(says, partial(peaks_above, arm=most, other=few)))
    if config.sizes:
        small = of_size(max(config.pairs), min(config.sizes))
        says = f"{most}: the policy's size peaks higher than d_model {min(config.sizes)}"
        made.append(Rule(says, partial(peaks_above, arm=most, other=small)))
    low, high = EXPONENTS
    says = f"{most}: before {LEASH:g} nats the score grows as KL to the power of {low} to {high}"
    made.append(Rule(says, partial(grows_by_root, arm=most)))
    return made


def turns(found: Found, arm: str) -> Outcome:
    """Gold has its peak strictly inside the run, and falls, while the score does not."""
    points = curve(found, arm)
    top, end = peak(points), points[-1]
    inside = top not in (points[0], end)
    holds = inside and top["gold"] - end["gold"] > FALL and end["score"] >= top["score"]
    scores = f"score {top['score']:.2f} to {end['score']:.2f}"
    return Outcome(holds, f"{top['gold']:+.2f} to {end['gold']:+.2f} ({scores})")


def holds_back(found: Found, arm: str) -> Outcome:
    points = curve(found, arm)
    kept, top = within(points)[-1]["gold"], peak(points)["gold"]
    return Outcome(kept >= KEPT * top, f"{kept:+.2f} of {top:+.2f}")


def stops_well(found: Found, arm: str) -> Outcome:
    points = curve(found, arm)
    kept, end = stopped_early(points)["gold"], points[-1]["gold"]
    return Outcome(kept > end, f"{kept:+.2f}, end {end:+.2f}")


def ends_above(found: Found, arm: str, other: str) -> Outcome:
    mine, its = (curve(found, name)[-1]["gold"] for name in (arm, other))
    return Outcome(mine > its, f"{mine:+.2f}, one {its:+.2f}")


def peaks_above(found: Found, arm: str, other: str) -> Outcome:
    mine, its = (peak(curve(found, name))["gold"] for name in (arm, other))
    return Outcome(mine > its, f"{mine:+.2f} against {its:+.2f}")


def grows_by_root(found: Found, arm: str) -> Outcome:
    grown = early(curve(found, arm))
    if grown is None:
        return Outcome(False, "too few points")
    low, high = EXPONENTS
    return Outcome(low <= grown.exponent <= high, f"{grown.exponent:.2f}")


# The page.


def page(config: Any, found: Sequence[Found]) -> Page:
    """Tables and pictures."""
    single, ensemble = names(config)
    arms = [*single, *ensemble]
    early_lines = [line for arm in arms for line in grown(arm, found)]
    return Page(
        title="Over-optimisation",
        command="jaxrlhf lab overoptimise",
        says=SAYS.format(updates=config.ppo_updates, best_of=config.best_of),
        tables=[
            Table("PPO", PPO_HEADERS, [ppo_line(arm, found) for arm in arms]),
            Table("Ways to lose less, and best-of-n", LESS, [less(arm, found) for arm in arms]),
            Table("Fits", FITS, [line for arm in arms for line in fits(arm, found)]),
            Table(f"Before {LEASH:g} nats", EARLY, early_lines),
        ],
        pictures=pictures(config, found),
        after=AFTER,
    )


def pictures(config: Any, found: Sequence[Found]) -> dict[str, Any]:
    """By amount of data, by size, with the remedies; and what the reward models say."""
    single, ensemble = names(config)
    few, most = (learned(count) for count in (min(config.pairs), max(config.pairs)))
    of_pairs, of_sizes = single[: len(config.pairs)], single[len(config.pairs) :]
    drawn = {"gold-pairs": gold_picture(of_pairs, found)}
    if of_sizes:
        drawn["gold-sizes"] = gold_picture([*of_sizes, most], found)
    drawn["gold-remedies"] = gold_picture([few, *ensemble], found, stopped=[few])
    return {**drawn, "rewards": rewards_picture(few, found)}


PPO_HEADERS = (
    *("reward", "accuracy", "peak of gold", "at KL", "gold at the end", "KL at the end"),
    *("score at the peak", "at the end"),
)
LESS = (
    *("reward", "gold at the peak", "at the end", f"last before {LEASH:g} nats"),
    *("stopped by another reward model", "best-of-n, the most", "at KL"),
)
FITS = ("reward", "curve", "form", "alpha", "beta", "R²", "AIC lower by", "better in")
EARLY = ("reward", "of", "seeds", "a sqrt(nat)", "R² of the line", "exponent of KL")


def over(found: Sequence[Found], of: Callable[[Found], float]) -> str:
    """Mean and interval over seeds."""
    return format_interval(t_interval([of(seed) for seed in found]))


def ppo_line(arm: str, found: Sequence[Found]) -> list[str]:
    tops = [peak(curve(seed, arm)) for seed in found]
    ends = [curve(seed, arm)[-1] for seed in found]
    told = [(tops, "gold"), (tops, "kl"), (ends, "gold"), (ends, "kl"), (tops, "score")]
    told.append((ends, "score"))
    accuracy = over(found, lambda seed: seed["arms"][arm]["accuracy"])
    figures = [format_interval(t_interval([x[name] for x in at])) for at, name in told]
    return [arm, accuracy, *figures]


def less(arm: str, found: Sequence[Found]) -> list[str]:
    ways: list[Callable[[list[dict[str, float]]], dict[str, float]]]
    ways = [peak, lambda points: points[-1], lambda points: within(points)[-1], stopped_early]
    figures = [over(found, lambda seed, way=way: way(curve(seed, arm))["gold"]) for way in ways]
    best = over(found, lambda seed: best_of_n(seed, arm)[-1]["gold"])
    return [arm, *figures, best, f"{best_of_n(found[0], arm)[-1]['kl']:.2f}"]


def fits(arm: str, found: Sequence[Found]) -> list[list[str]]:
    """Both published forms on both curves."""
    lines = []
    for name, points in (("PPO", curve), ("best-of-n", best_of_n)):
        tried = [both_forms(points(seed, arm)) for seed in found]
        each = [forms for forms in tried if forms is not None]
        if len(each) < len(tried):
            continue
        for number, form in enumerate(overoptimisation.FORMS):
            mine = [forms[number] for forms in each]
            lower = [forms[1 - number].aic - forms[number].aic for forms in each]
            figures = [
                format_interval(t_interval([of(fit) for fit in mine]))
                for of in (lambda x: x.alpha.estimate, lambda x: x.beta.estimate, lambda x: x.r2)
            ]
            better = f"{sum(x > 0 for x in lower)} of {len(lower)}"
            lines.append([arm, name, form, *figures, f"{np.mean(lower):.1f}", better])
    return lines


def both_forms(points: Sequence[dict[str, float]]) -> list[overoptimisation.Fit] | None:
    """None where too few points have a KL of their own above 0."""
    kl, values = ([point[name] for point in points] for name in ("kl", "gold"))
    if len({x for x in kl if x > 0}) < 4:
        return None
    return [overoptimisation.fit(kl, values, form) for form in overoptimisation.FORMS]


def grown(arm: str, found: Sequence[Found]) -> list[list[str]]:
    """How score and gold grow early, in the seeds that have three points or more there."""
    lines = []
    for what in ("score", "gold"):
        each = [one for seed in found if (one := early(curve(seed, arm), what))]
        if each:
            columns = [[getattr(one, name) for one in each] for name in Growth._fields]
            figures = [format_interval(t_interval(x)) for x in columns]
            lines.append([arm, what, f"{len(each)} of {len(found)}", *figures])
    return lines


def gold_picture(arms: Sequence[str], found: Sequence[Found], stopped: Sequence[str] = ()) -> Any:
    """Gold over sqrt(KL), means over seeds at each evaluation; where each seed is `stopped`."""
    drawn = []
    for arm in arms:
        x, y = mean_path([curve(seed, arm) for seed in found])
        drawn.append(Line(x, y["gold"], arm, style="connected"))
    for arm in arms:
        x, y = mean_path([best_of_n(seed, arm) for seed in found])
        drawn.append(Line(x, y["gold"], f"{arm}: best-of-n", style="points"))
    for arm in stopped:
        ends = [stopped_early(curve(seed, arm)) for seed in found]
        x, y = [math.sqrt(end["kl"]) for end in ends], [end["gold"] for end in ends]
        says = f"{arm}: where another reward model stops each seed"
        drawn.append(Line(x, y, says, style="points"))
    return plots.lines(drawn, xlabel=ROOT, ylabel="gold, SD", title="Gold over sqrt(KL)")


def rewards_picture(arm: str, found: Sequence[Found]) -> Any:
    """Gold and what the reward models say."""
    x, y = mean_path([curve(seed, arm) for seed in found])
    drawn = [
        Line(x, y["gold"], "gold, SD"),
        Line(x, y["score"], "score that is optimised", style="dashed"),
        Line(x, y["held_out"], "another reward model", style="dotted"),
    ]
    return plots.lines(drawn, xlabel=ROOT, ylabel="reward", title=arm)


ROOT = "sqrt(KL to the first policy), nats"


def mean_path(curves: Sequence[Sequence[dict[str, float]]]) -> tuple[list[float], dict[str, Any]]:
    """sqrt(KL) and every other figure, means over seeds point by point."""
    x = np.mean([[math.sqrt(max(p["kl"], 0)) for p in points] for points in curves], axis=0)
    names = [name for name in curves[0][0] if name != "kl"]
    y = {name: np.mean([[p[name] for p in points] for points in curves], axis=0) for name in names}
    return x.tolist(), y
