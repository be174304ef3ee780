"""`jaxrlhf cai seeds`: the `cai` pipeline for several seeds, its rules, one page of results.

Each seed is a process of its own, `jobs` of them at a time; they share compiled programs. A seed
that fails is shown as failed, and does not lose the others; finished seeds are not run again, and
an interrupted one goes on. `cai_rules.py` has the rules, `cai_page.py` the page.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.errors import ConfigError
from jaxrlhf.progress import console, table
from jaxrlhf.recipes import cai_page, cai_rules, stages
from jaxrlhf.recipes.cai import CAIConfig

LOG = "log.txt"
LAST_WORDS = 5  # lines of the log of a seed that failed


class CAISeedsConfig(Config):
    """Several seeds of `jaxrlhf cai`."""

    output_dir: str = Field(default="runs/cai-seeds", description="a folder a seed goes in here")
    config: str = Field(default="configs/cai.yaml", description="config of the cai recipe")
    overrides: tuple[str, ...] = Field(default=(), description="a.b=c for that config")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1, description="which seeds")
    jobs: int = Field(
        default=3, ge=1, description="seeds at the same time; one more than cores, so none idles"
    )
    results: str | None = Field(
        default=None,
        description="the page is written to this name .md, its pictures to this folder; null: none",
    )
    min_passes: int = Field(
        default=4, ge=0, description="seeds in which a rule about reinforcement learning must hold"
    )


CONFIG = CAISeedsConfig
EXAMPLE = "jaxrlhf cai seeds results=runs/cai-seeds/results"


class Finished(NamedTuple):
    """A seed that is done."""

    seed: int
    summary: dict[str, Any]
    processor_seconds: float


def run(config: CAISeedsConfig) -> dict[str, Any]:
    """Run every seed, print the rules and write the page; the summary says what held."""
    pipelines = {seed: pipeline(config, seed) for seed in config.seeds}
    for one in pipelines.values():
        if one.task.kind != "helpdesk":
            raise ConfigError(f"{config.config}: task.kind = {one.task.kind}: rules need a world")
        stages.refuse_another_config(Path(one.output_dir), one)
    began = time.monotonic()
    with ThreadPoolExecutor(config.jobs) as pool:
        ended = list(pool.map(lambda seed: finish(config, seed, pipelines[seed]), config.seeds))
    done = [seed for seed in ended if seed is not None]
    verdicts = cai_rules.verdicts(
        [seed.summary for seed in done], seeds=len(config.seeds), min_passes=config.min_passes
    )
    holds = bool(done) and all(verdict.holds for verdict in verdicts)
    rows = [[x.rule.says, x.count, "PASS" if x.holds else "FAIL"] for x in verdicts]
    table(f"{config.config}: {'PASS' if holds else 'FAIL'}", ["rule", "seeds", ""], rows)
    if config.results and done:
        path = cai_page.write(
            config,
            pipelines[done[0].seed],
            [seed.seed for seed in done],
            [seed.summary for seed in done],
            verdicts,
            processor_seconds=[seed.processor_seconds for seed in done],
            wall_seconds=time.monotonic() - began,
        )
        console.print(f"results: {path.absolute()}")
    return {
        "seeds": len(config.seeds),
        "finished": len(done),
        "rules": len(verdicts),
        "held": sum(verdict.holds for verdict in verdicts),
        "verdict": "PASS" if holds else "FAIL",
    }


def pipeline(config: CAISeedsConfig, seed: int) -> CAIConfig:
    """The config of one seed."""
    return CAIConfig.load(config.config, _overrides(config, seed))


def finish(config: CAISeedsConfig, seed: int, one: CAIConfig) -> Finished | None:
    """Run a seed unless it is finished; None if it failed, or was not asked to finish."""
    root = Path(one.output_dir)
    summary, spent = root / "summary.json", root / "processor_seconds.json"
    used = stages.read_json(spent) if spent.is_file() else 0.0
    if not summary.is_file():
        console.print(f"seed {seed}: {root / LOG}")
        code, seconds = in_a_process(config, seed, root)
        used += seconds
        stages.write_json(spent, used)
        if code:
            last = (root / LOG).read_text(errors="replace").splitlines()[-LAST_WORDS:]
            console.print(f"seed {seed} failed:", *last, sep="\n", markup=False)
            return None
        console.print(f"seed {seed}: {used / 60:.1f} minutes of processor time")
        if not summary.is_file():  # `stages` left the report out
            return None
    return Finished(seed, stages.read_json(summary), used)


def in_a_process(config: CAISeedsConfig, seed: int, root: Path) -> tuple[int, float]:
    """`jaxrlhf cai` of one seed, its words in a log; exit code and seconds of processor time."""
    stages.make_folder(root)
    command = [sys.executable, "-m", "jaxrlhf", "cai", "--config", config.config]
    with open(root / LOG, "ab") as log:
        child = subprocess.Popen(
            [*command, *_overrides(config, seed)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | _compiled(Path(config.output_dir)),
        )
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, used.ru_utime + used.ru_stime


def _overrides(config: CAISeedsConfig, seed: int) -> list[str]:
    own = [f"seed={seed}", f"output_dir={json.dumps(str(_folder(config, seed)))}"]
    return [*config.overrides, *own]


def _folder(config: CAISeedsConfig, seed: int) -> Path:
    return Path(config.output_dir) / f"seed-{seed}"


def _compiled(root: Path) -> Mapping[str, str]:
    """Where children keep compiled programs, unless the user has said where."""
    own = {
        "JAX_COMPILATION_CACHE_DIR": str((root / "compiled").absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return {name: value for name, value in own.items() if name not in os.environ}
