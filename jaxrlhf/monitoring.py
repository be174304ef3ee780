"""What a step cost beside its seconds: compilations and memory. Counted by JAX, read by loop.py."""

import functools
import resource
import sys

import jax

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


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
