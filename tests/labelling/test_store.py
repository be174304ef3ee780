"""Nothing that was said is lost, changed or counted twice; not by kill -9, not by a crowd."""

import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from labels import GIVER, pair, pairs, verdict

from jaxrlhf.errors import DataError
from jaxrlhf.labelling.records import Pair, Verdict
from jaxrlhf.labelling.store import AlreadyJudged, Store


@pytest.fixture
def path(tmp_path):
    return tmp_path / "labels.sqlite"


@pytest.fixture
def store(path):
    with Store(path) as store:
        store.add(pairs(4))
        yield store


def test_what_is_recorded_is_read_back(store):
    said = [
        Verdict(pair(0).pair_id, "ann", -3, 2, True, "why 🙂", "b", 4.5, "2026-01-01T00:00:00Z"),
        verdict(1, choice="tie"),
        verdict(0, "bob", "both_bad"),
    ]
    assert [store.record(one) for one in said] == [1, 2, 3]
    assert store.verdicts() == said
    assert store.labelled() == (pairs(4), said)
    with Store(store.path) as again:
        assert again.labelled() == (pairs(4), said)


def test_messages_and_odd_text_are_kept_to_the_letter(store):
    prompt = [{"role": "user", "content": "a\u0000b\r\n\t\u202e'\"; DROP TABLE pairs; --"}]
    odd = Pair(
        "odd", prompt, "\u2028 x", [{"role": "assistant", "content": "y"}], "m", None, 3, 0.5
    )
    store.add([odd])
    assert store.pairs()[-1] == odd


def test_every_commit_is_synced_and_the_log_is_written_ahead(store):
    modes = [store._read(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous")]
    assert modes == ["wal", 2]  # 2 is FULL: the log is synced at each commit


def test_pairs_that_are_there_stay_and_are_counted_once(store):
    assert store.add([pair(3), pair(4), pair(4), pair(1).swapped()]) == 1
    assert store.pairs() == pairs(5)
    with pytest.raises(DataError, match="has another pair of this id"):
        store.add([pair(6), Pair(pair(0).pair_id, "p", "x", "y")])
    assert store.pairs() == pairs(5)  # all or nothing


def test_saying_it_again_is_not_a_second_verdict(store):
    assert store.record(verdict(0, seconds=3.0)) == store.record(verdict(0, seconds=9.0)) == 1
    with pytest.raises(AlreadyJudged, match="ann has judged"):
        store.record(verdict(0, choice=-2))
    with pytest.raises(AlreadyJudged):
        store.record(verdict(0, comment="more"))
    assert len(store.history()) == 1


def test_a_verdict_needs_a_pair(store):
    with pytest.raises(DataError, match="no pair 'x'"):
        store.record(Verdict("x", "ann", 1))
    assert store.history() == []


def test_undo_takes_back_and_forgets_nothing(store):
    first = store.record(verdict(0, comment="first"))
    assert store.undo("bob", first) is None  # not his
    assert store.undo("ann", 99) is None
    assert store.undo("ann", first) == verdict(0, comment="first")
    assert store.undo("ann", first) is None  # it stands no more
    assert store.verdicts() == []
    second = store.record(verdict(0, choice=-4))
    assert second != first and store.verdicts() == [verdict(0, choice=-4)]
    (old, new) = store.history()
    assert (old.id, old.verdict.comment, new.id) == (first, "first", second)
    assert old.taken_back is not None and new.taken_back is None


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("UPDATE verdicts SET verdict = -1", "never changed"),
        ("DELETE FROM verdicts", "never deleted"),
        ("DELETE FROM undos", "never deleted"),
        ("UPDATE undos SET verdict_id = 2", "never changed"),
    ],
)
def test_the_file_itself_refuses_to_forget(store, sql, says):
    store.undo("ann", store.record(verdict(0)))
    with pytest.raises(sqlite3.IntegrityError, match=says), store.transaction() as db:
        db.execute(sql)
    assert len(store.history()) == 1


def test_names_are_people(store):
    assert store.register(" Ann ") == "Ann"
    assert store.register("ann") == "Ann"
    store.record(verdict(0, "ANN"))
    assert store.verdicts()[0].annotator == "Ann"
    with pytest.raises(AlreadyJudged):
        store.record(verdict(0, "ann", choice=-1))


def test_a_crowd_of_threads_loses_and_doubles_nothing(store):
    """Eight people judge the same 4 pairs at once, each saying everything twice."""
    errors = []

    def work(name: str) -> None:
        try:
            for number in random.Random(name).sample(range(4), 4):
                for _ in range(2):
                    store.record(verdict(number, name, choice=1 + number))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"person {i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    said = Counter((one.annotator, one.pair_id) for one in store.verdicts())
    assert len(said) == 32 and set(said.values()) == {1}


def giver(path, harm: str) -> subprocess.Popen:
    command = [sys.executable, "-c", GIVER, str(path), harm]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_write_one_file(path, store):
    """Another process gives verdicts while this one does, and both keep theirs."""
    with giver(path, "none") as other:
        assert other.stdout.readline() == "0\n"
        for number in range(4):
            store.record(verdict(number, "here"))
        other.kill()
        heard = 1 + len(other.stdout.read().splitlines())
    said = store.verdicts()
    assert [one.comment for one in said if one.annotator != "here"][:heard] == [
        str(number) for number in range(heard)
    ]
    assert sum(one.annotator == "here" for one in said) == 4


def test_kill_9_at_any_moment_loses_nothing_that_was_thanked_for(path, store):
    for _ in range(3):
        before = len(store.verdicts())
        with giver(path, "none") as process:
            heard = [process.stdout.readline()]
            time.sleep(random.uniform(0, 0.05))
            process.kill()
            heard += process.stdout.read().splitlines(keepends=True)
        whole = sum(line.endswith("\n") for line in heard)
        said = store.verdicts()
        assert whole and len({(one.pair_id, one.annotator) for one in said}) == len(said)
        # It said the same from the beginning: what was known is not doubled, the rest is there.
        assert len(said) >= max(before, whole)
        assert [one.comment for one in said] == [str(number) for number in range(len(said))]
    assert store._read("PRAGMA integrity_check") == [("ok",)]


def test_a_verdict_that_was_cut_off_half_way_is_not_there(path, store):
    with giver(path, "inside") as process:
        assert process.wait(timeout=60) == -9
        assert process.stdout.read().split() == ["0", "1", "2", "3"]
    assert [one.comment for one in store.verdicts()] == ["0", "1", "2", "3"]


def test_what_is_no_store_is_left_alone(path, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("notes " * 500)
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE mine (x)")
    other.close()
    before = path.read_bytes(), text.read_bytes()
    for wrong in (path, text):
        with pytest.raises(DataError, match="not a store of labels"):
            Store(wrong)
    assert (path.read_bytes(), text.read_bytes()) == before
    with pytest.raises(DataError, match="there is no folder"):
        Store(tmp_path / "no" / "labels.sqlite")
    with pytest.raises(DataError, match="unable to open"):
        Store(tmp_path)


def test_a_store_of_a_newer_version_is_refused(path, store):
    store._db.execute("PRAGMA user_version = 2")
    with pytest.raises(DataError, match="not a store of labels of version 1"):
        Store(path)
