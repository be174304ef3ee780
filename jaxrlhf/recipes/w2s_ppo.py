"""PPO against the reward models of a weak-to-strong experiment: does gold follow their accuracy?

The same policy is improved once with every reward model of a seed: the weak supervisor's, the
students' and the ceiling's. Their scores are first brought to mean 0 and standard deviation 1 on
the policy's own answers, so that one KL coefficient means the same to all. Gold judges, and no
reward model has seen it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrlhf import plots
from jaxrlhf.data import sources
from jaxrlhf.evals import statistics
from jaxrlhf.evals import weak_to_strong as evals
from jaxrlhf.evals.statistics import Interval, format_interval
from jaxrlhf.metrics import read_metrics, series
from jaxrlhf.plots import Line
from jaxrlhf.recipes import reward, rlhf, saved, stages
from jaxrlhf.recipes import supervisors as label_files
from jaxrlhf.recipes.rlhf import RLHFConfig
from jaxrlhf.recipes.w2s_task import TEST, Task

STAGES = ("ppo", "report")
NORMALISED = "reward_model"
COLUMNS = ("reward model", "seeds", "accuracy", "gold gained, SD [95 %]", "own score gained", "KL")


class Arm(NamedTuple):
    """A reward model of a seed, and the folder of the policy that is improved with it."""

    seed: int
    name: str
    reward_model: Path
    accuracy: float  # on the test pairs
    folder: Path


class Improved(NamedTuple):
    """A finished arm and the summary of its report."""

    arm: Arm
    summary: dict[str, Any]


def arms(root: Path, done: Sequence[Any]) -> list[Arm]:
    """Every reward model of finished cells once: weak ones, then students, then ceilings."""
    found: dict[Path, Arm] = {}

    def add(one: Any, name: str, folder: Path) -> None:
        seed = one.cell.seed
        where = root / f"seed-{seed}" / "ppo" / f"{folder.parent.name}-{folder.name}"
        truth, said = (
            label_files.probs(sources.load_rows(path / TEST))
            for path in (one.task, folder / "predicted")
        )
        accuracy = float(evals.correct(said, truth).mean())
        found.setdefault(where, Arm(seed, name, folder / "model", accuracy, where))

    for one in done:
        add(one, f"weak: {one.cell.supervisor}", one.root.parent)
    for one in done:
        add(one, f"{one.cell.student} of {one.cell.supervisor}, {one.cell.loss}", one.student)
    for one in done:
        add(one, f"ceiling: {one.cell.student}", one.ceiling)
    return sorted(found.values(), key=lambda arm: arm.seed)


def improve(arm: Arm, config: RLHFConfig, task: Task) -> Improved:
    """PPO with one reward model; a finished arm is not run again."""
    summary = arm.folder / "summary.json"  # the last that an arm writes
    if summary.is_file():
        return Improved(arm, stages.read_json(summary))
    model = arm.folder / NORMALISED
    settings = arm_config(arm, config, task, model)
    if not (model / "config.json").is_file():
        normalise(arm.reward_model, model, settings)
    return Improved(arm, rlhf.run(settings))


def arm_config(arm: Arm, config: RLHFConfig, task: Task, model: Path) -> RLHFConfig:
    """The pipeline of the task from PPO on: its policy, and this reward model."""
    pairs = {"train": (str(task.second),), "test": (str(task.test),)}
    prompts = config.ppo.prompts.model_copy(update={"files": task.prompts})
    changes = {"policy": task.policy, "reward_model": str(model), "prompts": prompts}
    return config.model_copy(
        update={
            "output_dir": str(arm.folder),
            "seed": arm.seed,
            "stages": STAGES,
            "reward": config.reward.model_copy(
                update={"data": config.reward.data.model_copy(update=pairs)}
            ),
            "ppo": config.ppo.model_copy(update=changes),
        }
    )


def normalise(source: Path, where: Path, config: RLHFConfig) -> None:
    """A reward model whose scores of the policy's answers have mean 0 and standard deviation 1."""
    mesh = config.mesh.build()
    model, params, tokenizer, family = saved.load_scalar(str(source), mesh, dtype=config.dtype)
    asked = config.reward.model_copy(
        update={
            "reference": config.ppo.policy,
            "prompts": config.ppo.prompts,
            "sampling": config.ppo.sampling,
            "seed": config.seed,
        }
    )
    answers = reward.reference_texts(asked, tokenizer, mesh)
    params = reward.standardiser(model, [answers])(params)
    saved.save_scalar(where, model, params, tokenizer, family=family)


def as_record(one: Improved) -> dict[str, Any]:
    """JSON of an arm; its folders as text."""
    arm = {name: str(x) if isinstance(x, Path) else x for name, x in one.arm._asdict().items()}
    return {**arm, **one.summary}


# ------------------------------------------------------------------ table and picture


def section(found: Sequence[Improved]) -> tuple[list[str], list[list[str]]]:
    """One line a reward model, means over seeds."""
    lines = []
    for name, some in by_name(found):
        gains = [one.summary["gold_gain_sd"] for one in some]
        alone = Interval(gains[0], *some[0].summary["gold_gain_sd_interval"])
        gain = alone if len(some) == 1 else statistics.t_interval(gains)

        def mean(figure: str, some: Sequence[Improved] = some) -> str:
            return f"{sum(one.summary[figure] for one in some) / len(some):.2f}"

        accuracy = sum(one.arm.accuracy for one in some) / len(some)
        figures = (f"{accuracy:.3f}", format_interval(gain), mean("score_gain"), mean("kl"))
        lines.append([name, str(len(some)), *figures])
    return list(COLUMNS), lines


def picture(found: Sequence[Improved]) -> Any:
    """Gold gained against KL on the way, a path a reward model, means over seeds."""
    drawn = []
    for name, some in by_name(found):
        paths = [path(one) for one in some]
        shortest = min(len(kl) for kl, _ in paths)
        kl, gold = (
            [sum(each[axis][i] for each in paths) / len(paths) for i in range(shortest)]
            for axis in (0, 1)
        )
        drawn.append(Line(kl, gold, name, style="connected"))
    return plots.lines(
        drawn,
        xlabel="KL to the reference, nats a sequence",
        ylabel="gold gained, base SDs",
        title="Gold against KL, by reward model",
    )


def path(one: Improved) -> tuple[list[float], list[float]]:
    """KL and gold gained at every evaluation of an arm."""
    log = read_metrics(one.arm.folder / "ppo")
    _, kl = series(log, "eval/kl")
    _, gold = series(log, "eval/gold")
    spread = one.summary["gold_sd_before"]
    return list(kl), [(x - gold[0]) / spread for x in gold]


def by_name(found: Sequence[Improved]) -> Iterator[tuple[str, list[Improved]]]:
    for name in dict.fromkeys(one.arm.name for one in found):
        yield name, [one for one in found if one.arm.name == name]
