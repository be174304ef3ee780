"""Processes of `jaxrlhf` that come to harm at a chosen point, begun by one that is ready.

`python victim.py` imports what recipes need, and then reads requests, a line of JSON each: the
`folder` to be in, the `point`, and the `argv` of `jaxrlhf`. Each is done by a process of its own,
forked; the answer, a line too, is its exit code (negative: the signal that ended it) and all that
it printed. `micro.harmed` asks.

Points, each reached in the middle of an ordinary run:

    save:K:N   SIGKILL at the N-th file operation in the temporary folder of checkpoint K
    term:K     SIGTERM when the metrics of step K have been written
    model:N    SIGKILL at the N-th file operation when the finished model is saved
    done:N     SIGKILL when the N-th (first) stage of this run is done but for its `done.json`
    append:K:N SIGKILL when N bytes of the K-th row of this run's stream of rows are on disk
    full:K:N   from the save of checkpoint K on, no file can grow beyond N bytes
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

import grain  # noqa: F401
from transformers import PreTrainedTokenizerFast  # noqa: F401

from jaxrlhf import checkpoint, cli, metrics
from jaxrlhf.data import stream
from jaxrlhf.data.preferences import json_line
from jaxrlhf.recipes import cai, evaluate, rounds, saved, stages, w2s  # noqa: F401

PATIENCE = 300  # seconds; a process that hangs ends by SIGALRM


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
    left, write = number, stages.write_json

    def watched(path: Any, value: Any) -> None:
        nonlocal left
        left -= path.name == "done.json"
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


def run(folder: str, point: str, argv: list[str]) -> tuple[int, str]:
    """Exit code and output of `jaxrlhf argv`, in a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(PATIENCE)
        os.chdir(folder)
        os.dup2(write, sys.stdout.fileno())
        os.dup2(write, sys.stderr.fileno())
        arm(point)
        sys.exit(cli.main(argv))
    os.close(write)
    with open(read) as out:
        said = out.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)
