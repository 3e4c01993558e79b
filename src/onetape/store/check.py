"""Check: a tape looked at from its file up to its last record, without changing a byte of it.

Content is read span by span, each in a read of its own, so that no log is pinned while writers go on; what is sealed
meanwhile is read too, until everything up to one moment has been seen.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import numpy as np

from onetape.clock import now_ns, to_text
from onetape.errors import ChunkCorrupt, OnetapeError, TapeMissing
from onetape.record import MINUTE_NS
from onetape.store import ask, bars, holders, layout, minutes, peek, query, sqlite, wal
from onetape.store.block import Columns, decode_many
from onetape.store.chunks import Chunk
from onetape.store.findings import Checkup, Findings
from onetape.store.layout import DAY_NS, KIND_BAR, KIND_TICK

Progress = Callable[[int, int], None]

REPAIR = "onetape doctor --repair sets aside what is damaged, so that the rest can be read"
_BACKUP = "copy the file away, then restore a backup (onetape restore)"
#: A log larger than this was kept from being begun anew by a reader.
_WAL_WARN_BYTES = 96 * 2**20
_FUTURE_NS = 60 * 1_000_000_000
_DISK_DAYS_WARN = 7
#: Symbols whose last day of bars is computed again where not all are.
_SAMPLED = 20
_SAID_MAX = 20
_LOOKS, _LOOK_AGAIN_S = 5, 0.05


class Damage(NamedTuple):
    """A row that cannot be used: of table chunk (its id), of the journal (its last position), or bars of an hour."""

    table: str
    id: int
    first: int
    last: int
    why: str


class Counted(NamedTuple):
    """What reading all chunks up to the seal has counted: records by symbol."""

    ticks: dict[int, int]
    bars: dict[int, int]


def examine(path: Path, *, full: bool = False, on_progress: Progress | None = None) -> Checkup:
    """Look at everything a tape is made of and return what was found.

    full: SQLite's long check, and every bar computed again, instead of the short one and the last day of some
    symbols. on_progress(positions read, positions in all). Raises TapeMissing; whatever else is wrong is a finding.
    """
    if not path.exists():
        raise TapeMissing(f"no tape at {path}", hint="check the path")
    found = Findings()
    log = look_at_files(path, found)
    for _ in range(_LOOKS - 1):
        if not found.made or not holders.holders(path):
            break
        time.sleep(_LOOK_AGAIN_S)  # who has it open may just have been moving the log into the file
        found = Findings()
        log = look_at_files(path, found)
    if older(path, log):
        found.warning(
            "format", "it is of an older format: only its file was looked at", "onetape upgrade brings it here"
        )
    elif not any(finding.weight == "problem" and finding.place == "log" for finding in found.made):
        try:
            connection = sqlite.connect(path, mode="r")
        except OnetapeError as error:
            found.problem("file", error.message, error.hint or _BACKUP)
        else:
            try:
                _look_inside(connection, found, full, on_progress)
            except (apsw.Error, OnetapeError) as error:
                told = sqlite.translate(error, path, "read") if isinstance(error, apsw.Error) else error
                found.problem("file", told.message, _BACKUP)
            except (UnicodeDecodeError, TypeError, ValueError) as error:  # a value of a kind that no tape holds there
                found.problem("file", f"a row holds what no tape writes: {error}", _BACKUP)
            finally:
                connection.close()
    look_around(path, found, log)
    return Checkup(str(path), found.sorted())


def older(path: Path, log: wal.Log | None) -> bool:
    """Return whether it is a tape of a format before this one."""
    return path.stat().st_size > 0 and wal.is_tape(path) and 0 < wal.version(path, log) < layout.FORMAT_VERSION


def look_at_files(path: Path, found: Findings) -> wal.Log | None:
    """Look at the file and its log from the outside."""
    log = wal.read(path)
    size = path.stat().st_size
    head = peek.read(path, 0, 100)
    if size and not head.startswith(b"SQLite format 3\0"):
        found.problem("file", "the first page is damaged, or this was never a tape", _BACKUP)
        return log
    page = int.from_bytes(head[16:18], "big") or 512
    pages = int.from_bytes(head[28:32], "big")
    missing = [number for number in range(size // page + 1, pages + 1) if log is None or number not in log.pages]
    if pages and missing:
        found.problem(
            "file",
            f"the file is cut off: it has {size:,} bytes, its head says {pages * page:,}",
            _BACKUP,
            bytes=size,
            expected=pages * page,
        )
    wal_bytes = _size(layout.wal_path(path))
    if wal_bytes and log is None:
        found.problem(
            "log",
            f"{layout.wal_path(path).name} is not a log that can be read: what was committed into it is lost",
            "onetape doctor --repair renames it, so that the file without it can be read",
        )
    elif log is not None and log.page_bytes != page and size:
        found.problem(
            "log",
            f"the log has pages of {log.page_bytes} bytes, the file of {page}: it belongs to another tape",
            "onetape doctor --repair renames it, so that the file without it can be read",
        )
    elif log is not None and log.suspect and not holders.holders(path):
        found.warning(
            "log",
            f"a page in the log is damaged: {log.suspect} pages behind it, some of them committed, are not read",
            "what they held is lost, unless a backup has it",
            pages=log.suspect,
        )
    return log


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # a log goes when the last process closes the tape


def _look_inside(connection: apsw.Connection, found: Findings, full: bool, on_progress: Progress | None) -> None:
    _pages(connection, found, full)
    for damage in walk(connection, found, on_progress):
        found.problem(damage.table, damage.why, REPAIR, id=damage.id, first=damage.first, last=damage.last)
    _bars(connection, found, full)
    _kept(connection, found)


def _pages(connection: apsw.Connection, found: Findings, full: bool) -> None:
    wrong = [
        row[0] for row in connection.execute(f"PRAGMA {'integrity_check' if full else 'quick_check'}({_SAID_MAX})")
    ]
    if wrong != ["ok"]:
        for message in wrong:
            found.problem("pages", f"SQLite: {' '.join(message.split())}", _BACKUP)
        return
    found.note("pages", f"every page is in its place ({'long' if full else 'short'} check)")


def walk(
    connection: apsw.Connection, found: Findings, on_progress: Progress | None = None, counted: Counted | None = None
) -> Iterator[Damage]:
    """Read every span and the journal; yield rows that are damaged, and add to `found` what does not fit together."""
    counted = counted or Counted({}, {})
    position, spans, read, began = 0, 0, 0, _retained(connection)
    damaged = False
    while True:
        with _moment(connection):
            seal = int(ask.value(connection, "SELECT seal FROM state"))
            row = ask.rows(connection, "SELECT seal, first FROM span WHERE seal > ? ORDER BY seal LIMIT 1", (position,))
            if not row:
                yield from _journal(connection, found, seal)
                if spans and position != seal:
                    found.problem("spans", f"the last span ends at {position}, the seal is at {seal}", _BACKUP)
                if not damaged and _retained(connection) == began:
                    _counts(connection, found, counted)
                break
            last, first = row[0]
            if first > position + 1 and not _removed(connection, position + 1, first - 1):
                found.problem("spans", f"no span holds the positions {position + 1} to {first - 1}", _BACKUP)
            damages = list(_span(connection, found, first, last, counted, position))
        damaged = damaged or bool(damages)
        yield from damages
        position, spans, read = last, spans + 1, read + last - first + 1
        if on_progress is not None:
            on_progress(position, max(seal, position))
    found.note("chunks", f"{spans:,} spans, {read:,} positions read", spans=spans, positions=read)


def _moment(connection: apsw.Connection) -> AbstractContextManager[None]:
    """Everything read inside is of one moment, also of that of a transaction that is open already."""
    return nullcontext() if connection.in_transaction else query.snapshot(connection)


def _retained(connection: apsw.Connection) -> tuple[int, int]:
    removed, times = ask.row(
        connection, "SELECT (SELECT pruned_seq FROM state), (SELECT sum(pruned_before_ns / 1000000) FROM symbol)"
    )
    return int(removed), int(times or 0)


def _removed(connection: apsw.Connection, first: int, last: int) -> bool:
    """Return whether records of these positions may be gone for a reason: retention, or an earlier repair."""
    pruned = int(ask.value(connection, "SELECT pruned_seq FROM state"))
    aside = ask.value(connection, "SELECT 1 FROM damaged WHERE first <= ? AND last >= ?", (last, first))
    return first <= pruned or aside is not None


def _span(
    connection: apsw.Connection, found: Findings, first: int, last: int, counted: Counted, after: int
) -> Iterator[Damage]:
    rows: list[Any] = ask.rows(
        connection,
        "SELECT id, kind, symbol_id, ts_min, ts_max, seq_min, seq_max, count, encoding FROM chunk WHERE seal = ?",
        (last,),
    )
    known = {row[0] for row in connection.execute("SELECT id FROM symbol")}
    parts, whole = [], True
    for row in rows:
        try:
            payload = ask.value(connection, "SELECT CAST(payload AS BLOB) FROM chunk WHERE id = ?", (row[0],))
            chunk = Chunk._make((*row, payload))
            columns = chunk.decode()
        except (ChunkCorrupt, apsw.CorruptError, apsw.IOError) as error:
            whole = False
            why = error.message if isinstance(error, OnetapeError) else f"chunk {row[0]} cannot be read: {error}"
            yield Damage("chunk", row[0], row[5], row[6], _named(connection, why, row[2]))
            continue
        wrong = misfits(chunk, columns, first, last, known)
        if wrong:
            yield Damage("chunk", row[0], row[5], row[6], _named(connection, f"{chunk.where}: {wrong}", row[2]))
            whole = False
            continue
        parts.append(columns["seq"])
        _count(counted, chunk, columns, after)
    if not whole:
        return
    seqs = np.sort(np.concatenate(parts)) if parts else np.zeros(0, dtype="<i8")
    if len(seqs) and bool((seqs[1:] == seqs[:-1]).any()):
        double = int(seqs[1:][seqs[1:] == seqs[:-1]][0])
        found.problem("spans", f"position {double} is there twice, in the span {first} to {last}", _BACKUP)
    elif len(seqs) != last - first + 1 and not _removed(connection, first, last):
        found.problem(
            "spans",
            f"the span {first} to {last} lacks {last - first + 1 - len(seqs)} of its positions",
            _BACKUP,
            first=first,
            last=last,
        )


def _named(connection: apsw.Connection, why: str, symbol_id: int) -> str:
    name = ask.value(connection, "SELECT name FROM symbol WHERE id = ?", (symbol_id,))
    return why if name is None else f"{why} [{name}]"


def misfits(chunk: Chunk, columns: Columns, first: int, last: int, known: set[int]) -> str | None:
    """Return what of a chunk's row does not fit its content, or None."""
    ts, seq = columns["ts_event_ns"], columns["seq"]
    if not len(ts) or len(ts) != chunk.records:
        return f"it holds {len(ts)} records, its row says {chunk.records}"
    for name, values, least, most in (
        ("times", ts, chunk.ts_min, chunk.ts_max),
        ("positions", seq, None, chunk.seq_max),
    ):
        if (least is not None and int(values.min()) != least) or int(values.max()) != most:
            return f"its {name} are {values.min()} to {values.max()}, its row says otherwise"
    if int(seq.min()) < chunk.seq_min or chunk.seq_min < first or int(seq.max()) > last:
        return f"its positions {seq.min()} to {seq.max()} are not those of its span, {first} to {last}"
    symbols = set(np.unique(columns["symbol"]).tolist()) if not chunk.symbol_id else {chunk.symbol_id}
    if not symbols <= known:
        return f"it is of symbols that the tape does not name: {sorted(symbols - known)[:5]}"
    return None


def _count(counted: Counted, chunk: Chunk, columns: Columns, after: int) -> None:
    """Count records behind a position: a span that was merged meanwhile holds some that are counted already."""
    into = {KIND_TICK: counted.ticks, KIND_BAR: counted.bars}.get(chunk.kind)
    if into is None:
        return
    fresh = columns["seq"] > after
    if chunk.symbol_id:
        into[chunk.symbol_id] = into.get(chunk.symbol_id, 0) + int(np.count_nonzero(fresh))
        return
    symbols, counts = np.unique(columns["symbol"][fresh], return_counts=True)
    for symbol_id, count in zip(symbols.tolist(), counts.tolist(), strict=True):
        into[symbol_id] = into.get(symbol_id, 0) + count


def _journal(connection: apsw.Connection, found: Findings, seal: int) -> Iterator[Damage]:
    expected, records = seal, 0
    for seq_last, count in ask.rows(
        connection, "SELECT seq_last, count FROM journal WHERE seq_last > ? ORDER BY seq_last", (seal,)
    ):
        if seq_last - count != expected:
            found.problem(
                "journal",
                f"row {seq_last} holds {count} records, but the one before it ends at {expected}",
                "the log beside the file may belong to another tape or an older copy of this one: " + _BACKUP,
            )
        expected = seq_last
        try:
            payload = ask.value(connection, "SELECT CAST(payload AS BLOB) FROM journal WHERE seq_last = ?", (seq_last,))
            decode_many([(seq_last, count, payload)], "journal")
            records += count
        except (ChunkCorrupt, apsw.CorruptError, apsw.IOError) as error:
            why = error.message if isinstance(error, OnetapeError) else f"journal row {seq_last}: {error}"
            yield Damage("journal", seq_last, seq_last - count + 1, seq_last, why)
    found.note("journal", f"{records:,} records wait to be sealed", records=records)


def _counts(connection: apsw.Connection, found: Findings, counted: Counted) -> None:
    for symbol_id, name, ticks, given in ask.rows(connection, "SELECT id, name, ticks, bars FROM symbol"):
        there = counted.ticks.get(symbol_id, 0), counted.bars.get(symbol_id, 0)
        if (ticks, given) != there:
            found.problem(
                "counts",
                f"{name}: {there[0]:,} ticks, {there[1]:,} given bars are there; {ticks:,} and {given:,} are counted",
                "onetape doctor --repair counts them anew",
                symbol=name,
            )


def _bars(connection: apsw.Connection, found: Findings, full: bool) -> None:
    rows = ask.rows(connection, "SELECT id FROM symbol WHERE ticks > 0 ORDER BY id")
    ids = [row[0] for row in rows]
    step = 1 if full else max(1, len(ids) // _SAMPLED)
    checked = 0
    for symbol_id in ids[::step]:
        for wrong, day in wrong_bars(connection, symbol_id, every_day=full):
            checked += 1
            if wrong:
                name = ask.value(connection, "SELECT name FROM symbol WHERE id = ?", (symbol_id,))
                found.problem(
                    "bars",
                    f"{name}: {len(wrong)} bars of {to_text(day * DAY_NS)[:10]} are not those of their ticks",
                    "onetape doctor --repair makes them again",
                    symbol=name,
                    minutes=wrong[:_SAID_MAX],
                )
    found.note("bars", f"bars of {checked:,} days of a symbol were computed again", days=checked)


def wrong_bars(connection: apsw.Connection, symbol_id: int, *, every_day: bool) -> Iterator[tuple[list[int], int]]:
    """Yield, by day (since 1970-01-01), the starts (ns) of a symbol's minutes that are not the fold of its ticks."""
    since, ts_min, ts_max = ask.row(
        connection, "SELECT pruned_before_ns, ts_min, ts_max FROM symbol WHERE id = ?", (symbol_id,)
    )
    if ts_min is None:
        return
    first = max(ts_min, since + MINUTE_NS if since else 0) // DAY_NS
    days = sorted(
        {
            day
            for low, high in connection.execute(
                "SELECT DISTINCT ts_min / ?1, ts_max / ?1 FROM chunk WHERE kind = ?2 AND symbol_id IN (0, ?3)",
                (DAY_NS, KIND_TICK, symbol_id),
            )
            for day in range(low, high + 1)
            if first <= day <= ts_max // DAY_NS
        }
    )
    lost = [  # ticks that were set aside are in the bars still
        (low // MINUTE_NS * MINUTE_NS, high)
        for low, high in ask.rows(
            connection,
            "SELECT ts_min, ts_max FROM damaged WHERE ts_min IS NOT NULL AND ifnull(symbol_id, ?1) = ?1",
            (symbol_id,),
        )
    ]
    for day in days if every_day else days[-1:]:
        start = max(day * DAY_NS, -(-since // MINUTE_NS) * MINUTE_NS)
        with _moment(connection):
            try:
                ticks = query.ticks(connection, symbol_id, start, (day + 1) * DAY_NS)
                kept, _ = query.minutes(connection, symbol_id, start, (day + 1) * DAY_NS)
            except ChunkCorrupt:
                continue  # it is told of already
        made = []
        if ticks is not None and len(ticks["seq"]):
            ticks = {**ticks, "symbol": np.full(len(ticks["seq"]), symbol_id, dtype="<u4")}
            made = bars.of_history(ticks)
        one = {bar.ts_start_ns: bar._replace(revision=0) for bar in kept}
        two = {bar.ts_start_ns: bar._replace(revision=0) for bar in made}
        wrong = sorted(start for start in one.keys() | two.keys() if one.get(start) != two.get(start))
        yield [start for start in wrong if not any(low <= start <= high for low, high in lost)], day


def _kept(connection: apsw.Connection, found: Findings) -> None:
    for row_id, payload in connection.execute("SELECT id, CAST(payload AS BLOB) FROM minute"):
        try:
            minutes._decode([(row_id, payload)])
        except ChunkCorrupt as error:
            found.problem("bars", error.message, "onetape doctor --repair makes them again", id=row_id)
    bad, newest = ask.row(connection, "SELECT count(*), max(at_ns) FROM quarantine")
    if bad:
        found.warning(
            "quarantine",
            f"{bad:,} refused records are kept, the last from {to_text(newest)}",
            "tape.quarantined() shows them with the reasons",
            records=bad,
        )
    aside, records = ask.row(connection, "SELECT count(*), sum(records) FROM damaged")
    if aside:
        found.warning("damaged", f"{records:,} records of {aside} places were set aside by a repair", records=records)
    free, page = int(connection.pragma("freelist_count")), int(connection.pragma("page_size"))
    found.note("space", f"{free * page:,} bytes of the file are free for what comes", bytes=free * page)
    later = now_ns() + _FUTURE_NS
    ahead = ask.rows(
        connection, "SELECT name, ts_max FROM symbol WHERE ts_max > ? ORDER BY ts_max DESC LIMIT 5", (later,)
    )
    for name, ts_max in ahead:
        found.warning(
            "clock",
            f"{name} has records of {to_text(ts_max)}, which is in the future",
            "a clock is wrong, here or at the source; such a record stays the latest until then",
            symbol=name,
            ts_ns=ts_max,
        )
    unfinished = ask.rows(connection, "SELECT name FROM snapshot WHERE digest IS NULL")
    for (name,) in unfinished:
        found.warning("snapshot", f"{name!r} was never finished", "if nobody is making it, delete it", name=name)
    _rate(connection, found)


def _rate(connection: apsw.Connection, found: Findings) -> None:
    path = Path(connection.filename)
    free = shutil.disk_usage(path.parent).free
    begun, head = ask.row(connection, "SELECT created_ns, (SELECT max(seq_last) FROM journal) FROM state")
    day_ago_ms = (now_ns() - DAY_NS) // 1_000_000
    before = ask.value(connection, "SELECT ifnull(max(seal), 0) FROM span WHERE at_ms < ?", (day_ago_ms,))
    lived_days = min(1.0, max((now_ns() - begun) / DAY_NS, 1 / 24))
    bytes_each = path.stat().st_size / max(head, 1)
    a_day = (head - int(before)) / lived_days * bytes_each
    days = free / a_day if a_day >= 1 else None
    told = f"{free:,} bytes are free on the disk"
    if days is not None and days < 3650:
        told += f": {days:,.0f} days at the rate of the last day ({a_day:,.0f} bytes a day)"
    if free < 2**28 or (days is not None and days < _DISK_DAYS_WARN):
        found.warning("disk", told, "free space, or keep fewer days (onetape prune)", bytes=free, days=days)
    else:
        found.note("disk", told, bytes=free, days=days)


def look_around(path: Path, found: Findings, log: wal.Log | None) -> None:
    """Look at who uses the tape, and at how long its log is and why."""
    version = wal.version(path, log) if path.stat().st_size else 0
    if version != layout.FORMAT_VERSION:
        found.note("format", f"format {version}; this onetape writes {layout.FORMAT_VERSION}", version=version)
    using = holders.holders(path)
    if using:
        told = ", ".join(f"{holder.pid} ({holder.command[:60]})" for holder in using[:10])
        found.note("processes", f"open in {len(using)}: {told}", pids=[holder.pid for holder in using])
    wal_bytes = _size(layout.wal_path(path))
    pinned = holders.pins(path)
    for pin in pinned:
        weigh = found.warning if wal_bytes > _WAL_WARN_BYTES else found.note
        behind = pin.frames - pin.frame
        weigh(
            "log",
            f"process {pin.pid} ({pin.command[:60]}) reads {behind:,} pages behind the end of the log, which cannot be"
            " begun anew meanwhile",
            pid=pin.pid,
            pages=behind,
        )
    if wal_bytes > _WAL_WARN_BYTES:
        done = holders.backfilled(path)
        state = f"; {done[0]:,} of {done[1]:,} pages are in the file already" if done else ""
        found.warning(
            "log",
            f"the log has {wal_bytes:,} bytes{state}",
            "end or shorten the reads of the processes named here" if pinned else "the next seal begins it anew",
            bytes=wal_bytes,
        )
