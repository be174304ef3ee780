"""What `jaxrlhf lab noise` found: rules, tables and pictures.

The rules were written down before anything was run (design notes, 8.5: random noise costs a reward
model little, but flattens its margins; a bias passes to the policy; to tell annotators apart beats
the majority where they differ).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxrlhf import plots
from jaxrlhf.evals.statistics import format_interval, t_interval
from jaxrlhf.plots import Line
from jaxrlhf.recipes.experiment import Found, Outcome, Page, Rule, Table

MILD = 0.2  # of the labels are wrong
WAYS = ("flips", "lapse", "smoothed", "length")
CROWD = ("one", "majority", "aggregated")
SAYS = """{pairs:,} pairs of the first policy's answers, of which gold says the better one. *flips*:
a share of the labels is wrong, at random. *lapse*: the loss knows how often. *smoothed*: the labels
say so themselves. *length*: in twice that share of the pairs the longer answer is chosen, whichever
is better. The crowd: {crowd} labellers who are right in {reliability:.0%}, a share of them
adversaries who are wrong as often, {verdicts} verdicts a pair; *one* of them is used, or their
*majority*, or the soft labels of `jaxrlhf annotators` (*aggregated*). Every reward model gets
{updates} updates. Accuracy is against gold on held-out pairs; the margin is the mean distance of
their scores, in nats. PPO: {ppo} updates, gold gained
on held-out prompts.

Tried on seed 0: of 800 pairs, each seen two or three times in 60 updates, a fifth of wrong labels
took .09 of accuracy; of 1,900 pairs, the default, which 60 updates see once, .12."""


def key(way: str, share: float) -> str:
    """The name of an arm."""
    return f"{way} {share:g}"


def ordered(names: Iterable[str]) -> list[str]:
    """Arms by their way and share."""
    ways = (*WAYS, *CROWD)
    parts = [name.split() for name in names]
    parts.sort(key=lambda part: (ways.index(part[0]), float(part[1])))
    return [" ".join(part) for part in parts]


def gain(found: Found, name: str, what: str = "gold") -> float:
    """From the start of PPO to its end."""
    curve = found[name]["curve"]
    return curve[-1][what] - curve[0][what]


# The rules.


def rules(config: Any) -> list[Rule]:
    """Those whose arms were run."""
    made = []
    if 0.0 in config.errors and MILD in config.errors:
        made += [
            Rule("a fifth of the labels wrong at random costs < .05 of gold accuracy", is_robust),
            Rule("it flattens margins, to at most .9 of those without errors", is_flatter),
        ]
        if MILD in config.treated:
            made.append(Rule("and leaves at least .8 of the gold that PPO gains", keeps_gold))
    if config.treated[:1] == (MILD,):
        made += [
            Rule("judged by length as often: PPO adds 2 words more than with flips", passes_on),
            Rule("and gains less gold than with flips", costs_gold),
        ]
    if config.adversaries and max(config.adversaries) > 0:
        worst = max(config.adversaries)
        made.append(
            Rule(
                f"with {worst:.0%} adversaries, soft labels are more accurate than the majority's",
                lambda found: tells_apart(found, worst),
            )
        )
    return made


def is_robust(found: Found) -> Outcome:
    clean, noisy = (found[key("flips", share)]["accuracy"] for share in (0.0, MILD))
    return Outcome(clean - noisy < 0.05, f"{clean:.3f} to {noisy:.3f}")


def is_flatter(found: Found) -> Outcome:
    clean, noisy = (found[key("flips", share)]["margin"] for share in (0.0, MILD))
    return Outcome(noisy <= 0.9 * clean, f"{clean:.2f} to {noisy:.2f}")


def keeps_gold(found: Found) -> Outcome:
    clean, noisy = (gain(found, key("flips", share)) for share in (0.0, MILD))
    return Outcome(noisy >= 0.8 * clean > 0, f"{clean:+.2f} to {noisy:+.2f}")


def passes_on(found: Found) -> Outcome:
    flips, length = (gain(found, key(way, MILD), "length") for way in ("flips", "length"))
    return Outcome(length - flips >= 2, f"{length:+.1f}, flips {flips:+.1f}")


def costs_gold(found: Found) -> Outcome:
    flips, length = (gain(found, key(way, MILD)) for way in ("flips", "length"))
    return Outcome(length < flips, f"{length:+.2f}, flips {flips:+.2f}")


def tells_apart(found: Found, share: float) -> Outcome:
    most, soft = (found[key(way, share)]["accuracy"] for way in ("majority", "aggregated"))
    return Outcome(soft > most, f"{soft:.3f}, majority {most:.3f}")


# The page.


def page(config: Any, found: Sequence[Found]) -> Page:
    """Tables and pictures."""
    says = SAYS.format(
        pairs=config.pairs,
        crowd=config.crowd,
        reliability=config.reliability,
        verdicts=config.verdicts,
        updates=config.updates,
        ppo=config.ppo_updates,
    )
    arms = ordered(found[0])
    headers = ("labels", "wrong", "gold accuracy", "margin")
    after = ("labels", "gold gained by PPO", "words added", "KL, nats")
    return Page(
        title="Wrong labels",
        command="jaxrlhf lab noise",
        says=says,
        tables=[
            Table("Reward models", headers, [learned(name, found) for name in arms]),
            Table(
                "Policies",
                after,
                [gained(name, found) for name in arms if "curve" in found[0][name]],
            ),
        ],
        pictures={
            "errors": accuracies(found, WAYS, config.errors, "share of wrong labels"),
            "adversaries": accuracies(found, CROWD, config.adversaries, "share of adversaries"),
        },
    )


def learned(name: str, found: Sequence[Found]) -> list[str]:
    told = ("wrong", "accuracy", "margin")
    return [name, *(interval([seed[name][what] for seed in found]) for what in told)]


def gained(name: str, found: Sequence[Found]) -> list[str]:
    told = [[gain(seed, name, what) for seed in found] for what in ("gold", "length")]
    kl = [seed[name]["curve"][-1]["kl"] for seed in found]
    return [name, *map(interval, told), interval(kl)]


def interval(values: Sequence[float]) -> str:
    return format_interval(t_interval(values), digits=3)


def accuracies(
    found: Sequence[Found], ways: Sequence[str], shares: Sequence[float], xlabel: str
) -> Any:
    """Gold accuracy of the reward model over the share, a line a way."""
    drawn = []
    for way in ways:
        at = sorted(share for share in shares if key(way, share) in found[0])
        means = [t_interval([seed[key(way, x)]["accuracy"] for seed in found]) for x in at]
        drawn.append(Line(at, [mean.estimate for mean in means], way, style="connected"))
    return plots.lines(drawn, xlabel=xlabel, ylabel="gold accuracy", title="Reward models")
