"""What an arm makes of AI labels: known probabilities in, known soft labels out."""

import json
from types import SimpleNamespace

import pytest

from jaxrlhf.errors import ConfigError
from jaxrlhf.recipes.cai_arms import ArmConfig
from jaxrlhf.recipes.cai_data import write_ai_pairs


def label(probability, a="a b", b="c d", discarded=None):
    return {
        "prompt": "p",
        "responses": [a, b],
        "probability": probability,
        "discarded": discarded,
        "judgements": [],
        "entropy": 0.5,
    }


def arm(**settings) -> ArmConfig:
    return ArmConfig.model_validate({"name": "x"} | settings)


@pytest.fixture
def written(tmp_path):
    """The pairs that an arm learns from, of labels with these probabilities."""

    def written(probabilities, **settings):
        made = arm(**settings)
        labels = tmp_path / (f"label-{made.judge}" if made.judge else "label") / "labels.jsonl"
        labels.parent.mkdir(exist_ok=True)
        rows = [label(p) for p in probabilities] + [label(None, discarded="endpoint: nonsense")]
        labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_ai_pairs(SimpleNamespace(output_dir=str(tmp_path)), made)
        with open(tmp_path / "arms" / "x" / "ai_pairs.jsonl") as file:
            return [json.loads(line) for line in file]

    return written


def first_is_better(row) -> float:
    """P(the first response is better), whichever way round the row has the pair."""
    return row["label"] if row["chosen"].strip() == "a b" else 1 - row["label"]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, [0.8, 0.3]),
        ({"hard": True}, [1.0, 0.0]),
        # Odds of 4 and 3/7, squared: 16/17 and 9/58.
        ({"sharpen": 2}, [16 / 17, 9 / 58]),
        ({"clamp": (0.4, 0.6)}, [0.6, 0.4]),
        ({"clamp": (0.2, 0.8)}, [0.8, 0.3]),
        ({"sharpen": 2, "clamp": (0.1, 0.9)}, [0.9, 9 / 58]),
        ({"control": "reversed"}, [0.2, 0.7]),
        ({"control": "half"}, [0.5, 0.5]),
        ({"control": "half", "sharpen": 9}, [0.5, 0.5]),
    ],
)
def test_labels_of_an_arm(written, settings, wanted):
    rows = written([0.8, 0.3], **settings)
    assert [first_is_better(row) for row in rows] == pytest.approx(wanted)
    assert {row["weight"] for row in rows} == {1.0}


def test_weight_of_ai_labels(written):
    assert [row["weight"] for row in written([0.8, 0.3], ai_label_weight=0.25)] == [0.25, 0.25]


def test_labels_of_another_judge(written, tmp_path):
    written([0.8, 0.3])
    theirs = [first_is_better(row) for row in written([0.9, 0.1], judge="j")]
    assert theirs == pytest.approx([0.9, 0.1])
    (tmp_path / "label-j" / "labels.jsonl").unlink()
    ours = [first_is_better(row) for row in written([0.7, 0.2])]
    assert ours == pytest.approx([0.7, 0.2])


def test_certain_labels_can_be_sharpened(written):
    assert [first_is_better(row) for row in written([1.0, 0.0], sharpen=3)] == pytest.approx([1, 0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"harm_labels": "none", "helpful_pairs": False}, "nothing would be learnt"),
        ({"name": "Not a folder"}, "name"),
        ({"harm_labels": "poeple"}, "people"),
        ({"sharpen": 0}, "sharpen"),
        ({"clamp": "[0.4, 0.7]"}, "x, 1 - x"),
        ({"clamp": "[0.6, 0.4]"}, "x, 1 - x"),
        ({"kl_coef": 0, "kl_target": 1}, "kl_coef = 0 stays 0"),
    ],
)
def test_bad_arms(settings, says, tmp_path):
    changes = [f"{name}={value}" for name, value in {"name": "x", **settings}.items()]
    with pytest.raises(ConfigError, match=says):
        ArmConfig.load(None, changes)
