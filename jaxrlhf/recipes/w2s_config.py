"""The config of a weak-to-strong experiment: its task, sizes, supervisors, losses and grids.

What does not fit together is refused here, before anything is run; `w2s.py` runs it.
"""

import operator
from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.errors import one_of
from jaxrlhf.recipes import blocks, classify
from jaxrlhf.recipes.classify import ClassifyConfig, LossConfig
from jaxrlhf.recipes.sft import SFTConfig
from jaxrlhf.recipes.supervisors import SupervisorConfig, check_sources
from jaxrlhf.recipes.w2s_task import W2STaskConfig

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
    "task.answers.rlhf": {
        **EVERYWHERE,
        "stages": "improve",
        "ppo.policy": "task.answers.rlhf.sft",
        "ppo.reward_model": "improve",
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
    learning_rate: float | None = Field(
        default=None, gt=0, description="peak rate of its fine-tuning; null: as finetune says"
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
        default=(), description="peak rates; none: as the size says, or finetune"
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
    pretrain_seed: int | None = Field(
        default=None,
        ge=0,
        description="all seeds start from the models that this one pre-trains (as the paper, which "
        "has one of each size); null: each pre-trains its own",
    )
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
    improve: str | None = Field(
        default=None,
        description="grid whose reward models a policy is improved with by PPO, each by itself "
        "(task.kind: answers, supervisors that are models); null: none",
    )

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
        if self.improve:
            one_of("improve: grid", self.improve, self.grids)
            if self.task.kind != "answers":
                raise ValueError(f"improve: a task of {self.task.kind} has no policy; take answers")
            for name in self.grids[self.improve].supervisors:
                if self.supervisors[name].kind != "model":
                    raise ValueError(f"improve: supervisor {name} is no model that PPO could ask")
        if self.rule:
            one_of("rule.grid", self.rule.grid, self.grids)
            for name in (self.rule.loss, self.rule.baseline):
                one_of("rule: loss", name, self.grids[self.rule.grid].losses)
        return self

    @pydantic.model_validator(mode="after")
    def _stages_say_nothing_in_vain(self) -> Self:
        for block, own in OWN.items():
            stage = operator.attrgetter(block)(self)
            for field, instead in own.items() if stage else ():
                said, untouched = (operator.attrgetter(field)(x) for x in (stage, type(stage)()))
                if said != untouched:
                    raise ValueError(f"{block}.{field}: the experiment says it; set {instead}")
        return self

    def learning_rate(self, size: str) -> float:
        """The rate that a size is fine-tuned at, as a teacher and unless a grid says otherwise."""
        return self.sizes[size].learning_rate or self.finetune.optimizer.learning_rate
