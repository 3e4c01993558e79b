"""Coverage: what sources said of spans of time, kept beside the ticks, and the word that travels with an append.

Of one source the last word holds: a new one cuts what it said before, and equal words that touch become one row. So
the spans of one symbol and source never overlap, and any order of overlapping words ends in rows that say the same.

An append and the word on what it covers are one transaction by way of a cursor: the append moves the cursor FILLED from
what it was to a note, which holds the word. Whoever reads coverage reads the note with it; whoever says something next
turns it into rows first. Two that fill at once have read the same cursor, and only one of them can move it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import apsw
import msgspec

from onetape.errors import ConfigInvalid
from onetape.store import aliases, journal, minutes, query, silence
from onetape.store.catalog import Catalog
from onetape.store.partition import (
    SAID_COVERED,
    SAID_EMPTY,
    SAID_FILLED,
    SAID_MISSING,
    Pair,
    Said,
    Span,
    merged,
    partition,
    without,
)

#: The cursor that a fill moves: a count, and with it the note of the fill that moved it last, if it is not in rows yet.
FILLED = "onetape:filled"
#: What a source says without a name.
UNNAMED = "(unnamed)"


class Note(msgspec.Struct, frozen=True):
    """The word that an append carries: of one source, on spans of one symbol."""

    count: int
    symbol: str = ""
    source: str = ""
    covered: tuple[Pair, ...] = ()
    empty: tuple[Pair, ...] = ()
    said_ns: int = 0


def note(connection: apsw.Connection) -> tuple[str | None, Note]:
    """Return the cursor of fills as it is, and the note in it."""
    text = journal.position(connection, FILLED)
    return text, Note(0) if text is None else msgspec.json.decode(text, type=Note)


def settle(connection: apsw.Connection, catalog: Catalog) -> tuple[str | None, int]:
    """Turn the note of the last fill into rows; return the cursor as it is then, and its count.

    The caller holds a write transaction.
    """
    text, last = note(connection)
    if last.symbol:
        say_all(connection, catalog, last)
        text = msgspec.json.encode(Note(last.count)).decode()
        connection.execute("UPDATE cursor SET position = ? WHERE name = ?", (text, FILLED))
    return text, last.count


def say_all(connection: apsw.Connection, catalog: Catalog, words: Note) -> None:
    """Write everything a note says. The caller holds a write transaction."""
    symbol_id, source_id = ids(connection, catalog, words.symbol, words.source)
    for state, pairs in ((SAID_FILLED, words.covered), (SAID_EMPTY, words.empty)):
        for start_ns, end_ns in pairs:
            say(connection, symbol_id, source_id, start_ns, end_ns, state, words.said_ns)


def ids(connection: apsw.Connection, catalog: Catalog, symbol: str, source: str | None) -> tuple[int, int]:
    """Return the ids of a symbol (or of what an alias stands for) and a source, written if they are new.

    The caller holds a transaction, at the beginning of which it refreshed the catalog, and loads it afterwards: ids of
    an aborted transaction must never be remembered. Raises ConfigInvalid for a continuous future, which has no ticks.
    """
    if symbol not in catalog.symbol_ids:
        if aliases.is_continuous(connection, symbol):
            raise ConfigInvalid(f"{symbol!r} is a continuous future", hint="speak of its contracts")
        symbol = aliases.meaning(connection, symbol, source) or symbol
    sources = [] if source is None else [source]
    catalog.add(connection, [symbol], sources)
    return catalog.ids(connection, "symbol", [symbol])[0], next(iter(catalog.ids(connection, "source", sources)), 0)


def say(
    connection: apsw.Connection, symbol_id: int, source_id: int, start_ns: int, end_ns: int, state: int, said_ns: int
) -> int:
    """Write one source's word on a span; return the start of the row that holds it. The caller holds a transaction."""
    key = (symbol_id, source_id)
    before = connection.execute(
        "SELECT max(start_ns) FROM coverage WHERE symbol_id = ? AND source_id = ? AND start_ns < ?", (*key, start_ns)
    ).get
    rows: list[Any] = connection.execute(
        "SELECT start_ns, end_ns, state, said_ns FROM coverage"
        " WHERE symbol_id = ? AND source_id = ? AND start_ns >= ? AND start_ns <= ?",
        (*key, start_ns if before is None else before, end_ns),
    ).fetchall()
    connection.executemany(
        "DELETE FROM coverage WHERE symbol_id = ? AND source_id = ? AND start_ns = ?", [(*key, row[0]) for row in rows]
    )
    kept: list[tuple[int, int, int, int]] = []
    for row_start, row_end, row_state, row_said in rows:
        if row_state == state and row_start <= end_ns and row_end >= start_ns:
            start_ns, end_ns, said_ns = min(start_ns, row_start), max(end_ns, row_end), max(said_ns, row_said)
            continue
        kept += [
            (low, high, row_state, row_said)
            for low, high in ((row_start, min(row_end, start_ns)), (max(row_start, end_ns), row_end))
            if low < high
        ]
    connection.executemany(
        "INSERT INTO coverage(symbol_id, source_id, start_ns, end_ns, state, said_ns) VALUES (?,?,?,?,?,?)",
        [(*key, *row) for row in [*kept, (start_ns, end_ns, state, said_ns)]],
    )
    return start_ns


def extend(
    connection: apsw.Connection, symbol_id: int, source_id: int, row_ns: int, from_ns: int, until_ns: int, said_ns: int
) -> int:
    """Let a source's covered span grow from `from_ns` to `until_ns`; return the start of its row, for the next time.

    `row_ns` is what the last call returned: then it is one update of one row. The caller holds a transaction.
    """
    connection.execute(
        "UPDATE coverage SET end_ns = ?5, said_ns = ?6 WHERE symbol_id = ?1 AND source_id = ?2 AND start_ns = ?3"
        " AND end_ns = ?4 AND state = ?7 AND NOT EXISTS (SELECT 1 FROM coverage WHERE symbol_id = ?1"
        " AND source_id = ?2 AND start_ns > ?3 AND start_ns <= ?5)",
        (symbol_id, source_id, row_ns, from_ns, until_ns, said_ns, SAID_COVERED),
    )
    if connection.changes():
        return row_ns
    return say(connection, symbol_id, source_id, from_ns, until_ns, SAID_COVERED, said_ns)


def said(connection: apsw.Connection, catalog: Catalog, symbol: str, start_ns: int, end_ns: int) -> list[Said]:
    """Return what sources said of start_ns … end_ns, the note of the last fill included."""
    _, last = note(connection)
    noted: list[Said] = []
    symbol_id = catalog.symbol_id(connection, symbol)
    if symbol_id is not None and last.symbol and catalog.symbol_id(connection, last.symbol) == symbol_id:
        noted = [Said(last.source, a, b, SAID_FILLED) for a, b in last.covered]
        noted += [Said(last.source, a, b, SAID_EMPTY) for a, b in last.empty]
    found: list[Said] = []
    if symbol_id is not None:
        rows: list[Any] = connection.execute(
            "SELECT source_id, start_ns, end_ns, state FROM coverage"
            " WHERE symbol_id = ? AND start_ns < ? AND end_ns > ? ORDER BY source_id, start_ns",
            (symbol_id, end_ns, start_ns),
        ).fetchall()
        newer = merged((word.start_ns, word.end_ns) for word in noted)
        for source_id, low, high, state in rows:
            source = catalog.source(connection, source_id) or UNNAMED
            pieces = without([(low, high)], newer) if newer and source == last.source else [(low, high)]
            found += [Said(source, a, b, state) for a, b in pieces]
    return found + [word for word in noted if word.start_ns < end_ns and word.end_ns > start_ns]


def declared(connection: apsw.Connection, catalog: Catalog, symbol: str) -> Pair | None:
    """Return the first and last time that any source said it recorded, or missed, or None; filling in is neither."""
    symbol_id = catalog.symbol_id(connection, symbol)
    edges: list[int] = []
    if symbol_id is not None:
        rows: list[Any] = connection.execute(
            "SELECT min(start_ns), max(end_ns) FROM coverage WHERE symbol_id = ? AND state IN (?, ?)",
            (symbol_id, SAID_COVERED, SAID_MISSING),
        ).fetchall()
        edges += [edge for edge in rows[0] if edge is not None]
    return (min(edges), max(edges)) if edges else None


def known(
    connection: apsw.Connection, catalog: Catalog, symbol: str, counts: Mapping[int, query.SymbolCounts] | None = None
) -> Pair | None:
    """Return the first and the last time that the tape knows anything of a symbol, or None.

    counts: those of all symbols, for who asks for many.
    """
    symbol_id = catalog.symbol_id(connection, symbol)
    spoken = declared(connection, catalog, symbol)
    edges = [] if spoken is None else list(spoken)
    if symbol_id is not None:
        mine = (query.symbol_counts(connection) if counts is None else counts).get(symbol_id)
        if mine is not None and mine.ts_min is not None and mine.ts_max is not None:
            edges += [mine.ts_min, mine.ts_max + 1]
        pruned = _pruned(connection, symbol_id)
        edges += [edge for pair in pruned for edge in pair]
    return (min(edges), max(edges)) if edges else None


def _pruned(connection: apsw.Connection, symbol_id: int) -> list[Pair]:
    """Return what retention has removed of a symbol: from its first bar, which stayed, to the last tick removed."""
    before = int(connection.execute("SELECT pruned_before_ns FROM symbol WHERE id = ?", (symbol_id,)).get)
    if not before:
        return []
    first_id, last_id = minutes._id(symbol_id, 0), minutes._id(symbol_id, before)
    row_id = connection.execute("SELECT min(id) FROM minute WHERE id BETWEEN ? AND ?", (first_id, last_id)).get
    first = None if row_id is None else (int(row_id) - first_id) * minutes.HOUR_NS
    said_first = connection.execute(
        "SELECT min(start_ns) FROM coverage WHERE symbol_id = ? AND state IN (1, 2)", (symbol_id,)
    ).get
    edges = [edge for edge in (first, said_first) if edge is not None]
    return [(min(edges), before)] if edges and min(edges) < before else [(before - 1, before)]


def spans(
    connection: apsw.Connection,
    catalog: Catalog,
    symbol: str,
    start_ns: int,
    end_ns: int,
    *,
    closed: Sequence[Pair] = (),
    quiet_ns: int,
    only_gaps: bool = False,
) -> list[Span]:
    """Return start_ns … end_ns of a symbol as a partition (see spans.Span), of one moment.

    only_gaps: time that is covered is not looked at for silence, so nothing of it is read.
    """
    words = said(connection, catalog, symbol, start_ns - quiet_ns - 2, end_ns + quiet_ns + 2)
    spoken = declared(connection, catalog, symbol)
    symbol_id = catalog.symbol_id(connection, symbol)
    covered = merged((word.start_ns, word.end_ns) for word in words if word.state in (SAID_COVERED, SAID_FILLED))
    missing = merged((word.start_ns, word.end_ns) for word in words if word.state == SAID_MISSING)
    told = merged([*covered, *missing])
    asked = [(start_ns, end_ns)]
    if symbol_id is None:
        return partition(symbol, start_ns, end_ns, words, still=asked, closed=closed, declared=spoken)
    looked_at = [*without(missing, covered), *([] if only_gaps else covered)]
    silent = silence.silent(connection, symbol_id, looked_at, start_ns, end_ns, quiet_ns, closed)
    still: list[Pair] = []
    for low, high in without(asked, told):
        middle = high if spoken is None else min(max(low, spoken[0]), high)
        if low < middle:
            still += silence.unusual(connection, symbol_id, low, middle, closed)
        if middle < high:
            still += _stops(connection, symbol_id, middle, high)
    return partition(
        symbol,
        start_ns,
        end_ns,
        words,
        silent=silent,
        still=still,
        closed=closed,
        pruned=_pruned(connection, symbol_id),
        declared=spoken,
    )


def _stops(connection: apsw.Connection, symbol_id: int, start_ns: int, end_ns: int) -> list[Pair]:
    """Return where a hole between two words, of which start_ns … end_ns is a part, has no ticks of its own."""
    link_ns = silence.SUSPECT_MIN_NS
    words = "FROM coverage WHERE symbol_id = ? AND state IN (1, 2, 4) AND"
    ends: list[Any] = connection.execute(
        f"SELECT end_ns, state {words} end_ns <= ? ORDER BY end_ns DESC, state = 2 LIMIT 1", (symbol_id, start_ns)
    ).fetchall()
    after = connection.execute(f"SELECT min(start_ns) {words} start_ns >= ?", (symbol_id, end_ns)).get
    hole_ns, said_state = ends[0] if ends else (start_ns, SAID_MISSING)
    first = max(hole_ns, start_ns - link_ns - 1)
    last = min(end_ns + link_ns + 1, end_ns + link_ns + 1 if after is None else after)
    chained = first == hole_ns and said_state != SAID_MISSING
    return silence.stops(connection, symbol_id, first, last, link_ns, chained)
