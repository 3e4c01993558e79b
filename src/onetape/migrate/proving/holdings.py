"""Holdings: what old keys, new keys and tape hold, each read once and added up by symbol and day."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from onetape.migrate.plans.plan import Plan
from onetape.migrate.proving import exact
from onetape.migrate.proving.bar_values import BarPart, BarTotals
from onetape.migrate.proving.close_look import CloseLook
from onetape.migrate.proving.conservation import NEW, OLD, TAPE, Counts, Finding
from onetape.migrate.proving.day_sums import DaySums, Key, Sums
from onetape.migrate.proving.ohlc_check import OhlcCheck
from onetape.migrate.proving.plain_reading import PlainReading
from onetape.migrate.proving.tape_side import Names, names_of, of_tape
from onetape.migrate.proving.tick_sides import Part, Reading, Redis, Unread, Wanted
from onetape.migrate.report import key_text
from onetape.migrate.wire.endpoint import Endpoint
from onetape.tape import Tape

_IDENTITIES_MAX = 4_000_000

#: Told as it goes on: the side, and ticks of it read so far.
OnProgress = Callable[[str, int], None]


class Findings:
    """Findings in the order in which they are met, so many of a kind; those beyond are counted."""

    def __init__(self, listed_max: int) -> None:
        self.listed: list[Finding] = []
        self.unlisted = Counter[str]()
        self._counts = Counter[str]()
        self._listed_max = listed_max

    def note(self, finding: Finding) -> None:
        """List a finding; of those beyond what is listed, one that is a failure takes the place of one that is none."""
        kind = finding.kind
        if self._counts[kind] < self._listed_max:
            self.listed.append(finding)
            self._counts[kind] += 1
            return
        self.unlisted[kind] += 1
        if finding.failure:
            mild = (at for at, one in enumerate(self.listed) if one.kind == kind and not one.failure)
            place = next(mild, None)
            if place is not None:
                self.listed[place] = finding


class Holdings:
    """What each of `sides` holds, once read_all() was called: `sums` of ticks and `bars` by side."""

    def __init__(
        self,
        endpoint: Endpoint,
        plan: Plan,
        tape: Tape | None,
        target: Endpoint | None,
        until_ns: int | None,
        findings: Findings,
        on_progress: OnProgress | None,
    ) -> None:
        self._redis = Redis(endpoint, plan, target)
        self._tape, self._until_ns = tape, until_ns
        self._named: Names = names_of(tape)
        self._note, self._on_progress = findings.note, on_progress
        self.sides = (OLD, NEW) if tape is None else (OLD, NEW, TAPE)
        self._adding = {side: DaySums(plan.timezone, until_ns) for side in self.sides}
        self.sums: dict[str, dict[Key, Sums]] = {}
        self.bars = {side: BarTotals() for side in self.sides}
        self.ohlc = OhlcCheck(tape)
        self.read_twice = self.doubled = 0
        self._others, self._read = Counter[str](), Counter[str]()
        self._plain, self._merged = PlainReading(), _Merged()
        self._foreign = False

    def of(self, side: str, key: Key) -> Sums:
        """Return the sums of one symbol and day."""
        return self.sums[side].get(key) or _NOTHING

    def totals(self) -> dict[str, Counts]:
        """Return what each side holds in all."""
        totals = {}
        for side in self.sides:
            sums = self.sums[side].values()
            totals[side] = Counts(
                ticks=sum(one.ticks for one in sums),
                volume=exact.number(sum(one.volume for one in sums)),
                others=self._others[side],
                bars=self.bars[side].bars,
            )
        return totals

    def read_all(self) -> None:
        """Read every side once."""
        self._take(OLD, self._redis.old())
        self._take(NEW, self._redis.new())
        if self._tape is not None:
            self._take(TAPE, of_tape(self._tape))
            self._take_bars_of_tape(self._tape)
        self.sums = {side: adding.found() for side, adding in self._adding.items()}
        for finding in self.ohlc.daily(self.sums[OLD]):
            self._note(finding)
        for key, number in self._merged.finished():
            self.doubled += number
            told = f"{key_text(key)}: {number:,} merged entries are in it more than once"
            self._note(Finding("doubled", "", "", NEW, told, True))
        if self._others[NEW] < self._others[OLD]:
            told = f"entries that are no ticks or bars: {self._others[OLD]:,} in old, {self._others[NEW]:,} in new"
            self._note(Finding("others", "", "", NEW, told, True))

    def look_closely(self, keys: list[Key]) -> dict[str, CloseLook]:
        """Read some symbols and days again, and keep their ticks. Raises EndpointError, TapeError."""
        looks = {side: CloseLook(self._adding[side].days, keys, self._until_ns) for side in self.sides}
        names = {symbol for symbol, _day in keys}
        wanted: Wanted = (lambda _symbol: True) if self._foreign else (lambda symbol: self._named(symbol) in names)
        for side, reading in ((OLD, self._redis.old(wanted)), (NEW, self._redis.new(wanted))):
            for part in reading:
                if isinstance(part, Part):
                    looks[side].add([self._named(symbol) for symbol in part.symbols], part.columns)
        if self._tape is not None:
            for part in of_tape(self._tape, sorted(names)):
                looks[TAPE].add(part.symbols, part.columns)
        return looks

    def _take(self, side: str, reading: Reading | Iterator[Part]) -> None:
        for part in reading:
            if isinstance(part, Unread):
                if side == OLD:
                    told = f"db {part.db} {key_text(part.key)}: {part.why}"
                    self._note(Finding("unread", "", "", side, told, part.lost))
                continue
            self._others[side] += part.others
            if isinstance(part, BarPart):
                self._take_bars(side, part)
                continue
            symbols = [self._named(symbol) for symbol in part.symbols] if side != TAPE else part.symbols
            self._adding[side].add(symbols, part.columns)
            self._foreign = self._foreign or part.foreign
            self._read[side] += len(part.symbols)
            if side == OLD and part.raw:
                self._read_again(part)
            if side == NEW:
                self._merged.add(part.key, part.identities)
            if self._on_progress is not None:
                self._on_progress(side, self._read[side])

    def _take_bars(self, side: str, part: BarPart) -> None:
        by_symbol: dict[str, list[Any]] = {}
        for bar in part.bars:
            by_symbol.setdefault(self._named(bar.symbol), []).append(bar)
        for symbol, bars in by_symbol.items():
            for bar in bars:
                self.bars[side].add(symbol, bar)
            if side == OLD:
                for finding in self.ohlc.take(part.key, symbol, bars):
                    self._note(finding)

    def _take_bars_of_tape(self, tape: Tape) -> None:
        series = {*self.bars[OLD].series, *self.bars[NEW].series}
        for symbol, interval, source in sorted(series):
            for bar in tape.bar_list(symbol, interval, source=source):
                self.bars[TAPE].add(symbol, bar)

    def _read_again(self, part: Part) -> None:
        """Hold the decoder's reading of a page against a second one by other code."""
        totals = self._plain.totals(part.raw)
        if totals is None:
            return
        ticks = len(part.symbols)
        if totals.ticks != ticks:
            self._disagree(part, f"{ticks:,} ticks and {totals.ticks:,}")
            return
        self.read_twice += ticks
        for name, found in (("price", totals.prices), ("size", totals.sizes)):
            values = np.asarray(part.columns.get(name, []), np.float64)
            values = values[~np.isnan(values)]
            summed = exact.sums(values, np.zeros(len(values), np.int64)).get(0, 0)
            if summed != found:
                self._disagree(part, f"sums of {name} of {exact.number(summed)} and {exact.number(found)}")
        if totals.ms is not None and ticks:
            ms = sum(one // 1_000_000 for one in part.columns["ts_event_ns"])
            if ms != totals.ms:
                self._disagree(part, f"times that are {abs(ms - totals.ms):,} ms apart in all")

    def _disagree(self, part: Part, told: str) -> None:
        where = key_text(part.key) or f"hashes of {part.symbols[0] if part.symbols else 'no symbol'} and others"
        self._note(Finding("reading", "", "", OLD, f"{where}: two readings of the same entries give {told}", True))


class _Merged:
    """Counts merged entries that are in a stream more than once: 8 bytes an entry of one stream, 32 MB at most."""

    def __init__(self) -> None:
        self._key = b""
        self._held = array("Q")
        self._found: dict[bytes, int] = {}

    def add(self, key: bytes, identities: Iterable[int]) -> None:
        """Add the identities of some entries of a stream; those of one stream come together."""
        if key != self._key or len(self._held) > _IDENTITIES_MAX:
            self._count()
        self._key = key
        self._held.extend(identities)

    def finished(self) -> list[tuple[bytes, int]]:
        """Return stream and number of entries too many, of all that was added."""
        self._count()
        return list(self._found.items())

    def _count(self) -> None:
        twice = len(self._held) - len(np.unique(np.frombuffer(self._held, np.uint64))) if self._held else 0
        if twice:
            self._found[self._key] = self._found.get(self._key, 0) + twice
        self._held = array("Q")


_NOTHING = Sums()

__all__ = ["Findings", "Holdings", "OnProgress"]
