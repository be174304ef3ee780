"""`jaxrlhf rounds`: sample, label, reward model, PPO, measure; and again with the new policy.

    pretrain -> sft -> start -> round-1/{sample -> label -> reward -> ppo -> measure} -> round-2/...

Each round's answers are the newest policy's, so labels follow it to where it goes (Bai et al. 2022,
2204.05862, section 4.5). A verdict comes from a simulated person, from people on the page of
`jaxrlhf label` (the command ends while they work, exit code 5, and goes on when it is run again),
or from a model under a constitution. Reward model and policy start anew in every round, as in the
paper, or go on. Every stage has its own folder: what is finished is not run again, what was
interrupted goes on. More `rounds` may be asked for at any time.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
from pydantic import Field

from jaxrlhf.config import Config, save_resolved
from jaxrlhf.recipes import (
    blocks,
    cai_label,
    pipelines,
    ppo,
    report_rounds,
    reward,
    rounds_data,
    rounds_measure,
    rounds_people,
    sample,
    sft,
    simulate_labels,
    stages,
    tasks,
)
from jaxrlhf.recipes.ppo import PPOConfig
from jaxrlhf.recipes.reward import RewardConfig
from jaxrlhf.recipes.rounds_data import Files
from jaxrlhf.recipes.rounds_measure import Measured
from jaxrlhf.recipes.rounds_people import PeopleConfig
from jaxrlhf.recipes.sample import SampleConfig
from jaxrlhf.recipes.sft import SFTConfig
from jaxrlhf.recipes.simulate_labels import SimulateLabelsConfig
from jaxrlhf.sandbox.protocol import unit_hash

Actions = dict[str, Callable[[], dict[str, Any]]]
STORE = "labels.sqlite"
OWN = {
    "sample": {"model_path": "model_path", "models": "model_path"},
    "label": {
        "world": "task.sandbox.world",
        "samples": "sample.prompts.files",
        "test_pairs": "test_share",
    },
    "judge": {"samples": "sample.prompts.files", "test_pairs": "test_share"},
    "reward": {"model_path": "model_path", "warm_start": "reward_init", "reference": "model_path"},
    "ppo": {
        "policy": "policy_init",
        "reference": "model_path",
        "reward_model": "reward_init",
    },
}
"""Fields of stages that the rounds decide, and what is set instead."""


class RoundsConfig(Config):
    """Rounds of feedback. Files, models and seeds of the stages are filled in."""

    output_dir: str = Field(default="runs/rounds", description="folder of this run")
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of every stage")
    mesh: blocks.MeshConfig = Field(default=blocks.MeshConfig(), description="devices")
    dtype: blocks.Dtype = Field(default="float32", description="compute dtype of every stage")
    remat: bool = Field(
        default=False, description="recompute blocks in every backward pass, to save memory"
    )
    task: tasks.TaskConfig = Field(default=tasks.TaskConfig(), description="data and judge")
    model_path: str | None = Field(
        default=None, description="a policy to begin with (folder or hub name) with pretrain: null"
    )
    pretrain: SFTConfig | None = Field(
        default=SFTConfig(), description="a model from scratch; null: model_path is one"
    )
    sft: SFTConfig | None = Field(
        default=None, description="fine-tuning on demonstrations; null: none"
    )
    rounds: int = Field(default=3, ge=0, description="how many; 0: only what comes before them")
    pairs: int = Field(default=500, ge=1, description="pairs that are labelled in a round")
    spare: float = Field(
        default=1.5,
        ge=1,
        description="prompts that are answered for each of those: equal answers are no pair",
    )
    test_share: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="of prompts, by their hash, whose pairs test reward models in every round",
    )
    mix: rounds_data.Mix = Field(
        default="all",
        description="pairs that a reward model learns: all, those of the last round, or all with "
        "every round counting alike (uniform)",
    )
    policy_init: Literal["reference", "previous"] = Field(
        default="reference", description="where PPO begins in a round; KL is to the reference"
    )
    kl_step: float | None = Field(
        default=None,
        gt=0,
        description="nats: PPO of round n stops n of these from the reference; null: ppo.stop_kl",
    )
    reward_init: Literal["lm", "previous"] = Field(
        default="lm", description="a reward model starts from the policy, or from the one before"
    )
    labeller: Literal["simulated", "people", "judge"] = Field(
        default="simulated", description="who compares"
    )
    sample: SampleConfig = Field(default=SampleConfig(), description="answers to compare")
    label: SimulateLabelsConfig = Field(
        default=SimulateLabelsConfig(), description="labeller: simulated"
    )
    people: PeopleConfig = Field(default=PeopleConfig(), description="labeller: people")
    judge: cai_label.LabelConfig = Field(
        default=cai_label.LabelConfig(), description="labeller: judge, a model here or served"
    )
    reward: RewardConfig = Field(default=RewardConfig(), description="reward model of a round")
    ppo: PPOConfig = Field(default=PPOConfig(), description="reinforcement learning of a round")

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.pretrain is None) == (self.model_path is None):
            raise ValueError("pretrain, model_path: give one of the two, and null for the other")
        if self.kl_step and not self.ppo.eval_steps:
            raise ValueError(f"kl_step = {self.kl_step}: needs evaluations; set ppo.eval_steps")
        if self.labeller == "simulated" and self.task.kind != "sandbox":
            raise ValueError(
                f"labeller = simulated: needs task.kind: sandbox, not {self.task.kind}"
            )
        return self


CONFIG = RoundsConfig
EXAMPLE = "jaxrlhf rounds --config configs/rounds.yaml"


def run(config: RoundsConfig) -> dict[str, Any]:
    """Run the stages; the summary has the figures of every round.

    Raises:
      WaitingError: people have not judged all pairs of a round.
    """
    refuse_own(config)
    folder = Path(config.output_dir)
    harmless = (*stages.HARMLESS, "rounds")
    stages.refuse_another_config(folder, config, harmless=harmless)
    stages.make_folder(folder)
    task = config.task.prepare(folder / "data", seed=config.seed)
    work = plan(config, task)
    save_resolved(config, folder)
    return pipelines.run(folder, work, tuple(work))


def refuse_own(config: RoundsConfig) -> None:
    """Refuse what a stage says of itself where the rounds decide it."""
    for block, own in OWN.items():
        pipelines.refuse_own(block, getattr(config, block), own)
    data = {"train": "pairs", "test": "test_share"}
    pipelines.refuse_own("reward.data", config.reward.data, data)


def plan(config: RoundsConfig, task: tasks.Task) -> Actions:
    """Stage name -> what it does, in order, for this task."""
    work = _before(config, task)
    for number in range(1, config.rounds + 1):
        work |= _round(config, task, number)
    judged = task.judge is not None
    work["report"] = lambda: report_rounds.run(config, judged=judged)
    return work


def reference(config: RoundsConfig) -> str:
    """The policy that the rounds begin with."""
    root = Path(config.output_dir)
    if config.sft:
        return str(root / "sft" / "model")
    return str(root / "pretrain" / "model") if config.pretrain else str(config.model_path)


def policy(config: RoundsConfig, number: int) -> str:
    """The policy after a round; round 0 is the reference."""
    root = Path(config.output_dir)
    return str(root / rounds_data.name(number) / "ppo" / "model") if number else reference(config)


def _before(config: RoundsConfig, task: tasks.Task) -> Actions:
    work: Actions = {}
    if config.pretrain:
        pretrain = pipelines.stage(
            config,
            "pretrain",
            config.pretrain,
            data__train=task.corpus,
            data__test=task.test_corpus,
            tokenizer__path=task.tokenizer,
        )
        work["pretrain"] = lambda: sft.run(pretrain)
    if config.sft:
        tuned = pipelines.stage(
            config,
            "sft",
            config.sft,
            model_path=str(Path(config.output_dir) / "pretrain" / "model")
            if config.pretrain
            else config.model_path,
            data__train=task.demonstrations,
        )
        work["sft"] = lambda: sft.run(tuned)
    settings = _ppo(config, task, 1)
    folder = str(Path(config.output_dir) / "start")
    work["start"] = lambda: rounds_measure.start(
        folder, reference(config), settings, judge=task.judge
    )
    return work


def _round(config: RoundsConfig, task: tasks.Task, number: int) -> Actions:
    files = Files(Path(config.output_dir), number)
    here = rounds_data.name(number)
    asked = policy(config, number - 1)
    given = config.sample.prompts
    own = given.model_copy(update={"files": (str(files.prompts),), "limit": None})
    samples = _stage(config, number, "sample", model_path=asked).model_copy(update={"prompts": own})
    improved = _ppo(config, task, number)

    def draw() -> dict[str, Any]:
        rounds_data.write_prompts(
            files,
            given.files or task.prompts,
            limit=given.limit,
            pairs=config.pairs,
            spare=config.spare,
        )
        return sample.run(samples)

    def label() -> dict[str, Any]:
        rounds_data.write_pairs(files, pairs=config.pairs)
        return _label(config, files)

    def train_reward() -> dict[str, Any]:
        rounds_data.write_data(files, mix=config.mix, test_share=config.test_share)
        return reward.run(_reward(config, task, files))

    def improve() -> dict[str, Any]:
        canaries = pipelines.filled(improved, guards__canary__files=rounds_data.tests(files))
        return ppo.run(canaries, judge=task.judge)

    who = Measured(policy(config, number), asked, reference(config))
    measured = str(files.folder / "measure")
    return {
        f"{here}/sample": draw,
        f"{here}/label": label,
        f"{here}/reward": train_reward,
        f"{here}/ppo": improve,
        f"{here}/measure": lambda: rounds_measure.run(measured, who, improved, judge=task.judge),
    }


def _label(config: RoundsConfig, files: Files) -> dict[str, Any]:
    """The labels of a round, in `label/preferences.jsonl` whoever gives them."""
    pairs, folder = str(files.pairs), str(files.folder / "label")
    if config.labeller == "people":
        store = str(files.root / STORE)
        return rounds_people.run(folder, config.people, samples=pairs, store=store)
    name = f"{rounds_data.name(files.number)}/label"
    if config.labeller == "judge":
        return cai_label.run(
            pipelines.stage(config, name, config.judge, follows="judge", samples=pairs)
        )
    settings = pipelines.stage(config, name, config.label, follows="label", samples=pairs)
    return simulate_labels.run(settings.model_copy(update={"world": config.task.sandbox.world}))


def _reward(config: RoundsConfig, task: tasks.Task, files: Files) -> RewardConfig:
    base = reference(config)
    warm = config.reward_init == "previous" and files.number > 1
    before = files.root / rounds_data.name(files.number - 1) / "reward" / "model"
    start = {"warm_start": str(before)} if warm else {"model_path": base}
    return _stage(
        config,
        files.number,
        "reward",
        **start,
        reference=base,
        prompts__files=task.prompts,
        data__train=(str(files.train),),
        data__test=rounds_data.tests(files),
    )


def _ppo(config: RoundsConfig, task: tasks.Task, number: int) -> PPOConfig:
    folder = Path(config.output_dir) / rounds_data.name(number)
    begins = policy(config, number - 1 if config.policy_init == "previous" else 0)
    settings = _stage(
        config,
        number,
        "ppo",
        policy=begins,
        reference=reference(config),
        reward_model=str(folder / "reward" / "model"),
        prompts__files=task.prompts,
        eval_prompts__files=task.test_prompts,
    )
    if config.kl_step is None:
        return settings
    return settings.model_copy(update={"stop_kl": number * config.kl_step})


def _stage(config: RoundsConfig, number: int, which: str, **empty: Any) -> Any:
    """The config of a stage of a round, with a seed of its own."""
    name = f"{rounds_data.name(number)}/{which}"
    made = pipelines.stage(config, name, getattr(config, which), follows=which, **empty)
    seed = int(unit_hash("round", config.seed, number) * 2**32)
    return made.model_copy(update={"seed": seed})
