"""What a weak-to-strong experiment is about: two halves of labelled rows, test rows, plain text.

The weak teacher learns from the truth of the first half; it labels the second half, from which the
student learns. A task writes its files once a seed and names them; everything after reads files.
Rows keep their other columns: a teacher's ready labels, say.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import pydantic
from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.data import formats, labelled, preferences
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.data.columns import Content
from jaxrlhf.data.rows import Rows
from jaxrlhf.errors import ConfigError, DataError
from jaxrlhf.progress import console
from jaxrlhf.recipes import rlhf, rows
from jaxrlhf.recipes.rlhf import RLHFConfig
from jaxrlhf.recipes.simulate_labels import WorldConfig
from jaxrlhf.sandbox.caravan import Caravan
from jaxrlhf.sandbox.protocol import generator, unit_hash

FIRST, SECOND, TEST = "first.jsonl", "second.jsonl", "test.jsonl"
ANSWERS = ("pretrain", "sft", "sample", "label")  # stages of `rlhf` that make pairs of answers


class Task(NamedTuple):
    """The files of a task, of one seed."""

    folder: Path
    corpus: tuple[str, ...]
    tokenizer: str | None
    reads: Literal["texts", "pairs"]
    policy: str | None = None  # whose answers the pairs compare
    prompts: tuple[str, ...] = ()  # for that policy

    @property
    def first(self) -> Path:
        """Rows with the truth, for teachers; not there where teachers bring their labels."""
        return self.folder / FIRST

    @property
    def second(self) -> Path:
        """Rows for students: the truth is in them, but only the ceiling may look."""
        return self.folder / SECOND

    @property
    def test(self) -> Path:
        """Rows that nothing is trained on."""
        return self.folder / TEST


class CaravanTask(Config):
    """The caravan world: texts of two roads, which the order of words tells apart."""

    world: WorldConfig = Field(default=WorldConfig(name="caravan"), description="which world")
    documents: int = Field(
        default=20_000, ge=1, description="texts without labels, to pre-train on"
    )
    first: int = Field(default=2_000, ge=2, description="labelled texts for teachers")
    second: int = Field(default=3_000, ge=2, description="texts for students")
    test: int = Field(default=3_000, ge=2, description="texts for testing")

    def prepare(self, folder: Path, *, seed: int) -> Task:
        """Write the files (again, if need be: they are a function of the seed)."""
        world = self.world.build()
        if not isinstance(world, Caravan):
            raise ConfigError(f"task.sandbox.world.name = {world.name!r}: only caravan has labels")
        tokenizers.word_tokenizer(world.words()).save_pretrained(folder / "tokenizer")
        both = world.documents(self.first + self.second, seed=seed)
        write(folder / FIRST, both[: self.first])
        write(folder / SECOND, both[self.first :])
        write(folder / TEST, world.documents(self.test, seed=seed, split="test"))
        write(folder / "corpus.jsonl", world.corpus(self.documents, seed=seed))
        corpus = (str(folder / "corpus.jsonl"),)
        return Task(folder, corpus, str(folder / "tokenizer"), "texts")


class FilesTask(Config):
    """Labelled texts, or pairs of answers, from files."""

    reads: Literal["texts", "pairs"] = Field(
        default="texts", description="texts with a true label, or preference pairs"
    )
    train: tuple[str, ...] = Field(default=(), description="files of labelled rows, to be halved")
    test: tuple[str, ...] = Field(default=(), description="files of labelled rows for testing")
    columns: dict[str, str] = Field(
        default={}, description="our column name (text, label; prompt, chosen, ...) -> the files'"
    )
    classes: int = Field(default=2, ge=2, description="how many; pairs have 2")
    first_share: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="share of the rows that teachers learn from; 0: they bring their labels",
    )
    limit: int | None = Field(default=None, ge=1, description="rows read of each file; null: all")
    max_words: int | None = Field(
        default=None,
        ge=1,
        description="rows with more are left out before anybody labels them, so that every model "
        "can read all rows; of pairs, the prompt and the longer answer; null: none are",
    )
    corpus: tuple[str, ...] = Field(
        default=(),
        description="files of plain text to pre-train on; none: the rows of both halves",
    )

    def prepare(self, folder: Path, *, seed: int) -> Task:
        """Write the files (again, if need be: they are a function of the data and the seed)."""
        train = self._read(self.train, "task.files.train", seed)
        order = generator("w2s halves", seed).permutation(len(train))
        cut = round(self.first_share * len(train))
        if cut:
            write(folder / FIRST, [train[i] for i in order[:cut]])
        write(folder / SECOND, [train[i] for i in order[cut:]])
        write(folder / TEST, self._read(self.test, "task.files.test", seed))
        corpus = self.corpus or tuple(
            str(folder / file) for file in ((FIRST, SECOND) if cut else (SECOND,))
        )
        return Task(folder, corpus, None, self.reads)

    def _read(self, files: Sequence[str], field: str, seed: int) -> list[dict[str, Any]]:
        found = rows.load(files, limit=self.limit, field=field)
        read = list((self._pairs if self.reads == "pairs" else self._texts)(found, seed))
        if self.max_words is None:
            return read
        short = [row for row in read if words_in(row) <= self.max_words]
        if len(short) < len(read):
            console.print(
                f"{field}: {len(read) - len(short):,} of {len(read):,} rows left out: more than "
                f"{self.max_words} words (task.files.max_words)"
            )
        return short

    def _texts(self, found: Rows, seed: int) -> Iterable[dict[str, Any]]:
        read = labelled.labelled(found, columns=self.columns, classes=self.classes)
        theirs = set(self.columns.values())
        for i, item in enumerate(read):
            others = {k: x for k, x in found[read.index[i]].items() if k not in theirs}
            yield {**others, "text": item.text, "label": list(item.probs)}

    def _pairs(self, found: Rows, seed: int) -> Iterable[dict[str, Any]]:
        """Half of them turned round, by a hash: "the first is better" must not be the answer."""
        read = formats.preferences(found, columns=self.columns)
        for i, pair in enumerate(read):
            sides, label = (pair.chosen, pair.rejected), pair.label
            if unit_hash("w2s turned", seed, i) < 0.5:
                sides, label = sides[::-1], 1.0 - label
            yield {"prompt": pair.prompt, "chosen": sides[0], "rejected": sides[1], "label": label}


class AnswersTask(Config):
    """Pairs of a policy's answers in a sandbox world, and that policy, to be improved in the end.

    The first stages of `jaxrlhf rlhf` make them; their labeller's verdicts are the truth.
    """

    rlhf: RLHFConfig = Field(
        default=RLHFConfig(),
        description="the pipeline: its world, policy, samples and labeller; its PPO for `improve`",
    )
    first_share: float = Field(
        default=0.5, gt=0, lt=1, description="share of the pairs that teachers learn from"
    )

    def prepare(self, folder: Path, *, seed: int) -> Task:
        """Write the files; what is finished is not made again."""
        root = folder / "rlhf"
        own: dict[str, Any] = {"output_dir": str(root), "seed": seed, "stages": ANSWERS}
        rlhf.run(self.rlhf.model_copy(update=own))
        train, test = (
            (str(root / "label" / f"{name}.jsonl"),) for name in ("preferences", "test_preferences")
        )
        files = FilesTask(reads="pairs", train=train, test=test, first_share=self.first_share)
        data = root / "data"
        policy = root / ("sft" if self.rlhf.sft else "pretrain") / "model"
        return files.prepare(folder, seed=seed)._replace(
            corpus=(str(data / "corpus.jsonl"),),
            tokenizer=str(data / "tokenizer"),
            policy=str(policy),
            prompts=(str(data / "prompts.jsonl"),),
        )


def words_in(row: Mapping[str, Any]) -> int:
    """Of a text; of a pair, of the prompt and the longer answer together."""
    if "text" in row:
        return len(row["text"].split())
    prompt, *answers = (len(plain(row[name]).split()) for name in ("prompt", "chosen", "rejected"))
    return prompt + max(answers)


def plain(content: Content) -> str:
    """A text as it is; of messages, what they say."""
    return content if isinstance(content, str) else "\n".join(m["content"] for m in content)


class W2STaskConfig(Config):
    """Which task, and its settings."""

    kind: Literal["sandbox", "files", "answers"] = Field(
        default="sandbox",
        description="texts of a world made by a program; files; or pairs of a policy's answers",
    )
    sandbox: CaravanTask = Field(default=CaravanTask(), description="used with kind: sandbox")
    files: FilesTask = Field(default=FilesTask(), description="used with kind: files")
    answers: AnswersTask = Field(default=AnswersTask(), description="used with kind: answers")

    @pydantic.model_validator(mode="after")
    def _answers_are_of_a_sandbox(self) -> Self:
        if self.kind == "answers" and self.answers.rlhf.task.kind != "sandbox":
            raise ValueError("answers.rlhf.task.kind: only a sandbox has a labeller and gold")
        return self

    def prepare(self, folder: Path, *, seed: int) -> Task:
        """Write the task's files into `folder` and name them."""
        folder.mkdir(parents=True, exist_ok=True)
        task: CaravanTask | FilesTask | AnswersTask = getattr(self, self.kind)
        return task.prepare(folder, seed=seed)

    @property
    def classes(self) -> int:
        return self.files.classes if self.kind == "files" and self.files.reads == "texts" else 2


def write(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Rows, of which there must be some."""
    if not preferences.write_rows(path, records):
        raise DataError(f"{path}: the task leaves no rows")
