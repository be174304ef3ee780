"""What every recipe shares: config blocks, the folder of a stage, models and tokenizers on disk.

A stage is one folder: `config.yaml` (resolved), `metrics.jsonl`, `checkpoints/`, `model/`, and
`done.json` once it is finished. Running a finished stage again does nothing; running it with
another config is an error that lists the differences.
"""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import jax
import pydantic
from pydantic import Field

from jaxrlhf import checkpoint, config_file, loop, sharding
from jaxrlhf.algorithms.base import Algorithm, State
from jaxrlhf.config import Config, differences, save_resolved
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.errors import CheckpointError, ConfigError, UserError
from jaxrlhf.metrics import MetricsWriter, read_metrics
from jaxrlhf.models import LM, ScalarModel, make_lm, make_scalar_model, transformer_config
from jaxrlhf.models.config import TransformerConfig
from jaxrlhf.optim import OptimizerConfig
from jaxrlhf.progress import progress

log = logging.getLogger(__name__)
Settings = TypeVar("Settings")

# Fields that may differ when a run is continued: they change what is written, not what is learned.
HARMLESS = (
    "output_dir",
    "save_steps",
    "keep_checkpoints",
    "tensorboard",
    "wandb_project",
    "stages",
)


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
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="compute dtype")
    remat: bool = Field(
        default=False, description="recompute blocks in the backward pass, to save memory"
    )
    vocab_multiple: int = Field(
        default=8, ge=1, description="the vocabulary is padded to a multiple of this"
    )

    @pydantic.model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        self.build(vocab_size=1)  # raises where, say, the width does not divide by the heads
        return self

    def build(self, vocab_size: int) -> TransformerConfig:
        """The transformer of this size for a tokenizer of `vocab_size` tokens."""
        flags = {} if self.tied_head is None else {"tied_head": self.tied_head}
        return transformer_config(
            self.family,
            vocab_size=tokenizers.padded_vocab_size(vocab_size, self.vocab_multiple),
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            d_model=self.d_model,
            d_ff=self.d_ff or 4 * self.d_model,
            max_positions=self.max_positions,
            dtype=self.dtype,
            remat=self.remat,
            **flags,
        )


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

    def build(self, *, batch_size: int = 0) -> jax.sharding.Mesh:
        """The mesh, over whose data axis batches of `batch_size` must spread evenly."""
        mesh = sharding.make_mesh(self.data, self.tensor)
        ways = mesh.devices.size // self.tensor
        try:
            divides("batch_size", batch_size, "the devices of mesh.data", ways)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return mesh


class StageConfig(Config):
    """What every stage has."""

    output_dir: str = Field(default="runs/run", description="folder of this run")
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of everything random")


class TrainConfig(StageConfig):
    """What every training stage has."""

    mesh: MeshConfig = Field(default=MeshConfig(), description="devices")
    save_steps: int = Field(
        default=100, ge=0, description="updates between checkpoints; 0: only at the end"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="how many of them stay on disk")
    tensorboard: bool = Field(default=True, description="write TensorBoard event files")
    wandb_project: str | None = Field(
        default=None, description="log to this W&B project (extra: wandb)"
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


class Stage:
    """The folder of one stage."""

    def __init__(self, config: StageConfig):
        self.config = config
        self.folder = Path(config.output_dir)
        self.started = time.monotonic()
        refuse_another_config(self.folder, config)

    def summary(self) -> dict[str, Any] | None:
        """Headline figures of a finished stage; None while it is not finished."""
        path = self.folder / "done.json"
        return read_json(path) if path.is_file() else None

    def begin(self) -> None:
        """Write the resolved config."""
        make_folder(self.folder)
        save_resolved(self.config, self.folder)

    def finish(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Mark the stage finished; written last and atomically. Adds its wall-clock seconds."""
        whole = {**summary, "seconds": time.monotonic() - self.started}
        write_json(self.folder / "done.json", whole)
        return whole


class TrainingStage(Stage):
    """The folder of a stage that trains a model."""

    config: TrainConfig

    def __init__(self, config: TrainConfig):
        super().__init__(config)

    @property
    def model_dir(self) -> Path:
        return self.folder / "model"

    def store(self) -> checkpoint.Checkpoints:
        return checkpoint.Checkpoints(
            self.folder / "checkpoints", keep=self.config.keep_checkpoints
        )

    def open_log(self, first_step: int) -> MetricsWriter:
        try:
            return MetricsWriter(
                self.folder,
                resume_step=first_step,
                tensorboard=self.config.tensorboard,
                wandb_project=self.config.wandb_project,
                config=self.config.model_dump(mode="json"),
            )
        except ImportError as error:
            raise ConfigError(str(error)) from error

    def last_metrics(self) -> dict[str, float]:
        """Metrics of the last step, timings left out."""
        last = read_metrics(self.folder)[-1]
        return {
            name: x for name, x in last.items() if name != "step" and not name.startswith("time/")
        }


def make_folder(folder: Path) -> None:
    """The folder of a run; that it cannot be made is the user's to put right."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir = {folder}: cannot be made ({error.strerror})") from error


def refuse_another_config(folder: Path, config: Config) -> None:
    """Raise where `folder` holds a run with other settings and something to lose; list them."""
    path = folder / "config.yaml"
    saved = any(folder.glob("**/done.json")) or any(folder.glob("**/checkpoints/[0-9]*"))
    if not (path.is_file() and saved):
        return
    before = config_file.read(path).values
    changed = [
        f"{name}: {old!r} there, {new!r} now"
        for name, old, new in differences(before, config)
        if name.split(".")[-1] not in HARMLESS
    ]
    if changed:
        raise UserError(
            f"{folder} holds a run with another config ({'; '.join(changed)}); choose another "
            "output_dir, or delete that folder to start again"
        )


def train(
    stage: TrainingStage,
    algorithm: Algorithm,
    params: Any,
    batches: Any,
    *,
    steps: int,
    mesh: jax.sharding.Mesh,
    hooks: Sequence[loop.Hook] = (),
    shown: Sequence[str] = ("loss",),
    open_log: Callable[[int], MetricsWriter] | None = None,
) -> State:
    """`loop.fit` in the folder of a stage, with its checkpoints, its log and a progress bar."""
    stage.begin()
    store = stage.store()
    done = 0
    with progress(steps, stage.folder.name) as bar:

        def on_step(step: int, metrics: Mapping[str, float]) -> None:
            nonlocal done
            figures = {name.split("/")[-1]: metrics[name] for name in shown if name in metrics}
            bar.advance(step - done, **figures)
            done = step

        try:
            return loop.fit(
                algorithm,
                params,
                batches,
                steps=steps,
                seed=stage.config.seed,
                mesh=mesh,
                store=store,
                save_steps=stage.config.save_steps,
                open_log=open_log or stage.open_log,
                hooks=hooks,
                on_step=on_step,
            )
        finally:
            store.close()


def every(
    interval: int,
    steps: int,
    evaluate: Callable[[State], Mapping[str, float]],
    *,
    first: bool = False,
) -> loop.Hook:
    """A hook that evaluates every `interval` updates (0: never), after the last, and `first`."""

    def hook(step: int, state: State, batch: Any) -> Mapping[str, float]:
        due = first if step == 0 else step == steps or (interval and step % interval == 0)
        return evaluate(state) if due else {}

    return hook


def required(field: str, value: Any) -> Any:
    """A config field that this command cannot do without."""
    if value is None:
        raise ConfigError(f"{field}: this command needs a value here")
    return value


def write_json(path: Path, value: Any) -> None:
    """Atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def device_line() -> str:
    """The hardware that arrays live on, for a results page."""
    devices = jax.devices()
    kind = f"{len(devices)} x {devices[0].device_kind}"
    return f"{kind}, {os.cpu_count()} CPU cores, jax {jax.__version__}"


def save_lm(folder: Path, lm: LM, params: Any, tokenizer: Any) -> None:
    """A finished language model with its tokenizer."""
    save_tokenizer(folder, tokenizer)
    checkpoint.save_model(folder, params, kind="lm", config=dataclasses.asdict(lm.config))


def save_scalar(folder: Path, model: ScalarModel, params: Any, tokenizer: Any) -> None:
    """A finished reward model with its tokenizer."""
    save_tokenizer(folder, tokenizer)
    config = {"lm": dataclasses.asdict(model.config), "final_norm": model.final_norm}
    checkpoint.save_model(folder, params, kind="scalar", config=config)


def save_tokenizer(folder: Path, tokenizer: Any) -> None:
    """An ordinary tokenizer folder; a full disk is the user's to put right, not a bug."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(f"{folder}: the tokenizer could not be written ({error})") from error


def load_lm(folder: str, mesh: jax.sharding.Mesh) -> tuple[LM, Any, Any]:
    """Language model, parameters and tokenizer of a folder."""
    config = _model_config(folder, "lm", "a language model")
    lm = make_lm(_transformer(folder, config))
    params = checkpoint.load_params(folder, loop.abstract_params(lm.init, mesh=mesh))
    return lm, params, tokenizers.load_tokenizer(folder)


def load_scalar(folder: str, mesh: jax.sharding.Mesh) -> tuple[ScalarModel, Any, Any]:
    """Reward model, parameters and tokenizer of a folder."""
    config = _model_config(folder, "scalar", "a reward model")
    model = make_scalar_model(_transformer(folder, config["lm"]), final_norm=config["final_norm"])
    params = checkpoint.load_params(folder, loop.abstract_params(model.init, mesh=mesh))
    return model, params, tokenizers.load_tokenizer(folder)


def same_tokenizer(a: Any, b: Any, what: str) -> None:
    """Refuse two models that read different tokens: nothing is decoded and tokenised again."""
    if a.get_vocab() != b.get_vocab():
        raise UserError(f"{what} use different tokenizers; train them from the same one")


def _model_config(folder: str, kind: str, wanted: str) -> dict[str, Any]:
    found, config = checkpoint.describe_model(folder)
    if found != kind:
        raise CheckpointError(f"{folder}: holds a model of kind {found!r}, {wanted} is needed")
    return config


def _transformer(folder: str, config: Mapping[str, Any]) -> TransformerConfig:
    try:
        return TransformerConfig(**config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/model.json: {error}") from error
