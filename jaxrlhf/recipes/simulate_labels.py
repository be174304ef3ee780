"""`jaxrlhf simulate-labels`: pairs of sampled answers, judged by a sandbox world's labeller.

The labeller is Bradley-Terry on the world's gold reward, with a temperature and a lapse rate. Only
its verdicts are written, never gold itself: what trains on this file knows no more than a person's
labels would tell.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.data import preferences, sources
from jaxrlhf.errors import UserError
from jaxrlhf.guards.judged import Compare
from jaxrlhf.recipes import blocks, stages
from jaxrlhf.sandbox import make_world
from jaxrlhf.sandbox.labeller import Labeller, count_labels, gold_utility
from jaxrlhf.sandbox.protocol import World


class WorldConfig(Config):
    """A sandbox world."""

    name: str = Field(default="bistro", description="which world")
    seed: int = Field(default=0, ge=0, description="draws its grammar")
    settings: dict[str, float] = Field(default={}, description="the world's own settings, by name")

    def build(self) -> Any:
        return make_world(self.name, seed=self.seed, settings=self.settings)


class LabellerConfig(Config):
    """How a simulated person judges."""

    temperature: float = Field(
        default=1.0, ge=0, description="gold units a nat of log-odds; 0: never errs"
    )
    lapse: float = Field(default=0.0, ge=0, le=1, description="share of answers given at random")
    utility: str = Field(
        default="gold", description="what it cares about: the total gold, or a component of it"
    )
    soft_labels: bool = Field(
        default=False, description="write the probability instead of a drawn label"
    )


class SimulateLabelsConfig(blocks.StageConfig):
    """Judge pairs of answers."""

    samples: str | None = Field(default=None, description="samples.jsonl of `jaxrlhf sample`")
    world: WorldConfig = Field(
        default=WorldConfig(), description="whose gold reward the labeller follows"
    )
    labeller: LabellerConfig = Field(default=LabellerConfig(), description="how it judges")
    test_pairs: int = Field(
        default=0, ge=0, description="the last pairs go to test_preferences.jsonl instead"
    )


CONFIG = SimulateLabelsConfig


def run(config: SimulateLabelsConfig) -> dict[str, Any]:
    """Write `preferences.jsonl`: prompt, chosen, rejected; and label where labels are soft."""
    stage = stages.Stage(config)
    if summary := stage.summary():
        return summary
    samples = blocks.required("samples", config.samples)
    world = config.world.build()
    labeller = Labeller(
        gold_utility(world, config.labeller.utility),
        temperature=config.labeller.temperature,
        lapse=config.labeller.lapse,
        seed=config.seed,
    )
    records, labels, equal = [], [], 0
    for prompt, a, b in pairs(samples):
        if a == b:
            equal += 1
            continue
        labels.append(labeller(prompt, a, b))
        record = labeller.preference_row(prompt, a, b)
        probability = record.pop("probability")
        soft = {"label": probability} if config.labeller.soft_labels else {}
        records.append(record | soft)
    if len(records) <= config.test_pairs:
        raise UserError(f"test_pairs = {config.test_pairs}: there are only {len(records)} pairs")
    cut = len(records) - config.test_pairs
    stage.begin()
    preferences.write_rows(stage.folder / "preferences.jsonl", records[:cut])
    if config.test_pairs:
        preferences.write_rows(stage.folder / "test_preferences.jsonl", records[cut:])
    counts = count_labels(labels)
    return stage.finish(
        {
            "pairs": counts.labels,
            "equal_pairs_left_out": equal,
            "against_odds": counts.against_odds,
            "best_possible_accuracy": counts.best_accuracy,
        }
    )


def comparer(world: World, config: LabellerConfig, *, seed: int) -> Compare:
    """The labeller as guards ask it: which answer is better, of two that may have two prompts."""

    def utility(_: str, answer: str) -> float:
        prompt, _, response = answer.partition(BETWEEN)
        return world.gold(prompt, response)["gold"]

    labeller = Labeller(utility, temperature=config.temperature, lapse=config.lapse, seed=seed)
    return lambda a, b: labeller("", BETWEEN.join(a), BETWEEN.join(b)).a_preferred


BETWEEN = "\0"  # of a prompt and its answer, where one text has to hold both


def pairs(samples: str) -> Iterator[tuple[str, str, str]]:
    """Prompt and two answers: responses (0, 1), (2, 3), ... of each prompt."""
    for item in preferences.read_samples(sources.load_rows(samples)):
        for a, b in zip(item.responses[::2], item.responses[1::2], strict=False):
            yield str(item.prompt), str(a), str(b)
