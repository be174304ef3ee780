"""The arms of the `cai` pipeline: what a preference model learns from, and where RL begins.

One set of AI labels serves every arm; what is made of them (soft, hard, clamped, their weight, or,
for a control, turned round or blanked) is decided here, as are people's pairs in their place.
Variants of the stages before are here too; the files that arms learn from are `cai_data.py`'s.
"""

from typing import Any, Literal, Self

import numpy as np
import pydantic
from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.recipes.ppo import PPOConfig

NAME = r"^[a-z0-9][a-z0-9_-]*$"


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
    calibrate: bool = Field(default=False, description="take the liking for a place out")
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
    kl_target: float | None = Field(
        default=None,
        gt=0,
        description="nats a sequence that its penalty adapts to, so that arms can be compared at "
        "equal KL; null: ppo.ppo.kl_target",
    )
    max_steps: int | None = Field(
        default=None, ge=1, description="updates of its PPO; null: ppo.max_steps"
    )

    @pydantic.model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.harm_labels == "none" and not self.helpful_pairs:
            raise ValueError("harm_labels: none needs helpful_pairs: nothing would be learnt")
        if self.clamp and not (0 <= self.clamp[0] <= 0.5 and np.isclose(sum(self.clamp), 1)):
            raise ValueError(f"clamp = {list(self.clamp)}: must be [x, 1 - x], x from 0 to 0.5")
        if self.kl_target and self.kl_coef == 0:
            raise ValueError("kl_coef = 0 stays 0: a penalty that adapts (kl_target) is scaled")
        return self

    def ppo(self, shared: PPOConfig) -> PPOConfig:
        """The pipeline's settings, with what this arm has of its own."""
        penalty = {"kl_coef": self.kl_coef, "kl_target": self.kl_target}
        own = {name: value for name, value in penalty.items() if value is not None}
        change: dict[str, Any] = {"ppo": shared.ppo.model_copy(update=own)}
        if self.max_steps is not None:
            change["max_steps"] = self.max_steps
        return shared.model_copy(update=change)
