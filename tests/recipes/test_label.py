"""`jaxrlhf label` and `jaxrlhf convert-labels`, as commands."""

import importlib.util
import json
import signal
import socket
import urllib.request
from pathlib import Path

import micro
import pytest
from labels import pair, pairs, verdict

from jaxrlhf.data import formats as data_formats
from jaxrlhf.data import sources
from jaxrlhf.errors import ConfigError, DataError, UserError
from jaxrlhf.labelling import records
from jaxrlhf.labelling.records import Verdict
from jaxrlhf.labelling.store import Store
from jaxrlhf.recipes import convert_labels, label

HAS_EXTRA = all(importlib.util.find_spec(name) for name in label.NEEDS)
needs_extra = pytest.mark.skipif(
    not HAS_EXTRA, reason="the page needs: pip install 'jaxrlhf[label]'"
)


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pairs.jsonl", [records.to_row(one) for one in pairs(5)])
    return tmp_path


def labelled(*overrides: str, serve=lambda app, listening: None) -> dict:
    config = label.CONFIG.load(None, ("store=labels.sqlite", "port=0", *overrides))
    return label.run(config, serve=serve)


@needs_extra
def test_pairs_are_added_once_and_stay(folder, capfd):
    assert labelled("pairs=[pairs.jsonl]") == {"pairs": 5, "verdicts": 0}
    assert labelled("pairs=[pairs.jsonl]") == {"pairs": 5, "verdicts": 0}
    assert labelled() == {"pairs": 5, "verdicts": 0}
    said = capfd.readouterr().err
    assert "5 pairs, 5 of them new" in said and "5 pairs, 0 of them new" in said
    assert "open http://127.0.0.1:" in said and "token" not in said


@needs_extra
@pytest.mark.parametrize(
    ("overrides", "token"),
    [
        ((), None),
        (("host=localhost",), None),
        (("host=127.0.0.1", "token=a-token-of-enough-letters"), "a-token-of-enough-letters"),
        (("host=0.0.0.0", "token=a-token-of-enough-letters"), "a-token-of-enough-letters"),
        (("host=0.0.0.0",), ...),
    ],
)
def test_another_host_than_this_machine_always_has_a_token(folder, capfd, overrides, token):
    tokens = []
    labelled("pairs=[pairs.jsonl]", *overrides, serve=lambda app, _: tokens.append(app.token))
    labelled(*overrides, serve=lambda app, _: tokens.append(app.token))
    said = capfd.readouterr().err
    if token is ...:  # a new one each time, long, and told to whoever started it
        assert len(set(tokens)) == 2 and min(map(len, tokens)) >= 32
        assert all(f"/?token={one}" in said for one in tokens)
    else:
        assert tokens == [token, token]


@needs_extra
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ((), "pairs: name at least one file; there is no labels.sqlite yet"),
        (("store=null",), "store: this command needs a value"),
        (("pairs=[nothing.jsonl]",), "nothing.jsonl: no such file"),
        (("pairs=[bad.jsonl]",), "bad.jsonl:2: equal answers: 'x'"),
        (("pairs=[other.jsonl]",), "pairs need the columns fields (argilla)"),
        (("pairs=[pairs.jsonl]", "guideline=no.md"), "guideline = no.md"),
        (("pairs=[pairs.jsonl]", "next=randum"), "did you mean 'random'?"),
        (("pairs=[pairs.jsonl]", "host=203.0.113.1"), "host = 203.0.113.1, port = 0"),
        (("pairs=[pairs.jsonl]", "store=pairs.jsonl"), "pairs.jsonl: not a store of labels"),
        (("pairs=[pairs.jsonl]", "store=no/labels.sqlite"), "there is no folder no"),
        (("token=short",), "token = short"),
        (("overlap=0",), "overlap = 0"),
    ],
)
def test_mistakes_are_told(folder, overrides, says):
    bad = [{"prompt": "p", "a": "x", "b": "y"}, {"prompt": "p", "a": "x", "b": "x"}]
    write(folder / "bad.jsonl", bad)
    write(folder / "other.jsonl", [{"prompt": "p", "first": "x", "second": "y"}])
    with pytest.raises(UserError) as error:
        labelled(*overrides)
    assert says in str(error.value)


@needs_extra
def test_a_port_that_is_taken_is_told(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port = {port}: Address already in use"):
            labelled("pairs=[pairs.jsonl]", f"port={port}")


def test_without_the_extra_one_line_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(label, "NEEDS", ("starlette_of_nowhere",))
    with pytest.raises(UserError, match=r"'starlette_of_nowhere': pip install 'jaxrlhf\[label\]'"):
        labelled("pairs=[pairs.jsonl]")
    assert not (folder / "labels.sqlite").exists()


@needs_extra
def test_ctrl_c_is_the_ordinary_end(folder):
    process = micro.child(folder, "label", "labels.sqlite", "pairs=[pairs.jsonl]", "port=0")
    while "open http" not in (line := process.stdout.readline()):
        assert line
    url = line.split("open ")[1].split()[0]
    urllib.request.urlopen(url, timeout=60).close()  # it answers, so it also listens to signals
    process.send_signal(signal.SIGINT)
    code, out = micro.finish(process)
    assert code == 0 and "0 verdicts on 5 pairs" in out and "Traceback" not in out


# convert-labels


@pytest.fixture
def store(folder):
    with Store(folder / "labels.sqlite") as store:
        store.add([pair(0, model_a="m1", model_b="m2", round=1), *pairs(5)[1:]])
        details = (2, True, "why é", "b", 4.5, "2026-01-01T00:00:00+00:00")
        store.record(Verdict(pair(0).pair_id, "ann", -3, *details))
        store.record(verdict(0, "bob", 1))
        store.record(verdict(1, "ann", "tie", shown_first="a"))
        store.record(verdict(2, "ann", "both_bad", shown_first="a"))
        yield store


def converted(*overrides: str) -> dict:
    base = ("input=[labels.sqlite]", "output=out.jsonl")
    return convert_labels.run(convert_labels.CONFIG.load(None, (*base, *overrides)))


def test_verdicts_become_rows_that_the_reward_model_trains_on(store, folder):
    counts = {"rows": 2, "pairs": 5, "verdicts": 4}
    assert converted("labels=[.6,.7,.8,.9]", "margins=[0,1,2,3]") == counts
    rows = sources.load_rows("out.jsonl")
    found = data_formats.preferences(rows).items
    one = pair(0)
    # ann: b is clearly better (3 of 4); bob: a is barely better (1 of 4)
    assert [(x.chosen, x.rejected, x.label, x.margin) for x in found] == [
        (one.b, one.a, 0.8, 2.0),
        (one.a, one.b, 0.6, 0.0),
    ]
    assert (rows[0]["model_chosen"], rows[0]["shown_first"]) == ("m2", "chosen")
    assert (rows[1]["model_chosen"], rows[1]["shown_first"]) == ("m1", None)
    assert converted()["rows"] == 2 and "label" not in sources.load_rows("out.jsonl").columns
    assert converted("ties=half")["rows"] == 4
    halves = data_formats.preferences(sources.load_rows("out.jsonl")).items
    assert [x.label for x in halves] == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("input=[]",), "input: name at least one file"),
        (("output=null",), "output: this command needs a value"),
        (("output=no/out.json", "format=rows"), "there is no folder no"),
        (("input=[none.sqlite]",), "none.sqlite: no such file"),
        (("format=trll",), "did you mean 'trl'?"),
        (("labels=[.5,.6]",), "labels"),
        (("labels=[.5,.6,.7,1.2]",), "labels.3 = 1.2"),
        (("margins=[0,1,2,-1]",), "margins.3 = -1"),
        (("annotator=''", "input=[trl.jsonl]"), "trl.jsonl:1: not a name"),
    ],
)
def test_mistakes_of_converting_are_told(store, folder, overrides, says):
    write(folder / "trl.jsonl", [{"prompt": "p", "chosen": "x", "rejected": "y"}])
    with pytest.raises((ConfigError, DataError)) as error:
        converted(*overrides)
    assert says in str(error.value)
    assert not list(folder.glob("out*"))
