"""What experiments of the laboratory share: seeds that are not run twice, rules, verdicts, a page.

An experiment says what must hold before it is run (`RULES`), finds figures for each seed, and
writes a page with tables, pictures and a verdict on each rule: PASS, or FAIL with the figures of
every seed. What it does is its own business (`lab_*.py`).
"""

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from jaxrlhf import plots
from jaxrlhf.config import Config, differences, save_resolved
from jaxrlhf.progress import console, table
from jaxrlhf.recipes import stages
from jaxrlhf.recipes.tables import markdown

Found = Mapping[str, Any]
"""What one seed found: numbers, strings, lists and objects of them, as JSON keeps them."""

ENOUGH = 0.8  # of the seeds: four of five


class ExperimentConfig(Config):
    """An experiment for several seeds. Fields of its own have what the experiment is about."""

    output_dir: str = Field(default="runs/lab", description="a folder a seed goes in here")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1, description="which seeds")
    results: str | None = Field(
        default=None,
        description="the page is written to this name .md, its pictures to this folder; null: none",
    )


class Outcome(NamedTuple):
    """What a rule says of one seed, with the figures that it judged by."""

    holds: bool
    figures: str


class Rule(NamedTuple):
    """What must hold of a seed, written down before anything is run."""

    says: str
    judge: Callable[[Found], Outcome]


class Verdict(NamedTuple):
    """A rule over all seeds: it passes where it holds in four of five (of fewer than five, all)."""

    rule: Rule
    outcomes: tuple[Outcome, ...]

    @property
    def passes(self) -> bool:
        held = sum(outcome.holds for outcome in self.outcomes)
        return held >= math.ceil(ENOUGH * len(self.outcomes))

    def line(self) -> list[str]:
        """The rule, its figures by seed, in how many it holds, and the verdict."""
        told = [f"{x.figures}{'' if x.holds else ' **fails**'}" for x in self.outcomes]
        held = sum(outcome.holds for outcome in self.outcomes)
        word = "PASS" if self.passes else "FAIL"
        return [self.rule.says, "; ".join(told), f"{held} of {len(told)}", word]


class Table(NamedTuple):
    """A table of the page: what it shows, its header and its lines."""

    caption: str
    headers: Sequence[str]
    lines: Sequence[Sequence[Any]]


class Page(NamedTuple):
    """What a page says. `pictures` maps a file's name (no ending) to a matplotlib figure."""

    title: str
    command: str
    says: str
    """Paragraphs before the rules: what was done, in which world, and what to know of it."""
    tables: Sequence[Table] = ()
    pictures: Mapping[str, Any] = {}
    after: str = ""
    """Paragraphs at the end: what small models do not show, what was tried."""


RULE_HEADERS = ("rule", "by seed", "holds in", "")


def over_seeds(
    config: ExperimentConfig,
    run_seed: Callable[[int, Path], Found],
    *,
    harmless: Sequence[str] = (),
) -> list[Found]:
    """What each of `config.seeds` found; `run_seed(seed, folder)` is not called for a finished one.

    `harmless`: fields of the config that may differ from those of an interrupted run.
    """
    root = Path(config.output_dir)
    allowed = (*stages.HARMLESS, "seeds", "results", *harmless)
    stages.refuse_another_config(root, config, harmless=allowed)
    stages.make_folder(root)
    save_resolved(config, root)
    found = []
    for seed in config.seeds:
        done = root / f"seed-{seed}" / "done.json"
        if not done.is_file():
            console.rule(f"seed {seed}")
            stages.write_json(done, run_seed(seed, done.parent))
        found.append(stages.read_json(done))
    return found


def verdicts(rules: Sequence[Rule], found: Sequence[Found]) -> list[Verdict]:
    """Every rule over all seeds."""
    return [Verdict(rule, tuple(rule.judge(seed) for seed in found)) for rule in rules]


def report(
    config: ExperimentConfig, rules: Sequence[Rule], found: Sequence[Found], page: Page
) -> dict[str, Any]:
    """Print tables and verdicts, write the page; the summary counts rules and those that failed."""
    judged = verdicts(rules, found)
    for shown in page.tables:
        table(shown.caption, shown.headers, shown.lines)
    table("rules", RULE_HEADERS, [verdict.line() for verdict in judged])
    own = Path(config.output_dir) / "report"
    for where in filter(None, (str(own), config.results)):
        path = write(config, judged, page, Path(where))
    console.print(f"results: {path.absolute()}")
    failed = sum(not verdict.passes for verdict in judged)
    return {"rules": len(judged), "failed": failed, "verdict": "FAIL" if failed else "PASS"}


def write(config: ExperimentConfig, judged: Sequence[Verdict], page: Page, folder: Path) -> Path:
    """`folder`.md, and the pictures in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in page.pictures.items():
        (folder / f"{name}.png").write_bytes(plots.png(figure))
    path = folder.with_name(f"{folder.name}.md")
    stages.write_text(path, _text(config, judged, page, folder.name))
    return path


def command(base: str, config: Config) -> str:
    """The command line that makes `config` again."""
    changed = [x for x in differences(type(config)(), config) if x.path != "output_dir"]
    return " ".join([base, *(f"{x.path}={_value(x.b)}" for x in changed)])


def _text(config: Any, judged: Sequence[Verdict], page: Page, folder: str) -> str:
    seeds = ", ".join(map(str, config.seeds))
    parts = [
        f"# {page.title}",
        f"    {command(page.command, config)}",
        f"{date.today().isoformat()}, {platform.machine()}, {stages.device_line()}; seeds {seeds}.",
        page.says.strip(),
        "## Rules, written down before the run",
        markdown(RULE_HEADERS, [verdict.line() for verdict in judged]),
        "A rule passes where it holds in four of five seeds; of fewer than five, in all.",
        "## What was found",
        *(f"{shown.caption}\n\n{markdown(shown.headers, shown.lines)}" for shown in page.tables),
        "\n".join(f"![{name}]({folder}/{name}.png)" for name in page.pictures),
        page.after.strip(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _value(x: Any) -> str:
    return "[" + ",".join(map(str, x)) + "]" if isinstance(x, list | tuple) else str(x)
