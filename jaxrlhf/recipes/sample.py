"""`jaxrlhf sample`: K answers a prompt from a model, to a JSONL file, one row a prompt.

Every row says which model, temperature and seed made it. The file is renamed into place when it is
complete. An answer depends on the seed and its prompt's number alone, not on the batch size.
"""

from typing import Any, Self

import jax
import numpy as np
import pydantic
from pydantic import Field

from jaxrlhf import inference, rewards, sharding
from jaxrlhf.config import Config
from jaxrlhf.data import chat, preferences
from jaxrlhf.progress import progress
from jaxrlhf.recipes import blocks, rows, saved, stages
from jaxrlhf.sampling import Sampling


class SamplingConfig(Config):
    """How responses are drawn."""

    response_length: int = Field(default=32, ge=1, description="most new tokens")
    min_new_tokens: int = Field(default=0, ge=0, description="no stop token before this many")
    temperature: float = Field(default=1.0, ge=0, description="0 is greedy")
    top_k: int = Field(default=0, ge=0, description="0: off; must be off for PPO")
    top_p: float = Field(default=1.0, gt=0, le=1, description="1: off; must be off for PPO")
    min_p: float = Field(default=0.0, ge=0, lt=1, description="0: off; must be off for PPO")
    stop_at_eos: bool = Field(
        default=True,
        description="the tokenizer's end token, or what closes a turn of its chat template, ends a "
        "response",
    )

    @pydantic.model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        self.with_ids(stop_ids=(0,), pad_id=0)  # raises where min_new_tokens > response_length
        return self

    def build(self, tokenizer: Any) -> Sampling:
        return self.with_ids(stop_ids=chat.stop_ids(tokenizer), pad_id=tokenizer.pad_token_id)

    def with_ids(self, *, stop_ids: tuple[int, ...], pad_id: int) -> Sampling:
        return Sampling(
            max_new_tokens=self.response_length,
            min_new_tokens=self.min_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            stop_ids=stop_ids if self.stop_at_eos else (),
            pad_id=pad_id,
        )


class SampleConfig(blocks.StageConfig):
    """Draw answers from a model."""

    model_path: str | None = Field(default=None, description="language model (folder or hub name)")
    mesh: blocks.MeshConfig = Field(default=blocks.MeshConfig(), description="devices")
    dtype: blocks.Dtype = Field(default="float32", description="compute dtype of the model")
    prompts: rows.PromptsConfig = Field(default=rows.PromptsConfig(), description="what is asked")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="how answers are drawn")
    samples_per_prompt: int = Field(default=2, ge=1, description="K")
    batch_size: int = Field(default=256, ge=1, description="prompts answered at a time")


CONFIG = SampleConfig


def run(config: SampleConfig) -> dict[str, Any]:
    """Write `samples.jsonl`: prompt, responses, complete, and where they came from."""
    from jaxrlhf.data import pipeline

    stage = stages.Stage(config)
    if summary := stage.summary():
        return summary
    mesh = config.mesh.build(batch_size=config.batch_size)
    path = blocks.required("model_path", config.model_path)
    lm, params, tokenizer, _ = saved.load_lm(path, mesh, dtype=config.dtype)
    prompts, found = rows.prompts(tokenizer, config.prompts, field="prompts")
    rows.check_tokens(lm, tokenizer, prompts)
    sampling, decode = config.sampling.build(tokenizer), rows.decoder(tokenizer)
    rows.leave_room(lm, prompts, sampling, field="prompts")
    origin = {
        "model": config.model_path,
        "temperature": config.sampling.temperature,
        "seed": config.seed,
    }
    root = jax.random.key(config.seed)
    records: list[dict[str, Any]] = []
    lengths: list[np.ndarray] = []
    stage.begin()
    with progress(len(prompts), "sample") as bar:
        for batch, valid in pipeline.in_order(prompts, batch_size=config.batch_size):
            placed = sharding.shard_batch(mesh, batch)
            answers, complete = [], []
            for sample in range(config.samples_per_prompt):
                keys = jax.vmap(
                    lambda row, sample=sample: jax.random.fold_in(
                        jax.random.fold_in(root, row), sample
                    )
                )(batch["row"])
                rollout = inference.generate(
                    lm, params, placed["prompt_tokens"], placed["prompt_mask"], keys, sampling
                )
                view = rewards.Rollout(rollout.tokens, rollout.mask, rollout.prompt_length)
                answers.append(rewards.texts(view, decode)[1])
                complete.append(np.asarray(rollout.finished))
                lengths.append(np.asarray(rollout.response_mask).sum(axis=1)[valid])
            for i in np.flatnonzero(valid):
                item = found.at_row(int(batch["row"][i]))
                records.append(
                    {
                        "prompt": item.prompt,
                        "responses": [texts[i] for texts in answers],
                        "complete": [bool(done[i]) for done in complete],
                        **origin,
                    }
                )
            bar.advance(int(valid.sum()))
    preferences.write_rows(stage.folder / "samples.jsonl", records)
    return stage.finish(
        {
            "prompts": len(records),
            "samples": len(records) * config.samples_per_prompt,
            "length_mean": float(np.concatenate(lengths).mean()),
        }
    )
