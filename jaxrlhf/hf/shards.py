"""The safetensors files of a folder as one table of tensors: the index, and what it may not do.

Every path is resolved before it is opened and must lie in the folder (or, for a snapshot of the
hub's cache, in that repository's blobs). Pickles are refused: unpickling runs what is in them.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import safetensors_file
from jaxrlhf.hf.safetensors_file import SafetensorsFile, Stored

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_JSON = 64 * 2**20  # bytes
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_OTHERS = ("*.h5", "*.msgpack", "*.gguf", "*.onnx")


class Shards:
    """Tensor name -> where it lies; the headers are checked, nothing else has been read."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._where = dict(_tensors(self.folder))

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def stored(self, name: str) -> Stored:
        """Type, shape and place of a tensor."""
        return self._where[name].tensors[name]

    def path(self, name: str) -> Path:
        """The file that a tensor lies in."""
        return self._where[name].path

    def read(self, name: str) -> np.ndarray:
        """A memory-mapped, read-only view."""
        return safetensors_file.read(self._where[name], name)


def inside(folder: Path, name: str) -> Path:
    """The path of `name` in the folder.

    Raises:
      CheckpointError: not a plain file name, or (through links) outside the folder, or absent.
    """
    plain = isinstance(name, str) and name not in ("", ".", "..") and name == os.path.basename(name)
    if not plain or "\\" in name or "\0" in name:
        raise CheckpointError(f"{folder}: {name!r} is not the plain name of a file in this folder")
    path = folder / name
    try:
        real, root = path.resolve(strict=True), folder.resolve(strict=True)
    except (OSError, RuntimeError):
        raise CheckpointError(f"{folder}: {name} is missing") from None
    roots = [root]
    if root.parent.name == "snapshots":  # hub cache: snapshots/REVISION/x -> ../../blobs/HASH
        roots.append(root.parent.parent / "blobs")
    if not any(real.is_relative_to(allowed) for allowed in roots):
        raise CheckpointError(f"{folder}: {name} is a link that leads out of the folder; refused")
    if not real.is_file():
        raise CheckpointError(f"{folder}: {name} is not a file")
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object in the folder.

    Raises:
      CheckpointError: missing, too large, or not a JSON object.
    """
    path = inside(folder, name)
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_JSON + 1)
        if len(raw) > MAX_JSON:
            raise CheckpointError(f"{path}: is larger than {MAX_JSON // 2**20} MiB")
        values = json.loads(raw.decode())
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise CheckpointError(f"{path}: is not valid JSON ({reason})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: must be a JSON object, not a {type(values).__name__}")
    return values


def stands(path: Path) -> bool:
    """Whether something of that name is there, be it a link that leads nowhere."""
    return path.is_file() or path.is_symlink()


def _tensors(folder: Path) -> Iterator[tuple[str, SafetensorsFile]]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if stands(folder / SINGLE):  # where both stand, transformers takes this one too
        file = safetensors_file.open_file(inside(folder, SINGLE))
        yield from ((name, file) for name in file.tensors)
    elif stands(folder / INDEX):
        yield from _indexed(folder)
    else:
        raise CheckpointError(f"{folder}: {_why_none(folder)}")


def _indexed(folder: Path) -> Iterator[tuple[str, SafetensorsFile]]:
    where = folder / INDEX
    index = read_json(folder, INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{where}: weight_map must map names of tensors to files")
    names = {name for name in index.values() if isinstance(name, str)}
    if any(not isinstance(name, str) for name in index.values()):
        raise CheckpointError(f"{where}: weight_map must map names of tensors to files")
    problems = []
    paths: dict[str, Path] = {}
    for name in sorted(names):
        try:
            paths[name] = inside(folder, name)
        except CheckpointError as error:
            problems.append(str(error).removeprefix(f"{folder}: "))
    _raise_all(where, problems)
    files = {name: safetensors_file.open_file(path) for name, path in paths.items()}
    for name, file in index.items():
        if name not in files[file].tensors:
            other = next((f for f in sorted(files) if name in files[f].tensors), None)
            problems.append(
                f"{name} is not in {file}" + (f", but in {other}" if other is not None else "")
            )
    for file in sorted(files):
        problems += [
            f"{name} in {file} is not in the index"
            for name in files[file].tensors
            if name not in index or (index[name] != file and name in files[index[name]].tensors)
        ]
    _raise_all(where, problems)
    yield from ((name, files[file]) for name, file in index.items())


def _why_none(folder: Path) -> str:
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        return (
            f"holds its weights as pickles only ({pickles[0]}), which can run any code when they "
            "are read; convert them where they may run: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    if stands(folder / "adapter_config.json"):
        return "holds a LoRA adapter alone: load the model it belongs to"
    others = sorted(p.name for pattern in _OTHERS for p in folder.glob(pattern))
    if others:
        return f"{others[0]} cannot be read; only safetensors can"
    files = sorted(p.name for p in folder.glob("*.safetensors"))
    if files:
        return f"has {files[0]}, but neither {SINGLE} nor {INDEX}"
    return f"no weights here: neither {SINGLE} nor {INDEX}"


def _raise_all(where: Path, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(f"{where}: {listed(problems)}")


def listed(problems: list[str], most: int = 40) -> str:
    """All problems in one message; of very many, the first."""
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more
