"""A seal beside the appending: made ready without a lock, and put in its place in one short transaction.

Whoever seals first wins: the seal has moved then, and what others made ready is dropped. Until it is put in its place,
nothing of it is on the tape: it may be killed, raced or done again.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import apsw

from onetape.store import block, moments, seal, spans
from onetape.store.layout import SEAL_RECORDS_MAX

#: The rows of the journal in one answer: Python's lock is asked for once, not a row. Waiting for it behind those who
#: append and follow, 1,600 rows took 45 to 190 ms, not 4. A payload is joined as the bytes it is.
_ROWS = (
    "SELECT CAST(group_concat(payload, '') AS BLOB),"
    " group_concat(seq_last || ' ' || count || ' ' || length(payload), ' ')"
    " FROM (SELECT seq_last, count, payload FROM journal WHERE seq_last > ? ORDER BY seq_last)"
)


class Ready(NamedTuple):
    """A span of the journal made ready: the position behind which it begins, and what is to be written."""

    start: int
    packed: seal.Packed
    foreseen: seal.Foreseen | None


def prepare(connection: apsw.Connection, at_least: int) -> Ready | None:
    """Read the span of the journal that is to be sealed next and pack it; None if it holds fewer than `at_least`.

    It takes no lock and writes nothing. Raises ChunkCorrupt.
    """
    connection.execute("BEGIN")  # rows, seal and kept minutes of one moment
    try:
        start = seal.seal_position(connection)
        head = int(connection.execute("SELECT max(seq_last) FROM journal").get)
        if head - start < max(at_least, 1):
            return None
        rows = _rows(connection, start, head)
        told = moments.encode(*block.moments(rows))
        packed = seal.pack(block.decode_many(rows, "journal"), rows[-1][0], spans.SEALED, told)
        foreseen = seal.foresee(connection, packed)
    finally:
        connection.execute("COMMIT")
    return Ready(start, packed._replace(begun=[list(made) for made in packed.begun]), foreseen)


def _rows(connection: apsw.Connection, start: int, head: int) -> list[Any]:
    """Return what seal.behind() does."""
    if head - start > SEAL_RECORDS_MAX:
        return seal.behind(connection, start, head)
    found: Any = connection.execute(_ROWS, (start,)).fetchone()
    told = [int(number) for number in found[1].split()]
    seqs, counts, sizes = told[::3], told[1::3], told[2::3]
    if any(later <= seq for seq, later in itertools.pairwise(seqs)):  # SQLite does not promise to join them in order
        return seal.behind(connection, start, head)
    edges = itertools.pairwise(itertools.accumulate(sizes, initial=0))
    return [(seq, count, found[0][first:last]) for seq, count, (first, last) in zip(seqs, counts, edges, strict=True)]


def put(connection: apsw.Connection, ready: Ready) -> tuple[int, int] | None:
    """Write a span that was made ready, inside the caller's transaction; None if somebody has sealed meanwhile.

    Returns the head and how many rows of the journal are left. The journal's rows never change but by a seal, so those
    behind a seal that has not moved are those that were read.
    """
    if seal.seal_position(connection) != ready.start:
        return None
    head = int(connection.execute("SELECT max(seq_last) FROM journal").get)
    seal.write(connection, ready.packed, ready.foreseen)
    seal.clear(connection, ready.packed.end, head)
    return head, int(connection.execute("SELECT count(*) FROM journal WHERE seq_last > ?", (ready.packed.end,)).get)
