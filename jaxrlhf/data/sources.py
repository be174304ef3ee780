"""Reading rows: JSON lines, JSON, CSV, plain text, each also gzipped; Parquet; Hugging Face hub.

Text formats are read here, line by line, and not through `datasets`, for two reasons. Every
message can name the line. And `datasets` guesses types column by column: a JSON text "2020-01-01"
becomes a timestamp, a missing key a null, a CSV "007" the number 7 and a CSV text "NA" or "null"
nothing at all. It also caches by file; read here, a changed file is simply read again. Parquet
files (which carry their types) and hub names go through `datasets`; a Parquet cache is temporary.

This file does not know what columns mean; that is `formats.py`.
"""

import csv
import difflib
import gzip
import json
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from jaxrlhf.data.rows import Rows, shorten
from jaxrlhf.errors import DataError

Numbered = Iterator[tuple[int, dict[str, Any]]]  # line number (from 1) and row


def load_rows(
    spec: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    config: str | None = None,
    data_dir: str | None = None,
    limit: int | None = None,
) -> Rows:
    """Rows of a file, of several files, or of a data set on the Hugging Face hub.

    What exists, or ends in a known suffix, or begins with `/`, `.` or `~`, is a file; anything
    else is a hub name. A `.txt` line is a row `{"text": line}`; blank lines are not rows.

    Args:
      spec: path or hub name, or a list of them (their rows follow each other).
      split: split of a hub data set; by default "train", or its only one. Files have none.
      config: configuration of a hub data set. `data_dir`: folder inside it.
      limit: read at most so many rows of each file.
    Raises:
      DataError: names file and line, and the nearest existing name where one is missing.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit = {limit}: must be 1 or more")
    specs = [spec] if isinstance(spec, str | Path) else list(spec)
    if not specs:
        raise DataError("no file or data set named")
    return Rows.concat([_load(str(one), split, config, data_dir, limit) for one in specs])


def _load(spec, split, config, data_dir, limit) -> Rows:
    path = Path(spec).expanduser()
    if not is_path(spec):
        return _load_hub(spec, split, config, data_dir, limit)
    for name, value in (("split", split), ("config", config), ("data_dir", data_dir)):
        if value is not None and (name, value) != ("split", "train"):
            raise DataError(f"{path} is a file: it has no {name} {value!r}")
    _check_file(path)
    if path.suffix == ".parquet":
        return _load_parquet(path, limit)
    return _load_text(path, READERS[_suffix(path)], limit)


def is_path(spec: str) -> bool:
    """Whether `spec` means a file rather than a hub name."""
    path = Path(spec).expanduser()
    return spec.startswith(("/", ".", "~")) or _suffix(path) in SUFFIXES or path.exists()


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return name[name.rfind(".") :] if "." in name else ""


def _check_file(path: Path) -> None:
    """Raise unless `path` is a file of a known kind that is not empty."""
    if path.is_dir():
        names = ", ".join(sorted(p.name for p in path.iterdir() if _suffix(p) in SUFFIXES)[:8])
        raise DataError(f"{path} is a folder; name a file in it ({names or 'it holds no data'})")
    if not path.exists():
        raise DataError(f"{path}: no such file{_did_you_mean(path)}")
    if _suffix(path) not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise DataError(f"{path}: unknown kind of file; known are {known} (text kinds also .gz)")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")


def _did_you_mean(path: Path) -> str:
    """Nearest existing name: of the file in its folder, or of the first missing folder."""
    for missing in [path, *path.parents]:
        if missing.parent.is_dir():
            names = [p.name for p in missing.parent.iterdir()]
            found = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.5)
            return f"; did you mean {missing.parent / found[0]}?" if found else ""
    return ""


# Text formats.


def _load_text(path: Path, reader: Callable[[Path], Numbered], limit: int | None) -> Rows:
    rows, places = [], []
    for line, row in islice(reader(path), limit):
        rows.append(row)
        places.append(f"{path}:{line}")
    if not rows:
        raise DataError(f"{path}: the file has no rows")
    return Rows(rows, name=str(path), places=places)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line, line ends kept; decoding errors name the line."""
    number = 0
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                yield number, _decode(path, number, raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        after = f"after line {number}" if number else "at the start"
        raise DataError(f"{path}: broken gzip data {after}: {problem}") from None
    except OSError as problem:
        raise DataError(f"{path}: cannot be read: {problem.strerror or problem}") from None


def _decode(path: Path, number: int, raw: bytes) -> str:
    if number == 1:
        for magic, hint in MAGIC.items():
            if raw.startswith(magic):
                raise DataError(f"{path}:1: not UTF-8 text: {hint}")
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        bad = raw[problem.start : problem.start + 1]
        raise DataError(f"{path}:{number}: not UTF-8: byte {bad!r} at {problem.start}") from None


MAGIC = {
    b"\x1f\x8b": "it is gzip data, so its name should end in .gz",
    b"\xff\xfe": "it looks like UTF-16; save it as UTF-8",
    b"\xfe\xff": "it looks like UTF-16; save it as UTF-8",
    b"PAR1": "it is a Parquet file, so its name should end in .parquet",
}


def _read_txt(path: Path) -> Numbered:
    for number, line in _lines(path):
        line = line.rstrip("\r\n")
        if line.strip():
            yield number, {"text": line}


def _read_jsonl(path: Path) -> Numbered:
    for number, line in _lines(path):
        if line.strip():
            yield number, _object(_parse(line, f"{path}:{number}"), f"{path}:{number}")


def _read_json(path: Path) -> Numbered:
    """A JSON array of objects; or, as is common, JSON lines under the name `.json`."""
    lines = list(_lines(path))
    first = next((line for _, line in lines if line.strip()), "")
    if first.lstrip().startswith("{") and len(lines) > 1 and _is_json(first):
        yield from _read_jsonl(path)
        return
    if not first:
        return
    value = _parse("".join(line for _, line in lines), str(path))
    for number, row in enumerate(value if isinstance(value, list) else [value], 1):
        yield number, _object(row, f"{path}: entry {number}")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as problem:
        line = f" line {problem.lineno}" if problem.lineno > 1 else ""
        detail = f"{problem.msg} at{line} column {problem.colno}"
        near = shorten(text[max(0, problem.pos - 20) : problem.pos + 20].strip())
        raise DataError(f"{where}: malformed JSON: {detail}, near {near}") from None
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{where}: malformed JSON: {problem}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise DataError(f"{where}: a row must be an object, not {kind}: {shorten(value)}")
    return value


def _read_csv(path: Path) -> Numbered:
    """Rows under the header's names, all values text; a quoted value may hold line ends."""
    with _long_fields():
        reader = csv.reader((line for _, line in _lines(path)), strict=True)
        header: list[str] | None = None
        while True:
            begin = reader.line_num + 1
            try:
                record = next(reader, None)
            except csv.Error as problem:
                where = f"{path}:{begin}"
                raise DataError(
                    f"{where}: malformed CSV in the row that begins here: {problem}"
                ) from None
            if record is None:
                return
            if not record:  # blank line
                continue
            if header is None:
                header = _header(record, f"{path}:{begin}")
            elif len(record) != len(header):
                what = f"{len(record)} values for {len(header)} columns"
                raise DataError(f"{path}:{begin}: {what}: {shorten(record)}")
            else:
                yield begin, dict(zip(header, record, strict=True))


def _header(record: list[str], where: str) -> list[str]:
    twice = [name for name in record if record.count(name) > 1]
    if twice or "" in record:
        what = f"column {twice[0]!r} stands twice" if twice else "a column has no name"
        raise DataError(f"{where}: CSV header: {what}")
    return record


@contextmanager
def _long_fields():
    """The csv module refuses values over 128 KiB unless told; its limit is global, so put back."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".txt": _read_txt,
}
SUFFIXES = (*READERS, ".parquet")


# Through the `datasets` library, which is slow to import: only when needed.


def _load_parquet(path: Path, limit: int | None) -> Rows:
    datasets = _datasets()
    with tempfile.TemporaryDirectory() as cache:
        try:
            table = datasets.Dataset.from_parquet(str(path), cache_dir=cache)
        except Exception as problem:  # pyarrow, fsspec and datasets each raise their own
            reason = str(problem.__cause__ or problem).splitlines()[0]
            raise DataError(f"{path}: not a readable Parquet file: {reason}") from None
        rows = _take(table, limit)
    if not rows:
        raise DataError(f"{path}: the file has no rows")
    return Rows(rows, name=str(path))


def _load_hub(name, split, config, data_dir, limit) -> Rows:
    datasets = _datasets()
    try:
        table = datasets.load_dataset(name, config, data_dir=data_dir, split=split)
    except Exception as problem:  # the library and the network raise many kinds
        reason = (str(problem) or type(problem).__name__).splitlines()[0]
        raise DataError(
            f"{name!r} is no file here, and cannot be loaded as a data set of the hub: {reason}"
        ) from None
    if isinstance(table, dict):
        table = _only_split(name, table)
    rows = _take(table, limit)
    if not rows:
        raise DataError(f"data set {name!r} has no rows")
    return Rows(rows, name=f"{name}[{split or 'train'}]")


def _only_split(name: str, splits: dict[str, Any]) -> Any:
    if len(splits) == 1:
        return next(iter(splits.values()))
    if "train" in splits:
        return splits["train"]
    raise DataError(f"data set {name!r} has the splits {', '.join(splits)}: say which")


def _take(table, limit: int | None) -> list[dict[str, Any]]:
    return list(table if limit is None else table.select(range(min(limit, len(table)))))


def _datasets():
    try:
        import datasets
    except ImportError:
        raise DataError(
            "Parquet files and hub names need the package: pip install datasets"
        ) from None
    return datasets
