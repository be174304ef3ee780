"""Flags that XLA reads when jax starts. The command line sets them before it imports jax.

`import jaxrlhf` sets none: in a program of your own they are yours to set (docs/speed.md).
"""

import os
import sys
from importlib import metadata

ORDER = "xla_cpu_enable_concurrency_optimized_scheduler"
TESTED = "0.10."  # jaxlib's that know it; one that does not know a flag ends the process


def set_flags() -> None:
    """On a CPU, order operations for little memory instead of for many at a time.

    The numbers are the same. An update of PPO keeps about half as much in between, and so finds
    more of it in the caches. Nothing is set where the flag is given already, where jax is imported
    already, or for a jaxlib that was not tried.
    """
    given = os.environ.get("XLA_FLAGS", "")
    known = metadata.version("jaxlib").startswith(TESTED)
    if known and ORDER not in given and "jax" not in sys.modules:
        os.environ["XLA_FLAGS"] = f"{given} --{ORDER}=false".strip()
