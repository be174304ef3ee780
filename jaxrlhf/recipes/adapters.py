"""LoRA in a recipe: what of a model trains, and the adapter's folder at the end.

Without a `lora` block all of a model trains. With one its weights stay as they are, in the compute
dtype; adapters train in float32, and they alone have moments in the optimiser and stand in
checkpoints. A finished run has both: `model/`, the adapter merged in, and `adapter/`, for PEFT.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from pydantic import Field

from jaxrlhf import sharding
from jaxrlhf.config import Config
from jaxrlhf.errors import CheckpointError, ConfigError
from jaxrlhf.hf import base_model, hub, peft_folder
from jaxrlhf.models import lora
from jaxrlhf.models.config import TransformerConfig
from jaxrlhf.recipes import saved

FOLDER = "adapter"


class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2021)."""

    rank: int = Field(default=16, ge=1, description="r, columns of A and rows of B")
    alpha: float = Field(default=32.0, gt=0, description="the update is alpha / r times A B")
    targets: tuple[str, ...] = Field(
        default=(lora.ALL_LINEAR,),
        description="projections, by our names or the model's own; all-linear: all it has",
    )
    use_rslora: bool = Field(default=False, description="alpha / sqrt(r) instead")

    def build(self, config: TransformerConfig, *, family: str | None) -> lora.Lora:
        """For a model of `config`.

        Raises:
          ConfigError: a projection that it does not have.
        """
        try:
            targets = peft_folder.module_targets(self.targets, config, family=family)
            return lora.Lora(self.rank, self.alpha, targets, self.use_rslora)
        except (CheckpointError, ValueError) as error:
            raise ConfigError(f"lora.{error}") from None


class Parts(NamedTuple):
    """Parameters cut in two; `frozen` is None where all of them train."""

    trained: Any
    frozen: Any


def kept_in(config: LoraConfig | None, dtype: saved.Dtype) -> saved.Dtype:
    """What a model's weights are kept in: those that train in float32."""
    return "float32" if config is None else dtype


def of_lm(
    config: LoraConfig | None,
    model: TransformerConfig,
    params: Any,
    *,
    family: str | None,
    key: jax.Array,
    mesh: jax.sharding.Mesh,
) -> Parts:
    """A language model's parameters, which are not copied."""
    if config is None:
        return Parts(params, None)
    spec = config.build(model, family=family)
    new = lora.init(spec, key, params), lora.scales(spec, params)
    adapters, scales = jax.device_put(new, sharding.tree_sharding(mesh, new))
    return Parts(adapters, lora.attach(params, scales))


def of_scalar(
    config: LoraConfig | None,
    model: TransformerConfig,
    params: Any,
    *,
    family: str | None,
    key: jax.Array,
    mesh: jax.sharding.Mesh,
) -> Parts:
    """A reward or value model's; its head trains beside the adapters."""
    if config is None:
        return Parts(params, None)
    body = of_lm(config, model, params["lm"], family=family, key=key, mesh=mesh)
    return Parts({"lm": body.trained, "head": params["head"]}, {"lm": body.frozen})


def remember(stage: Path, config: LoraConfig | None, bases: Mapping[str, str | None]) -> None:
    """Write down what adapters are trained beside, or refuse to go on beside something else.

    Args:
      bases: the models by their part in the run; None for a part that has no model.
    Raises:
      CheckpointError: the run was begun on another base.
    """
    if config is not None:
        named = {name: path for name, path in bases.items() if path}
        base_model.remember(stage, {name: saved.identify(path) for name, path in named.items()})


def save(
    stage: Path,
    model: TransformerConfig,
    params: Any,
    tokenizer: Any,
    *,
    base: str,
    family: str,
    head: Any = None,
) -> None:
    """Write `adapter/` of a stage's folder: the adapters attached to a language model's `params`.

    Args:
      base: the model it was trained beside, as the config names it.
      head: of a reward model.
    """
    where = stage / FOLDER
    name = base if hub.is_hub_name(base) else str(saved.find(base).absolute())
    peft_folder.save_adapter(where, model, params, head=head, family=family, base=name)
    tokenizer.save_pretrained(where)
