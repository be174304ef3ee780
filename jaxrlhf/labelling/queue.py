"""Which pair a person sees next: enough verdicts on each pair, nobody asked twice, nothing lost.

A pair wants `overlap` verdicts of different people. Showing it is a claim: while a claim is fresh
(`patience` seconds) the pair counts as half judged, so that two people do not do the same work. A
person who comes back finds what they had open; if others have finished it meanwhile, it is not
asked again. A verdict that comes after its claim went stale is kept all the same: an extra label
is worth more than a person's lost work.

`arrange` decides the order, and is the hook for active queries: by a column, a file or a function.
Pairs that it puts level come as they stand in the file.
"""

import importlib
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxrlhf.data import sources
from jaxrlhf.data.columns import Row
from jaxrlhf.data.rows import BadRow
from jaxrlhf.errors import ConfigError, DataError, nearest
from jaxrlhf.labelling.records import Pair, Side, Verdict
from jaxrlhf.labelling.store import Store

ORDERS = ("file", "random", "priority")
Priorities = Callable[[Sequence[Pair], Sequence[Verdict]], Mapping[str, float]]
"""`(pairs, standing verdicts) -> {pair_id: priority}`; 0 for a pair that is left out."""

# What others have said of a pair, or are looking at. :me, :stale
TAKEN = """(
    (SELECT count(*) FROM standing s WHERE s.pair_id = p.pair_id AND s.annotator <> :me)
    + (SELECT count(*) FROM claims o WHERE o.pair_id = p.pair_id AND o.annotator <> :me
       AND o.time > :stale AND NOT EXISTS (
           SELECT 1 FROM standing s WHERE s.pair_id = o.pair_id AND s.annotator = o.annotator)))"""
NOT_MINE = """NOT EXISTS (
    SELECT 1 FROM standing s WHERE s.pair_id = p.pair_id AND s.annotator = :me)"""
MY_OPEN = f"""SELECT p.pair_id, c.turn FROM claims c JOIN pairs p USING (pair_id)
    WHERE c.annotator = :me AND {NOT_MINE} AND {TAKEN} < :overlap ORDER BY c.turn DESC LIMIT 1"""
NEW = f"""SELECT p.pair_id, (SELECT coalesce(max(turn), 0) + 1 FROM claims) FROM pairs p
    WHERE {NOT_MINE} AND {TAKEN} < :overlap ORDER BY p.urgency DESC, p.number LIMIT 1"""
CLAIM = """INSERT INTO claims VALUES (:pair_id, :me, :first, :now, :turn)
    ON CONFLICT DO UPDATE SET time = :now, turn = :turn RETURNING shown_first"""


class Shown(NamedTuple):
    """A pair as it is shown."""

    pair_id: str
    first: Side
    """What stands on the left."""


class Progress(NamedTuple):
    """How far the work is. `last` is the person's newest standing verdict, for undo."""

    mine: int
    left_for_me: int
    given: int
    wanted: int
    last: int | None


@dataclass(frozen=True)
class Queue:
    """Hands out the pairs of a store.

    Args:
      overlap: verdicts that a pair wants, each of another person.
      patience: seconds that a pair waits for whom it was shown to.
      seed: draws which answer stands on the left, for each pair and person.
    """

    store: Store
    overlap: int = 1
    patience: float = 1800.0
    seed: int = 0
    clock: Callable[[], float] = time.time

    def next(self, annotator: str) -> Shown | None:
        """The pair for a registered person, claimed; None where there is nothing (more) to do."""
        asked = {"me": annotator, "overlap": self.overlap, "stale": self.clock() - self.patience}
        with self.store.transaction() as db:
            found = db.execute(MY_OPEN, asked).fetchone() or db.execute(NEW, asked).fetchone()
            if found is None:
                return None
            pair_id, turn = found
            drawn = random.Random(f"{self.seed}/{pair_id}/{annotator}").random()
            claim = {"me": annotator, "pair_id": pair_id, "turn": turn, "now": self.clock()}
            claim["first"] = "a" if drawn < 0.5 else "b"
            return Shown(pair_id, db.execute(CLAIM, claim).fetchone()[0])

    def shown(self, annotator: str, pair_id: str) -> Side | None:
        """What stood on the left when this person saw the pair; None where they never did."""
        with self.store.transaction() as db:
            found = db.execute(
                "SELECT shown_first FROM claims WHERE pair_id = ? AND annotator = ?",
                (pair_id, annotator),
            ).fetchone()
        return found[0] if found else None

    def undo(self, annotator: str, verdict_id: int) -> Verdict | None:
        """Take a verdict back; its pair is this person's next. None where it did not stand."""
        with self.store.transaction() as db:
            verdict = self.store.undo(annotator, verdict_id)
            if verdict:
                db.execute(
                    "UPDATE claims SET time = ?, turn = (SELECT max(turn) + 1 FROM claims) "
                    "WHERE pair_id = ? AND annotator = ?",
                    (self.clock(), verdict.pair_id, annotator),
                )
        return verdict

    def progress(self, annotator: str) -> Progress:
        """How far the work is, for this person and in all."""
        asked = {"me": annotator, "overlap": self.overlap}
        with self.store.transaction() as db:
            pairs = db.execute("SELECT count(*) FROM pairs").fetchone()[0]
            closed = db.execute(
                "SELECT count(*) FROM (SELECT 1 FROM standing GROUP BY pair_id "
                "HAVING sum(annotator = :me) > 0 OR count(*) >= :overlap)",
                asked,
            ).fetchone()[0]
            given = db.execute(
                "SELECT coalesce(sum(min(n, :overlap)), 0) FROM "
                "(SELECT count(*) AS n FROM standing GROUP BY pair_id)",
                asked,
            ).fetchone()[0]
            mine, last = db.execute(
                "SELECT count(*), max(id) FROM standing WHERE annotator = :me", asked
            ).fetchone()
        return Progress(mine, pairs - closed, given, pairs * self.overlap, last)


def arrange(store: Store, how: str, *, seed: int = 0) -> None:
    """Set the order in which the pairs are asked, highest priority first.

    Args:
      how: "file": as they came; "random"; "priority": by that column of the pairs' file; a file
        of rows with `pair_id` and `priority`; or a function as module:name (`Priorities`).
    Raises:
      ConfigError: none of these. DataError: a row, or a value of the function, that cannot be used.
    """
    pairs = store.pairs()
    if how == "file":
        priorities = {}
    elif how == "random":
        drawn = random.Random(seed)
        priorities = {pair.pair_id: drawn.random() for pair in pairs}
    elif how == "priority":
        priorities = {pair.pair_id: pair.priority for pair in pairs}
    elif sources.is_path(how):
        priorities = _of_file(how)
    else:
        priorities = _function(how)(pairs, store.verdicts())
    for pair_id, value in priorities.items():
        if not math.isfinite(value):
            raise DataError(f"next = {how}: the priority of pair {pair_id!r} is {value}")
    if priorities and not priorities.keys() & {pair.pair_id for pair in pairs}:
        raise DataError(f"next = {how}: names none of the {len(pairs)} pairs")
    store.arrange(priorities)


def _of_file(path: str) -> dict[str, float]:
    found = {}
    rows = sources.load_rows(path)
    for i, row in enumerate(rows):
        try:
            view = Row(row, {})
            if view.get("priority") is None:
                raise BadRow("missing column", "'priority'")
            found[view.text("pair_id")] = view.number("priority", 0.0, -math.inf, math.inf)
        except DataError as error:
            raise DataError(f"{rows.where(i)}: {error}") from None
    return found


def _function(how: str) -> Priorities:
    module, colon, attribute = how.partition(":")
    if not colon:
        guess = nearest(how, ORDERS)
        hint = f"; did you mean {guess!r}?" if guess else ""
        choices = f"{', '.join(ORDERS)}, a file, or module:function"
        raise ConfigError(f"next = {how!r}: must be one of {choices}{hint}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"next = {how!r}: {error}") from None
