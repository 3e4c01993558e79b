"""Repair: what is damaged is set aside, byte for byte, so that everything else can be read; nothing is deleted.

A chunk or journal row that cannot be used moves to table `damaged` with its payload, its positions and its times. A row
whose content is whole but whose index is wrong is corrected. Counts and bars are made again from what is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw
import msgspec
import numpy as np

from onetape.clock import now_ns, to_text
from onetape.errors import ChunkCorrupt, TapeDamaged, TapeInUse
from onetape.record import MINUTE_NS
from onetape.store import ask, backup, bars, block, check, holders, layout, minutes, moments, query, seal, spans, sqlite
from onetape.store.block import Array, decode_many
from onetape.store.check import Counted, Damage
from onetape.store.chunks import Chunk
from onetape.store.findings import Findings


class Aside(msgspec.Struct, frozen=True):
    """Records that a repair sets aside: where they were, how many, their positions and times."""

    place: str
    symbol: str | None
    first: int
    last: int
    records: int
    times: str
    why: str


class RepairPlan(msgspec.Struct, frozen=True):
    """What a repair does, or has done. `backup`: the copy of the whole tape made before; `log`: one renamed to this."""

    path: str
    log: str | None
    backup: str | None
    aside: list[Aside]
    corrected: list[str]
    hours_of_bars: int
    done: bool

    @property
    def nothing(self) -> bool:
        """Return whether there is nothing to do."""
        return not (self.aside or self.corrected or self.hours_of_bars or self.log)


def repair(path: Path, *, execute: bool) -> RepairPlan:
    """Say what a repair of the tape would do; with `execute`, back it up beside itself and do it, in one transaction.

    Damage to SQLite's own pages is beyond it: raises TapeDamaged, which names the way on. Raises TapeInUse where the
    log has to be renamed and processes have the file open.
    """
    log = _misfitting_log(path)
    kept_log = None
    if log is not None:
        using = holders.holders(path)
        if using:
            raise TapeInUse(
                f"the log of {path} is not its own ({log}), and {len(using)} processes have it open",
                hint=f"stop {', '.join(str(holder.pid) for holder in using)} first",
                pids=[holder.pid for holder in using],
            )
        kept_log = _free(path, "-wal.aside")
        if not execute:  # what is in the file can only be looked at without that log
            return RepairPlan(str(path), str(kept_log), None, [], [], 0, False)
        layout.wal_path(path).rename(kept_log)
        layout.index_path(path).unlink(missing_ok=True)
    connection = sqlite.connect(path, mode="rw" if execute else "r")
    try:
        copy = None
        if execute:
            copy = _free(path, ".before-repair")
            backup.copy_pages(connection, copy)
        connection.execute("BEGIN IMMEDIATE" if execute else "BEGIN")
        try:
            plan = _Repair(connection, path, execute).run()
            if execute and plan.nothing and kept_log is None:
                connection.execute("ROLLBACK")
                if copy is not None:
                    copy.unlink()
                copy = None
            else:
                connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    except apsw.Error as error:
        raise TapeDamaged(
            f"{path}: its pages are damaged: {error}",
            hint="copy the file away, then restore a backup; or import what onetape export can still read",
        ) from error
    finally:
        connection.close()
    told = None if kept_log is None else str(kept_log)
    return msgspec.structs.replace(plan, log=told, backup=None if copy is None else str(copy))


def _misfitting_log(path: Path) -> str | None:
    found = Findings()
    check.look_at_files(path, found)
    for finding in found.made:
        if finding.weight == "problem" and finding.place == "log":
            return finding.message
    return sqlite.misfit(path)


def _free(path: Path, suffix: str) -> Path:
    number = 1
    while (kept := path.with_name(f"{path.name}{suffix}-{number}")).exists():
        number += 1
    return kept


class _Repair:
    """One repair, inside one transaction."""

    def __init__(self, connection: apsw.Connection, path: Path, execute: bool) -> None:
        self._connection, self._path, self._execute = connection, path, execute
        self._names: dict[int, str] = dict(ask.rows(connection, "SELECT id, name FROM symbol"))
        self._aside: list[Aside] = []
        self._corrected: list[str] = []

    def run(self) -> RepairPlan:
        """Do it, or find out what is to be done."""
        damages = list(check.walk(self._connection, Findings()))
        journal = [damage for damage in damages if damage.table == "journal"]
        for damage in damages:
            if damage.table == "chunk":
                self._chunk(damage)
        if journal:
            self._journal(journal)
        hours = self._bars()
        self._counts(damages)
        return RepairPlan(str(self._path), None, None, self._aside, self._corrected, hours, self._execute)

    def _chunk(self, damage: Damage) -> None:
        row: list[Any] = list(
            ask.row(
                self._connection,
                "SELECT id, kind, symbol_id, ts_min, ts_max, seq_min, seq_max, count, encoding, seal, sealed_ns"
                " FROM chunk WHERE id = ?",
                (damage.id,),
            )
        )
        payload = self._payload("chunk", "id", damage.id)
        if payload is not None and self._correct(Chunk._make((*row[:9], payload)), row[9]):
            return
        names = ("id", "kind", "symbol_id", "ts_min", "ts_max", "seq_min", "seq_max", "count", "encoding", "seal")
        told = dict(zip((*names, "sealed_ns"), row, strict=True))
        self._set_aside(f"chunk {damage.id}", row[2] or None, row[5], row[6], row[3], row[4], row[7], damage.why, told,
                        payload)  # fmt: skip
        if self._execute:
            self._connection.execute("DELETE FROM chunk WHERE id = ?", (damage.id,))

    def _payload(self, table: str, key: str, row: int) -> bytes | None:
        """Return the bytes of a row, or None where SQLite cannot read them."""
        question = f"SELECT CAST(payload AS BLOB) FROM {table} WHERE {key} = ?"
        try:
            return bytes(ask.value(self._connection, question, (row,)))
        except (apsw.CorruptError, apsw.IOError):
            return None

    def _correct(self, chunk: Chunk, span: int) -> bool:
        """Correct the row of a chunk whose content is whole, if its content fits its span."""
        try:
            columns = chunk.decode()
        except ChunkCorrupt:
            return False
        ts, seq = columns["ts_event_ns"], columns["seq"]
        first = ask.value(self._connection, "SELECT first FROM span WHERE seal = ?", (span,))
        if not len(ts) or first is None:
            return False
        right = chunk._replace(
            ts_min=int(ts.min()),
            ts_max=int(ts.max()),
            seq_min=int(seq.min()),
            seq_max=int(seq.max()),
            records=len(ts),
        )
        if check.misfits(right, columns, int(first), span, set(self._names)) is not None:
            return False
        self._corrected.append(f"the index of {chunk.where}")
        if self._execute:
            self._connection.execute(
                "UPDATE chunk SET ts_min = ?, ts_max = ?, seq_min = ?, seq_max = ?, count = ? WHERE id = ?",
                (right.ts_min, right.ts_max, right.seq_min, right.seq_max, right.records, chunk.id),
            )
        return True

    def _journal(self, damages: list[Damage]) -> None:
        """Seal the journal's good rows and set the others aside: the journal itself has no holes."""
        for damage in damages:
            payload = self._payload("journal", "seq_last", damage.id)
            records = damage.last - damage.first + 1
            told = {"seq_last": damage.id, "count": records}
            self._set_aside(f"journal row {damage.id}", None, damage.first, damage.last, None, None, records,
                            damage.why, told, payload)  # fmt: skip
        if not self._execute:
            return
        bad = {damage.id for damage in damages}
        since = seal.seal_position(self._connection)
        seqs = ask.rows(self._connection, "SELECT seq_last FROM journal WHERE seq_last > ? ORDER BY 1", (since,))
        good: list[Any] = [
            ask.rows(self._connection, "SELECT seq_last, count, payload FROM journal WHERE seq_last = ?", row)[0]
            for row in seqs
            if row[0] not in bad
        ]
        head = int(seqs[-1][0])
        found = decode_many(good, "journal") if good else {}
        seal.fold(self._connection, found, head, spans.SEALED, moments.encode(*block.moments(good)))
        self._connection.execute("DELETE FROM journal WHERE seq_last < ?", (head,))
        self._connection.execute("UPDATE journal SET count = 0, payload = x'' WHERE seq_last = ?", (head,))

    def _set_aside(
        self,
        place: str,
        symbol_id: int | None,
        first: int,
        last: int,
        ts_min: int | None,
        ts_max: int | None,
        records: int,
        why: str,
        told: dict[str, Any],
        payload: bytes | None,
    ) -> None:
        times = "not known" if ts_min is None or ts_max is None else f"{_shown(ts_min)} to {_shown(ts_max)}"
        symbol = None if symbol_id is None else self._names.get(symbol_id)
        self._aside.append(Aside(place, symbol, first, last, records, times, why))
        if self._execute:
            self._connection.execute(
                "INSERT INTO damaged(at_ns, place, symbol_id, first, last, ts_min, ts_max, records, why, told, payload)"
                " VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                (now_ns(), place, symbol_id, first, last, ts_min, ts_max, records, why,
                 msgspec.json.encode(told).decode(), payload),
            )  # fmt: skip

    def _bars(self) -> int:
        """Make bars again whose row is damaged or that are not the fold of their ticks; return how many hours."""
        hours: set[tuple[int, int]] = set()
        for row_id, payload in ask.rows(self._connection, "SELECT id, CAST(payload AS BLOB) FROM minute"):
            try:
                minutes._decode([(row_id, payload)])
            except ChunkCorrupt as error:
                symbol_id, hour = row_id >> 24, row_id & 0xFFFFFF
                start, many = hour * minutes.HOUR_NS, 1 if hour % 24 else 24  # a day's first row may hold the day
                self._set_aside(f"bars {row_id}", symbol_id, 0, 0, start, start + many * minutes.HOUR_NS - 1, 0,
                                error.message, {"id": row_id}, payload)  # fmt: skip
                hours |= {(symbol_id, hour + later) for later in range(many)}
                if self._execute:
                    self._connection.execute("DELETE FROM minute WHERE id = ?", (row_id,))
        if self._execute or not self._aside:  # bars can be compared only where all of their ticks can be read
            for symbol_id in self._names:
                for wrong, _ in check.wrong_bars(self._connection, symbol_id, every_day=True):
                    hours |= {(symbol_id, start // minutes.HOUR_NS) for start in wrong}
        if self._execute:
            for symbol_id, hour in sorted(hours):
                self._make_bars(symbol_id, hour * minutes.HOUR_NS)
        return len(hours)

    def _make_bars(self, symbol_id: int, start_ns: int) -> None:
        end_ns = start_ns + minutes.HOUR_NS
        since = int(ask.value(self._connection, "SELECT pruned_before_ns FROM symbol WHERE id = ?", (symbol_id,)))
        since = max(start_ns, -(-since // MINUTE_NS) * MINUTE_NS)
        if since >= end_ns:
            return
        minutes.unpack(self._connection, symbol_id, start_ns)
        old = minutes.read(self._connection, symbol_id, start_ns, end_ns)
        ticks = query.ticks(self._connection, symbol_id, since, end_ns)
        made: Array = np.zeros(0, bars.MINUTES)
        if ticks is not None and len(ticks["seq"]):
            whole = {**ticks, "symbol": np.full(len(ticks["seq"]), symbol_id, dtype="<u4")}
            made = bars.fold(bars.trades(whole), {}, bars.none_kept, lambda _symbol, _start: None)
        revisions = dict(zip(old["ts_event_ns"].tolist(), old["revision"].tolist(), strict=True))
        made["revision"] = [revisions.get(start, 0) for start in made["ts_event_ns"].tolist()]
        kept = np.concatenate((old[old["ts_event_ns"] < since], made))
        self._connection.execute("DELETE FROM minute WHERE id = ?", (minutes._id(symbol_id, start_ns),))
        minutes.write(self._connection, kept)

    def _counts(self, damages: list[Damage]) -> None:
        if damages and not self._execute:
            self._corrected.append("the counts of the symbols that lose records")
            return
        counted = Counted({}, {})
        list(check.walk(self._connection, Findings(), None, counted))
        for symbol_id, name, ticks, given in ask.rows(self._connection, "SELECT id, name, ticks, bars FROM symbol"):
            there = counted.ticks.get(symbol_id, 0), counted.bars.get(symbol_id, 0)
            if (ticks, given) != there:
                self._corrected.append(f"the counts of {name}")
                if self._execute:
                    self._connection.execute("UPDATE symbol SET ticks = ?, bars = ? WHERE id = ?", (*there, symbol_id))


def _shown(ns: int) -> str:
    return to_text(ns) if 0 <= ns < 2**63 else str(ns)
