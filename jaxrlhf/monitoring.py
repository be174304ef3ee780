"""What a step cost: seconds by phase, compilations (counted by JAX) and memory. Read by loop.py.

`Profile` shows where the seconds went, for a few steps.
"""

import functools
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class Stopwatch:
    """Seconds of phases that follow each other, by the clock and of the processor (all threads).

    On a busy machine processor seconds are the figure to compare: the clock times the neighbours.
    """

    def __init__(self) -> None:
        self._clock, self._processor = time.perf_counter(), time.process_time()

    def lap(self, phase: str) -> dict[str, float]:
        """`time/<phase>_s` and `time/<phase>_cpu_s` since the last lap."""
        clock, processor = self._clock, self._processor
        self._clock, self._processor = time.perf_counter(), time.process_time()
        return {
            f"time/{phase}_s": self._clock - clock,
            f"time/{phase}_cpu_s": self._processor - processor,
        }


class Compilations:
    """How many programs this process has compiled, and for how many seconds."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0

    def record(self, event: str, duration_secs: float, **_: object) -> None:
        if event == COMPILE_EVENT:
            self.count += 1
            self.seconds += duration_secs


@functools.cache
def compilations() -> Compilations:
    """The counter of this process; it starts counting at the first call."""
    counter = Compilations()
    jax.monitoring.register_event_duration_secs_listener(counter.record)
    return counter


def peak_memory_mib() -> float:
    """Peak memory of the first device in MiB, or of the process where the device keeps no count."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Profile:
    """A trace of three steps, the first of them `first`, written into `folder`.

    TensorBoard (with its profile plugin) and XProf open the folder, Perfetto the file
    `perfetto_trace.json.gz` in it. `docs/speed.md` reads one.
    """

    STEPS = 3

    def __init__(self, folder: Path, first: int):
        self._folder, self._first, self._left = folder, first, 0

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step `number`, whether it is traced or not."""
        if number == self._first:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._left = self.STEPS
        with jax.profiler.StepTraceAnnotation("step", step_num=number):
            yield
        if self._left == 1:
            self.close()
        self._left = max(self._left - 1, 0)

    def close(self) -> None:
        """Write what was traced, where the run ends within the three steps too."""
        if self._left:
            jax.profiler.stop_trace()
            self._left = 0
