"""Pairs and verdicts in files: our own rows, samples, TRL, Label Studio, Argilla; in and out.

Which format a file has is seen from its columns; what a row of each looks like is told in `trl.py`,
`label_studio.py` and `argilla.py`, and of our own in the package's docstring. Rows come from any
file that `data.sources` reads, and go into JSON lines, or into one JSON array, which other tools
want. Nothing is decided here about what verdicts mean.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrlhf.data import preferences, sources
from jaxrlhf.data.columns import Row
from jaxrlhf.data.rows import Rows
from jaxrlhf.errors import DataError
from jaxrlhf.labelling import argilla, label_studio, records, trl
from jaxrlhf.labelling.records import Entry, Labelled
from jaxrlhf.labelling.store import Store

STORE = (".sqlite", ".sqlite3", ".db")
UNKNOWN = "unknown"
"""Who judged, where a file does not say."""

Reader = Callable[[Rows, Mapping[str, str], str], Iterable[Entry]]


def _only_read(labelled: Labelled) -> Iterator[dict[str, Any]]:
    raise NotImplementedError("nothing is written in this format")


class Format(NamedTuple):
    """A file has it that has these columns."""

    columns: tuple[str, ...]
    read: Reader
    write: Callable[[Labelled], Iterable[dict[str, Any]]] = _only_read


def by_row(entries: Callable[[Row, str], Iterable[Entry]]) -> Reader:
    """A reader that looks at each row alone."""

    def read(rows: Rows, columns: Mapping[str, str], annotator: str) -> Iterator[Entry]:
        for i, row in enumerate(rows):
            with records.at(rows.where(i)):
                found = list(entries(Row(row, columns), annotator))
            yield from found

    return read


def _ours(row: Row, annotator: str) -> Iterator[Entry]:
    pair = records.to_pair(row)
    said = row.get("verdict") is not None
    yield pair, records.to_verdict(row.data, pair, annotator=annotator) if said else None


def _our_rows(labelled: Labelled) -> Iterator[dict[str, Any]]:
    """A row a verdict; a row a pair where nothing is said of any."""
    pairs = {pair.pair_id: pair for pair in labelled.pairs}
    if not labelled.verdicts:
        yield from map(records.to_row, labelled.pairs)
    for verdict in labelled.verdicts:
        yield records.to_row(pairs[verdict.pair_id], verdict)


def _samples(rows: Rows, columns: Mapping[str, str], annotator: str) -> Iterator[Entry]:
    """Answers (0, 1), (2, 3), ... of each prompt; equal answers are no pair."""
    for found in preferences.read_samples(rows):
        row, answers = found.columns, found.responses
        models = row.get("models") or [row.get("model")] * len(answers)
        for i in range(0, len(answers) - 1, 2):
            named = {"model_a": models[i], "model_b": models[i + 1], "round": row.get("round")}
            if answers[i] != answers[i + 1]:
                yield records.make_pair(named, found.prompt, answers[i], answers[i + 1]), None


# A file has the first format whose columns are all there.
FORMATS = {
    "argilla": Format(("fields",), by_row(argilla.entries), argilla.write),
    "label-studio": Format(("data",), by_row(label_studio.entries), label_studio.write),
    "rows": Format(("prompt", "a", "b"), by_row(_ours), _our_rows),
    "trl": Format(("chosen", "rejected"), trl.read, trl.write),
    "samples": Format(("prompt", "responses"), _samples),
}


def read(
    paths: Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    annotator: str = UNKNOWN,
) -> Labelled:
    """Pairs and verdicts of some files, or of stores of `jaxrlhf label`.

    Args:
      columns: {our column name: the file's}.
      annotator: who judged, where a row does not say.
    Raises:
      DataError: names file, line and column.
    """
    entries: list[Entry] = []
    for path in paths:
        if path.endswith(STORE):
            entries += _of_store(path)
        else:
            rows = sources.load_rows(path)
            entries += detect(rows, columns or {}).read(rows, columns or {}, annotator)
    with records.at(", ".join(paths)):
        return records.merged(entries)


def detect(rows: Rows, columns: Mapping[str, str]) -> Format:
    """The format that rows have.

    Raises:
      DataError: none.
    """
    for format in FORMATS.values():
        if all(columns.get(column, column) in rows.columns for column in format.columns):
            return format
    wanted = "; or ".join(f"{', '.join(f.columns)} ({name})" for name, f in FORMATS.items())
    raise DataError(
        f"{rows.name}: pairs need the columns {wanted}; it has {', '.join(rows.columns)}; "
        'other names are mapped with columns, as in {"a": "first"}'
    )


def _of_store(path: str) -> Iterator[Entry]:
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    with Store(path) as store:
        labelled = store.labelled()
    pairs = {pair.pair_id: pair for pair in labelled.pairs}
    yield from ((pair, None) for pair in labelled.pairs)
    yield from ((pairs[verdict.pair_id], verdict) for verdict in labelled.verdicts)
