"""The tail of a .scid file: its records from a place on, then each as it is written, whatever becomes of the file."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from onetape.clock import now_ns, to_text
from onetape.errors import ConfigInvalid, ImportInvalid
from onetape.importing import scid_file
from onetape.importing.scid import FUTURE_S_MAX
from onetape.importing.scid_file import EPOCH_US, Header, Prices, Records
from onetape.record import TS_MAX_NS, Bar
from onetape.sources.growing import GrowingFile, GrowingSource
from onetape.sources.source import ALIVE_S, Delivery

#: Records of one delivery, at most.
_BLOCK = 65_536
#: Up to so many trades come as records, more as columns.
_AS_RECORDS = 256
_INFER_RECORDS = 4096
#: Two flushes whose last records are no further apart, us, had Sierra Chart recording in between.
_CLOSE_US = 60_000_000


class Place(msgspec.Struct, frozen=True):
    """Where a tail stands, and by what it knows the file again; the cursor is this as JSON.

    records: how many of the file are behind it. time: that of the last, as the file has it (0: none yet). same: how
    many of the last ones share it. first, last: the first record of the file and the last behind it, in hex. revision,
    forming: of the last, if it is a bar: how often it was written anew, and whether its interval was not over.
    """

    records: int = 0
    time: int = 0
    same: int = 0
    first: str = ""
    last: str = ""
    revision: int = 0
    forming: bool = False


class ScidTail(GrowingSource):
    """Ticks and bars of one symbol from a .scid file that Sierra Chart writes.

    A file that is missing, damaged, replaced by an older one, or ahead of the clock is waited out: state "waiting",
    and `trouble` says why. After a file was replaced it goes on behind the last time that it gave, without a repeat.
    flush_lag_ms is the age of the oldest record of the newest flush: how late the file is, mostly by Sierra Chart's
    own setting; facts["notice_ms"] how long after the write it was given.
    """

    kind = "scid"

    def __init__(
        self,
        path: str | Path,
        symbol: str,
        *,
        name: str = "scid",
        source: str | None = "sierra",
        prices: Prices | None = None,
        interval_ns: int | None = None,
        start_ns: int | None = None,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        """`start_ns`: where to begin without a cursor; None: the file's first record, -1: what is written from now."""
        super().__init__(name, clock=clock)
        self._path, self._symbol, self._from = Path(path), symbol, source
        self._prices, self._interval_ns = prices or Prices(), interval_ns
        self._place = Place()
        if start_ns is not None:
            start_us = (clock() if start_ns < 0 else start_ns) // 1000
            self._place = Place(time=EPOCH_US + start_us - 1)
        self._behind = ""
        self._caught_up = False

    def resume(self, cursor: str | None) -> None:
        if cursor is not None:
            try:
                self._place = msgspec.json.decode(cursor, type=Place)
                bytes.fromhex(self._place.last)
            except (msgspec.DecodeError, ValueError) as error:
                raise ConfigInvalid(
                    f"source {self.name}: {cursor[:80]!r} is no place in a .scid file",
                    hint="a source of another kind had this name: give it another one",
                ) from error
        super().resume(cursor)

    def _deliveries(self) -> Iterator[Delivery]:
        while not self.stopped:
            if (yield from self._reading(self._path)) and not self._behind and not self.stopped:
                self._count(reconnects=1)

    def _of(self, file: GrowingFile) -> Iterator[Delivery]:
        """Yield what comes of one file, until it is another one."""
        header = scid_file.read_header(file.read(0, scid_file.HEADER_BYTES), str(self._path))
        self._find(file, header)
        if self._behind:
            self._trouble(f"{self._behind}; it is read again when it changes")
            file.wait(ALIVE_S, self._stopped)
            return
        self._caught_up = False
        given = time.monotonic()
        while not self.stopped and not file.replaced and (state := self._compare(file, header)) != "replaced":
            place = self._place
            count = header.count(file.size)
            fresh: list[Delivery] = []
            trouble = None
            if place.records and (state == "rewritten" or (place.forming and count > place.records)):
                fresh.append(self._again(file, header, count))
            elif count > place.records:
                raw = file.read(header.offset(place.records), min(count - place.records, _BLOCK) * header.record_bytes)
                records = header.records(raw)
                if self._compare(file, header) == "replaced" or len(records) == 0:
                    return
                good, trouble = self._checked(records)
                fresh, why = self._given(records[:good], raw, header, count)
                trouble = why or trouble if not fresh else None
            if fresh:
                self._tell(state="live", trouble=None)
                self._measure(file, fresh[0])
                fresh[-1] = self._covering(fresh[-1], place)
                for delivery in fresh:
                    yield delivery
                    if self.stopped:
                        return
                given = time.monotonic()
                continue
            if trouble:
                self._trouble(trouble)
                file.wait(ALIVE_S, self._stopped)
                continue
            self._caught_up = True
            self._tell(state="live", trouble=None)
            if not file.wait(max(0.0, given + ALIVE_S * 0.9 - time.monotonic()), self._stopped):
                yield Delivery()
                given = time.monotonic()

    def _find(self, file: GrowingFile, header: Header) -> None:
        """Find the place in a file that was opened: where it was, or behind the time that was given last."""
        place, count = self._place, header.count(file.size)
        self._behind = ""
        if not place.time or (0 < place.records <= count and self._compare(file, header) != "replaced"):
            return
        same: list[int] = []
        later: int | None = None
        older = 0
        for start in range(0, count, _BLOCK):
            records = self._read(file, header, start, min(_BLOCK, count - start))
            times = records["time"]
            older += int((times < place.time).sum())
            same += (np.flatnonzero(times == place.time) + start).tolist()[: max(0, place.same - len(same))]
            if later is None and (found := np.flatnonzero(times > place.time)).size:
                later = start + int(found[0])
        if place.records and later is None and not same:  # the place is kept: the file may be half written yet
            ends = f"it ends {_text(self._read(file, header, count - 1, 1))}" if count else "it has no records"
            given = to_text((place.time - EPOCH_US) * 1000)
            self._behind = f"{self._path}: replaced by an older file: {ends}, and all up to {given} was given"
            return
        at = same[-1] + 1 if same else count if later is None else later
        first, last = self._raw(file, header, 0), self._raw(file, header, at - 1) if at else b""
        kept = place.last if same and _is_bar(header, last) else last.hex()
        self._place = msgspec.structs.replace(
            place, records=at, first=first.hex() if at else "", last=kept, forming=place.forming and bool(same)
        )
        if place.records:
            with self._lock:
                self._facts["replaced"] = self._facts.get("replaced", 0) + 1
                self._facts["older_records_more"] = older + len(same) - place.records

    def _compare(self, file: GrowingFile, header: Header) -> str:
        """Return whether the file is "same", its last bar was "rewritten", or it is "replaced" by another."""
        place = self._place
        head = file.read(0, header.offset(1))
        if _stated(head, str(self._path)) != header:
            return "replaced"
        if not place.records:
            return "same"
        if header.count(file.size) < place.records:
            return "replaced"
        if place.records > 1 and head[header.header_bytes :].hex() != place.first:
            return "replaced"
        raw = self._raw(file, header, place.records - 1)
        if raw.hex() == place.last:
            return "same"
        if len(raw) == header.record_bytes and _is_bar(header, raw) and header.records(raw)["time"][0] == place.time:
            return "rewritten"
        return "replaced"

    def _checked(self, records: Records) -> tuple[int, str | None]:
        """Return how many records have a time that can be, and what is wrong with the one behind them."""
        ns = scid_file.times_ns(records)
        bad = np.flatnonzero((ns < 0) | (ns > self._clock() + FUTURE_S_MAX * 1_000_000_000))
        if not len(bad):
            return len(records), None
        at = int(bad[0])
        where = f"{self._path}, record {self._place.records + at + 1}"
        if ns[at] < 0:
            return at, f"{where}: its time is none ({int(records['time'][at])}); what follows is not read until it is"
        return at, f"{where}: from the future, {to_text(int(ns[at]))}; what follows is not read until then"

    def _given(self, records: Records, raw: bytes, header: Header, count: int) -> tuple[list[Delivery], str | None]:
        """Return records as deliveries, and move the place; or why there are none."""
        mask = scid_file.bar_mask(records)
        if mask.any() and self._interval_ns is None:
            self._interval_ns = scid_file.infer_interval_ns(records[mask][:_INFER_RECORDS])
            if self._interval_ns is None:
                return [], f"{self._path}: its bars do not tell how long they are; give the source an interval"
        edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(records)]
        found = []
        for start, end in itertools.pairwise(edges):
            if start == end:
                continue
            run, bars = records[start:end], []
            if mask[start]:
                at_end = self._place.records + (end - start) == count
                bars = self._bars(run, at_end)
            self._move(run, raw[: header.record_bytes], raw[(end - 1) * header.record_bytes :], header, bars)
            cursor = msgspec.json.encode(self._place).decode()
            if bars:
                found.append(Delivery(records=bars, cursor=cursor))
                continue
            columns = scid_file.tick_columns(run, self._symbol, self._from, self._prices)
            if len(run) <= _AS_RECORDS:
                found.append(Delivery(records=scid_file.ticks(columns), cursor=cursor))
            else:
                found.append(Delivery(columns=columns, cursor=cursor))
        return found, None

    def _bars(self, records: Records, at_end: bool) -> list[Bar]:
        if self._interval_ns is None:  # (it was inferred before there was a bar)
            raise ImportInvalid(f"{self._path}: bars of no interval", hint="give the source an interval")
        clock = self._clock()
        made = scid_file.bars(records, self._symbol, self._from, self._prices, self._interval_ns, TS_MAX_NS)
        if at_end:  # the others are over, as another one follows
            over = made[-1].ts_start_ns + self._interval_ns <= clock
            made[-1] = msgspec.structs.replace(made[-1], complete=over)
        return made

    def _again(self, file: GrowingFile, header: Header, count: int) -> Delivery:
        """Return the last bar once more: as it was written anew, or as one that is over now."""
        place = self._place
        raw = self._raw(file, header, place.records - 1)
        records = header.records(raw)
        if self._interval_ns is None:
            before = self._read(file, header, max(0, place.records - _INFER_RECORDS), min(count, _INFER_RECORDS))
            self._interval_ns = scid_file.infer_interval_ns(before[scid_file.bar_mask(before)])
        (bar,) = self._bars(records, count == place.records)
        bar = msgspec.structs.replace(bar, revision=place.revision + 1)
        self._place = msgspec.structs.replace(place, last=raw.hex(), revision=bar.revision, forming=not bar.complete)
        return Delivery(records=[bar], cursor=msgspec.json.encode(self._place).decode())

    def _move(self, run: Records, first: bytes, last: bytes, header: Header, bars: Sequence[Bar]) -> None:
        place, times = self._place, run["time"]
        now = int(times[-1])
        other = np.flatnonzero(times != now)
        same = len(times) - 1 - int(other[-1]) if len(other) else len(times)
        if same == len(times) and now == place.time:
            same += place.same
        self._place = Place(
            records=place.records + len(run),
            time=now,
            same=same,
            first=place.first if place.records else first.hex(),
            last=last[: header.record_bytes].hex(),
            forming=bool(bars) and not bars[-1].complete,
        )

    def _covering(self, delivery: Delivery, before: Place) -> Delivery:
        """Return a flush with the time since the record before it as covered, if the one followed the other closely."""
        place = self._place
        if not self._caught_up or not before.records or not 0 < place.time - before.time <= _CLOSE_US:
            return delivery
        start_ns, end_ns = ((us - EPOCH_US) * 1000 for us in (before.time, place.time))
        return msgspec.structs.replace(delivery, covers=[(self._symbol, start_ns, end_ns)])

    def _measure(self, file: GrowingFile, delivery: Delivery) -> None:
        if not self._caught_up:
            return
        now = self._clock()
        if delivery.columns is not None:
            oldest = int(delivery.columns["ts_event_ns"][0])
        else:
            record = delivery.records[0]
            if isinstance(record, Bar):
                return
            oldest = record.ts_event_ns
        with self._lock:
            self._facts["notice_ms"] = max(0.0, (now - file.written_ns) / 1e6)
        self._tell(flush_lag_ms=(now - oldest) / 1e6)

    def _raw(self, file: GrowingFile, header: Header, record: int) -> bytes:
        return file.read(header.offset(record), header.record_bytes)

    def _read(self, file: GrowingFile, header: Header, start: int, count: int) -> Records:
        return header.records(file.read(header.offset(start), count * header.record_bytes))


def _stated(head: bytes, shown: str) -> Header | None:
    try:
        return scid_file.read_header(head, shown)
    except ImportInvalid:
        return None


def _is_bar(header: Header, raw: bytes) -> bool:
    return bool(len(raw) >= header.record_bytes and scid_file.bar_mask(header.records(raw))[0])


def _text(records: Records) -> str:
    ns = int(scid_file.times_ns(records)[0]) if len(records) else -1
    return to_text(ns) if ns >= 0 else "at no time"
