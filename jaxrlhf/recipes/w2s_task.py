"""What a weak-to-strong experiment is about: two halves of labelled rows, test rows, plain text.

The weak teacher learns from the truth of the first half; it labels the second half, from which the
student learns. A task writes its files once a seed and names them; everything after reads files.
Rows keep their other columns: a teacher's ready labels, say.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.data import formats, labelled, preferences
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.data.rows import Rows
from jaxrlhf.errors import ConfigError, DataError
from jaxrlhf.recipes import rows
from jaxrlhf.recipes.simulate_labels import WorldConfig
from jaxrlhf.sandbox.caravan import Caravan
from jaxrlhf.sandbox.protocol import generator, unit_hash

FIRST, SECOND, TEST = "first.jsonl", "second.jsonl", "test.jsonl"


class Task(NamedTuple):
    """The files of a task, of one seed."""

    folder: Path
    corpus: tuple[str, ...]
    tokenizer: str | None
    reads: Literal["texts", "pairs"]

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
        return list((self._pairs if self.reads == "pairs" else self._texts)(found, seed))

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


class W2STaskConfig(Config):
    """Which task, and its settings."""

    kind: Literal["sandbox", "files"] = Field(
        default="sandbox", description="a world made by a program, or files"
    )
    sandbox: CaravanTask = Field(default=CaravanTask(), description="used with kind: sandbox")
    files: FilesTask = Field(default=FilesTask(), description="used with kind: files")

    def prepare(self, folder: Path, *, seed: int) -> Task:
        """Write the task's files into `folder` and name them."""
        folder.mkdir(parents=True, exist_ok=True)
        task = self.sandbox if self.kind == "sandbox" else self.files
        return task.prepare(folder, seed=seed)

    @property
    def classes(self) -> int:
        return 2 if self.kind == "sandbox" or self.files.reads == "pairs" else self.files.classes


def write(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Rows, of which there must be some."""
    if not preferences.write_rows(path, records):
        raise DataError(f"{path}: the task leaves no rows")
