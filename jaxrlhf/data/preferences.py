"""Preference pairs made from scored samples, and files of rows that `sources` reads back.

One sample record is one prompt with K answers (and, once somebody has judged them, K scores): what
a sampling stage hands to a labeller. Who judges, and how, is not decided here. Pairs get no
`margin`: a difference of scores has the scale of the scores, and the margin of the pairwise loss
is in nats.
"""

import gzip
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from jaxrlhf.data.columns import Content, Row
from jaxrlhf.data.formats import Example, Preference
from jaxrlhf.data.rows import BadRow, Loaded, OnBadRow, Rows, Skipped, convert, shorten
from jaxrlhf.errors import DataError


@dataclass(frozen=True)
class Samples:
    """K answers to one prompt; `scores` (higher is better) has K numbers, or none yet."""

    prompt: Content
    responses: list[Content]
    scores: list[float] = field(default_factory=list)
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.scores and len(self.scores) != len(self.responses):
            raise DataError(f"{len(self.scores)} scores for {len(self.responses)} responses")
        if not np.isfinite(self.scores).all():
            raise DataError(f"scores must be finite: {shorten(self.scores)}")


def best_and_worst(samples: Samples) -> list[Preference]:
    """The pair of highest and lowest score; none if all are equal."""
    scores = _scores(samples)
    return _pairs(samples, [(int(np.argmax(scores)), int(np.argmin(scores)))])


def all_pairs(samples: Samples) -> list[Preference]:
    """Each two answers of different score, the higher one chosen."""
    scores = _scores(samples)
    chosen_first = [
        (i, j) if scores[i] > scores[j] else (j, i) for i, j in combinations(range(len(scores)), 2)
    ]
    return _pairs(samples, chosen_first)


def read_samples(rows: Rows, *, on_bad_row: OnBadRow = "error") -> Loaded[Samples]:
    """Sample records of rows with the columns `prompt`, `responses` and perhaps `scores`."""
    for name in ("prompt", "responses"):
        if name not in rows.columns:
            raise DataError(f"{rows.name}: no column {name!r}; it has {', '.join(rows.columns)}")
    source = Loaded(list(rows), list(range(len(rows))), rows, Skipped())
    return convert(source, _samples, on_bad_row=on_bad_row, what="sample records")


def to_record(item: Preference | Samples | Example) -> dict[str, Any]:
    """The row of a preference, a sample record or an example; other columns stand beside ours."""
    record = asdict(item)
    return {**record.pop("columns", {}), **record}


def write_rows(path: str | Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write JSON lines (gzipped if the name ends in .gz); the file appears whole or not at all.

    Returns:
      The number of rows written.
    Raises:
      DataError: a value that JSON cannot hold (NaN included), or the folder is not there.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}")
    count = 0
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as raw:
            # No name and no time in the gzip header: equal rows make equal files.
            zipped = path.name.endswith(".gz")
            file = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if zipped else raw
            for record in records:
                file.write(json_line(record, where=f"{path}: row {count + 1}"))
                count += 1
            if zipped:
                file.close()
            raw.flush()
            os.fsync(raw.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return count


def json_line(record: Mapping[str, Any], *, where: str) -> bytes:
    """A record as a line of JSON; `where` names it should JSON not be able to hold it.

    Raises:
      DataError: a value that JSON cannot hold (NaN included).
    """
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8") + b"\n"
    except (TypeError, ValueError) as problem:
        raise DataError(f"{where} cannot be written: {problem}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _samples(row: Mapping[str, Any]) -> Samples:
    view = Row(row, {})
    responses, scores = row.get("responses"), row.get("scores") or []
    if not isinstance(responses, list) or not responses:
        raise BadRow("wrong type", f"'responses' must be a list of answers: {shorten(responses)}")
    answers = [Row({"responses": answer}, {}).content("responses") for answer in responses]
    if not isinstance(scores, list) or not all(type(score) in (int, float) for score in scores):
        raise BadRow("wrong type", f"'scores' must be a list of numbers: {shorten(scores)}")
    try:
        others = view.others("prompt", "responses", "scores")
        return Samples(view.content("prompt"), answers, [float(s) for s in scores], others)
    except DataError as problem:
        raise BadRow("scores do not fit", str(problem)) from None


def _scores(samples: Samples) -> Sequence[float]:
    if len(samples.scores) < 2:
        raise DataError(f"a pair needs two scored answers: {shorten(samples)}")
    return samples.scores


def _pairs(samples: Samples, indices: Iterable[tuple[int, int]]) -> list[Preference]:
    made = []
    for i, j in indices:
        if samples.scores[i] > samples.scores[j]:
            chosen, rejected = samples.responses[i], samples.responses[j]
            made.append(Preference(samples.prompt, chosen, rejected))
    return made
