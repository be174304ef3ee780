"""Which base an adapter run belongs to: its path and a hash, kept beside the run's checkpoints.

The checkpoints of such a run hold no base. On another one they would resume without a word, as
names and shapes agree; so the hash is compared first. The path may change, a base may be moved.

What it does not do: load anything (`folder.py`), or name the base to others (`peft_folder.py`).
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import shards
from jaxrlhf.hf.folder import CONFIG
from jaxrlhf.hf.staging import write_json

REFERENCE = "base_model.json"


class BaseModel(NamedTuple):
    """A model's folder, and the hash of what it computes."""

    path: str
    sha256: str


def identify(folder: str | Path) -> BaseModel:
    """The hash of config.json and of every byte of the weights; a second or two a gigabyte.

    Raises:
      CheckpointError: no model there, or its files are damaged.
    """
    folder = Path(folder)
    weights = shards.Shards(folder)
    paths = sorted({weights.path(name) for name in weights})
    whole = hashlib.sha256()
    for path in (shards.inside(folder, CONFIG), *paths):
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        whole.update(f"{digest}  {path.name}\n".encode())
    return BaseModel(str(folder.absolute()), whole.hexdigest())


def remember(run: str | Path, base: BaseModel) -> None:
    """Write down a run's base, or check that it is still the one that was written down.

    Raises:
      CheckpointError: the run was begun on another base.
    """
    run = Path(run)
    if not shards.stands(run / REFERENCE):
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / REFERENCE, base._asdict())
        return
    values = shards.read_json(run, REFERENCE)
    if values.get("sha256") != base.sha256:
        raise CheckpointError(
            f"{run}: was begun on {values.get('path')} (sha256 {str(values.get('sha256'))[:12]}), "
            f"{base.path} holds another model (sha256 {base.sha256[:12]}); its adapters mean "
            "nothing there. Give the base they belong to, or begin a new run"
        )
