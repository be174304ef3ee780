"""`jaxrlhf w2s`: can a weak supervisor bring out what a stronger model knows? (2312.09390)

    pretrain -> supervisor -> its labels on the second half -> student;  truth -> ceiling

An experiment is one or more grids; a grid is every combination of its seeds, supervisors, students,
losses and ways to tune, each a cell with a folder of its own (a `jaxrlhf classify` stage). What is
finished is not run again, what was interrupted goes on, and a cell that fails is reported and does
not lose the others. The config is `w2s_config.py`, tables and pictures are `w2s_report.py`.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jaxrlhf.config import save_resolved
from jaxrlhf.errors import ConfigError, UserError
from jaxrlhf.progress import console
from jaxrlhf.recipes import classify, sft, stages, w2s_ppo, w2s_report
from jaxrlhf.recipes.classify import LossConfig
from jaxrlhf.recipes.sft import SFTConfig
from jaxrlhf.recipes.supervisors import TRUTH, Fit, Supervisors
from jaxrlhf.recipes.w2s_config import NAIVE, GridConfig, W2SConfig
from jaxrlhf.recipes.w2s_ppo import Improved
from jaxrlhf.recipes.w2s_task import SECOND, Task

log = logging.getLogger(__name__)
T = TypeVar("T")

CONFIG = W2SConfig


class Cell(NamedTuple):
    """One student, or one ceiling (its supervisor is the truth)."""

    seed: int
    supervisor: str
    student: str
    loss: str
    tuning: str
    learning_rate: float
    start: str

    @property
    def folder(self) -> str:
        parts = (self.student, self.supervisor, self.loss, self.tuning)
        return "-".join((*parts, f"{self.learning_rate:g}", self.start))

    def ceiling(self) -> "Cell":
        return self._replace(supervisor=TRUTH, loss=NAIVE)


class Done(NamedTuple):
    """A finished cell: where it, its ceiling and its supervisor's labels are."""

    cell: Cell
    student: Path
    ceiling: Path
    labels: Path  # what it learnt from
    root: Path  # whose shortfall it makes up for: the same, but for a chain
    task: Path


def run(config: W2SConfig) -> dict[str, Any]:
    """Run every cell, write the tables; the summary has the verdict, if there is a rule."""
    root = Path(config.output_dir)
    # Grids may grow: what a finished cell depends on is all the rest.
    lasting = config.model_copy(
        update={"results": None, "grids": {}, "rule": None, "improve": None}
    )
    stages.refuse_another_config(root, lasting)
    stages.make_folder(root)
    save_resolved(lasting, root)
    seeds = {seed for grid in config.grids.values() for seed in grid.seeds}
    experiments = {seed: Experiment(config, seed) for seed in sorted(seeds)}
    clock = Clock(root / "time.json")
    done: dict[str, list[Done]] = {name: [] for name in config.grids}
    failed: dict[str, str] = {}
    for name, grid in config.grids.items():
        for cell in cells(config, grid):
            console.print(f"[bold]{name}[/bold]  seed {cell.seed}  {cell.folder}")
            experiment = experiments[cell.seed]
            experiment.prepare()  # what is wrong with the data is wrong for every cell
            what = f"seed {cell.seed}: {cell.folder}"
            done[name] += attempt(what, failed, functools.partial(experiment.finish, cell))
            clock.note()
    improved: list[Improved] = []
    for arm in w2s_ppo.arms(root, done[config.improve]) if config.improve else ():
        console.print(f"[bold]PPO[/bold]  seed {arm.seed}  {arm.name}")
        work = functools.partial(
            w2s_ppo.improve, arm, config.task.answers.rlhf, experiments[arm.seed].task
        )
        improved += attempt(f"seed {arm.seed}: PPO, {arm.name}", failed, work)
        clock.note()
    return w2s_report.run(config, done, failed, improved=improved, spent=clock.spent)


def attempt(what: str, failed: dict[str, str], work: Callable[[], T]) -> list[T]:
    """The result, or none and a line in `failed`: one cell must not lose the night's others."""
    try:
        return [work()]
    except UserError as error:
        failed[what] = str(error)
    except Exception as error:  # a bug, which is to be seen
        log.exception("%s failed", what)
        failed[what] = f"{type(error).__name__}: {error}"
    return []


class Clock:
    """Seconds that all calls of an experiment took together, kept in a file."""

    def __init__(self, path: Path):
        self.path = path
        self._before = stages.read_json(path) if path.is_file() else {}
        self._start = self._now()

    @property
    def spent(self) -> dict[str, float]:
        """Of the wall clock, and of all processors together."""
        return {
            name: self._before.get(name, 0.0) + now - self._start[name]
            for name, now in self._now().items()
        }

    def note(self) -> None:
        """Write it down: what is killed loses no more than the cell it is at."""
        stages.write_json(self.path, self.spent)

    def _now(self) -> dict[str, float]:
        return {"seconds": time.monotonic(), "processor_seconds": time.process_time()}


def cells(config: W2SConfig, grid: GridConfig) -> Iterator[Cell]:
    """The cells of a grid, seed by seed."""
    axes = (grid.seeds, grid.supervisors, grid.students, grid.tuning)
    for seed, supervisor, student, tuning in product(*axes):
        rates = grid.learning_rates or (config.learning_rate(student),)
        for rate, start, loss in product(rates, grid.start, grid.losses):
            yield Cell(seed, supervisor, student, loss, tuning, rate, start)


class Experiment:
    """All stages of one seed; each is made when it is first asked for."""

    def __init__(self, config: W2SConfig, seed: int):
        self.config, self.seed = config, seed
        self.folder = Path(config.output_dir) / f"seed-{seed}"

    def prepare(self) -> None:
        """Make sure of the files of the task."""
        _ = self.task

    @functools.cached_property
    def task(self) -> Task:
        return self.config.task.prepare(self.folder / "data", seed=self.seed)

    @property
    def supervisors(self) -> Supervisors:
        return Supervisors(
            self.config.supervisors,
            self.task,
            self.folder / "labels",
            seed=self.seed,
            train_model=self._teacher,
        )

    def finish(self, cell: Cell) -> Done:
        """Run what is left of a cell and of what it needs."""
        who = self.supervisors
        labels, root = who.labels(cell.supervisor), who.labels(who.root(cell.supervisor))
        ceiling = self._classify(cell.ceiling(), self._truth())
        student = self._classify(cell, labels / SECOND)
        return Done(cell, student, ceiling, labels, root, self.task.folder)

    def base(self, size: str, start: str = "pretrained") -> str:
        """A language model that has seen no label; folder or hub name."""
        chosen = self.config.sizes[size]
        if start == "adapted":
            assert self.config.adapt is not None
            return self._train_lm(
                self.config.adapt.model_copy(update={"model_path": self.base(size)}),
                self.folder / "adapt" / size,
                (str(self.task.second),),
            )
        if chosen.path:
            return chosen.path
        changes: dict[str, Any] = {"model": chosen.model}
        if chosen.max_steps:
            changes["max_steps"] = chosen.max_steps
        settings = self.config.pretrain.model_copy(update=changes)
        owner = self._pretrains
        return owner._train_lm(settings, owner.folder / "pretrain" / size, owner.task.corpus)

    @functools.cached_property
    def _pretrains(self) -> "Experiment":
        seed = self.config.pretrain_seed
        return self if seed in (None, self.seed) else Experiment(self.config, seed)

    def _train_lm(self, settings: SFTConfig, folder: Path, corpus: tuple[str, ...]) -> str:
        given: dict[str, Any] = {"output_dir": str(folder), "seed": self.seed}
        if not settings.data.train:
            given["data"] = settings.data.model_copy(update={"train": corpus})
        if self.task.tokenizer and not settings.tokenizer.path:
            words = settings.tokenizer.model_copy(update={"path": self.task.tokenizer})
            given["tokenizer"] = words
        sft.run(settings.model_copy(update=given))
        return str(folder / "model")

    def _truth(self) -> Path:
        if self.config.ceiling_half == "second":
            return self.task.second
        if not self.task.first.is_file():
            raise ConfigError("ceiling_half: first: task.files.first_share = 0 leaves it no rows")
        return self.task.first

    def _teacher(self, fit: Fit) -> Path:
        """A model supervisor: trained on labels, asked about the second half and the test rows."""
        rate = self.config.learning_rate(fit.size)
        cell = Cell(self.seed, "", fit.size, fit.loss, "full", rate, "pretrained")
        files = (str(self.task.second), str(self.task.test))
        self._stage(cell, fit.train, fit.folder, files)
        return fit.folder / "predicted"

    def _classify(self, cell: Cell, train: Path) -> Path:
        folder = self.folder / "cells" / cell.folder
        self._stage(cell, train, folder, (str(self.task.test),))
        return folder

    def _stage(self, cell: Cell, train: Path, folder: Path, predict: tuple[str, ...]) -> None:
        base = self.config.finetune
        plain = LossConfig(loss="cross_entropy")  # type: ignore[call-arg]
        is_truth = cell.supervisor == TRUTH
        data = {"train": (str(train),), "test": (str(self.task.test),)}
        optimizer = base.optimizer.model_copy(update={"learning_rate": cell.learning_rate})
        settings = base.model_copy(
            update={
                "output_dir": str(folder),
                "seed": self.seed,
                "model_path": self.base(cell.student, cell.start),
                "reads": self.task.reads,
                "classes": self.config.task.classes,
                "data": base.data.model_copy(update=data),
                "loss": plain if is_truth else self.config.losses[cell.loss],
                "tuning": cell.tuning,
                "optimizer": optimizer,
                "predict": predict,
            }
        )
        classify.run(settings)
