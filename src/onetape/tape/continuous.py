"""Continuous futures as users meet them: defined on a tape, and read, made bars of and followed like a symbol."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any, Literal, cast

import apsw
import msgspec

from onetape.clock import Time
from onetape.errors import ConfigInvalid, GapUnknown, TapeBusy, TapeFull
from onetape.record import TS_MAX_NS, Bar, Tick, interval_ns
from onetape.store import aliases, continuous, query, rolls
from onetape.store.continuous import Contract, Defined, Definition, RollRule
from onetape.store.rolls import Roll, Schedule, Segment, Switch
from onetape.tape.contract_days import priced
from onetape.tape.handle import Handle
from onetape.tape.schedules import kept_or_new

if TYPE_CHECKING:
    import pyarrow as pa

    from onetape.live.follower import Follower
    from onetape.tape import Tape

Adjust = Literal["back", "ratio"]
#: The fields of ticks and bars that are prices.
_PRICES = ("price", "bid", "ask", "open", "high", "low", "close", "vwap")
_DAY_NS = 86_400_000_000_000
_log = logging.getLogger("onetape.tape")


class Continuous:
    """A continuous future of a tape: a view, which holds no records of its own.

    Each tick and bar says of which contract it is. `adjust`: None, the contracts' own prices; "back", prices before a
    roll shifted by its gap, so that the last contract of the span is as it was traded (they can become negative);
    "ratio", multiplied instead. Only rolls before the end of the span count: nothing later changes what is returned.
    """

    def __init__(self, tape: Tape, defined: Defined) -> None:
        self._tape = tape
        self.definition: Definition = defined.definition
        self.version = defined.version
        self.created_ns = defined.created_ns

    @property
    def name(self) -> str:
        """Return what it is called."""
        return self.definition.name

    def __repr__(self) -> str:
        return f"<onetape.Continuous {self.name!r} version={self.version}>"

    def symbols(self) -> list[str]:
        """Return the contracts' symbols, by expiry, as records bear them."""
        return [self._tape.symbol_of(one.symbol) or one.symbol for one in self.definition.contracts]

    def front(self, at: Time | None = None) -> str:
        """Return the contract that is the front at a time, or now as far as records tell."""
        ts_ns = TS_MAX_NS if at is None else self._tape._span(at, None)[0]
        return self.symbols()[self.schedule().front(ts_ns)]

    def rolls(self, start: Time | None = None, end: Time | None = None) -> list[Roll]:
        """Return the rolls with start <= ts_ns < end, ascending, each with its gap where it is known.

        A rule of dates tells all of them, a crossover those that are decided. One that a follower was told of live
        stands; the others are as the records tell them now.
        """
        start_ns, end_ns = self._tape._span(start, end)
        symbols = self.symbols()
        return [
            priced(self._tape, self.definition, symbols, switch)
            for switch in self.schedule().switches
            if start_ns <= switch.ts_ns < end_ns
        ]

    def read(
        self,
        start: Time | None = None,
        end: Time | None = None,
        columns: Sequence[str] | None = None,
        *,
        adjust: Adjust | None = None,
        as_of: int | str | Time | None = None,
    ) -> pa.Table:
        """Return the front's ticks with start <= ts_event_ns < end as one Arrow table, as tape.read() does.

        Column `symbol` is the contract. as_of: what the tape said of its ticks then; the rolls are as they are now.
        Raises GapUnknown where it cannot be adjusted.
        """
        parts: list[tuple[Segment, pa.Table]] = []
        symbols, segments = self._segments(start, end)
        for segment in segments or [Segment(0, 0, 0)]:
            found = self._tape.read(symbols[segment.contract], segment.start_ns, segment.end_ns, columns, as_of=as_of)
            if found.num_rows or not parts:
                parts.append((segment, found))
        return self._adjoined(parts, adjust, symbols)

    def bars(
        self,
        interval: str = "1min",
        start: Time | None = None,
        end: Time | None = None,
        *,
        adjust: Adjust | None = None,
    ) -> pa.Table:
        """Return the front's bars with start <= ts_start_ns < end as one Arrow table, as tape.bars() does."""
        from onetape.store import arrow

        symbols, segments, cut = self._bar_segments(interval, start, end)
        parts = [
            (segment, self._tape.bars(symbols[segment.contract], interval, segment.start_ns, segment.end_ns))
            for segment in segments
            if not cut
        ]
        if not parts or not all(found.schema.equals(parts[0][1].schema) for _, found in parts):
            return arrow.bars_to_arrow(self.bar_list(interval, start, end, adjust=adjust))
        return self._adjoined(parts, adjust, symbols)

    def bar_list(
        self,
        interval: str = "1min",
        start: Time | None = None,
        end: Time | None = None,
        *,
        adjust: Adjust | None = None,
    ) -> list[Bar]:
        """Return what bars() returns, as Bar records.

        A bar in which a roll falls is made of the minutes of both contracts, and bears the name of the new one.
        """
        symbols, segments, cut = self._bar_segments(interval, start, end)
        length = interval_ns(interval)
        parts: list[tuple[Segment, list[Bar]]] = []
        for segment in segments:
            symbol, first, last = symbols[segment.contract], segment.start_ns, segment.end_ns
            found = [bar for bar in self._tape.bar_list(symbol, interval, first, last) if bar.ts_start_ns not in cut]
            for begin in sorted(cut):
                a, b = max(begin, first), min(begin + length, last)
                if a < b:
                    found += self._tape.bar_list(symbol, "1min", a, b)
            parts.append((segment, found))
        shifts = self._shifts(adjust, [segment for segment, found in parts if found], symbols)
        out: list[Bar] = []
        pieces: dict[int, list[Bar]] = {}
        for segment, found in parts:
            shift = shifts.get(segment.contract)
            for bar in found:
                moved = bar if shift is None or adjust is None else _moved(bar, adjust, shift)
                begin = bar.ts_start_ns - bar.ts_start_ns % length
                if begin in cut:
                    pieces.setdefault(begin, []).append(moved)
                else:
                    out.append(moved)
        out += [_joined(found, interval, begin) for begin, found in pieces.items()]
        return sorted(out, key=lambda bar: bar.ts_start_ns)

    def latest(self) -> Tick | None:
        """Return the newest tick of the front, or None."""
        found = self.recent(1)
        return found[-1] if found else None

    def recent(self, count: int = 1000) -> list[Tick]:
        """Return the newest `count` ticks, ascending, of whichever contract was the front, prices as they were."""
        symbols, segments = self._segments(None, None)
        found: list[Tick] = []
        for segment in reversed(segments):
            symbol, missing = symbols[segment.contract], count - len(found)
            if segment.end_ns > TS_MAX_NS:
                part = [tick for tick in self._tape.recent(symbol, missing) if tick.ts_event_ns >= segment.start_ns]
            else:
                table = self._tape.read(symbol, segment.start_ns, segment.end_ns)
                part = [Tick(**row) for row in table.slice(max(0, table.num_rows - missing)).to_pylist()]
            found[:0] = part
            if len(found) >= count:
                break
        return found

    def follow(
        self, from_seq: int | None = None, from_time: Time | None = None, *, idle_s: float | None = None
    ) -> Follower:
        """Follow the front live, as tape.follow() does; a `Roll` comes before the first record after it.

        Prices are raw. Late ticks of the time before a roll come when they come, under their contract's name.
        """
        return self._tape.follow(self.name, from_seq, from_time, idle_s=idle_s)

    def schedule(self, told: Mapping[int, Switch] | None = None) -> Schedule:
        """Return which contract is the front when, as far as the records on the tape decide it.

        told: rolls that stand whatever the records say, by the place of the contract they leave.
        """
        definition = self.definition
        if isinstance(definition.roll, continuous.OnDates | continuous.DaysBefore):
            return rolls.fixed(definition)
        tape, symbols = self._tape, self.symbols()
        chain = [contract.symbol for contract in definition.contracts]
        with tape._reading() as connection, query.snapshot(connection):
            recorded = rolls.told_rolls(connection, self.name, self.version, chain)
        if told:
            return kept_or_new(tape, None, definition, symbols, {**recorded, **told}).schedule
        key = self.name, self.version
        kept = tape._schedules[key] = kept_or_new(tape, tape._schedules.get(key), definition, symbols, recorded)
        return kept.schedule

    def behind(self, schedule: Schedule, position: int, head: int, start_ns: int | None) -> list[Switch]:
        """Return the rolls that a follower has behind it which begins after `position`, or at a time."""
        if start_ns is not None:
            return [switch for switch in schedule.switches if switch.ts_ns <= start_ns]
        if position == 0:
            return []
        symbols = self.symbols()
        for index in range(len(schedule.switches), 0, -1):
            switch = schedule.switches[index - 1]
            if any(self._seen(symbol, switch.ts_ns, position, head) for symbol in symbols):
                return list(schedule.switches[:index])
        return []

    def _seen(self, symbol: str, ts_ns: int, position: int, head: int) -> bool:
        """Return whether the tape had a record of a symbol at or after a time when its last position was `position`."""
        tape = self._tape
        if position >= head:
            newest = tape.latest(symbol)
            return newest is not None and newest.ts_event_ns >= ts_ns
        for days in (1, 8):  # the first record after it tells; further ones are seldom asked for
            seqs = tape.read(symbol, ts_ns, ts_ns + days * 86_400_000_000_000, ["seq"])["seq"].to_numpy()
            if len(seqs):
                return bool(seqs.min() <= position)
        return False

    def priced(self, switch: Switch) -> Roll:
        """Return a roll with its gap."""
        return priced(self._tape, self.definition, self.symbols(), switch)

    def tell(self, switch: Switch) -> Switch:
        """Keep on the tape a roll that a follower is told of; return the one kept: of several, the first."""
        if isinstance(self.definition.roll, continuous.OnDates | continuous.DaysBefore) or self._tape.mode == "r":
            return switch
        chain = [contract.symbol for contract in self.definition.contracts]
        try:
            with self._tape._defining() as connection:
                return rolls.tell(connection, self.name, self.version, chain, switch)
        except (TapeBusy, TapeFull) as error:  # the follower is told all the same
            _log.warning("a roll of %s is not kept: %s", self.name, error)
            return switch

    def _segments(self, start: Time | None, end: Time | None) -> tuple[list[str], list[Segment]]:
        start_ns, end_ns = self._tape._span(start, end)
        return self.symbols(), list(rolls.segments(self.schedule(), start_ns, end_ns))

    def _bar_segments(
        self, interval: str, start: Time | None, end: Time | None
    ) -> tuple[list[str], list[Segment], set[int]]:
        """Return the contracts, the segments of whole bars, and the starts of bars in which a roll falls."""
        try:
            length = interval_ns(interval)
        except ValueError as error:
            raise ConfigInvalid(str(error)) from error
        if _DAY_NS % length:
            raise ConfigInvalid(
                f"bars of {interval} of a continuous future", hint="ask for a length that divides a day: 5min, 1h, 1d"
            )
        start_ns, end_ns = self._tape._span(start, end)
        start_ns += -start_ns % length
        end_ns = min(end_ns + -end_ns % length, TS_MAX_NS + 1)  # a bar belongs to the span by its start
        symbols, segments = self._segments(start_ns, end_ns)
        return symbols, segments, {s.start_ns - s.start_ns % length for s in segments[1:] if s.start_ns % length}

    def _adjoined(self, parts: list[tuple[Segment, pa.Table]], adjust: Adjust | None, symbols: list[str]) -> pa.Table:
        """Return tables of segments as one, adjusted."""
        import pyarrow as pa

        shifts = self._shifts(adjust, [segment for segment, found in parts if found.num_rows], symbols)
        adjusted = [_adjusted(found, adjust, shifts.get(segment.contract)) for segment, found in parts]
        kept = [found for found in adjusted if found.num_rows] or adjusted[:1]
        return pa.concat_tables(kept).unify_dictionaries()

    def _shifts(self, adjust: Adjust | None, used: list[Segment], symbols: list[str]) -> dict[int, float]:
        """Return what is added to (or multiplied with) each used contract's prices."""
        if adjust is None:
            return {}
        if adjust not in ("back", "ratio"):
            raise ConfigInvalid(f"adjust = {adjust!r}", hint="it is None, 'back' or 'ratio'")
        if not used:
            return {}
        first, last = used[0].contract, used[-1].contract
        switches = [switch for switch in self.schedule().switches if first <= switch.old and switch.new <= last]
        shifts = {last: 0.0 if adjust == "back" else 1.0}
        for switch in reversed(switches):
            roll = priced(self._tape, self.definition, symbols, switch)
            step = roll.gap if adjust == "back" else roll.ratio
            if step is None:
                raise GapUnknown(
                    f"{self.name} cannot be adjusted over its roll from {roll.old} to {roll.new}: "
                    + ("no minute of the five days before has trades of both" if roll.gap is None else "no ratio"),
                    hint=f"read it raw, or define it with gaps={{{roll.new!r}: …}} and adjust back",
                    roll=roll,
                )
            later = shifts[switch.new]
            shifts[switch.old] = later + step if adjust == "back" else later * step
        return shifts


def _adjusted(table: pa.Table, adjust: Adjust | None, shift: float | None) -> pa.Table:
    import pyarrow.compute as pc

    if adjust is None or shift is None or shift == (0.0 if adjust == "back" else 1.0):
        return table
    for place, name in enumerate(table.column_names):
        if name in _PRICES:
            moved = (pc.add if adjust == "back" else pc.multiply)(table.column(name), shift)
            table = table.set_column(place, name, moved)
    return table


def _moved(bar: Bar, adjust: Adjust, shift: float) -> Bar:
    told = {name: value for name in _PRICES if (value := getattr(bar, name, None)) is not None}
    return msgspec.structs.replace(
        bar, **{name: value + shift if adjust == "back" else value * shift for name, value in told.items()}
    )


def _joined(parts: list[Bar], interval: str, ts_start_ns: int) -> Bar:
    """Join minutes, in order of time, to the one bar they make."""

    def total(name: str) -> Any:
        told = [value for part in parts if (value := getattr(part, name)) is not None]
        return sum(told[1:], told[0]) if told else None

    weighed = [(part.vwap, part.volume) for part in parts if part.vwap is not None and part.volume]
    volume = sum(amount for _, amount in weighed)
    return Bar(
        parts[-1].symbol,
        interval,
        ts_start_ns,
        parts[0].open,
        max(part.high for part in parts),
        min(part.low for part in parts),
        parts[-1].close,
        total("volume"),
        sum(price * amount for price, amount in weighed) / volume if volume else None,
        total("trades"),
        total("bid_volume"),
        total("ask_volume"),
        all(part.complete for part in parts),
        sum(part.revision for part in parts),
        parts[-1].source,
    )


def view_of(tape: Handle, names: str | Iterable[str] | None) -> Continuous | None:
    """Return the continuous future that is asked for by name, or None. Raises ConfigInvalid for one among others."""
    asked = [names] if isinstance(names, str) else [*(names or ())]
    unknown = [name for name in asked if isinstance(name, str) and name not in tape._symbol_ids]
    if not unknown:
        return None
    with tape._reading() as connection:
        found = [defined for name in unknown if (defined := continuous.load(connection, name)) is not None]
    if found and len(asked) > 1:
        raise ConfigInvalid(
            f"{found[0].definition.name!r} is a continuous future, asked for with others", hint="ask for it alone"
        )
    return Continuous(cast("Tape", tape), found[0]) if found else None


class ContinuousFutures(Handle):
    """How continuous futures are defined and found."""

    def define_continuous(
        self,
        name: str,
        contracts: Sequence[tuple[str, date | str] | Contract],
        roll: RollRule | str | Sequence[date | str],
        *,
        timezone: str = "UTC",
        day_start: str = "00:00",
        holidays: Sequence[date | str] = (),
        gaps: Mapping[str, float] | None = None,
        replace: bool = False,
    ) -> Continuous:
        """Define a continuous future as data on the tape, and return it; then `name` is read like a symbol.

        contracts: (symbol, last trading date) in any order. roll: "volume" or "open_interest" (crossover: decided at
        the end of a trading day, in effect from the next on, never back), "5d" or "5bd" (days, business days before
        expiry), or a date for each roll. A trading day begins at `day_start` (HH:MM, from noon on the evening
        before) in `timezone`. gaps: what a contract costs more than the one before it, where no common trade tells.

        The same definition again changes nothing; another one needs replace=True and is the next version.
        Raises ConfigInvalid, NameTaken, TapeReadOnly.
        """
        definition = continuous.define(name, contracts, roll, timezone, day_start, holidays, gaps)
        with self._defining() as connection:
            version = continuous.save(connection, definition, replace)
        return self.continuous(name, version)

    def continuous(self, name: str, version: int | None = None) -> Continuous:
        """Return a continuous future, the newest version unless told otherwise. Raises ConfigInvalid."""
        with self._reading() as connection:
            found = continuous.load(connection, name, version)
            known = continuous.names(connection)
        if found is None:
            which = "" if version is None else f" of version {version}"
            raise ConfigInvalid(
                f"no continuous future {name!r}{which}",
                hint=f"there is {', '.join(known)}" if known else "define one with define_continuous",
            )
        return Continuous(cast("Tape", self), found)

    def continuous_futures(self) -> list[Continuous]:
        """Return all continuous futures, each in its newest version, by name."""
        with self._reading() as connection:
            found = [continuous.load(connection, name) for name in continuous.names(connection)]
        return [Continuous(cast("Tape", self), defined) for defined in found if defined is not None]

    def is_continuous(self, name: str) -> bool:
        """Return whether a continuous future has this name."""
        with self._reading() as connection:
            return aliases.is_continuous(connection, name)

    def remove_continuous(self, name: str) -> int:
        """Forget a continuous future in all its versions; return how many. The contracts' records stay."""
        with self._defining() as connection:
            return continuous.remove(connection, name)

    def rolls(self, name: str, start: Time | None = None, end: Time | None = None) -> list[Roll]:
        """Return the rolls of a continuous future with start <= ts_ns < end; see Continuous.rolls."""
        return self.continuous(name).rolls(start, end)

    @contextmanager
    def _defining(self) -> Iterator[apsw.Connection]:
        connection = self._writing()
        with self._write_lock:
            try:
                with self._transaction(connection):
                    yield connection
            except apsw.Error as error:
                raise self._failed(error, "define on") from error
