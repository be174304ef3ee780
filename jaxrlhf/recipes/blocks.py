"""Config blocks that recipes share: model, tokenizer, data, mesh, and what a stage is told."""

import dataclasses
from typing import Any, Literal, Self, TypeVar

import jax
import pydantic
from pydantic import Field

from jaxrlhf import sharding
from jaxrlhf.config import Config
from jaxrlhf.data import pipeline
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.data.arrays import Arrays
from jaxrlhf.errors import CheckpointError, ConfigError
from jaxrlhf.hf.families import family_of
from jaxrlhf.models import transformer_config
from jaxrlhf.models.config import TransformerConfig
from jaxrlhf.optim import OptimizerConfig

Settings = TypeVar("Settings")
Dtype = Literal["float32", "bfloat16"]


class ModelConfig(Config):
    """Size and family of a model that is made from scratch."""

    family: Literal["gpt2", "llama"] = Field(
        default="llama", description="which flags: gpt2 or llama"
    )
    d_model: int = Field(default=64, ge=8, description="width")
    num_layers: int = Field(default=2, ge=1, description="transformer blocks")
    num_heads: int = Field(default=4, ge=1, description="attention heads")
    num_kv_heads: int | None = Field(
        default=None,
        ge=1,
        description="key/value heads (grouped-query attention); null: as num_heads",
    )
    d_ff: int | None = Field(default=None, ge=8, description="width of the MLP; null: 4 x d_model")
    tied_head: bool | None = Field(
        default=None,
        description="one matrix for embedding and output; null: as the family has it",
    )
    max_positions: int = Field(default=128, ge=2, description="longest sequence, in tokens")
    vocab_multiple: int = Field(
        default=8, ge=1, description="the vocabulary is padded to a multiple of this"
    )

    @pydantic.model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        self.build(vocab_size=1)  # raises where, say, the width does not divide by the heads
        return self

    def build(
        self, vocab_size: int, *, dtype: str = "float32", remat: bool = False
    ) -> TransformerConfig:
        """The transformer of this size for a tokenizer of `vocab_size` tokens.

        Raises:
          ValueError: sizes that do not fit, or that no family of Hugging Face can say.
        """
        flags = {} if self.tied_head is None else {"tied_head": self.tied_head}
        config = transformer_config(
            self.family,
            vocab_size=tokenizers.padded_vocab_size(vocab_size, self.vocab_multiple),
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            d_model=self.d_model,
            d_ff=self.d_ff or 4 * self.d_model,
            max_positions=self.max_positions,
            dtype=dtype,
            remat=remat,
            **flags,
        )
        try:
            family_of(config)  # or it could be trained and then not be saved
        except CheckpointError as error:
            raise ValueError(str(error)) from None
        return config


class TokenizerConfig(Config):
    """A tokenizer that is loaded, or trained on the training text."""

    path: str | None = Field(default=None, description="folder of a tokenizer; null: train one")
    kind: Literal["bpe", "word"] = Field(
        default="bpe", description="byte-level BPE, or whole words"
    )
    vocab_size: int = Field(default=4096, ge=8, description="size of a trained tokenizer")


class DataConfig(Config):
    """Where rows come from."""

    train: tuple[str, ...] = Field(
        default=(),
        description="files (jsonl, csv, parquet, txt; also .gz) or hub names, one after another",
    )
    test: tuple[str, ...] = Field(default=(), description="the same, for evaluation")
    columns: dict[str, str] = Field(
        default={}, description="our column name -> the file's, where they differ"
    )
    limit: int | None = Field(default=None, ge=1, description="rows read of each file; null: all")
    on_bad_row: Literal["error", "skip"] = Field(
        default="error", description="a malformed row stops the run, or is skipped and counted"
    )


class MeshConfig(Config):
    """Devices."""

    data: int = Field(default=1, ge=-1, description="devices that share a batch; -1: all there are")
    tensor: int = Field(default=1, ge=1, description="devices that share each weight matrix")

    @pydantic.model_validator(mode="after")
    def _some_device(self) -> Self:
        if self.data == 0:
            raise ValueError("mesh.data = 0: use -1 for all devices, or 1 or more")
        return self

    def build(self, *, batch_size: int = 0, groups: int = 1) -> jax.sharding.Mesh:
        """The mesh, over whose data axis each of a batch's `groups` must spread evenly."""
        mesh = sharding.make_mesh(self.data, self.tensor)
        ways = groups * mesh.devices.size // self.tensor
        by = "the devices of mesh.data" + " x packed micro-batches" * (groups > 1)
        try:
            divides("batch_size", batch_size, by, ways)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return mesh


class FolderConfig(Config):
    """What every stage has."""

    output_dir: str = Field(default="runs/run", description="folder of this run")


class StageConfig(FolderConfig):
    """What every stage has that draws something."""

    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of everything random")


class TrainConfig(StageConfig):
    """What every training stage has."""

    mesh: MeshConfig = Field(default=MeshConfig(), description="devices")
    dtype: Dtype = Field(
        default="float32", description="compute dtype of every model; parameters stay float32"
    )
    remat: bool = Field(
        default=False, description="recompute blocks in the backward pass, to save memory"
    )
    save_steps: int = Field(
        default=100, ge=0, description="updates between checkpoints; 0: only at the end"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="how many of them stay on disk")
    tensorboard: bool = Field(default=True, description="write TensorBoard event files")
    wandb_project: str | None = Field(
        default=None, description="log to this W&B project (extra: wandb)"
    )
    profile: int | None = Field(
        default=None,
        ge=1,
        description="trace this update and the two after it into `profile/`, for TensorBoard and "
        "Perfetto",
    )
    optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(), description="Adam and its schedule"
    )
    batch_size: int = Field(default=32, ge=1, description="rows an update")
    max_steps: int | None = Field(
        default=None, ge=1, description="updates; null: num_train_epochs decides"
    )
    num_train_epochs: float = Field(default=1.0, gt=0, description="passes over the data")
    eval_steps: int = Field(
        default=0, ge=0, description="updates between evaluations; 0: only at the end"
    )

    def steps_for(self, rows: int) -> int:
        """Number of updates for a data set of `rows` rows."""
        return self.max_steps or max(1, round(self.num_train_epochs * rows / self.batch_size))


class SupervisedConfig(TrainConfig):
    """What training stages have that make one update a batch (PPO splits batches its own way)."""

    gradient_accumulation_steps: int = Field(default=1, ge=1, description="micro-batches a batch")
    group_by_length: bool = Field(
        default=False,
        description="batches of rows of like length, as wide as those need: less padding to "
        "compute, a few more programs to compile",
    )

    def batches(self, rows: Arrays) -> pipeline.Batches:
        """The batches that training sees."""
        return pipeline.batches(
            rows,
            batch_size=self.batch_size,
            seed=self.seed,
            group_by_length=self.group_by_length,
        )

    @pydantic.model_validator(mode="after")
    def _batch_divides(self) -> Self:
        pieces = self.gradient_accumulation_steps
        divides("batch_size", self.batch_size, "gradient_accumulation_steps", pieces)
        return self


def divides(name: str, size: int, by: str, ways: int) -> None:
    """Refuse a batch that does not split evenly."""
    if size % ways:
        nearest = -(-size // ways) * ways
        raise ValueError(f"{name} = {size} does not divide by {by} = {ways}; {nearest} would")


def config_of(settings: type) -> type[Config]:
    """A `Config` class with the fields of an algorithm's settings dataclass, checked by it too.

    Descriptions and limits come from the dataclass (`algorithms.base.setting`): they stand once.
    """
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        limits = dict(field.metadata)
        fields[field.name] = (field.type, Field(field.default, **limits))

    def check(self: Config) -> Config:
        settings_of(self, settings)
        return self

    return pydantic.create_model(
        settings.__name__,
        __base__=Config,
        __doc__=settings.__doc__,
        __validators__={"check": pydantic.model_validator(mode="after")(check)},  # type: ignore[dict-item]
        **fields,
    )


def settings_of(config: Config, settings: type[Settings]) -> Settings:
    """The dataclass that a config of `config_of` stands for."""
    return settings(**config.model_dump())


def required(field: str, value: Any) -> Any:
    """A config field that this command cannot do without."""
    if value is None:
        raise ConfigError(f"{field}: this command needs a value here")
    return value
