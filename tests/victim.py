"""`jaxrlhf` that comes to harm at a chosen point: `python victim.py POINT recipe ...`.

Points, each reached in the middle of an ordinary run:

    save:K:N   SIGKILL at the N-th file operation in the temporary folder of checkpoint K
    term:K     SIGTERM when the metrics of step K have been written
    model:N    SIGKILL at the N-th file operation when the finished model is saved
    done:N     SIGKILL when the N-th stage of this process (1 where N is not said) has saved its
               model and `done.json` is not written yet
    append:K:N SIGKILL when N bytes of the K-th row of this run's stream of rows are on disk
    full:K:N   from the save of checkpoint K on, no file can grow beyond N bytes
"""

import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from jaxrlhf import checkpoint, cli, metrics
from jaxrlhf.data import stream
from jaxrlhf.data.preferences import json_line
from jaxrlhf.recipes import saved, stages


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_save(step: int, harm: Callable[[], None]) -> None:
    """Do `harm` when checkpoint `step` is about to be written."""
    save = checkpoint.Checkpoints.save

    def watched(self: Any, at: int, *args: Any) -> None:
        if at == step:
            harm()
        save(self, at, *args)

    checkpoint.Checkpoints.save = watched  # type: ignore[method-assign]


def kill_at_operation(number: int, where: str = "orbax-checkpoint-tmp") -> None:
    """Count what Python does in orbax's temporary folders, say: made, opened, renamed."""
    left = number

    def hook(event: str, args: tuple) -> None:
        nonlocal left
        if event in ("os.mkdir", "open", "os.rename") and where in str(args[0]):
            left -= 1
            if left == 0:
                kill()

    sys.addaudithook(hook)


def at_model(harm: Callable[[], None]) -> None:
    save = saved.save_lm

    def watched(*args: Any, **options: Any) -> None:
        harm()
        save(*args, **options)

    saved.save_lm = watched


def full(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def at_row(step: int, harm: Callable[[], None]) -> None:
    write = metrics.MetricsWriter.write

    def watched(self: Any, at: Any, values: Any) -> None:
        write(self, at, values)
        if at == step:
            harm()

    metrics.MetricsWriter.write = watched  # type: ignore[method-assign]


def at_append(row: int, written: int) -> None:
    left, append = row, stream.RowStream.append

    def watched(self: Any, values: Any) -> None:
        nonlocal left
        left -= 1
        if left:
            return append(self, values)
        self._file.write(json_line(values, where="victim")[:written])
        self._file.flush()
        kill()

    stream.RowStream.append = watched  # type: ignore[method-assign]


def instead_of_done(number: int) -> None:
    write, left = stages.write_json, number

    def watched(path: Any, value: Any) -> None:
        nonlocal left
        if path.name == "done.json":
            left -= 1
            if left == 0:
                kill()
        write(path, value)

    stages.write_json = watched


def arm(point: str) -> None:
    name, *numbers = point.split(":")
    step, number = (int(x) for x in [*numbers, "0", "0"][:2])
    match name:
        case "save":
            at_save(step, lambda: kill_at_operation(number))
        case "full":
            at_save(step, lambda: full(number))
        case "model":
            at_model(lambda: kill_at_operation(step, "/model/"))
        case "term":
            at_row(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        case "append":
            at_append(step, number)
        case "done":
            instead_of_done(step or 1)
        case _:
            raise SystemExit(f"no such point: {point}")


if __name__ == "__main__":
    arm(sys.argv[1])
    sys.exit(cli.main(sys.argv[2:]))
