"""Pairs and verdicts survive the way into other tools' files and back; theirs are read too."""

import json
from pathlib import Path

import pytest
from labels import pair

from jaxrlhf.data import preferences
from jaxrlhf.errors import DataError
from jaxrlhf.labelling import formats, trl
from jaxrlhf.labelling.records import Labelled, Pair, Verdict
from jaxrlhf.labelling.store import Store
from jaxrlhf.recipes.convert_labels import write_file

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": 'Hi\n"<b>é🙂'}]
PAIRS = [
    pair(0, model_a="m1", model_b="m2", round=2),
    Pair(
        "chat",
        CHAT,
        [{"role": "assistant", "content": "x"}],
        [{"role": "assistant", "content": "y"}],
    ),
    pair(1),
    pair(2),
]
TIME = "2026-01-02T03:04:05.678+00:00"
VERDICTS = [
    Verdict(PAIRS[0].pair_id, "ann", 4, 3, True, 'be"cause\nso', "b", 1.25, TIME),
    Verdict(PAIRS[0].pair_id, "bob", -1, None, False, "", "a"),
    Verdict("chat", "ann", -2, 1, False, "", "a", 0.0, TIME),
    Verdict("chat", "bob", "tie", None, False, "", "b"),
    Verdict(PAIRS[2].pair_id, "ann", "both_bad", 2, True, "ill", "a", 3.0, TIME),
]
LABELLED = Labelled(PAIRS, VERDICTS)


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize("name", ["rows", "label-studio", "argilla"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".jsonl.gz"])
def test_everything_survives_the_way_there_and_back(tmp_path, name, suffix):
    path = tmp_path / f"labels{suffix}"
    write_file(path, formats.FORMATS[name].write(LABELLED))
    pairs, verdicts = formats.read([str(path)])
    key = lambda one: (one.pair_id, getattr(one, "annotator", ""))  # noqa: E731
    assert sorted(verdicts, key=key) == sorted(VERDICTS, key=key)
    # A row of ours is a verdict, and of the last pair there is none.
    wanted = PAIRS[:3] if name == "rows" else PAIRS
    assert sorted(pairs, key=key) == sorted(wanted, key=key)


@pytest.mark.parametrize("name", ["rows", "label-studio", "argilla"])
def test_pairs_without_verdicts_survive_too(tmp_path, name):
    write_file(tmp_path / "pairs.json", formats.FORMATS[name].write(Labelled(PAIRS, [])))
    assert formats.read([str(tmp_path / "pairs.json")]) == Labelled(PAIRS, [])


def test_a_json_file_is_one_array(tmp_path):
    path = tmp_path / "tasks.json"
    assert write_file(path, formats.FORMATS["label-studio"].write(LABELLED)) == 4
    assert [task["data"]["pair_id"] for task in json.loads(path.read_text())] == [
        one.pair_id for one in PAIRS
    ]


def test_verdicts_survive_as_preference_rows_with_the_better_answer_first(tmp_path):
    path = tmp_path / "trl.jsonl"
    preferences.write_rows(path, trl.write(LABELLED, ties="half"))
    pairs, verdicts = formats.read([str(path)])
    # The first verdict on a pair decides what is a: the better answer of it, as it is `chosen`.
    turned = [PAIRS[0], PAIRS[1].swapped(), PAIRS[2]]
    assert pairs == turned  # and of pair 3 nothing was said
    swapped = [one.swapped() if one.pair_id == "chat" else one for one in VERDICTS]
    assert verdicts == swapped


def test_a_store_is_read_as_a_file(tmp_path):
    with Store(tmp_path / "labels.sqlite") as store:
        store.add(PAIRS)
        for verdict in VERDICTS:
            store.record(verdict)
        store.undo("bob", 2)
    pairs, verdicts = formats.read([str(tmp_path / "labels.sqlite")])
    assert pairs == PAIRS and verdicts == [*VERDICTS[:1], *VERDICTS[2:]]


def test_files_come_together(tmp_path):
    one = write(
        tmp_path / "one.jsonl",
        [{"prompt": "p", "a": "x", "b": "y", "verdict": 2, "annotator": "ann"}],
    )
    two = write(tmp_path / "two.jsonl", [{"prompt": "p", "chosen": "y", "rejected": "x"}])
    pairs, verdicts = formats.read([one, two], annotator="bob")
    assert len(pairs) == 1  # the same pair, turned round
    assert [(said.annotator, said.verdict) for said in verdicts] == [("ann", 2), ("bob", -3)]


# TRL's own rows.


@pytest.mark.parametrize(
    ("row", "prompt", "a", "verdict"),
    [
        ({"prompt": "p", "chosen": "x", "rejected": "y"}, "p", "x", 3),
        ({"prompt": "p", "chosen": "x", "rejected": "y", "confidence": 0.9}, "p", "x", 3),
        ({"prompt": "p", "chosen": "x", "rejected": "y", "label": 0.5}, "p", "x", "tie"),
        ({"prompt": "p", "chosen": "x", "rejected": "y", "label": 0.2}, "p", "x", -3),
        ({"prompt": CHAT, "chosen": "x", "rejected": "y"}, CHAT, PAIRS[1].a, 3),
        (
            {
                "chosen": "\n\nHuman: hi\n\nAssistant: x",
                "rejected": "\n\nHuman: hi\n\nAssistant: y",
            },
            [{"role": "user", "content": "hi"}],
            PAIRS[1].a,
            3,
        ),
    ],
)
def test_plain_preference_rows(tmp_path, row, prompt, a, verdict):
    (one,), (said,) = formats.read([write(tmp_path / "p.jsonl", [row])])
    assert (one.prompt, one.a) == (prompt, a)
    assert (said.verdict, said.annotator, said.shown_first) == (verdict, "unknown", None)


def test_the_columns_of_preference_rows_have_one_type_each():
    """Arrow, which TRL reads files with, refuses a column of numbers and texts."""
    rows = list(trl.write(LABELLED, labels=[0.6, 0.7, 0.8, 0.9], margins=[0, 1, 2, 3], ties="half"))
    for name in rows[0]:
        if name not in ("prompt", "chosen", "rejected"):  # as they are in the source
            kinds = (
                {type(row[name]) for row in rows}
                - {type(None)}
                - ({int} if name == "margin" else set())
            )
            assert len(kinds) <= 1, name
    datasets = pytest.importorskip("datasets")
    assert (
        len(datasets.Dataset.from_list([row for row in rows if isinstance(row["prompt"], str)]))
        == 3
    )


# Label Studio's own export.

TASK = {
    "id": 7,
    "data": {"question": "Why?", "answer1": "x", "answer2": "y"},
    "annotations": [
        {
            "id": 1,
            "completed_by": {"id": 3, "email": "ann@example.org"},
            "was_cancelled": False,
            "lead_time": 12.5,
            "created_at": "2026-01-02T03:04:05.678Z",
            "result": [
                {
                    "id": "a1",
                    "type": "pairwise",
                    "from_name": "pw",
                    "to_name": "text1,text2",
                    "value": {"selected": "right"},
                },
                {
                    "id": "a2",
                    "type": "textarea",
                    "from_name": "comment",
                    "to_name": "text1",
                    "value": {"text": ["one", "two"]},
                },
            ],
        },
        {"id": 2, "completed_by": 4, "was_cancelled": True, "result": []},
        {"id": 3, "completed_by": 5, "result": []},
        {
            "id": 4,
            "completed_by": 6,
            "result": [{"type": "pairwise", "from_name": "pw", "value": {"selected": "left"}}],
        },
    ],
    "predictions": [],
}
THEIRS = {"prompt": "question", "a": "answer1", "b": "answer2"}


def test_a_foreign_export_of_label_studio(tmp_path):
    path = tmp_path / "export.json"
    path.write_text(json.dumps([TASK]))
    (one,), verdicts = formats.read([str(path)], columns=THEIRS)
    assert (one.prompt, one.a, one.b) == ("Why?", "x", "y")
    first, second = verdicts
    assert first == Verdict(
        one.pair_id,
        "ann@example.org",
        -3,
        None,
        False,
        "one\ntwo",
        "a",
        12.5,
        "2026-01-02T03:04:05.678Z",
    )
    assert (second.annotator, second.verdict, second.shown_first) == ("6", 3, "a")


# Argilla's own export.

RECORD = {
    "id": "rec-1",
    "fields": {"instruction": "Why?", "response-1": "x", "response-2": "y"},
    "metadata": {},
    "suggestions": {},
    "responses": {
        "preference": [
            {"value": ["response-2", "response-1"], "user_id": "u1"},
            {"value": "response-1", "user_id": "u2"},
            {"value": [{"value": "response-1", "rank": 1}], "user_id": "u3"},
        ],
        "comment": [{"value": "hm", "user_id": "u2"}, {"value": "only this", "user_id": "u4"}],
    },
    "vectors": {},
    "_server_id": None,
}
FIELDS = {"prompt": "instruction", "a": "response-1", "b": "response-2", "verdict": "preference"}


def test_a_foreign_export_of_argilla(tmp_path):
    path = tmp_path / "records.json"
    path.write_text(json.dumps([RECORD]))
    (one,), verdicts = formats.read([str(path)], columns=FIELDS)
    assert (one.pair_id, one.prompt, one.a, one.b) == ("rec-1", "Why?", "x", "y")
    assert [(said.annotator, said.verdict, said.comment) for said in verdicts] == [
        ("u1", -3, ""),
        ("u2", 3, "hm"),
        ("u3", 3, ""),
    ]


# What cannot be read.

ROW = {"prompt": "p", "a": "x", "b": "y"}


def broken(value, *path):
    """A copy of something with one value in it changed."""
    copy = json.loads(json.dumps(value[0]))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value[1]
    return copy


@pytest.mark.parametrize(
    ("row", "columns", "says"),
    [
        (ROW | {"a": 3}, {}, "p.jsonl:2: wrong type: column 'a' must be text"),
        (ROW | {"verdict": 7, "annotator": "x"}, {}, "p.jsonl:2: unknown value: 'verdict'"),
        (ROW | {"b": "x"}, {}, "p.jsonl:2: equal answers"),
        ({"prompt": "p", "chosen": "x", "rejected": 2}, {}, "p.jsonl:2: wrong type"),
        (
            {"prompt": "p", "chosen": "x", "rejected": "y", "strength": "better"},
            {},
            "p.jsonl:2: unknown value: 'verdict' must be one of 4, 3",
        ),
        ({"prompt": "p", "chosen": "x", "rejected": "y", "strength": "9"}, {}, "'verdict'"),
        ({"prompt": "p", "responses": "x"}, {}, "'responses' must be a list"),
        (broken((TASK, []), "data"), THEIRS, "p.jsonl:2: wrong type: 'data' must be an object"),
        (broken((TASK, 3), "annotations"), THEIRS, "p.jsonl:2: wrong type: 'annotations'"),
        (
            broken((TASK, {"selected": "up"}), "annotations", 0, "result", 0, "value"),
            THEIRS,
            "'selected' must be left or right: 'up'",
        ),
        (TASK, {}, "p.jsonl:2: missing column: 'prompt'"),
        (broken((RECORD, []), "fields"), FIELDS, "missing column: 'instruction'"),
        (broken((RECORD, "x"), "responses"), FIELDS, "'responses' must be an object"),
        (broken((RECORD, 3), "responses", "comment"), FIELDS, "'responses' of 'comment': 3"),
        (broken((RECORD, [3]), "responses", "comment"), FIELDS, "'responses': 3"),
        (
            broken((RECORD, "neither"), "responses", "preference", 1, "value"),
            FIELDS,
            "p.jsonl:2: unknown value: 'verdict'",
        ),
        ({"question": "p", "first": "x"}, {}, "pairs need the columns fields (argilla)"),
    ],
)
def test_what_cannot_be_read_names_file_and_line(tmp_path, row, columns, says):
    good = json.dumps(row | {"verdict": None}) if "prompt" in row and "a" in row else ""
    path = tmp_path / "p.jsonl"
    path.write_text(f"{json.dumps(ROW) if good else ''}\n{json.dumps(row)}")
    with pytest.raises(DataError) as error:
        formats.read([str(path)], columns=columns)
    assert says in str(error.value) and "p.jsonl" in str(error.value)


def test_two_pairs_of_one_id_name_the_files(tmp_path):
    path = write(tmp_path / "p.jsonl", [ROW | {"pair_id": 1}, ROW | {"pair_id": 1, "a": "z"}])
    with pytest.raises(DataError, match=r"p.jsonl: one id, two pairs: pair_id '1'"):
        formats.read([path])
