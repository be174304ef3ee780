"""`jaxrlhf sft`: pre-train or fine-tune a language model on text, examples or conversations.

Without `model_path` a model is made from scratch (and a tokenizer is trained, unless one is named);
with it, training goes on from that model. Plain text is learnt whole; of examples and conversations
the assistant's tokens alone. With `lora` adapters of a loaded model train, and nothing else.
"""

from collections.abc import Callable
from typing import Any, Literal, Self

import jax
import numpy as np
import pydantic
from pydantic import Field

from jaxrlhf import inference, loop, sharding
from jaxrlhf.algorithms.base import whole
from jaxrlhf.algorithms.sft import predicted, sft
from jaxrlhf.data import arrays, formats, pipeline
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.data.rows import Loaded
from jaxrlhf.errors import ConfigError
from jaxrlhf.hf.families import family_of
from jaxrlhf.models import lora, make_lm
from jaxrlhf.optim import make_optimizer
from jaxrlhf.recipes import adapters, blocks, first_example, rows, saved, stages


class SFTConfig(blocks.SupervisedConfig):
    """Supervised training of a language model."""

    model_path: str | None = Field(
        default=None,
        description="start from this model (folder or hub name); null: from scratch",
    )
    resize_vocabulary: bool = Field(
        default=False,
        description="give tokens that the tokenizer has and the model has not a row of their own",
    )
    lora: adapters.LoraConfig | None = Field(
        default=None, description="train low-rank adapters of model_path; null: all of it"
    )
    model: blocks.ModelConfig = Field(
        default=blocks.ModelConfig(), description="a model from scratch; unused with model_path"
    )
    tokenizer: blocks.TokenizerConfig = Field(
        default=blocks.TokenizerConfig(),
        description="of a model from scratch; unused with model_path",
    )
    data: blocks.DataConfig = Field(default=blocks.DataConfig(), description="what is learnt")
    format: Literal["auto", "text", "examples"] = Field(
        default="auto",
        description="learn whole texts, or the answers of examples and conversations alone; auto: "
        "as the columns are (text; or messages, prompt + completion, instruction + output)",
    )
    packing: Literal["none", "packed", "wrapped"] = Field(
        default="packed",
        description="one text a row; several, kept apart; or one stream cut to length",
    )
    max_length: int = Field(default=128, ge=2, description="tokens a row")
    over_long: Literal["skip", "truncate_left", "error"] = Field(
        default="skip", description="what happens to longer texts (not with packing: wrapped)"
    )
    chunk_size: int | None = Field(
        default=None,
        ge=1,
        description="vocabulary entries at a time in the output layer; null: all",
    )

    @pydantic.model_validator(mode="after")
    def _new_rows_are_learnt(self) -> Self:
        if self.lora and self.resize_vocabulary:
            raise ValueError("resize_vocabulary: lora trains no embeddings; new rows stay as made")
        return self


CONFIG = SFTConfig
READERS: dict[str, Callable[..., Loaded]] = {
    "auto": formats.supervised,
    "text": formats.texts,
    "examples": formats.examples,
}


def run(config: SFTConfig) -> dict[str, Any]:
    """Train, save `model/`, and return the summary (loss in nats a token)."""
    stage = stages.TrainingStage(config)
    if summary := stage.summary():
        return summary
    mesh = config.mesh.build(batch_size=config.batch_size)
    reader = READERS[config.format]
    found = rows.read(config.data, config.data.train, reader, field="data.train")
    lm, params, tokenizer, family = start(config, mesh)
    rows.check_length(lm, config.max_length)
    train = to_arrays(config, tokenizer, found)
    rows.check_tokens(lm, tokenizer, train)
    test = None
    if config.data.test:
        found = rows.read(config.data, config.data.test, reader, field="data.test")
        test = to_arrays(config, tokenizer, found)
    steps = config.steps_for(len(train))
    parts = adapters.of_lm(
        config.lora, lm.config, params, family=family, key=jax.random.key(config.seed), mesh=mesh
    )
    algorithm = sft(
        lm,
        make_optimizer(total_steps=steps, **config.optimizer.model_dump()),
        micro_batches=config.gradient_accumulation_steps,
        chunk_size=config.chunk_size,
        frozen=parts.frozen,
    )

    def evaluate(state):
        assert test is not None
        return test_loss(lm, whole(state.params, parts.frozen), test, config, mesh)

    def prepare():
        adapters.remember(stage.folder, config.lora, {"model": config.model_path})
        saved.describe(stage.description_dir, lm, tokenizer, family=family)
        first_example.of_texts(tokenizer, train.columns)

    state = stages.train(
        stage,
        algorithm,
        parts.trained,
        config.batches(train),
        steps=steps,
        mesh=mesh,
        hooks=[stages.every(config.eval_steps, steps, evaluate)] if test else [],
        shown=("loss",),
        prepare=prepare,
    )
    parameters = sum(int(np.size(x)) for x in jax.tree.leaves(state.params))
    summary = {"steps": steps, "parameters": parameters, "rows": len(train)}
    summary |= stage.last_metrics()
    readme = saved.model_card(
        "lm", "sft", config, base=config.model_path, data=config.data.train, summary=summary
    )
    params = whole(state.params, parts.frozen)
    if config.lora:
        base = blocks.required("model_path", config.model_path)
        adapters.save(stage.folder, lm.config, params, tokenizer, base=base, family=family)
    saved.save_lm(stage.model_dir, lm, lora.merge(params), tokenizer, family=family, readme=readme)
    return stage.finish(summary)


def start(config: SFTConfig, mesh: jax.sharding.Mesh) -> saved.SavedLM:
    """The model that training begins with."""
    if config.model_path:
        return saved.load_lm(
            config.model_path,
            mesh,
            dtype=config.dtype,
            param_dtype=adapters.kept_in(config.lora, config.dtype),
            remat=config.remat,
            resize_vocabulary=config.resize_vocabulary,
        )
    if config.lora:
        raise ConfigError("lora: adapters need a model to adapt; name it with model_path")
    tokenizer = make_tokenizer(config)
    lm = make_lm(config.model.build(len(tokenizer), dtype=config.dtype, remat=config.remat))
    params = loop.init_params(lm.init, seed=config.seed, mesh=mesh)
    return saved.SavedLM(lm, params, tokenizer, family_of(lm.config).name)


def make_tokenizer(config: SFTConfig) -> Any:
    """The named tokenizer, or one trained on the training texts."""
    choice = config.tokenizer
    if choice.path:
        return tokenizers.ensure_pad(tokenizers.load_tokenizer(choice.path))
    found = rows.read(config.data, config.data.train, formats.texts, field="data.train")
    return tokenizers.train_tokenizer(
        (item.text for item in found), vocab_size=choice.vocab_size, kind=choice.kind
    )


def to_arrays(config: SFTConfig, tokenizer: Any, found: Any) -> arrays.Arrays:
    """Tokens as rows of `max_length`."""
    encoded = rows.encode(tokenizer, found, data=config.data, field="data")
    shape: dict[str, Any] = {"length": config.max_length, "pad_id": tokenizer.pad_token_id}
    if config.packing == "wrapped":
        return arrays.wrapped(encoded, **shape)
    make = arrays.packed if config.packing == "packed" else arrays.padded
    return make(encoded, over_long=config.over_long, **shape)


def test_loss(lm, params, test: arrays.Arrays, config: SFTConfig, mesh) -> dict[str, float]:
    """Mean negative log-likelihood, in nats, of the learnt tokens of held-out rows."""
    total, count = 0.0, 0
    for batch, valid in pipeline.in_order(test, batch_size=config.batch_size):
        batch = sharding.shard_batch(mesh, batch)
        stats = inference.score(
            lm,
            params,
            batch["tokens"],
            batch["mask"],
            response_length=config.max_length - 1,
            chunk_size=config.chunk_size,
            segment_ids=batch["segment_ids"],
        )
        counted = np.asarray(predicted(batch))[:, 1:] & valid[:, None]
        total -= float(np.asarray(stats.log_probs)[counted].sum())
        count += int(counted.sum())
    return {"eval/loss": total / max(count, 1)}
