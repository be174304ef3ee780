"""`jaxrlhf annotators`: how reliable each annotator is, and labels that say how sure they are.

    jaxrlhf annotators verdicts.jsonl                      # pair_id, annotator, verdict
    jaxrlhf annotators pairs.jsonl wide=[ann_1,ann_2,ann_3] columns='{a: text_1, b: text_2}'

Prints agreement (raw, Cohen, Fleiss, Krippendorff), and of each annotator the reliability, the
preference for the first place and for the longer answer, and, where models are named, the
competence of a crowd Bradley-Terry model. Whoever is right less often than chance is named.

labels.jsonl gets a row for each pair with P(chosen is better) as `label`, which `jaxrlhf reward`
trains on. They come from Dawid and Skene's model where it predicts held-out labels better than a
model in which all annotators are alike, whose likeliest label is the majority's; the command says
which, and why. annotators.{json,md} have the figures.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.data import preferences, sources
from jaxrlhf.data.judgements import COMPARISON, Judgement, judgements
from jaxrlhf.data.rows import Loaded, OnBadRow
from jaxrlhf.evals import annotators as people
from jaxrlhf.evals.annotators import Choice, Consensus, Labels
from jaxrlhf.evals.statistics import Interval
from jaxrlhf.progress import console, table
from jaxrlhf.recipes import stages
from jaxrlhf.recipes.tables import markdown

OUTCOMES = (1.0, 0.0, 0.5)  # of the classes, in this order; the third only where there are ties


class AnnotatorsConfig(Config):
    """Annotators and their labels."""

    labels: str = Field(description="a file of verdicts, or the name of a data set")
    output_dir: str = Field(
        default="runs/annotators", description="folder for annotators.{json,md} and labels.jsonl"
    )
    columns: dict[str, str] = Field(
        default={},
        description="item, annotator, label, prompt, a, b, model_a, model_b or shown_first -> the "
        "file's name for it",
    )
    outcomes: dict[str, float] = Field(
        default={}, description="what the file says of the better one -> 1 (a), 0 (b) or 0.5 (tie)"
    )
    wide: tuple[str, ...] = Field(
        default=(), description="columns of annotators, where a row has the labels of several"
    )
    limit: int | None = Field(default=None, ge=1, description="rows read; null: all")
    on_bad_row: OnBadRow = Field(default="error", description="or skip and count bad rows")
    model: Literal["auto", "majority", "dawid-skene"] = Field(
        default="auto", description="what makes labels of verdicts; auto: held-out likelihood says"
    )
    prior: float = Field(
        default=0.1, gt=0, description="precision of the ratings beside competence, 1/nats^2"
    )
    seed: int = Field(default=0, ge=0, description="of the folds that are held out")


CONFIG = AnnotatorsConfig
EXAMPLE = "jaxrlhf annotators verdicts.jsonl output_dir=runs/annotators"


class Crowd(NamedTuple):
    """Verdicts, with names and as numbers."""

    found: Loaded[Judgement]
    items: list[str]
    names: list[str]
    labels: Labels


def run(config: AnnotatorsConfig) -> dict[str, Any]:
    """Print tables, write the files; the summary has agreement, the choice, and the adversaries."""
    found = judgements(
        sources.load_rows(config.labels, limit=config.limit),
        columns=config.columns,
        outcomes=config.outcomes,
        wide=config.wide,
        on_bad_row=config.on_bad_row,
    )
    crowd = numbered(found)
    choice = people.choose(crowd.labels, seed=config.seed)
    apart = choice.apart if config.model == "auto" else config.model == "dawid-skene"
    made = people.consensus(crowd.labels, apart=apart)
    rows = annotator_rows(config, crowd, made)
    reliable = people.reliability(crowd.labels, made)
    chance = 1 / crowd.labels.shape[2]
    summary = {
        "verdicts": len(found),
        "pairs": len(crowd.items),
        "annotators": len(crowd.names),
        "ties": float(np.mean([x.outcome == 0.5 for x in found])),
        "model": "dawid-skene" if apart else "majority",
        "held_out_gain": list(choice.gain) if np.isfinite(choice.gain.low) else None,
        "adversaries": [n for n, x in zip(crowd.names, reliable, strict=True) if x.high < chance],
        **agreement(crowd),
    }
    write(config, crowd, made, rows, {**summary, "why": why(config, choice)})
    return summary


def numbered(found: Loaded[Judgement]) -> Crowd:
    """Names of pairs (in the file's order) and of annotators (sorted), and the labels."""
    items = list(dict.fromkeys(x.item for x in found))
    names = sorted({x.annotator for x in found})
    number = {name: i for i, name in enumerate(items)}, {name: i for i, name in enumerate(names)}
    classes = 3 if any(x.outcome == 0.5 for x in found) else 2
    labels = people.labels(
        [number[0][x.item] for x in found],
        [number[1][x.annotator] for x in found],
        [OUTCOMES.index(x.outcome) for x in found],
        shape=(len(items), len(names), classes),
    )
    return Crowd(found, items, names, labels)


def agreement(crowd: Crowd) -> dict[str, float | None]:
    """Four figures of agreement; None where nothing can be compared."""
    count = len(crowd.names)
    pairs = [(a, b) for a in range(count) for b in range(a)]
    cohen = [x for pair in pairs if np.isfinite(x := people.cohen_kappa(crowd.labels, *pair))]
    figures = {
        "agreement": people.raw_agreement(crowd.labels),
        "cohen_kappa": float(np.mean(cohen)) if cohen else float("nan"),
        "fleiss_kappa": people.fleiss_kappa(crowd.labels),
        "krippendorff_alpha": people.krippendorff_alpha(crowd.labels),
    }
    return {name: x if np.isfinite(x) else None for name, x in figures.items()}


def annotator_rows(config: AnnotatorsConfig, crowd: Crowd, made: Consensus) -> list[dict[str, Any]]:
    """A line for each annotator; columns that the file says nothing of are left out."""
    labels, count = crowd.labels, len(crowd.names)
    reliable = people.reliability(labels, made)
    columns = [
        biased(first_place(crowd), "first place", count),
        biased(longer_answer(crowd, made), "longer answer", count),
        competent(config, crowd),
    ]
    verdicts = np.bincount(labels.annotators, minlength=count)
    lines = []
    for i in np.argsort([-x.estimate for x in reliable], kind="stable"):  # NaN comes last
        line = {
            "annotator": crowd.names[i],
            "verdicts": int(verdicts[i]),
            "reliability": spelled(reliable[i]),
            **{name: values[i] for column in columns for name, values in column.items()},
            "": "ADVERSARY" if reliable[i].high < 1 / labels.shape[2] else "",
        }
        lines.append(line)
    return lines


Events = list[tuple[int, float, float | None]]
"""Of verdicts for one of the two: annotator, whether it happened, its chance by the consensus."""


def first_place(crowd: Crowd) -> Events:
    """Whether what stood first was preferred."""
    events: Events = []
    for x, annotator in zip(crowd.found, crowd.labels.annotators, strict=True):
        first = x.columns.get("shown_first")
        if first in ("a", "b") and x.outcome != 0.5:
            events.append((annotator, float((first == "a") == (x.outcome == 1)), None))
    return events


def longer_answer(crowd: Crowd, made: Consensus) -> Events:
    """Whether the longer answer was preferred, and whether it is the better one."""
    events: Events = []
    for x, item, annotator in zip(crowd.found, *crowd.labels[:2], strict=True):
        a, b = (size(x.columns.get(side)) for side in ("a", "b"))
        if a is None or b is None or a == b or x.outcome == 0.5:
            continue
        better = first_is_better(made.posterior[item])
        expected = better if a > b else 1 - better
        events.append((annotator, float((a > b) == (x.outcome == 1)), expected))
    return events


def biased(events: Events, name: str, count: int) -> dict[str, list[str]]:
    """Columns of a bias: how often it happened, and how often it would by the consensus."""
    if not events:
        return {}
    who, happened, expected = zip(*events, strict=True)
    found = people.shares(happened, who, people=count)
    columns = {f"{name} (even: .5)" if expected[0] is None else name: list(map(spelled, found))}
    if expected[0] is not None:
        fair = people.shares(expected, who, people=count)
        columns[f"{name}, by consensus"] = [shown(x.estimate) for x in fair]
    return columns


def competent(config: AnnotatorsConfig, crowd: Crowd) -> dict[str, list[str]]:
    """Competence by crowd-BT, of verdicts for one of two named models."""
    kept = [
        (x.columns["model_a"], x.columns["model_b"], x.outcome == 1, annotator)
        for x, annotator in zip(crowd.found, crowd.labels.annotators, strict=True)
        if x.outcome != 0.5 and {"model_a", "model_b"} <= set(x.columns)
    ]
    if not kept:
        return {}
    a, b, won, who = zip(*kept, strict=True)
    players, numbers = np.unique([*map(str, a), *map(str, b)], return_inverse=True)
    found = people.competence(
        numbers[: len(a)],
        numbers[len(a) :],
        won,
        who,
        shape=(len(players), len(crowd.names)),
        prior=config.prior,
    )
    return {"competence": [shown(x) for x in found.competence]}


def first_is_better(posterior: np.ndarray) -> float:
    """P(the first is better), a tie counting half."""
    return float(posterior[0] + (posterior[2] / 2 if len(posterior) > 2 else 0.0))


def label_rows(crowd: Crowd, made: Consensus) -> list[dict[str, Any]]:
    """A preference row for each pair with texts; the probability alone where no pair has any."""
    known = {x.item: x.columns for x in crowd.found}
    verdicts = np.bincount(crowd.labels.items, minlength=len(crowd.items))
    plain, trainable = [], []
    for i, item in enumerate(crowd.items):
        p = first_is_better(made.posterior[i])
        about = {"pair_id": item, "verdicts": int(verdicts[i])}
        plain.append(about | {"p_first_is_better": p})
        prompt, a, b = (known[item].get(name) for name in COMPARISON)
        if all(map(readable, (prompt, a, b))):
            chosen, rejected = (a, b) if p >= 0.5 else (b, a)
            texts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            trainable.append(about | texts | {"label": max(p, 1 - p)})
    return trainable or plain


def write(
    config: AnnotatorsConfig,
    crowd: Crowd,
    made: Consensus,
    rows: Sequence[dict[str, Any]],
    summary: dict[str, Any],
) -> None:
    """`annotators.json`, `annotators.md`, `labels.jsonl`, and the tables in the terminal."""
    folder = Path(config.output_dir)
    stages.make_folder(folder)
    headers = list(rows[0])
    lines = [list(row.values()) for row in rows]
    notes = remarks(summary)
    table(f"{config.labels}: {summary['verdicts']:,} verdicts", headers, lines)
    for note in notes:
        console.print(f"- {note}", markup=False, highlight=False)
    stages.write_json(folder / "annotators.json", {"by_annotator": list(rows), **summary})
    text = "\n".join(["# Annotators", "", markdown(headers, lines), "", *(f"- {x}" for x in notes)])
    stages.write_text(folder / "annotators.md", text + "\n")
    written = label_rows(crowd, made)
    preferences.write_rows(folder / "labels.jsonl", written)
    if "label" not in written[0]:
        console.print("no prompt, a and b in the file: labels.jsonl is not for training")
    elif left_out := len(crowd.items) - len(written):
        console.print(f"{left_out} pairs have no text in prompt, a or b: not in labels.jsonl")
    console.print(f"written: {folder}/annotators.json, .md, labels.jsonl", highlight=False)


def remarks(summary: dict[str, Any]) -> list[str]:
    """What a reader of the table should know."""
    measured = [
        f"{name.replace('_', ' ')} {shown(summary[name])}"
        for name in ("agreement", "cohen_kappa", "fleiss_kappa", "krippendorff_alpha")
    ]
    notes = [
        f"{summary['pairs']:,} pairs, {summary['verdicts'] / summary['pairs']:.1f} verdicts each, "
        f"{summary['ties']:.1%} ties",
        ", ".join(measured),
        summary["why"],
    ]
    if summary["adversaries"]:
        names = ", ".join(summary["adversaries"])
        notes.append(
            f"right less often than chance: {names}; "
            + (
                "their labels count the other way round"
                if summary["model"] == "dawid-skene"
                else "their labels count all the same; model=dawid-skene turns them round"
            )
        )
    return notes


def why(config: AnnotatorsConfig, choice: Choice) -> str:
    """The choice of the model, and its reason."""
    gain = f"{choice.gain.estimate:+.4f} [{choice.gain.low:+.4f}, {choice.gain.high:+.4f}]"
    if not np.isfinite(choice.gain.low):
        model = "dawid-skene" if config.model == "dawid-skene" else "majority"
        return f"labels by {model}: no pair has two verdicts, so nothing says who is reliable"
    if config.model != "auto":
        return f"labels by {config.model}, as asked; telling annotators apart gains {gain} nats"
    if choice.apart:
        return (
            "labels by Dawid-Skene: telling annotators apart predicts held-out labels better, "
            f"{gain} nats a label"
        )
    return (
        "labels by majority: telling annotators apart does not predict held-out labels better "
        f"({gain} nats a label), so they are alike, or have too few labels to tell"
    )


def readable(content: Any) -> bool:
    """Whether a reward model could read it: text that is not blank, or messages."""
    return bool(content.strip()) if isinstance(content, str) else isinstance(content, list)


def size(content: Any) -> int | None:
    """Characters of an answer that may be messages."""
    if isinstance(content, list):
        return sum(len(str(message.get("content", ""))) for message in content)
    return len(content) if isinstance(content, str) else None


def spelled(x: Interval) -> str:
    """A share with its interval."""
    return "-" if np.isnan(x.estimate) else f"{x.estimate:.3f} [{x.low:.3f}, {x.high:.3f}]"


def shown(x: float | None) -> str:
    return "-" if x is None or np.isnan(x) else f"{x:.3f}"
