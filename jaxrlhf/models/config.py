"""What a transformer is made of: sizes and flags, and two families to train from nothing.

The families of published checkpoints are combinations of the same flags, written down beside the
names of their tensors in `jaxrlhf/hf`.

What it does not do: anything with arrays (`transformer.py` reads the config).
"""

import dataclasses
import difflib
import math
from typing import Any, Literal, get_args, get_type_hints

from jaxrlhf.models.rope import RopeScaling

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "positions": "learned",
        "norm": "layer",
        "norm_epsilon": 1e-5,
        "mlp": "gelu",
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "tied_head": True,
    },
    "llama": {
        "positions": "rope",
        "rope_theta": 10_000.0,
        "norm": "rms",
        "norm_epsilon": 1e-5,
        "mlp": "swiglu",
        "tied_head": False,
    },
}

LayerRope = Literal["main", "local", "none"]


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and flags of one decoder. Hashable; wrong values raise ValueError naming the field.

    `num_kv_heads` None means `num_heads`; `head_dim` None means `d_model // num_heads`; both are
    filled in. A LayerNorm always has a bias, an RMSNorm never. `dtype` is the compute dtype.

    positions: learned (added to the embedding), rope, or none.
    rope_fraction: share of head_dim that is turned (GPT-NeoX).
    rope_scaling: changes the frequencies of "main" layers; see `rope.py`.
    local_rope_theta: base of the "local" layers, which are never scaled (Gemma 3).
    layer_rope: one a layer; None is "main" in all. "none" leaves its positions out (SmolLM3).
    layer_windows: one a layer, 0 unlimited; None is 0 in all. A token sees itself and the
      window - 1 tokens before it.
    norm_offset: the scale applied is norm_offset + the parameter (Gemma: 1).
    norm_placement: "pre" norms what a branch reads, "post" what it writes (OLMo 2), "sandwich" both
      (Gemma).
    qk_norm: an RMSNorm of queries and keys before they are turned: of each "head" (Qwen3, Gemma 3)
      or of the "full" projection (OLMo 2).
    parallel_residual: attention and MLP read the same residual stream (GPT-NeoX).
    mlp: "gelu" is the tanh form (GPT-2's gelu_new), "gelu_exact" the one with erf; "swiglu" and
      "geglu" (tanh) are gated.
    attention_scale: what q·k is multiplied by; None is head_dim ** -0.5.
    attention_soft_cap, final_soft_cap: c turns attention scores, or logits, z into c·tanh(z / c).
    embed_scale: what embeddings are multiplied by, rounded to the compute dtype (Gemma).
    """

    vocab_size: int
    num_layers: int
    num_heads: int
    d_model: int
    d_ff: int
    max_positions: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    positions: Literal["learned", "rope", "none"] = "rope"
    rope_theta: float = 10_000.0
    rope_fraction: float = 1.0
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None
    layer_rope: tuple[LayerRope, ...] | None = None
    layer_windows: tuple[int, ...] | None = None
    norm: Literal["layer", "rms"] = "rms"
    norm_epsilon: float = 1e-5
    norm_offset: float = 0.0
    norm_placement: Literal["pre", "sandwich", "post"] = "pre"
    qk_norm: Literal["none", "head", "full"] = "none"
    parallel_residual: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    mlp: Literal["gelu", "gelu_exact", "relu", "silu", "swiglu", "geglu"] = "swiglu"
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    embed_scale: float | None = None
    tied_head: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for field in ("vocab_size", "num_layers", "num_heads", "d_model", "d_ff", "max_positions"):
            _check(self, field, getattr(self, field) >= 1, "at least 1")
        for field in _POSITIVE:
            value = getattr(self, field)
            holds = value is None or 0 < value < math.inf
            _check(self, field, holds, "positive and finite")
        _check(self, "norm_offset", math.isfinite(self.norm_offset), "finite")
        for field, allowed in _CHOICES.items():
            _check(self, field, getattr(self, field) in allowed, f"one of {', '.join(allowed)}")
        self._check_heads()
        self._check_layers()
        self._check_rope()
        if self.parallel_residual:
            rule = "'pre' with parallel_residual"
            _check(self, "norm_placement", self.norm_placement == "pre", rule)

    @property
    def rotary_size(self) -> int:
        """Columns of each head that rotary positions turn."""
        return int((self.head_dim or 0) * self.rope_fraction)

    def _check_heads(self):
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

    def _check_layers(self):
        for field in ("layer_rope", "layer_windows"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, tuple(getattr(self, field)))
                holds = len(getattr(self, field)) == self.num_layers
                _check(self, field, holds, f"one value for each of {self.num_layers} layers")
        windows = self.layer_windows or ()
        _check(self, "layer_windows", all(w >= 0 for w in windows), "0 (unlimited) or positive")
        kinds = get_args(LayerRope)
        holds = all(kind in kinds for kind in self.layer_rope or ())
        _check(self, "layer_rope", holds, f"made of {', '.join(kinds)}")

    def _check_rope(self):
        if self.positions != "rope":
            for field in ("rope_scaling", "layer_rope"):
                rule = f"None with positions={self.positions!r}"
                _check(self, field, getattr(self, field) is None, rule)
            return
        _check(self, "rope_fraction", self.rope_fraction <= 1, "at most 1")
        if self.rope_fraction == 1:
            _check(self, "head_dim", (self.head_dim or 0) % 2 == 0, "even with rope positions")
        size = self.rotary_size
        rule = f"such that an even number of head_dim={self.head_dim} columns is turned; not {size}"
        _check(self, "rope_fraction", size >= 2 and size % 2 == 0, rule)
        needs = self.local_rope_theta is None and "local" in (self.layer_rope or ())
        _check(self, "local_rope_theta", not needs, "given, as layer_rope has local layers")
        scaling = self.rope_scaling
        if scaling is not None:
            for field in ("short_factor", "long_factor"):
                factors = getattr(scaling, field)
                fits = factors is None or len(factors) == size // 2
                _check(self, "rope_scaling", fits, f"{field} of {size // 2} numbers")
            fits = scaling.kind != "dynamic" or size > 2
            _check(self, "rope_scaling", fits, "of another kind where only 2 columns are turned")


_POSITIVE = (
    *("norm_epsilon", "rope_theta", "rope_fraction", "initializer_range", "local_rope_theta"),
    *("attention_scale", "attention_soft_cap", "final_soft_cap", "embed_scale"),
)
_CHOICES: dict[str, tuple[str, ...]] = {
    name: get_args(hint)
    for name, hint in get_type_hints(TransformerConfig).items()
    if getattr(hint, "__origin__", None) is Literal
}


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
