"""Writing a folder so that it holds one whole model at any moment, or says that it holds none.

Everything is written to a subfolder first. Then the old model's entry file (its index, or its only
weights) goes, the new files move in, and the new entry file is the last to move. A process killed
before that leaves the old model, killed within it a folder without an entry file, which no reader
takes for a model.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf.shards import INDEX, SINGLE

_SUBFOLDER = ".saving"


@contextlib.contextmanager
def replacing(folder: str | Path) -> Iterator[Path]:
    """A folder to write into; what is in it replaces its namesakes in `folder` when the block ends.

    Old weights are removed, other files of `folder` stay.

    Raises:
      CheckpointError: the disk refused; before the last moves the old model is untouched.
    """
    folder = Path(folder)
    staging = folder / _SUBFOLDER
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of a save that was killed
        staging.mkdir(parents=True)
        yield staging
        _move_in(staging, folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: the model could not be written ({error})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_json(path: Path, values: Any) -> None:
    """A JSON file that is there in full or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _move_in(staging: Path, folder: Path) -> None:
    entries = (SINGLE, INDEX)
    for name in entries:
        (folder / name).unlink(missing_ok=True)
    _sync(folder)
    for old in folder.glob("model-*-of-*.safetensors"):
        old.unlink()
    for path in sorted(staging.iterdir(), key=lambda path: path.name in entries):
        target = folder / path.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        if path.name in entries:
            _sync(folder)
        path.replace(target)
    _sync(folder)


def _sync(folder: Path) -> None:
    """Make renames last; some file systems cannot, which is no reason to fail."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
