"""Spans: contiguous runs of positions whose records are in chunks, written by a seal and merged by compaction.

Level 0 is what a seal writes: a few thousand records of any symbols, mixed. Adjacent spans are merged into level 1,
where a symbol has chunks of its own, and those into level 2, which is as small as it gets and is not touched again.
A merged span holds exactly the records of those it replaces, in one transaction: a reader sees the one or the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import apsw

from onetape.clock import now_ns
from onetape.store import chunks, moments, packed
from onetape.store.layout import SPAN_RECORDS_MAX

SEALED, MERGED, COMPACT = 0, 1, 2
#: Records a symbol needs in a span, by level, for chunks of its own.
OWN_FROM = {SEALED: 2048, MERGED: 64, COMPACT: 1}
#: Adjacent sealed spans are merged once they are so many (a reader looks into each of them), or hold so many records.
MERGE_SPANS, MERGE_RECORDS = 16, 262_144


class Span(NamedTuple):
    """Positions first to seal, both included."""

    seal: int
    first: int
    level: int

    @property
    def positions(self) -> int:
        return self.seal - self.first + 1


class Merge(NamedTuple):
    """A merge made ready: the chunks it replaces, by id, and the rows that replace them."""

    spans: list[Span]
    level: int
    old: list[int]
    rows: list[tuple[Any, ...]]


def add(connection: apsw.Connection, seal: int, first: int, level: int, at_ms: int, told: bytes) -> None:
    """Write one span."""
    connection.execute("INSERT INTO span VALUES (?, ?, ?, ?, ?)", (seal, first, level, at_ms, told))


def after(connection: apsw.Connection, position: int) -> Span | None:
    """Return the span that holds the first sealed position greater than this one, or None."""
    for row in connection.execute(
        "SELECT seal, first, level FROM span WHERE seal > ? ORDER BY seal LIMIT 1", (position,)
    ):
        return Span._make(row)
    return None


def due(
    connection: apsw.Connection,
    level: int,
    at_least: int = 1,
    spans_at_least: int = SPAN_RECORDS_MAX,
    without: Collection[int] = (),
) -> list[Span]:
    """Return adjacent spans to be merged into one of `level`, the oldest run of them that holds enough; or none.

    Enough is `at_least` records or `spans_at_least` spans. without: seals of spans to leave alone.

    A run that cannot grow (what follows would not fit, or is of that level already) is due whatever it holds. Compact
    spans that came out small are taken in again, so that compacting often does not leave many of them.
    """
    small = SPAN_RECORDS_MAX // 2 if level == COMPACT else 0
    found = connection.execute(
        "SELECT seal, first, level FROM span WHERE level < ?1 OR (level = ?1 AND seal - first < ?2) ORDER BY seal",
        (level, small),
    ).fetchall()
    for run, ended in _runs([Span._make(row) for row in found if row[0] not in without]):
        if len(run) == 1 and run[0].level == level:
            continue
        if len(run) >= spans_at_least or (ended and len(run) > 1) or sum(span.positions for span in run) >= at_least:
            return run
    return []


def _runs(spans: list[Span]) -> Iterator[tuple[list[Span], bool]]:
    """Yield runs of adjacent spans that fit one, and whether something follows that they cannot take in."""
    run: list[Span] = []
    for span in spans:
        total = span.first - run[0].first + span.positions if run else 0
        if run and (span.first != run[-1].seal + 1 or total > SPAN_RECORDS_MAX):
            yield run, True
            run = []
        run.append(span)
    if run:
        yield run, False


def prepare(connection: apsw.Connection, found: list[Span], level: int) -> Merge:
    """Read spans and make the chunks of the one that replaces them. It takes no lock and writes nothing."""
    old = [chunk for span in found for chunk in chunks.of_span(connection, span.seal)]
    at_ns = now_ns()
    sealed_ns = connection.execute(
        "SELECT max(sealed_ns) FROM chunk WHERE seal BETWEEN ? AND ?", (found[0].seal, found[-1].seal)
    ).get
    strength = packed.SMALL if level == COMPACT else packed.FAST
    rows: list[tuple[Any, ...]] = []
    for kind, columns in chunks.by_kind(old).items():
        rows += chunks.rows(
            kind, chunks.by_symbol(columns), found[-1].seal, int(sealed_ns or at_ns), OWN_FROM[level], strength
        )
    return Merge(found, level, [chunk.id for chunk in old], rows)


def replace(connection: apsw.Connection, merge: Merge) -> bool:
    """Put a merge in place of what it was made of, inside the caller's transaction; False if that has changed."""
    first, last = merge.spans[0], merge.spans[-1]
    now: list[Any] = connection.execute(
        "SELECT seal, first, level, at_ms, moments FROM span WHERE seal BETWEEN ? AND ? ORDER BY seal",
        (first.seal, last.seal),
    ).fetchall()
    ids: list[Any] = connection.execute(
        "SELECT id FROM chunk WHERE seal BETWEEN ? AND ?", (first.seal, last.seal)
    ).fetchall()
    if [Span._make(row[:3]) for row in now] != merge.spans or {row[0] for row in ids} != set(merge.old):
        return False
    connection.executemany("DELETE FROM chunk WHERE id = ?", [(chunk_id,) for chunk_id in merge.old])
    connection.execute("DELETE FROM span WHERE seal BETWEEN ? AND ?", (first.seal, last.seal))
    at_ms, told = moments.join([(row[0], row[3], bytes(row[4])) for row in now])
    add(connection, last.seal, first.first, merge.level, at_ms, told)
    chunks.insert(connection, merge.rows)
    return True
