"""`jaxrlhf sample`: K answers a prompt from one or several models, to JSONL, one row a prompt.

Every row says which model, temperature and seed made it; of several models `models` names that of
each answer. Their answers take turns, so that answers (0, 1), (2, 3), ..., which is how pairs are
made of a row, come from different models. The file is renamed into place when it is complete. An
answer depends on the seed, its prompt's number and its own, not on the batch size.
"""

import itertools
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from pydantic import Field

from jaxrlhf import inference, rewards, sharding
from jaxrlhf.config import Config
from jaxrlhf.data import chat, preferences
from jaxrlhf.data.columns import Content
from jaxrlhf.errors import ConfigError, DataError
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
    slots: int | None = Field(
        default=None,
        ge=1,
        description="responses drawn at a time, the next beginning where one ends: faster where "
        "lengths differ much; null: all of a batch at once",
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
            slots=self.slots,
        )


class SampleConfig(blocks.StageConfig):
    """Draw answers from models."""

    model_path: str | None = Field(default=None, description="language model (folder or hub name)")
    models: tuple[str, ...] = Field(
        default=(), description="several, instead; each gives K answers to a prompt"
    )
    mesh: blocks.MeshConfig = Field(default=blocks.MeshConfig(), description="devices")
    dtype: blocks.Dtype = Field(default="float32", description="compute dtype of the model")
    prompts: rows.PromptsConfig = Field(default=rows.PromptsConfig(), description="what is asked")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="how answers are drawn")
    samples_per_prompt: int = Field(default=2, ge=1, description="K")
    deduplicate: bool = Field(
        default=False, description="keep the first of equal answers to a prompt only"
    )
    batch_size: int = Field(default=256, ge=1, description="prompts a batch, K answers each")


CONFIG = SampleConfig


class Answer(NamedTuple):
    """One answer, and whether it ended by itself."""

    text: str
    complete: bool
    model: str
    length: int


Answers = dict[int, tuple[Content, list[Answer]]]
"""Row of the prompts' files -> the prompt, and a model's answers to it."""


def run(config: SampleConfig) -> dict[str, Any]:
    """Write `samples.jsonl`: prompt, responses, complete, and where they came from."""
    stage = stages.Stage(config)
    if summary := stage.summary():
        return summary
    if config.models and config.model_path:
        raise ConfigError("model_path, models: give one of the two")
    paths = config.models or (blocks.required("model_path", config.model_path),)
    for path in paths:
        saved.find(path)  # so that a slip in the last does not cost the time of the others
    found = [answers(config, path, stage, number=i) for i, path in enumerate(paths)]
    # A prompt may be too long for the tokenizer of one of them.
    common = [row for row in found[0] if all(row in one for one in found)]
    if not common:
        raise DataError(f"prompts: none that all of {', '.join(paths)} can read")
    origin: dict[str, Any] = {} if config.models else {"model": config.model_path}
    origin |= {"temperature": config.sampling.temperature, "seed": config.seed}
    records, kept, drawn = [], [], 0
    for row in common:
        turns = list(itertools.chain(*zip(*(one[row][1] for one in found), strict=True)))
        drawn += len(turns)
        turns = without_repetition(turns) if config.deduplicate else turns
        kept += turns
        records.append(record(found[0][row][0], turns, several=bool(config.models)) | origin)
    preferences.write_rows(stage.folder / "samples.jsonl", records)
    repeated = {"equal_answers_left_out": drawn - len(kept)} if config.deduplicate else {}
    return stage.finish(
        {
            "prompts": len(records),
            "samples": len(kept),
            "length_mean": float(np.mean([answer.length for answer in kept])),
            **repeated,
        }
    )


def answers(config: SampleConfig, path: str, stage: stages.Stage, *, number: int) -> Answers:
    """K answers of model `number` to each prompt that it can read."""
    from jaxrlhf.data import pipeline

    mesh = config.mesh.build(batch_size=config.batch_size)
    lm, params, tokenizer, _ = saved.load_lm(path, mesh, dtype=config.dtype)
    prompts, found = rows.prompts(tokenizer, config.prompts, field="prompts")
    rows.check_tokens(lm, tokenizer, prompts)
    sampling, decode = config.sampling.build(tokenizer), rows.decoder(tokenizer)
    rows.leave_room(lm, prompts, sampling, field="prompts")
    each = config.samples_per_prompt
    numbers = number * each + jnp.arange(each)  # no two answers to a prompt share a key
    made = {}
    stage.begin()
    with progress(len(prompts), "sample") as bar:
        for batch, valid in pipeline.in_order(prompts, batch_size=config.batch_size):
            placed = sharding.shard_batch(mesh, batch)
            rollout = inference.generate(
                lm,
                params,
                placed["prompt_tokens"],
                placed["prompt_mask"],
                inference.answer_keys(jax.random.key(config.seed), batch["row"], numbers),
                sampling,
            )
            view = rewards.Rollout(rollout.tokens, rollout.mask, rollout.prompt_length)
            texts = rewards.texts(view, decode)[1]
            finished = np.asarray(rollout.finished)
            lengths = np.asarray(rollout.response_mask).sum(axis=1)
            drawn = [
                Answer(text, bool(done), path, int(length))
                for text, done, length in zip(texts, finished, lengths, strict=True)
            ]
            for i in np.flatnonzero(valid):
                row = int(batch["row"][i])
                made[row] = found.at_row(row).prompt, drawn[i * each : (i + 1) * each]
            bar.advance(int(valid.sum()))
    return made


def without_repetition(answers: list[Answer]) -> list[Answer]:
    """The first of each text."""
    first: dict[str, Answer] = {}
    for answer in answers:
        first.setdefault(answer.text, answer)
    return list(first.values())


def record(prompt: Content, answers: list[Answer], *, several: bool) -> dict[str, Any]:
    """The row of a prompt."""
    row = {
        "prompt": prompt,
        "responses": [answer.text for answer in answers],
        "complete": [answer.complete for answer in answers],
    }
    return row | ({"models": [answer.model for answer in answers]} if several else {})
