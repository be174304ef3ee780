"""What an evaluation is made of: items to ask about, rows of answers, figures of the rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxrlhf.data.columns import Content
from jaxrlhf.data.dialogue import Message
from jaxrlhf.data.rows import Rows
from jaxrlhf.evals.statistics import Interval, bootstrap_mean, paired_bootstrap, wilson

Row = dict[str, Any]
"""An item and what the model said; `problem` says why it said nothing."""

PROBLEM = "problem"
UNREADABLE = "longer than the model reads, or cannot be tokenised"


class Model(Protocol):
    """What an evaluation asks of a model (`constitutional.sampler.Sampler` is one)."""

    def answer_log_probs(
        self, prompts: Sequence[Content], answers: Sequence[Content]
    ) -> np.ndarray:
        """Log-probs `[N]` in nats of each answer after its prompt; NaN where unreadable."""
        ...

    def generate(
        self, texts: Sequence[Content], keys: Sequence[Sequence[int]], *, stops: Sequence[str] = ()
    ) -> list[Any]:
        """An answer to every prompt, each with `text` and `problem`."""
        ...


class Figure(NamedTuple):
    """A measured number, with its 95 % interval."""

    value: Interval
    count: int  # items it is measured on
    chance: float | None = None  # what a model that does not understand the question scores
    says: str = ""  # what the number is


Figures = dict[str, Figure]


class Evaluation(NamedTuple):
    """One evaluation. `files` lie in the folder of the public data."""

    name: str
    files: tuple[str, ...]
    items: Callable[[Mapping[str, Rows]], list[Row]]
    ask: Callable[[Model, Sequence[Row]], list[Row]]
    figures: Callable[[Sequence[Row], Mapping[str, Rows]], Figures]
    read: tuple[str, ...] = ()  # files that only the figures need


def user(*turns: str) -> list[Message]:
    """A conversation that the user begins and that waits for an answer."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]


def log_probs(
    model: Model, asked: Sequence[tuple[Sequence[Message], Sequence[str]]]
) -> list[list[float] | None]:
    """Log-probs of the answers to each prompt; None where one of them cannot be read."""
    flat = [(prompt, answer) for prompt, answers in asked for answer in answers]
    found = model.answer_log_probs(
        [list(prompt) for prompt, _ in flat],
        [[{"role": "assistant", "content": answer}] for _, answer in flat],
    )
    parts = np.split(found, np.cumsum([len(answers) for _, answers in asked])[:-1])
    return [None if np.isnan(part).any() else part.tolist() for part in parts]


def probabilities(log_probs: Sequence[float]) -> np.ndarray:
    """Of the answers, given that it is one of them."""
    shifted = np.exp(np.asarray(log_probs, np.float64) - np.max(log_probs))
    return shifted / shifted.sum()


def answered(rows: Sequence[Row]) -> list[Row]:
    """The rows to which there is an answer."""
    return [row for row in rows if not row.get(PROBLEM)]


def mean(
    values: Sequence[float],
    *,
    clusters: Sequence[Any] | None = None,
    chance: float | None = None,
    says: str = "",
) -> Figures:
    """The figure of a mean, under the name ""; none where there are fewer than two clusters."""
    if len(set(clusters) if clusters else values) < 2:
        return {}
    return {"": Figure(bootstrap_mean(values, clusters=clusters), len(values), chance, says)}


def share(
    happened: Sequence[bool] | np.ndarray, *, chance: float | None = None, says: str = ""
) -> Figures:
    """The figure of a share, under the name ""; none where there is nothing to count."""
    if not len(happened):
        return {}
    return {"": Figure(wilson(int(np.sum(happened)), len(happened)), len(happened), chance, says)}


def difference(a: Sequence[float], b: Sequence[float], *, says: str) -> Figures:
    """The figure of a mean difference of the same items, under the name ""."""
    if len(a) < 2:
        return {}
    return {"": Figure(paired_bootstrap(a, b).difference, len(a), 0.0, says)}


def named(name: str, figures: Figures) -> Figures:
    """The same under another name."""
    return {f"{name}{more}": figure for more, figure in figures.items()}
