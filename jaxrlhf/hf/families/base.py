"""What a family is, and what several of them share.

What it does not do: name a tensor or a field of one family (each has its file).
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf.entries import Entry
from jaxrlhf.hf.fields import Fields
from jaxrlhf.models.config import TransformerConfig

# Activation names of Hugging Face -> `mlp` of TransformerConfig; the reverse takes the first.
PLAIN_MLP = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
    "gelu_python_tanh": "gelu",
    "gelu": "gelu_exact",
    "gelu_python": "gelu_exact",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
GATED_MLP = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}

FULL, SLIDING = "full_attention", "sliding_attention"


class Family(NamedTuple):
    """One `model_type`: how its config.json and its tensors map to ours, both ways.

    `read_config(values, *, ignore=())` gives the TransformerConfig, `write_config(config)` the
    fields of config.json that the mathematics needs; both raise CheckpointError for what cannot be
    expressed. `entries(config)` lists every tensor of the causal language model.
    """

    name: str  # model_type
    causal: str  # what `architectures` says of a language model ...
    classifier: str  # ... and of a sequence classifier
    bases: tuple[str, ...]  # other architectures that hold the same tensors
    read_config: Callable[..., TransformerConfig]
    write_config: Callable[[TransformerConfig], dict[str, Any]]
    entries: Callable[[TransformerConfig], list[Entry]]
    ignored: tuple[str, ...] = ()  # patterns of tensors that hold nothing learned


def config_from(fields: Fields, values: Mapping[str, Any]) -> TransformerConfig:
    """A TransformerConfig; what it refuses is an error of the file."""
    try:
        return TransformerConfig(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{fields.where}: cannot be computed here: {error}") from None


def per_layer(values: Iterable[Any], default: Any) -> tuple[Any, ...] | None:
    """A value a layer; None where all of them are the default."""
    values = tuple(values)
    return None if all(value == default for value in values) else values


def windows(
    fields: Fields, types: Collection[str], window: int | None, *, what: str = "layer_types"
) -> tuple[int, ...] | None:
    """The sliding window of each layer, 0 where attention is full."""
    if SLIDING in types and window is None:
        raise fields.error("sliding_window", f"is off, but {what} has layers of {SLIDING!r}")
    return per_layer((window if kind == SLIDING else 0 for kind in types), 0)


def reverse(table: Mapping[str, str], mlp: str) -> str:
    """The Hugging Face name of an `mlp`."""
    for name, ours in table.items():
        if ours == mlp:
            return name
    raise CheckpointError(
        f"mlp={mlp!r}: this family has {', '.join(dict.fromkeys(table.values()))}"
    )


def sliding(config: TransformerConfig) -> tuple[int | None, list[str]]:
    """The one window of a config, and each layer's type.

    Raises:
      CheckpointError: two sizes of window.
    """
    sizes = config.layer_windows or (0,) * config.num_layers
    found = sorted(set(sizes) - {0})
    if len(found) > 1:
        raise CheckpointError(f"layer_windows={found}: a family has one size of window")
    return (found[0] if found else None), [SLIDING if size else FULL for size in sizes]


def canonical(config: TransformerConfig) -> TransformerConfig:
    """The same mathematics, said in one way: for comparing configs.

    Precision, rematerialisation and initialisation are not part of the mathematics.
    """
    changes: dict[str, Any] = {"dtype": "float32", "remat": False, "initializer_range": 0.02}
    changes["attention_scale"] = config.attention_scale or (config.head_dim or 1) ** -0.5
    changes["layer_windows"] = per_layer(config.layer_windows or (0,), 0)
    ropes = config.layer_rope or ("main",)
    changes["layer_rope"] = per_layer(ropes, "main")
    if "local" not in ropes:
        changes["local_rope_theta"] = None
    if config.positions != "rope":
        changes |= {"rope_theta": 1.0, "rope_fraction": 1.0, "rope_scaling": None}
        changes |= {"layer_rope": None, "local_rope_theta": None}
    return dataclasses.replace(config, **changes)


def refuse(config: TransformerConfig, wanted: TransformerConfig, family: str) -> None:
    """Raise for the fields in which what was written would be read back as another model."""
    a, b = canonical(config), canonical(wanted)
    problems = [
        f"{field.name}={getattr(a, field.name)!r} (it has {getattr(b, field.name)!r})"
        for field in dataclasses.fields(a)
        if getattr(a, field.name) != getattr(b, field.name)
    ]
    if problems:
        raise CheckpointError(f"family {family!r} cannot express {', '.join(problems)}")
