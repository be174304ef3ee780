"""`jaxrlhf cai judge`: how well a model chooses between responses whose better one is known.

    jaxrlhf cai judge model_path=judge constitution=default
        pairs.files=[pairs.jsonl] output_dir=runs/judge

Any file of preference pairs will do: `chosen` is the better response. Every pair is asked as
`jaxrlhf cai label` would ask it, in both orders. `judgements.jsonl` has the questions and log-probs
of each pair; the summary has the accuracy with its 95 % interval, that of a single order, the
calibration error, and how much the judge likes the first place; `group_by` adds a line a group.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.constitutional.critique import discards
from jaxrlhf.constitutional.judge import Pair
from jaxrlhf.data import formats, preferences
from jaxrlhf.data.rows import Loaded
from jaxrlhf.errors import ConfigError
from jaxrlhf.evals.agreement import Agreement, agreement
from jaxrlhf.evals.statistics import format_interval
from jaxrlhf.progress import table
from jaxrlhf.recipes import constitutions, rows, stages
from jaxrlhf.recipes.cai_label import said
from jaxrlhf.recipes.constitutions import JudgeConfig


class PairsConfig(Config):
    """Preference pairs from files."""

    files: tuple[str, ...] = Field(default=(), description="files or hub names")
    columns: dict[str, str] = Field(default={}, description="our column name -> the file's")
    limit: int | None = Field(default=None, ge=1, description="rows read of each file; null: all")
    group_by: str | None = Field(
        default=None, description="a column of the files; each of its values is reported by itself"
    )


class CAIJudgeConfig(JudgeConfig):
    """Measure a judge."""

    pairs: PairsConfig = Field(default=PairsConfig(), description="pairs whose better one is known")


CONFIG = CAIJudgeConfig
EXAMPLE = "jaxrlhf cai judge model_path=judge constitution=default pairs.files=[pairs.jsonl]"


def run(config: CAIJudgeConfig) -> dict[str, Any]:
    """Write `judgements.jsonl`; the summary has the figures of all pairs and of every group."""
    stage = stages.Stage(config)
    if summary := stage.summary():
        return summary
    constitution = constitutions.load(config).only(comparisons=config.comparisons)
    found = rows.load(config.pairs.files, limit=config.pairs.limit, field="pairs.files")
    known = formats.preferences(found, columns=config.pairs.columns)
    groups = grouped(known, config.pairs.group_by)
    asked = [Pair(item.prompt, said(item.chosen), said(item.rejected)) for item in known]
    model = constitutions.judge(config)

    estimate = constitutions.estimate(config, model, asked, constitution)
    if estimate and config.server.estimate_only:
        return estimate._asdict()
    with constitutions.judged(
        config, stage, "judgements.jsonl", model, asked, constitution
    ) as judged:
        discarded = discards(judged)
        figures = {
            name: measure([judged[i] for i in members], [known[i].label for i in members])
            for name, members in groups.items()
        }
        show(figures)
        preferences.write_rows(stage.folder / "judgements.jsonl", judged)
        return stage.finish(
            {
                **{name: x.scalars() for name, x in figures.items() if x},
                "discarded": sum(discarded.values()),
                "reasons": discarded,
            }
        )


def grouped(known: Loaded, column: str | None) -> dict[str, list[int]]:
    """Numbers of the pairs of every group, "all" first.

    Raises:
      ConfigError: no row has that column.
    """
    groups: dict[str, list[int]] = {"all": list(range(len(known)))}
    if column is None:
        return groups
    if column not in known.rows.columns:
        names = ", ".join(known.rows.columns)
        raise ConfigError(f"pairs.group_by = {column!r}: the files have {names}")
    for i, row in enumerate(known.index):
        groups.setdefault(f"{column}={known.rows[row].get(column)}", []).append(i)
    return groups


def measure(judged: Sequence[Mapping[str, Any]], labels: Sequence[float]) -> Agreement | None:
    """Agreement with the labels (P(the first is better)); None where all rows were discarded."""
    kept = [i for i, row in enumerate(judged) if not row["discarded"]]
    if not kept:
        return None
    ab, ba = np.array([constitutions.orders(judged[i]) for i in kept]).T
    better = np.sign(np.array([labels[i] for i in kept]) - 0.5) / 2 + 0.5
    prompts = [str(judged[i]["prompt"]) for i in kept]
    repeated = 2 <= len(set(prompts)) < len(prompts)
    return agreement(ab, ba, better, clusters=prompts if repeated else None)


def show(figures: Mapping[str, Agreement | None]) -> None:
    """A line a group."""
    lines = [
        [
            name.partition("=")[2] or name,
            str(x.pairs),
            format_interval(x.accuracy, digits=3) if x.accuracy else "only ties",
            shown(x.one_order),
            shown(x.ece),
            shown(x.first_place),
            shown(x.same_place),
        ]
        for name, x in figures.items()
        if x
    ]
    table(
        "judge",
        ["pairs", "number", "accuracy", "one order", "ECE", "P(first place)", "same place"],
        lines,
    )


def shown(x: float | None) -> str:
    return "-" if x is None else f"{x:.3f}"
