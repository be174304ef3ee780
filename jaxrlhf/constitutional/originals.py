r"""The published files of the Constitutional AI paper, read as a constitution.

Of `anthropics/ConstitutionalHarmlessnessPaper`: `CritiqueRevisionInstructions.json` (principles),
`CritiqueRevisionFewShotPrompts.json` (their examples), `RLMadisonInstructions.json` (comparison
questions), `RLMadisonFewShotPrompts.json` (labelled pairs), `RLMadisonPrecogFewShotPrompts.json`
(pairs with reasoning). A folder brings whichever of them it holds; a file brings itself alone. The
markers around their texts (`\n\nCritiqueRequest: ...`) are the default layout's; filled in again,
the examples are theirs to the letter, but for the "Human:" that ends some of them.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic

from jaxrlhf.constitutional.constitution import (
    Comparison,
    ComparisonExample,
    Constitution,
    CritiqueExample,
    Principle,
    ThoughtExample,
)
from jaxrlhf.data import dialogue
from jaxrlhf.data.rows import BadRow, shorten
from jaxrlhf.errors import ConfigError, nearest


def load(path: Path) -> Constitution:
    """The constitution of a folder of these files, or of one of them.

    Raises:
      ConfigError: none of the files, not JSON, or an entry that is not as it should be (named).
    """
    if path.is_dir():
        found = [path / name for name in READERS if (path / name).is_file()]
        if not found:
            raise ConfigError(f"{path}: holds none of {', '.join(READERS)}")
    elif path.name in READERS:
        found = [path]
    else:
        guess = nearest(path.name, READERS)
        hint = f"did you mean {guess}?" if guess else f"known are {', '.join(READERS)}"
        raise ConfigError(f"{path}: not a file of the paper's; {hint}")
    fields: dict[str, Any] = {"name": path.stem}
    for file in found:
        name, reader = READERS[file.name]
        fields[name] = [_read(reader, file, key, entry) for key, entry in _entries(file)]
    try:
        return Constitution.model_validate(fields)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{path}: {_first(error)}") from None


def _entries(path: Path) -> list[tuple[str, Any]]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list):
        return [(str(number), entry) for number, entry in enumerate(value)]
    raise ConfigError(f"{path}: must hold a list or an object, not {shorten(value)}")


def _read(reader: Callable[[str, Any], Any], path: Path, key: str, entry: Any) -> Any:
    try:
        return reader(key, entry)
    except pydantic.ValidationError as error:
        reason = _first(error)
    except (BadRow, ValueError) as error:
        reason = str(error)
    except (KeyError, IndexError, TypeError, AttributeError):
        reason = shorten(entry)
    raise ConfigError(f"{path}: entry {key!r} is not as published: {reason}")


def _first(error: pydantic.ValidationError) -> str:
    """The first thing that is wrong, in words."""
    item = error.errors(include_url=False)[0]
    return ": ".join([*map(str, item["loc"]), item["msg"].removeprefix("Value error, ")])


def _principle(key: str, entry: Any) -> Principle:
    asked = _between(entry["prompt"][0], "\n\nCritiqueRequest: ", "\n\nCritique:")
    revised = _between(entry["edit_request"], "\n\nRevisionRequest: ", "\n\nRevision:")
    return Principle(id=key, critique_request=asked, revision_request=revised)


def _critique_example(key: str, entry: Any) -> CritiqueExample:
    marks = ("\n\nCritiqueRequest: ", "\n\nCritique: ", "\n\nRevisionRequest: ", "\n\nRevision: ")
    parts = re.split("|".join(map(re.escape, marks)), entry.removesuffix(dialogue.HUMAN))
    if len(parts) != 5:
        raise ValueError(f"it lacks one of {', '.join(mark.strip() for mark in marks)}")
    *turns, answer = dialogue.parse(parts[0])
    return CritiqueExample(
        prompt=dialogue.render(turns).removeprefix(dialogue.HUMAN + " "),
        response=answer["content"],
        critique_request=parts[1],
        critique=parts[2],
        revision_request=parts[3],
        revision=parts[4],
    )


def _comparison(key: str, entry: Any) -> Comparison:
    return Comparison(id=f"comparison{key}", question=entry.strip())


def _comparison_example(key: str, entry: Any) -> ComparisonExample:
    return ComparisonExample(
        prompt=_between(entry["prompt"], dialogue.HUMAN + " ", dialogue.ASSISTANT),
        better=entry["corrects"][0].strip(),
        worse=entry["incorrects"][0].strip(),
    )


_THOUGHT = re.compile(
    r"\s*Human: Consider the following conversation.*?:\n\nH: (?P<prompt>.*)\n\n\{\}\n"
    r" \(A\) \[\[\[(?P<a>.*)\]\]\]\n \(B\) \[\[\[(?P<b>.*)\]\]\]"
    r"\n\nAssistant: Let's think step by step:\s*(?P<reasoning>.*)"
    r"\n\nHuman:\s*So the answer is: \((?P<better>[AB])\)\s*",
    re.DOTALL,
)


def _thought_example(key: str, entry: Any) -> ThoughtExample:
    found = _THOUGHT.fullmatch(entry["prompt"])
    if not found:
        raise ValueError("it is not two options, reasoning and an answer")
    parts = found.groupdict()
    turns = re.sub(r"\n\n(A|H):\s+", lambda turn: _TURNS[turn[1]], parts["prompt"])
    return ThoughtExample.model_validate(
        {**parts, "prompt": turns, "better": parts["better"].lower()}
    )


_TURNS = {"H": dialogue.HUMAN + " ", "A": dialogue.ASSISTANT + " "}


def _between(text: str, before: str, after: str) -> str:
    if not (text.startswith(before) and text.endswith(after)):
        raise ValueError(f"{shorten(text)} is not between {before.strip()!r} and {after.strip()!r}")
    return text[len(before) : len(text) - len(after)].strip()


READERS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "CritiqueRevisionInstructions.json": ("principles", _principle),
    "CritiqueRevisionFewShotPrompts.json": ("critique_examples", _critique_example),
    "RLMadisonInstructions.json": ("comparisons", _comparison),
    "RLMadisonFewShotPrompts.json": ("comparison_examples", _comparison_example),
    "RLMadisonPrecogFewShotPrompts.json": ("thought_examples", _thought_example),
}
