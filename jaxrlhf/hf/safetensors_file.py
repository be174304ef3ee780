"""One safetensors file: its header, checked to the last byte; its tensors, memory-mapped; writing.

The header is a stranger's: nothing in it is believed before it fits the file. What it does not do:
folders and indices (`shards.py`), what the tensors mean (`families/`).

Format: 8 bytes little-endian header length, a JSON object, then the tensors without a gap.
https://github.com/huggingface/safetensors#format
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxrlhf.errors import CheckpointError

MAX_HEADER = 100_000_000  # bytes; the format's own limit
MAX_RANK = 32

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}


class Stored(NamedTuple):
    """Where one tensor lies: its type, shape, and bytes `[begin, end)` of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile(NamedTuple):
    """A file whose header is in order."""

    path: Path
    tensors: dict[str, Stored]
    metadata: dict[str, str]


class Planned(NamedTuple):
    """A tensor to write; `load` is called when its turn comes, and its result dropped after."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


def open_file(path: str | Path) -> SafetensorsFile:
    """Read and check the header.

    Raises:
      CheckpointError: the file is not safetensors, is cut short, or its header does not fit it.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            _require(path, size >= 8, f"{size} bytes are too few for a safetensors file")
            _require(
                path,
                length <= MAX_HEADER,
                f"its header says it is {length:,} bytes long; at most {MAX_HEADER:,} are allowed",
            )
            _require(
                path,
                8 + length <= size,
                f"is cut short: the header should end at byte {8 + length:,} of {size:,}",
            )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    header = _parse(path, text)
    metadata = header.pop("__metadata__", {})
    plain = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    _require(path, plain, "__metadata__ must map strings to strings")
    start = 8 + length
    tensors = {name: _stored(path, name, item, start, size) for name, item in header.items()}
    _check_cover(path, tensors, start, size)
    return SafetensorsFile(path, tensors, metadata)


def read(file: SafetensorsFile, name: str) -> np.ndarray:
    """A tensor as a read-only view of the file; its pages are given back with the array."""
    stored = file.tensors[name]
    dtype = DTYPES[stored.dtype]
    if stored.begin == stored.end:
        return np.empty(stored.shape, dtype)
    length = stored.end - stored.begin
    try:
        raw = np.memmap(file.path, np.uint8, "r", offset=stored.begin, shape=(length,))
    except (OSError, ValueError) as error:  # the file has changed since its header was read
        raise CheckpointError(f"{file.path}: {name} cannot be read ({error})") from error
    return raw.view(dtype).reshape(stored.shape)


def write(path: str | Path, tensors: Sequence[Planned], metadata: dict[str, str]) -> None:
    """Write a file, one tensor in memory at a time; on disk when this returns.

    Raises:
      OSError: the disk's business; the caller says which model was being written.
      ValueError: `load` gave another shape or dtype than planned.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for planned in tensors:
        begin, end = end, end + nbytes(planned.dtype, planned.shape)
        header[planned.name] = {
            "dtype": planned.dtype,
            "shape": list(planned.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors start aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for planned in tensors:
            array = np.asarray(planned.load(), order="C")
            if array.shape != planned.shape or array.dtype != DTYPES[planned.dtype]:
                raise ValueError(
                    f"{planned.name} is {array.dtype}{array.shape}, "
                    f"planned was {planned.dtype}{planned.shape}"
                )
            file.write(array.reshape(-1).view(np.uint8).data)
            del array
        file.flush()
        os.fsync(file.fileno())


def nbytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes that a tensor takes."""
    size = DTYPES[dtype].itemsize
    for length in shape:
        size *= length
    return size


# ------------------------------------------------------------------ the header


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=_no_twins, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise CheckpointError(f"{path}: its header is not valid JSON ({reason})") from None
    _require(path, isinstance(header, dict), "its header is not a JSON object")
    return header


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twin = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{twin!r} stands there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _stored(path: Path, name: str, item: Any, start: int, size: int) -> Stored:
    def require(holds: bool, problem: str) -> None:
        _require(path, holds, f"{_short(name)}: {problem}")

    fields = {"dtype", "shape", "data_offsets"}
    require(isinstance(item, dict) and set(item) == fields, f"needs {', '.join(sorted(fields))}")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    known = isinstance(dtype, str) and dtype in DTYPES
    require(known, f"dtype {_short(dtype)} is not one of {', '.join(DTYPES)}")
    require(_are_sizes(shape), f"shape {_short(shape)} is not a list of sizes")
    require(len(shape) <= MAX_RANK, f"has {len(shape)} dimensions, at most {MAX_RANK} are allowed")
    two = _are_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]
    require(two, f"data_offsets {_short(offsets)} are not [begin, end]")
    begin, end = start + offsets[0], start + offsets[1]
    require(
        end <= size, f"should end at byte {end:,}, but the file has {size:,}: cut short, or a lie"
    )
    require(
        nbytes(dtype, shape) == end - begin,
        f"{dtype}{_short(shape)} does not take the {end - begin:,} bytes that its offsets say",
    )
    return Stored(dtype, tuple(shape), begin, end)


def _check_cover(path: Path, tensors: dict[str, Stored], start: int, size: int) -> None:
    """No gap, no overlap, nothing after the last one: no byte may hide or be read twice."""
    at = start
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        kind = "overlaps the tensor before it" if stored.begin < at else "leaves a gap before it"
        _require(path, stored.begin == at, f"{_short(name)}: {kind}")
        at = stored.end
    _require(path, at == size, f"{size - at:,} bytes after the last tensor belong to none")


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _require(path: Path, holds: bool, problem: str) -> None:
    if not holds:
        raise CheckpointError(f"{path}: {problem}")
