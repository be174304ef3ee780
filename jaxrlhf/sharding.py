"""Where arrays live: the mesh, and the table from logical axes to mesh axes.

The only file that names mesh axes. Models name logical axes (`models.transformer.PARAM_AXES`),
losses know nothing. One CPU is mesh (1, 1). Nothing is replicated silently: an unknown leaf and a
dimension that does not divide are errors.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrlhf.errors import UserError
from jaxrlhf.models.transformer import PARAM_AXES

DATA, TENSOR = "data", "tensor"

RULES: dict[str, str | None] = {
    "vocab": TENSOR,
    "heads": TENSOR,
    "kv_heads": TENSOR,
    "mlp": TENSOR,
    "embed": None,
    "positions": None,
    "layers": None,
}


def make_mesh(data: int = -1, tensor: int = 1) -> Mesh:
    """A `(data, tensor)` mesh over the first `data * tensor` devices; data -1 takes all there are.

    Raises:
      UserError: more devices asked for than there are.
    """
    devices = jax.devices()
    if data == -1:
        data = max(len(devices) // tensor, 1)
    if data * tensor > len(devices):
        raise UserError(
            f"mesh ({data}, {tensor}) needs {data * tensor} devices, there are {len(devices)}"
        )
    grid = np.asarray(devices[: data * tensor]).reshape(data, tensor)
    return Mesh(grid, (DATA, TENSOR), axis_types=(AxisType.Auto, AxisType.Auto))


def tree_sharding(mesh: Mesh, tree: Any) -> Any:
    """A `NamedSharding` for every leaf of a state or parameter tree, by the leaf's name.

    Optimiser moments carry their parameter's path as a suffix, so they are laid out alike;
    scalars are replicated.

    Raises:
      UserError: a leaf that `PARAM_AXES` does not know, or a dimension that does not divide.
    """
    return jax.tree_util.tree_map_with_path(lambda path, x: _leaf_sharding(mesh, path, x), tree)


def elements_per_device(tree: Any, *, tensor: int) -> int:
    """Numbers that each device of a mesh with this tensor axis holds; no device is needed.

    Raises:
      UserError: as `tree_sharding`.
    """
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        spec = _spec(path, leaf, {DATA: 1, TENSOR: tensor})
        total += math.prod(leaf.shape) // (tensor if TENSOR in spec else 1)
    return total


def shard_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of every array, and of every tuple of arrays, spread over the data axis.

    Raises:
      UserError: the batch does not divide by the data axis.
    """
    rows, ways = NamedSharding(mesh, PartitionSpec(DATA)), mesh.shape[DATA]
    sizes = [(name, x.shape[0]) for name, xs in batch.items() for x in jax.tree.leaves(xs)]
    for name, size in sizes:
        if size % ways:
            nearest = max((size + ways // 2) // ways, 1) * ways
            raise UserError(
                f"batch of {size} rows ({name}) does not divide over {ways} devices of the "
                f"data axis; the nearest batch size that does is {nearest}"
            )
    return {name: jax.device_put(x, rows) for name, x in batch.items()}


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _leaf_sharding(mesh: Mesh, path: Any, leaf: Any) -> NamedSharding:
    return NamedSharding(mesh, _spec(path, leaf, mesh.shape))


def _spec(path: Any, leaf: Any, sizes: Mapping[str, int]) -> PartitionSpec:
    """Mesh axes of a leaf's dimensions; `sizes` are those of the mesh."""
    if not leaf.shape:
        return PartitionSpec()
    name = "/".join(_key(entry) for entry in path)
    axes = _logical_axes(name, len(leaf.shape))
    spec = PartitionSpec(*(None if axis is None else RULES[axis] for axis in axes))
    for size, mesh_axis, axis in zip(leaf.shape, spec, axes, strict=True):
        ways = 1 if mesh_axis is None else sizes[mesh_axis]
        if size % ways:
            raise UserError(
                f"{name}: axis {axis!r} of size {size} does not divide over {ways} devices of mesh "
                f"axis {mesh_axis!r}; pad it or choose a smaller mesh"
            )
    return spec


def _logical_axes(name: str, rank: int) -> tuple[str | None, ...]:
    """Logical axes of the parameter whose table entry is the end of `name`."""
    for suffix, axes in PARAM_AXES.items():
        if name == suffix or name.endswith("/" + suffix):
            stacked = "/blocks/" in f"/{name}"
            axes = ("layers", *axes) if stacked else axes
            if len(axes) == rank:
                return axes
    raise UserError(f"{name} (rank {rank}) has no entry in PARAM_AXES: name its axes there")


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
