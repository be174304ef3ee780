"""How one tensor of theirs becomes one or several of ours, and back: a row of a family's table.

What it does not do: read files or place arrays (`weights.py`).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

Parts = tuple[np.ndarray, ...]


class Entry(NamedTuple):
    """One tensor of a Hugging Face checkpoint.

    `ours` are paths of our leaves such as "blocks/q_proj/kernel": several where theirs is fused.
    `layer` is the row of our stacked leaves, None where they are not stacked. `split` makes ours
    from theirs, `join` theirs from ours; both may give views. `shape` is theirs. `aliases` are
    other names it may have: where two are present they must hold the same values. A kernel of
    theirs stands `[out, in]`, or `[in, out]` with `out_last`; `split` and `join` of a kernel take
    any size of `in`, so that they do for the factors of an adapter too.
    """

    name: str
    ours: tuple[str, ...]
    shape: tuple[int, ...]
    layer: int | None = None
    split: Callable[[np.ndarray], Parts] = lambda theirs: (theirs,)
    join: Callable[..., np.ndarray] = lambda ours: ours
    aliases: tuple[str, ...] = ()
    out_last: bool = False


def plain(
    name: str, ours: str, *shape: int, layer: int | None = None, aliases: tuple[str, ...] = ()
) -> Entry:
    """The same array on both sides."""
    return Entry(name, (ours,), shape, layer, aliases=aliases)


def linear(
    name: str, ours: str, *, d_in: int, d_out: int, bias: bool, layer: int | None = None
) -> list[Entry]:
    """A torch `Linear` NAME.weight `[out, in]` (and NAME.bias): our kernel is its transpose."""
    entries = [transposed(f"{name}.weight", f"{ours}/kernel", d_out, d_in, layer=layer)]
    return entries + ([plain(f"{name}.bias", f"{ours}/bias", d_out, layer=layer)] if bias else [])


def conv1d(name: str, ours: Iterable[str], *, d_in: int, d_out: int, layer: int) -> list[Entry]:
    """GPT-2's `Conv1D` NAME.weight `[in, out]` and NAME.bias, as ours; fused along out."""
    ours = tuple(ours)
    count = len(ours)
    shapes = {"kernel": (d_in, count * d_out), "bias": (count * d_out,)}
    return [
        Entry(
            f"{name}.{'weight' if leaf == 'kernel' else leaf}",
            tuple(f"{one}/{leaf}" for one in ours),
            shape,
            layer,
            split=lambda theirs: tuple(np.split(theirs, count, axis=-1)),
            join=lambda *parts: np.concatenate(parts, axis=-1),
            out_last=True,
        )
        for leaf, shape in shapes.items()
    ]


def transposed(
    name: str, ours: str, *shape: int, layer: int | None = None, aliases: tuple[str, ...] = ()
) -> Entry:
    """Ours is the transpose of theirs; `shape` is theirs."""
    return Entry(
        name,
        (ours,),
        shape,
        layer,
        split=lambda theirs: (theirs.T,),
        join=lambda mine: mine.T,
        aliases=aliases,
    )


def norm(name: str, ours: str, width: int, *, bias: bool, layer: int | None = None) -> list[Entry]:
    """A norm's NAME.weight (and NAME.bias)."""
    entries = [plain(f"{name}.weight", f"{ours}/scale", width, layer=layer)]
    return entries + ([plain(f"{name}.bias", f"{ours}/bias", width, layer=layer)] if bias else [])


def prefix_optional(entries: Iterable[Entry], prefix: str) -> list[Entry]:
    """Entries under `prefix` may also stand without it, as in files of the bare base model."""
    return [
        entry._replace(aliases=(*entry.aliases, entry.name.removeprefix(prefix)))
        if entry.name.startswith(prefix)
        else entry
        for entry in entries
    ]
