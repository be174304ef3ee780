"""The files that the stages of a round read: prompts, pairs to compare, preference pairs.

All are functions of the stages before and are written again whenever they are needed. Whether a
pair trains or tests reward models is decided by a hash of its prompt, so that no round ever trains
on a prompt that another round tests with.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxrlhf.data import preferences, sources
from jaxrlhf.data.columns import Content
from jaxrlhf.errors import ConfigError, UserError
from jaxrlhf.labelling import records
from jaxrlhf.sandbox.protocol import unit_hash

Mix = Literal["all", "last", "uniform"]


class Files(NamedTuple):
    """What lies in the folder of a round."""

    root: Path
    number: int

    @property
    def folder(self) -> Path:
        return self.root / name(self.number)

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.jsonl"

    @property
    def pairs(self) -> Path:
        """To be compared, as `jaxrlhf label` and the labellers read them."""
        return self.folder / "pairs.jsonl"

    @property
    def train(self) -> Path:
        """All that this round's reward model learns from."""
        return self.folder / "train.jsonl"

    @property
    def test(self) -> Path:
        """This round's pairs on held-out prompts."""
        return self.folder / "test.jsonl"

    def before(self) -> list["Files"]:
        """The rounds up to this one."""
        return [Files(self.root, number) for number in range(1, self.number + 1)]


def name(number: int) -> str:
    """The folder of a round."""
    return f"round-{number}"


def write_prompts(
    files: Files, prompts: Sequence[str], *, limit: int | None, pairs: int, spare: float
) -> None:
    """The prompts of a round: the next `pairs * spare` of all, from the start again at the end."""
    if not prompts:
        raise ConfigError("sample.prompts.files: name at least one file")
    every = [dict(row) for file in prompts for row in sources.load_rows(file, limit=limit)]
    count = math.ceil(pairs * spare)
    start = (files.number - 1) * count
    rows = [every[i % len(every)] for i in range(start, start + count)]
    files.folder.mkdir(parents=True, exist_ok=True)
    preferences.write_rows(files.prompts, rows)


def write_pairs(files: Files, *, pairs: int) -> int:
    """The first `pairs` different pairs of the round's samples that no earlier round asked about.

    Returns: how many there are, which is fewer where the policy mostly repeats itself.
    Raises: UserError where there is none.
    """
    asked = {_id(row) for earlier in files.before()[:-1] for row in _samples(earlier.pairs)}
    chosen: list[dict[str, Any]] = []
    for row in _samples(files.folder / "sample" / "samples.jsonl"):
        for pair in _pairs(row):
            if len(chosen) < pairs and _id(pair) not in asked:
                asked.add(_id(pair))
                chosen.append(pair | {"round": files.number})
    if not chosen:
        raise UserError(
            f"{files.folder}/sample: no two different answers to a prompt that were not compared "
            "before; the policy always says the same"
        )
    preferences.write_rows(files.pairs, chosen)
    return len(chosen)


def write_data(files: Files, *, mix: Mix, test_share: float) -> None:
    """`train` and `test` from the labels of all rounds so far, each row with its round.

    mix: "all" pairs count alike; the "last" round's alone are used; "uniform": every round counts
    alike, however many pairs it has.
    """
    train: list[dict[str, Any]] = []
    for one in files.before():
        rows = [
            {**row, "round": one.number}
            for row in sources.load_rows(str(one.folder / "label" / "preferences.jsonl"))
        ]
        parts = {part: [r for r in rows if _tests(r, test_share) == part] for part in (True, False)}
        if one.number == files.number:
            preferences.write_rows(files.test, parts[True])
        if mix != "last" or one.number == files.number:
            train += parts[False]
    if mix == "uniform":
        counts = Counter(row["round"] for row in train)
        mean = len(train) / len(counts)
        for row in train:
            row["weight"] = row.get("weight", 1.0) * mean / counts[row["round"]]
    if not train:
        raise UserError(f"{files.folder}: all pairs test; fewer than test_share would")
    preferences.write_rows(files.train, train)


def tests(files: Files) -> tuple[str, ...]:
    """The test file, or none where no pair fell on a held-out prompt."""
    return (str(files.test),) if files.test.stat().st_size else ()


def is_held_out(prompt: Content, share: float) -> bool:
    """Whether pairs on this prompt only test: a hash of its text decides, in every round alike."""
    return unit_hash("rounds test", json.dumps(prompt, sort_keys=True)) < share


def _tests(row: dict[str, Any], share: float) -> bool:
    return is_held_out(row["prompt"], share)


def _samples(path: Path) -> list[dict[str, Any]]:
    return [dict(row) for row in sources.load_rows(str(path))]


def _pairs(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Answers (0, 1), (2, 3), ... of a sample record as records of two; equal ones are no pair."""
    answers = row["responses"]
    for a, b in zip(answers[::2], answers[1::2], strict=False):
        if a != b:
            kept = {key: row[key] for key in ("model", "temperature", "seed") if key in row}
            yield {"prompt": row["prompt"], "responses": [a, b]} | kept


def _id(row: dict[str, Any]) -> str:
    return records.pair_id(row["prompt"], *row["responses"])
