"""Constitutions: what is valid, what an error says, what is shipped, and what is drawn when."""

import collections
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from realdata import shared_data

from jaxrlhf.constitutional import constitution, texts
from jaxrlhf.constitutional.constitution import Comparison, Constitution, Layout, Principle, draw
from jaxrlhf.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "configs" / "constitutions"
OURS = ("default", "helpful_only", "single")

PRINCIPLES = """
name: mine
principles:
  - id: first
    critique_request: What is wrong?
    revision_request: Put it right.
  - id: second
    critique_request: What is rude?
    revision_request: Be kind.
"""


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return constitution.load(path)

    return load


def test_a_file_is_what_it_says(load):
    found = load(
        PRINCIPLES + 'comparisons:\n  - {id: kind, question: "Which is kinder?", weight: 2}'
    )
    assert [one.id for one in found.principles] == ["first", "second"]
    assert found.principles[0] == Principle(
        id="first", critique_request="What is wrong?", revision_request="Put it right."
    )
    assert found.comparisons == (Comparison(id="kind", question="Which is kinder?", weight=2.0),)
    assert found.layout == Layout()
    assert found.only(principles=1).principles == found.principles[:1]
    assert found.only() == found


def test_a_file_may_start_from_another(load, tmp_path):
    (tmp_path / "base.yaml").write_text(PRINCIPLES + "layout: {revise: ' again: {request}'}")
    found = load("base: base.yaml\nname: other\nlayout: {stops: ['.']}")
    assert found.name == "other" and len(found.principles) == 2
    assert found.layout == Layout(revise=" again: {request}", stops=(".",))


ONE = "principles:\n  - {id: a, critique_request: x, revision_request: y}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: x", "mine.yaml: a constitution needs principles or comparisons"),
        (ONE, "mine.yaml: name: a value is required"),
        (PRINCIPLES.replace("id: second", "id: first"), "mine.yaml:3: principles"),
        (PRINCIPLES.replace("id: second", "id: first"), "the id 'first' stands twice"),
        (
            PRINCIPLES.replace("revision_request: Be", "revision_reqest: Be"),
            "mine.yaml:9: principles.1.revision_reqest = Be kind.: unknown field; did you mean "
            "'revision_request'",
        ),
        (PRINCIPLES.replace("What is rude?", "''"), "mine.yaml:8: principles.1.critique_request"),
        ("name: x\n" + ONE.replace("y}", "y, weight: 0}"), "weight = 0: must be greater than 0"),
        (
            PRINCIPLES + "layout:\n  compare: '{quesion} {a} {b}'",
            "mine.yaml:11: layout.compare = '{quesion} {a} {b}': unknown field {quesion}; did you "
            "mean {question}?",
        ),
        (PRINCIPLES + "layout: {compare: '{question} {a}'}", "the template must have {b} in it"),
        (PRINCIPLES + "layout: {conclude: '{a}'}", "unknown field {a}; the fields here are none"),
        (PRINCIPLES + "layout: {critique: '{request} {'}", "a brace that is meant is written tw"),
        (PRINCIPLES + "layout: {critique: '{request:>9}'}", "with nothing after it"),
        (
            PRINCIPLES + "layout: {revise: ' again'}",
            "revise, without a direct, must have {request}",
        ),
        (PRINCIPLES + "layout: {options: [' A', ' AB']}", "one is the beginning of the other"),
        (PRINCIPLES + "layout: {options: [' A']}", "layout.options"),
        (PRINCIPLES + "layout: {critique_pattern: '('}", "not a regular expression"),
        (
            PRINCIPLES + "thought_examples: [{prompt: a, a: b, b: c, reasoning: d, better: A}]",
            "'a'",
        ),
    ],
)
def test_a_malformed_constitution_is_one_clear_error(load, text, says):
    with pytest.raises(ConfigError) as error:
        load(text)
    assert says in str(error.value)


def test_a_template_may_hold_braces_and_need_not_name_an_implied_request(load):
    layout = "layout: {critique: ' {{{request}}}', revise: ' rewrite', direct: ' {request} now'}"
    found = load(PRINCIPLES + layout)
    query = texts.critique_query(found, "q", "r", found.principles[0])
    assert query == "\n\nHuman: q\n\nAssistant: r {What is wrong?}"


# What is drawn.


def test_a_draw_depends_on_its_key_alone():
    items = [Comparison(id=str(i), question="?") for i in range(5)]
    drawn = [draw(items, 2, key=(7, 3, row)) for row in range(50)]
    assert drawn == [draw(items, 2, key=(7, 3, row)) for row in range(50)]
    assert drawn != [draw(items, 2, key=(8, 3, row)) for row in range(50)]
    assert drawn != [draw(items, 2, key=(7, 4, row)) for row in range(50)]
    assert all(len(set(one)) == 2 for one in drawn)
    assert sorted(draw(items, 5, key=(0,))) == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match="6 are to be drawn, but the constitution has 5"):
        draw(items, 6, key=(0,))


def test_draws_are_by_weight():
    """4,000 draws with weights 1, 2, 5: each share within 4 standard errors of p."""
    items = [Comparison(id=str(w), question="?", weight=w) for w in (1, 2, 5)]
    counts = collections.Counter(draw(items, key=(0, row))[0] for row in range(4000))
    for i, p in enumerate((1 / 8, 2 / 8, 5 / 8)):
        assert abs(counts[i] / 4000 - p) < 4 * np.sqrt(p * (1 - p) / 4000)


# What is shipped.


@pytest.mark.parametrize("name", OURS)
def test_what_is_shipped_loads(name):
    found = constitution.load(SHIPPED / f"{name}.yaml")
    assert found.name == name
    assert found.principles and found.comparisons and found.critique_examples


def test_the_default_one_has_what_a_default_one_needs():
    found = constitution.load(SHIPPED / "default.yaml")
    assert len(found.principles) >= 16 and len(found.comparisons) >= 12
    assert len(found.critique_examples) == 5
    kept = [one for one in found.critique_examples if one.revision == one.response]
    assert kept, "an example must show that a good answer is kept"
    wanted = {"harm", "law", "discrimination", "privacy", "manipulation", "dangerous advice"}
    assert wanted | {"honesty", "evasiveness"} <= {one.category for one in found.principles}
    requests = {one.critique_request for one in found.principles}
    assert {one.critique_request for one in found.critique_examples} <= requests


def test_ours_are_worded_by_us():
    """No six words in a row of the paper's files stand in ours."""
    folder = shared_data("constitutional_ai")
    theirs = {
        run
        for path in folder.glob("*.json")
        for text in strings(json.loads(path.read_text()))
        for run in runs(text)
    }
    assert len(theirs) > 1000
    for name in OURS:
        found = constitution.load(SHIPPED / f"{name}.yaml").model_dump()
        del found["layout"]
        shared = {run for text in strings(found) for run in runs(text)} & theirs
        assert not shared


def strings(value):
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return list(itertools.chain(*map(strings, value))) if isinstance(value, list | tuple) else []


def runs(text):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 6]) for i in range(len(words) - 5)}


# The paper's files.


def test_the_published_files_load():
    found = constitution.load(shared_data("constitutional_ai"))
    counts = (
        len(found.principles),
        len(found.comparisons),
        len(found.critique_examples),
        len(found.comparison_examples),
        len(found.thought_examples),
    )
    assert counts == (16, 16, 5, 5, 6)
    assert found.principles[13].id == "harmful13"
    assert "misogynistic" in found.principles[13].critique_request
    # Which option each of the six chains of thought ends with, read off the file.
    assert "".join(one.better for one in found.thought_examples) == "bbabab"
    assert found.thought_examples[0].prompt.count("\n\nHuman: ") == 1


def test_the_published_examples_are_shown_to_the_letter():
    """Filled into the default layout they are the file's texts, but for a "Human:" at their end."""
    folder = shared_data("constitutional_ai")
    found = constitution.load(folder)
    theirs = json.loads((folder / "CritiqueRevisionFewShotPrompts.json").read_text())
    shown = "".join(text.removesuffix("\n\nHuman:") for text in theirs)
    query = texts.critique_query(found, "q", "r", found.principles[0])
    instruction = json.loads((folder / "CritiqueRevisionInstructions.json").read_text())
    asked = instruction["harmful0"]["prompt"][0]
    assert query == shown + "\n\nHuman: q\n\nAssistant: r" + asked
    revising = texts.revision_query(found, query, "bad", found.principles[0])
    assert revising == query + " bad" + instruction["harmful0"]["edit_request"]


def test_one_published_file_loads_by_itself():
    folder = shared_data("constitutional_ai")
    found = constitution.load(folder / "RLMadisonInstructions.json")
    assert len(found.comparisons) == 16 and not found.principles


ENTRY = {"prompt": ["\n\nCritiqueRequest: a\n\nCritique:"], "edit_request": "x"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "CritiqueRevisionInstruction.json",
            "{}",
            "did you mean CritiqueRevisionInstructions.json",
        ),
        ("CritiqueRevisionInstructions.json", "{", "not JSON"),
        ("CritiqueRevisionInstructions.json", "3", "must hold a list or an object"),
        ("CritiqueRevisionInstructions.json", '{"a": {}}', "entry 'a' is not as published: {}"),
        ("CritiqueRevisionInstructions.json", json.dumps({"a": ENTRY}), "'x' is not between"),
        ("CritiqueRevisionFewShotPrompts.json", '["\\n\\nHuman: a"]', "entry '0'"),
        ("CritiqueRevisionFewShotPrompts.json", "[]", "needs principles or comparisons"),
        ("RLMadisonInstructions.json", '[" "]', "question: String should have at least 1"),
        ("RLMadisonPrecogFewShotPrompts.json", '[{"prompt": "x"}]', "two options, reasoning"),
    ],
)
def test_a_file_that_is_not_as_published_is_named(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError) as error:
        constitution.load(tmp_path / name)
    assert name.removesuffix("s.json")[:20] in str(error.value) and says in str(error.value)


def test_a_folder_without_any_of_the_files_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds none of CritiqueRevisionInstructions"):
        constitution.load(tmp_path)


def test_a_constitution_is_frozen():
    found = Constitution.load(SHIPPED / "single.yaml")
    with pytest.raises(ValueError, match="frozen"):
        found.name = "x"
