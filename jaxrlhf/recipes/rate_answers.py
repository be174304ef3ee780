"""`jaxrlhf rate-answers`: comparisons of several answers to a prompt, as ratings and soft labels.

    jaxrlhf rate-answers verdicts.jsonl output_dir=runs/rated
    jaxrlhf reward data.train=[runs/rated/preferences.jsonl] ...

The answers to each prompt are rated by Bradley-Terry with a prior. answers.jsonl has every answer
with its `rating` (nats, mean 0 of the prompt), its standard `error`, and a `weight` of 1/error^2,
mean 1, for a regression. preferences.jsonl has pairs of answers as `jaxrlhf reward` reads them:

- target: soft        `label` is sigmoid(difference of the ratings)
- target: margin      `margin` is that difference, in nats
- target: regression  `margin` likewise and `weight` 1/error^2 of it, mean 1: for loss=regression

A rating pools what is known of an answer, so that pairs nobody compared get a label too. Where
answers were compared less than about eight times, a reward model that is trained on the verdicts
themselves learns more.
"""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from scipy import special

from jaxrlhf.config import Config
from jaxrlhf.data import preferences, sources
from jaxrlhf.data.columns import Content
from jaxrlhf.data.judgements import comparisons
from jaxrlhf.data.rows import OnBadRow
from jaxrlhf.evals import pools
from jaxrlhf.evals.pools import Pool, PoolRatings
from jaxrlhf.progress import console
from jaxrlhf.recipes import stages


class RateAnswersConfig(Config):
    """Rate answers."""

    comparisons: str = Field(description="a file of verdicts (prompt, a, b, verdict) or pairs")
    output_dir: str = Field(
        default="runs/rated", description="folder for answers.jsonl and preferences.jsonl"
    )
    columns: dict[str, str] = Field(
        default={}, description="prompt, a, b or label -> the file's name for it"
    )
    outcomes: dict[str, float] = Field(
        default={}, description="what the file says of the better one -> 1 (a), 0 (b) or 0.5 (tie)"
    )
    limit: int | None = Field(default=None, ge=1, description="rows read; null: all")
    on_bad_row: OnBadRow = Field(default="error", description="or skip and count bad rows")
    prior: float = Field(
        default=1.0, gt=0, description="precision of answers around their mean, 1/nats^2"
    )
    pairs: Literal["compared", "all"] = Field(
        default="all", description="which pairs of a prompt's answers become rows"
    )
    target: Literal["soft", "margin", "regression"] = Field(
        default="soft", description="what a rating difference becomes"
    )


CONFIG = RateAnswersConfig
EXAMPLE = "jaxrlhf rate-answers verdicts.jsonl output_dir=runs/rated"


class Asked:
    """The answers to one prompt, and what was said of them."""

    def __init__(self, prompt: Content):
        self.prompt = prompt
        self.answers: list[Content] = []
        self.games: list[tuple[int, int, float]] = []

    def add(self, a: Content, b: Content, outcome: float) -> None:
        for answer in (a, b):
            if answer not in self.answers:
                self.answers.append(answer)
        self.games.append((self.answers.index(a), self.answers.index(b), outcome))

    def pool(self) -> Pool:
        first, second, outcomes = zip(*self.games, strict=True)
        return Pool(len(self.answers), first, second, outcomes)


def run(config: RateAnswersConfig) -> dict[str, Any]:
    """Write both files; the summary has counts and how sure the ratings are."""
    found = comparisons(
        sources.load_rows(config.comparisons, limit=config.limit),
        columns=config.columns,
        outcomes=config.outcomes,
        on_bad_row=config.on_bad_row,
    )
    prompts: dict[str, Asked] = {}
    for x in found:
        prompts.setdefault(repr(x.prompt), Asked(x.prompt)).add(x.a, x.b, x.outcome)
    asked = list(prompts.values())
    rated = pools.rate([x.pool() for x in asked], prior=config.prior)
    folder = Path(config.output_dir)
    stages.make_folder(folder)
    answers = preferences.write_rows(folder / "answers.jsonl", answer_rows(asked, rated))
    pairs = preferences.write_rows(folder / "preferences.jsonl", pair_rows(config, asked, rated))
    summary = {
        "prompts": len(asked),
        "answers": answers,
        "comparisons": len(found),
        "comparisons_an_answer": 2 * len(found) / answers,
        "pairs": pairs,
        "mean_error": float(np.concatenate([x.errors for x in rated]).mean()),
    }
    console.print(
        f"{answers:,} answers to {len(asked):,} prompts, {summary['comparisons_an_answer']:.1f} "
        f"comparisons an answer: ratings to ±{summary['mean_error']:.2f} nats; {pairs:,} pairs in "
        f"{folder}/preferences.jsonl",
        highlight=False,
        soft_wrap=True,
    )
    return summary


def answer_rows(asked: list[Asked], rated: list[PoolRatings]) -> Iterator[dict[str, Any]]:
    """A row an answer."""
    mean = np.concatenate([x.errors**-2.0 for x in rated]).mean()
    for x, found in zip(asked, rated, strict=True):
        for answer, rating, error in zip(x.answers, found.ratings, found.errors, strict=True):
            yield {
                "prompt": x.prompt,
                "response": answer,
                "rating": float(rating),
                "error": float(error),
                "weight": float(error**-2.0 / mean),
            }


def pair_rows(
    config: RateAnswersConfig, asked: list[Asked], rated: list[PoolRatings]
) -> list[dict[str, Any]]:
    """A row a pair, the answer of higher rating chosen."""
    rows = []
    for x, found in zip(asked, rated, strict=True):
        met = {(min(i, j), max(i, j)) for i, j, _ in x.games}
        every = combinations(range(len(x.answers)), 2)
        for i, j in sorted(met) if config.pairs == "compared" else every:
            if found.ratings[i] < found.ratings[j]:
                i, j = j, i
            texts = {"prompt": x.prompt, "chosen": x.answers[i], "rejected": x.answers[j]}
            gap = float(found.ratings[i] - found.ratings[j])
            rows.append(texts | said(config.target, gap, float(found.gap_errors[i, j])))
    if config.target == "regression":
        mean = float(np.mean([row["weight"] for row in rows]))
        for row in rows:
            row["weight"] /= mean
    return rows


def said(target: str, gap: float, error: float) -> dict[str, float]:
    """What a reward model is told of a rating difference."""
    if target == "soft":
        return {"label": float(special.expit(gap))}
    return {"margin": gap} | ({"weight": error**-2.0} if target == "regression" else {})
