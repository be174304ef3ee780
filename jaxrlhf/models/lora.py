"""Low-rank adapters beside frozen weights: every adapted projection computes x·W + s·(x·A)·B.

Three trees with the names of the model they belong to, so that any of its functions takes their
union (`attach`), be it a language model, a scalar model, or PPO's policy and value together:

    base      {"blocks": {"q_proj": {"kernel": [L, in, out], ...}, ...}, ...}   frozen
    scales    {"blocks": {"q_proj": {"lora_scale": [L]}}}                       frozen: s
    adapters  {"blocks": {"q_proj": {"lora_a": [L, in, r], "lora_b": [L, r, out]}}}   trained

The base without adapters is the reference policy: no second copy of the weights. W + s·A·B is made
only for sampling (`decode_params`) and for export (`merge`).

What it does not do: dropout (policy, reference and value must agree), embeddings and output heads,
files (`hf/peft_folder.py`).

Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1. Deviation: A starts uniform, as in the
authors' code and in PEFT, where the paper says Gaussian.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.errors import nearest

Params = dict[str, Any]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALL_LINEAR = "all-linear"  # PEFT's word for every projection the model has
A, B, SCALE = "lora_a", "lora_b", "lora_scale"


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which projections are adapted, and how. Wrong values raise ValueError naming the field.

    rank: r, columns of A and rows of B.
    alpha: s = alpha / r, or alpha / √r with `use_rslora` (Kalajdzievski 2023, arXiv 2312.03732).
    targets: names from `PROJECTIONS`, or "all-linear" for all that the model has.
    """

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    use_rslora: bool = False

    def __post_init__(self) -> None:
        targets = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
        object.__setattr__(self, "targets", targets)
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"rank={self.rank!r} must be a whole number from 1 up")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha={self.alpha!r} must be positive and finite")
        choices = (*PROJECTIONS, ALL_LINEAR)
        for name in targets:
            if name not in choices:
                guess = nearest(name, choices)
                hint = f"; did you mean {guess!r}?" if guess else ""
                raise ValueError(f"targets: {name!r} is not one of {', '.join(choices)}{hint}")
        if not targets:
            raise ValueError("targets=() must name at least one projection")

    @property
    def scale(self) -> float:
        """s, what A·B is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def init(spec: Lora, key: jax.Array, base: Params) -> Params:
    """Fresh float32 adapters: A uniform in ±1/√in, B zero, so that the model is still the base.

    Args:
      base: parameters of a language model, or their shapes.
    Raises:
      ValueError: a target that the model does not have.
    """
    found, blocks = {}, base["blocks"]
    for name in _targets(spec, base):
        layers, d_in, d_out = blocks[name]["kernel"].shape
        shape, bound = (layers, d_in, spec.rank), 1 / math.sqrt(d_in)
        own = jax.random.fold_in(key, PROJECTIONS.index(name))  # whatever else is adapted
        found[name] = {
            A: jax.random.uniform(own, shape, minval=-bound, maxval=bound),
            B: jnp.zeros((layers, spec.rank, d_out)),
        }
    return {"blocks": found}


def scales(spec: Lora, base: Params) -> Params:
    """The frozen s of every layer, which belongs beside the base. Arguments as `init`."""
    layers = {name: base["blocks"][name]["kernel"].shape[0] for name in _targets(spec, base)}
    return {"blocks": {name: {SCALE: jnp.full(n, spec.scale)} for name, n in layers.items()}}


def frozen(spec: Lora, base: Params) -> Params:
    """Everything that does not train: the base's own arrays, not copied, and the scales."""
    return attach(base, scales(spec, base))


def attach(base: Params, adapters: Params) -> Params:
    """The union of two nested dicts, arrays not copied.

    Raises:
      ValueError: an array that both have.
    """
    return _united(base, adapters, "")


def merge(params: Params) -> Params:
    """Plain parameters of the same function: every adapted W becomes W + s·A·B, in float32.

    Float32 whatever W is kept in: bfloat16 would round most of a small change away. Stacked layers
    or a single one, at any depth of the tree; what has no adapter is not copied.
    """
    if A in params:
        kernel, a, b, scale = (params[name].astype(jnp.float32) for name in ("kernel", A, B, SCALE))
        scale = scale.reshape(*scale.shape, 1, 1)
        params = {**params, "kernel": kernel + scale * jnp.matmul(a, b, precision="highest")}
    return {
        name: merge(value) if isinstance(value, dict) else value
        for name, value in params.items()
        if name not in (A, B, SCALE)
    }


# ------------------------------------------------------------------ helpers


def _targets(spec: Lora, base: Params) -> list[str]:
    """The projections to adapt, in the order of `PROJECTIONS`."""
    have = [name for name in PROJECTIONS if name in base["blocks"]]
    missing = [name for name in spec.targets if name not in (*have, ALL_LINEAR)]
    if missing:
        raise ValueError(
            f"targets: this model has no {', '.join(missing)}; it has {', '.join(have)}"
        )
    return [name for name in have if name in spec.targets or ALL_LINEAR in spec.targets]


def _united(a, b, path):
    if not (isinstance(a, dict) and isinstance(b, dict)):
        raise ValueError(f"{path.removeprefix('/')} is in both trees")
    both = {name: _united(a[name], b[name], f"{path}/{name}") for name in a if name in b}
    return {**a, **b, **both}
