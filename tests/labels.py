"""Pairs and verdicts for the tests of labelling; a process that gives verdicts until it dies."""

from jaxrlhf.labelling.records import Pair, Verdict, pair_id

# Gives verdicts one by one and says each number once `record` has returned; never ends by itself.
# "inside": it kills itself in the fifth, when that is written and not yet committed.
GIVER = """
import itertools, os, signal, sys
from jaxrlhf.labelling.records import Verdict
from jaxrlhf.labelling.store import Store

store = Store(sys.argv[1])
pairs = [pair.pair_id for pair in store.pairs()]
if sys.argv[2] == "inside":
    def trace(sql):
        if sql.startswith("COMMIT") and len(store.verdicts()) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
    store._db.set_trace_callback(trace)
for number in itertools.count():
    pair = pairs[number % len(pairs)]
    name = f"person {number // len(pairs)}"
    store.record(Verdict(pair, name, 1 + number % 4, comment=str(number)))
    print(number, flush=True)
"""


def pair(number: int, **columns) -> Pair:
    """A pair that differs from every other number's."""
    prompt, a, b = f"prompt {number}", f"answer {number}a", f"answer {number}b"
    return Pair(pair_id(prompt, a, b), prompt, a, b, **columns)


def pairs(count: int) -> list[Pair]:
    return [pair(number) for number in range(count)]


def verdict(number: int, name: str = "ann", choice=2, **columns) -> Verdict:
    return Verdict(pair(number).pair_id, name, choice, **columns)
