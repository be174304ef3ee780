"""`jaxrlhf reward`: a reward model from preference pairs, starting from a language model.

One epoch by default: more overfits. Scores are normalised after training (and before), so that a
reference policy's own answers score mean 0 and standard deviation 1 and the KL coefficient keeps
its meaning (Ziegler et al. 2019); without a reference the training texts take its place. With
`lora` adapters and the head train, and nothing else.
"""

from typing import Any, Literal, Self

import jax
import numpy as np
import pydantic
from pydantic import Field

from jaxrlhf import inference, sharding
from jaxrlhf.algorithms.base import whole
from jaxrlhf.algorithms.reward import reward
from jaxrlhf.data import pipeline
from jaxrlhf.data.arrays import Arrays
from jaxrlhf.errors import ConfigError
from jaxrlhf.evals import calibration
from jaxrlhf.models import heads, lora, make_scalar_model
from jaxrlhf.optim import make_optimizer
from jaxrlhf.packing import Packing
from jaxrlhf.recipes import adapters, blocks, first_example, rows, saved, stages
from jaxrlhf.recipes.sample import SamplingConfig

NORMALISATION_PROMPTS = 256


class RewardConfig(blocks.SupervisedConfig):
    """Training of a reward model."""

    model_path: str | None = Field(
        default=None, description="language model it starts from (folder or hub name)"
    )
    warm_start: str | None = Field(
        default=None, description="instead: a reward model that is trained further"
    )
    lora: adapters.LoraConfig | None = Field(
        default=None, description="train low-rank adapters and the head; null: all of it"
    )
    data: blocks.DataConfig = Field(default=blocks.DataConfig(), description="preference pairs")
    max_length: int = Field(
        default=128, ge=2, description="longest prompt and answer together, in tokens"
    )
    over_long: Literal["skip", "truncate_left", "error"] = Field(
        default="skip",
        description="longer pairs are left out, lose the start of their prompt, or stop the run",
    )
    packing: Packing = Field(
        default="none",
        description="packed: several texts a row, kept apart and without padding, in training",
    )
    final_norm: bool = Field(
        default=True,
        description="read the score after the model's last norm (bounded) or before it",
    )
    pooling: heads.Pooling = Field(
        default="last",
        description="the score of a text: the value at its last token, or the mean over its tokens",
    )
    zero_head: bool = Field(
        default=False,
        description="the score starts at 0 for every text (needs normalize_before: false)",
    )
    center_rewards_coefficient: float = Field(
        default=0.0, ge=0, description="weight of the penalty that keeps scores near 0"
    )
    loss: Literal["bradley-terry", "regression"] = Field(
        default="bradley-terry",
        description="on pairs; or score differences onto rating differences, the column `margin`",
    )
    huber_delta: float = Field(
        default=1.0, gt=0, description="loss: regression; nats from which on it is straight"
    )
    lapse: float = Field(
        default=0.0, ge=0, lt=1, description="share of labels taken to be coin flips by the loss"
    )
    normalize: Literal["reference", "pairs", "none"] = Field(
        default="pairs",
        description="what gets mean score 0, std 1: a reference policy's answers, or the pairs",
    )
    normalize_before: bool = Field(
        default=True,
        description="before training too, as Ziegler et al.; a small head learns calmer",
    )
    reference: str | None = Field(default=None, description="policy for normalize: reference")
    prompts: rows.PromptsConfig = Field(
        default=rows.PromptsConfig(), description="what it answers for normalize: reference"
    )
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="how it answers")

    @pydantic.model_validator(mode="after")
    def _adapters_can_be_written(self) -> Self:
        if self.lora and not (self.final_norm and self.pooling == "last"):
            raise ValueError(
                "lora: PEFT's folder cannot say final_norm: false or pooling: mean; set "
                "final_norm: true and pooling: last, or train without lora"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.warm_start and self.model_path:
            raise ValueError("model_path, warm_start: give one of the two")
        if self.warm_start and (self.lora or self.zero_head):
            raise ValueError(
                "warm_start: goes on with all of a model and its head; no lora, no zero_head"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _padding_is_saved_once(self) -> Self:
        if self.packing == "packed" and self.group_by_length:
            raise ValueError(
                "group_by_length: packed rows have no padding that it could save; set it to false"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _regression_has_no_lapse(self) -> Self:
        if self.loss == "regression" and self.lapse:
            raise ValueError(f"lapse = {self.lapse}: labels lapse, ratings do not; set it to 0")
        return self

    @pydantic.model_validator(mode="after")
    def _zero_has_no_scale(self) -> Self:
        if self.zero_head and self.normalize_before:
            raise ValueError(
                "zero_head: scores that are all 0 cannot be normalised; set normalize_before: false"
            )
        return self


CONFIG = RewardConfig


def run(config: RewardConfig) -> dict[str, Any]:
    """Train, normalise, save `model/`; the summary has accuracy and calibration."""
    stage = stages.TrainingStage(config)
    if summary := stage.summary():
        return summary
    groups = config.gradient_accumulation_steps if config.packing == "packed" else 1
    mesh = config.mesh.build(batch_size=config.batch_size, groups=groups)
    base = blocks.required("model_path", config.warm_start or config.model_path)
    key = jax.random.key(config.seed)
    model, params, tokenizer, family = load_start(config, base, mesh, key=key)
    rows.check_length(model, config.max_length)
    load: dict[str, Any] = {"max_length": config.max_length, "over_long": config.over_long}
    train = rows.pairs(tokenizer, config.data, config.data.train, field="data.train", **load)
    rows.check_tokens(model, tokenizer, train)
    test = None
    if config.data.test:
        test = rows.pairs(tokenizer, config.data, config.data.test, field="data.test", **load)
    standard = normaliser(config, model, tokenizer, train, mesh)
    if config.normalize_before:
        params = standard(params)
    steps = config.steps_for(len(train))
    parts = adapters.of_scalar(config.lora, model.config, params, family=family, key=key, mesh=mesh)
    algorithm = reward(
        model,
        make_optimizer(total_steps=steps, **config.optimizer.model_dump()),
        micro_batches=config.gradient_accumulation_steps,
        center_rewards_coefficient=config.center_rewards_coefficient,
        lapse=config.lapse,
        huber_delta=config.huber_delta if config.loss == "regression" else None,
        packing=config.packing,
        frozen=parts.frozen,
    )

    def evaluate(state):
        assert test is not None
        params = whole(state.params, parts.frozen)
        chosen, rejected, labels = pair_scores(model, params, test, config.batch_size, mesh)
        found = calibration.evaluate_pairs(chosen, rejected, labels=labels)
        return {f"eval/{name}": x for name, x in found.scalars().items()}

    def prepare():
        adapters.remember(stage.folder, config.lora, {"model": base})
        saved.describe(stage.description_dir, model, tokenizer, family=family)
        first_example.of_pairs(tokenizer, train.columns, pooling=config.pooling)

    state = stages.train(
        stage,
        algorithm,
        parts.trained,
        config.batches(train),
        steps=steps,
        mesh=mesh,
        hooks=[stages.every(config.eval_steps, steps, evaluate)] if test else [],
        shown=("loss", "accuracy"),
        prepare=prepare,
    )
    trained = whole(state.params, parts.frozen)
    params = standard(trained)
    unit = {"nats_per_score": nats_per_score(trained, params)}
    done = {"steps": steps, "pairs": len(train), **unit, **stage.last_metrics()}
    readme = saved.model_card(
        "scalar",
        "reward",
        config,
        base=base,
        data=config.data.train,
        summary=done,
        model=model,
    )
    if config.lora:
        adapters.save(
            stage.folder,
            model.config,
            params["lm"],
            tokenizer,
            base=base,
            family=family,
            head=params["head"],
        )
    saved.save_scalar(
        stage.model_dir, model, lora.merge(params), tokenizer, family=family, readme=readme
    )
    if test:  # margins are log-odds before the normalisation, which would spoil the calibration
        save_pair_scores(stage, pair_scores(model, trained, test, config.batch_size, mesh))
    return stage.finish(done)


def load_start(config: RewardConfig, base: str, mesh, *, key: jax.Array) -> saved.SavedScalar:
    """A language model with a new head, or the reward model that is trained further."""
    load: dict[str, Any] = {"dtype": config.dtype, "remat": config.remat}
    if config.warm_start:
        found = saved.load_scalar(base, mesh, **load)
        for field in ("final_norm", "pooling"):
            theirs, ours = getattr(found.model, field), getattr(config, field)
            if theirs != ours:
                raise ConfigError(f"{field} = {ours!r}: warm_start = {base} has {theirs!r}")
        return found
    load["param_dtype"] = adapters.kept_in(config.lora, config.dtype)
    lm, params, tokenizer, family = saved.load_lm(base, mesh, **load)
    model = make_scalar_model(lm.config, final_norm=config.final_norm, pooling=config.pooling)
    params = model.init(key, params, zero=config.zero_head)
    return saved.SavedScalar(model, params, tokenizer, family)


def nats_per_score(trained: Any, standardised: Any) -> float:
    """What turns a difference of standardised scores back into log-odds."""
    before, after = (np.linalg.norm(params["head"]["kernel"]) for params in (trained, standardised))
    return float(before / after)


def normaliser(config: RewardConfig, model, tokenizer, train: Arrays, mesh):
    """`params -> params` whose scores have mean 0 and std 1 on the texts the config names."""
    if config.normalize == "none":
        return lambda params: params
    if config.normalize == "pairs":
        some = rows.take(train, NORMALISATION_PROMPTS)
        texts = [
            (some.columns[f"{side}_tokens"], some.columns[f"{side}_mask"])
            for side in ("chosen", "rejected")
        ]
    else:
        texts = [reference_texts(config, tokenizer, mesh)]
    return standardiser(model, texts)


def standardiser(model, texts):
    """`params -> params` whose scores have mean 0 and std 1 on `texts`: pairs of tokens, mask."""

    def standard(params):
        scores = [np.asarray(inference.reward_scores(model, params, *text)) for text in texts]
        scores = np.concatenate(scores)
        gain = 1.0 / max(float(scores.std()), 1e-6)
        return heads.affine(params, gain, -gain * float(scores.mean()))

    return standard


def reference_texts(config: RewardConfig, tokenizer, mesh):
    """Tokens and mask of the reference policy's answers."""
    lm, params, other, _ = saved.load_lm(
        blocks.required("reference", config.reference), mesh, dtype=config.dtype
    )
    saved.same_tokenizer(tokenizer, other, "reference and reward model")
    prompts, _ = rows.prompts(tokenizer, config.prompts, field="prompts")
    sampling = config.sampling.build(tokenizer)
    rows.leave_room(lm, prompts, sampling, field="prompts")
    batch = rows.take(prompts, NORMALISATION_PROMPTS).columns
    keys = jax.random.split(jax.random.key(config.seed), len(batch["row"]))
    rollout = inference.generate(
        lm,
        params,
        batch["prompt_tokens"],
        batch["prompt_mask"],
        keys,
        sampling,
    )
    return rollout.tokens, rollout.mask


def pair_scores(model, params, pairs: Arrays, batch_size: int, mesh):
    """Scores `[N]` of chosen and rejected texts, and labels `[N]`."""
    found: dict[str, list[np.ndarray]] = {"chosen": [], "rejected": []}
    for batch, valid in pipeline.in_order(pairs, batch_size=batch_size):
        batch = sharding.shard_batch(mesh, batch)
        for side, scores in found.items():
            tokens, mask = batch[f"{side}_tokens"], batch[f"{side}_mask"]
            scores.append(np.asarray(inference.reward_scores(model, params, tokens, mask))[valid])
    chosen, rejected = (np.concatenate(found[side]) for side in ("chosen", "rejected"))
    return chosen, rejected, pairs.columns["label"]


def save_pair_scores(stage: stages.TrainingStage, scores) -> None:
    """`pair_scores.json`, for the report's accuracy and calibration plots."""
    names = ("chosen", "rejected", "label")
    values = {name: [float(x) for x in column] for name, column in zip(names, scores, strict=True)}
    stages.write_json(stage.folder / "pair_scores.json", values)
