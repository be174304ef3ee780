"""`jaxrlhf export PATH output=FOLDER`: a model as an ordinary Hugging Face folder.

PATH is the folder of a training stage (its finished model, or with `step` one of its checkpoints,
the newest where it is not finished), or any model's folder or hub name, to change how its weights
are stored. Of a PPO run it is the policy. A reward model of a checkpoint is exported as trained so
far, before its scores are normalised: it ranks alike, in another unit.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from pydantic import Field

from jaxrlhf import checkpoint, config_file, sharding
from jaxrlhf.algorithms.base import whole
from jaxrlhf.config import Config
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.errors import CheckpointError, ConfigError
from jaxrlhf.hf import base_model, card, folder, hub
from jaxrlhf.metrics import read_metrics
from jaxrlhf.models import LM, ScalarModel, lora, make_lm, make_scalar_model
from jaxrlhf.progress import console
from jaxrlhf.recipes import adapters, blocks, saved
from jaxrlhf.recipes.stages import CHECKPOINTS, DESCRIPTION, MODEL


class ExportConfig(Config):
    """What is exported, and how it is stored."""

    path: str | None = Field(
        default=None, description="folder of a training stage or of a model, or a hub name"
    )
    output: str | None = Field(default=None, description="the folder to write")
    step: int | None = Field(
        default=None, ge=1, description="checkpoint of a stage; null: the finished model"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="of the stored weights"
    )
    max_shard_gb: float = Field(
        default=5.0, gt=0, description="a larger model is written in files of at most so many GB"
    )
    drop_padding: bool = Field(
        default=False, description="leave out vocabulary rows past the tokenizer's last token"
    )


CONFIG = ExportConfig
EXAMPLE = "jaxrlhf export runs/ppo output=my-model dtype=bfloat16"


class Model(NamedTuple):
    """What is to be written."""

    model: LM | ScalarModel
    params: Any
    tokenizer: Any
    family: str
    readme: str | None


def run(config: ExportConfig) -> dict[str, Any]:
    """Write the folder."""
    path = blocks.required("path", config.path)
    output = Path(blocks.required("output", config.output))
    if output.resolve() == Path(path).resolve():
        raise ConfigError(f"output = {output}: is what is exported; name another folder")
    found = load(path, config.step)
    options: dict[str, Any] = {
        "family": found.family,
        "readme": found.readme,
        "dtype": config.dtype,
        "max_shard_size": max(int(config.max_shard_gb * 1e9), 1),
        "vocab_size": len(found.tokenizer) if config.drop_padding else None,
    }
    if isinstance(found.model, LM):
        saved.save_lm(output, found.model, found.params, found.tokenizer, **options)
    else:
        saved.save_scalar(output, found.model, found.params, found.tokenizer, **options)
    size = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    console.print(f"{output}: {found.family}, {size / 1e6:,.1f} MB of {config.dtype} weights")
    return {"output": str(output), "bytes": size}


def load(path: str, step: int | None) -> Model:
    """The model that `path` and `step` name.

    Raises:
      CheckpointError: there is none.
    """
    stage = Path(path)
    if not (stage / DESCRIPTION).is_dir():
        if step is not None:
            raise ConfigError(f"step = {step}: {path} is not the folder of a training stage")
        return finished(path)
    if step is None and (stage / MODEL / folder.CONFIG).is_file():
        return finished(str(stage / MODEL))
    return of_checkpoint(stage, step)


def finished(path: str) -> Model:
    """A model's folder or hub name."""
    where = saved.find(path)
    tokenizer, read = saved.load_tokenizer(where), saved.reader(where)
    readme = where / folder.CARD
    text = readme.read_text("utf-8") if readme.is_file() else None
    if read.load_config(where).kind == "lm":
        lm = read.load_lm(where)
        return Model(lm.lm, lm.params, tokenizer, lm.family, text)
    scalar = read.load_scalar(where)
    return Model(scalar.model, scalar.params, tokenizer, scalar.family, text)


def of_checkpoint(stage: Path, step: int | None) -> Model:
    """The model of a checkpoint, which the stage's `model_config` describes."""
    steps = checkpoint.finished_steps(stage / CHECKPOINTS)
    if not steps or step not in (None, *steps):
        there = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(f"{stage}: no checkpoint {step or ''}; there are {there}")
    step = step or steps[-1]
    described = folder.load_config(stage / DESCRIPTION)
    tokenizer = tokenizers.load_tokenizer(stage / DESCRIPTION)
    if described.kind == "lm":
        model: LM | ScalarModel = make_lm(described.config)
    else:
        model = make_scalar_model(
            described.config, final_norm=described.final_norm, pooling=described.pooling
        )
    values = run_config(stage)
    parts = parts_of(stage, values, model, described.family)
    stored = checkpoint.stored_names(stage / CHECKPOINTS, step)
    policy = any(name.startswith("params/policy/") for name in stored)
    within = ("params", "policy") if policy else ("params",)
    params = checkpoint.restore_params(stage / CHECKPOINTS, step, parts.trained, within=within)
    readme = card_of_checkpoint(stage, step, described, values)
    params = lora.merge(whole(params, parts.frozen))
    return Model(model, params, tokenizer, described.family, readme)


def run_config(stage: Path) -> dict[str, Any]:
    """The resolved config of a stage."""
    path = stage / "config.yaml"
    return dict(config_file.read(path).values) if path.is_file() else {}


def parts_of(stage: Path, values: dict[str, Any], model: LM | ScalarModel, family: str):
    """Shapes of what a checkpoint holds, and the base that is none of it where adapters train."""
    if not values.get("lora"):
        return adapters.Parts(jax.eval_shape(model.init, jax.random.key(0)), None)
    name, base = next(iter(base_model.recall(stage).items()))
    mesh = sharding.make_mesh(1, 1)
    base_model.remember(stage, {name: saved.identify(base.path)})  # or it is another one by now
    params = saved.load_lm(base.path, mesh).params
    config, key = adapters.LoraConfig(**values["lora"]), jax.random.key(0)
    options: dict[str, Any] = {"family": family, "key": key, "mesh": mesh}
    if isinstance(model, LM):
        return adapters.of_lm(config, model.config, params, **options)
    return adapters.of_scalar(config, model.config, model.init(key, params), **options)


def card_of_checkpoint(
    stage: Path, step: int, described: folder.Description, values: dict[str, Any]
) -> str:
    """README.md of a checkpoint, from the config and log of its run."""
    rows = [row for row in read_metrics(stage) if row["step"] == step]
    metrics = {name: x for row in rows for name, x in row.items() if not name.startswith("time/")}
    if "policy" in values:
        recipe, base, data = "ppo", values["policy"], values.get("prompts", {}).get("files", ())
    else:
        recipe = "sft" if described.kind == "lm" else "reward"
        base, data = values.get("model_path"), values.get("data", {}).get("train", ())
    return card.text(
        card.Card(
            kind=described.kind,
            recipe=recipe,
            config=config_file.to_text(values),
            note=f"Checkpoint {step} of a run, before its end.",
            base=base,
            hub_base=base is not None and hub.is_hub_name(base),
            data=tuple(data),
            metrics=metrics,
            others_can_load=described.final_norm and described.pooling == "last",
        )
    )
