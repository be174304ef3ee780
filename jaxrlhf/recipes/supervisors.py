"""Weak supervisors: who labels the second half and the test rows, each as a folder of label files.

A supervisor is a model of its own (word counts, or a size of the experiment), a column of the
files, or made of others: their mean, or errors of a given kind at their rate. One that is a model
and is `of` another learns from that one's labels: a chain, whose last link teaches the student.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pydantic
from pydantic import Field
from scipy import special

from jaxrlhf.config import Config
from jaxrlhf.data import sources
from jaxrlhf.data.rows import Rows
from jaxrlhf.errors import ConfigError, DataError, one_of
from jaxrlhf.evals import weak_to_strong as evals
from jaxrlhf.evals.tfidf import fit_bag_of_words
from jaxrlhf.evals.word_counts import fit_word_counts
from jaxrlhf.recipes import stages
from jaxrlhf.recipes.w2s_task import SECOND, TEST, Task, plain, write
from jaxrlhf.sandbox.protocol import generator, unit_hash

TRUTH = "truth"  # the name of the supervisor that is never wrong: the ceiling's
NEEDS = {
    "words": (),
    "model": ("size",),
    "column": ("column",),
    "mean": ("of",),
    "flips": ("of",),
    "rule": ("of",),
}


class SupervisorConfig(Config):
    """One supervisor."""

    kind: Literal["words", "model", "column", "mean", "flips", "rule"] = Field(
        default="words",
        description="words: regression on word counts (on pairs: on TF-IDF). model: one of "
        "`sizes`. column: ready labels in the files. mean: an ensemble. flips: the truth, wrong at "
        "random as often as `of` is. rule: wrong as often, where a rule on words is surest",
    )
    size: str | None = Field(default=None, description="model: which of `sizes`")
    of: tuple[str, ...] = Field(
        default=(), description="supervisors it is made of; of a model: whose labels it learns from"
    )
    loss: str = Field(default="naive", description="model: which of `losses` it is trained with")
    column: str | None = Field(default=None, description="column: its name in the files")
    draw: int = Field(
        default=0,
        ge=0,
        description="words, model: 0 learns from all of the first half; 1, 2, ... from a bootstrap "
        "sample of it, for ensembles",
    )
    penalty: float = Field(default=1e-4, gt=0, description="words: weight of the squared norm")

    @pydantic.model_validator(mode="after")
    def _complete(self) -> Self:
        for field in NEEDS[self.kind]:
            if not getattr(self, field):
                raise ValueError(f"{field}: a supervisor of kind {self.kind} needs it")
        return self


def check_sources(configs: Mapping[str, SupervisorConfig]) -> None:
    """Refuse supervisors made of ones that do not exist, or in the end of themselves."""
    if TRUTH in configs:
        raise ValueError(f"supervisors.{TRUTH}: the name of what is never wrong; take another")

    def follow(name: str, path: tuple[str, ...]) -> None:
        one_of("supervisors: of", name, configs)
        if name in path:
            raise ValueError(f"supervisors: {' of '.join((*path, name))}: a circle")
        for source in configs[name].of:
            follow(source, (*path, name))

    for name in configs:
        follow(name, ())


class Fit(NamedTuple):
    """A model supervisor to be trained: what by, and where to."""

    size: str
    train: Path
    loss: str
    folder: Path


class Supervisors:
    """The supervisors of one seed: label files are made when they are first asked for."""

    def __init__(
        self,
        configs: dict[str, SupervisorConfig],
        task: Task,
        folder: Path,
        *,
        seed: int,
        train_model: Callable[[Fit], Path],
    ):
        self.configs, self.task, self.folder, self.seed = configs, task, folder, seed
        self._train_model = train_model  # returns the folder of its label files

    def labels(self, name: str) -> Path:
        """The folder with the labels of `name` for the second half and for the test rows."""
        if name == TRUTH:
            return self.task.folder
        config, made = self.configs[name], self.folder / name
        if config.kind == "model":
            return self._train_model(
                Fit(str(config.size), self._lesson(name, config), config.loss, made)
            )
        if not (made / "done.json").is_file():
            self._make(name, config, made)
        return made

    def root(self, name: str) -> str:
        """Whose shortfall a student makes up for: the first link of a chain."""
        config = self.configs.get(name)
        return self.root(config.of[0]) if config and config.kind == "model" and config.of else name

    def _make(self, name: str, config: SupervisorConfig, made: Path) -> None:
        made.mkdir(parents=True, exist_ok=True)
        judge = self._judge(name, config)
        for file in (SECOND, TEST):
            source = sources.load_rows(self.task.folder / file)
            write_labels(made / file, source, judge(file, source))
        stages.write_json(made / "done.json", config.model_dump())

    def _judge(self, name: str, config: SupervisorConfig) -> Callable[[str, Rows], np.ndarray]:
        match config.kind:
            case "words":
                return _word_judge(sources.load_rows(self._lesson(name, config)), config.penalty)
            case "column":
                column = str(config.column)
                return lambda file, source: probs(source, column)
            case "mean":
                return lambda file, source: np.mean(
                    [self._probs(other, file) for other in config.of], axis=0
                )
            case _:
                return lambda file, source: self._wrong(config, file, source)

    def _lesson(self, name: str, config: SupervisorConfig) -> Path:
        """The rows that a supervisor learns from."""
        if config.of:
            return self.labels(config.of[0]) / SECOND
        if not self.task.first.is_file():
            raise ConfigError(f"supervisors.{name}: task.files.first_share = 0 leaves it no rows")
        if not config.draw:
            return self.task.first
        path = self.folder / f"draw-{config.draw}.jsonl"
        source = sources.load_rows(self.task.first)
        rng = generator("w2s draw", self.seed, config.draw)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, [source[int(i)] for i in rng.integers(len(source), size=len(source))])
        return path

    def _wrong(self, config: SupervisorConfig, file: str, source: Rows) -> np.ndarray:
        """The truth, certain, but wrong on as many rows as the supervisor it is of."""
        truth = probs(source)
        right = evals.correct(self._probs(config.of[0], file), truth)
        count = round(float((1 - right).sum()))
        answer, classes = truth.argmax(axis=1), truth.shape[1]
        if config.kind == "flips":
            rows = generator("w2s flips", self.seed, file).permutation(len(truth))[:count]
            answer[rows] = (answer[rows] + 1) % classes
        else:
            misled(answer, texts(source), count)
        return np.eye(classes)[answer]

    def _probs(self, name: str, file: str) -> np.ndarray:
        return probs(sources.load_rows(self.labels(name) / file))


def misled(answer: np.ndarray, texts: Sequence[str], count: int) -> None:
    """Make `count` of the answers wrong, in place: a rule on words decides where it is surest.

    It says class 1 of texts with many words of one half of the language, and class 0 of those with
    few: word counts express that exactly.
    """
    order = np.argsort([-_share_of_half(text) for text in texts], kind="stable")
    for rows, says, errors in ((order, 1, count // 2), (order[::-1], 0, count - count // 2)):
        answer[rows[answer[rows] != says][:errors]] = says


def texts(source: Rows) -> list[str]:
    """The texts of rows; of pairs, their first answers."""
    name = "chosen" if is_pairs(source) else "text"
    return [plain(row[name]) for row in source]


def is_pairs(source: Rows) -> bool:
    return "chosen" in source.columns


def probs(source: Rows, column: str = "label") -> np.ndarray:
    """Labels of rows as probabilities `[N, K]`."""
    if column not in source.columns:
        raise DataError(f"{source.name}: no column {column!r}; it has {', '.join(source.columns)}")
    values = [row.get(column) for row in source]
    for i, value in enumerate(values):
        bad = [x for x in (value if isinstance(value, list) else [value]) if not _is_share(x)]
        if bad:
            raise DataError(f"{source.where(i)}: column {column!r} must be from 0 to 1: {value}")
    found = np.asarray(values, np.float64)
    return np.stack([1 - found, found], axis=1) if found.ndim == 1 else found


def write_labels(path: Path, source: Rows, labels: np.ndarray) -> None:
    """Rows with other labels."""
    listed: Sequence[Any] = labels[:, 1].tolist() if is_pairs(source) else labels.tolist()
    write(path, [{**row, "label": label} for row, label in zip(source, listed, strict=True)])


def _word_judge(lesson: Rows, penalty: float) -> Callable[[str, Rows], np.ndarray]:
    """Regression on the words of texts; of pairs, on the difference of their answers' TF-IDF."""
    if not is_pairs(lesson):
        model = fit_word_counts(texts(lesson), probs(lesson), penalty=penalty)
        return lambda file, source: model.probs(texts(source))
    sides = [(plain(row["chosen"]), plain(row["rejected"])) for row in lesson]
    first_wins = probs(lesson).argmax(axis=1)
    ordered = [pair if first else pair[::-1] for pair, first in zip(sides, first_wins, strict=True)]
    bag = fit_bag_of_words([good for good, _ in ordered], [bad for _, bad in ordered])

    def judge(file: str, source: Rows) -> np.ndarray:
        others = [plain(row["rejected"]) for row in source]
        better = special.expit(bag.scores(texts(source)) - bag.scores(others))
        return np.stack([1 - better, better], axis=1)

    return judge


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _share_of_half(text: str) -> float:
    """Share of words that a hash puts into one half."""
    words = text.split()
    return sum(unit_hash("w2s rule", word) < 0.5 for word in words) / max(1, len(words))
