"""`jaxrlhf lab ratings`: what a reward model learns from the same comparisons, told in three ways.

Several answers to a prompt are compared in pairs, each answer equally often. A reward model learns

    pairs        every verdict, by Bradley-Terry
    soft labels  every two answers, with the win probability that their ratings give
    regression   rating differences by a Huber loss, weighted 1/SE^2

at equal numbers of comparisons and of updates; gold accuracy on held-out pairs is compared.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from jaxrlhf.data import preferences, sources
from jaxrlhf.recipes import lab_reward, rate_answers
from jaxrlhf.recipes.lab_reward import Lab, LabConfig, Row, Words
from jaxrlhf.recipes.rate_answers import RateAnswersConfig
from jaxrlhf.sandbox.labeller import Labeller, gold_utility
from jaxrlhf.sandbox.protocol import generator


class LabRatingsConfig(LabConfig):
    """Verdicts, soft labels of ratings, and regression onto ratings."""

    output_dir: str = Field(default="runs/lab/ratings", description="a folder a seed goes in here")
    prompts: int = Field(default=80, ge=1, description="whose answers are compared")
    answers: int = Field(default=8, ge=2, description="to each of them")
    comparisons: tuple[int, ...] = Field(
        default=(2, 4, 8, 16, 32),
        min_length=1,
        description="of an answer, at which all are compared",
    )
    prior: float = Field(
        default=0.15, gt=0, description="precision of answers around their mean, 1/nats^2"
    )


CONFIG = LabRatingsConfig
EXAMPLE = "jaxrlhf lab ratings results=out"
SAYS = """{prompts} prompts with {answers} answers of the first policy each. Every answer takes part
in as many comparisons as the first column says, each by another simulated person (Bradley-Terry on
gold). *pairs*: Bradley-Terry on the verdicts. *soft labels*: every two answers to a prompt with the
win probability of their ratings. *regression*: the same pairs, score differences onto rating
differences by a Huber loss of delta 1 nat, weight 1/SE². Ratings: Bradley-Terry with a prior of
precision {prior:g}. Every reward model gets {updates} updates. Gold accuracy on held-out pairs."""


def run(config: LabRatingsConfig) -> dict[str, Any]:
    """Run every seed, print the table, write the page; the summary has means and differences."""
    found = lab_reward.over_seeds(config, lambda lab: run_seed(config, lab))
    words = Words(
        title="Ratings as targets of a reward model",
        command="jaxrlhf lab ratings",
        axis="comparisons an answer",
        figure="gold accuracy",
        control="pairs",
        says=SAYS.format(
            prompts=config.prompts,
            answers=config.answers,
            prior=config.prior,
            updates=config.updates,
        ),
    )
    return lab_reward.report(config, words, found)


def run_seed(config: LabRatingsConfig, lab: Lab) -> dict[tuple[str, int], float]:
    """Gold accuracy by arm and comparisons an answer."""
    figures = {}
    samples = lab.answers(prompts=config.prompts, each=config.answers)
    for count in config.comparisons:
        verdicts = [row for sample in samples for row in compared(lab, sample, count)]
        where = f"comparisons-{count}"
        figures["pairs", count] = lab_reward.train(lab, f"{where}/pairs", verdicts).accuracy
        path = lab.root / where / "verdicts.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        preferences.write_rows(path, verdicts)
        soft = rated(config, path, "soft")
        figures["soft labels", count] = lab_reward.train(lab, f"{where}/soft", soft).accuracy
        gaps = rated(config, path, "regression")
        figures["regression", count] = lab_reward.train(
            lab, f"{where}/regression", gaps, loss="regression"
        ).accuracy
    return figures


def compared(lab: Lab, sample: Row, count: int) -> Iterator[Row]:
    """Verdicts on the answers to a prompt: `count` rounds, in each of which all are paired.

    More rounds begin with those of fewer.
    """
    prompt, answers = sample["prompt"], list(dict.fromkeys(sample["responses"]))
    draw = generator("comparisons", lab.seed, prompt)
    for _ in range(count):
        order = draw.permutation(len(answers))
        person = Labeller(
            gold_utility(lab.world),
            temperature=lab.pipeline.label.labeller.temperature,
            lapse=lab.pipeline.label.labeller.lapse,
            seed=int(draw.integers(2**31)),
        )
        for i, j in zip(order[::2], order[1::2], strict=False):
            row = person.preference_row(prompt, answers[i], answers[j])
            yield {side: row[side] for side in ("prompt", "chosen", "rejected")}


def rated(config: LabRatingsConfig, path: Path, target: Any) -> list[Row]:
    """What `jaxrlhf rate-answers` makes of verdicts."""
    folder = path.parent / f"rated-{target}"
    rate_answers.run(
        RateAnswersConfig(
            comparisons=str(path), output_dir=str(folder), target=target, prior=config.prior
        )
    )
    return [dict(row) for row in sources.load_rows(str(folder / "preferences.jsonl"))]
