"""Sierra Chart's .scid files: single trades become ticks, other records bars. A file that grew adds what is new.

How far a file was imported is kept on the tape under what the file begins with: its first record, and how it is read.
Importing it again goes on behind the last record, after a look whether all before it is what it was.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from onetape.clock import now_ns, to_text
from onetape.errors import ImportInvalid
from onetape.importing import scid_file
from onetape.importing.format import Batch, Format, Options, Part, Tell, Wrong
from onetape.record import interval_ns

if TYPE_CHECKING:
    from onetape.tape import Tape

#: Records of one transaction: 10 MB of the file, some 40 MB of memory.
BATCH_RECORDS = 262_144
#: Records that the interval of bars is inferred from.
_INFER_RECORDS = 65_536
#: A time this much after now is not a clock that is fast but a damaged file, s.
FUTURE_S_MAX = 86_400
#: A last bar is taken as written for good this long after its end, s: the file is flushed every 5 s by default.
FORMING_S = 60


class _Place(msgspec.Struct, frozen=True):
    """How far a file is on the tape: records, the sha256 of all but the last, the last itself, its revision."""

    records: int
    before: str
    last: str
    revision: int = 0


class _File(Part):
    """One file, read up to where it ended when it was opened."""

    steady = False  # a live file grows: what is read twice is not what is added meanwhile

    def __init__(self, path: Path, options: Options) -> None:
        self.path, self.shown = path, str(path)
        self._options = options
        self._symbol = options.symbol or path.name.removesuffix(path.suffix)
        self._source = options.source or "sierra"
        self._prices = scid_file.Prices(options.multiplier, options.tick_size)
        self._now_ns = now_ns()
        with path.open("rb") as file:
            self._header = scid_file.read_header(file.read(scid_file.HEADER_BYTES), self.shown)
            self.bytes_total = path.stat().st_size
            self._records = self._header.count(self.bytes_total)
            file.seek(self._header.header_bytes)
            first = file.read(self._header.record_bytes)
        if len(first) == self._header.record_bytes:
            self.kind = "bars" if scid_file.bar_mask(self._header.records(first))[0] else "ticks"
        torn = self.bytes_total - self._header.offset(self._records)
        self.notes = [f"{torn} bytes of a record behind the last whole one are left"] if torn > 0 else []
        self._interval_ns = interval_ns(options.interval) if options.interval is not None else None
        self.how = {"symbol": self._symbol, "source": self._source, "interval": options.interval, **self._prices.how}
        named = msgspec.json.encode({**self.how, "first": first[:40].hex()}, order="deterministic")
        self._name = f"scid:{hashlib.sha256(named).hexdigest()}"
        self._known: str | None = None
        self._place = _Place(0, "", "")
        self._expected = 0
        self._begun = False

    def begin(self, tape: Tape | None) -> None:
        if tape is not None and not self._begun:
            self._known = tape.cursor(self._name)
            if self._known is not None:
                self._place = msgspec.json.decode(self._known, type=_Place)
        self._begun = True

    def end(self, tape: Tape) -> None:
        """Look that nobody else was at work with the same file: what is counted as known must be there."""
        found = tape.cursor(self._name)
        if found is not None and msgspec.json.decode(found, type=_Place).records < self._expected:
            raise ImportInvalid(
                f"{self.shown}: somebody else imported it meanwhile, and not all of it", hint="import it again"
            )

    def batches(self, tell: Tell) -> Generator[Batch, None, str]:
        place, before = self._place, self._known
        if place.records > self._records:
            raise self._replaced(f"it has {self._records} records, and {place.records} of it are on the tape")
        size, digest, until = self._header.record_bytes, hashlib.sha256(), self._records
        with self.path.open("rb") as file:
            file.seek(self._header.header_bytes)
            revised = self._pass(file.read, place, digest)
            done = place.records - revised
            if revised:
                file.seek(self._header.offset(done))
            if done:
                tell(self._header.offset(done))
                yield Batch(data=[], rows=0, place=str, known=done)
            while done < until:
                raw = file.read(min(BATCH_RECORDS, until - done) * size)
                if not raw or len(raw) % size:
                    raise ImportInvalid(f"{self.shown}: it became shorter while it was read", hint="import it again")
                records = self._header.records(raw)
                mask = scid_file.bar_mask(records)
                if self._is_forming(records[-1:], bool(mask[-1]), done + len(records) == until):
                    until -= 1
                    records, mask = records[:-1], mask[:-1]
                edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(records)]
                for start, end in itertools.pairwise(edges):
                    if start == end:
                        continue
                    digest.update(memoryview(raw)[start * size : (end - 1) * size])
                    last = raw[(end - 1) * size : end * size]
                    revision = place.revision + 1 if revised and done + start == place.records - 1 else 0
                    kept = revision if end - start == 1 else 0
                    after = msgspec.json.encode(_Place(done + end, digest.hexdigest(), last.hex(), kept)).decode()
                    digest.update(last)
                    batch = self._batch(records[start:end], bool(mask[start]), done + start, revision)
                    batch.cursor = (self._name, before, after)
                    before = after
                    yield batch
                done += len(records)
                tell(self._header.offset(done))
        self._expected = done
        if until < self._records:
            yield Batch(data=[], rows=0, place=str, skipped={"the last bar, which is not over": 1})
        return digest.hexdigest()

    def _pass(self, read: Callable[[int], bytes], place: _Place, digest: Any) -> bool:
        """Read what is on the tape into the digest; return whether its last bar was written anew since."""
        size = self._header.record_bytes
        left = (place.records - 1) * size
        while left > 0:
            raw = read(min(left, BATCH_RECORDS * size))
            if not raw:
                raise self._replaced("it became shorter")
            digest.update(raw)
            left -= len(raw)
        if not place.records:
            return False
        if digest.hexdigest() != place.before:
            raise self._replaced(f"its first {place.records - 1} records are not those that are on the tape")
        last = read(size)
        if last.hex() == place.last:
            digest.update(last)
            return False
        was, is_now = self._header.records(bytes.fromhex(place.last)), self._header.records(last)
        if not (len(is_now) and scid_file.bar_mask(is_now)[0] and was["time"][0] == is_now["time"][0]):
            raise self._replaced(f"its record {place.records} is not the one that is on the tape")
        return True

    def _replaced(self, what: str) -> ImportInvalid:
        return ImportInvalid(
            f"{self.shown}: the file was replaced since it was imported: {what}; nothing was stored",
            hint="import it under another --source, and compare; or tail it with a source of the kind scid",
            file=self.shown,
        )

    def _is_forming(self, last: scid_file.Records, is_bar: bool, at_end: bool) -> bool:
        """Return whether the file's last record is a bar that will be written again: it is for a later import."""
        if not (at_end and is_bar):
            return False
        ends_ns = int(scid_file.times_ns(last)[0]) + self._bar_interval_ns()
        return self._now_ns - FORMING_S * 1_000_000_000 < ends_ns <= self._now_ns + FUTURE_S_MAX * 1_000_000_000

    def _bar_interval_ns(self) -> int:
        if self._interval_ns is None:
            with self.path.open("rb") as file:
                file.seek(self._header.header_bytes)
                records = self._header.records(file.read(_INFER_RECORDS * self._header.record_bytes))
            self._interval_ns = scid_file.infer_interval_ns(records[scid_file.bar_mask(records)])
            if self._interval_ns is None:
                raise ImportInvalid(
                    f"{self.shown}: it has bars, and their times do not tell how long they are",
                    hint="say it: --kind bars --interval 1min",
                    file=self.shown,
                )
        return self._interval_ns

    def _batch(self, records: scid_file.Records, is_bar: bool, first: int, revision: int) -> Batch:
        ns = scid_file.times_ns(records)
        wrong = {at: Wrong("time", int(records["time"][at]), "no time") for at in np.flatnonzero(ns < 0).tolist()}
        ahead = np.flatnonzero(ns > self._now_ns + FUTURE_S_MAX * 1_000_000_000)
        for at in ahead.tolist():
            wrong[at] = Wrong("time", to_text(int(ns[at])), "a time in the future: a wrong clock, or a damaged file")

        def place(index: int) -> str:
            return f"record {first + index + 1}"

        data: Any
        if is_bar:
            data = scid_file.bars(
                records, self._symbol, self._source, self._prices, self._bar_interval_ns(), self._now_ns
            )
            for at in wrong:
                data[at] = msgspec.structs.replace(data[at], ts_start_ns=-1)
            if revision:
                data[0] = msgspec.structs.replace(data[0], revision=revision)
        else:
            data = scid_file.tick_columns(records, self._symbol, self._source, self._prices)
            data["ts_event_ns"][list(wrong)] = -1
        return Batch(data=data, rows=len(records), place=place, wrong=wrong)


def _parts(path: Path, options: Options) -> Sequence[Part]:
    if options.interval is not None:
        try:
            interval_ns(options.interval)
        except ValueError as error:
            raise ImportInvalid(f"--interval: {error}", hint="such as 1min, 5min, 1h, 1d") from error
    return [_File(path, options)]


def _detects(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"SCID" or path.suffix.lower() == ".scid"
    except OSError:
        return False


FORMAT = Format(
    name="scid",
    says="Sierra Chart's intraday files (.scid): trades with bid and ask, or bars; a file that grew adds what is new",
    detects=_detects,
    parts=_parts,
    uses=frozenset({"symbol", "source", "kind", "interval", "multiplier", "tick_size"}),
)
