"""`jaxrlhf rounds`: the smallest real run, and a pipeline whose stages only say what they get.

The real run starts from the tiny pipeline's policy (`micro.py`) and is made once a session.
"""

import contextlib
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import micro
from config_probes import new_folder

from jaxrlhf import config_file
from jaxrlhf.recipes import rounds, rounds_data, rounds_measure, rounds_seeds, stages
from jaxrlhf.recipes.rounds import RoundsConfig
from jaxrlhf.recipes.rounds_seeds import RoundsSeedsConfig
from jaxrlhf.recipes.tasks import Task

CONFIG: dict[str, Any] = {
    "output_dir": "rounds",
    "rounds": 2,
    "pairs": 16,
    "test_share": 0.3,
    "task": micro.CONFIG["task"],
    "pretrain": None,
    "model_path": "run/sft/model",
    "sample": micro.CONFIG["sample"],
    "reward": micro.CONFIG["reward"] | {"max_steps": 4},
    # Of eight answers of a nearly random policy two end by themselves, or none: by chance.
    "ppo": micro.CONFIG["ppo"] | {"max_steps": 4, "guards": {"warn": ["eos_rate"]}},
}
STAGES = ("sample", "label", "reward", "ppo", "measure")
SECOND = f"{micro.scratch()}/second_rounds.yaml"


@functools.cache
def pipeline() -> Path:
    """The folder with `rounds.yaml` and `rounds/`: every stage of `CONFIG`."""
    return micro.shared("rounds", _pipeline)


def _pipeline(folder: Path) -> None:
    micro.copy(folder)
    (folder / "rounds.yaml").write_text(config_file.to_text(CONFIG))
    assert micro.command(folder, "rounds", "--config", "rounds.yaml") == 0


def copy(folder: Path, *without: str) -> Path:
    """A copy of the run, without some stages' folders."""
    shutil.copytree(pipeline(), folder, dirs_exist_ok=True)
    for stage in without:
        shutil.rmtree(folder / "rounds" / stage)
    return folder


# Stages that only note what they are given.

FEW = ("documents", "demonstrations", "prompts", "test_prompts")
BASE = (
    *(f"task.sandbox.{name}=4" for name in FEW),
    *("sft={}", "rounds=2", "ppo.batch_size=8"),
)


def observed(*overrides: str) -> dict[str, Any]:
    """What every stage is given, by its folder, and what is done between them."""
    found: dict[str, Any] = {}
    config = RoundsConfig.load(None, (*BASE, *overrides))
    with contextlib.chdir(new_folder()), stand_ins(found):
        rounds.run(config)
    return found


def planned(*overrides: str) -> dict[str, Any]:
    """The same without a folder, for a task that brings no file."""
    found: dict[str, Any] = {}
    config = RoundsConfig.load(None, ("sft={}", "rounds=2", "ppo.batch_size=8", *overrides))
    rounds.refuse_own(config)
    with stand_ins(found):
        for action in rounds.plan(config, Task()).values():
            action()
    return found


def labeller(path: str) -> tuple[str, ...]:
    """Whom a field below `judge` needs to be asked, with the base of its probes."""
    judge = ("labeller=judge", "judge.keep_unfinished=true")
    return judge if path.startswith("judge.") else ()


def decided() -> set[str]:
    """Fields of stages that the rounds set themselves."""
    own = {f"{block}.{field}" for block, fields in rounds.OWN.items() for field in fields}
    worlds = {f"label.world.{field}" for field in ("name", "seed", "settings")}
    return own | worlds | {"reward.data.train", "reward.data.test"}


@contextlib.contextmanager
def stand_ins(found: dict[str, Any]) -> Iterator[None]:
    """Stages and files that are only named."""

    def stage(config: Any, **options: Any) -> dict[str, Any]:
        found[config.output_dir] = config.model_dump()
        return {}

    def call(name: str, answer: Any) -> Any:
        def run(*given: Any, **options: Any) -> Any:
            key = f"{name} {len(found)}"
            found[key] = repr((given, sorted(options.items()))) if name != "report" else ""
            return answer

        return run

    with contextlib.ExitStack() as stack:
        for name in ("sft", "sample", "simulate_labels", "cai_label", "reward", "ppo"):
            stack.enter_context(mock.patch.object(getattr(rounds, name), "run", stage))
        stack.enter_context(mock.patch.object(rounds.report_rounds, "run", call("report", {})))
        stack.enter_context(mock.patch.object(rounds.rounds_people, "run", call("people", {})))
        for name in ("start", "run"):
            stack.enter_context(
                mock.patch.object(rounds_measure, name, call(f"measure {name}", {}))
            )
        for name, answer in (("write_prompts", None), ("write_pairs", 1), ("write_data", None)):
            stack.enter_context(mock.patch.object(rounds_data, name, call(name, answer)))
        stack.enter_context(mock.patch.object(rounds_data, "tests", lambda files: ("test.jsonl",)))
        yield


def make_second() -> None:
    """Another config of the pipeline."""
    Path(SECOND).write_text(config_file.to_text(CONFIG | {"spare": 2}))


FOUND = {
    "start": {"gold": 0.0, "gold_sd": 2.0},
    "path": ({"step": 0, "eval/kl": 0.0, "eval/gold": 0.0}, {"step": 1, "eval/kl": 50.0}),
}


def arms(*overrides: str, gold: Any = lambda seed, rounds: 2.0 * rounds) -> dict[str, Any]:
    """`rounds seeds` in a new folder, the last PPO of an arm ending with `gold`; what was run."""
    ran: list[Any] = []

    def run(config: RoundsConfig) -> dict[str, Any]:
        stops = (config.kl_step, config.ppo.stop_kl)
        asked = (config.seed, config.rounds, config.pairs, stops, config.spare)
        ran.append((config.output_dir, *asked))
        root = Path(config.output_dir)
        stages.write_json(root / "start" / "done.json", FOUND["start"])
        end = gold(config.seed, config.rounds)
        folder = root / rounds_data.name(config.rounds) / "ppo"
        folder.mkdir(parents=True, exist_ok=True)
        first, last = FOUND["path"]
        lines = [first, last | {"eval/gold": end}]
        text = "".join(f"{stages.json.dumps(line)}\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        return {"by_round": [by_round(n, end) for n in range(1, config.rounds + 1)]}

    fixed = (f"config={pipeline_config()}", "seeds=[1, 2]", "labels=12", "min_passes=2")
    home = new_folder()
    with contextlib.chdir(home), mock.patch.object(rounds, "run", run):
        verdict = rounds_seeds.run(RoundsSeedsConfig.load(None, (*fixed, *overrides)))
        written = {str(p): p.read_text() for p in Path().rglob("*.md")}
    return {"ran": ran, "verdict": verdict, "written": written}


def by_round(number: int, gold: float) -> dict[str, Any]:
    figures = {"labels": 6 * number, "gold_gain_sd": gold / 2, "kl": 25.0, "legal_share": 0.9}
    accuracies = {
        "accuracy_first": 0.9,
        "accuracy_before": 0.8,
        "accuracy_after": 0.6 + 0.1 * number,
    }
    return {"round": number, **figures, **accuracies}


@functools.cache
def pipeline_config() -> str:
    path = micro.scratch() / "rounds.yaml"
    path.write_text(config_file.to_text(CONFIG))
    return str(path)


def seeds(*overrides: str) -> str:
    """A probe of `rounds seeds`."""
    return repr(arms(*overrides))
