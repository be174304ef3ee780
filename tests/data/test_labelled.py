"""Labelled texts: what a label may be, and what is said of one that is none."""

import json

import numpy as np
import pytest
import realdata

from jaxrlhf.data import arrays, chat, labelled, sources
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.data.rows import Rows
from jaxrlhf.errors import DataError


def rows(*labels, text="a soup"):
    return Rows([{"text": text, "label": label} for label in labels], name="file")


def probs(*labels, classes=2):
    return [item.probs for item in labelled.labelled(rows(*labels), classes=classes)]


def test_what_a_label_may_be():
    assert probs(0, 1, True) == [(1, 0), (0, 1), (0, 1)]
    assert probs(0.25, "0.25", "1") == [(0.75, 0.25), (0.75, 0.25), (0, 1)]
    assert probs([0.75, 0.25], [0, 1]) == [(0.75, 0.25), (0, 1)]
    assert probs(0, 2, [0.25, 0.5, 0.25], classes=3) == [
        (1, 0, 0),
        (0, 0, 1),
        (0.25, 0.5, 0.25),
    ]
    # rounded for a file: .333 three times is .999, and is made to sum to 1
    assert sum(probs([0.333, 0.333, 0.333], 1, classes=3)[0]) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("label", "classes", "says"),
    [
        (1.2, 2, r"column 'label' must be from 0 to 1: 1\.2"),
        (-0.1, 2, r"must be from 0 to 1: -0\.1"),
        (float("nan"), 2, "must be from 0 to 1: nan"),
        (3, 3, "must be a class from 0 to 2: 3"),
        (0.5, 3, r"must be a class from 0 to 2: 0\.5"),
        ("good", 2, "is no number and no list: 'good'"),
        (None, 2, "the label, is missing"),
        ([0.5], 2, "must have 2 numbers"),
        ([0.5, "x"], 2, "must have 2 numbers"),
        ([0.6, 0.6], 2, "must be probabilities that sum to 1"),
        ([-0.2, 1.2], 2, "must be probabilities that sum to 1"),
    ],
)
def test_what_a_label_may_not_be(label, classes, says):
    with pytest.raises(DataError, match=f"file row 2: .*{says}"):
        labelled.labelled(rows(0, label, 1), classes=classes)
    kept = labelled.labelled(rows(0, label, 1), classes=classes, on_bad_row="skip")
    assert kept.index == [0, 2] and kept.skipped.total == 1
    table = labelled.probabilities(kept)
    assert np.isnan(table[1]).all() and not np.isnan(table[[0, 2]]).any()


def test_a_row_without_text_names_file_line_and_column(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [{"txt": "a", "y": 0}, {"txt": "  ", "y": 1}, {"y": 1}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = {"text": "txt", "label": "y"}
    with pytest.raises(DataError, match=r"rows\.jsonl:2: empty text: in column 'txt'"):
        labelled.labelled(sources.load_rows(path), columns=names)
    kept = labelled.labelled(sources.load_rows(path), columns=names, on_bad_row="skip")
    assert [item.text for item in kept] == ["a"] and kept.skipped.total == 2


def test_one_class_only_is_refused_where_labels_are_certain():
    with pytest.raises(DataError, match="file: all 3 rows have class 1 in column 'label'"):
        labelled.labelled(rows(1, 1, 1))
    assert len(probs(0.7, 0.7)) == 2  # a teacher may be unsure alike about all


def test_unknown_columns_are_named_with_the_nearest():
    with pytest.raises(DataError, match=r"no column 'texts'; did you mean 'text'\?"):
        labelled.labelled(rows(0, 1), columns={"text": "texts"})
    with pytest.raises(DataError, match="no column 'prompt': must be one of text, label"):
        labelled.labelled(rows(0, 1), columns={"prompt": "text"})


def test_arrays_end_with_the_last_word_and_keep_labels_beside_their_texts():
    words = tokenizers.word_tokenizer(["a", "soup", "pie"])
    found = labelled.labelled(
        Rows(
            [
                {"text": "a soup", "label": 0.25},
                {"text": "a a a a pie", "label": 1},
                {"text": "pie", "label": 0},
            ]
        )
    )
    encoded = chat.encode_rows(words, labelled.texts(found))
    made = arrays.labelled(encoded, labelled.probabilities(found), length=3, pad_id=0)
    ids = {word: words.convert_tokens_to_ids(word) for word in ("a", "soup", "pie")}
    assert made.columns["tokens"].tolist() == [[ids["a"], ids["soup"], 0], [ids["pie"], 0, 0]]
    assert made.columns["mask"].sum(axis=1).tolist() == [2, 1]
    np.testing.assert_array_equal(made.columns["label"], [[0.75, 0.25], [1, 0]])
    assert made.columns["row"].tolist() == [0, 2] and made.skipped.total == 1
    cut = arrays.labelled(
        encoded, labelled.probabilities(found), length=3, pad_id=0, over_long="truncate_left"
    )
    assert cut.columns["tokens"][1].tolist() == [ids["a"], ids["a"], ids["pie"]]


def test_gpt2s_soft_labels_of_sciq():
    folder = realdata.shared_data("sciq_weak_labels")
    found = sources.load_rows(folder / "train.jsonl.gz")
    weak, truth = (
        labelled.probabilities(labelled.labelled(found, columns={"text": "txt", "label": name}))
        for name in ("p1_gpt2", "gt_label")
    )
    assert weak.shape == truth.shape == (4945, 2)
    # its README says .6589 over train and test together
    assert (weak.argmax(1) == truth.argmax(1)).mean() == pytest.approx(0.6589, abs=0.01)
