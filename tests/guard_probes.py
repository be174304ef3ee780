"""Small experiments that show what a field of a guard does, for `test_config_effects.py`."""

from collections.abc import Callable
from typing import Any

import faulty
import numpy as np
from config_probes import new_folder
from guard_cases import CASES, panel, stopped

from jaxrlhf.guards import judged
from jaxrlhf.guards.panel import GuardsConfig


def case(name: str) -> Callable[..., Any]:
    """A probe: when this guard ends a run in which it alone sees something wrong."""
    return lambda *overrides: stopped(new_folder(), CASES[name].wrong, *overrides)


def figures(*overrides: str) -> str:
    """What guards find in two updates of the table model, times apart."""
    found = faulty.run(new_folder(), *overrides, steps=2, compare=faulty.better_share)
    rows = [{k: x for k, x in row.items() if not k.startswith("time/")} for _, row in found.rows]
    return repr(rows)


def wins(*overrides: str) -> str:
    """What the reference's and the policy's answers to nine prompts come to."""
    config = GuardsConfig.load(None, overrides)
    answers = [[(str(row), f"{who} {row}") for row in range(9)] for who in ("policy", "reference")]
    found = judged.win_rate(
        0.0, *answers, lambda a, b: int(a[0]) % 3 > 0, settings=config.win_rate, key=(0,)
    )
    return repr(found)


def suspicion(*overrides: str) -> str:
    """What is labelled where the sum has passed the limit."""
    found = judged.andon(
        20.0,
        lambda rows: [("", str(row)) for row in rows],
        np.arange(99.0),
        lambda a, b: False,
        settings=GuardsConfig.load(None, overrides).andon,
        key=(0,),
    )
    return repr(found)


def cord(*overrides: str) -> bool:
    """Whether a file called HALT ends a run."""
    folder = new_folder()
    (folder / "HALT").touch()
    return panel(folder, *overrides).watch(1, {}) is not None
