"""Views: what the API tells of the tape, its symbols and their coverage. Each blocks, and is called off the loop."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from onetape.clock import now_ns
from onetape.errors import OnetapeError
from onetape.record import OWN_SYMBOLS
from onetape.web.candles import PENDING_NS, Known
from onetape.web.rows import MS_NS, ms

if TYPE_CHECKING:
    from onetape.services.system import System

DAY_NS = 86_400 * 10**9
#: A day's open is asked for again after so long, s: its first trade may come late, or be taken back.
OPEN_S = 60.0
T = TypeVar("T")


class Lately:
    """An answer that is kept for a while, for all who ask meanwhile."""

    def __init__(self, keep_s: float = 1.0) -> None:
        self._keep_s = keep_s
        self._lock = threading.Lock()
        self._kept: dict[Any, tuple[float, Any]] = {}

    def of(self, what: Any, make: Callable[[], T]) -> T:
        """Return what make() gave lately, or gives now."""
        with self._lock:
            found = self._kept.get(what)
            if found is not None and time.monotonic() - found[0] < self._keep_s:
                kept: T = found[1]
                return kept
            made = make()
            if len(self._kept) > 256:
                self._kept.clear()
            self._kept[what] = time.monotonic(), made
            return made


class Views:
    """What is told of one system."""

    def __init__(self, system: System, known: Known) -> None:
        self._system, self._known = system, known
        self._opens: dict[tuple[str, int], tuple[float, float]] = {}
        self._lately = Lately()

    def symbols(self, sought: str, limit: int) -> dict[str, Any]:
        """Return symbols whose name has `sought`, those that begin with it first; and all that have an order book."""
        wanted = sought.strip().casefold()
        names = sorted(
            (name for name in self._known.all() if not name.startswith(OWN_SYMBOLS) and wanted in name.casefold()),
            key=lambda name: (not name.casefold().startswith(wanted), name),
        )
        found = [self._symbol(name) for name in names[:limit]]
        return {"symbols": found, "more": len(names) > limit, "books": sorted(self._system.books())}

    def _symbol(self, name: str) -> dict[str, Any]:
        info = self._known.all()[name]
        now = now_ns()
        tick = self._system.tape.latest(name)
        price = bid = ask = opened = None
        if tick is not None:
            price, bid, ask, opened = tick.price, tick.bid, tick.ask, tick.open
            if price is None or bid is None:
                for one in reversed(self._system.tape.recent(name, 50)):
                    price = one.price if price is None else price
                    bid, ask = (one.bid, one.ask) if bid is None and ask is None else (bid, ask)
                    if price is not None and bid is not None:
                        break
            if opened is None and price is not None:
                opened = self._open(name, tick.ts_event_ns)
        change = None if price is None or opened is None else price - opened
        return {
            "symbol": name,
            "ticks": info.ticks,
            "first_ms": None if info.ts_first_ns is None else ms(info.ts_first_ns),
            "last_ms": None if info.ts_last_ns is None else ms(info.ts_last_ns),
            "price": price,
            "change": change,
            "change_pct": None if change is None or not opened else 100 * change / abs(opened),
            "bid": bid,
            "ask": ask,
            "age_ms": None if tick is None else ms(now - tick.ts_event_ns),
        }

    def _open(self, name: str, at_ns: int) -> float | None:
        day = at_ns // DAY_NS
        asked_s, found = self._opens.get((name, day), (0.0, None))
        if found is None or time.monotonic() - asked_s > OPEN_S:
            try:
                bars = self._system.tape.bar_list(name, "1d", day * DAY_NS, (day + 1) * DAY_NS)
            except OnetapeError:
                return None
            if not bars:
                return None
            if len(self._opens) > 10_000:
                self._opens.clear()
            found = bars[0].open
            self._opens[name, day] = time.monotonic(), found
        return found

    def tape(self) -> dict[str, Any]:
        """Return what the tape says of itself."""
        return self._lately.of("tape", self._tape)

    def _tape(self) -> dict[str, Any]:
        steady = self._system.tape
        found: dict[str, Any] = {
            "path": str(steady.path),
            "steady": msgspec.to_builtins(steady.status),
            "head": steady.head,
            "stats": None,
            "symbols": [],
            "memory": [],
        }
        tape = steady.tape
        if tape is None:
            return found
        infos = self._known.all().values()
        found["stats"] = msgspec.to_builtins(tape.stats())
        found["symbols"] = [
            {
                "symbol": info.symbol,
                "ticks": info.ticks,
                "bars": info.bars,
                "rate_per_s": self._rate(info.symbol),
                "last_ms": None if info.ts_last_ns is None else ms(info.ts_last_ns),
            }
            for info in infos
        ]
        found["memory"] = [
            {"symbol": one.symbol, "records": one.records, "objects": one.objects, "bytes": one.bytes}
            for one in tape.memory()
        ]
        return found

    def _rate(self, symbol: str) -> float:
        """Return ticks a second over the last minute, by the newest that are in memory."""
        ticks = self._system.tape.recent(symbol, 1000)
        since = now_ns() - 60 * 10**9
        recent = [tick for tick in ticks if tick.ts_event_ns >= since]
        if not recent:
            return 0.0
        span = 60.0 if len(recent) < len(ticks) else max(1.0, (now_ns() - recent[0].ts_event_ns) / 1e9)
        return round(len(recent) / span, 3)

    def coverage(self, symbol: str, days: int) -> dict[str, Any]:
        """Return how much of each of the newest days is covered."""
        return {"symbol": symbol, "days": self._lately.of((symbol, days), lambda: self._days(symbol, days))}

    def _days(self, symbol: str, days: int) -> list[dict[str, Any]]:
        tape = self._system.tape.tape
        info = self._known.of(symbol)
        if tape is None or info is None or info.ts_first_ns is None or info.ts_last_ns is None:
            return []
        last_day = max(info.ts_last_ns, min(now_ns(), info.ts_last_ns + DAY_NS)) // DAY_NS
        first_day = max(info.ts_first_ns // DAY_NS, last_day - days + 1)
        found = {
            day: {"date": _date(day), "covered": 0.0, "missing": 0.0, "closed": 0.0, "quiet": 0.0, "ticks": 0}
            for day in range(first_day, last_day + 1)
        }
        now = now_ns()
        for span in tape.coverage(symbol, first_day * DAY_NS, (last_day + 1) * DAY_NS):
            field = {"unknown": "missing", "pruned": "covered"}.get(span.state, span.state)
            if field == "missing" and span.end_ns >= now and now - span.start_ns < PENDING_NS:
                continue
            start_ns = span.start_ns
            if span.state == "unknown":  # before it was first heard of, nothing was there to be missed
                start_ns = max(start_ns, info.ts_first_ns)
            for day in range(span.start_ns // DAY_NS, (span.end_ns - 1) // DAY_NS + 1):
                if day in found:
                    since, until = max(start_ns, day * DAY_NS), min(span.end_ns, (day + 1) * DAY_NS, now_ns())
                    row: Any = found[day]
                    row[field] = row[field] + max(0, until - since) / 1e9
        for bar in tape.bar_list(symbol, "1d", first_day * DAY_NS, (last_day + 1) * DAY_NS):
            day_row: Any = found.get(bar.ts_start_ns // DAY_NS)
            if day_row is not None:
                day_row["ticks"] = bar.trades or 0
        return list(found.values())


def _date(day: int) -> str:
    return datetime.datetime.fromtimestamp(day * DAY_NS / 1e9, datetime.UTC).date().isoformat()


__all__ = ["MS_NS", "Lately", "Views"]
