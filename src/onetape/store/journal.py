"""The journal: how records get onto the tape, in one transaction with their identity.

Identity makes an append repeatable: a batch id for all of it, an id for each record, or a cursor (the position of an
import) that moves from `before` to `after` by compare-and-set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import apsw
import msgspec
import numpy as np

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid, CursorConflict, InvalidRecord
from onetape.record import SeqRange
from onetape.store import block, moments, seal, spans
from onetape.store.catalog import Catalog
from onetape.store.layout import DIRECT_RECORDS, KIND_TICK, SEAL_RECORDS_MAX, SPAN_RECORDS_MAX
from onetape.store.table import Batch
from onetape.store.validate import Problem

#: One statement, its own transaction. SQLite gives a new row the key after the greatest, which is the position after
#: the last: the last row always stays in the journal.
APPEND_ONE = "INSERT INTO journal VALUES (NULL, 1, 0, ?)"
ID_BYTES_MAX = 64


class Identity(NamedTuple):
    """What an append is known by; at most one of the three is given."""

    batch: str | None = None
    ids: Sequence[bytes] | None = None
    cursor: tuple[str, str | None, str] | None = None

    def check(self, count: int) -> None:
        """Raise ConfigInvalid unless it can be used for `count` records."""
        if sum(part is not None for part in self) > 1:
            raise ConfigInvalid("give one of batch, ids and cursor", hint="an append has one identity")
        if self.batch is not None and not (isinstance(self.batch, str) and 0 < len(_bytes(self.batch)) <= 4096):
            raise ConfigInvalid("a batch id is text of 1 to 4,096 bytes")
        if self.cursor is not None:
            name, before, after = self.cursor if isinstance(self.cursor, tuple) and len(self.cursor) == 3 else ("",) * 3
            if not all(isinstance(part, str) and _bytes(part) for part in (name, after)) or before == "":
                raise ConfigInvalid("a cursor is (name, before, after): texts, before None where it is new")
        if self.ids is not None:
            if len(self.ids) != count:
                raise ConfigInvalid(f"{len(self.ids)} ids for {count} records", hint="give one id a record")
            if any(not isinstance(key, bytes) or not 0 < len(key) <= ID_BYTES_MAX for key in self.ids):
                raise ConfigInvalid(f"an id is 1 to {ID_BYTES_MAX} bytes", hint="give a digest, such as blake2b")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "ignore")


#: Ticks packed one behind another: the columns they have, and their rows.
Run = tuple[int, Sequence[bytes]]


class Refused(NamedTuple):
    """A record for the quarantine: its place in the append, what is wrong, what it held, and its id if it has one."""

    place: int
    field: str
    why: str
    shown: dict[str, Any]
    key: bytes | None = None


_BATCH_PREFIX = b"batch\x00"
_ID_PREFIX = b"id\x00"


def append(
    connection: apsw.Connection,
    catalog: Catalog,
    batches: list[Batch],
    identity: Identity,
    refused: Sequence[Refused],
) -> SeqRange:
    """Append batches (runs of one kind, in their order) in one transaction; return their positions.

    `refused` go to quarantine in the same transaction. The caller maps SQLite's errors; on any error nothing is
    stored.
    """
    connection.execute("BEGIN IMMEDIATE")
    new_names = False
    try:
        head = _head(connection)
        known = _known_batch(connection, identity.batch)
        if known is not None:
            connection.execute("ROLLBACK")
            return known
        if identity.ids is not None:
            batches = _drop_known(connection, batches, identity.ids)
        if identity.cursor is not None:
            _move(connection, identity.cursor)
        batches, new_names = named(connection, catalog, batches)
        last = store(connection, catalog, batches, head)
        if identity.batch is not None:
            connection.execute(
                "INSERT INTO batch VALUES (?, ?, ?)",
                (_BATCH_PREFIX + _bytes(identity.batch), head + 1, last),
            )
        if refused:
            _quarantine(connection, refused, identity.batch)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    if new_names:
        catalog.load(connection)
    return SeqRange(head + 1, last, last - head)


#: One row of several ticks: its key is the position of the last of them.
_APPEND_RUN = "INSERT INTO journal SELECT max(seq_last) + ?1, ?1, 0, ?2 FROM journal"


def append_runs(connection: apsw.Connection, runs: Sequence[Run]) -> SeqRange:
    """Append ticks that are packed already, a row of the journal for each run, in one transaction."""
    at_ms = now_ns() // 1_000_000
    blobs = [(len(rows), block.encode_rows(KIND_TICK, bits, len(rows), b"".join(rows), at_ms)) for bits, rows in runs]
    total = sum(count for count, _ in blobs)
    if len(blobs) == 1:
        connection.execute(_APPEND_RUN, blobs[0])
    else:
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(_APPEND_RUN, blobs)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    last = connection.last_insert_rowid()
    return SeqRange(last - total + 1, last, total)


def _head(connection: apsw.Connection) -> int:
    return int(connection.execute("SELECT max(seq_last) FROM journal").get)


def named(connection: apsw.Connection, catalog: Catalog, batches: list[Batch]) -> tuple[list[Batch], bool]:
    """Resolve aliases and write new names inside the caller's transaction; say whether there were new ones."""
    batches, new = catalog.settle(connection, batches), False
    for batch in batches:
        used = block.distinct(batch.columns["symbol"]).tolist()
        new |= catalog.add(connection, [batch.symbols[i] for i in used], _sources(batch).values())
    return batches, new


def store(connection: apsw.Connection, catalog: Catalog, batches: list[Batch], head: int) -> int:
    """Write batches behind the position `head` inside the caller's transaction; return the last position."""
    # Each run becomes a span of its own then, so that runs of ticks and bars in turns had better be sealed together.
    direct = sum(map(len, batches)) >= DIRECT_RECORDS * max(1, len(batches))
    if direct:  # the fold goes by position: what is in the journal comes first
        while True:
            sealed, end = seal.seal(connection)
            if sealed == end:
                break
    for batch in batches:
        columns = dict(batch.columns)
        symbol_ids = np.zeros(len(batch.symbols), dtype="<u4")
        used = block.distinct(columns["symbol"])
        symbol_ids[used] = catalog.ids(connection, "symbol", [batch.symbols[i] for i in used.tolist()])
        columns["symbol"] = symbol_ids[columns["symbol"]]
        if "source" in columns:
            names = _sources(batch)
            source_ids = np.zeros(len(batch.sources) + 1, dtype="<u4")
            source_ids[list(names)] = catalog.ids(connection, "source", names.values())
            columns["source"] = source_ids[columns["source"]]
        step = SPAN_RECORDS_MAX if direct else SEAL_RECORDS_MAX
        for start in range(0, len(batch), step):
            part = {name: column[start : start + step] for name, column in columns.items()}
            head = _store_part(connection, batch.kind, part, head, direct)
    return head


def _sources(batch: Batch) -> dict[int, str]:
    """Return the sources that records of a batch have (those of refused ones are not among them)."""
    used = block.distinct(batch.columns["source"]).tolist() if "source" in batch.columns else []
    return {which: batch.sources[which - 1] for which in used if which}


def _store_part(connection: apsw.Connection, kind: int, part: block.Columns, head: int, direct: bool) -> int:
    count = len(part["ts_event_ns"])
    if not count:
        return head
    last = head + count
    at_ms = now_ns() // 1_000_000
    if direct:
        part["seq"] = np.arange(head + 1, last + 1, dtype="<i8")
        told = moments.encode(np.array([last], dtype="<i8"), np.array([at_ms], dtype="<i8"))
        seal.fold(connection, {kind: part}, last, spans.MERGED, told)
        connection.execute("INSERT INTO journal VALUES (?, 0, 0, x'')", (last,))  # the head stays readable here
        connection.execute("DELETE FROM journal WHERE seq_last < ?", (last,))
    else:
        blob = block.encode(kind, part, at_ms)
        connection.execute("INSERT INTO journal VALUES (?, ?, ?, ?)", (last, count, kind, blob))
    return last


def _known_batch(connection: apsw.Connection, batch: str | None) -> SeqRange | None:
    if batch is None:
        return None
    for first, last in connection.execute(
        "SELECT seq_first, seq_last FROM batch WHERE id = ?", (_BATCH_PREFIX + _bytes(batch),)
    ):
        return SeqRange(first, last, 0)
    return None


def _drop_known(connection: apsw.Connection, batches: list[Batch], ids: Sequence[bytes]) -> list[Batch]:
    """Write the ids and return the batches without the records whose id was there already, or came twice."""
    fresh = np.zeros(len(ids), dtype=bool)
    for index, key in enumerate(ids):
        connection.execute("INSERT INTO batch VALUES (?, 0, 0) ON CONFLICT DO NOTHING", (_ID_PREFIX + key,))
        fresh[index] = connection.changes() == 1
    kept, start = [], 0
    for batch in batches:
        mask = fresh[start : start + len(batch)]
        start += len(batch)
        kept.append(batch if mask.all() else batch.take(mask))
    return kept


def has_ids(connection: apsw.Connection, ids: Sequence[bytes]) -> list[bool]:
    """Return, for each id of a record, whether the tape has it."""
    return [connection.execute("SELECT 1 FROM batch WHERE id = ?", (_ID_PREFIX + key,)).get is not None for key in ids]


def _move(connection: apsw.Connection, cursor: tuple[str, str | None, str]) -> None:
    name, before, after = cursor
    found = position(connection, name)
    if found != before:
        raise CursorConflict(
            f"cursor {name!r} is at {found!r}, not at {before!r}",
            hint="another importer moved it; read the cursor again and go on from there; nothing was stored",
        )
    connection.execute("INSERT OR REPLACE INTO cursor VALUES (?, ?)", (name, after))


def position(connection: apsw.Connection, name: str) -> str | None:
    """Return the position of a cursor, or None if there is none of that name."""
    found = connection.execute("SELECT position FROM cursor WHERE name = ?", (name,)).get
    return None if found is None else str(found)


def _quarantine(connection: apsw.Connection, refused: Sequence[Refused], batch: str | None) -> None:
    at_ns = now_ns()
    for place, field, why, shown, key in refused:
        if key is not None:
            connection.execute("INSERT INTO batch VALUES (?, 0, 0) ON CONFLICT DO NOTHING", (_ID_PREFIX + key,))
            if connection.changes() == 0:  # refused before
                continue
        record = msgspec.json.encode(shown, enc_hook=repr).decode()
        connection.execute(
            "INSERT INTO quarantine(at_ns, batch, position, field, why, record) VALUES (?,?,?,?,?,?)",
            (at_ns, batch, place, field, why, record),
        )


def refuse(batch: Batch, found: list[Problem], offset: int) -> tuple[Batch, list[Refused]]:
    """Return the good records of a batch, and the bad ones with their reasons."""
    bad = np.zeros(len(batch), dtype=bool)
    bad[[problem.index for problem in found]] = True
    shown = [
        Refused(problem.index + offset, problem.field, problem.why, readable(batch.record(problem.index), problem))
        for problem in found
    ]
    return batch.take(~bad), shown


def readable(record: dict[str, Any], problem: Problem | InvalidRecord) -> dict[str, Any]:
    """Return a refused record with the value that is wrong as it was written, for a person to read."""
    shown = {name: _clean(value) for name, value in record.items() if value is not None}
    return {**shown, problem.field: _clean(repr(problem.value)[:200])}


def _clean(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
