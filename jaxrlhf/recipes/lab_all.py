"""`jaxrlhf lab all`: every experiment of the laboratory, and one page about all of them.

Each is the command of its own name with a folder of its own below, so what is finished is not run
again. One that breaks off is shown as that and does not lose the others.
"""

import importlib
import platform
import time
import traceback
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, Self

import pydantic
from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.errors import one_of
from jaxrlhf.progress import console, table
from jaxrlhf.recipes import RECIPES, stages
from jaxrlhf.recipes.tables import markdown

PREFIX = "lab "
NAMES = tuple(
    name.removeprefix(PREFIX) for name in RECIPES if name.startswith(PREFIX) and name != "lab all"
)
SMALL: dict[str, tuple[str, ...]] = {
    "overoptimise": ("seeds=[0]", "pairs=[400]", "sizes=[16]", "members=0"),
    "sign-flip": ("rounds=2",),
    "queries": ("seeds=[0]",),
    "ratings": ("seeds=[0]",),
    "annotators": ("seeds=[0]", "verdicts=[3]"),
}
"""What each is run with where `tiny` is asked for; of those that are not here, one seed."""


class LabAllConfig(Config):
    """Every experiment of the laboratory."""

    output_dir: str = Field(default="runs/lab-all", description="a folder an experiment goes in")
    tiny: bool = Field(default=False, description="one seed of each, smaller where it is slow")
    experiments: tuple[str, ...] = Field(
        default=(), description="these only, by the second word of their command; none: all"
    )

    @pydantic.model_validator(mode="after")
    def _are_experiments(self) -> Self:
        for name in self.experiments:
            one_of("experiments", name, NAMES)
        return self


CONFIG = LabAllConfig
EXAMPLE = "jaxrlhf lab all tiny=true"
HEADERS = ("experiment", "rules", "failed", "verdict", "minutes", "page")


class Ended(NamedTuple):
    """How an experiment ended; `summary` has its rules, if it has any. `error`: why it broke."""

    name: str
    summary: dict[str, Any]
    minutes: float
    error: str

    def line(self) -> list[str]:
        rules, failed = (str(self.summary.get(name, "")) for name in ("rules", "failed"))
        verdict = "broke off" if self.error else self.summary.get("verdict", "no rules")
        page = f"[{self.name}]({self.name}.md)"
        return [
            RECIPES[PREFIX + self.name].summary,
            rules,
            failed,
            verdict,
            f"{self.minutes:.1f}",
            page,
        ]


def run(config: LabAllConfig) -> dict[str, Any]:
    """Run them, print and write the table; the summary counts verdicts."""
    pages = Path(config.output_dir) / "pages"
    stages.make_folder(pages)
    ended = []
    for name in config.experiments or NAMES:
        ended.append(_run(config, name, pages))
        stages.write_text(pages / "index.md", page(config, ended))
    table("the laboratory", HEADERS, [one.line() for one in ended])
    console.print(f"results: {(pages / 'index.md').absolute()}")
    counted = [one.line()[3] for one in ended]
    return {verdict: counted.count(verdict) for verdict in dict.fromkeys(counted)}


def settings(config: LabAllConfig, name: str, pages: Path) -> Any:
    """The config of an experiment here."""
    module = importlib.import_module(RECIPES[PREFIX + name].module)
    own = [f"output_dir={Path(config.output_dir) / name}", f"results={pages / name}"]
    if "base_dir" in module.CONFIG.model_fields:  # first policies, which experiments share
        shared = "base" if module.CONFIG().base_dir == "runs/lab/base" else f"base-{name}"
        own.append(f"base_dir={Path(config.output_dir) / shared}")
    small = SMALL.get(name, ("seeds=[0]",)) if config.tiny else ()
    return module.CONFIG.load(None, [*small, *own])


def page(config: LabAllConfig, ended: list[Ended]) -> str:
    """One page: the table, what broke, and every picture."""
    how = "one seed of each, smaller where it is slow" if config.tiny else "at their own sizes"
    parts = [
        "# The laboratory",
        f"    jaxrlhf lab all{' tiny=true' if config.tiny else ''}",
        f"{date.today().isoformat()}, {platform.machine()}, {stages.device_line()}; {how}.",
        markdown(HEADERS, [one.line() for one in ended]),
        *(f"{one.name} broke off: {one.error}" for one in ended if one.error),
    ]
    for one in ended:
        pictures = list(_pictures(Path(config.output_dir) / "pages" / one.name))
        if pictures:
            parts += [f"## {one.name}", "\n".join(pictures)]
    return "\n\n".join(parts) + "\n"


def _run(config: LabAllConfig, name: str, pages: Path) -> Ended:
    console.rule(f"lab {name}")
    start = time.monotonic()
    try:
        module = importlib.import_module(RECIPES[PREFIX + name].module)
        summary, error = module.run(settings(config, name, pages)), ""
    except Exception as failure:  # whatever it is: the others go on
        console.print(traceback.format_exc(), markup=False)
        summary, error = {}, f"{type(failure).__name__}: {failure}"
    return Ended(name, summary, (time.monotonic() - start) / 60, error)


def _pictures(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("**/*.png")):
        yield f"![{path.stem}]({path.relative_to(folder.parent)})"
