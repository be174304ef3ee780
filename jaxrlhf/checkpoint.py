"""Saving and restoring runs (orbax `CheckpointManager`); finished models are `hf/folder.py`'s.

A checkpoint holds the whole `State` and the data position, and is complete or absent: orbax
writes to a temporary folder and renames it. When the newest one cannot be read the one before it
is used, and a line says so. Restoring checks names and shapes first and lists what differs.
No pickles, no code: arrays and JSON only.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from jaxrlhf.errors import CheckpointError

log = logging.getLogger(__name__)


class Position(Protocol):
    """An iterator that can say where it is, as JSON."""

    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


class Checkpoints:
    """The checkpoints of one run, newest last; keeps `keep` of them."""

    def __init__(self, directory: str | Path, *, keep: int = 2):
        self.directory = Path(directory).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=("state", "data"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
            ),
        )

    def save(self, step: int, state: Any, data: Position | None) -> None:
        """Write a checkpoint; returns when it is on disk.

        Raises:
          CheckpointError: it could not be written; earlier checkpoints are untouched.
        """
        position = {"position": None if data is None else data.get_state()}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(position)
        )
        try:
            self._manager.save(step, args=items, force=True)
            self._manager.wait_until_finished()
        except Exception as error:
            raise CheckpointError(
                f"{self.directory}: checkpoint {step} could not be written ({_reason(error)}); "
                f"the last good one is {_name(self._finished())}"
            ) from error

    def restore(self, abstract: Any, data: Position | None) -> Any | None:
        """The newest readable state, laid out as `abstract` says; None when there is none.

        Args:
          abstract: tree of `jax.ShapeDtypeStruct` with shardings.
          data: is moved to where it was when the checkpoint was written.
        Raises:
          CheckpointError: checkpoints exist but hold another model, or none can be read.
        """
        steps = self._finished()
        problems = []
        for step in reversed(steps):
            try:
                items = self._read(step, abstract)
            except _Mismatch as error:
                raise CheckpointError(f"{self.directory / str(step)}: {error}") from None
            except Exception as error:
                problems.append(f"checkpoint {step}: {_reason(error)}")
                log.warning(
                    "%s: checkpoint %d cannot be read (%s); trying the one before it",
                    self.directory,
                    step,
                    _reason(error),
                )
                continue
            if data is not None:
                data.set_state(items["data"]["position"])
            for later in [s for s in steps if s > step]:
                self._manager.delete(later)
            return items["state"]
        if problems:
            raise CheckpointError(
                f"{self.directory}: no readable checkpoint. " + "; ".join(problems)
            )
        return None

    def close(self) -> None:
        self._manager.close()

    def _finished(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def _read(self, step: int, abstract: Any) -> Any:
        folder = self.directory / str(step) / "state"
        check_shapes(stored_shapes(folder), abstract)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
        )
        return self._manager.restore(step, args=args)


def finished_steps(directory: str | Path) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first."""
    found = Path(directory).glob("[0-9]*")
    return sorted(int(path.name) for path in found if path.name.isdigit())


def stored_names(directory: str | Path, step: int) -> list[str]:
    """Paths of the arrays in a checkpoint, such as "params/embed/embedding".

    Raises:
      CheckpointError: it cannot be read.
    """
    folder = Path(directory).absolute() / str(step) / "state"
    try:
        return list(stored_shapes(folder))
    except Exception as error:
        raise CheckpointError(f"{folder.parent}: cannot be read ({_reason(error)})") from error


def restore_params(
    directory: str | Path, step: int, abstract: Any, *, within: tuple[str, ...] = ("params",)
) -> Any:
    """Parameters alone of a run's checkpoint; optimiser and the rest are not read.

    Args:
      abstract: tree of `jax.ShapeDtypeStruct`; the result is numpy arrays of these shapes.
      within: where in the state the tree hangs.
    Raises:
      CheckpointError: names or shapes differ (all are listed), or it cannot be read.
    """
    folder = Path(directory).absolute() / str(step) / "state"
    for name in reversed(within):
        abstract = {name: abstract}
    prefix = "/".join(within) + "/"
    as_numpy = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(restore_type=np.ndarray), abstract)
    args = ocp.args.PyTreeRestore(item=abstract, partial_restore=True, restore_args=as_numpy)
    try:
        stored = {name: x for name, x in stored_shapes(folder).items() if name.startswith(prefix)}
        check_shapes(stored, abstract)
        with ocp.PyTreeCheckpointer() as checkpointer:
            found = checkpointer.restore(folder, args=args)
    except _Mismatch as error:
        raise CheckpointError(f"{folder.parent}: {error}") from None
    except Exception as error:
        raise CheckpointError(f"{folder.parent}: cannot be read ({_reason(error)})") from error
    for name in within:
        found = found[name]
    return found


class _Mismatch(Exception):
    """A checkpoint of another shape."""


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every array in an orbax folder.

    Raises:
      Exception: the folder is damaged; several kinds.
    """
    _read_index(folder)
    with ocp.StandardCheckpointer() as checkpointer, _quietly():
        metadata = checkpointer.metadata(folder)
    tree = getattr(metadata, "item_metadata", metadata)
    shapes = _shapes(getattr(tree, "tree", tree))
    if not shapes:
        raise FileNotFoundError(f"{folder}: its list of names is missing or cut short")
    return shapes


def check_shapes(stored: dict[str, tuple[int, ...]], abstract: Any) -> None:
    """Raise one error that lists every missing, surplus or mis-shaped array."""
    wanted = _shapes(abstract)
    problems = [f"{name} is missing" for name in wanted if name not in stored]
    problems += [f"{name} is not part of this model" for name in stored if name not in wanted]
    problems += [
        f"{name} has shape {stored[name]}, this model needs {wanted[name]}"
        for name in wanted
        if name in stored and stored[name] != wanted[name]
    ]
    if problems:
        shown = "; ".join(problems[:20]) + (
            f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        )
        raise _Mismatch(f"a checkpoint of another model: {shown}")


def _read_index(folder: Path) -> None:
    """Raise where the list of arrays, or the description of one, cannot be read.

    Orbax asks for all at once. Where one fails it lists nothing, and prints a traceback for each of
    the others, which report to an event loop that is closed by then.
    """
    files = {"driver": "file", "path": f"{folder}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": files}).result()
    described = [name for name in store.list().result() if name.endswith(b"/.zarray")]
    for name in described:
        store.read(name).result()
    if not described:
        raise FileNotFoundError(f"{folder}: files are missing")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without orbax's warning that an item of a checkpoint has no metadata file of its own."""
    logger = logging.getLogger("absl")

    def keep(record: logging.LogRecord) -> bool:
        return "Metadata file does not exist" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        _path(path): tuple(np.shape(leaf) if not hasattr(leaf, "shape") else leaf.shape)
        for path, leaf in leaves
    }


def _path(path: Any) -> str:
    names = [str(getattr(e, "key", getattr(e, "name", getattr(e, "idx", e)))) for e in path]
    return "/".join(names)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _name(steps: list[int]) -> str:
    return f"step {steps[-1]}" if steps else "none yet"
