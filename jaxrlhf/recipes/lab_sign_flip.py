"""`jaxrlhf lab sign-flip`: four signs of reward and KL, with honest labels in every round.

In 2019 one refactor flipped the sign of the reward, and with it that of the KL penalty; the model
became fluent and maximally bad overnight, while loss, KL and entropy looked healthy (Ziegler et
al., 1909.08593, section 4.4). Here each of the four net signs is put into PPO at one named place
(`faults.net_signs`) in a sandbox world whose truth is a program:

    (+,+) normal                                  (-,+) incident: bad and fluent
    (+,-) unbounded: driven by reward, gibberish  (-,-) inverted: bad gibberish

Each cell is run twice: its guards stop it; and they only warn, for all rounds (of one round, that
is the same where nothing was stopped, and not run again). After every round but the last, fresh
pairs of the policy's own answers are labelled honestly, and a new reward model is trained on all
labels so far: only the sign is wrong, never the labels. The pass rules stand in `RULES`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from pydantic import Field

from jaxrlhf import rewards
from jaxrlhf.config import Config
from jaxrlhf.data import preferences
from jaxrlhf.errors import GuardError, UserError
from jaxrlhf.evals.policy import evaluate_policy
from jaxrlhf.guards import judged, panel
from jaxrlhf.metrics import read_metrics
from jaxrlhf.progress import console
from jaxrlhf.recipes import (
    faults,
    lab_sign_flip_report,
    pipelines,
    ppo,
    reward,
    rlhf,
    rows,
    saved,
    simulate_labels,
    stages,
)
from jaxrlhf.recipes.lab_sign_flip_report import Cell, Guarded, Round
from jaxrlhf.recipes.ppo import PPOConfig
from jaxrlhf.sandbox.labeller import Labeller, gold_utility

CellName = Literal["normal", "incident", "unbounded", "inverted"]
CELLS: dict[CellName, tuple[int, int]] = {
    "normal": (1, 1),
    "incident": (-1, 1),
    "unbounded": (1, -1),
    "inverted": (-1, -1),
}
"""Net signs of the reward and of the KL penalty."""


class SignFlipConfig(Config):
    """The four cells, for some seeds."""

    output_dir: str = Field(
        default="runs/lab/sign-flip", description="a folder a seed goes in here"
    )
    config: str = Field(
        default="configs/tiny/sign_flip.yaml", description="config of the rlhf recipe, a sandbox"
    )
    overrides: tuple[str, ...] = Field(default=(), description="a.b=c for that config")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="which seeds")
    cells: tuple[CellName, ...] = Field(
        default=tuple(CELLS), min_length=1, description="which signs"
    )
    rounds: int = Field(default=4, ge=1, description="of training, each with a fresh reward model")
    updates: int = Field(default=20, ge=1, description="PPO updates a round")
    pairs: int = Field(default=512, ge=2, description="pairs labelled after a round")
    test_pairs: int = Field(default=128, ge=1, description="of them, kept to test the reward model")
    results: str | None = Field(
        default=None,
        description="the page is written to this name .md, its pictures to this folder; null: none",
    )


CONFIG = SignFlipConfig


def run(config: SignFlipConfig) -> dict[str, Any]:
    """Run every cell of every seed; the summary has the verdict of each rule."""
    folder = Path(config.output_dir)
    cells = [cell for seed in config.seeds for cell in run_seed(config, folder, seed)]
    return lab_sign_flip_report.write(config, cells)


class Base(NamedTuple):
    """What the cells of a seed have in common."""

    root: Path
    pipeline: rlhf.RLHFConfig
    ppo: PPOConfig
    judge: Any
    compare: judged.Compare
    world: Any


def run_seed(config: SignFlipConfig, folder: Path, seed: int) -> list[Cell]:
    """The stages before PPO once, then the cells."""
    base = prepare(config, folder / f"seed-{seed}", seed)
    cells = []
    for name in config.cells:
        reward_sign, kl_sign = CELLS[name]
        console.rule(f"seed {seed}, {name}")
        with faults.net_signs(reward=reward_sign, kl=kl_sign):
            guarded = run_guarded(config, base, name)
            if config.rounds == 1 and guarded.stopped is None:  # to the bit what it would be again
                rounds, found, error = evaluated(base.root / f"{name}-guarded"), {}, ""
            else:
                rounds, found, error = run_unguarded(config, base, name)
        cells.append(Cell(seed, name, rounds, found, guarded, error))
    return cells


def prepare(config: SignFlipConfig, root: Path, seed: int) -> Base:
    """A language model, labels and a reward model, all of them healthy."""
    own = [f"seed={seed}", f"output_dir={root / 'base'}"]
    before = "stages=[pretrain, sft, sample, label, reward]"
    pipeline = rlhf.RLHFConfig.load(config.config, [*config.overrides, *own, before])
    if pipeline.task.kind != "sandbox":
        raise UserError(f"{config.config}: task.kind is {pipeline.task.kind}; gold needs a sandbox")
    rlhf.run(pipeline)
    task = pipeline.task.prepare(root / "base" / "data", seed=seed)
    world = pipeline.task.sandbox.world.build()
    made = root / "base"
    settings = pipeline.ppo.model_copy(
        update={
            "seed": seed,
            "mesh": pipeline.mesh,
            "policy": str(made / ("sft" if pipeline.sft else "pretrain") / "model"),
            "reward_model": str(made / "reward" / "model"),
            "max_steps": config.rounds * config.updates,
            "eval_steps": config.updates,
            "save_steps": 0,
        }
    )
    settings = pipelines.filled(
        settings,
        prompts__files=task.prompts,
        eval_prompts__files=task.test_prompts,
        guards__canary__files=(str(made / "label" / "test_preferences.jsonl"),),
    )
    compare = simulate_labels.comparer(world, pipeline.label.labeller, seed=seed + 1)
    return Base(root, pipeline, settings, task.judge, compare, world)


def run_guarded(config: SignFlipConfig, base: Base, name: str) -> Guarded:
    """The cell under its guards, for one round: where it stops, and what it has cost by then."""
    folder = base.root / f"{name}-guarded"
    settings = base.ppo.model_copy(update={"output_dir": str(folder), "max_steps": config.updates})
    try:
        ppo.run(settings, judge=base.judge, compare=base.compare)
        return Guarded(None, (), labels_of(folder), "")
    except GuardError as error:
        record = stages.read_json(folder / panel.RECORD)
        stopped = record["stopped"]
        by = tuple(x for x, found in record["found"].items() if found["last"] == stopped)
        return Guarded(stopped, by, labels_of(folder), str(error))


def labels_of(folder: Path) -> int:
    """How many pairs were labelled for the guards of a run."""
    return int(sum(row.get(judged.ANDON_LABELS, 0) for row in read_metrics(folder)))


def run_unguarded(
    config: SignFlipConfig, base: Base, name: str
) -> tuple[list[Round], dict[str, int], str]:
    """The cell with guards that only warn: its rounds, guard -> first update, and how it broke."""
    folder = base.root / f"{name}-unguarded"
    guards = base.ppo.guards.model_copy(update={"dry_run": True})
    settings = base.ppo.model_copy(update={"output_dir": str(folder), "guards": guards})
    rounds = Relabelling(config, base, folder)
    error = ""
    try:
        ppo.run(
            settings,
            reward_fn=rounds.score,
            judge=base.judge,
            compare=base.compare,
            hooks=[rounds.hook],
        )
    except UserError as problem:  # a number that is not finite, say: the cell shows how far it came
        error = str(problem)
    found = stages.read_json(folder / panel.RECORD)["found"]
    first = {guard: int(finding["first"]) for guard, finding in found.items()}
    return evaluated(folder), first, error


def evaluated(folder: Path) -> list[Round]:
    """What the held-out evaluations and the reward models of a run say; the first is the start."""
    found = [row for row in read_metrics(folder) if "eval/gold" in row]
    return [
        Round(
            step=int(row["step"]),
            gold=row["eval/gold"],
            legal=row["eval/legal_share"],
            rude=row["eval/rude_share"],
            kl=row["eval/kl"],
            accuracy=accuracy(folder, number),
        )
        for number, row in enumerate(found)
    ]


class Relabelling:
    """The reward of a run, trained anew on honest labels after every round."""

    def __init__(self, config: SignFlipConfig, base: Base, folder: Path):
        self.config, self.base, self.folder = config, base, folder
        mesh = base.ppo.mesh.build()
        self.lm, self.reference, self.tokenizer, _ = saved.load_lm(str(base.ppo.policy), mesh)
        prompts, _ = rows.prompts(self.tokenizer, base.ppo.prompts, field="prompts")
        self.prompts = rows.take(prompts, config.pairs)
        self.labeller = Labeller(
            gold_utility(base.world),
            temperature=base.pipeline.label.labeller.temperature,
            lapse=base.pipeline.label.labeller.lapse,
            seed=base.ppo.seed + 2,
        )
        self.score: rewards.RewardFn = lambda rollout: self.newest(rollout)
        self.newest = self.load(str(base.ppo.reward_model))

    def hook(self, step: int, state: Any, batch: Any) -> Mapping[str, float]:
        """After a round but the last: sample, label, train, and pay by the new model."""
        number, rest = divmod(step, self.config.updates)
        if batch is None or rest or number == self.config.rounds:
            return {}
        self.label(number, state.params["policy"])
        self.newest = self.load(self.train(number))
        return {}

    def label(self, number: int, policy: Any) -> None:
        """Pairs of the policy's own answers, labelled honestly."""
        key = jax.random.fold_in(jax.random.key(self.base.ppo.seed + 3), number)
        a, b = (self.answers(policy, jax.random.fold_in(key, i)) for i in (0, 1))
        labelled = [
            self.labeller.preference_row(*texts)
            for texts in zip(*a, b[1], strict=True)
            if texts[1] != texts[2]
        ]
        records = [{k: x for k, x in row.items() if k != "probability"} for row in labelled]
        home = round_folder(self.folder, number)
        home.mkdir(parents=True, exist_ok=True)
        preferences.write_rows(home / "train.jsonl", records[: -self.config.test_pairs])
        preferences.write_rows(home / "test.jsonl", records[-self.config.test_pairs :])

    def answers(self, policy: Any, key: jax.Array) -> tuple[list[str], list[str]]:
        """One answer a prompt."""
        batch = self.prompts.take(np.arange(len(self.prompts)))
        found = evaluate_policy(
            self.lm,
            policy,
            self.reference,
            [batch],
            sampling=self.base.ppo.sampling.build(self.tokenizer),
            key=key,
            decode=rows.decoder(self.tokenizer),
        )
        return found.prompts, found.responses

    def train(self, number: int) -> str:
        """A fresh reward model on all labels so far; the folder of it."""
        made, home = self.base.root / "base", round_folder(self.folder, number)
        files = [round_folder(self.folder, i) / "train.jsonl" for i in range(1, number + 1)]
        settings = self.base.pipeline.reward.model_copy(
            update={
                "output_dir": str(home / "reward"),
                "seed": self.base.ppo.seed + number,
                "mesh": self.base.pipeline.mesh,
            }
        )
        train = (str(made / "label" / "preferences.jsonl"), *map(str, files))
        settings = pipelines.filled(
            settings,
            model_path=self.base.ppo.policy,
            reference=self.base.ppo.policy,
            prompts__files=self.base.ppo.prompts.files,
            data__train=train,
            data__test=(str(home / "test.jsonl"),),
        )
        reward.run(settings)
        return str(home / "reward" / "model")

    def load(self, path: str) -> rewards.RewardFn:
        found = saved.load_scalar(path, self.base.ppo.mesh.build())
        return rewards.from_model(found.model, found.params)


def round_folder(folder: Path, number: int) -> Path:
    """What is made after a round; round 0 is the start, whose reward model is the base's."""
    return folder / f"round-{number}" if number else folder.parent / "base"


def accuracy(folder: Path, number: int) -> float | None:
    """Of the reward model made after a round, on held-out pairs of the policy of that time."""
    path = round_folder(folder, number) / "reward" / "done.json"
    return stages.read_json(path)["eval/accuracy"] if path.is_file() else None
