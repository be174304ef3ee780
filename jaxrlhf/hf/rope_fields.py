"""Rotary positions in config.json, in both layouts: `rope_parameters` of transformers 5, and
`rope_theta`, `rope_scaling`, `partial_rotary_factor` of transformers 4.

Read: either, or both where they say the same; a contradiction is an error, because readers differ
in which one they believe. Written: both, so that older readers compute the same.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxrlhf.hf.fields import Fields
from jaxrlhf.models.rope import RopeScaling

# The kinds, and the fields each reads, beside `original_max_position_embeddings`.
KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        *("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
        "truncate",
    ),
    "longrope": ("factor", "attention_factor", "short_factor", "long_factor"),
}
_ORIGINAL = "original_max_position_embeddings"
_KNOWS_ORIGINAL = ("llama3", "yarn", "longrope")  # the others are given it and do not read it
_UNREAD = ("finetuned",)


class Rope(NamedTuple):
    """What TransformerConfig says about rotary positions."""

    rope_theta: float
    rope_fraction: float = 1.0
    rope_scaling: RopeScaling | None = None


class Legacy(NamedTuple):
    """Names of the transformers 4 fields, which differ by family."""

    theta: str = "rope_theta"
    fraction: str = "partial_rotary_factor"


def read(
    fields: Fields,
    *,
    max_positions: int,
    default_theta: float = 10_000.0,
    default_fraction: float | None = None,
    legacy: Legacy = Legacy(),  # noqa: B008  (immutable)
) -> Rope:
    """The rotary positions of a config whose layers all share them.

    Without a `default_fraction` the family turns its heads in full: Hugging Face's class of it does
    not read the field, so any other value would mean two models.
    """
    new = _object(fields, "rope_parameters", fields.take("rope_parameters", {}))
    old = _object(fields, "rope_scaling", fields.take("rope_scaling", {}))
    both = merged(fields, new, old)
    original = fields.take(_ORIGINAL, None)  # of all places, this one has priority
    if original is not None:
        both[_ORIGINAL] = original
    for name, inner in ((legacy.theta, "rope_theta"), (legacy.fraction, "partial_rotary_factor")):
        outside = fields.take(name, None)
        if outside is not None and both.setdefault(inner, outside) != outside:
            raise fields.error(name, f"contradicts rope_parameters, where it is {both[inner]}")
    both.setdefault("rope_theta", default_theta)
    both.setdefault("partial_rotary_factor", default_fraction or 1.0)
    rope = parse(fields, "rope_parameters", both, max_positions=max_positions)
    if default_fraction is None and rope.rope_fraction != 1:
        name = "rope_parameters.partial_rotary_factor"
        raise fields.error(name, "only 1 can be computed here", rope.rope_fraction)
    return rope


def parse(fields: Fields, where: str, values: Mapping[str, Any], *, max_positions: int) -> Rope:
    """One flat rope object (`rope_parameters`, or a layer type's part of it)."""
    values = {name: value for name, value in values.items() if value is not None}
    kind = values.pop("rope_type", None) or values.get("type", "default")
    if values.pop("type", kind) != kind:
        raise fields.error(f"{where}.type", f"contradicts rope_type {kind!r}")
    if not isinstance(kind, str) or kind not in KINDS:
        raise fields.error(f"{where}.rope_type", f"must be one of {', '.join(KINDS)}", kind)
    theta = fields.positive(f"{where}.rope_theta", values.pop("rope_theta", None))
    fraction = fields.positive(
        f"{where}.partial_rotary_factor", values.pop("partial_rotary_factor", 1.0)
    )
    if fraction > 1:
        raise fields.error(f"{where}.partial_rotary_factor", "must be at most 1", fraction)
    original = values.pop(_ORIGINAL, max_positions)
    for name in _UNREAD:
        values.pop(name, None)
    for name, value in values.items():
        if name not in KINDS[kind]:
            allowed = ", ".join(KINDS[kind]) or "no fields of its own"
            raise fields.error(f"{where}.{name}", f"rope_type {kind!r} has {allowed}", value)
    if kind == "default":
        return Rope(float(theta), float(fraction))
    if kind in _KNOWS_ORIGINAL:
        values[_ORIGINAL] = fields.positive(f"{where}.{_ORIGINAL}", original)
        if kind != "llama3":
            values.setdefault("factor", max_positions / original)
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(fields.positive(f"{where}.{name}", one) for one in value)
        elif type(value) is not bool or name != "truncate":
            fields.positive(f"{where}.{name}", value)
    try:
        scaling = RopeScaling(kind=kind, **values)  # type: ignore[arg-type]
    except ValueError as error:
        raise fields.error(where, str(error)) from None
    return Rope(float(theta), float(fraction), scaling)


def merged(fields: Fields, new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """Both layouts as one; the oldest files say `type` for `rope_type`."""
    merged = _named(new)
    for name, value in _named(old).items():
        if merged.setdefault(name, value) != value:
            raise fields.error(
                f"rope_scaling.{name}", f"contradicts rope_parameters, where it is {merged[name]!r}"
            )
    return merged


def write(rope: Rope, *, legacy: Legacy = Legacy(), always_fraction: bool = False) -> dict:  # noqa: B008
    """The fields of config.json, in both layouts."""
    new = flat(rope, always_fraction=always_fraction)
    outer = ("rope_theta", "partial_rotary_factor")
    scaling = {name: value for name, value in new.items() if name not in outer}
    values = {
        "rope_parameters": new,
        "rope_scaling": scaling if rope.rope_scaling is not None else None,
        legacy.theta: rope.rope_theta,
    }
    if "partial_rotary_factor" in new:
        values[legacy.fraction] = rope.rope_fraction
    return values


def flat(rope: Rope, *, always_fraction: bool = False) -> dict[str, Any]:
    """One flat rope object in the layout of transformers 5."""
    values: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.rope_theta}
    if rope.rope_fraction != 1.0 or always_fraction:
        values["partial_rotary_factor"] = rope.rope_fraction
    scaling = rope.rope_scaling
    if scaling is not None:
        values["rope_type"] = scaling.kind
        known = (*KINDS[scaling.kind], *((_ORIGINAL,) if scaling.kind in _KNOWS_ORIGINAL else ()))
        for name in known:
            value = getattr(scaling, name)
            if value is not None:
                values[name] = list(value) if isinstance(value, tuple) else value
    return values


def _named(values: dict[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in values.items() if value is not None}
    if "type" in values and "rope_type" not in values:
        values["rope_type"] = values.pop("type")
    return values


def _object(fields: Fields, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise fields.error(name, "must be an object", value)
    return value
