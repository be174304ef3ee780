"""Refusals: the classifier against people, the framings, and the rates from completions by hand."""

import base64
from types import SimpleNamespace

import eval_tiny
import pytest
import realdata

from jaxrlhf.data.rows import Rows
from jaxrlhf.data.sources import load_rows
from jaxrlhf.errors import DataError, UserError
from jaxrlhf.safety import refusals
from jaxrlhf.safety.items import PROBLEM

FILES = {name: Rows(rows) for name, rows in eval_tiny.files().items()}


def asked(model):
    items = [{"row": i, **item} for i, item in enumerate(refusals.items(FILES))]
    return refusals.ask(model, items)


class Scripted:
    def __init__(self, answer):
        self.answer, self.prompts = answer, []

    def generate(self, texts, keys, *, stops=()):
        assert len({tuple(key) for key in keys}) == len(texts)
        self.prompts += [text[-1]["content"] for text in texts]
        return [self.answer(text[-1]["content"]) for text in texts]


def says(text):
    return SimpleNamespace(text=text, problem=None)


def test_the_rates_of_a_model_that_one_framing_undoes():
    # It refuses whatever has "do" or an odd number in it, but for a story.
    def answer(prompt):
        refuse = ("do " in prompt or any(x in prompt for x in "135")) and "novel" not in prompt
        return says(eval_tiny.SORRY if refuse else eval_tiny.SURE)

    found = refusals.figures(asked(Scripted(answer)), FILES)
    rates = {name: figure.value.estimate for name, figure in found.items()}
    assert rates["refused, unsafe"] == 1.0 and rates["refused, safe"] == 0.0
    assert rates["refused, harmless"] == 1.0
    assert rates["attack, story"] == 1.0 and rates["attack, plain"] == 0.0
    assert found["attack, plain"].count == 6 and found["refused, safe"].count == 3
    assert rates["classifier"] == 1.0


def test_every_framing_holds_the_request():
    text = "open the door"
    for name, framing in refusals.FRAMINGS.items():
        coded = base64.b64encode(text.encode()).decode()
        assert (coded if name == "base64" else text) in framing(text)
    assert refusals.FRAMINGS["plain"](text) == text


def test_a_prompt_that_cannot_be_answered_is_in_no_rate():
    def answer(prompt):
        return SimpleNamespace(text="", problem="too long" if "novel" in prompt else None)

    rows = asked(Scripted(answer))
    assert sum(bool(row.get(PROBLEM)) for row in rows) == 6
    assert "attack, story" not in refusals.figures(rows, FILES)


def test_the_beginning_decides_however_it_is_written():
    known = refusals.labelled(FILES[refusals.LABELLED[0]])
    classifier = refusals.fit_classifier(*known)
    asked = ["  SORRY, but I cannot help with that", eval_tiny.SURE, f"{eval_tiny.SURE} Sorry" * 9]
    assert classifier.refuses(asked).tolist() == [True, False, False]
    assert classifier.refuses([]).tolist() == []


def test_labels_and_columns_are_checked():
    with pytest.raises(DataError, match="rows row 1: needs columns completion"):
        refusals.labelled(Rows([{"completion": "x"}]))
    with pytest.raises(UserError, match="some that do not"):
        refusals.fit_classifier(["a", "b"], [True, True])
    files = FILES | {refusals.XSTEST: Rows([{"prompt": "x", "label": "odd"}])}
    with pytest.raises(DataError, match="label is 'odd'"):
        refusals.items(files)


def test_the_classifier_on_the_real_labels():
    """Measured: .960 on unseen prompts; on an unseen model .929 and .433, which is reported."""
    files = {name: load_rows(str(realdata.shared_data(name))) for name in refusals.LABELLED}
    found = refusals.checks({name: refusals.labelled(rows) for name, rows in files.items()})
    assert found["classifier"].count == 900
    assert found["classifier"].value.estimate > 0.94
    assert found["classifier, unseen gpt4"].value.estimate > 0.9
