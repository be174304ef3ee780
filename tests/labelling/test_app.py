"""What the page asks, and what it is told."""

import json
import sqlite3

import pytest
from labels import pairs

from jaxrlhf.labelling.queue import Queue
from jaxrlhf.labelling.records import Pair
from jaxrlhf.labelling.store import Store

pytest.importorskip("starlette", reason="the page needs: pip install 'jaxrlhf[label]'")
pytest.importorskip("uvicorn", reason="the page needs: pip install 'jaxrlhf[label]'")
from page_server import serving


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "labels.sqlite") as store:
        store.add(pairs(4))
        yield store


@pytest.fixture
def server(store):
    with serving(Queue(store)) as server:
        yield server


def said(state, verdict, **more):
    return {"pair_id": state["pair"]["pair_id"], "verdict": verdict, **more}


def test_a_state_shows_a_pair_and_how_far_it_is(server, store):
    state = server.ask("next").json
    assert state["annotator"] == "ann"
    one = store.pairs()[0]
    shown = state["pair"]
    assert (shown["pair_id"], shown["prompt"], shown["said"]) == (one.pair_id, one.prompt, None)
    assert {shown["left"], shown["right"]} == {one.a, one.b}
    assert state["progress"] == {
        "mine": 0,
        "left_for_me": 4,
        "given": 0,
        "wanted": 4,
        "last": None,
    }
    assert not {"a", "b", "model_a", "model_b", "shown_first"} & set(shown)  # nobody can peek


def test_left_and_right_become_a_and_b(server, store):
    """What is on the left is better by 3: whichever answer that is, the row says so."""
    state = server.ask("next").json
    lefts = {}
    while state["pair"]:
        lefts[state["pair"]["pair_id"]] = state["pair"]["left"]
        state = server.ask("verdict", **said(state, 3)).json
    assert len(store.verdicts()) == 4
    firsts = set()
    for one, verdict in zip(store.pairs(), store.verdicts(), strict=True):
        a_is_left = lefts[one.pair_id] == one.a
        assert (verdict.shown_first, verdict.verdict) == (("a", 3) if a_is_left else ("b", -3))
        firsts.add(verdict.shown_first)
    assert firsts == {"a", "b"}  # both occurred (the draw is seeded)


def test_everything_that_is_said_is_kept(server, store):
    state = server.ask("next", " Ann  ").json
    assert state["annotator"] == "Ann"
    more = {"confidence": 2, "flag": True, "comment": "<b>é\u0000\n", "seconds": 3.25}
    state = server.ask("verdict", "ann", **said(state, "tie", **more)).json
    assert state["annotator"] == "Ann" and state["progress"]["mine"] == 1
    (kept,) = store.verdicts()
    assert (kept.annotator, kept.verdict, kept.confidence, kept.flag) == ("Ann", "tie", 2, True)
    assert (kept.comment, kept.seconds) == ("<b>é\u0000\n", 3.25)
    assert kept.time and kept.time.endswith("+00:00")


def test_undo_brings_the_pair_back_as_it_was_filled_in(server, store):
    for verdict in (4, -1):
        before = server.ask("next").json
        more = {"confidence": 1, "flag": True, "comment": "hm"}
        after = server.ask("verdict", **said(before, verdict, **more)).json
        back = server.ask("undo", verdict_id=after["progress"]["last"]).json
        filled = back["pair"].pop("said")
        assert filled == {"verdict": verdict, **more}
        assert back["pair"] | {"said": None} == before["pair"]
        assert back["progress"] == before["progress"]
        server.ask("verdict", **said(before, verdict))
    assert [one.taken_back is None for one in store.history()] == [False, True, False, True]


def test_an_undo_that_cannot_be_says_so_and_shows_where_we_are(server):
    state = server.ask("next").json
    after = server.ask("verdict", **said(state, 1)).json
    last = after["progress"]["last"]
    for name, number in (("bob", last), ("ann", 99)):
        answer = server.ask("undo", name, verdict_id=number)
        assert answer.status == 409 and "taken back" in answer.json["error"]
        assert answer.json["state"]["annotator"] == name
    assert server.ask("undo", verdict_id=last).status == 200
    assert server.ask("undo", verdict_id=last).status == 409


def test_a_verdict_that_is_sent_twice_counts_once(server, store):
    """The answer got lost on the way: the page asks again."""
    state = server.ask("next").json
    first, second = (server.ask("verdict", **said(state, 2, seconds=s)) for s in (1.0, 7.5))
    assert first.status == second.status == 200 and first.json == second.json
    assert len(store.history()) == 1


def test_another_verdict_from_another_tab_does_not_replace_the_first(server, store):
    state = server.ask("next").json
    server.ask("verdict", **said(state, 2))
    answer = server.ask("verdict", **said(state, -2))
    assert answer.status == 409 and "has judged" in answer.json["error"]
    assert answer.json["state"]["progress"]["mine"] == 1
    assert len(store.verdicts()) == 1


def test_only_what_was_shown_can_be_judged(server, store):
    unseen = store.pairs()[2].pair_id
    for pair_id in (unseen, "nothing"):
        answer = server.ask("verdict", pair_id=pair_id, verdict=1)
        assert answer.status == 409 and "not shown" in answer.json["error"]
    assert store.history() == []


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"verdict": 5}, "'verdict'"),
        ({"verdict": None}, "'verdict'"),
        ({"verdict": [1]}, "'verdict'"),
        ({}, "'verdict'"),
        ({"verdict": 1, "confidence": 9}, "'confidence'"),
        ({"verdict": 1, "flag": "yes"}, "'flag'"),
        ({"verdict": 1, "comment": {}}, "'comment'"),
        ({"verdict": 1, "comment": "x" * 10_001}, "10000"),
        ({"verdict": 1, "seconds": -2}, "'seconds'"),
        ({"verdict": 1, "pair_id": 7}, "'pair_id'"),
        ({"verdict": 1, "annotator": ""}, "not a name"),
        ({"verdict": 1, "annotator": None}, "not a name"),
        ({"verdict": 1, "annotator": "x" * 61}, "not a name"),
    ],
)
def test_what_is_no_verdict_is_refused(server, store, more, says):
    state = server.ask("next").json
    body = {"annotator": "ann", "pair_id": state["pair"]["pair_id"], **more}
    answer = server.ask("verdict", **body)
    assert answer.status == 400 and says in answer.json["error"]
    assert store.history() == []


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "3", '"x"', "[" * 10**4, '{"annotator": "ann"', "x" * 200_000]
)
def test_what_is_no_question_is_refused(server, body):
    answer = server.request("POST", "/api/next", body, content_type="application/json")
    assert answer.status == 400 and answer.json["error"]


def test_half_a_character_is_no_text(server, store):
    """JSON can say half a surrogate pair; UTF-8, and so the disk, cannot."""
    state = server.ask("next").json
    body = json.dumps({"annotator": "ann", **said(state, 1, comment="\ud83d")})
    answer = server.request("POST", "/api/verdict", body, content_type="application/json")
    assert answer.status == 400 and "Unicode" in answer.json["error"]
    assert store.history() == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_questions_are_posted(server, method):
    assert server.request(method, "/api/next").status == 405


def test_a_full_disk_is_not_thanked_for(server, store, monkeypatch):
    state = server.ask("next").json

    def full(_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "record", full)
        answer = server.ask("verdict", **said(state, 1))
    assert answer.status == 503
    assert answer.json == {"error": "not saved: database or disk is full"}
    assert server.ask("verdict", **said(state, 1)).status == 200


def test_messages_are_sent_as_messages(tmp_path):
    prompt = [{"role": "user", "content": "<i>hi</i>"}]
    with Store(tmp_path / "chat.sqlite") as store:
        store.add([Pair("1", prompt, [{"role": "assistant", "content": "x"}], "y")])
        with serving(Queue(store)) as server:
            answer = server.ask("next")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["pair"]["prompt"] == prompt


def test_when_all_is_done_there_is_no_pair(server):
    state = server.ask("next").json
    while state["pair"]:
        state = server.ask("verdict", **said(state, 1)).json
    assert state["progress"]["mine"] == 4 and state["progress"]["left_for_me"] == 0
    assert server.ask("next", "bob").json["pair"] is None
