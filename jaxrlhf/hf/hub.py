"""A path or a hub name -> a folder on this machine.

Of a repository on the hub only safetensors, JSON and tokenizer files are fetched, into the cache
that all Hugging Face libraries share; nothing in them is run. Offline, what the cache holds is
found.

What it does not do: look into the folder, upload.
"""

import re
from pathlib import Path

from jaxrlhf.errors import CheckpointError, nearest

WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w./-]+)?")


def folder_of(path: str | Path) -> Path:
    """The folder itself, or a snapshot of the repository `owner/name` or `owner/name@revision`.

    Raises:
      CheckpointError: neither a folder here nor, as far as can be told, a repository there.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_name(path):
        raise CheckpointError(f"{path}: no such folder{_did_you_mean(folder)}")
    return _snapshot(str(path), folder)


def is_hub_name(path: str | Path) -> bool:
    """Whether this names a repository: of its form, and no place on this machine."""
    folder, text = Path(path).expanduser(), str(path)
    if folder.exists() or not _NAME.fullmatch(text):
        return False
    return "/" not in text or not folder.parent.is_dir()


def _snapshot(text: str, folder: Path) -> Path:
    import huggingface_hub

    name, _, revision = text.partition("@")
    try:
        found = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=WANTED, ignore_patterns=["*/*"]
        )
    except Exception as error:  # requests, httpx and the hub each have errors of their own
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise CheckpointError(
            f"{text}: no such folder{_did_you_mean(folder)}; and from the Hugging Face hub it "
            f"cannot be fetched: {reason}"
        ) from None
    return Path(found)


def _did_you_mean(folder: Path) -> str:
    if not folder.parent.is_dir():
        return ""
    guess = nearest(folder.name, (p.name for p in folder.parent.iterdir() if p.is_dir()))
    return f"; did you mean {folder.parent / guess}?" if guess else ""
