"""The `cai` pipeline with stages that only say what they are given, and its task without them."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cai_micro
import micro
from config_probes import Overrides, new_folder, refusal

from jaxrlhf import config_file
from jaxrlhf.recipes import cai, cai_data, cai_seeds, stages
from jaxrlhf.recipes.cai import CAIConfig
from jaxrlhf.recipes.cai_tasks import CAITask, CAITaskConfig
from jaxrlhf.sandbox.helpdesk import Helpdesk

WORLD = CAITask(("red",), ("helpful",), ("all",), comparisons=("compared",), world=Helpdesk())
# Field of the pipeline -> the fields of it that are configs of stages; "" is the field itself.
STAGES = {
    "pretrain": ("",),
    "helpful": ("",),
    "revise": ("",),
    "helpful_answers": ("",),
    "sl": ("",),
    "helpful_people": ("sample", "label"),
    "harm_people": ("sample", "label"),
    "feedback": ("",),
    "sample": ("",),
    "label": ("",),
    "reward": ("",),
    "ppo": ("",),
}
SECOND = f"{micro.scratch()}/second_cai.yaml"
FILES: Overrides = ("kind=files", "files.red_prompts=[a]", "files.helpful_prompts=[b]")


def plan(config: CAIConfig, task: CAITask = WORLD) -> dict[str, dict[str, Any]]:
    """Stage name -> the config it is given, by fields."""
    found: dict[str, dict[str, Any]] = {}
    with stand_ins(found):
        for action in cai.plan(config, task).values():
            action()
    return {folder.removeprefix(f"{config.output_dir}/"): given for folder, given in found.items()}


def pipeline(*overrides: str) -> dict[str, Any]:
    """The same of the smallest pipeline with a folder and a task of its own, run as a command."""
    config = CAIConfig.load(cai_micro.pipeline() / "cai.yaml", overrides)
    found: dict[str, dict[str, Any]] = {}
    with contextlib.chdir(new_folder()), stand_ins(found):
        for name in ("loose.yaml", "other.yaml"):
            shutil.copy(cai_micro.pipeline() / "loose.yaml", name)
        cai.run(config)
    return found


@contextlib.contextmanager
def stand_ins(found: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Stages that note their config; files of rows that are only named."""

    def run(config: Any, *others: Any, **options: Any) -> dict[str, Any]:
        root = "report" if others else config.output_dir
        found[root] = {} if others else {**vars(config), "with": sorted(options)}
        return {}

    def write_examples(config: CAIConfig, which: str) -> None:
        found[f"{config.output_dir}/examples"] = {"rounds": config.sl_rounds}

    def write_ai_pairs(config: CAIConfig, arm: Any) -> None:
        pass

    names = ("sft", "cai_critique_revise", "sample", "simulate_labels", "cai_label")
    with contextlib.ExitStack() as stack:
        for name in (*names, "reward", "ppo", "report_cai"):
            stack.enter_context(mock.patch.object(getattr(cai, name), "run", run))
        stack.enter_context(mock.patch.object(cai_data, "write_examples", write_examples))
        stack.enter_context(mock.patch.object(cai_data, "write_ai_pairs", write_ai_pairs))
        yield


def make_second() -> None:
    """Another config of the pipeline."""
    Path(SECOND).write_text(config_file.to_text(cai_micro.CONFIG | {"ppo": {"max_steps": 7}}))


def task(*overrides: str) -> str:
    """What a task names, and its files."""
    sizes = ("documents", "demonstrations", "lessons", "red_prompts", "helpful_prompts")
    few = [f"helpdesk.{name}=4" for name in sizes]
    config = CAITaskConfig.load(None, (*few, "helpdesk.test_prompts=24", *overrides))
    found: list[str] = []

    def prepare() -> None:
        with contextlib.chdir(new_folder()):
            made = config.prepare(Path("data"), seed=0)
            found.append(repr(made))
            found.extend(path.read_text() for path in sorted(Path().rglob("*.jsonl")))

    return refusal(prepare) + repr(found)


def repetition(*overrides: str) -> str:
    """Which seeds are run, how many at a time, what is said of them, and what is written."""
    ran: list[Any] = []
    jobs: list[int] = []
    summary = stages.read_json(cai_micro.pipeline() / "run" / "summary.json")
    executor = cai_seeds.ThreadPoolExecutor

    def pool(workers: int) -> Any:
        jobs.append(workers)
        return executor(1)

    def run(config: Any, seed: int, root: Path) -> tuple[int, float]:
        one = cai_seeds.pipeline(config, seed)
        ran.append((str(root), seed, one.ppo.max_steps))
        good = summary | {"labels": {"label": GOOD_LABELS}}
        policies = {name: dict(figures) for name, figures in summary["policies"].items()}
        policies["rl-cai"] |= {"harm_red": [0.0] * 3, "help_benign": [float(seed != 1)] * 3}
        policies[summary["sl_cai"]]["harm_red"] = [1.0] * 3
        stages.write_json(root / "summary.json", good | {"policies": policies})
        return 0, 1.0

    def write(config: Any, *others: Any, **options: Any) -> Path:
        ran.append(config.results)
        return Path(config.results)

    fixed = (f"config={cai_micro.pipeline() / 'cai.yaml'}", "seeds=[1, 2]", "min_passes=2")
    home = new_folder()
    with (
        contextlib.chdir(home),
        mock.patch.object(cai_seeds, "in_a_process", run),
        mock.patch.object(cai_seeds, "ThreadPoolExecutor", pool),
        mock.patch.object(cai_seeds.cai_page, "write", write),
    ):
        verdict = cai_seeds.run(cai_seeds.CAISeedsConfig.load(None, (*fixed, *overrides)))
    return repr((ran, jobs, verdict))


GOOD_LABELS = {"accuracy": 1.0, "one_order": 1.0, "first_place_on_ties": 0.5, "ece": 0.0}
