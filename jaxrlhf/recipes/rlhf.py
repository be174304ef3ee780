"""`jaxrlhf rlhf`: preferences to a better policy, end to end, in one folder.

    pretrain -> sft -> sample -> label -> reward -> ppo -> report

Each stage is the command of the same name with its own folder, checkpoints and log; a finished
stage is not run again, an interrupted one goes on. What a task brings (ready preferences, say)
makes stages unnecessary: they are left out.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from jaxrlhf.config import Config, save_resolved
from jaxrlhf.errors import ConfigError
from jaxrlhf.recipes import (
    blocks,
    pipelines,
    ppo,
    report_rlhf,
    reward,
    sample,
    sft,
    simulate_labels,
    stages,
    tasks,
)
from jaxrlhf.recipes.ppo import PPOConfig
from jaxrlhf.recipes.reward import RewardConfig
from jaxrlhf.recipes.sample import SampleConfig
from jaxrlhf.recipes.sft import SFTConfig
from jaxrlhf.recipes.simulate_labels import SimulateLabelsConfig

STAGES = ("pretrain", "sft", "sample", "label", "reward", "ppo", "report")


class RLHFConfig(Config):
    """The whole pipeline. Files, folders and seeds of the stages are filled in where left empty."""

    output_dir: str = Field(default="runs/rlhf", description="folder of this run")
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of every stage")
    mesh: blocks.MeshConfig = Field(default=blocks.MeshConfig(), description="devices")
    dtype: blocks.Dtype = Field(default="float32", description="compute dtype of every stage")
    remat: bool = Field(
        default=False, description="recompute blocks in every backward pass, to save memory"
    )
    stages: tuple[Literal["pretrain", "sft", "sample", "label", "reward", "ppo", "report"], ...] = (
        Field(default=STAGES, description="run these only; the ones before must be finished")
    )
    task: tasks.TaskConfig = Field(default=tasks.TaskConfig(), description="data and judge")
    pretrain: SFTConfig = Field(default=SFTConfig(), description="language model")
    sft: SFTConfig | None = Field(
        default=None, description="fine-tuning on demonstrations; null: none"
    )
    sample: SampleConfig = Field(
        default=SampleConfig(),
        description="answers to compare; unused with ready preferences",
    )
    label: SimulateLabelsConfig = Field(
        default=SimulateLabelsConfig(),
        description="who compares; unused with ready preferences",
    )
    reward: RewardConfig = Field(default=RewardConfig(), description="reward model")
    ppo: PPOConfig = Field(default=PPOConfig(), description="reinforcement learning")
    test_preferences: int = Field(
        default=500, ge=1, description="labelled pairs kept to test the reward model"
    )


CONFIG = RLHFConfig


def run(config: RLHFConfig) -> dict[str, Any]:
    """Run the stages; the summary has the figures of the report."""
    folder = Path(config.output_dir)
    stages.refuse_another_config(folder, config)
    stages.make_folder(folder)
    task = config.task.prepare(folder / "data", seed=config.seed)
    work = plan(config, task)
    if not set(work) & set(config.stages):
        raise ConfigError(f"stages: nothing to run; this pipeline has {', '.join(work)}")
    save_resolved(config, folder)
    return pipelines.run(folder, work, config.stages)


def plan(config: RLHFConfig, task: tasks.Task) -> dict[str, Callable[[], dict[str, Any]]]:
    """Stage name -> what it does, in order, for this task."""
    root = Path(config.output_dir)
    policy = str(root / ("sft" if config.sft else "pretrain") / "model")

    def stage(name: str, settings: Any, **empty: Any) -> Any:
        return pipelines.stage(config, name, settings, **empty)

    work: dict[str, Callable[[], dict[str, Any]]] = {}
    pretrain = stage(
        "pretrain",
        config.pretrain,
        data__train=task.corpus,
        data__test=task.test_corpus,
        tokenizer__path=task.tokenizer,
    )
    work["pretrain"] = lambda: sft.run(pretrain)
    if config.sft:
        tuned = stage(
            "sft",
            config.sft,
            model_path=str(root / "pretrain" / "model"),
            data__train=task.demonstrations,
        )
        work["sft"] = lambda: sft.run(tuned)
    preferences, test_preferences = task.preferences, task.test_preferences
    if not (preferences or config.reward.data.train):
        samples = stage("sample", config.sample, model_path=policy, prompts__files=task.prompts)
        world = {"world": "task.sandbox.world"}
        pipelines.refuse_own("label", config.label, world)
        labels = stage(
            "label",
            config.label,
            samples=str(root / "sample" / "samples.jsonl"),
            test_pairs=config.test_preferences,
        ).model_copy(update={"world": config.task.sandbox.world})
        work["sample"] = lambda: sample.run(samples)
        work["label"] = lambda: simulate_labels.run(labels)
        preferences = (str(root / "label" / "preferences.jsonl"),)
        test_preferences = (str(root / "label" / "test_preferences.jsonl"),)
    rewarded = stage(
        "reward",
        config.reward,
        model_path=policy,
        reference=policy,
        prompts__files=task.prompts,
        data__train=preferences,
        data__test=test_preferences,
    )
    improved = stage(
        "ppo",
        config.ppo,
        policy=policy,
        reward_model=str(root / "reward" / "model"),
        prompts__files=task.prompts,
        eval_prompts__files=task.test_prompts,
        guards__canary__files=rewarded.data.test,
        guards__canary__columns=rewarded.data.columns,
    )
    compare = None
    if config.task.kind == "sandbox" and not config.ppo.guards.labeller:
        compare = simulate_labels.comparer(
            config.task.sandbox.world.build(), config.label.labeller, seed=config.seed + 1
        )
    work["reward"] = lambda: reward.run(rewarded)
    work["ppo"] = lambda: ppo.run(improved, judge=task.judge, compare=compare)
    work["report"] = lambda: report_rlhf.run(config, improved, judge=task.judge)
    return work
