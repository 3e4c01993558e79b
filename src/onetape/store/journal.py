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
from onetape.errors import ConfigInvalid, CursorConflict
from onetape.record import SeqRange
from onetape.store import block, seal
from onetape.store.catalog import Catalog
from onetape.store.layout import DIRECT_RECORDS, SPAN_RECORDS_MAX
from onetape.store.table import Batch, keep
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
        if self.batch is not None and not 0 < len(self.batch.encode()) <= 4096:
            raise ConfigInvalid("a batch id is text of 1 to 4,096 bytes")
        if self.ids is not None:
            if len(self.ids) != count:
                raise ConfigInvalid(f"{len(self.ids)} ids for {count} records", hint="give one id a record")
            if any(not isinstance(key, bytes) or not 0 < len(key) <= ID_BYTES_MAX for key in self.ids):
                raise ConfigInvalid(f"an id is 1 to {ID_BYTES_MAX} bytes", hint="give a digest, such as blake2b")


_BATCH_PREFIX = b"batch\x00"
_ID_PREFIX = b"id\x00"


def append(
    connection: apsw.Connection,
    catalog: Catalog,
    batches: list[Batch],
    identity: Identity,
    refused: list[tuple[Problem, dict[str, Any]]],
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
        for batch in batches:
            used = np.unique(batch.columns["symbol"]).tolist()
            new_names |= catalog.add(connection, [batch.symbols[i] for i in used], batch.sources)
        last = _store(connection, catalog, batches, head)
        if identity.batch is not None:
            connection.execute(
                "INSERT INTO batch VALUES (?, ?, ?)",
                (_BATCH_PREFIX + identity.batch.encode(), head + 1, last),
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


def _head(connection: apsw.Connection) -> int:
    return int(connection.execute("SELECT max(seq_last) FROM journal").get)


def _store(connection: apsw.Connection, catalog: Catalog, batches: list[Batch], head: int) -> int:
    direct = sum(map(len, batches)) >= DIRECT_RECORDS
    if direct:  # the fold goes by position: what is in the journal comes first
        while True:
            sealed, end = seal.seal(connection)
            if sealed == end:
                break
    for batch in batches:
        columns = dict(batch.columns)
        symbol_ids = np.zeros(len(batch.symbols), dtype="<u4")
        used = np.unique(columns["symbol"])
        symbol_ids[used] = catalog.ids(connection, "symbol", [batch.symbols[i] for i in used.tolist()])
        columns["symbol"] = symbol_ids[columns["symbol"]]
        if "source" in columns:
            source_ids = np.array([0, *catalog.ids(connection, "source", batch.sources)], dtype="<u4")
            columns["source"] = source_ids[columns["source"]]
        for start in range(0, len(batch), SPAN_RECORDS_MAX):
            part = {name: column[start : start + SPAN_RECORDS_MAX] for name, column in columns.items()}
            head = _store_part(connection, batch.kind, part, head, direct)
    return head


def _store_part(connection: apsw.Connection, kind: int, part: block.Columns, head: int, direct: bool) -> int:
    count = len(part["ts_event_ns"])
    if not count:
        return head
    last = head + count
    if direct:
        part["seq"] = np.arange(head + 1, last + 1, dtype="<i8")
        seal.fold(connection, {kind: part}, last)
        connection.execute("INSERT INTO journal VALUES (?, 0, 0, x'')", (last,))  # the head stays readable here
        connection.execute("DELETE FROM journal WHERE seq_last < ?", (last,))
    else:
        blob = block.encode(kind, part)
        connection.execute("INSERT INTO journal VALUES (?, ?, ?, ?)", (last, count, kind, blob))
    return last


def _known_batch(connection: apsw.Connection, batch: str | None) -> SeqRange | None:
    if batch is None:
        return None
    for first, last in connection.execute(
        "SELECT seq_first, seq_last FROM batch WHERE id = ?", (_BATCH_PREFIX + batch.encode(),)
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


def _quarantine(connection: apsw.Connection, refused: list[tuple[Problem, dict[str, Any]]], batch: str | None) -> None:
    at_ns = now_ns()
    connection.executemany(
        "INSERT INTO quarantine(at_ns, batch, position, field, why, record) VALUES (?,?,?,?,?,?)",
        [
            (at_ns, batch, problem.index, problem.field, problem.why, msgspec.json.encode(shown).decode())
            for problem, shown in refused
        ],
    )


def refuse(batch: Batch, found: list[Problem], offset: int) -> tuple[Batch, list[tuple[Problem, dict[str, Any]]]]:
    """Return the good records of a batch, and the bad ones with their reasons."""
    bad = np.zeros(len(batch), dtype=bool)
    bad[[problem.index for problem in found]] = True
    shown = [
        (
            Problem(problem.index + offset, problem.field, problem.value, problem.why),
            batch.record(problem.index),
        )
        for problem in found
    ]
    return batch.take(~bad), shown


def good_ids(ids: Sequence[bytes], bad: Sequence[int]) -> list[bytes]:
    """Return the ids of the records that are not in `bad`."""
    mask = np.ones(len(ids), dtype=bool)
    mask[list(bad)] = False
    return keep(ids, mask)
