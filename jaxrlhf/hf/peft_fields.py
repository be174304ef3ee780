"""adapter_config.json of PEFT: what it says, what of it we cannot honour, and writing one.

As with config.json, every field is accounted for (`fields.py`): one that changes what an adapter
computes is an error that names it.

What it does not do: tensors and names of modules (`peft_folder.py`).
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrlhf.hf import shards
from jaxrlhf.hf.fields import Fields

CONFIG = "adapter_config.json"

# Would change what is computed; only "not set" can be honoured.
_UNSUPPORTED = (
    *("use_dora", "lora_bias", "use_qalora", "use_bdlora", "layers_to_transform"),
    *("layers_pattern", "layer_replication", "trainable_token_indices", "target_parameters"),
    *("alora_invocation_tokens", "arrow_config", "velora_config", "kasa_config"),
    *("monteclora_config", "megatron_config", "ensure_weight_tying"),
)
_HARMLESS = (
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
    *("runtime_config", "lora_dropout", "fan_in_fan_out", "exclude_modules", "megatron_core"),
    *("qalora_group_size", "eva_config", "loftq_config", "corda_config", "lora_ga_config"),
)


class Setup(NamedTuple):
    """What adapter_config.json says."""

    scalar: bool
    base: str | None
    targets: tuple[str, ...]
    rank: int
    ranks: Mapping[str, Any]  # patterns of names, and their own rank ...
    alpha: float
    alphas: Mapping[str, Any]  # ... or alpha
    use_rslora: bool

    def rank_of(self, name: str) -> int:
        return int(_by_pattern(self.ranks, name, self.rank))

    def scale_of(self, name: str) -> float:
        rank = self.rank_of(name)
        root = math.sqrt(rank) if self.use_rslora else rank
        return float(_by_pattern(self.alphas, name, self.alpha)) / root


def read(folder: Path, ignore: tuple[str, ...]) -> Setup:
    """What a folder's adapter_config.json says.

    Raises:
      CheckpointError: damaged, or a field that we cannot honour.
    """
    values = shards.read_json(folder, CONFIG)
    fields = Fields(values, where=str(folder / CONFIG))
    kind = fields.take("peft_type")
    if kind != "LORA":
        raise fields.error("peft_type", "only LORA can be computed here", kind)
    fields.only("task_type", "CAUSAL_LM", "SEQ_CLS")
    fields.only("bias", "none")
    # The others (PiSSA, OLoRA, LoftQ, CorDA ...) belong to a base whose weights were changed too.
    fields.only("init_lora_weights", True, False, "gaussian", "orthogonal", "eva")
    for name in _UNSUPPORTED:
        value = fields.take(name, None)
        if name not in ignore and value not in (None, False, [], {}):
            raise fields.error(name, "cannot be computed here", value)
    scalar = fields.take("task_type", "CAUSAL_LM") == "SEQ_CLS"
    saved = fields.take("modules_to_save", None) or []
    allowed = {"score", "classifier"} if scalar else set()
    if not isinstance(saved, list) or not set(map(str, saved)) <= allowed:
        rule = "only score of a SEQ_CLS adapter can be trained beside it"
        raise fields.error("modules_to_save", rule, saved)
    targets = fields.take("target_modules", None) or []
    base = fields.take("base_model_name_or_path", None)
    setup = Setup(
        scalar=scalar,
        base=base if isinstance(base, str) else None,
        targets=tuple(map(str, targets)) if isinstance(targets, list) else (),
        rank=fields.size("r", 8),
        ranks=_patterns(fields, "rank_pattern"),
        alpha=fields.number("lora_alpha", 8),
        alphas=_patterns(fields, "alpha_pattern"),
        use_rslora=fields.flag("use_rslora", False),
    )
    fields.finish(_HARMLESS, ignore=ignore)
    return setup


def written(shapes: Mapping[str, tuple[int, float]], own: Sequence[tuple[int, float]]) -> dict:
    """The fields of an adapter whose modules have these (rank, alpha).

    `own` are those of our projections: the most common one is said once, others in patterns.
    """
    rank, alpha = max(own, key=own.count)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _whole(alpha),
        "rank_pattern": {name: r for name, (r, _) in shapes.items() if r != rank},
        "alpha_pattern": {
            name: _whole(a)
            for name, (_, a) in shapes.items()
            if not math.isclose(a, alpha, rel_tol=1e-6)
        },
        "target_modules": list(shapes),
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _patterns(fields: Fields, field: str) -> dict[str, Any]:
    found = fields.take(field, {})
    if not isinstance(found, dict):
        raise fields.error(field, "must be an object of patterns and numbers", found)
    for pattern, value in found.items():
        name = f"{field}[{pattern!r}]"
        fields.positive(name, value)
        if field == "rank_pattern" and type(value) is not int:
            raise fields.error(name, "must be a whole number", value)
        if not _plain(pattern):
            raise fields.error(field, "only plain names can be matched here", pattern)
    return found


def _plain(pattern: str) -> bool:
    """Whether a stranger's regular expression is one, and without repetitions."""
    try:
        re.compile(pattern)
    except re.error:
        return False
    return re.fullmatch(r"[\w.^\\-]{1,200}", pattern) is not None


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of the first pattern that ends `name`, as PEFT matches them."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _whole(number: float) -> int | float:
    """A whole number where it is one but for float32."""
    near = round(number)
    return near if math.isclose(number, near, rel_tol=1e-6) else number
