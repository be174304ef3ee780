"""`jaxrlhf queries`: which pairs are worth a verdict, as a priority that `jaxrlhf label` serves.

    jaxrlhf queries pairs=[samples.jsonl] reward_models=[runs/rm-0/model,runs/rm-1/model]
    jaxrlhf label labels.sqlite pairs=[runs/queries/pairs.jsonl] next=priority

Written: pairs.jsonl, with the `priority` of every pair, highest first. An ensemble is the same
reward recipe run with several seeds; its members should differ as much as their labels leave open.
Scores are used as log-odds, so members that were trained with normalize: none say most; a
normalised one is multiplied by the `nats_per_score` beside it. Source: Christiano et al. 2017.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from jaxrlhf.data import arrays, chat, preferences, rows
from jaxrlhf.data.formats import Preference
from jaxrlhf.errors import ConfigError
from jaxrlhf.evals import acquisition
from jaxrlhf.labelling import formats, records
from jaxrlhf.labelling.records import Pair
from jaxrlhf.progress import console
from jaxrlhf.recipes import blocks, reward, saved, stages

By = Literal["disagreement", "information", "random"]


class QueriesConfig(blocks.StageConfig):
    """Give pairs a priority."""

    output_dir: str = Field(default="runs/queries", description="folder for pairs.jsonl")
    pairs: tuple[str, ...] = Field(default=(), description="files of pairs, as for `jaxrlhf label`")
    columns: dict[str, str] = Field(
        default={}, description="our column name -> the files', where they differ"
    )
    reward_models: tuple[str, ...] = Field(
        default=(), description="the ensemble (folders or hub names); two at least, but for random"
    )
    by: By = Field(
        default="disagreement",
        description="variance of P(a is better) over the ensemble; expected information about "
        "which member is right; or random",
    )
    mesh: blocks.MeshConfig = Field(default=blocks.MeshConfig(), description="devices")
    dtype: blocks.Dtype = Field(default="float32", description="compute dtype of the models")
    max_length: int = Field(
        default=128, ge=2, description="longest prompt and answer together, in tokens"
    )
    batch_size: int = Field(default=64, ge=1, description="pairs at a time")


CONFIG = QueriesConfig
EXAMPLE = "jaxrlhf queries pairs=[samples.jsonl] reward_models=[rm-0/model,rm-1/model,rm-2/model]"


def run(config: QueriesConfig) -> dict[str, Any]:
    """Write the file; the summary says how much the priorities differ."""
    if not config.pairs:
        raise ConfigError("pairs: name at least one file")
    pairs = formats.read(config.pairs, columns=config.columns).pairs
    found = priorities(config, pairs)
    order = acquisition.highest(found, len(pairs))
    folder = Path(config.output_dir)
    stages.make_folder(folder)
    lines = [records.to_row(pairs[i]) | {"priority": float(found[i])} for i in order]
    preferences.write_rows(folder / "pairs.jsonl", lines)
    console.print(
        f"{folder}/pairs.jsonl: {len(pairs):,} pairs by {config.by}, from {found.max():.4f} down "
        f"to {found.min():.4f}; jaxrlhf label STORE pairs=[{folder}/pairs.jsonl] next=priority",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    half = len(pairs) // 2
    top = float(found[order[: half or 1]].sum() / max(found.sum(), 1e-30))
    return {"pairs": len(pairs), "mean_priority": float(found.mean()), "share_of_first_half": top}


def priorities(config: QueriesConfig, pairs: Sequence[Pair]) -> np.ndarray:
    """`[N]`, higher is to be asked earlier."""
    if config.by == "random":
        return acquisition.random(len(pairs), seed=config.seed)
    if len(config.reward_models) < 2:
        raise ConfigError(
            f"reward_models: by = {config.by} compares at least two; there "
            f"{'is one' if config.reward_models else 'are none'}"
        )
    gaps = np.stack([gaps_of(config, path, pairs) for path in config.reward_models])
    how = acquisition.disagreement if config.by == "disagreement" else acquisition.information
    return how(gaps)


def gaps_of(config: QueriesConfig, path: str, pairs: Sequence[Pair]) -> np.ndarray:
    """`[N]` score of a minus score of b, in nats, by one reward model."""
    mesh = config.mesh.build(batch_size=config.batch_size)
    found = saved.load_scalar(path, mesh, dtype=config.dtype)
    items = [Preference(pair.prompt, pair.a, pair.b) for pair in pairs]
    source = rows.loaded(items, name="pairs")
    encoded = chat.encode_rows(found.tokenizer, source)
    texts = arrays.pairs(
        encoded,
        length=config.max_length,
        pad_id=found.tokenizer.pad_token_id,
        over_long="error",
    )
    a, b, _ = reward.pair_scores(found.model, found.params, texts, config.batch_size, mesh)
    return (a - b) * nats(path)


def nats(path: str) -> float:
    """What turns a difference of this model's scores into log-odds; 1 where nothing says."""
    beside = saved.find(path).parent / "done.json"
    return stages.read_json(beside).get("nats_per_score", 1.0) if beside.is_file() else 1.0
