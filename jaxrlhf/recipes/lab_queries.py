"""`jaxrlhf lab queries`: pairs chosen by an ensemble against random ones, at equal label budgets.

A pool of pairs of the first policy's answers is labelled step by step. Every arm begins with the
same random pairs; at each budget an ensemble is trained, each member on a bootstrap sample of the
labels so far (Christiano et al. 2017, 2.2.4), and the arm's rule chooses the pairs up to the next
budget. The figure is the gold accuracy of the members' mean score, for random choice too.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from jaxrlhf.data import sources
from jaxrlhf.errors import ConfigError
from jaxrlhf.evals import acquisition
from jaxrlhf.labelling import records
from jaxrlhf.labelling.records import Pair
from jaxrlhf.recipes import lab_reward, queries
from jaxrlhf.recipes.lab_reward import Lab, LabConfig, Words
from jaxrlhf.recipes.queries import By, QueriesConfig
from jaxrlhf.sandbox.labeller import Labeller, gold_utility
from jaxrlhf.sandbox.protocol import generator


class LabQueriesConfig(LabConfig):
    """Active queries against random ones."""

    output_dir: str = Field(default="runs/lab/queries", description="a folder a seed goes in here")
    pool: int = Field(default=1600, ge=2, description="pairs that may be asked about")
    budgets: tuple[int, ...] = Field(
        default=(100, 200, 400), min_length=2, description="labels at which all are compared"
    )
    members: int = Field(default=3, ge=2, description="reward models of an ensemble")
    arms: tuple[By, ...] = Field(
        default=("random", "disagreement", "information"),
        min_length=1,
        description="how pairs are chosen",
    )


CONFIG = LabQueriesConfig
EXAMPLE = "jaxrlhf lab queries results=out"
SAYS = """{pool:,} pairs of the first policy's answers may be asked about. Every arm begins with the
same {first} random ones; at each budget {members} reward models are trained for {updates} updates,
each on a bootstrap sample of the labels so far, and the arm chooses the pairs up to the next budget
by what they say of those left. Gold accuracy of their mean score on held-out pairs. The labeller is
Bradley-Terry on gold, so labels of close pairs are close to coin flips."""


def run(config: LabQueriesConfig) -> dict[str, Any]:
    """Run every seed, print the table, write the page; the summary has means and differences."""
    if list(config.budgets) != sorted(set(config.budgets)) or config.budgets[-1] > config.pool:
        raise ConfigError(
            f"budgets = {list(config.budgets)}: must rise, up to at most pool = {config.pool}"
        )
    found = lab_reward.over_seeds(config, lambda lab: run_seed(config, lab))
    says = SAYS.format(
        pool=config.pool, first=config.budgets[0], members=config.members, updates=config.updates
    )
    words = Words(
        title="Active queries against random ones",
        command="jaxrlhf lab queries",
        axis="labels",
        figure="gold accuracy",
        control="random",
        says=says,
    )
    return lab_reward.report(config, words, found)


def run_seed(config: LabQueriesConfig, lab: Lab) -> dict[tuple[str, int], float]:
    """Gold accuracy by arm and budget."""
    pool = pairs(lab, config.pool)
    test = [
        records.make_pair({}, row["prompt"], row["chosen"], row["rejected"])
        for row in sources.load_rows(lab.test)
    ]
    labeller = Labeller(
        gold_utility(lab.world),
        temperature=lab.pipeline.label.labeller.temperature,
        lapse=lab.pipeline.label.labeller.lapse,
        seed=lab.seed,
    )
    rows = [
        {"prompt": pair.prompt, **_verdict(labeller, pair)} for pair in pool
    ]  # of the whole pool; an arm sees those it asks for
    order = acquisition.highest(acquisition.random(len(pool), seed=lab.seed), len(pool))
    figures = {}
    for arm in config.arms:
        asked = list(order[: config.budgets[0]])
        for i, budget in enumerate(config.budgets):
            where = f"{arm}/{budget}" if i else "first"
            ensemble = [
                lab_reward.train(
                    lab,
                    f"{where}/member-{member}",
                    resampled([rows[j] for j in asked], lab.seed, budget, member),
                    seed=member,
                ).model
                for member in range(config.members)
            ]
            figures[arm, budget] = float((gaps(lab, ensemble, test).mean(axis=0) > 0).mean())
            if budget == config.budgets[-1]:
                break
            left = [j for j in order if j not in set(asked)]
            more = config.budgets[i + 1] - budget
            worth = priorities(arm, lab, ensemble, [pool[j] for j in left])
            asked += [left[j] for j in acquisition.highest(worth, more)]
    return figures


def pairs(lab: Lab, count: int) -> list[Pair]:
    """Different answers to a prompt, two by two."""
    found: dict[str, Pair] = {}
    for row in lab.answers(prompts=count, each=2):
        a, b = row["responses"]
        if a != b:
            pair = records.make_pair({}, row["prompt"], a, b)
            found.setdefault(pair.pair_id, pair)
    return list(found.values())


def priorities(arm: By, lab: Lab, ensemble: Sequence[str], left: Sequence[Pair]) -> np.ndarray:
    """`[N]` what an arm thinks of the pairs that are left; they stand in a random order."""
    if arm == "random":
        return np.zeros(len(left))
    how = acquisition.disagreement if arm == "disagreement" else acquisition.information
    return how(gaps(lab, ensemble, left))


def gaps(lab: Lab, ensemble: Sequence[str], asked: Sequence[Pair]) -> np.ndarray:
    """`[M, N]` nats by which a is better."""
    settings = QueriesConfig(max_length=lab.pipeline.reward.max_length, batch_size=256)
    return np.stack([queries.gaps_of(settings, path, asked) for path in ensemble])


def resampled(rows: Sequence[dict], *parts: int) -> list[dict]:
    """As many rows, drawn with replacement."""
    drawn = generator("bootstrap", *parts).integers(len(rows), size=len(rows))
    return [rows[int(i)] for i in drawn]


def _verdict(labeller: Labeller, pair: Pair) -> dict[str, Any]:
    row = labeller.preference_row(str(pair.prompt), str(pair.a), str(pair.b))
    return {side: row[side] for side in ("chosen", "rejected")}
