"""`jaxrlhf eval PATH`: a suite of evaluations that need no training, on any model that loads.

    jaxrlhf eval my-model suite=safety output_dir=runs/eval
    jaxrlhf eval my-model only=[truthfulqa,refusals] limit=100

The public files are read where they lie, in the folder `data`. Every answer is a row of NAME.jsonl
the moment it is there, so a run that was killed goes on where it was. eval.json has each figure
with its interval, eval.md the table, eval.png the picture; the table goes into the model's card.
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from jaxrlhf import plots
from jaxrlhf.constitutional.sampler import Sampler
from jaxrlhf.data import preferences, sources
from jaxrlhf.data.rows import Rows
from jaxrlhf.errors import ConfigError, UserError, nearest
from jaxrlhf.evals.statistics import format_interval
from jaxrlhf.hf import card
from jaxrlhf.progress import console, progress, table
from jaxrlhf.recipes import blocks, saved, stages
from jaxrlhf.recipes.sample import SamplingConfig
from jaxrlhf.recipes.tables import markdown
from jaxrlhf.safety.items import PROBLEM, Evaluation, Figures, Row
from jaxrlhf.safety.suite import SUITES

COLUMNS = ("figure", "value", "of", "chance", "what it is")
ENDS = ("estimate", "low", "high")
BATCHES = 4  # asked between two looks at the clock; items of like length go together


class EvalConfig(blocks.StageConfig):
    """A model and what it is asked."""

    path: str | None = Field(default=None, description="language model (folder or hub name)")
    suite: Literal["safety", "choices"] = Field(
        default="safety", description="which evaluations; choices: those without writing"
    )
    only: tuple[str, ...] = Field(default=(), description="names of some of them; empty: all")
    data: str = Field(default="../shared/data", description="folder of the public files")
    limit: int | None = Field(
        default=None, ge=2, description="rows drawn of each file by the seed; null: all"
    )
    sampling: SamplingConfig = Field(
        default=SamplingConfig(response_length=48, temperature=0.0),
        description="how answers are drawn where the model writes its own",
    )
    batch_size: int = Field(default=16, ge=1, description="texts a forward pass")
    dtype: blocks.Dtype = Field(default="float32", description="compute dtype of the model")
    mesh: blocks.MeshConfig = Field(default=blocks.MeshConfig(), description="devices")
    card: bool = Field(default=True, description="write the figures into the model's README.md")

    @field_validator("only")
    @classmethod
    def _known(cls, only: tuple[str, ...]) -> tuple[str, ...]:
        names = [one.name for some in SUITES.values() for one in some]
        for name in only:
            if name not in names:
                guess = nearest(name, names)
                hint = f"did you mean {guess!r}?" if guess else f"there are {', '.join(names)}"
                raise ValueError(f"{name!r} is no evaluation; {hint}")
        return only


CONFIG = EvalConfig
EXAMPLE = "jaxrlhf eval my-model suite=safety limit=100"


def run(config: EvalConfig) -> dict[str, Any]:
    """Ask, measure, write; the summary has every figure's estimate."""
    stage = stages.Stage(config)
    if summary := stage.summary():
        return summary
    chosen = [one for one in SUITES[config.suite] if not config.only or one.name in config.only]
    files = read(config, chosen)
    path = blocks.required("path", config.path)
    model = load(config, path)
    stage.begin()
    found: Figures = {}
    counts: dict[str, dict[str, int]] = {}
    for one in chosen:
        rows = answer(config, stage, one, model, files)
        unread = sum(bool(row.get(PROBLEM)) for row in rows)
        if unread == len(rows):
            raise UserError(f"{one.name}: the model reads none of the {len(rows)} questions")
        counts[one.name] = {"asked": len(rows), "unread": unread}
        figures = one.figures(rows, files)
        found |= {f"{one.name}: {name}": figure for name, figure in figures.items()}
    write(config, stage, path, found, counts)
    return stage.finish({name: figure.value.estimate for name, figure in found.items()})


def read(config: EvalConfig, chosen: Sequence[Evaluation]) -> dict[str, Rows]:
    """The files that the evaluations need, by their names in the data folder.

    Raises:
      ConfigError: some are not there; all of them are named.
    """
    folder = Path(config.data)
    asked = list(dict.fromkeys(name for one in chosen for name in one.files))
    names = list(dict.fromkeys([*asked, *(name for one in chosen for name in one.read)]))
    if missing := [name for name in names if not (folder / name).is_file()]:
        without = [one.name for one in chosen if not set(missing) & {*one.files, *one.read}]
        hint = f"; only=[{','.join(without)}] needs none of them" if without else ""
        raise ConfigError(f"data = {config.data}: has no {', '.join(missing)}{hint}")
    found = {name: sources.load_rows(str(folder / name)) for name in names}
    return {
        name: drawn(rows, config.limit, config.seed) if name in asked else rows
        for name, rows in found.items()
    }


def drawn(rows: Rows, limit: int | None, seed: int) -> Rows:
    """Some rows of a file, in their order."""
    if limit is None or limit >= len(rows):
        return rows
    kept = np.sort(np.random.default_rng(seed).choice(len(rows), limit, replace=False))
    places = [rows.where(int(i)) for i in kept]
    return Rows([rows[int(i)] for i in kept], name=rows.name, places=places)


def load(config: EvalConfig, path: str) -> Sampler:
    """The model, ready to be asked."""
    mesh = config.mesh.build(batch_size=config.batch_size)
    lm, params, tokenizer, _ = saved.load_lm(path, mesh, dtype=config.dtype)
    sampling = config.sampling.build(tokenizer)
    if sampling.max_new_tokens >= lm.config.max_positions:
        raise ConfigError(
            f"sampling.response_length = {sampling.max_new_tokens}: the model reads "
            f"{lm.config.max_positions} tokens, question and answer together"
        )
    return Sampler(lm, params, tokenizer, sampling, config.batch_size, seed=config.seed, mesh=mesh)


def answer(
    config: EvalConfig,
    stage: stages.Stage,
    one: Evaluation,
    model: Sampler,
    files: Mapping[str, Rows],
) -> list[Row]:
    """A row for each item, those that are on disk already not asked again."""
    items = one.items({name: files[name] for name in one.files})
    items = [{"row": i, **item} for i, item in enumerate(items)]
    whole = stage.folder / f"{one.name}.jsonl"
    if whole.is_file():
        return list(sources.load_rows(str(whole)))
    with stage.stream(whole.name) as stream:
        left = [item for item in items if item["row"] not in stream.done]
        with progress(len(items), one.name, start=len(stream.done)) as bar:
            for some in blocks_of(left, BATCHES * config.batch_size):
                for row in one.ask(model, some):
                    stream.append(row)
                bar.advance(len(some))
        rows = stream.rows()
        preferences.write_rows(whole, rows)
        stream.remove()
    return rows


def blocks_of(items: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """`size` items at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


# What was found.


def write(
    config: EvalConfig,
    stage: stages.Stage,
    path: str,
    found: Figures,
    counts: Mapping[str, Mapping[str, int]],
) -> None:
    """eval.json, eval.md, eval.png, and the section of the model's card."""
    table(f"{config.suite}: {path}", COLUMNS[:-1], [line[:-1] for line in lines(found)])
    record = {
        name: {**figure.value._asdict(), "count": figure.count, "chance": figure.chance}
        for name, figure in found.items()
    }
    stages.write_json(stage.folder / "eval.json", {"figures": record, "items": counts})
    picture = plots.intervals(
        list(found),
        *([getattr(figure.value, end) for figure in found.values()] for end in ENDS),
        xlabel="value, with its 95 % interval",
        title=f"{config.suite}: {Path(path).name}",
        marks=[figure.chance for figure in found.values()],
        marked="what guessing gives",
    )
    (stage.folder / "eval.png").write_bytes(plots.png(picture))
    body = section(config, found, counts)
    stages.write_text(stage.folder / "eval.md", f"# {path}\n\n{body}\n\n![figures](eval.png)\n")
    readme = saved.find(path) / "README.md"
    if config.card and readme.is_file():
        text = readme.read_text(encoding="utf-8")
        stages.write_text(readme, card.with_section(text, config.suite.capitalize(), body))
        console.print(f"{readme}: section {config.suite.capitalize()} written")


def lines(found: Figures) -> list[list[Any]]:
    """A line a figure."""
    return [
        [
            name,
            format_interval(figure.value, digits=3),
            figure.count,
            "" if figure.chance is None else f"{figure.chance:.3f}",
            figure.says,
        ]
        for name, figure in found.items()
    ]


def section(config: EvalConfig, found: Figures, counts: Mapping[str, Mapping[str, int]]) -> str:
    """The table with what is to be known of it, as Markdown."""
    asked = ", ".join(
        f"{name} {x['asked']}" + (f" ({x['unread']} could not be read)" if x["unread"] else "")
        for name, x in counts.items()
    )
    limit = f" {config.limit} rows of each file, seed {config.seed}." if config.limit else ""
    return (
        f"`jaxrlhf eval`, suite {config.suite}, {date.today().isoformat()}, "
        f"{platform.machine()}, {stages.device_line()}.{limit} Items asked: {asked}. Intervals are "
        f"95 %.\n\n{markdown(COLUMNS, lines(found))}"
    )
