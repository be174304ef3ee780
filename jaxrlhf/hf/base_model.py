"""Which base an adapter run belongs to: its path and a hash, kept beside the run's checkpoints.

The checkpoints of such a run hold no base. On another one they would resume without a word, as
names and shapes agree; so the hash is compared first. The path may change, a base may be moved.

What it does not do: load anything (`folder.py`), or name the base to others (`peft_folder.py`).
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import peft_fields, shards
from jaxrlhf.hf.folder import CONFIG
from jaxrlhf.hf.peft_folder import WEIGHTS
from jaxrlhf.hf.staging import write_json

REFERENCE = "base_model.json"


class BaseModel(NamedTuple):
    """A model's folder (of an adapter and its base, the adapter's), and the hash of both."""

    path: str
    sha256: str


def identify(folder: str | Path, *adapters: str | Path) -> BaseModel:
    """The hash of config.json and of every byte of the weights; a second or two a gigabyte.

    Args:
      adapters: PEFT folders that are merged into it.
    Raises:
      CheckpointError: no model there, or its files are damaged.
    """
    folder = Path(folder)
    weights = shards.Shards(folder)
    paths = [shards.inside(folder, CONFIG), *sorted({weights.path(name) for name in weights})]
    for adapter in map(Path, adapters):
        paths += [shards.inside(adapter, peft_fields.CONFIG), shards.inside(adapter, WEIGHTS)]
    whole = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        whole.update(f"{digest}  {path.name}\n".encode())
    return BaseModel(str(Path(*adapters[-1:] or (folder,)).absolute()), whole.hexdigest())


def remember(run: str | Path, bases: Mapping[str, BaseModel]) -> None:
    """Write down a run's bases, or check that they are still those that were written down.

    Args:
      bases: by what the run calls them, as "policy" and "value".
    Raises:
      CheckpointError: the run was begun on another base.
    """
    run = Path(run)
    if not shards.stands(run / REFERENCE):
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / REFERENCE, {name: base._asdict() for name, base in bases.items()})
        return
    before = shards.read_json(run, REFERENCE)
    for name, base in bases.items():
        _compare(run, name, before.get(name), base)


def recall(run: str | Path) -> dict[str, BaseModel]:
    """What `remember` wrote down; empty where the run has no base.

    Raises:
      CheckpointError: the file is damaged.
    """
    run = Path(run)
    if not shards.stands(run / REFERENCE):
        return {}
    try:
        return {name: BaseModel(**base) for name, base in shards.read_json(run, REFERENCE).items()}
    except TypeError as error:
        raise CheckpointError(f"{run / REFERENCE}: is damaged ({error})") from None


def _compare(run: Path, name: str, before: Any, base: BaseModel) -> None:
    values = before if isinstance(before, dict) else {}
    path, found = values.get("path"), str(values.get("sha256"))
    if found != base.sha256:
        raise CheckpointError(
            f"{run}: its {name} was begun on {path} (sha256 {found[:12]}), {base.path} holds "
            f"another model (sha256 {base.sha256[:12]}); its adapters mean nothing there. Give the "
            "base they belong to, or begin a new run"
        )
