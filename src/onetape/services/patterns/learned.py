"""What was learned: outcomes of detections, in a small file beside the tape, counted as they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import apsw

from onetape.errors import TapeUnusable

#: An outcome may still change for so long (a late tick revises a bar), ns; then only its count is kept.
KEPT_NS = 40 * 86_400 * 10**9

#: Before anything is learned, a detection is believed as if 5 of 10 had come true (a Beta(5, 5) prior).
PRIOR_WON, PRIOR_LOST = 5, 5

_OPEN_TRIES = 10

_SCHEMA = """
CREATE TABLE IF NOT EXISTS looked (job TEXT PRIMARY KEY, interval TEXT NOT NULL, seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS owed (job TEXT, symbol TEXT, from_ns INTEGER NOT NULL, PRIMARY KEY (job, symbol));
CREATE TABLE IF NOT EXISTS outcome (symbol TEXT, interval TEXT, ts_ns INTEGER, detector INTEGER,
    direction INTEGER NOT NULL, won INTEGER NOT NULL, PRIMARY KEY (symbol, interval, ts_ns, detector)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept (symbol TEXT, interval TEXT, from_ns INTEGER NOT NULL, PRIMARY KEY (symbol, interval));
CREATE TABLE IF NOT EXISTS learned (detector INTEGER, interval TEXT, direction INTEGER, won INTEGER NOT NULL,
    lost INTEGER NOT NULL, PRIMARY KEY (detector, interval, direction));
"""


class Outcome(NamedTuple):
    """Whether one detection came true; None: it was taken back, or its horizon has not passed."""

    ts_ns: int
    detector: int
    direction: int
    won: bool | None


class Job(NamedTuple):
    """Bars of one interval looked at for a choice of symbols and detectors. Other choices have other positions."""

    interval: str
    choice: str

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.interval} {self.choice}"


class Count(NamedTuple):
    """How often detections of one kind came true."""

    won: int = 0
    lost: int = 0

    @property
    def confidence(self) -> float:
        """The rate learned, drawn towards one half while little is known: (won + 5) / (won + lost + 10)."""
        return (self.won + PRIOR_WON) / (self.won + self.lost + PRIOR_WON + PRIOR_LOST)


#: (detector's number, interval, direction)
Kind = tuple[int, str, int]


class Learned:
    """Outcomes and counts at `path`. Several processes may use one file: outcomes are kept by what they are of.

    Where the file cannot be used, what is learned is kept in memory alone, and `trouble` says why.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: str | None = None
        self._lock = threading.Lock()
        try:
            self._db = _opened(str(path))
        except apsw.Error as error:
            self.trouble = f"what is learned is not kept: {path}: {error}"
            self._db = _opened(":memory:")
        self._counts = self._read()

    def close(self) -> None:
        """Close the file. May be called twice."""
        with self._lock:
            self._db.close()

    def count(self, kind: Kind) -> Count:
        """Return the count of one kind of detection."""
        return self._counts.get(kind, Count())

    def counts(self) -> dict[Kind, Count]:
        """Return all counts, as all processes made them."""
        with self._lock, self._mapped():
            self._counts = self._read()
        return dict(self._counts)

    def position(self, job: Job) -> int | None:
        """Return the position of the tape up to which this job looked, or None."""
        with self._lock, self._mapped():
            row = self._db.execute("SELECT seq FROM looked WHERE job = ?", (job.key,)).fetchone()
        return None if row is None else int(row[0])

    def earlier(self, job: Job) -> int | None:
        """Return the newest position up to which any job looked at bars of the interval, or None."""
        with self._lock, self._mapped():
            row = self._db.execute("SELECT max(seq) FROM looked WHERE interval = ?", (job.interval,)).fetchone()
        return None if row is None or row[0] is None else int(row[0])

    def looked_at(self, job: Job, seq: int) -> None:
        """Remember the position up to which all was looked at."""
        with self._lock, self._transaction():
            self._db.execute(
                "INSERT INTO looked VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET seq = excluded.seq",
                (job.key, job.interval, seq),
            )

    def owed(self, job: Job, symbol: str) -> int | None:
        """Return the start of the first bar of a symbol that could not be judged, or None."""
        with self._lock, self._mapped():
            row = self._db.execute(
                "SELECT from_ns FROM owed WHERE job = ? AND symbol = ?", (job.key, symbol)
            ).fetchone()
        return None if row is None else int(row[0])

    def owe(self, job: Job, symbol: str, from_ns: int | None) -> None:
        """Remember the first bar of a symbol that could not be judged; None: there is none any more."""
        with self._lock, self._transaction():
            if from_ns is None:
                self._db.execute("DELETE FROM owed WHERE job = ? AND symbol = ?", (job.key, symbol))
            else:
                self._db.execute("INSERT OR REPLACE INTO owed VALUES (?, ?, ?)", (job.key, symbol, from_ns))

    def learn(self, symbol: str, interval: str, outcomes: Iterable[Outcome], newest_ns: int) -> None:
        """Remember outcomes in one transaction; one that is known already or changed is counted once, as it is now.

        Outcomes older than the symbol's newest bar by KEPT_NS are counted for good: they change no more.
        """
        with self._lock:
            with self._transaction():
                row = self._db.execute(
                    "SELECT from_ns FROM kept WHERE symbol = ? AND interval = ?", (symbol, interval)
                ).fetchone()
                from_ns = 0 if row is None else int(row[0])
                for outcome in outcomes:
                    if outcome.ts_ns >= from_ns:
                        self._put(symbol, interval, outcome)
                if newest_ns - KEPT_NS > from_ns + 86_400 * 10**9:  # once a day is often enough
                    which = (symbol, interval, newest_ns - KEPT_NS)
                    self._db.execute("DELETE FROM outcome WHERE symbol = ? AND interval = ? AND ts_ns < ?", which)
                    self._db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", which)
            with self._mapped():
                self._counts = self._read()

    def _put(self, symbol: str, interval: str, outcome: Outcome) -> None:
        key = (symbol, interval, outcome.ts_ns, outcome.detector)
        row = self._db.execute(
            "SELECT direction, won FROM outcome WHERE symbol = ? AND interval = ? AND ts_ns = ? AND detector = ?", key
        ).fetchone()
        if row is None and outcome.won is None:
            return
        if row is not None:
            if outcome.won is not None and (row[0], bool(row[1])) == (outcome.direction, outcome.won):
                return
            self._add((outcome.detector, interval, row[0]), bool(row[1]), -1)
        if outcome.won is None:
            self._db.execute(
                "DELETE FROM outcome WHERE symbol = ? AND interval = ? AND ts_ns = ? AND detector = ?", key
            )
            return
        self._db.execute(
            "INSERT OR REPLACE INTO outcome VALUES (?, ?, ?, ?, ?, ?)", (*key, outcome.direction, int(outcome.won))
        )
        self._add((outcome.detector, interval, outcome.direction), outcome.won, 1)

    def _add(self, kind: Kind, won: bool, by: int) -> None:
        row = (*kind, by if won else 0, 0 if won else by)
        self._db.execute(
            "INSERT INTO learned VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET won = won + excluded.won,"
            " lost = lost + excluded.lost",
            row,
        )

    def _read(self) -> dict[Kind, Count]:
        rows = self._db.execute("SELECT detector, interval, direction, won, lost FROM learned")
        return {(row[0], row[1], row[2]): Count(row[3], row[4]) for row in rows if row[3] or row[4]}

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._mapped():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except apsw.Error as error:
            raise TapeUnusable(
                f"{self.path}: what was learned of patterns cannot be read or kept: {error}",
                hint="free space and give the right to write; it may be deleted: it is learned again from the tape",
            ) from error


def learned_at(path: Path) -> dict[Kind, Count]:
    """Return the counts in a file; none where there is none, and none is made."""
    if not path.exists():
        return {}
    learned = Learned(path)
    try:
        return learned.counts()
    finally:
        learned.close()


def _opened(path: str) -> apsw.Connection:
    for again in range(_OPEN_TRIES):
        db = apsw.Connection(path)
        try:
            db.set_busy_timeout(5000)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT")
            return db
        except apsw.BusyError:  # two that open a new file at once: SQLite does not wait where both turn the log on
            db.close()
            if again == _OPEN_TRIES - 1:
                raise
            time.sleep(0.1)
        except BaseException:
            db.close()
            raise
    raise AssertionError("not reached")
