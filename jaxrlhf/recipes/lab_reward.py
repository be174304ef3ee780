"""What the experiments on reward models share: answers to learn from, a trainer, curves and pages.

A seed has a first policy (the stages pretrain and sft of the `rlhf` recipe in a sandbox world), its
answers to training prompts, and held-out pairs of which gold says the better one: accuracy on those
is gold accuracy. Every reward model is a run of the `reward` recipe with the same number of
updates, in a folder of its own, so an interrupted experiment goes on. What is compared is the
experiment's own business (`lab_queries.py`, `lab_ratings.py`, `lab_annotators.py`).
"""

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from jaxrlhf import plots
from jaxrlhf.config import save_resolved
from jaxrlhf.data import preferences, sources
from jaxrlhf.errors import ConfigError
from jaxrlhf.evals.statistics import format_interval, t_interval
from jaxrlhf.plots import Line
from jaxrlhf.progress import console, table
from jaxrlhf.recipes import pipelines, reward, rlhf, sample, stages
from jaxrlhf.recipes.experiment import ExperimentConfig, command
from jaxrlhf.recipes.sample import SampleConfig
from jaxrlhf.recipes.tables import markdown
from jaxrlhf.sandbox.labeller import gold_utility
from jaxrlhf.sandbox.protocol import unit_hash

Row = dict[str, Any]


class LabConfig(ExperimentConfig):
    """An experiment on reward models, for several seeds."""

    output_dir: str = Field(default="runs/lab", description="a folder a seed goes in here")
    base_dir: str = Field(
        default="runs/lab/base",
        description="first policies and their answers; experiments share it",
    )
    config: str = Field(
        default="configs/lab_reward.yaml", description="config of the rlhf recipe, a sandbox"
    )
    overrides: tuple[str, ...] = Field(default=(), description="a.b=c for that config")
    updates: int = Field(default=60, ge=1, description="of every reward model")


class Lab(NamedTuple):
    """A seed of an experiment."""

    root: Path
    base: Path
    seed: int
    updates: int
    pipeline: rlhf.RLHFConfig
    policy: str
    prompts: tuple[str, ...]
    test_prompts: tuple[str, ...]
    test: str
    """Held-out pairs, the better one by gold as `chosen`."""
    world: Any

    def answers(self, *, prompts: int, each: int) -> list[Row]:
        """Sample records: `each` answers of the first policy to the first training prompts."""
        return _sampled(self, f"answers-{prompts}x{each}", self.prompts, prompts, each)


def prepare(config: LabConfig, seed: int) -> Lab:
    """The first policy of a seed and its held-out pairs."""
    base = Path(config.base_dir) / f"seed-{seed}"
    own = (f"seed={seed}", f"output_dir={base}", "stages=[pretrain, sft]")
    pipeline = rlhf.RLHFConfig.load(config.config, [*config.overrides, *own])
    if pipeline.task.kind != "sandbox" or pipeline.sft is None:
        raise ConfigError(f"{config.config}: an experiment needs task.kind: sandbox, and sft")
    rlhf.run(pipeline)
    task = pipeline.task.prepare(base / "data", seed=seed)
    lab = Lab(
        root=Path(config.output_dir) / f"seed-{seed}",
        base=base,
        seed=seed,
        updates=config.updates,
        pipeline=pipeline,
        policy=str(base / "sft" / "model"),
        prompts=task.prompts,
        test_prompts=task.test_prompts,
        test=str(base / "test.jsonl"),
        world=pipeline.task.sandbox.world.build(),
    )
    held_out = _sampled(lab, "test", task.test_prompts, None, 2)
    better = [by_gold(lab.world, x["prompt"], *x["responses"]) for x in held_out]
    preferences.write_rows(Path(lab.test), [row for row in better if row])
    return lab


def by_gold(world: Any, prompt: str, a: str, b: str) -> Row | None:
    """A pair with the better answer as `chosen`; None where they are equally good."""
    utility = gold_utility(world)
    gap = utility(prompt, a) - utility(prompt, b)
    if gap == 0:
        return None
    chosen, rejected = (a, b) if gap > 0 else (b, a)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


class Trained(NamedTuple):
    """A reward model."""

    model: str
    accuracy: float
    """On the held-out pairs, against gold."""


def train(lab: Lab, name: str, rows: Sequence[Row], *, seed: int = 0, **changes: Any) -> Trained:
    """A reward model learns `rows`; `changes` are fields of its config."""
    folder = lab.root / name
    folder.mkdir(parents=True, exist_ok=True)
    preferences.write_rows(folder / "train.jsonl", rows)
    own = {
        "output_dir": str(folder),
        "seed": int(unit_hash("lab", lab.seed, seed) * 2**32),
        "model_path": lab.policy,
        "max_steps": lab.updates,
        "eval_steps": 0,
        "save_steps": 0,
        "tensorboard": False,
        "normalize": "none",
        "normalize_before": False,
    }
    settings = pipelines.filled(
        lab.pipeline.reward.model_copy(update=own | changes),
        data__train=(str(folder / "train.jsonl"),),
        data__test=(lab.test,),
    )
    done = reward.run(settings)
    return Trained(str(folder / "model"), done["eval/accuracy"])


def _sampled(
    lab: Lab, name: str, prompts: tuple[str, ...], limit: int | None, each: int
) -> list[Row]:
    settings: SampleConfig = lab.pipeline.sample.model_copy(
        update={
            "output_dir": str(lab.base / name),
            "seed": lab.seed,
            "model_path": lab.policy,
            "samples_per_prompt": each,
        }
    )
    settings = pipelines.filled(settings, prompts__files=prompts, prompts__limit=limit)
    sample.run(settings)
    return [dict(row) for row in sources.load_rows(str(lab.base / name / "samples.jsonl"))]


# Curves and pages.

Curve = dict[tuple[str, int], list[float]]
"""(arm, where on the axis) -> a figure for each seed."""


class Words(NamedTuple):
    """What a page says. `control`: the arm that the others are compared with."""

    title: str
    command: str
    axis: str
    figure: str
    control: str
    says: str
    logarithmic: bool = True


def curves(found: Sequence[Mapping[tuple[str, int], float]]) -> Curve:
    """The seeds' figures side by side."""
    return {key: [one[key] for one in found] for key in found[0]}


def report(config: Any, words: Words, found: Curve) -> dict[str, Any]:
    """Print the table and write the page; the summary has every mean and difference."""
    headers, lines = tabled(words, found)
    table(words.title, headers, lines)
    if config.results:
        console.print(f"results: {write(config, words, found).absolute()}")
    return {
        f"{arm}/{at}": {"mean": float(np.mean(x)), "difference": _difference(words, found, arm, at)}
        for (arm, at), x in found.items()
    }


def tabled(words: Words, found: Curve) -> tuple[list[str], list[list[str]]]:
    """Header and lines: means over seeds, and paired differences to the control."""
    arms, places = _arms(found), _places(found)
    others = [arm for arm in arms if arm != words.control]
    headers = [words.axis, *arms, *(f"{arm} − {words.control}" for arm in others)]
    lines = []
    for at in places:
        line = [f"{at:,}"]
        line += [_mean(found.get((arm, at))) for arm in arms]
        line += [_mean(_paired(words, found, arm, at), sign=True) for arm in others]
        lines.append(line)
    return headers, lines


def write(config: Any, words: Words, found: Curve) -> Path:
    """The page and its picture."""
    folder = Path(config.results)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "curve.png").write_bytes(plots.png(picture(words, found)))
    seeds = ", ".join(map(str, config.seeds))
    parts = [
        f"# {words.title}",
        f"    {command(words.command, config)}",
        f"{date.today().isoformat()}, {platform.machine()}, {stages.device_line()}; seeds {seeds}.",
        words.says,
        markdown(*tabled(words, found)),
        "Mean [95 %, Student's t over seeds]; differences are paired by seed.",
        f"![{words.title}]({folder.name}/curve.png)",
    ]
    path = folder.with_suffix(".md")
    stages.write_text(path, "\n\n".join(parts) + "\n")
    return path


def picture(words: Words, found: Curve) -> Any:
    """A line an arm, with t intervals where there are several seeds."""
    drawn = []
    for arm in _arms(found):
        places = [at for at in _places(found) if (arm, at) in found]
        means = [t_interval(found[arm, at]) for at in places]
        x = np.log2(places) if words.logarithmic else np.array(places, float)
        line = Line(x.tolist(), [mean.estimate for mean in means], arm)
        if len(found[arm, places[0]]) > 1:
            low, high = ([getattr(mean, side) for mean in means] for side in ("low", "high"))
            line = dataclasses.replace(line, low=low, high=high)
        drawn.append(line)
    xlabel = f"log₂ {words.axis}" if words.logarithmic else words.axis
    return plots.lines(drawn, xlabel=xlabel, ylabel=words.figure, title=words.title)


def over_seeds(
    config: LabConfig, run_seed: Callable[[Lab], Mapping[tuple[str, int], float]]
) -> Curve:
    """An experiment's figures for every seed."""
    folder = Path(config.output_dir)
    stages.refuse_another_config(
        folder, config, harmless=(*stages.HARMLESS, "base_dir", "seeds", "results")
    )
    stages.make_folder(folder)
    save_resolved(config, folder)
    found = []
    for seed in config.seeds:
        console.rule(f"seed {seed}")
        found.append(run_seed(prepare(config, seed)))
    return curves(found)


def _arms(found: Curve) -> list[str]:
    return list(dict.fromkeys(arm for arm, _ in found))


def _places(found: Curve) -> list[int]:
    return sorted({at for _, at in found})


def _paired(words: Words, found: Curve, arm: str, at: int) -> list[float] | None:
    control = found.get((words.control, at))
    mine = found.get((arm, at))
    if control is None or mine is None:
        return None
    return [a - b for a, b in zip(mine, control, strict=True)]


def _difference(words: Words, found: Curve, arm: str, at: int) -> float | None:
    paired = _paired(words, found, arm, at)
    return None if paired is None else float(np.mean(paired))


def _mean(values: Sequence[float] | None, *, sign: bool = False) -> str:
    if values is None:
        return ""
    text = format_interval(t_interval(values), digits=3)
    return f"+{text}" if sign and not text.startswith("-") else text
