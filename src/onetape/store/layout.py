"""The layout of a tape's file: where files lie, which tables they hold, and the versions of both.

journal   one row a commit: the newest records, packed, in arrival order; key: the last position in the row
chunk     one row a symbol, day and seal: records in columns, in canonical order; `encoding` says how packed
minute    one row a symbol and hour: the tape's own bars of its minutes; key: symbol and hour (store/minutes.py)
bar       one row a symbol, interval, source and start: bars that were given
symbol    names, and what the seals have counted; source: names of who sent records
span      one row a seal: the positions it covers, its level, and when they were appended
batch     identities of what was appended; cursor: positions of imports; quarantine: refused records
coverage  one row a symbol, source and span of time: what the source said of it (covered, missing, asked and empty)
alias     one row a spelling and source ('': any) of a symbol; state.names counts their changes
continuous  one row a version of a continuous future; roll: the rolls that followers were told of
snapshot  names of positions, each with a digest of all up to it; damaged: chunks and journal rows taken out of use
state     one row: the seal (all positions up to it are in chunks), and what retention has removed
"""

from __future__ import annotations

from pathlib import Path

#: "otap": marks the SQLite file as a tape (PRAGMA application_id).
APPLICATION_ID = 0x6F746170
#: Version of this layout (PRAGMA user_version). An older file is upgraded on opening, a newer one refused.
FORMAT_VERSION = 2

KIND_TICK, KIND_BAR, KIND_CANCEL, KIND_MINUTE = 0, 1, 2, 3
#: How a chunk's payload is packed: a block (store/block.py), as format 1 wrote it, or packed columns (store/packed.py).
ENCODING_PLAIN, ENCODING_PACKED = 0, 1
#: The symbol of a chunk that several symbols share: its records say which.
MIXED = 0

#: Rows in the journal (commits) that make the appender seal them: a full tail costs a reader about 5 ms.
SEAL_RECORDS = 4096
#: Records in the journal that make the appender seal them, in however few rows.
SEAL_RECORDS_TAIL = 32_768
#: Records one seal of the journal covers at the most.
SEAL_RECORDS_MAX = 65_536
#: Records one span covers at the most: what a replay holds in memory at once, about 40 MB.
SPAN_RECORDS_MAX = 524_288
#: Records of one chunk at the most: larger ones are hardly smaller a record, and cost more to read an hour of.
CHUNK_RECORDS_MAX = 16_384
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
ALTER TABLE chunk ADD COLUMN symbol_min INTEGER NOT NULL DEFAULT 0;
ALTER TABLE chunk ADD COLUMN symbol_max INTEGER NOT NULL DEFAULT 0;
CREATE TABLE span(
    seal INTEGER PRIMARY KEY, first INTEGER NOT NULL, level INTEGER NOT NULL, at_ms INTEGER NOT NULL,
    moments BLOB NOT NULL
);
CREATE TABLE minute(id INTEGER PRIMARY KEY, payload BLOB NOT NULL);
CREATE INDEX span_by_level ON span(level, seal);
CREATE INDEX span_by_time ON span(at_ms);
INSERT INTO span
    SELECT seal, lag(seal, 1, 0) OVER (ORDER BY seal) + 1, 0, sealed / 1000000, x''
    FROM (SELECT seal, max(sealed_ns) AS sealed FROM chunk GROUP BY seal);
UPDATE chunk SET seq_min = (SELECT first FROM span WHERE span.seal = chunk.seal);
CREATE TABLE coverage(
    symbol_id INTEGER NOT NULL,
    source_id INTEGER NOT NULL,
    start_ns INTEGER NOT NULL,
    end_ns INTEGER NOT NULL,
    state INTEGER NOT NULL,
    said_ns INTEGER NOT NULL,
    PRIMARY KEY (symbol_id, source_id, start_ns)
) WITHOUT ROWID;
CREATE TABLE snapshot(
    name TEXT PRIMARY KEY, seq INTEGER NOT NULL, digest TEXT, records INTEGER, created_ns INTEGER NOT NULL,
    note TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE damaged(
    id INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, place TEXT NOT NULL, symbol_id INTEGER, first INTEGER NOT NULL,
    last INTEGER NOT NULL, ts_min INTEGER, ts_max INTEGER, records INTEGER NOT NULL, why TEXT NOT NULL,
    told TEXT NOT NULL, payload BLOB
);
ALTER TABLE state ADD COLUMN names INTEGER NOT NULL DEFAULT 0;
CREATE TABLE alias(
    name TEXT NOT NULL, source TEXT NOT NULL, symbol TEXT NOT NULL, created_ns INTEGER NOT NULL,
    PRIMARY KEY (name, source)
) WITHOUT ROWID;
CREATE INDEX alias_by_symbol ON alias(symbol);
CREATE TABLE continuous(
    name TEXT NOT NULL, version INTEGER NOT NULL, definition TEXT NOT NULL, created_ns INTEGER NOT NULL,
    PRIMARY KEY (name, version)
) WITHOUT ROWID;
CREATE TABLE roll(
    name TEXT NOT NULL, version INTEGER NOT NULL, old TEXT NOT NULL, new TEXT NOT NULL, ts_ns INTEGER NOT NULL,
    why TEXT NOT NULL, decided_ns INTEGER NOT NULL,
    PRIMARY KEY (name, version, old)
) WITHOUT ROWID;
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


def index_path(tape: Path) -> Path:
    """Return the index of that log, which its readers and writers share."""
    return tape.with_name(tape.name + "-shm")
