"""The layout of a tape's file: where files lie, which tables they hold, and the versions of both.

journal   one row a commit: the newest records, packed, in arrival order; key: the last position in the row
chunk     one row a symbol, day and seal: records in columns, in canonical order; `encoding` says how packed
bar       one row a symbol, interval, source and start; the tape's own bars have source 0
symbol    names, and what the seals have counted; source: names of who sent records
span      one row a seal: the positions it covers, its level, and when they were appended
batch     identities of what was appended; cursor: positions of imports; quarantine: refused records
state     one row: the seal (all positions up to it are in chunks), and what retention has removed
"""

from __future__ import annotations

from pathlib import Path

#: "otap": marks the SQLite file as a tape (PRAGMA application_id).
APPLICATION_ID = 0x6F746170
#: Version of this layout (PRAGMA user_version). An older file is upgraded on opening, a newer one refused.
FORMAT_VERSION = 2

KIND_TICK, KIND_BAR, KIND_CANCEL = 0, 1, 2
ENCODING_PLAIN = 0

#: Records in the journal that make the appender seal them: a full tail costs a reader about 5 ms.
SEAL_RECORDS = 4096
#: Records one seal covers at the most: what a replay holds in memory at once, about 8 MB.
SPAN_RECORDS_MAX = 65_536
#: An append of at least this many records goes to chunks directly: its journal row would be read once and deleted.
DIRECT_RECORDS = 8192

DAY_NS = 86_400_000_000_000

#: The tables of format 1. A new file is made as the first format was, and then changed as an older file is.
SCHEMA = """
CREATE TABLE state(
    id INTEGER PRIMARY KEY CHECK (id = 0),
    seal INTEGER NOT NULL,
    pruned_seq INTEGER NOT NULL,
    last_prune_ns INTEGER NOT NULL,
    created_ns INTEGER NOT NULL
);
CREATE TABLE journal(
    seq_last INTEGER PRIMARY KEY,
    count INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    payload BLOB NOT NULL
);
CREATE TABLE chunk(
    id INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL,
    symbol_id INTEGER NOT NULL,
    seal INTEGER NOT NULL,
    ts_min INTEGER NOT NULL,
    ts_max INTEGER NOT NULL,
    seq_max INTEGER NOT NULL,
    count INTEGER NOT NULL,
    sealed_ns INTEGER NOT NULL,
    encoding INTEGER NOT NULL,
    payload BLOB NOT NULL
);
CREATE INDEX chunk_by_time ON chunk(kind, symbol_id, ts_max, ts_min);
CREATE INDEX chunk_by_seal ON chunk(seal);
CREATE TABLE symbol(
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    ticks INTEGER NOT NULL DEFAULT 0,
    bars INTEGER NOT NULL DEFAULT 0,
    ts_min INTEGER,
    ts_max INTEGER,
    trade_ts_max INTEGER,
    pruned_before_ns INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE source(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE bar(
    symbol_id INTEGER NOT NULL,
    interval_ns INTEGER NOT NULL,
    source_id INTEGER NOT NULL,
    ts_start_ns INTEGER NOT NULL,
    open REAL NOT NULL, high REAL NOT NULL, low REAL NOT NULL, close REAL NOT NULL,
    volume REAL, notional REAL, vwap REAL, trades INTEGER, bid_volume REAL, ask_volume REAL,
    complete INTEGER, revision INTEGER NOT NULL,
    first_ts INTEGER, first_seq INTEGER, last_ts INTEGER, last_seq INTEGER,
    PRIMARY KEY (symbol_id, interval_ns, source_id, ts_start_ns)
) WITHOUT ROWID;
CREATE TABLE batch(
    id BLOB PRIMARY KEY, seq_first INTEGER NOT NULL, seq_last INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE cursor(name TEXT PRIMARY KEY, position TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE quarantine(
    id INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, batch TEXT, position INTEGER NOT NULL,
    field TEXT NOT NULL, why TEXT NOT NULL, record TEXT NOT NULL
);
"""

#: What makes format 2 of format 1, inside one transaction.
CHANGES_2 = """
ALTER TABLE chunk ADD COLUMN seq_min INTEGER NOT NULL DEFAULT 0;
CREATE TABLE span(seal INTEGER PRIMARY KEY, first INTEGER NOT NULL, level INTEGER NOT NULL, moments BLOB NOT NULL);
INSERT INTO span SELECT seal, lag(seal, 1, 0) OVER (ORDER BY seal) + 1, 0, x'' FROM (SELECT DISTINCT seal FROM chunk);
UPDATE chunk SET seq_min = (SELECT first FROM span WHERE span.seal = chunk.seal);
"""


def ledger_path(tape: Path) -> Path:
    """Return where the migration ledger of a tape lies: beside it."""
    return tape.with_name(tape.name + ".ledger")


def backup_path(tape: Path, version: int) -> Path:
    """Return where a tape is backed up to before it is upgraded from `version`."""
    return tape.with_name(f"{tape.name}.format{version}.backup")


def wal_path(tape: Path) -> Path:
    """Return SQLite's write-ahead log of a tape."""
    return tape.with_name(tape.name + "-wal")
