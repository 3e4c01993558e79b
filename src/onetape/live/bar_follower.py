"""The follower of bars: what each bar is now, whenever it changes, from history to live.

It keeps no sums. It learns from the records behind its position which bars they touch, and asks for those bars as
history is asked, in one moment of the tape: so what it gives last of a bar is what history gives, whatever came late,
was taken back or was sealed meanwhile.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

import apsw
import msgspec
import numpy as np

from onetape.clock import now_ns
from onetape.errors import TapeClosed
from onetape.live.follower import Follower
from onetape.live.waker import Waker
from onetape.record import Bar
from onetape.store import aggregate, made, query, replay
from onetape.store.block import Array, Columns
from onetape.store.layout import DAY_NS, KIND_CANCEL, KIND_TICK
from onetape.store.made import Rule

#: What a take() reads of the tape at the most before it gives bars: some 20 ms.
_STEPS_MAX, _RECORDS_MAX = 64, 65_536
#: Bars remembered as they were given, some 20 MB. One that is forgotten is given again when it is touched.
_REMEMBERED = 65_536
#: Touched bars that lie closer than this many bars are asked for together.
_NEAR = 64

#: (symbol id, start of a bar of time) or (symbol id, trading day, number)
Key = tuple[int, ...]


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

    def take(self, timeout_s: float | None = 0.0) -> list[Bar]:  # type: ignore[override]
        """Return the bars that changed, ascending in their start, waiting up to `timeout_s` (None: for ever)."""
        return super().take(timeout_s)  # type: ignore[return-value]

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

    def _touched(self) -> tuple[dict[int, Array], int]:
        """Return the times of new trades and cancels by symbol, and the position behind them."""
        wanted, position, count = self._matching(), self.position, 0
        parts: dict[int, list[Array]] = {}
        for _ in range(_STEPS_MAX):
            step = replay.step(self._connection, position, self._all_left)
            if step is None:
                break
            if wanted is not None and not self._all_known:
                wanted = self._matching()
            position = step.position
            for kind, columns in step.found.items():
                count += len(columns["seq"])
                times, symbols = self._times(kind, columns)
                mask = np.ones(len(times), dtype=bool) if wanted is None else np.isin(symbols, wanted)
                if self._start_ns is not None:
                    mask &= times >= self._start_ns
                for symbol_id in np.unique(symbols[mask]).tolist():
                    parts.setdefault(symbol_id, []).append(times[mask & (symbols == symbol_id)])
            if count >= _RECORDS_MAX:
                break
        return {symbol_id: np.unique(np.concatenate(times)) for symbol_id, times in parts.items()}, position

    def _times(self, kind: int, columns: Columns) -> tuple[Array, Array]:
        """Return the times and symbols of what may change a bar."""
        times, symbols = columns["ts_event_ns"], columns["symbol"]
        if kind == KIND_CANCEL:
            return times, symbols
        if kind != KIND_TICK:
            return times[:0], symbols[:0]
        there = np.zeros(len(times), dtype=bool)
        for name in made.READ[self._rule.price][: 2 if self._rule.price == "mid" else 1]:
            if name in columns:
                there |= ~np.isnan(columns[name])
        return times[there], symbols[there]

    def _changed(self, touched: dict[int, Array]) -> list[Bar]:
        """Return the bars that times of symbols fall into, and those that were forming, if they are not as given."""
        out: list[Bar] = []
        keys = self._sessions(touched) if self._rule.interval.counted else self._starts(touched)
        for start_ns, end_ns, ids in self._runs(keys):
            found = made.bars(self._connection, ids, self._rule, start_ns, end_ns)
            names = {symbol_id: self._names.catalog.symbol(self._connection, symbol_id) for symbol_id in ids}
            there: set[Key] = set()
            over = found["ts_end_ns"].tolist()
            for at, (symbol_id, bar) in enumerate(
                zip(found["symbol"].tolist(), made.to_bars(found, names, self._rule), strict=True)
            ):
                if self._rule.interval.counted:
                    key: Key = (symbol_id, int(found["day"][at]), int(found["number"][at]))
                else:
                    key = (symbol_id, bar.ts_start_ns)
                    if key not in keys:
                        continue
                there.add(key)
                out += self._give(key, bar, over[at])
            out += self._withdrawn(keys, ids, start_ns, end_ns, there)
        return out

    def _starts(self, touched: dict[int, Array]) -> dict[Key, int]:
        """Return the keys of touched bars of time, and of those still forming, with their starts."""
        keys: dict[Key, int] = {}
        for symbol_id, times in touched.items():
            windows = made.windows_of(self._rule, int(times[0]), int(times[-1]) + 1)
            cells = aggregate.cells(times, windows, self._rule.interval)
            keys |= {(symbol_id, start): start for start in np.unique(cells.starts[cells.inside]).tolist()}
        keys |= {key: key[1] for key in self._forming if key[0] in touched}
        return keys

    def _sessions(self, touched: dict[int, Array]) -> dict[Key, int]:
        """Return (symbol id, trading day) of touched sessions, and of those with a forming bar, with their opens."""
        keys: dict[Key, int] = {}
        for symbol_id, times in touched.items():
            windows = made.windows_of(self._rule, int(times[0]), int(times[-1]) + 1)
            spans = np.unique(windows.of(times))
            days = set(windows.days[spans[spans >= 0]].tolist())
            days |= {key[1] for key in self._forming if key[0] == symbol_id}
            for day in days:
                opens = self._rule.sessions.windows(day, day).opens
                keys[symbol_id, day] = int(opens[0])
        return keys

    def _runs(self, keys: dict[Key, int]) -> Iterator[tuple[int, int, list[int]]]:
        """Yield (start, end, symbol ids) of spans that cover the keys, those close together in one."""
        if self._rule.interval.counted:
            for (symbol_id, day), start in keys.items():
                yield start, int(self._rule.sessions.windows(day, day).closes[-1]), [symbol_id]
            return
        near = max(_NEAR * (self._rule.interval.ns or 0), DAY_NS if self._rule.interval.kind == "days" else 0)
        run: list[Key] = []
        for key in sorted(keys, key=lambda key: keys[key]):
            if run and keys[key] - keys[run[-1]] > near:
                yield keys[run[0]], keys[run[-1]] + 1, sorted({one[0] for one in run})
                run = []
            run.append(key)
        if run:
            yield keys[run[0]], keys[run[-1]] + 1, sorted({one[0] for one in run})

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

    def _withdrawn(
        self, keys: dict[Key, int], ids: list[int], start_ns: int, end_ns: int, there: set[Key]
    ) -> list[Bar]:
        """Return bars that were given and are no more: all of their trades were taken back."""
        counted = self._rule.interval.counted
        if counted:
            days = {key[1] for key in keys if key[0] in ids and start_ns <= keys[key] < end_ns}
            gone = [key for key in self._given if key[0] in ids and key[1] in days and key not in there]
        else:
            gone = [
                key
                for key, start in keys.items()
                if key[0] in ids and start_ns <= start < end_ns and key not in there and key in self._given
            ]
        out = []
        for key in gone:
            self._forming.pop(key, None)
            out.append(_nothing(self._given.pop(key)))
        return out

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


def _nothing(bar: Bar) -> Bar:
    """Return the bar that says that there is none any more."""
    nan = float("nan")
    return Bar(
        bar.symbol,
        bar.interval,
        bar.ts_start_ns,
        nan,
        nan,
        nan,
        nan,
        trades=0,
        complete=True,
        revision=bar.revision + 1,
        session=bar.session,
        number=bar.number,
    )
