"""`jaxrlhf cai`: Constitutional AI, both phases, end to end, in one folder.

    pretrain -> helpful -> revise -> sl-all, sl-last -> sample -> label -> arms -> report

A helpful policy answers red-team prompts, criticises and revises its answers under a constitution;
the *pre-trained* model is fine-tuned on the revisions and on helpful answers (SL-CAI); a judge
labels pairs of its answers by the constitution; each arm trains a preference model on those labels
and on people's preferences among helpful answers, and a policy by PPO (RL-CAI). Every stage is a
command of its own with its own folder: what is finished is not run again, what was interrupted
goes on. Arms and variants are settings; they share everything before them.

With the helpdesk (a sandbox world) people are simulated and gold judges. With files of your own,
`model_path` and `pretrain: null` take a model as it is. Source: Bai et al. 2022 (2212.08073).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import pydantic
from pydantic import Field

from jaxrlhf.config import Config, save_resolved
from jaxrlhf.constitutional import constitution
from jaxrlhf.errors import ConfigError, one_of
from jaxrlhf.recipes import (
    blocks,
    cai_critique_revise,
    cai_data,
    cai_label,
    pipelines,
    ppo,
    report_cai,
    reward,
    sample,
    sft,
    simulate_labels,
    stages,
)
from jaxrlhf.recipes.cai_arms import ArmConfig, ChainVariant, JudgeVariant
from jaxrlhf.recipes.cai_critique_revise import CritiqueReviseConfig
from jaxrlhf.recipes.cai_label import LabelConfig
from jaxrlhf.recipes.cai_tasks import CAITask, CAITaskConfig
from jaxrlhf.recipes.ppo import PPOConfig
from jaxrlhf.recipes.reward import RewardConfig
from jaxrlhf.recipes.sample import SampleConfig
from jaxrlhf.recipes.sft import SFTConfig
from jaxrlhf.recipes.simulate_labels import SimulateLabelsConfig

Action = Callable[[], dict[str, Any]]
Actions = dict[str, Action]
Revisions = Literal["all", "last"]


class PeopleConfig(Config):
    """Simulated people: which answers they are shown, and how they judge."""

    sample: SampleConfig = Field(default=SampleConfig(), description="the answers")
    label: SimulateLabelsConfig = Field(
        default=SimulateLabelsConfig(), description="the judgements"
    )


class CAIConfig(Config):
    """Both phases. Files, models and seeds of the stages are filled in where left empty."""

    output_dir: str = Field(default="runs/cai", description="folder of this run")
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of every stage")
    mesh: blocks.MeshConfig = Field(default=blocks.MeshConfig(), description="devices")
    dtype: blocks.Dtype = Field(default="float32", description="compute dtype of every stage")
    remat: bool = Field(
        default=False, description="recompute blocks in every backward pass, to save memory"
    )
    stages: tuple[str, ...] = Field(
        default=(), description="run these only, the ones before must be finished; none: all"
    )
    task: CAITaskConfig = Field(default=CAITaskConfig(), description="data, people and gold")
    constitution: str = Field(
        default="configs/constitutions/sandbox.yaml",
        description="YAML file, or a folder of the paper's JSON files",
    )
    model_path: str | None = Field(
        default=None, description="a pre-trained model (folder or hub name) with pretrain: null"
    )
    pretrain: SFTConfig | None = Field(
        default=SFTConfig(), description="a model from scratch; null: model_path is one"
    )
    helpful: SFTConfig | None = Field(
        default=SFTConfig(), description="the helpful policy; null: the pre-trained model is it"
    )
    revise: CritiqueReviseConfig = Field(
        default=CritiqueReviseConfig(), description="critique and revision by the helpful policy"
    )
    chains: tuple[ChainVariant, ...] = Field(
        default=(), description="critique and revision in other ways, for the report"
    )
    helpful_answers: SampleConfig = Field(
        default=SampleConfig(samples_per_prompt=1),
        description="the helpful policy's own answers, to fine-tune on beside revisions",
    )
    sl: SFTConfig = Field(default=SFTConfig(), description="fine-tuning of the pre-trained model")
    sl_rounds: int = Field(
        default=4, ge=1, description="SL-CAI learns from this many revisions of revise.rounds"
    )
    sl_revisions: tuple[Revisions, ...] = Field(
        default=("all",),
        min_length=1,
        description="learn all revisions, or the last alone; the first of these goes on to RL",
    )
    helpful_people: PeopleConfig = Field(
        default=PeopleConfig(),
        description="who compares helpful answers; unused where the task has their pairs",
    )
    harm_people: PeopleConfig = Field(
        default=PeopleConfig(),
        description="who compares harmlessness, for arms that ask people; unused with their pairs",
    )
    sample: SampleConfig = Field(
        default=SampleConfig(), description="pairs of SL-CAI's answers to red-team prompts"
    )
    feedback: SFTConfig | None = Field(
        default=None,
        description="fine-tuning of the pre-trained model on comparisons, to judge; null: as it is",
    )
    label: LabelConfig = Field(
        default=LabelConfig(), description="the judge; its model unless named: feedback's"
    )
    judges: tuple[JudgeVariant, ...] = Field(
        default=(), description="the same pairs labelled in other ways"
    )
    reward: RewardConfig = Field(default=RewardConfig(), description="preference model of an arm")
    ppo: PPOConfig = Field(default=PPOConfig(), description="reinforcement learning of an arm")
    arms: tuple[ArmConfig, ...] = Field(
        default=(ArmConfig(name="rl"),), min_length=1, description="the first one is RL-CAI"
    )

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        for field in ("chains", "judges", "arms"):
            names = [item.name for item in getattr(self, field)]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{field}: the name {twice[0]!r} stands twice")
        for arm in self.arms:
            if arm.judge is not None:
                one_of(f"arm {arm.name}: judge", arm.judge, [judge.name for judge in self.judges])
        if (self.pretrain is None) == (self.model_path is None):
            raise ValueError("pretrain, model_path: give one of the two, and null for the other")
        if self.sl_rounds > self.revise.rounds:
            raise ValueError(f"sl_rounds = {self.sl_rounds}: revise.rounds is {self.revise.rounds}")
        return self


CONFIG = CAIConfig
EXAMPLE = "jaxrlhf cai --config configs/tiny/cai.yaml"


class Models(NamedTuple):
    """Where the policies of a run lie."""

    pretrained: str
    helpful: str
    sl: dict[str, str]
    """By what they learnt: all revisions, or the last."""
    feedback: str
    arms: dict[str, str]

    def start(self, arm: ArmConfig) -> str:
        """The policy that an arm's RL starts from."""
        return self.helpful if arm.start == "helpful" else next(iter(self.sl.values()))


def models(config: CAIConfig) -> Models:
    """The policies that this config makes, or is given."""
    root = Path(config.output_dir)
    first = str(root / "pretrain" / "model") if config.pretrain else str(config.model_path)
    return Models(
        pretrained=first,
        helpful=str(root / "helpful" / "model") if config.helpful else first,
        sl={which: str(root / f"sl-{which}" / "model") for which in config.sl_revisions},
        feedback=str(root / "feedback" / "model") if config.feedback else first,
        arms={arm.name: str(root / "arms" / arm.name / "ppo" / "model") for arm in config.arms},
    )


def run(config: CAIConfig) -> dict[str, Any]:
    """Run the stages; the summary has the figures of the report."""
    folder = Path(config.output_dir)
    stages.refuse_another_config(folder, config)
    for variant in (config, config.revise, config.label, *config.chains, *config.judges):
        if variant.constitution:
            constitution.load(variant.constitution)  # a mistake in one is told before any work
    stages.make_folder(folder)
    task = config.task.prepare(folder / "data", seed=config.seed)
    work = plan(config, task)
    for name in config.stages:
        one_of("stages", name, work)
    save_resolved(config, folder)
    return pipelines.run(folder, work, config.stages or tuple(work))


def plan(config: CAIConfig, task: CAITask) -> Actions:
    """Stage name -> what it does, in order, for this task."""
    work = _supervised(config, task)
    work |= _pairs(config, task)
    for arm in config.arms:
        work |= _arm(config, task, arm)
    work["report"] = lambda: report_cai.run(config, task, models(config))
    return work


def _supervised(config: CAIConfig, task: CAITask) -> Actions:
    """From a pre-trained model to SL-CAI."""
    made, work = models(config), {}
    if config.pretrain:
        pretrain = pipelines.stage(
            config,
            "pretrain",
            config.pretrain,
            data__train=task.corpus,
            tokenizer__path=task.tokenizer,
        )
        work["pretrain"] = lambda: sft.run(pretrain)
    if config.helpful:
        helpful = pipelines.stage(
            config,
            "helpful",
            config.helpful,
            model_path=made.pretrained,
            data__train=task.demonstrations,
        )
        work["helpful"] = lambda: sft.run(helpful)
    for name, settings in _chain_settings(config).items():
        chain = pipelines.stage(
            config,
            name,
            settings,
            follows="revise",
            model_path=made.helpful,
            prompts__files=task.red_prompts,
            constitution=config.constitution,
        )
        work[name] = lambda chain=chain: cai_critique_revise.run(chain)
    answers = pipelines.stage(
        config,
        "helpful-answers",
        config.helpful_answers,
        follows="helpful_answers",
        model_path=made.helpful,
        prompts__files=task.helpful_prompts,
    )
    work["helpful-answers"] = lambda: sample.run(answers)
    for which in config.sl_revisions:
        work[f"sl-{which}"] = _fine_tuning(config, which, made.pretrained)
    return work


def _chain_settings(config: CAIConfig) -> dict[str, CritiqueReviseConfig]:
    """Stage name -> settings, of `revise` and of its variants."""
    found = {"revise": config.revise}
    for variant in config.chains:
        change: dict[str, Any] = {"direct": variant.direct}
        if variant.constitution:
            change["constitution"] = variant.constitution
        if variant.principles:
            change["principles"] = variant.principles
        found[f"revise-{variant.name}"] = config.revise.model_copy(update=change)
    return found


def _fine_tuning(config: CAIConfig, which: Revisions, start: str) -> Action:
    """SL-CAI: the pre-trained model learns revisions and the helpful policy's own answers."""
    settings = pipelines.stage(
        config,
        f"sl-{which}",
        config.sl,
        follows="sl",
        model_path=start,
        data__train=(str(cai_data.examples_file(config, which)),),
    )

    def tune() -> dict[str, Any]:
        cai_data.write_examples(config, which)
        return sft.run(settings)

    return tune


def _pairs(config: CAIConfig, task: CAITask) -> Actions:
    """People's pairs, where the task has none of its own, and the judge's."""
    made, work = models(config), {}
    if _asks(config, "helpful") and not task.helpful_pairs:
        shown = made.helpful, task.helpful_prompts
        work |= _people(config, "helpful", config.helpful_people, task, *shown)
    if _asks(config, "harm") and not task.harm_pairs:
        shown = made.pretrained, task.red_prompts
        work |= _people(config, "harm", config.harm_people, task, *shown)
    if not any(arm.harm_labels == "ai" for arm in config.arms):
        return work
    if config.feedback:
        if not task.comparisons:
            raise ConfigError(f"feedback: task.{config.task.kind}.comparisons has none to learn")
        feedback = pipelines.stage(
            config,
            "feedback",
            config.feedback,
            model_path=made.pretrained,
            data__train=task.comparisons,
        )
        work["feedback"] = lambda: sft.run(feedback)
    samples = pipelines.stage(
        config,
        "sample",
        config.sample,
        model_path=next(iter(made.sl.values())),
        prompts__files=task.red_prompts,
    )
    work["sample"] = lambda: sample.run(samples)
    judges = {"label": config.label}
    for variant in config.judges:
        change = variant.model_dump(include={"both_orders", "calibrate", "questions_per_pair"})
        if variant.constitution:
            change["constitution"] = variant.constitution
        judges[f"label-{variant.name}"] = config.label.model_copy(update=change)
    for name, settings in judges.items():
        judged = pipelines.stage(
            config,
            name,
            settings,
            follows="label",
            model_path=made.feedback,
            samples=str(Path(config.output_dir) / "sample" / "samples.jsonl"),
            constitution=config.constitution,
        )
        work[name] = lambda judged=judged: cai_label.run(judged)
    return work


def _asks(config: CAIConfig, what: Literal["helpful", "harm"]) -> bool:
    """Whether some arm needs people's pairs of this kind."""
    if what == "helpful":
        return any(arm.helpful_pairs for arm in config.arms)
    return any(arm.harm_labels == "people" for arm in config.arms)


def _people(
    config: CAIConfig,
    what: Literal["helpful", "harm"],
    people: PeopleConfig,
    task: CAITask,
    shown_by: str,
    prompts: tuple[str, ...],
) -> Actions:
    """Answers of a model, and what simulated people say of them."""
    if task.world is None:
        raise ConfigError(
            f"task.files.{what}_pairs: name people's pairs, or arms that do without them"
        )
    field, name = f"{what}_people", f"people-{what}"
    world = {"world": "task.helpdesk.world"}
    pipelines.refuse_own(f"{field}.label", people.label, world)
    samples = pipelines.stage(
        config,
        f"{name}/sample",
        people.sample,
        follows=f"{field}.sample",
        model_path=shown_by,
        prompts__files=prompts,
    )
    labels = pipelines.stage(
        config,
        f"{name}/label",
        people.label,
        follows=f"{field}.label",
        samples=str(Path(samples.output_dir) / "samples.jsonl"),
    ).model_copy(update={"world": config.task.helpdesk.world})
    return {
        f"{name}/sample": lambda: sample.run(samples),
        f"{name}/label": lambda: simulate_labels.run(labels),
    }


def _arm(config: CAIConfig, task: CAITask, arm: ArmConfig) -> Actions:
    """A preference model, and PPO against it."""
    name, made = f"arms/{arm.name}", models(config)
    start, folder = made.start(arm), Path(config.output_dir) / name
    rewarded = pipelines.stage(
        config,
        f"{name}/reward",
        config.reward,
        follows="reward",
        model_path=start,
        reference=start,
        prompts__files=task.all_prompts,
        data__train=cai_data.pair_files(config, task, arm),
    )

    def train_reward() -> dict[str, Any]:
        if arm.harm_labels == "ai":
            cai_data.write_ai_pairs(config, arm)
        return reward.run(rewarded)

    improved = pipelines.stage(
        config,
        f"{name}/ppo",
        arm.ppo(config.ppo),
        follows="ppo",
        policy=start,
        reward_model=str(folder / "reward" / "model"),
        prompts__files=task.all_prompts,
        eval_prompts__files=task.test_prompts,
    )
    return {
        f"{name}/reward": train_reward,
        f"{name}/ppo": lambda: ppo.run(improved, judge=task.judge),
    }
