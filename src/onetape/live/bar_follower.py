"""The follower of bars: what each bar is now, whenever it changes, from history to live.

It keeps no sums. It learns from the records behind its position which bars they touch, and asks for those bars as
history is asked, in one moment of the tape: so what it gives last of a bar is what history gives, whatever came late,
was taken back or was sealed meanwhile.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import apsw
import msgspec
import numpy as np

from onetape.clock import now_ns
from onetape.errors import TapeClosed
from onetape.live.follower import Follower
from onetape.live.waker import Waker
from onetape.record import TS_MAX_NS, Bar
from onetape.store import aggregate, made, query, replay
from onetape.store.block import Array, Columns
from onetape.store.layout import KIND_CANCEL, KIND_TICK
from onetape.store.made import Rule

#: What a take() reads of the tape at the most before it gives bars: some 20 ms.
_STEPS_MAX, _RECORDS_MAX = 64, 65_536
#: Bars remembered as they were given, some 20 MB. One that is forgotten is given again when it is touched.
_REMEMBERED = 65_536
#: Touched bars that lie closer than this many bars are asked for together.
_NEAR = 64

#: (symbol id, start of a bar of time) or (symbol id, trading day, number)
Key = tuple[int, ...]


class Touched(NamedTuple):
    """Times (ascending) at which a symbol's trades changed; and at which some older than the follower are gone."""

    times: Array
    gone: Array


class BarFollower(Follower):
    """Yields bars as they form, end, and are revised, for ever. Made by Tape.follow_bars().

    take() gives each bar that changed once, as it is now: what happened in between is not told. A bar of which all
    trades were taken back is given once more with `trades` 0 and NaN as prices. `position` as of Follower.
    """

    def __init__(
        self,
        connection: apsw.Connection,
        waker: Waker,
        *,
        rule: Rule,
        symbols: Iterable[str] | None = None,
        position: int | None = None,
        start_ns: int | None = None,
        idle_s: float | None = None,
        grace_s: float | None = None,
        on_close: Callable[[Follower], None] | None = None,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        super().__init__(
            connection,
            waker,
            symbols=symbols,
            position=position,
            start_ns=start_ns,
            idle_s=idle_s,
            on_close=on_close,
        )
        self._rule = rule
        self._grace_ns = None if grace_s is None else round(grace_s * 1e9)
        self._clock = clock
        self._given: OrderedDict[Key, Bar] = OrderedDict()
        #: Bars given as not complete, and when they are over.
        self._forming: dict[Key, int] = {}
        self._met: set[int] = set()
        self._seen: set[tuple[int, int]] = set()
        self._began = self.position

    def take(self, timeout_s: float | None = 0.0) -> list[Bar]:  # type: ignore[override]
        """Return the bars that changed, ascending in their start, waiting up to `timeout_s` (None: for ever)."""
        return super().take(timeout_s)  # type: ignore[return-value]

    def __enter__(self) -> BarFollower:
        return self

    def __iter__(self) -> Iterator[Bar]:
        return self

    def __next__(self) -> Bar:
        return super().__next__()  # type: ignore[return-value]

    def _look(self) -> list[Bar]:  # type: ignore[override]
        if os.getpid() != self._pid:
            raise TapeClosed("this follower was opened before the process was forked", hint="follow in the new process")
        with self._using:
            while not self._closed:
                touched, position = self._touched()
                found: list[Bar] = []
                if touched:
                    with query.snapshot(self._connection):
                        found = self._changed(touched)
                behind = position == self.position
                self.position = position  # not before the bars were found: after an error they are looked for again
                found += self._by_clock()
                if found or behind:
                    return sorted(found, key=lambda bar: (bar.ts_start_ns, bar.symbol, bar.number or 0))
        return []

    def _touched(self) -> tuple[dict[int, Touched], int]:
        """Return the times of new trades and cancels by symbol, and the position behind them."""
        wanted, position, count = self._matching(), self.position, 0
        parts: dict[int, tuple[list[Array], list[Array]]] = {}
        for _ in range(_STEPS_MAX):
            step = replay.step(self._connection, position, self._all_left, self._cache)
            if step is None:
                break
            if wanted is not None and not self._all_known:
                wanted = self._matching()
            position = step.position
            for kind, columns in step.found.items():
                count += len(columns["seq"])
                times, symbols, mask = columns["ts_event_ns"], columns["symbol"], self._telling(kind, columns)
                if wanted is not None:
                    mask &= np.isin(symbols, wanted)
                if self._start_ns is not None:
                    mask &= times >= self._start_ns
                for symbol_id in np.unique(symbols[mask]).tolist():
                    mine = mask & (symbols == symbol_id)
                    new, gone = parts.setdefault(symbol_id, ([], []))
                    new.append(times[mine])
                    if kind == KIND_CANCEL:
                        gone.append(times[mine & (columns["target"] <= self._began)])
            if count >= _RECORDS_MAX:
                break
        nothing = np.zeros(0, dtype="<i8")
        return {
            symbol_id: Touched(np.unique(np.concatenate(new)), np.concatenate([nothing, *gone]))
            for symbol_id, (new, gone) in parts.items()
        }, position

    def _telling(self, kind: int, columns: Columns) -> Array:
        """Return which records may change a bar."""
        there = np.full(len(columns["seq"]), kind in (KIND_TICK, KIND_CANCEL))
        if kind == KIND_TICK:
            for name in made.PRICED_BY[self._rule.price]:
                there &= ~np.isnan(columns[name]) if name in columns else False
        elif kind == KIND_CANCEL and self._rule.price == "trade":
            there &= columns["trade"] != 0
        return there

    def _changed(self, touched: dict[int, Touched]) -> list[Bar]:
        """Return the bars that times of symbols fall into, and those that were forming, if they are not as given."""
        forming = {symbol_id: self._was_forming(symbol_id) for symbol_id in touched}
        return self._counted(touched, forming) if self._rule.interval.counted else self._timed(touched, forming)

    def _was_forming(self, symbol_id: int) -> Array:
        """Return, the first time a symbol is met, the time of its newest trade at the position where this began.

        Its bar may have been given as not complete by whoever followed up to here.
        """
        if symbol_id in self._met:
            return np.zeros(0, dtype="<i8")
        self._met.add(symbol_id)
        ts = made.newest(self._connection, symbol_id, self._rule.price, self.position)
        earliest = 0 if self._start_ns is None else self._start_ns
        return np.array([ts] if ts >= earliest else [], dtype="<i8")

    def _timed(self, touched: dict[int, Touched], forming: dict[int, Array]) -> list[Bar]:
        keys: dict[Key, int] = {}
        taken_back: set[Key] = set()
        for symbol_id, (times, gone) in touched.items():
            every = np.sort(np.concatenate((times, forming[symbol_id])))
            windows = made.windows_of(self._rule, int(every[0]), int(every[-1]) + 1)
            cells = aggregate.cells(every, windows, self._rule.interval)
            keys |= {(symbol_id, start): start for start in np.unique(cells.starts[cells.inside]).tolist()}
            cells = aggregate.cells(gone, windows, self._rule.interval)
            taken_back |= {(symbol_id, start) for start in cells.starts[cells.inside].tolist()}
        keys |= {key: key[1] for key in self._forming if key[0] in touched}
        out: list[Bar] = []
        for run in self._runs(keys):
            ids = sorted({key[0] for key in run})
            found = made.bars(self._connection, ids, self._rule, keys[run[0]], keys[run[-1]] + 1)
            left = set(run)
            for bar, symbol_id, over_ns in self._records(found):
                key: Key = (symbol_id, bar.ts_start_ns)
                if key in left:
                    left.remove(key)
                    out += self._give(key, bar, over_ns)
            for key in left:
                out += self._withdraw(key, key in taken_back)
        return out

    def _runs(self, keys: dict[Key, int]) -> Iterator[list[Key]]:
        """Yield keys in order of their starts, those close together in one list."""
        near = _NEAR * (self._rule.interval.ns or 0)
        run: list[Key] = []
        for key in sorted(keys, key=lambda key: keys[key]):
            if run and keys[key] - keys[run[-1]] > near:
                yield run
                run = []
            run.append(key)
        if run:
            yield run

    def _records(self, found: Columns) -> Iterator[tuple[Bar, int, int]]:
        """Yield bars with their symbols' ids and when they are over (of time), or were last traded."""
        ids = found["symbol"].tolist()
        names = {symbol_id: self._names.catalog.symbol(self._connection, symbol_id) for symbol_id in set(ids)}
        return zip(made.to_bars(found, names, self._rule), ids, found["ts_end_ns"].tolist(), strict=True)

    def _counted(self, touched: dict[int, Touched], forming: dict[int, Array]) -> list[Bar]:
        out: list[Bar] = []
        for symbol_id, (times, _) in touched.items():
            every = np.sort(np.concatenate((times, forming[symbol_id])))
            windows = made.windows_of(self._rule, int(every[0]), int(every[-1]) + 1)
            spans = np.unique(windows.of(every))
            days = set(windows.days[spans[spans >= 0]].tolist())
            days |= {key[1] for key in self._forming if key[0] == symbol_id}
            for day in sorted(days):
                out += self._session(symbol_id, day)
        return out

    def _session(self, symbol_id: int, day: int) -> list[Bar]:
        """Return what changed of a session's counted bars."""
        windows = self._rule.sessions.windows(day, day)
        which = (self._connection, [symbol_id], self._rule, int(windows.opens[0]), int(windows.closes[-1]))
        if (symbol_id, day) not in self._seen:
            self._seen.add((symbol_id, day))
            if self._began:  # whoever followed up to here has what was there then
                for at, (bar, _, _) in enumerate(self._records(made.bars(*which, self._began))):
                    self._give((symbol_id, day, at), bar, TS_MAX_NS)
        out: list[Bar] = []
        count = 0
        for bar, _, _ in self._records(made.bars(*which)):
            out += self._give((symbol_id, day, count), bar, TS_MAX_NS)
            count += 1
        while (symbol_id, day, count) in self._given:
            out += self._withdraw((symbol_id, day, count), False)
            count += 1
        return out

    def _give(self, key: Key, bar: Bar, over_ns: int) -> list[Bar]:
        """Remember a bar as it is now; return it if it is not as it was given."""
        if not bar.complete and self._is_over(over_ns):
            bar = msgspec.structs.replace(bar, complete=True)
        before = self._given.get(key)
        if bar.complete:
            self._forming.pop(key, None)
        else:
            self._forming[key] = over_ns
        if bar == before:
            return []
        self._given[key] = bar
        self._given.move_to_end(key)
        while len(self._given) > _REMEMBERED:
            self._forming.pop(self._given.popitem(last=False)[0], None)
        return [bar]

    def _withdraw(self, key: Key, taken_back: bool) -> list[Bar]:
        """Return the bar that says that there is none any more, if there was one.

        Where it is not known whether one was given, because that was before this began, it is said all the same.
        """
        self._forming.pop(key, None)
        before = self._given.pop(key, None)
        if before is None and not taken_back:
            return []
        nan = float("nan")
        return [
            Bar(
                self._names.catalog.symbol(self._connection, key[0]),
                self._rule.interval.text,
                key[1] if before is None else before.ts_start_ns,
                *(nan, nan, nan, nan),
                trades=0,
                revision=1 if before is None else before.revision + 1,
                session=None if before is None else before.session,
                number=None if before is None else before.number,
            )
        ]

    def _is_over(self, over_ns: int) -> bool:
        if self._grace_ns is None or self._rule.interval.counted:
            return False
        return self._clock() >= over_ns + self._grace_ns

    def _by_clock(self) -> list[Bar]:
        """Return forming bars that are over by the clock, and have had their grace."""
        if self._grace_ns is None or not self._forming:
            return []
        out = []
        for key in [key for key, over_ns in self._forming.items() if self._is_over(over_ns)]:
            del self._forming[key]
            self._given[key] = msgspec.structs.replace(self._given[key], complete=True)
            out.append(self._given[key])
        return out
