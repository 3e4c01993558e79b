"""Replay: a span of a tape or a file as a live source, at any speed, with pause, seek and loop.

    [[source]]
    kind = "replay"
    tape = "market_data.db"             # or path = "/data/ESZ6.csv"
    symbols = ["ESZ6"]
    start = "2026-11-20T14:30"
    speed = 10                          # 0: as fast as possible

The same input gives the same records in the same order at every speed; what has one time keeps the tape's order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import msgspec

from onetape.clock import now_ns, to_ns
from onetape.errors import ConfigInvalid
from onetape.record import TS_MAX_NS, Bar, Tick, interval_ns
from onetape.sources.file_reading import Reading
from onetape.sources.pace import Pace, checked_speed
from onetape.sources.replay_reading import FileSpan, TapeSpan, due_ns, renamed
from onetape.sources.source import ALIVE_S, Delivery, Source

#: Records given at once where more are due.
_AT_ONCE = 2_048


class Options(Reading, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of a source of kind "replay". One of tape (its ticks) and path (as the kind "file" reads it).

    symbols, start, end: of which records, start <= time < end. speed: a factor; 0 or "max": as fast as possible.
    restamp: move all times so that the first one is now, intervals kept; loop: begin again at the end (moved times go
    on). rename: symbol to symbol; the key "*" is for all others, with {symbol} in its value. paused: wait for play().
    """

    tape: str | None = None
    path: str | None = None
    symbols: tuple[str, ...] | None = None
    start: str | int | None = None
    end: str | int | None = None
    speed: float | Literal["max"] = 1.0
    restamp: bool = False
    loop: bool = False
    rename: dict[str, str] = msgspec.field(default_factory=dict)
    paused: bool = False


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """A cursor: of which span, behind the n-th record of a time, on which turn (seek and loop begin a new one)."""

    span: str
    at_ns: int
    count: int
    turn: int = 0


class ReplaySource(Source):
    """Plays a span. pause(), play(), seek() and `speed` may be used from any thread, before and while it runs.

    `open_span(as_of)` gives the span to play; as_of is the position of a tape to go on with, None for now.
    pace_ns: a clock that never goes back, for waits; wait(seconds): sleeps on it.
    """

    kind = "replay"
    live = False

    def __init__(
        self,
        name: str,
        open_span: Callable[[str | None], TapeSpan | FileSpan],
        *,
        speed: float = 1.0,
        restamp: bool = False,
        loop: bool = False,
        rename: Mapping[str, str] | None = None,
        paused: bool = False,
        clock: Callable[[], int] = now_ns,
        pace_ns: Callable[[], int] = time.monotonic_ns,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        super().__init__(name, clock=clock)
        self._open_span, self._restamp, self._loop = open_span, restamp, loop
        self._rename = dict(rename or {})
        self._pace, self._pace_ns = Pace(speed), pace_ns
        self._pace.paused = paused
        self._changed = threading.Condition()
        self._sleep = wait
        self._sought: int | None = None
        self._mark: Mark | None = None
        self._turn = 0
        self._shift_ns: int | None = None
        self._last_out_ns = 0
        self._show()

    @property
    def speed(self) -> float:
        """The factor at which it plays; 0: as fast as possible."""
        return self._pace.speed

    @speed.setter
    def speed(self, value: float) -> None:
        with self._changed:
            self._reanchor()
            self._pace.speed = checked_speed(value)
            self._changed.notify_all()
        self._show()

    def pause(self) -> None:
        """Stand still."""
        with self._changed:
            self._reanchor()
            self._pace.paused = True
            self._changed.notify_all()
        self._show()

    def play(self) -> None:
        """Go on where it stands. Moved times go on at now."""
        with self._changed:
            if self._pace.paused:
                at_ns = self._pace.position_ns(self._pace_ns())
                self._pace.paused = False
                self._pace.lift() if at_ns is None else self._pace.anchor(self._pace_ns(), at_ns)
                self._shift_ns = None
            self._changed.notify_all()
        self._show()

    def seek(self, ts_ns: int) -> None:
        """Go on with the first record of this time, or a later one. What was given before can be given again."""
        if isinstance(ts_ns, bool) or not isinstance(ts_ns, int) or not 0 <= ts_ns <= TS_MAX_NS:
            raise ConfigInvalid(f"seek to {ts_ns!r}", hint="a time in ns since the epoch")
        with self._changed:
            self._sought = ts_ns
            self._changed.notify_all()

    def resume(self, cursor: str | None) -> None:
        """Go on behind a cursor. A replay whose times are moved begins anew: what it gives is new each time."""
        super().resume(cursor)
        if cursor is None:
            return
        try:
            found = msgspec.json.decode(cursor, type=Mark)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ConfigInvalid(
                f"{cursor[:80]!r} is no cursor of a replay", hint="give the source another name"
            ) from error
        self._turn = found.turn + 1 if self._restamp else found.turn
        self._mark = None if self._restamp else found

    def close(self) -> None:
        """End it; a wait ends at once."""
        super().close()
        with self._changed:
            self._changed.notify_all()

    def _reanchor(self) -> None:
        now = self._pace_ns()
        at_ns = self._pace.position_ns(now)
        if at_ns is not None:
            self._pace.anchor(now, at_ns)

    def _show(self, position_ns: int | None = None) -> None:
        facts = {**self._facts, "speed": self._pace.speed, "paused": self._pace.paused, "turn": self._turn}
        if position_ns is not None:
            facts["position_ns"] = position_ns
        self._facts = facts

    def _deliveries(self) -> Iterator[Delivery]:
        mark = self._mark
        span = self._open_span(None if mark is None else mark.span)
        if mark is not None and mark.span != span.identity:
            span.close()
            raise ConfigInvalid(
                f"source {self.name}: what it played was changed", hint="give a source of another name what is new"
            )
        self._tell(state="live")
        try:
            since_ns, skip = (0, 0) if mark is None else (mark.at_ns, mark.count)
            while not self.stopped:
                given = False
                for delivery in self._turn_of(span, since_ns, skip):
                    given = given or bool(delivery.count)
                    yield delivery
                    if self.stopped:
                        return
                sought = self._taken_seek()
                if sought is None and not self._loop:
                    return
                if sought is None and not given and not since_ns:
                    raise ConfigInvalid(f"source {self.name}: nothing to play in a loop", hint="check symbols and span")
                since_ns, skip = sought or 0, 0
                self._turn += 1
                with self._changed:
                    self._pace.lift()
                    self._shift_ns = None
        finally:
            span.close()

    def _taken_seek(self) -> int | None:
        with self._changed:
            sought, self._sought = self._sought, None
        return sought

    def _turn_of(self, span: TapeSpan | FileSpan, since_ns: int, skip: int) -> Iterator[Delivery]:
        """Yield what is played from a time on, until the end or a seek."""
        due: list[Tick | Bar] = []
        at_ns, count = since_ns, 0
        behind: tuple[int, int] = (since_ns, skip)
        for record in span.records(since_ns):
            own_ns = max(at_ns, due_ns(record))
            count = count + 1 if own_ns == at_ns else 1
            at_ns = own_ns
            if at_ns == since_ns and count <= skip:
                continue
            while self._sought is None and not self.stopped and self._wait_s(at_ns) > 0:
                if due:
                    yield self._delivery(span, due, behind)
                    due = []
                if not self._rest(self._wait_s(at_ns)):
                    yield Delivery()
            if self._sought is not None or self.stopped:
                break
            due.append(self._dressed(record, at_ns))
            behind = (at_ns, count)
            if len(due) >= _AT_ONCE:
                yield self._delivery(span, due, behind)
                due = []
        if due:
            yield self._delivery(span, due, behind)

    def _wait_s(self, at_ns: int) -> float:
        with self._changed:
            now = self._pace_ns()
            if not self._pace.anchored and not self._pace.paused:
                self._pace.anchor(now, at_ns)
            return self._pace.wait_s(now, at_ns)

    def _rest(self, seconds: float) -> bool:
        """Wait, a second at the most or until something changes; return whether it was less than that second."""
        most = min(seconds, ALIVE_S)
        if self._sleep is not None:
            self._sleep(most)
        else:
            with self._changed:
                if self._sought is None and not self.stopped:
                    self._changed.wait(most)
        return seconds < ALIVE_S

    def _dressed(self, record: Tick | Bar, at_ns: int) -> Tick | Bar:
        """Return a record with the name and the times that it is to have."""
        if self._rename:
            record = renamed(record, self._rename)
        if not self._restamp:
            return record
        with self._changed:
            if self._shift_ns is None:
                self._shift_ns = max(self._clock(), self._last_out_ns + 1) - at_ns
            shift = self._shift_ns
        self._last_out_ns = max(self._last_out_ns, at_ns + shift)
        if isinstance(record, Bar):
            length = interval_ns(record.interval)
            return msgspec.structs.replace(record, ts_start_ns=record.ts_start_ns + shift // length * length)
        received = None if record.ts_recv_ns is None else record.ts_recv_ns + shift
        return msgspec.structs.replace(record, ts_event_ns=record.ts_event_ns + shift, ts_recv_ns=received)

    def _delivery(self, span: TapeSpan | FileSpan, due: Sequence[Tick | Bar], behind: tuple[int, int]) -> Delivery:
        self._show(behind[0])
        mark = Mark(span.identity, behind[0], behind[1], self._turn)
        return Delivery(due, cursor=msgspec.json.encode(mark).decode())


def make(name: str, options: Options) -> ReplaySource:
    """Return the source of these options. Raises ConfigInvalid."""
    if (options.tape is None) == (options.path is None):
        raise ConfigInvalid("a replay is of a tape or of a path", hint="give one of tape and path")
    if options.tape is not None:
        other = {field for field in Reading.__struct_fields__ if getattr(options, field) != getattr(Reading(), field)}
        if other:
            raise ConfigInvalid(f"{', '.join(sorted(other))}: a tape needs none", hint="leave it out")
    start_ns = 0 if options.start is None else to_ns(options.start, "start")
    end_ns = TS_MAX_NS + 1 if options.end is None else to_ns(options.end, "end")
    if start_ns >= end_ns:
        raise ConfigInvalid(f"start {options.start!r} is not before end {options.end!r}", hint="start <= time < end")

    def open_span(identity: str | None) -> TapeSpan | FileSpan:
        if options.tape is not None:
            as_of = int(identity) if identity is not None and identity.isdecimal() else None
            end = None if options.end is None else end_ns
            return TapeSpan(options.tape, options.symbols, start_ns, end, as_of)
        how = msgspec.convert({field: getattr(options, field) for field in Reading.__struct_fields__}, Reading)
        return FileSpan(Path(cast(str, options.path)), how, options.symbols, start_ns, end_ns)

    return ReplaySource(
        name,
        open_span,
        speed=0.0 if options.speed == "max" else float(options.speed),
        restamp=options.restamp,
        loop=options.loop,
        rename=options.rename,
        paused=options.paused,
    )
