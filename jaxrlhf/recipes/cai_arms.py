"""The arms of the `cai` pipeline: what a preference model learns from, and where RL begins.

One set of AI labels serves every arm; what is made of them (soft, hard, clamped, their weight, or,
for a control, turned round or blanked) is decided here, as are people's pairs in their place.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pydantic
from pydantic import Field
from scipy import special

from jaxrlhf.config import Config
from jaxrlhf.constitutional.judge import preference_rows
from jaxrlhf.data import preferences, sources

NAME = r"^[a-z0-9][a-z0-9_-]*$"
SUREST = 1e-6  # probabilities are cut to this far from 0 and 1 before their log-odds are scaled


class ChainVariant(Config):
    """Critique and revision once more, otherwise than in `revise`: for comparison."""

    name: str = Field(pattern=NAME, description="of its folder, revise-NAME")
    constitution: str | None = Field(default=None, description="another one; null: the pipeline's")
    direct: bool = Field(default=False, description="revise without a critique")
    principles: int | None = Field(
        default=None, ge=1, description="use the first so many principles; null: as revise"
    )


class JudgeVariant(Config):
    """The same pairs labelled once more, otherwise than in `label`."""

    name: str = Field(pattern=NAME, description="of its folder, label-NAME, and for arms")
    constitution: str | None = Field(default=None, description="another one; null: the pipeline's")
    both_orders: bool = Field(default=True, description="ask in both orders and average")
    questions_per_pair: int = Field(default=1, ge=1, description="questions drawn for a pair")


class ArmConfig(Config):
    """A preference model, and a policy trained on it."""

    name: str = Field(pattern=NAME, description="of its folder, arms/NAME")
    start: Literal["sl", "helpful"] = Field(
        default="sl", description="the policy that RL starts from: SL-CAI, or the helpful one"
    )
    harm_labels: Literal["ai", "people", "none"] = Field(
        default="ai", description="who says what is harmless: the judge, people, or nobody"
    )
    judge: str | None = Field(default=None, description="one of judges; null: label")
    hard: bool = Field(default=False, description="AI labels are 1, not the probability")
    sharpen: float = Field(
        default=1.0,
        gt=0,
        description="log-odds of AI labels are multiplied by this: chains of thought make them "
        "over-confident",
    )
    clamp: tuple[float, float] | None = Field(
        default=None, description="AI labels are cut to these, after sharpening"
    )
    control: Literal["reversed", "half"] | None = Field(
        default=None, description="AI labels turned round, or all of them 1/2"
    )
    ai_label_weight: float = Field(
        default=1.0, gt=0, description="weight of an AI label in the loss, against people's pairs"
    )
    helpful_pairs: bool = Field(
        default=True, description="mix in people's preferences among helpful answers"
    )

    kl_coef: float | None = Field(
        default=None, ge=0, description="of its KL penalty; null: ppo.ppo.kl_coef"
    )

    @pydantic.model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.harm_labels == "none" and not self.helpful_pairs:
            raise ValueError("harm_labels: none needs helpful_pairs: nothing would be learnt")
        if self.clamp and not (0 <= self.clamp[0] <= 0.5 and np.isclose(sum(self.clamp), 1)):
            raise ValueError(f"clamp = {list(self.clamp)}: must be [x, 1 - x], x from 0 to 0.5")
        return self


def write_ai_pairs(arm: ArmConfig, labels: str | Path, path: Path) -> str:
    """The judge's labels as this arm has them, in a file of preference pairs."""
    rows = preference_rows(
        treated(arm, (dict(row) for row in sources.load_rows(labels))),
        hard=arm.hard,
        clamp=arm.clamp,
        weight=arm.ai_label_weight,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    preferences.write_rows(path, rows)
    return str(path)


def treated(arm: ArmConfig, labels: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Labels with their probability sharpened, turned round or blanked."""
    return [
        row if row["discarded"] else {**row, "probability": _probability(arm, row["probability"])}
        for row in labels
    ]


def _probability(arm: ArmConfig, p: float) -> float:
    if arm.control == "half":
        return 0.5
    if arm.sharpen != 1:
        p = float(special.expit(arm.sharpen * special.logit(np.clip(p, SUREST, 1 - SUREST))))
    return 1 - p if arm.control == "reversed" else p
