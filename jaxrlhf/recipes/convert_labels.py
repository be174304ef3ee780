"""`jaxrlhf convert-labels`: pairs and verdicts from one format into another.

    jaxrlhf convert-labels input=[labels.sqlite] output=preferences.jsonl
    jaxrlhf convert-labels input=[labels.sqlite] output=verdicts.jsonl format=rows
    jaxrlhf convert-labels input=[export.json] columns={a: answer1, b: answer2} output=p.jsonl

`input` is a store of `jaxrlhf label`, or a file of rows, TRL, Label Studio or Argilla, which its
columns tell apart. `trl` makes a row a verdict that `jaxrlhf reward` trains on; `rows` makes a row
a verdict that says everything; the others make a row a pair, with all that is said of it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.data import preferences
from jaxrlhf.errors import ConfigError
from jaxrlhf.labelling import formats, trl
from jaxrlhf.progress import console
from jaxrlhf.recipes import blocks, stages

Probability = Annotated[float, Field(ge=0, le=1)]
Margin = Annotated[float, Field(ge=0)]


class ConvertLabelsConfig(Config):
    """From where, to where, as what."""

    input: tuple[str, ...] = Field(default=(), description="stores and files, one after another")
    columns: dict[str, str] = Field(
        default={}, description="our column name -> the files', where they differ"
    )
    annotator: str = Field(
        default=formats.UNKNOWN, description="who judged, where a row does not say"
    )
    output: str | None = Field(
        default=None, description="JSON lines (also .gz); a name in .json: one JSON array"
    )
    format: Literal["trl", "rows", "label-studio", "argilla"] = Field(
        default="trl", description="of the output"
    )
    labels: tuple[Probability, Probability, Probability, Probability] | None = Field(
        default=None,
        description="trl: P(chosen is better) for barely, somewhat, clearly, much; null: 1",
    )
    margins: tuple[Margin, Margin, Margin, Margin] | None = Field(
        default=None, description="trl: margin in nats for the four strengths; null: no column"
    )
    ties: trl.Ties = Field(
        default="drop", description='trl: leave out ties and "both bad", or write label 1/2'
    )


CONFIG = ConvertLabelsConfig
EXAMPLE = "jaxrlhf convert-labels input=[labels.sqlite] output=p.jsonl labels=[.6,.75,.9,.97]"


def run(config: ConvertLabelsConfig) -> dict[str, Any]:
    """Write the file; how many rows it has."""
    output = blocks.required("output", config.output)
    if not config.input:
        raise ConfigError("input: name at least one file")
    found = formats.read(config.input, columns=config.columns, annotator=config.annotator)
    if config.format == "trl":
        rows = trl.write(found, labels=config.labels, margins=config.margins, ties=config.ties)
    else:
        rows = formats.FORMATS[config.format].write(found)
    count = write_file(Path(output), rows)
    console.print(f"{output}: {count} rows of {len(found.verdicts)} verdicts", soft_wrap=True)
    return {"rows": count, "pairs": len(found.pairs), "verdicts": len(found.verdicts)}


def write_file(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write the rows; they appear all or not at all."""
    if path.suffix != ".json":
        return preferences.write_rows(path, rows)
    if not path.parent.is_dir():
        raise ConfigError(f"output = {path}: there is no folder {path.parent}")
    array = list(rows)
    stages.write_json(path, array)
    return len(array)
