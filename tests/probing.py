"""What a probe of a config field is; the tables of them lie in `field_probes/`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import recipe_probes as recipes


class Probe(NamedTuple):
    """`observe` sees a difference when `change` is added to `base`; the field comes first in it."""

    observe: Callable[..., Any]
    change: tuple[str, ...]
    base: tuple[str, ...] = ()


def p(observe: Callable[..., Any], *change: str, base: tuple[str, ...] = ()) -> Probe:
    return Probe(observe, change, base)


def of(recipe: str, name: str, *change: str, base: tuple[str, ...] = ()) -> Probe:
    """Through a part of a training recipe: its batch, parameters, update, ..."""
    return Probe(recipes.part(recipe, name), change, base)


@functools.cache
def seen(observe: Callable[..., Any], *overrides: str) -> Any:
    return observe(*overrides)
