"""`jaxrlhf w2s`: can a weak supervisor bring out what a stronger model knows? (2312.09390)

    pretrain -> supervisor -> its labels on the second half -> student;  truth -> ceiling

An experiment is one or more grids; a grid is every combination of its seeds, supervisors, students,
losses and ways to tune, each a cell with a folder of its own (a `jaxrlhf classify` stage). What is
finished is not run again, what was interrupted goes on, and a cell that fails is reported and does
not lose the others. Tables and pictures are `w2s_report.py`.
"""

import functools
import logging
import operator
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import pydantic
from pydantic import Field

from jaxrlhf.config import Config, save_resolved
from jaxrlhf.errors import ConfigError, UserError, one_of
from jaxrlhf.progress import console
from jaxrlhf.recipes import blocks, classify, sft, stages, w2s_report
from jaxrlhf.recipes.classify import ClassifyConfig, LossConfig
from jaxrlhf.recipes.sft import SFTConfig
from jaxrlhf.recipes.supervisors import TRUTH, Fit, SupervisorConfig, Supervisors, check_sources
from jaxrlhf.recipes.w2s_task import SECOND, Task, W2STaskConfig

log = logging.getLogger(__name__)

Start = Literal["pretrained", "adapted"]
Name = Annotated[str, Field(pattern=r"^\w[\w .+-]*$")]  # they become names of folders
NAIVE = "naive"

# What the experiment says for all of its stages; where their own blocks would say it, in vain.
EVERYWHERE = {"output_dir": "output_dir", "seed": "grids.*.seeds"}
LANGUAGE_MODEL = {**EVERYWHERE, "model": "sizes.*.model", "model_path": "sizes.*.path"}
OWN = {
    "pretrain": LANGUAGE_MODEL,
    "adapt": LANGUAGE_MODEL,
    "finetune": {
        **EVERYWHERE,
        "model_path": "sizes.*.path",
        "reads": "task.files.reads",
        "classes": "task.files.classes",
        "data.train": "task.files.train",
        "data.test": "task.files.test",
        "data.columns": "task.files.columns",
        "test_columns": "task.files.columns",
        "loss": "losses",
        "tuning": "grids.*.tuning",
        "predict": "grids",
    },
}


class SizeConfig(Config):
    """One size of model."""

    model: blocks.ModelConfig = Field(
        default=blocks.ModelConfig(), description="made from scratch and pre-trained"
    )
    path: str | None = Field(
        default=None, description="a finished language model instead (folder or hub name)"
    )
    max_steps: int | None = Field(
        default=None, ge=1, description="updates of its pre-training; null: as pretrain says"
    )


class GridConfig(Config):
    """Every combination of these is a cell."""

    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="which seeds")
    supervisors: tuple[str, ...] = Field(
        default=("words",), min_length=1, description="names of supervisors"
    )
    students: tuple[str, ...] = Field(
        default=("student",), min_length=1, description="names of sizes"
    )
    losses: tuple[str, ...] = Field(
        default=(NAIVE, "mended"), min_length=1, description="names of losses"
    )
    tuning: tuple[Literal["full", "probe"], ...] = Field(
        default=("full",), min_length=1, description="all parameters, or a linear probe"
    )
    learning_rates: tuple[float, ...] = Field(
        default=(), description="peak rates; none: as finetune says"
    )
    start: tuple[Start, ...] = Field(
        default=("pretrained",),
        min_length=1,
        description="fine-tune the pre-trained model, or that after `adapt` on the task's texts",
    )


class RuleConfig(Config):
    """What counts as success, written down before the run."""

    grid: str = Field(default="main", description="grid that is judged, seed by seed")
    loss: str = Field(default="mended", description="loss that should help")
    baseline: str = Field(default=NAIVE, description="loss that it is compared with")
    min_gain: float = Field(default=0.1, description="PGR that it has to add")
    min_passes: int = Field(default=4, ge=0, description="seeds that must pass")


class W2SConfig(Config):
    """A weak-to-strong experiment."""

    output_dir: str = Field(default="runs/w2s", description="a folder a seed goes in here")
    results: str | None = Field(
        default=None, description="folder for tables (w2s.md) and pictures (w2s/); null: output_dir"
    )
    task: W2STaskConfig = Field(default=W2STaskConfig(), description="labelled rows and plain text")
    sizes: dict[Name, SizeConfig] = Field(
        default={"student": SizeConfig()}, description="name -> language model, weak or strong"
    )
    supervisors: dict[Name, SupervisorConfig] = Field(
        default={"words": SupervisorConfig()}, description="name -> who labels"
    )
    losses: dict[Name, LossConfig] = Field(
        default={NAIVE: LossConfig(loss="cross_entropy"), "mended": LossConfig()},  # type: ignore[call-arg]
        description="name -> loss of a student",
    )
    pretrain: SFTConfig = Field(default=SFTConfig(), description="of every size, without labels")
    adapt: SFTConfig | None = Field(
        default=None, description="generative fine-tuning on the second half; null: none"
    )
    finetune: ClassifyConfig = Field(
        default=ClassifyConfig(), description="of every supervisor, student and ceiling"
    )
    ceiling_half: Literal["second", "first"] = Field(
        default="second",
        description="the ceiling learns the truth of the student's rows (paper), or of the "
        "teacher's (the released sweep)",
    )
    grids: dict[Name, GridConfig] = Field(
        default={"main": GridConfig()},
        min_length=1,
        description="name -> cells; done in this order",
    )
    rule: RuleConfig | None = Field(default=None, description="pass rule; null: none")

    @pydantic.model_validator(mode="after")
    def _names_exist(self) -> Self:
        for grid in self.grids.values():
            for name in grid.students:
                one_of("grids: size", name, self.sizes)
            for name in grid.supervisors:
                one_of("grids: supervisor", name, self.supervisors)
            for name in grid.losses:
                one_of("grids: loss", name, self.losses)
            if "adapted" in grid.start and self.adapt is None:
                raise ValueError("grids: start adapted needs a block `adapt`")
        for who in self.supervisors.values():
            if who.kind == "model":
                one_of("supervisors: size", str(who.size), self.sizes)
                one_of("supervisors: loss", who.loss, self.losses)
        check_sources(self.supervisors)
        for name, loss in self.losses.items():
            classify.check_classes(self.task.classes, loss, field=f"losses.{name}")
        if self.rule:
            one_of("rule.grid", self.rule.grid, self.grids)
            for name in (self.rule.loss, self.rule.baseline):
                one_of("rule: loss", name, self.grids[self.rule.grid].losses)
        return self

    @pydantic.model_validator(mode="after")
    def _stages_say_nothing_in_vain(self) -> Self:
        for block, own in OWN.items():
            stage = getattr(self, block)
            for field, instead in own.items() if stage else ():
                said, untouched = (operator.attrgetter(field)(x) for x in (stage, type(stage)()))
                if said != untouched:
                    raise ValueError(f"{block}.{field}: the experiment says it; set {instead}")
        return self


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
    lasting = config.model_copy(update={"results": None, "grids": {}, "rule": None})
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
            try:
                done[name].append(experiment.finish(cell))
            except UserError as error:
                failed[f"seed {cell.seed}: {cell.folder}"] = str(error)
            except Exception as error:  # a bug in one cell must not lose the night's others
                log.exception("cell %s of seed %d failed", cell.folder, cell.seed)
                failed[f"seed {cell.seed}: {cell.folder}"] = f"{type(error).__name__}: {error}"
            clock.note()
    return w2s_report.run(config, done, failed, spent=clock.spent)


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
    rates = grid.learning_rates or (config.finetune.optimizer.learning_rate,)
    axes = (grid.seeds, grid.supervisors, grid.students, grid.tuning, rates, grid.start)
    for seed, supervisor, student, tuning, rate, start in product(*axes):
        for loss in grid.losses:
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
        return self._train_lm(
            self.config.pretrain.model_copy(update=changes),
            self.folder / "pretrain" / size,
            self.task.corpus,
        )

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
        rate = self.config.finetune.optimizer.learning_rate
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
