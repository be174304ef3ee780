"""What a transformer is made of: sizes, flags, and the families as flags, written out.

What it does not do: anything with arrays (`transformer.py` reads the config).
"""

import dataclasses
import difflib
from typing import Any, Literal

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "positions": "learned",
        "norm": "layer",
        "norm_epsilon": 1e-5,
        "mlp": "gelu",
        "bias": True,
        "tied_head": True,
    },
    "llama": {
        "positions": "rope",
        "rope_theta": 10_000.0,
        "norm": "rms",
        "norm_epsilon": 1e-5,
        "mlp": "swiglu",
        "bias": False,
        "tied_head": False,
    },
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and flags of one decoder. Hashable; wrong values raise ValueError naming the field.

    `num_kv_heads` None means `num_heads`; `head_dim` None means `d_model // num_heads`; both are
    filled in.
    `mlp` "gelu" is the tanh form (GPT-2's gelu_new). `bias` is that of the projections; a LayerNorm
    always has one, an RMSNorm never. `dtype` is the compute dtype: parameters are always float32.
    """

    vocab_size: int
    num_layers: int
    num_heads: int
    d_model: int
    d_ff: int
    max_positions: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    positions: Literal["learned", "rope"] = "rope"
    rope_theta: float = 10_000.0
    norm: Literal["layer", "rms"] = "rms"
    norm_epsilon: float = 1e-5
    mlp: Literal["gelu", "swiglu"] = "swiglu"
    bias: bool = False
    tied_head: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for field in ("vocab_size", "num_layers", "num_heads", "d_model", "d_ff", "max_positions"):
            _check(self, field, getattr(self, field) >= 1, "at least 1")
        for field in ("norm_epsilon", "rope_theta", "initializer_range"):
            _check(self, field, getattr(self, field) > 0, "positive")
        for field in ("positions", "norm", "mlp", "dtype"):
            allowed = TransformerConfig.__annotations__[field].__args__
            _check(self, field, getattr(self, field) in allowed, f"one of {', '.join(allowed)}")
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        kv_heads = self.num_kv_heads or 0
        divides = kv_heads >= 1 and self.num_heads % kv_heads == 0
        _check(self, "num_kv_heads", divides, f"a divisor of num_heads={self.num_heads}")
        if self.head_dim is None:
            divides = self.d_model % self.num_heads == 0
            rule = f"a multiple of num_heads={self.num_heads} (or set head_dim)"
            _check(self, "d_model", divides, rule)
            object.__setattr__(self, "head_dim", self.d_model // self.num_heads)
        _check(self, "head_dim", (self.head_dim or 0) >= 1, "at least 1")
        if self.positions == "rope":
            _check(self, "head_dim", (self.head_dim or 0) % 2 == 0, "even with rope positions")


def transformer_config(family: str, **sizes: Any) -> TransformerConfig:
    """The config of a family: its flags from `FAMILIES`, plus sizes (which may override a flag)."""
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} is not one of {', '.join(FAMILIES)}")
    fields = [field.name for field in dataclasses.fields(TransformerConfig)]
    for name in sizes:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"unknown field {name!r} of TransformerConfig; the nearest is {near!r}"
            )
    return TransformerConfig(**{**FAMILIES[family], **sizes})


def _check(config, field, holds, rule):
    if not holds:
        raise ValueError(f"{field}={getattr(config, field)!r} must be {rule}")
