"""The files that stages of the `cai` pipeline learn from, made of those of the stages before.

`write_examples`: revisions and helpful answers, for SL-CAI. `pair_files`: preference pairs of AI
labels and of people, for an arm's preference model.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import special

from jaxrlhf.constitutional import constitution
from jaxrlhf.constitutional.critique import sft_rows
from jaxrlhf.constitutional.judge import preference_rows
from jaxrlhf.data import preferences, sources
from jaxrlhf.recipes import cai_critique_revise
from jaxrlhf.recipes.cai_arms import ArmConfig
from jaxrlhf.recipes.cai_tasks import CAITask

SUREST = 1e-6  # probabilities are cut to this far from 0 and 1 before their log-odds are scaled


def examples_file(config: Any, which: Literal["all", "last"]) -> Path:
    """Where `write_examples` puts them."""
    return Path(config.output_dir) / "data" / f"sl-{which}.jsonl"


def write_examples(config: Any, which: Literal["all", "last"]) -> None:
    """Revisions of the first `sl_rounds` rounds, mixed with the helpful policy's own answers."""
    root = Path(config.output_dir)
    chains = [dict(row) for row in sources.load_rows(root / "revise" / "chains.jsonl")]
    for chain in chains:
        chain["revisions"] = chain["revisions"][: config.sl_rounds]
    answers = cai_critique_revise.helpful_rows((str(root / "helpful-answers" / "samples.jsonl"),))
    examples = sft_rows(
        chains,
        constitution.load(config.revise.constitution or config.constitution),
        which=which,
        helpful=answers,
        helpful_ratio=config.revise.helpful_ratio,
        seed=config.seed,
    )
    _write(examples_file(config, which), examples)


def pair_files(config: Any, task: CAITask, arm: ArmConfig) -> tuple[str, ...]:
    """The files of preference pairs that an arm's preference model learns from."""
    root = Path(config.output_dir)
    files: tuple[str, ...] = ()
    if arm.harm_labels == "ai":
        files += (str(_ai_pairs_file(config, arm)),)
    if arm.harm_labels == "people":
        theirs = (str(root / "people-harm" / "label" / "preferences.jsonl"),)
        files += task.harm_pairs or theirs
    if arm.helpful_pairs:
        theirs = (str(root / "people-helpful" / "label" / "preferences.jsonl"),)
        files += task.helpful_pairs or theirs
    return files


def write_ai_pairs(config: Any, arm: ArmConfig) -> None:
    """The judge's labels as this arm has them, in a file of preference pairs."""
    labels = Path(config.output_dir) / (f"label-{arm.judge}" if arm.judge else "label")
    rows = preference_rows(
        treated(arm, (dict(row) for row in sources.load_rows(labels / "labels.jsonl"))),
        hard=arm.hard,
        clamp=arm.clamp,
        weight=arm.ai_label_weight,
    )
    _write(_ai_pairs_file(config, arm), rows)


def treated(arm: ArmConfig, labels: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Labels with their probability sharpened, turned round or blanked."""
    return [
        row if row["discarded"] else {**row, "probability": _probability(arm, row["probability"])}
        for row in labels
    ]


def _probability(arm: ArmConfig, p: float) -> float:
    if arm.control == "half":
        return 0.5
    if arm.sharpen != 1:
        p = float(special.expit(arm.sharpen * special.logit(np.clip(p, SUREST, 1 - SUREST))))
    return 1 - p if arm.control == "reversed" else p


def _ai_pairs_file(config: Any, arm: ArmConfig) -> Path:
    return Path(config.output_dir) / "arms" / arm.name / "ai_pairs.jsonl"


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    preferences.write_rows(path, rows)
