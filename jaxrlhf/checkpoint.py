"""Saving and restoring: run checkpoints (orbax `CheckpointManager`) and finished models.

A run checkpoint holds the whole `State` and the data position, and is complete or absent: orbax
writes to a temporary folder and renames it. When the newest one cannot be read the one before it
is used, and a line says so. Restoring checks names and shapes first and lists what differs.
No pickles, no code: arrays and JSON only.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple, Protocol

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


class SavedModel(NamedTuple):
    """A finished model on disk: what it is, and its parameters."""

    kind: str  # "lm" or "scalar"
    config: dict[str, Any]
    params: Any


def save_model(directory: str | Path, params: Any, *, kind: str, config: dict[str, Any]) -> None:
    """Write a finished model to `directory`/params beside `model.json`; replaces what was there.

    `model.json` is written last, so a folder that has it is complete.
    """
    directory = Path(directory).absolute()
    description = directory / "model.json"
    description.unlink(missing_ok=True)
    for old in directory.glob("params*"):  # also what a killed save left half-written
        shutil.rmtree(old, ignore_errors=True)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(directory / "params", params)
        _write_description(description, {"kind": kind, "config": config})
    except Exception as error:
        raise CheckpointError(
            f"{directory}: the model could not be written ({_reason(error)})"
        ) from error


def _write_description(path: Path, description: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(description, indent=2) + "\n")
    temporary.replace(path)


def describe_model(directory: str | Path) -> tuple[str, dict[str, Any]]:
    """Kind and config of the model in a folder.

    Raises:
      CheckpointError: no finished model there.
    """
    path = Path(directory) / "model.json"
    if not path.is_file():
        raise CheckpointError(f"{directory}: no finished model here (model.json is missing)")
    try:
        description = json.loads(path.read_text())
        return description["kind"], description["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a model description ({_reason(error)})") from error


def load_params(directory: str | Path, abstract: Any) -> Any:
    """Parameters of a finished model, laid out as `abstract` says.

    Raises:
      CheckpointError: names or shapes differ (all of them are listed), or it cannot be read.
    """
    folder = Path(directory).absolute() / "params"
    try:
        check_shapes(stored_shapes(folder), abstract)
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder, abstract)
    except _Mismatch as error:
        raise CheckpointError(f"{folder}: {error}") from None
    except Exception as error:
        raise CheckpointError(f"{folder}: cannot be read ({_reason(error)})") from error


class _Mismatch(Exception):
    """A checkpoint of another shape."""


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every array in an orbax folder.

    Raises:
      Exception: the folder is damaged; several kinds.
    """
    _read_index(folder)
    with ocp.StandardCheckpointer() as checkpointer:
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
