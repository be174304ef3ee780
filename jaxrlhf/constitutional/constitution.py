"""A constitution: principles, comparison questions, the layout of what a model reads, examples.

All of it is data (a YAML file), validated here: an error names file, line and field. The published
files of the Constitutional AI paper load too (`originals.py`). Which principle is drawn when is
decided here as well; no model, no text assembled (`texts.py`).

Source: Bai et al. 2022 (arXiv 2212.08073), sections 3.1 (principles) and 4.1 (comparisons), which
are two different sets.
"""

import re
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

import numpy as np
import pydantic
from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.errors import ConfigError, nearest, one_of

# Where those lie that come with the package: in a wheel beside this file, in a checkout there.
SHIPPED = (Path(__file__).parent / "shipped", Path(__file__).parents[2] / "configs/constitutions")

# What a template's braces may name, and of those what it must name.
TEMPLATES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "respond": (("prompt",), ("prompt",)),
    "critique": (("request",), ("request",)),
    "revise": (("request",), ()),
    "direct": (("request",), ("request",)),
    "compare": (("prompt", "question", "a", "b"), ("question", "a", "b")),
    "think": (("prompt", "question", "a", "b"), ("question", "a", "b")),
    "conclude": ((), ()),
}

Text = Annotated[str, Field(min_length=1)]
Weight = Annotated[float, Field(gt=0)]


class Principle(Config):
    """What a response is criticised and revised for."""

    id: Text = Field(description="name in rows and reports")
    category: str = Field(default="", description="groups principles in reports")
    critique_request: Text = Field(description="asks for the critique")
    revision_request: Text = Field(description="asks for the revision")
    weight: Weight = Field(default=1.0, description="how often it is drawn, against the others")


class Comparison(Config):
    """A question that decides between two responses."""

    id: Text = Field(description="name in rows and reports")
    category: str = Field(default="", description="groups questions in reports")
    question: Text = Field(description="which of the two?")
    weight: Weight = Field(default=1.0, description="how often it is drawn, against the others")


class CritiqueExample(Config):
    """A worked critique and revision, shown before the real one to hold the format."""

    prompt: Text = Field(description="what was asked")
    response: Text = Field(description="the answer that is criticised")
    critique_request: Text = Field(description="as of a principle")
    critique: Text = Field(description="what is wrong with it, or that nothing is")
    revision_request: Text = Field(description="as of a principle")
    revision: Text = Field(description="the better answer; the same one where nothing is wrong")


class ComparisonExample(Config):
    """A pair with the right choice; which of the two stands first is drawn anew each time."""

    prompt: Text = Field(description="what was asked")
    better: Text = Field(description="the answer to choose")
    worse: Text = Field(description="the other one")


class ThoughtExample(Config):
    """A pair with the reasoning that leads to a choice; it names options, so their order is fixed.

    Its question is drawn anew each time, as that of a `ComparisonExample` is.
    """

    prompt: Text = Field(description="what was asked")
    a: Text = Field(description="the first answer")
    b: Text = Field(description="the second answer")
    reasoning: Text = Field(description="step by step")
    better: Literal["a", "b"] = Field(description="which one it ends with")


class Layout(Config):
    """What a model reads: templates that follow each other, and what counts as an answer to them.

    A chain is `respond` + response + `critique` + critique + `revise` + revision (`direct` in place
    of the two where there is no critique); a judgement is `compare` + option, or `think` +
    reasoning + `conclude` + option. One space stands before each text that a model wrote. Braces
    name what is filled in; a brace that is meant is written twice.
    """

    respond: str = Field(
        default="\n\nHuman: {prompt}\n\nAssistant:", description="asks for a response: {prompt}"
    )
    critique: str = Field(
        default="\n\nCritiqueRequest: {request}\n\nCritique:",
        description="asks for a critique: {request}",
    )
    revise: str = Field(
        default="\n\nRevisionRequest: {request}\n\nRevision:",
        description="asks for a revision after a critique: {request}",
    )
    direct: str | None = Field(
        default=None, description="asks for a revision without a critique; null: as revise"
    )
    compare: str = Field(
        default=(
            "\n\nHere is a conversation, and two replies the assistant might give next."
            "\n\nHuman: {prompt}\n\n{question}\n (A) {a}\n (B) {b}\n\nThe answer is:"
        ),
        description="asks for one of two: {prompt} {question} {a} {b}",
    )
    options: tuple[Text, Text] = Field(
        default=(" (A)", " (B)"), description="the two answers to it, in order"
    )
    think: str = Field(
        default=(
            "\n\nHuman: Here is a conversation, and two replies the assistant might give next."
            "\n\nHuman: {prompt}\n\n{question}\n (A) {a}\n (B) {b}"
            "\n\nAssistant: Let's think step by step:"
        ),
        description="asks for reasoning about the two: {prompt} {question} {a} {b}",
    )
    conclude: str = Field(
        default="\n\nHuman: So which is it?\n\nAssistant: The answer is:",
        description="asks for one of the options after it",
    )
    stops: tuple[Text, ...] = Field(
        default=("\n\nHuman:", "\n\nAssistant:", "\n\nCritique", "\n\nRevision"),
        description="what ends a text that a model writes, beside its end token",
    )
    response_pattern: str | None = Field(
        default=None, description="regular expression that a whole response must match"
    )
    critique_pattern: str | None = Field(default=None, description="the same, of a critique")
    revision_pattern: str | None = Field(default=None, description="the same, of a revision")

    @pydantic.field_validator(*TEMPLATES)
    @classmethod
    def _names_its_fields(cls, value: str | None, info: pydantic.ValidationInfo) -> str | None:
        if value is not None:
            check_template(value, *TEMPLATES[str(info.field_name)])
        return value

    @pydantic.field_validator("response_pattern", "critique_pattern", "revision_pattern")
    @classmethod
    def _is_a_pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    @pydantic.model_validator(mode="after")
    def _options_differ(self) -> Self:
        a, b = (option.strip() for option in self.options)
        if a.startswith(b) or b.startswith(a):
            raise ValueError(f"options {list(self.options)}: one is the beginning of the other")
        if self.direct is None:
            check_template(self.revise, *TEMPLATES["direct"], name="revise, without a direct,")
        return self


class Constitution(Config):
    """Principles for revising, questions for comparing, and how a model is asked both."""

    name: Text = Field(description="of this constitution")
    principles: tuple[Principle, ...] = Field(default=(), description="for critique and revision")
    comparisons: tuple[Comparison, ...] = Field(default=(), description="for preference labels")
    layout: Layout = Field(default_factory=Layout, description="what a model reads")
    critique_examples: tuple[CritiqueExample, ...] = Field(
        default=(), description="stand before a critique or a revision"
    )
    comparison_examples: tuple[ComparisonExample, ...] = Field(
        default=(), description="stand before a comparison"
    )
    thought_examples: tuple[ThoughtExample, ...] = Field(
        default=(), description="stand before a comparison with reasoning"
    )

    @pydantic.field_validator("principles", "comparisons")
    @classmethod
    def _ids_differ(cls, items: Any) -> Any:
        ids = [item.id for item in items]
        twice = sorted({id for id in ids if ids.count(id) > 1})
        if twice:
            raise ValueError(f"the id {twice[0]!r} stands twice")
        return items

    @pydantic.model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.principles or self.comparisons):
            raise ValueError("a constitution needs principles or comparisons")
        return self

    def only(self, *, principles: int | None = None, comparisons: int | None = None) -> Self:
        """The first so many of either (for ablations; None: all)."""
        kept = {
            "principles": self.principles[:principles],
            "comparisons": self.comparisons[:comparisons],
        }
        return self.model_copy(update=kept)


def load(path: str | Path) -> Constitution:
    """A constitution from our YAML, or from the published JSON files (a folder, or one of them).

    Args:
      path: of the file or folder, or the name of one that comes with the package ("default").
    Raises:
      ConfigError: naming the file, the line, the field and the nearest valid one.
    """
    from jaxrlhf.constitutional import originals

    where = Path(path)
    if where.is_dir() or where.suffix == ".json":
        return originals.load(where)
    if not (where.suffix or where.exists()):
        where = shipped()[one_of("constitution", str(path), shipped())]
    return Constitution.load(where)


def shipped() -> dict[str, Path]:
    """The constitutions that come with the package, by name."""
    files = [path for folder in SHIPPED for path in folder.glob("*.yaml")]
    return {path.stem: path for path in sorted(files)}


class Weighted(Protocol):
    """What is drawn: a principle or a comparison."""

    @property
    def id(self) -> str: ...
    @property
    def weight(self) -> float: ...


def draw(items: Sequence[Weighted], count: int = 1, *, key: Iterable[int]) -> list[int]:
    """Positions of `count` different `items`, drawn by weight.

    Args:
      key: non-negative numbers, say (seed, row, round): the draw depends on them alone, not on the
        batch or on what was drawn before.
    Raises:
      ConfigError: fewer items than `count`.
    """
    if count > len(items):
        raise ConfigError(f"{count} are to be drawn, but the constitution has {len(items)}")
    weights = np.array([item.weight for item in items])
    rng = np.random.default_rng([int(part) for part in key])
    return rng.choice(len(items), size=count, replace=False, p=weights / weights.sum()).tolist()


def check_template(
    template: str, known: Sequence[str], needed: Sequence[str], *, name: str = "the template"
) -> None:
    """Raise ValueError where `template` names an unknown field, or lacks one that is needed."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error} (a brace that is meant is written twice)") from None
    names = [field for _, field, _, _ in parts if field is not None]
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise ValueError("a field is a name in braces, with nothing after it")
    for field in names:
        if field not in known:
            guess = nearest(field, known)
            known_ones = ", ".join(f"{{{one}}}" for one in known) or "none"
            hint = f"did you mean {{{guess}}}?" if guess else f"the fields here are {known_ones}"
            raise ValueError(f"unknown field {{{field}}}; {hint}")
    for field in needed:
        if field not in names:
            raise ValueError(f"{name} must have {{{field}}} in it")
