"""`lab promise` with a handful of games, for `test_config_effects.py`.

Nothing is learnt: what there would be to learn from, and how, is written down.
"""

import contextlib
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from config_probes import new_folder

from jaxrlhf import plots
from jaxrlhf.algorithms import actor_critic
from jaxrlhf.recipes import experiment, lab_promise

FEW = (
    *("seeds=[3]", "rounds=2", "updates=3", "games=8", "width=4", "test_games=64"),
    "penalties=[2]",
)


def run(*overrides: str) -> dict[str, Any]:
    """What every arm found and was to learn from, and the pages that were written."""
    home, found, asked = new_folder(), [], []
    over_seeds = experiment.over_seeds

    def spy(*args: Any, **options: Any) -> Any:
        found.extend(over_seeds(*args, **options))
        return found

    def train(play: Any, params: Any, draws: Any, **how: float) -> Any:
        shapes = jax.tree.map(np.shape, (params, draws))
        asked.append((shapes, *(float(x[0]) for x in draws.penalties), how))
        return params

    with (
        contextlib.chdir(home),
        mock.patch.object(experiment, "over_seeds", spy),
        mock.patch.object(actor_critic, "train", train),
        mock.patch.object(plots, "png", lambda _: b""),
    ):
        lab_promise.run(lab_promise.CONFIG.load(None, (*FEW, *overrides)))
        written = {str(path): path.read_text() for path in Path().rglob("*.md")}
    return {"found": found, "asked": asked, "written": written}


def probe(*overrides: str) -> str:
    return repr(run(*overrides))
