"""What a run of PPO is made of: policy, reward, prompts, sampling, hyper-parameters, guards."""

from typing import Self

import pydantic
from pydantic import Field

from jaxrlhf.algorithms import ppo as algorithm
from jaxrlhf.algorithms.rollouts import check_sampling
from jaxrlhf.config import Config
from jaxrlhf.guards.panel import GuardsConfig
from jaxrlhf.packing import Packing
from jaxrlhf.recipes import adapters, blocks, rows
from jaxrlhf.recipes.sample import SamplingConfig


class SettingsConfig(blocks.config_of(algorithm.Settings)):
    """Hyper-parameters of PPO, by the papers' names."""


class TruncationConfig(Config):
    """What the reward sees of a response; the policy trains on all it sampled."""

    token: str | None = Field(
        default=None,
        description="the reward reads up to this token (a word of the vocabulary); null: all",
    )
    after: int = Field(default=0, ge=0, description="not before this many response tokens")


class PPOConfig(blocks.TrainConfig):
    """PPO."""

    policy: str | None = Field(
        default=None,
        description="language model to improve (folder or hub name)",
    )
    reference: str | None = Field(
        default=None, description="what the KL penalty holds it near; null: the policy as it starts"
    )
    reward_model: str | None = Field(
        default=None, description="reward model (folder or hub name): a classifier of one label"
    )
    frozen_dtype: blocks.Dtype = Field(
        default="float32",
        description="what reference and reward model are kept in: bfloat16 takes half the memory, "
        "and the KL starts near 0 instead of at it; not with lora, whose base they are",
    )
    lora: adapters.LoraConfig | None = Field(
        default=None,
        description="train low-rank adapters of policy and value network; null: all of both",
    )
    reward_function: str | None = Field(
        default=None,
        description="instead: `module:function`, called with prompts= and completions=",
    )
    prompts: rows.PromptsConfig = Field(
        default=rows.PromptsConfig(), description="training prompts"
    )
    eval_prompts: rows.PromptsConfig = Field(
        default=rows.PromptsConfig(),
        description="held-out prompts; without files nothing is held out",
    )
    sampling: SamplingConfig = Field(
        default=SamplingConfig(), description="how responses are drawn"
    )
    truncation: TruncationConfig = Field(
        default=TruncationConfig(), description="cut for the reward"
    )
    stop_kl: float | None = Field(
        default=None,
        gt=0,
        description="training ends with the evaluation whose KL to the reference, nats a sequence, "
        "reaches this; null: after max_steps",
    )
    ppo: SettingsConfig = Field(
        default=SettingsConfig(), description="the algorithm's hyper-parameters"
    )
    chunk_size: int | None = Field(
        default=None,
        ge=1,
        description="vocabulary entries at a time in the output layer; null: all",
    )
    packing: Packing = Field(
        default="none",
        description="packed: models read several sequences a row, without padding, in scoring and "
        "updates; minibatches are then dealt once a batch",
    )
    shown_completions: int = Field(
        default=4, ge=0, description="lowest-scored and random rows a table"
    )
    guards: GuardsConfig = Field(default=GuardsConfig(), description="what stops a run")

    @property
    def groups(self) -> tuple[int, int]:
        """Minibatches of a batch, and micro-batches of each."""
        split = self.ppo.model_dump()
        return split["num_mini_batches"], split["gradient_accumulation_steps"]

    @pydantic.model_validator(mode="after")
    def _can_be_learned_from(self) -> Self:
        if self.lora and self.frozen_dtype != "float32":
            raise ValueError(
                f"frozen_dtype = {self.frozen_dtype}: with lora the frozen models are the base of "
                "what trains, and dtype says what they are kept in"
            )
        if self.stop_kl and not self.eval_steps:
            raise ValueError(f"stop_kl = {self.stop_kl}: needs evaluations; set eval_steps")
        check_sampling(self.sampling.with_ids(stop_ids=(0,), pad_id=0))
        pieces, parts = self.groups
        blocks.divides("batch_size", self.batch_size, "ppo.num_mini_batches", pieces)
        rows = self.batch_size // pieces
        blocks.divides("a minibatch", rows, "ppo.gradient_accumulation_steps", parts)
        return self
