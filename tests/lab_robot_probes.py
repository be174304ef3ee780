"""`lab robot` with a handful of comparisons, for `test_config_effects.py`."""

import contextlib
from pathlib import Path
from typing import Any
from unittest import mock

from config_probes import new_folder

from jaxrlhf import plots
from jaxrlhf.recipes import experiment, lab_robot

FEW = (
    *("seeds=[3]", "comparisons=12", "rounds=2", "members=2", "candidates=3", "depth_cues=[0,1]"),
    *("sources=[online,offline]", "choices=[disagreement]"),
)


def run(*overrides: str) -> dict[str, Any]:
    """What every arm found, and the pages that were written."""
    home, found = new_folder(), []
    over_seeds = experiment.over_seeds

    def spy(*args: Any, **options: Any) -> Any:
        found.extend(over_seeds(*args, **options))
        return found

    with (
        contextlib.chdir(home),
        mock.patch.object(experiment, "over_seeds", spy),
        mock.patch.object(plots, "png", lambda _: b""),
    ):
        lab_robot.run(lab_robot.CONFIG.load(None, (*FEW, *overrides)))
        written = {str(path): path.read_text() for path in Path().rglob("*.md")}
    return {"found": found, "written": written}


def probe(*overrides: str) -> str:
    return repr(run(*overrides))
