"""The experiments on reward models with a first policy from the tiny pipeline, and no training.

A reward model is stood in for by the tiny pipeline's, and its accuracy by a figure of the rows.
"""

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import micro
from config_probes import new_folder

from jaxrlhf import config_file, plots
from jaxrlhf.config import Config
from jaxrlhf.recipes import lab_annotators, lab_queries, lab_ratings, lab_reward, rlhf, saved
from jaxrlhf.recipes.lab_reward import Lab, Trained

MODULES: dict[str, Any] = {
    "lab queries": lab_queries,
    "lab ratings": lab_ratings,
    "lab annotators": lab_annotators,
}
FEW: dict[str, tuple[str, ...]] = {
    "lab queries": ("pool=14", "budgets=[4, 8]", "members=2"),
    "lab ratings": ("prompts=6", "answers=4", "comparisons=[2, 4]"),
    "lab annotators": ("pairs=8", "verdicts=[3, 5]"),
}
SECOND = f"{micro.scratch()}/second_lab.yaml"
LOAD_ONCE = functools.cache(saved.load_scalar)
Trainer = Callable[..., Trained]


@contextlib.contextmanager
def first_policy() -> Iterator[list[Any]]:
    """The stages before an experiment are those of the tiny pipeline; what was asked of them."""
    ran: list[Any] = []
    tiny = micro.pipeline() / "run"

    def run(config: rlhf.RLHFConfig) -> dict[str, Any]:
        ran.append((config.output_dir, config.seed, config.ppo.max_steps, config.stages))
        for stage in ("pretrain", "sft"):
            shutil.copytree(tiny / stage, Path(config.output_dir) / stage, dirs_exist_ok=True)
        return {}

    with mock.patch.object(rlhf, "run", run):
        yield ran


def by_rows(trained: list[Any]) -> Trainer:
    """Instead of training: what would be learnt is noted, the accuracy is one of its letters."""

    def train(lab: Lab, name: str, rows: Any, *, seed: int = 0, **changes: Any) -> Trained:
        trained.append((name, [dict(row) for row in rows], seed, lab.updates, changes))
        said = sum(len(str(row["chosen"])) + row.get("label", 0) for row in rows)
        model = str(micro.pipeline() / "run" / "reward" / "model")
        return Trained(model, 0.5 + said % 97 / 200 + lab.seed / 1000)

    return train


def run(recipe: str, *overrides: str) -> dict[str, Any]:
    """An experiment in a new folder: what it asked for, learnt, found and wrote, and where."""
    trained: list[Any] = []
    module = MODULES[recipe]
    fixed = (f"config={micro.pipeline() / 'micro.yaml'}", "seeds=[3]", *FEW[recipe])
    home = new_folder()
    with (
        contextlib.chdir(home),
        first_policy() as ran,
        mock.patch.object(lab_reward, "train", by_rows(trained)),
        mock.patch.object(plots, "png", lambda _: b""),
        mock.patch.object(saved, "load_scalar", LOAD_ONCE),
    ):
        config: Config = module.CONFIG.load(None, (*fixed, *overrides))
        found = module.run(config)
        written = {str(p): p.read_text() for p in Path().rglob("*.md")}
        folders = sorted(str(p) for p in Path().rglob("config.yaml"))
    return {"folders": folders, "ran": ran, "trained": trained, "found": found, "written": written}


def probe(recipe: str) -> Callable[..., str]:
    return lambda *overrides: repr(run(recipe, *overrides))


def make_second() -> None:
    """Another config of the pipeline before the experiment."""
    Path(SECOND).write_text(config_file.to_text(micro.CONFIG | {"ppo": {"max_steps": 7}}))
