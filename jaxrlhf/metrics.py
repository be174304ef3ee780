"""What a run writes down while it trains: numbers to JSONL and TensorBoard, samples to JSONL.

`metrics.jsonl` and `completions.jsonl` are the record; TensorBoard and W&B are views of the same
numbers. A run that was killed and resumed from checkpoint k drops every line after step k and
writes those steps again, so both files end up equal, byte for byte, to those of a run that was
never killed (`time/*` values aside, which are measured).

What it deliberately does not do: it computes no metric, averages nothing, and knows no process
index: on several hosts the caller constructs it on one of them only.

File format. One JSON object a line, `{"step": 7, "objective/kl_k1": 0.25, ...}`, names sorted.
Python writes the shortest decimal that reads back to the same double, so finite values are exact.
NaN and infinities are not JSON; they are written as the strings "NaN", "Infinity", "-Infinity",
which `read_metrics` turns back into floats.
"""

import json
import math
import operator
import os
import socket
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, SupportsFloat, SupportsIndex

METRICS_FILE = "metrics.jsonl"
COMPLETIONS_FILE = "completions.jsonl"
TENSORBOARD_DIR = "tensorboard"

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsWriter:
    """Writes the metrics and sample completions of one run.

    Args:
        run_dir: folder of the run, created if missing.
        resume_step: number of the last step that will not be run again, that is the step of the
            checkpoint the run resumes from. Lines of later steps are dropped. 0 means that the run
            starts from its beginning, and then the lines of step 0 (an evaluation before training)
            are written again too, so nothing is kept.
        tensorboard: also write event files under `run_dir/tensorboard`.
        wandb_project: also log to this Weights & Biases project; None leaves W&B alone.
        config: the run's settings, shown by W&B.

    Raises:
        ValueError: a line other than the last of an existing file cannot be read.
        ImportError: TensorBoard or W&B was asked for and is not installed.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        resume_step: int = 0,
        tensorboard: bool = True,
        wandb_project: str | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        self.run_dir = Path(run_dir)
        # The optional ones first: if one is not installed, nothing on disk has been touched.
        if tensorboard:
            _import_tensorboard()
        wandb = _import_wandb() if wandb_project is not None else None
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._metrics = _open_jsonl(self.run_dir / METRICS_FILE, resume_step)
        self._completions = _open_jsonl(self.run_dir / COMPLETIONS_FILE, resume_step)
        self._events = (
            _EventLog(self.run_dir / TENSORBOARD_DIR, resume_step) if tensorboard else None
        )
        self._wandb = (
            wandb.init(
                project=wandb_project,
                dir=str(self.run_dir),
                id=_wandb_id(self.run_dir, fresh=resume_step == 0),
                resume="allow",
                config=dict(config or {}),
            )
            if wandb is not None
            else None
        )

    def write(self, step: SupportsIndex, metrics: Mapping[str, SupportsFloat]) -> None:
        """Append one line, flushed to the operating system before this returns.

        Args:
            step: the step these numbers describe; several lines may share one.
            metrics: name -> scalar (Python, NumPy or any array of no dimensions).

        Raises:
            TypeError: a value is not a scalar number; the message names the metric.
            ValueError: a metric is called "step".
        """
        step = _check_step(step)
        values = {name: _as_float(name, metrics[name]) for name in sorted(metrics)}
        self._metrics.write(
            _dump({"step": step} | {name: _encode(value) for name, value in values.items()})
        )
        self._metrics.flush()
        if self._events is not None:
            self._events.write(step, values)
        # W&B cannot rewrite a step it has; after a resume those steps carry the same numbers.
        if self._wandb is not None and step >= self._wandb.step:
            self._wandb.log(values, step=step)

    def write_completions(self, step: SupportsIndex, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append sample completions, one line a row.

        Args:
            step: the step at which they were sampled.
            rows: at least `prompt`, `completion`, `score` and `reason` ("random" or "lowest");
                more columns are kept, in the order given.

        Raises:
            ValueError: a row lacks one of the four, or `reason` is neither of the two.
        """
        step = _check_step(step)
        rows = [_check_completion(row) for row in rows]
        for row in rows:
            self._completions.write(
                _dump({"step": step} | {name: _encode(cell) for name, cell in row.items()})
            )
        self._completions.flush()

    def close(self) -> None:
        """Close every file. Nothing is lost without it: each write was flushed."""
        self._metrics.close()
        self._completions.close()
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Read `metrics.jsonl` (the file, or the folder of the run), oldest line first.

    A torn last line, as a killed run leaves it, is skipped; a missing file gives an empty list.
    """
    return [
        {k: _NON_FINITE[v] if isinstance(v, str) else v for k, v in row.items()}
        for row in _read(path, METRICS_FILE)
    ]


def read_completions(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read `completions.jsonl` (the file, or the folder of the run), oldest line first.

    A score that was not finite stays the string it was written as: next to free text, a string
    "NaN" could as well be what the model said.
    """
    return _read(path, COMPLETIONS_FILE)


def series(rows: Sequence[Mapping[str, float]], name: str) -> tuple[list[int], list[float]]:
    """Pick one metric: (steps, values) of the rows that have it, in file order."""
    picked = [(int(row["step"]), row[name]) for row in rows if name in row]
    return [step for step, _ in picked], [value for _, value in picked]


# ---------------------------------------------------------------------------------------- values


def _check_step(step: SupportsIndex) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        raise TypeError(f"step must be an integer, got {step!r}") from None
    if number < 0:
        raise ValueError(f"step must be 0 or more, got {number}")
    return number


def _as_float(name: str, value: Any) -> float:
    if name == "step":
        raise ValueError('no metric may be called "step": that key holds the step itself')
    if isinstance(value, str):
        raise TypeError(f"metric {name!r} must be a scalar number, got the string {value!r}")
    # A one-element array would pass float(); its stray axis is a bug worth hearing about.
    if getattr(value, "shape", ()) != ():
        raise TypeError(f"metric {name!r} must be a scalar, got an array of shape {value.shape}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"metric {name!r} must be a scalar number, got {value!r}") from None


def _check_completion(row: Mapping[str, Any]) -> Mapping[str, Any]:
    missing = [name for name in ("prompt", "completion", "score", "reason") if name not in row]
    if missing:
        raise ValueError(f"a completion row lacks {missing}; it has {sorted(row)}")
    if row["reason"] not in ("random", "lowest"):
        raise ValueError(f'reason must be "random" or "lowest", got {row["reason"]!r}')
    if "step" in row:
        raise ValueError('no column may be called "step": that key holds the step itself')
    return row


def _encode(value: Any) -> Any:
    """Give a value that JSON can hold: array scalars become Python's, non-finite ones strings."""
    if getattr(value, "shape", None) == ():
        value = value.item()
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _dump(row: Mapping[str, Any]) -> bytes:
    # ensure_ascii (the default) also survives the lone surrogates that byte-level models produce.
    return json.dumps(row, allow_nan=False).encode() + b"\n"


# ----------------------------------------------------------------------------------- JSONL files


def _open_jsonl(path: Path, resume_step: int):
    _truncate(path, resume_step)
    return path.open("ab")


def _truncate(path: Path, resume_step: int) -> None:
    """Drop the lines after `resume_step` and a torn end; atomic, and a no-op where none is."""
    if not path.exists():
        return
    old = path.read_bytes()
    # Killed between a line and its newline: the line itself is whole.
    kept = b"".join(
        line + b"\n" for line, row in _parse(path) if resume_step > 0 and row["step"] <= resume_step
    )
    if kept == old:
        return
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _parse(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Split a JSONL file into (line, object), leaving out a last line that was not finished."""
    lines = path.read_bytes().split(b"\n")
    while lines and not lines[-1]:
        lines.pop()
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            int(row["step"])
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise ValueError(
                f"{path}, line {number}: not one of the JSON objects this program writes: "
                f"{line[:60]!r}. Repair the line, or move the file away to start a new one."
            ) from None
        parsed.append((line, row))
    return parsed


def _read(path: str | os.PathLike[str], name: str) -> list[dict[str, Any]]:
    path = Path(path)
    file = path / name if path.is_dir() else path
    return [row for _, row in _parse(file)] if file.exists() else []


# ----------------------------------------------------------------------------- TensorBoard and W&B


class _EventLog:
    """One TensorBoard event file of scalars; needs `tensorboard`, does not need TensorFlow.

    TensorBoard's own `EventFileWriter` is not used, for two reasons: no thread stands between a
    number and the disk, and the name of the file is ours (see `_next_event_file`).
    """

    def __init__(self, folder: Path, resume_step: int):
        self._proto, record_writer = _import_tensorboard()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _next_event_file(folder).open("xb")
        self._records = record_writer(self._file)
        self._add(file_version="brain.Event:2")
        # Readers drop what earlier files say about this step and later ones: no double curves.
        start = self._proto.SessionLog(status=self._proto.SessionLog.START)
        self._add(step=resume_step + 1 if resume_step else 0, session_log=start)
        self._file.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [{"tag": name, "simple_value": value} for name, value in values.items()]
        self._add(step=step, summary={"value": scalars})
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, **fields: Any) -> None:
        event = self._proto.Event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())


def _import_tensorboard() -> tuple[Any, Any]:
    try:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise ImportError(
            "TensorBoard files were asked for (tensorboard=True) but `tensorboard` cannot be "
            f"imported ({error}): pip install tensorboard, or pass tensorboard=False"
        ) from error
    return event_pb2, RecordWriter


def _next_event_file(folder: Path) -> Path:
    """Name a new event file that sorts after those in `folder`.

    TensorBoard reads files in the order of their names, which start with a time in seconds. Two
    files of one second would be ordered by process id, and then a purge could hit the wrong one.
    """
    stamps = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*.*")]
    newest = max((int(stamp) for stamp in stamps if stamp.isdigit()), default=0)
    stamp = max(int(time.time()), newest + 1)
    return folder / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.0"


def _import_wandb() -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"W&B logging was asked for but `wandb` cannot be imported ({error}): "
            "pip install 'jaxrlhf[wandb]', or leave wandb_project unset"
        ) from error
    return wandb


def _wandb_id(run_dir: Path, *, fresh: bool) -> str:
    """Return the id of this run's W&B page: kept beside the run, so that a resume continues it."""
    path = run_dir / "wandb_id.txt"
    if fresh or not path.exists():
        path.write_text(uuid.uuid4().hex[:12] + "\n")
    return path.read_text().strip()
