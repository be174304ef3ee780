"""The families, written out, and which one a model belongs to. Each has its file.

A new family that differs by flags costs one reader, one writer, one name map and one line here.
"""

from collections.abc import Mapping
from typing import Any

from jaxrlhf.errors import CheckpointError, nearest
from jaxrlhf.hf.families.base import Family, refuse
from jaxrlhf.hf.families.gemma import GEMMA2, GEMMA3
from jaxrlhf.hf.families.gpt2 import GPT2
from jaxrlhf.hf.families.llama import LLAMA, MISTRAL, OLMO2, QWEN2, QWEN3, SMOLLM3
from jaxrlhf.hf.families.neox import NEOX
from jaxrlhf.models.config import TransformerConfig

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *(GPT2, NEOX, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3),
        *(OLMO2, SMOLLM3),
    )
}

__all__ = ["FAMILIES", "Family", "family_named", "family_of", "written_config"]


def family_named(name: Any, *, where: str = "config.json") -> Family:
    """The family of a `model_type`.

    Raises:
      CheckpointError: naming the nearest one that we know.
    """
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    guess = nearest(name, FAMILIES)
    hint = f"; the nearest is {guess!r}" if guess else ""
    raise CheckpointError(
        f"{where}: model_type = {name!r}: must be one of {', '.join(FAMILIES)}{hint}"
    )


def family_of(config: TransformerConfig) -> Family:
    """The first family whose config.json says exactly this mathematics.

    Raises:
      CheckpointError: none does; says what the nearest cannot express.
    """
    problems = {}
    for family in FAMILIES.values():
        try:
            written_config(family, config)
        except CheckpointError as error:
            problems[family.name] = str(error)
        else:
            return family
    nearest_to = min(problems.values(), key=len)
    raise CheckpointError(f"no family of Hugging Face has this architecture; {nearest_to}")


def written_config(family: Family, config: TransformerConfig) -> Mapping[str, Any]:
    """`family.write_config`, read back: raises CheckpointError unless it says the same model."""
    values = family.write_config(config)
    refuse(config, family.read_config(values), family.name)
    return values
