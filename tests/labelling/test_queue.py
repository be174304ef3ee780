"""Each pair gets its verdicts, nobody is asked twice, and nobody waits for those who left."""

import json
import threading
from collections import Counter

import pytest
from labels import pair, pairs, verdict

from jaxrlhf.errors import ConfigError, DataError
from jaxrlhf.labelling.queue import Progress, Queue, arrange
from jaxrlhf.labelling.records import Pair, Verdict
from jaxrlhf.labelling.store import Store

PATIENCE = 100.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "labels.sqlite") as store:
        store.add(pairs(4))
        for name in ("ann", "bob", "cid"):
            store.register(name)
        yield store


@pytest.fixture
def clock():
    return Clock()


def made(store, clock, **options) -> Queue:
    return Queue(store, patience=PATIENCE, clock=clock, **options)


def number(shown) -> int | None:
    """Which of `pairs` is shown."""
    ids = [one.pair_id for one in pairs(9)]
    return None if shown is None else ids.index(shown.pair_id)


def test_people_get_different_pairs_and_find_theirs_again(store, clock):
    queue = made(store, clock)
    assert number(queue.next("ann")) == 0
    assert number(queue.next("bob")) == 1
    assert number(queue.next("ann")) == 0  # nothing said yet: the same again
    store.record(verdict(0))
    assert number(queue.next("ann")) == 2
    assert number(queue.next("bob")) == 1


def test_each_pair_gets_so_many_verdicts_of_different_people(store, clock):
    queue = made(store, clock, overlap=2)
    for name in ("ann", "bob", "cid", "ann", "bob", "cid", "cid", "bob", "ann"):
        shown = queue.next(name)
        if shown:
            store.record(Verdict(shown.pair_id, name, 1))
    said = store.verdicts()
    assert Counter(one.pair_id for one in said) == {one.pair_id: 2 for one in pairs(4)}
    assert len({(one.pair_id, one.annotator) for one in said}) == 8
    assert [queue.next(name) for name in ("ann", "bob", "cid")] == [None] * 3


def test_a_pair_does_not_wait_for_ever(store, clock):
    queue = made(store, clock)
    assert number(queue.next("ann")) == 0
    clock.now += PATIENCE - 1
    assert number(queue.next("bob")) == 1
    store.record(verdict(1, "bob"))
    clock.now += 2  # ann's claim is stale
    assert number(queue.next("bob")) == 0
    store.record(verdict(0, "bob"))
    assert number(queue.next("ann")) == 2  # what others finished is not asked again
    # Who comes back late is not told off: an extra verdict is kept.
    store.record(verdict(0, "ann", choice=-1))
    assert len(store.verdicts()) == 3


def test_undo_brings_the_pair_back_to_the_same_person_and_side(store, clock):
    queue = made(store, clock)
    first = queue.next("ann")
    one = store.record(verdict(0))
    second = queue.next("ann")
    two = store.record(verdict(1))
    assert number(queue.next("ann")) == 2
    assert queue.undo("bob", two) is None
    clock.now += 10 * PATIENCE
    assert queue.undo("ann", two) == verdict(1)
    assert number(queue.next("bob")) == 2  # ann's claim on pair 1 is fresh again
    assert queue.next("ann") == second
    assert queue.undo("ann", one) == verdict(0)
    assert queue.next("ann") == first
    assert queue.progress("ann").mine == 0 and queue.progress("ann").last is None


def test_left_and_right_are_drawn_and_remembered(tmp_path, clock):
    with Store(tmp_path / "many.sqlite") as store:
        many = [Pair(str(i), "p", f"{i} x", f"{i} y") for i in range(100)]
        store.add(many)
        store.register("ann")
        queue = made(store, clock)
        firsts = []
        for _ in many:
            shown = queue.next("ann")
            firsts.append(shown.first)
            assert queue.next("ann") == shown  # looking again turns nothing round
            assert queue.shown("ann", shown.pair_id) == shown.first
            store.record(Verdict(shown.pair_id, "ann", 1))
        # 50 of 100 expected, standard deviation 5: four of them to either side.
        assert 30 < firsts.count("a") < 70
        assert queue.shown("ann", "unseen") is None
    for seed, alike in ((0, True), (1, False)):
        with Store(tmp_path / f"{seed}.sqlite") as store:
            store.add(many[:30])
            store.register("ann")
            again = made(store, clock, seed=seed)
            drawn = []
            for one in many[:30]:
                drawn.append(again.next("ann").first)
                store.record(Verdict(one.pair_id, "ann", 1))
            assert (drawn == firsts[:30]) == alike


def test_progress(store, clock):
    queue = made(store, clock, overlap=2)
    assert queue.progress("ann") == Progress(0, 4, 0, 8, None)
    store.record(verdict(0, "ann"))
    last = store.record(verdict(1, "ann"))
    store.record(verdict(1, "bob"))
    store.record(verdict(1, "cid"))  # one more than wanted
    assert queue.progress("ann") == Progress(2, 2, 3, 8, last)
    assert queue.progress("bob").left_for_me == 3  # pairs 0, 2, 3


@pytest.mark.parametrize("shared", [True, False])
def test_a_crowd_gets_every_pair_once(tmp_path, shared):
    """Six people at once, in one server or in six that share the file."""
    path, errors = tmp_path / "crowd.sqlite", []
    with Store(path) as common:
        common.add(pairs(60))

        def work(name: str) -> None:
            try:
                store = common if shared else Store(path)
                store.register(name)
                queue = Queue(store)
                while shown := queue.next(name):
                    store.record(Verdict(shown.pair_id, name, 2))
                if not shared:
                    store.close()
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(f"person {i}",)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        said = Counter(one.pair_id for one in common.verdicts())
        assert len(said) == 60 and set(said.values()) == {1}


def asked(store, clock) -> list[int]:
    """The order in which a single person is asked."""
    queue, order = made(store, clock), []
    store.register("solo")
    while shown := queue.next("solo"):
        order.append(number(shown))
        store.record(Verdict(shown.pair_id, "solo", 1))
    return order


def newest_first(pairs, verdicts):
    """A function for `next`; it also sees what was said."""
    assert [one.annotator for one in verdicts] == ["bob"]
    return {pair.pair_id: float(i) for i, pair in enumerate(pairs)}


def broken(pairs, verdicts):
    return {pairs[0].pair_id: float("nan")}


def test_the_order_is_that_of_the_file_of_chance_of_a_column_or_of_a_function(tmp_path, clock):
    def order(how: str, **options) -> list[int]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.sqlite"
        with Store(path) as store:
            store.add(pair(i, priority=float(i % 2)) for i in range(4))
            store.record(verdict(3, "bob"))  # so it is asked no more
            arrange(store, "random")  # whatever was said before counts no more
            arrange(store, how, **options)
            return asked(store, clock)

    assert order("file") == [0, 1, 2]
    assert order("priority") == [1, 0, 2]
    assert order(f"{__name__}:newest_first") == [2, 1, 0]
    assert sorted(order("random")) == [0, 1, 2]
    assert len({tuple(order("random", seed=seed)) for seed in range(8)}) > 1
    assert order("random", seed=5) == order("random", seed=5)
    rows = [{"pair_id": pair(i).pair_id, "priority": p} for i, p in ((2, 5), (0, -1), (1, 0.5))]
    path = tmp_path / "order.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert order(str(path)) == [2, 1, 0]


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ("randm", ConfigError, "did you mean 'random'?"),
        ("nowhere:f", ConfigError, "nowhere"),
        (f"{__name__}:nothing", ConfigError, "nothing"),
        (f"{__name__}:broken", DataError, "is nan"),
        ("./none.jsonl", DataError, "no such file"),
    ],
)
def test_mistakes_in_the_order(store, how, error, says):
    with pytest.raises(error, match=says):
        arrange(store, how)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"pair_id": "x", "priority": 1}, "names none of the 4 pairs"),
        ({"pair_id": "x"}, "order.jsonl:1: missing column: 'priority'"),
        ({"pair_id": "x", "priority": "a"}, "order.jsonl:1: .*must be a number"),
        ({"priority": 1}, "order.jsonl:1: missing column: 'pair_id'"),
    ],
)
def test_mistakes_in_a_file_of_priorities(store, tmp_path, row, says):
    path = tmp_path / "order.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=says):
        arrange(store, str(path))
