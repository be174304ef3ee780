"""Where verdicts live: one SQLite file, written through to the disk before anybody is thanked.

The log is written ahead (WAL) and synced at every commit (`synchronous=FULL`): what `record`
returned from survives `kill -9` and a power cut. Nothing that a person said is changed or deleted:
taking a verdict back adds a row, and triggers refuse anything else. A verdict that was not taken
back *stands*; a person has at most one standing verdict on a pair.

Threads may share a store and processes a file. Which pair is shown to whom is `queue.py`'s.
"""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from jaxrlhf.errors import DataError
from jaxrlhf.labelling import records
from jaxrlhf.labelling.records import Labelled, Pair, Verdict

FORMAT, VERSION = 0x6A726C62, 1  # "jrlb"; in the file's header
PATIENCE = 30.0
"""Seconds to wait for another process that is writing."""

SCHEMA = """
CREATE TABLE pairs (
    number INTEGER PRIMARY KEY,
    pair_id TEXT NOT NULL UNIQUE,
    prompt TEXT NOT NULL, a TEXT NOT NULL, b TEXT NOT NULL,
    model_a TEXT, model_b TEXT,
    round INTEGER NOT NULL,
    priority REAL NOT NULL,
    urgency REAL NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX pairs_in_order ON pairs (urgency DESC, number);
CREATE TABLE annotators (folded TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE claims (
    pair_id TEXT NOT NULL REFERENCES pairs (pair_id),
    annotator TEXT NOT NULL REFERENCES annotators (name),
    shown_first TEXT NOT NULL CHECK (shown_first IN ('a', 'b')),
    time REAL NOT NULL,
    turn INTEGER NOT NULL,
    PRIMARY KEY (pair_id, annotator)
) STRICT;
CREATE INDEX claims_of_a_person ON claims (annotator, turn);
CREATE TABLE verdicts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    pair_id TEXT NOT NULL REFERENCES pairs (pair_id),
    annotator TEXT NOT NULL REFERENCES annotators (name),
    verdict ANY NOT NULL CHECK (verdict IN (-4, -3, -2, -1, 1, 2, 3, 4, 'tie', 'both_bad')),
    confidence INTEGER CHECK (confidence IN (1, 2, 3)),
    flag INTEGER NOT NULL CHECK (flag IN (0, 1)),
    comment TEXT NOT NULL,
    shown_first TEXT CHECK (shown_first IN ('a', 'b')),
    seconds REAL,
    time TEXT
) STRICT;
CREATE INDEX verdicts_of_a_pair ON verdicts (pair_id, annotator);
CREATE TABLE undos (verdict_id INTEGER PRIMARY KEY REFERENCES verdicts (id), time TEXT NOT NULL)
    STRICT;
CREATE VIEW standing AS
    SELECT * FROM verdicts v WHERE NOT EXISTS (SELECT 1 FROM undos u WHERE u.verdict_id = v.id);
CREATE TRIGGER verdicts_stay BEFORE UPDATE ON verdicts
    BEGIN SELECT RAISE(ABORT, 'a verdict is never changed'); END;
CREATE TRIGGER verdicts_are_kept BEFORE DELETE ON verdicts
    BEGIN SELECT RAISE(ABORT, 'a verdict is never deleted'); END;
CREATE TRIGGER undos_stay BEFORE UPDATE ON undos
    BEGIN SELECT RAISE(ABORT, 'an undo is never changed'); END;
CREATE TRIGGER undos_are_kept BEFORE DELETE ON undos
    BEGIN SELECT RAISE(ABORT, 'an undo is never deleted'); END;
"""
PAIR = "pair_id, prompt, a, b, model_a, model_b, round, priority"
COLUMNS = "pair_id, annotator, verdict, confidence, flag, comment, shown_first, seconds, time"


class AlreadyJudged(DataError):
    """This person's verdict on this pair stands, and is another one."""


class Recorded(NamedTuple):
    """A verdict as it lies in the store."""

    id: int
    verdict: Verdict
    taken_back: str | None
    """When, or None where it stands."""


class Store:
    """The store in a file, which is made where there is none.

    Raises:
      DataError: the file is something else, or of a newer version.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise DataError(f"{path}: there is no folder {self.path.parent}")
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, timeout=PATIENCE
            )
        except sqlite3.Error as error:
            raise DataError(f"{path}: {error}") from None
        try:
            self._prepare()
        except sqlite3.Error as error:
            self.close()
            raise DataError(f"{path}: not a store of labels: {error}") from None
        except DataError:
            self.close()
            raise

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing, alone, and on the disk when the (outermost) block is left."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # Pairs.

    def add(self, pairs: Iterable[Pair]) -> int:
        """Put pairs at the end; those that are there stay as they are. How many were new.

        Raises:
          DataError: another pair has this id.
        """
        before = self._count("pairs")
        known = {pair.pair_id: pair for pair in self.pairs()}
        with self.transaction() as db:
            for pair in pairs:
                _same(known.get(pair.pair_id, pair), pair)
                texts = [json.dumps(text) for text in (pair.prompt, pair.a, pair.b)]
                more = (pair.model_a, pair.model_b, pair.round, pair.priority)
                db.execute(
                    f"INSERT OR IGNORE INTO pairs ({PAIR}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (pair.pair_id, *texts, *more),
                )
        return self._count("pairs") - before

    def arrange(self, urgencies: Mapping[str, float]) -> None:
        """Say how soon each pair is to be asked, by id: highest first, 0 where nothing is said."""
        with self.transaction() as db:
            db.execute("UPDATE pairs SET urgency = 0")
            db.executemany(
                "UPDATE pairs SET urgency = ? WHERE pair_id = ?",
                [(float(value), pair_id) for pair_id, value in urgencies.items()],
            )

    def pairs(self) -> list[Pair]:
        """All pairs, in the order they came."""
        return [_pair(row) for row in self._read(f"SELECT {PAIR} FROM pairs ORDER BY number")]

    def pair(self, pair_id: str) -> Pair:
        """The pair of this id, which must be there."""
        with self._lock:
            found = self._db.execute(f"SELECT {PAIR} FROM pairs WHERE pair_id = ?", (pair_id,))
            return _pair(found.fetchone())

    # Verdicts.

    def register(self, name: str) -> str:
        """The name of an annotator as it was first given; new ones are added.

        "ann" and "Ann" are one person.
        """
        name = records.name(name)
        with self.transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO annotators VALUES (?, ?)", (key := name.casefold(), name)
            )
            return db.execute("SELECT name FROM annotators WHERE folded = ?", (key,)).fetchone()[0]

    def record(self, verdict: Verdict) -> int:
        """Keep a verdict; its number. When this returns it is on the disk.

        Saying the same again is not a second verdict: a page that got no answer may ask again.

        Raises:
          AlreadyJudged: another verdict of this person on this pair stands.
          DataError: there is no such pair.
        """
        with self.transaction() as db:
            annotator = self.register(verdict.annotator)
            if not db.execute(
                "SELECT 1 FROM pairs WHERE pair_id = ?", (verdict.pair_id,)
            ).fetchone():
                raise DataError(f"no pair {verdict.pair_id!r}")
            found = db.execute(
                f"SELECT id, {COLUMNS} FROM standing WHERE pair_id = ? AND annotator = ?",
                (verdict.pair_id, annotator),
            ).fetchone()
            if found:
                if _said(_verdict(found[1:])) != _said(verdict):
                    raise AlreadyJudged(f"{annotator} has judged pair {verdict.pair_id!r} already")
                return found[0]
            values = (
                *(verdict.pair_id, annotator, verdict.verdict, verdict.confidence),
                *(int(verdict.flag), verdict.comment, verdict.shown_first, verdict.seconds),
                verdict.time,
            )
            done = db.execute(
                f"INSERT INTO verdicts ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values
            )
            assert done.lastrowid is not None
            return done.lastrowid

    def undo(self, annotator: str, verdict_id: int) -> Verdict | None:
        """Take back a verdict; None where it did not stand, or is somebody else's."""
        with self.transaction() as db:
            found = db.execute(
                f"SELECT {COLUMNS} FROM standing WHERE id = ? AND annotator = ?",
                (verdict_id, annotator),
            ).fetchone()
            if found:
                db.execute("INSERT INTO undos VALUES (?, ?)", (verdict_id, now()))
            return _verdict(found) if found else None

    def verdicts(self) -> list[Verdict]:
        """The standing verdicts, in the order they were given."""
        return [one.verdict for one in self.history() if one.taken_back is None]

    def history(self) -> list[Recorded]:
        """Every verdict that was ever given."""
        columns = ", ".join(f"v.{name}" for name in COLUMNS.split(", "))
        rows = self._read(
            f"SELECT v.id, u.time, {columns} FROM verdicts v "
            "LEFT JOIN undos u ON u.verdict_id = v.id ORDER BY v.id"
        )
        return [Recorded(row[0], _verdict(row[2:]), row[1]) for row in rows]

    def labelled(self) -> Labelled:
        """The pairs and what is said of them."""
        return Labelled(self.pairs(), self.verdicts())

    # Helpers.

    def _prepare(self) -> None:
        db = self._db
        self._is_new()  # before anything is changed in a file that is something else
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        with self.transaction():
            if self._is_new():  # still: another process may have been faster
                for statement in _statements(SCHEMA):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {FORMAT}")
                db.execute(f"PRAGMA user_version = {VERSION}")

    def _is_new(self) -> bool:
        """Whether nothing is in the file yet; raises where it holds something else."""
        marks = [self._read(f"PRAGMA {x}")[0][0] for x in ("application_id", "user_version")]
        new = not self._read("SELECT 1 FROM sqlite_schema")
        if not new and marks != [FORMAT, VERSION]:
            raise DataError(f"{self.path}: not a store of labels of version {VERSION}")
        return new

    def _read(self, sql: str) -> list[tuple]:
        with self._lock:
            return self._db.execute(sql).fetchall()

    def _count(self, table: str) -> int:
        return self._read(f"SELECT count(*) FROM {table}")[0][0]


def now() -> str:
    """The time, as verdicts have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _pair(row: tuple) -> Pair:
    return Pair(row[0], *map(json.loads, row[1:4]), *row[4:])


def _verdict(row: tuple) -> Verdict:
    pair_id, annotator, verdict, confidence, flag, *more = row
    return Verdict(pair_id, annotator, verdict, confidence, bool(flag), *more)


def _said(verdict: Verdict) -> tuple:
    return verdict.verdict, verdict.confidence, verdict.flag, verdict.comment


def _same(known: Pair, pair: Pair) -> None:
    here, there = ([p.prompt, p.a, p.b] for p in (pair, known))
    swapped = [pair.prompt, pair.b, pair.a]
    if there not in (here, swapped):
        raise DataError(f"pair_id {pair.pair_id!r}: the store has another pair of this id")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; `executescript` would commit before the first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
