"""`jaxrlhf cai label`: pairs of sampled answers, labelled by a model under a constitution.

    jaxrlhf cai label model_path=judge samples=runs/samples/samples.jsonl
        constitution=default output_dir=runs/labels

The judge is a model here (`model_path`) or one behind an OpenAI-compatible endpoint
(`server.url`); it need not be the one that answered. `labels.jsonl` has a row a pair: questions,
log-probs of both options in both orders, probability, entropy. `preferences.jsonl` has the pairs to
train a preference model on, mixed with people's by a stated ratio: prompt, chosen, rejected, label,
weight. A run that was killed goes on at the pair where it was. Source: Bai et al. 2022 (arXiv
2212.08073), section 4.
"""

from typing import Any, Self

import pydantic
from pydantic import Field

from jaxrlhf.constitutional.critique import discards
from jaxrlhf.constitutional.judge import Pair, preference_rows
from jaxrlhf.constitutional.mixture import mixed
from jaxrlhf.data import formats, preferences, sources
from jaxrlhf.data.columns import Content
from jaxrlhf.errors import UserError
from jaxrlhf.recipes import blocks, constitutions, rows, stages
from jaxrlhf.recipes.constitutions import JudgeConfig


class LabelConfig(JudgeConfig):
    """Label pairs of answers."""

    samples: str | None = Field(default=None, description="samples.jsonl of `jaxrlhf sample`")
    hard: bool = Field(default=False, description="labels are 1, not the judge's probability")
    clamp: tuple[float, float] | None = Field(
        default=None,
        description="cut probabilities to these; after reasoning the paper has [0.4, 0.6]",
    )
    ai_label_weight: float = Field(
        default=1.0, gt=0, description="weight of each pair in the loss, against people's pairs"
    )
    human: tuple[str, ...] = Field(
        default=(), description="files of people's pairs for preferences.jsonl"
    )
    human_ratio: float | None = Field(
        default=None, ge=0, description="of those, how many for each labelled pair; null: all"
    )
    test_pairs: int = Field(
        default=0, ge=0, description="the last pairs go to test_preferences.jsonl instead"
    )

    @pydantic.model_validator(mode="after")
    def _clamp_is_one(self) -> Self:
        if self.clamp and not (self.clamp[0] <= 0.5 and abs(sum(self.clamp) - 1) < 1e-9):
            raise ValueError(f"clamp = {list(self.clamp)}: must be [x, 1 - x] with x at most 0.5")
        return self


CONFIG = LabelConfig
EXAMPLE = (
    "jaxrlhf cai label model_path=judge samples=runs/samples/samples.jsonl constitution=default"
)


def run(config: LabelConfig) -> dict[str, Any]:
    """Write `labels.jsonl` and `preferences.jsonl`; the summary has what labels look like."""
    stage = stages.Stage(config)
    if summary := stage.summary():
        return summary
    constitution = constitutions.load(config).only(comparisons=config.comparisons)
    asked, equal = pairs(blocks.required("samples", config.samples))
    human = human_rows(config.human)
    model = constitutions.judge(config)

    estimate = constitutions.estimate(config, model, asked, constitution)
    if estimate and config.server.estimate_only:
        return estimate._asdict()
    with constitutions.judged(config, stage, "labels.jsonl", model, asked, constitution) as labels:
        discarded = discards(labels)
        made = preference_rows(
            labels, hard=config.hard, clamp=config.clamp, weight=config.ai_label_weight
        )
        if len(made) <= config.test_pairs:
            raise UserError(f"test_pairs = {config.test_pairs}: there are only {len(made)} pairs")
        cut = len(made) - config.test_pairs
        preferences.write_rows(stage.folder / "labels.jsonl", labels)
        whole = mixed(made[:cut], human, ratio=config.human_ratio, seed=config.seed, name="human")
        preferences.write_rows(stage.folder / "preferences.jsonl", whole)
        if config.test_pairs:
            preferences.write_rows(stage.folder / "test_preferences.jsonl", made[cut:])
        return stage.finish(
            {
                "pairs": len(made),
                "human": len(whole) - cut,
                "equal_pairs_left_out": equal,
                "discarded": sum(discarded.values()),
                "reasons": discarded,
                **constitutions.describe(labels),
            }
        )


def pairs(samples: str) -> tuple[list[Pair], int]:
    """Answers (0, 1), (2, 3), ... of each prompt, and how many pairs were left out as equal."""
    found = [
        Pair(item.prompt, said(a), said(b))
        for item in preferences.read_samples(sources.load_rows(samples))
        for a, b in zip(item.responses[::2], item.responses[1::2], strict=False)
    ]
    different = [pair for pair in found if pair.a != pair.b]
    if not different:
        raise UserError(f"samples = {samples}: no two different answers to one prompt")
    return different, len(found) - len(different)


def said(response: Content) -> str:
    """The text of an answer."""
    text = response if isinstance(response, str) else response[-1]["content"]
    return text.strip()


def human_rows(files: tuple[str, ...]) -> list[dict[str, Any]]:
    """People's pairs: prompt, chosen, rejected, label, margin, weight."""
    if not files:
        return []
    found = formats.preferences(rows.load(files, limit=None, field="human"))
    return [preferences.to_record(item) for item in found]
