"""Rotary positions: the frequencies of every published kind of scaling, and the rotation itself.

Which length decides. "linear", "llama3" and "yarn" turn every sequence alike. The other two look
at its length n, in tokens: "dynamic" stretches its base once n passes the model's `max_positions`,
"longrope" changes from its short to its long factors once n passes
`original_max_position_embeddings`. Here n is each row's own: its largest position + 1, padding not
counted. Three things follow:

1. Hugging Face takes the largest n of the batch, and "dynamic" remembers the largest n it has ever
   seen. Here a row never depends on its neighbours or on history: the numbers agree with a fresh
   model that reads the row alone.
2. Past the limit the prediction after a prefix depends on the length of what follows it, so keys
   cached before the limit are wrong after it. `inference.generate` refuses to cross it (Hugging
   Face goes on with the stale keys). Below the limit nothing depends on n.
3. Rows with `segment_ids` have no length of their own; past the limit they are refused.

What it does not do: choosing the frequencies of a layer (`attention.py`).
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

# kind -> (fields it needs, fields it may have); all others must be left out.
_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        (),
    ),
    "yarn": (
        ("original_max_position_embeddings",),
        (
            *("factor", "attention_factor", "mscale", "mscale_all_dim"),
            *("beta_fast", "beta_slow", "truncate"),
        ),
    ),
    "longrope": (
        ("short_factor", "long_factor", "original_max_position_embeddings"),
        ("factor", "attention_factor"),
    ),
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How frequencies are changed for long texts; fields are named as in config.json.

    `factor` None (yarn, longrope) is max_positions / original_max_position_embeddings.
    Raises ValueError naming the field: one that the kind needs and does not have, or has and does
    not read.

    Sources: linear, Chen et al. 2023; dynamic and yarn, Peng et al. 2023; longrope, Ding et al.
    2024; llama3, the code of Llama 3.1.
    """

    kind: Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in _FIELDS:
            raise ValueError(f"kind={self.kind!r} must be one of {', '.join(_FIELDS)}")
        needed, allowed = _FIELDS[self.kind]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            if field.name in needed and value is None:
                raise ValueError(f"{field.name} is missing: rope scaling {self.kind!r} needs it")
            if field.name not in needed + allowed and value != field.default:
                raise ValueError(
                    f"{field.name}={value!r} is not read by rope scaling {self.kind!r}, which has "
                    f"{', '.join(needed + allowed)}"
                )
            numbers = value if isinstance(value, tuple) else (value,)
            if field.name != "truncate" and not all(n is None or 0 < n < math.inf for n in numbers):
                raise ValueError(f"{field.name}={value!r} must be positive and finite")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and high <= low:
            raise ValueError(f"high_freq_factor={high!r} must be above low_freq_factor={low!r}")

    def limit(self, max_positions: int) -> int | None:
        """The length past which frequencies depend on the length; None: they never do."""
        if self.kind == "dynamic":
            return max_positions
        return self.original_max_position_embeddings if self.kind == "longrope" else None


class Rope(NamedTuple):
    """Cosines and sines of one kind of layer, for the positions of a batch."""

    cos: jax.Array  # [B, T, 1, r / 2] f32, r the part of head_dim that is turned
    sin: jax.Array


def table(
    positions: jax.Array,
    size: int,
    *,
    theta: float,
    scaling: RopeScaling | None,
    max_positions: int,
    lengths: jax.Array | None,
    below: int | None = None,
) -> Rope:
    """Cosines and sines of `positions` `[B, T]` for `size` turned columns of a head.

    `lengths` `[B]` int, the length of each row; None says that no row is past the limit. If all
    positions are known to be `below` a number, those of so many are made once and looked up: XLA on
    a CPU would make them again in every layer, forward and backward (4 to 8 % of a gradient).
    """
    inverse, gain = frequencies(
        size, theta=theta, scaling=scaling, max_positions=max_positions, lengths=lengths
    )
    inverse = inverse.reshape(-1, 1, 1, size // 2)
    looked_up = below is not None and lengths is None
    rows = jnp.arange(below)[None] if looked_up else positions
    angles = rows[:, :, None, None].astype(jnp.float32) * inverse
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    rope = Rope(cos, sin) if gain == 1 else Rope(cos * gain, sin * gain)
    return jax.tree.map(lambda x: jnp.take(x[0], positions, axis=0), rope) if looked_up else rope


def rotate(x: jax.Array, rope: Rope) -> jax.Array:
    """Turn the first columns of every head of `x` `[B, T, H, head_dim]`, in float32.

    Half-split convention: of r turned columns, i and i + r / 2 are a pair.

    Source: Su et al. 2021 (RoFormer), equation 34, in the order of Hugging Face's checkpoints.
    """
    half = rope.cos.shape[-1]
    first, second, rest = jnp.split(x, (half, 2 * half), axis=-1)
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    turned = (first * rope.cos - second * rope.sin, second * rope.cos + first * rope.sin)
    turned = jnp.concatenate(turned, axis=-1).astype(x.dtype)
    return turned if rest.shape[-1] == 0 else jnp.concatenate([turned, rest], axis=-1)


def frequencies(
    size: int,
    *,
    theta: float,
    scaling: RopeScaling | None,
    max_positions: int,
    lengths: jax.Array | None = None,
) -> tuple[jax.Array, float]:
    """Radians a position, float32 `[size / 2]` or `[B, size / 2]`, and the gain of cos and sin."""
    exponents = -jnp.arange(size // 2, dtype=jnp.float32) / (size // 2)
    plain = theta**exponents
    if scaling is None:
        return plain, 1.0
    limit = scaling.limit(max_positions) or 0
    ratio = max_positions / (scaling.original_max_position_embeddings or max_positions)
    factor = ratio if scaling.factor is None else scaling.factor
    if scaling.kind == "linear":
        return plain / factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(scaling, plain), 1.0
    if scaling.kind == "yarn":
        return _yarn(scaling, plain, factor, size, theta), _yarn_gain(scaling, factor)
    if scaling.kind == "longrope":
        return _longrope(scaling, plain, limit, lengths), _longrope_gain(scaling, factor)
    if lengths is None:
        return plain, 1.0
    stretch = factor * jnp.maximum(lengths, limit) / limit - (factor - 1)
    bases = theta * stretch ** (size / (size - 2))
    return bases[:, None] ** exponents[None, :], 1.0


def _llama3(scaling, plain):
    """Long waves divided by the factor, short ones kept, a linear blend of both between them."""
    factor, low, high = scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * (kept + (1 - kept) / factor)


def _yarn(scaling, plain, factor, size, theta):
    """Peng et al. 2023, equations 17 to 23, the ramp in columns as in the authors' code."""

    def column(turns):
        """The (fractional) pair of columns that turns this often in the original context."""
        waves = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return size * math.log(waves) / (2 * math.log(theta))

    low, high = column(scaling.beta_fast or 32), column(scaling.beta_slow or 1)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    width = high - low if high != low else 0.001
    divided = jnp.clip((jnp.arange(size // 2, dtype=jnp.float32) - low) / width, 0.0, 1.0)
    return plain * (divided / factor + (1 - divided))


def _longrope(scaling, plain, limit, lengths):
    """Ding et al. 2024: each frequency divided by its own factor, short or long."""
    # Stacked scalars: an array made of a list would be captured by the program that is traced.
    short, long = (
        jnp.stack([jnp.float32(factor) for factor in factors])
        for factors in (scaling.short_factor, scaling.long_factor)
    )
    if lengths is None:
        return plain / short
    return plain[None, :] / jnp.where(lengths[:, None] > limit, long[None, :], short[None, :])


def _yarn_gain(scaling, factor):
    """Peng et al. 2023, equation 24; `mscale` and `mscale_all_dim` as in DeepSeek-V2's code."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def gain(scale):
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return gain(scaling.mscale) / gain(scaling.mscale_all_dim)
    return gain(1.0)


def _longrope_gain(scaling, factor):
    """Ding et al. 2024, the code: sqrt(1 + log(factor) / log(original length))."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(scaling.original_max_position_embeddings))
