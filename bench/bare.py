"""The peer of the store: a bare SQLite table of nine columns through apsw, set up as the tape sets up its file."""

from __future__ import annotations

from pathlib import Path

import apsw

TABLE = (
    "CREATE TABLE tick(symbol TEXT, ts_event_ns INTEGER, price REAL, size REAL, bid REAL, ask REAL,"
    " bid_size REAL, ask_size REAL, side INTEGER)"
)
INSERT = "INSERT INTO tick VALUES (?,?,?,?,?,?,?,?,?)"


def connect(path: Path, synchronous: str = "NORMAL") -> apsw.Connection:
    """Return a connection in WAL mode to a new table without an index.

    A log of 16 MB between checkpoints is what the tape uses. The page is SQLite's own default of 4,096 bytes.
    """
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", synchronous)
    connection.pragma("wal_autocheckpoint", 4096)
    connection.pragma("cache_size", -16 * 1024)
    connection.execute(TABLE)
    return connection
