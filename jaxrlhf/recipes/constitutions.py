"""What the commands of `jaxrlhf cai` share: a constitution, the model that is asked, the rows."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from pydantic import Field

from jaxrlhf.config import dump
from jaxrlhf.constitutional import constitution
from jaxrlhf.constitutional.calibration import calibrated
from jaxrlhf.constitutional.constitution import Constitution
from jaxrlhf.constitutional.judge import Pair, label_pairs, probabilities
from jaxrlhf.constitutional.sampler import Model, Sampler
from jaxrlhf.constitutional.served import Estimate, Rehearsal, Served
from jaxrlhf.errors import ConfigError, UserError
from jaxrlhf.evals.agreement import agreement
from jaxrlhf.progress import progress
from jaxrlhf.recipes import blocks, saved, stages
from jaxrlhf.recipes.sample import SamplingConfig
from jaxrlhf.recipes.server import ServerConfig

RESOLVED = "constitution.yaml"


class AskConfig(blocks.StageConfig):
    """A constitution, and a model that is asked by it."""

    model_path: str | None = Field(default=None, description="language model (folder or hub name)")
    dtype: blocks.Dtype = Field(default="float32", description="compute dtype of the model")
    mesh: blocks.MeshConfig = Field(default=blocks.MeshConfig(), description="devices")
    constitution: str | None = Field(
        default=None,
        description="default, helpful_only or single; a YAML file; a folder of the paper's files",
    )
    few_shot: int | None = Field(
        default=None, ge=0, description="examples before each question; null: all there are"
    )
    sampling: SamplingConfig = Field(
        default=SamplingConfig(response_length=256), description="how texts are drawn"
    )
    keep_unfinished: bool = Field(
        default=False, description="texts that were cut by length count too"
    )
    batch_size: int = Field(default=16, ge=1, description="texts asked at a time")


class JudgeConfig(AskConfig):
    """How a model chooses between two responses."""

    server: ServerConfig = Field(
        default=ServerConfig(), description="ask an endpoint instead of a model here"
    )
    both_orders: bool = Field(
        default=True, description="ask with either response first, and average"
    )
    calibrate: bool = Field(
        default=False,
        description="shift all log-odds so that either place is chosen as often as the other",
    )
    questions_per_pair: int = Field(
        default=1, ge=1, description="questions drawn for a pair, whose answers are averaged"
    )
    comparisons: int | None = Field(
        default=None, ge=1, description="use the first so many questions; null: all"
    )
    think: bool = Field(
        default=False, description="the judge reasons before it chooses (chain of thought)"
    )


def load(config: AskConfig) -> Constitution:
    """The constitution that the config names."""
    return constitution.load(blocks.required("constitution", config.constitution))


def sampler(config: AskConfig) -> Sampler:
    """The model that the config names."""
    mesh = config.mesh.build(batch_size=config.batch_size)
    path = blocks.required("model_path", config.model_path)
    lm, params, tokenizer, _ = saved.load_lm(path, mesh, dtype=config.dtype)
    return Sampler(
        lm,
        params,
        tokenizer,
        config.sampling.build(tokenizer),
        config.batch_size,
        seed=config.seed,
        mesh=mesh,
    )


def judge(config: JudgeConfig) -> Model:
    """The model that judges: one in this process, or one behind an endpoint."""
    if config.server.url is None:
        return sampler(config)
    if config.model_path is not None:
        raise ConfigError("model_path, server.url: give one of the two")
    return config.server.build(config.sampling, batch_size=config.batch_size, seed=config.seed)


def estimate(
    config: JudgeConfig, model: Model, pairs: Sequence[Pair], questions: Constitution
) -> Estimate | None:
    """What judging would take of an endpoint, said before anything is sent; None for a model here.

    Raises:
      UserError: more than `server.max_cost`.
    """
    if not isinstance(model, Served):
        return None
    rehearsal = Rehearsal(model)
    for _ in _labels(config, rehearsal, pairs, questions, ()):
        pass
    return config.server.estimated(rehearsal)


@contextmanager
def judged(
    config: JudgeConfig,
    stage: stages.Stage,
    name: str,
    model: Model,
    pairs: Sequence[Pair],
    questions: Constitution,
) -> Iterator[list[dict[str, Any]]]:
    """The judgements of all pairs, calibrated if they are to be: see `rows`."""
    items = [{"prompt": pair.prompt, "responses": [pair.a, pair.b]} for pair in pairs]

    def make(done: Collection[int]) -> Iterator[dict[str, Any]]:
        return _labels(config, model, pairs, questions, done)

    with rows(stage, name, items, questions, make) as found:
        yield calibrated(found) if config.calibrate else found


def describe(labels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What labels look like from outside: how sure, and how much the first place was liked."""
    kept = [row for row in labels if not row["discarded"]]
    ab, ba = np.array([orders(row) for row in kept]).T
    places = agreement(ab, ba, np.full(len(kept), 0.5))  # which is better is not known here
    return {
        "entropy": float(np.mean([row["entropy"] for row in kept])),
        "confidence": float(np.mean([abs(row["probability"] - 0.5) + 0.5 for row in kept])),
        "first_place": places.first_place,
        "same_place": places.same_place,
    }


def orders(row: Mapping[str, Any]) -> tuple[float, float]:
    """P(a is better) of a label row when a stood first, and when b did (NaN: not asked)."""
    found = probabilities(row)
    first, second = (found.get(order, np.array([np.nan])) for order in ("ab", "ba"))
    return float(first.mean()), float(second.mean())


@contextmanager
def rows(
    stage: stages.Stage,
    name: str,
    items: Sequence[Mapping[str, Any]],
    made_by: Constitution,
    make: Callable[[Collection[int]], Iterable[dict[str, Any]]],
) -> Iterator[list[dict[str, Any]]]:
    """Make the rows that are missing, and hand over all of them, in order.

    What is there of an interrupted run is kept until the `with` block is done, so that the block
    can write files from the rows and finish the stage.

    Args:
      name: of the file of rows while it grows.
      items: for each row what it has to begin with, to see that a run goes on with the same data.
      made_by: kept in the stage's folder; an interrupted run goes on with no other.
      make: rows that are done -> the others.
    """
    stage.begin()
    with stage.stream(name) as stream:
        _same_constitution(stage, made_by, resumed=bool(stream.done))
        for row in stream.rows():
            _same_item(stage, row, items)
        with progress(len(items), stage.folder.name, start=len(stream.done)) as bar:
            for row in make(stream.done):
                stream.append(row)
                bar.advance(1)
        yield stream.rows()
        stream.remove()


def _labels(
    config: JudgeConfig,
    model: Model,
    pairs: Sequence[Pair],
    questions: Constitution,
    done: Collection[int],
) -> Iterator[dict[str, Any]]:
    return label_pairs(
        model,
        pairs,
        questions,
        both_orders=config.both_orders,
        questions_per_pair=config.questions_per_pair,
        few_shot=config.few_shot,
        think=config.think,
        keep_unfinished=config.keep_unfinished,
        seed=config.seed,
        done=done,
    )


def _same_constitution(stage: stages.Stage, made_by: Constitution, *, resumed: bool) -> None:
    path, text = stage.folder / RESOLVED, dump(made_by)
    if resumed and path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{stage.folder} was begun with another text of the constitution {made_by.name!r} "
            f"(kept in {path}); choose another output_dir, or delete that folder to start again"
        )
    stages.write_text(path, text)


def _same_item(
    stage: stages.Stage, row: Mapping[str, Any], items: Sequence[Mapping[str, Any]]
) -> None:
    number = row["row"]
    if number < len(items):
        now = json.loads(json.dumps(items[number]))
        if {name: row.get(name) for name in now} == now:
            return
    raise UserError(
        f"{stage.folder}: row {number} was made from other data than the files hold now; choose "
        "another output_dir, or delete that folder to start again"
    )
