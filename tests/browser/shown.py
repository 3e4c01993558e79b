"""A system to be looked at: served by a process of its own (this file, run), fed by another that writes to the tape."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

from tests.serving import Standing

import onetape
from onetape import Tick
from onetape.clock import now_ns
from onetape.config import WebSettings
from onetape.services.system import System
from onetape.sources.book import Book
from onetape.sources.source import SourceStats
from onetape.web.app import make_app
from onetape.web.server import serve

MS = 1_000_000


class Pattern:
    """Detections as the page gets them, for a look at it."""

    name = "patterns"

    def status(self) -> dict[str, Any]:
        return {"running": True, "detectors": 14, "detections": 12}

    def recent(self, limit: int, symbol: str | None) -> list[dict[str, Any]]:
        names = ("engulfing", "morning_star", "breakout", "volume_spike", "hammer")
        return [
            {
                "ts_event_ns": now_ns() - (index * 47 + 11) * 10**9,
                "symbol": "ESZ6" if index % 3 else "NQZ6",
                "detector": names[index % 5],
                "direction": 1 if index % 2 else -1,
                "price": 5003.25 + index / 4,
                "confidence": 0.55 + (index * 7 % 40) / 100,
            }
            for index in range(12)
        ][:limit]

    def statistics(self) -> dict[str, Any]:
        return {
            "engulfing": {"total": 212, "successes": 121, "failures": 91, "success_rate": 0.571},
            "morning_star": {"total": 48, "successes": 29, "failures": 19, "success_rate": 0.604},
            "breakout": {"total": 96, "successes": 44, "failures": 52, "success_rate": 0.458},
        }


class Positions:
    """Positions as the page gets them, for a look at it."""

    name = "state"

    def status(self) -> dict[str, Any]:
        return {"running": True, "positions": 2, "subscribers": 1}

    def snapshot(self) -> dict[str, Any]:
        return {
            "positions": [
                {"symbol": "ESZ6", "quantity": 2, "average_price": 4998.5, "current_price": 5003.25,
                 "unrealized_pnl": 475.0, "realized_pnl": 120.0},
                {"symbol": "NQZ6", "quantity": -1, "average_price": 18010.0, "current_price": 18022.5,
                 "unrealized_pnl": -250.0, "realized_pnl": 0.0},
            ],
            "risk": {"max_position_size": 5, "max_daily_loss": 2000.0},
        }  # fmt: skip


def migration() -> dict[str, Any]:
    """A migration in its middle, for a look at the page."""
    return {
        "at_ms": now_ns() // MS, "address": "redis://127.0.0.1:6379", "plan": "trading_system", "plan_hash": "5c1f",
        "target_db": 1, "phase": "verified", "trouble": "", "state": {"version": 7}, "operator": None,
        "phases": ["planned", "dual_writing", "backfilled", "verified", "reads_switched", "cut_over", "finished"],
        "progress": None, "verdict": "converged", "diverged": 0, "mirror": None,
        "steps": {"session data": {"copied": 8120, "unchanged": 44, "newer target kept": 3},
                  "ohlc": {"copied": 3010, "unchanged": 3, "newer target kept": 0}},
        "outcomes": {"copied": 11130, "unchanged": 47, "newer target kept": 3},
        "reads": {"new_reads": 81230, "old_fallbacks": 12, "fallback_rate": 0.0004, "shadow": 9000, "mismatches": 0},
        "clients": [{"id": "a", "name": "feed-1", "kind": "writer", "version": 7, "acknowledged": True},
                    {"id": "b", "name": "desk-2", "kind": "reader", "version": 6, "silent_ms": 14200}],
        "late": ["b"], "silent": ["b"],
    }  # fmt: skip


class Feed:
    """A feed that tells that it lives; the ticks come from another process."""

    def __init__(self, tape: Any) -> None:
        self.source = SimpleNamespace(books={})
        self._tape = tape

    @property
    def stats(self) -> SourceStats:
        tick = max(self._tape.latest().values(), key=lambda one: one.ts_event_ns, default=None)
        at = None if tick is None else tick.ts_event_ns
        return SourceStats(
            name="exchange", kind="dtc", state="live", since_ns=0, records=self._tape.stats().ticks, lag_ms=4.2,
            last_event_ns=at, last_recv_ns=at,
        )  # fmt: skip


def _books(tape: Any, feed: Feed) -> None:
    book = Book()
    feed.source.books["ESZ6"] = book
    while True:
        tick = tape.latest("ESZ6")
        if tick is not None and tick.price is not None:
            book.clear(now_ns())
            for level in range(1, 11):
                book.set_level("bid", tick.price - level / 4, 10.0 + (level * 37) % 90, level + 2, now_ns())
                book.set_level("ask", tick.price + level / 4, 12.0 + (level * 53) % 80, level + 1, now_ns())
        time.sleep(0.4)


def serve_tape(path: str, options: dict[str, Any]) -> None:
    """Serve a tape's page until killed, or until the parent goes."""
    rich = options.pop("rich", False)
    with onetape.open(path, retention_days=None) as tape:
        feed = Feed(tape)
        services: dict[str, Any] = {"patterns": Pattern(), "state": Positions()} if rich else {}
        tasks = [
            {"name": name, "state": "running", "restarts": 0, "since_ms": now_ns() // MS}
            for name in ("tape", "exchange", "web")
        ]
        system = System(
            tape=Standing(tape), feeds={"exchange": feed} if rich else {}, services=services,
            migration=migration if rich else lambda: None, tasks=lambda: tasks,
        )  # fmt: skip
        if rich:
            threading.Thread(target=_books, args=(tape, feed), daemon=True).start()
        settings = WebSettings(**{"requests_per_s": 1000, **options})
        asyncio.run(serve(make_app(system, settings), settings, on_ready=lambda address: print(address, flush=True)))


def feed_tape(path: str, symbols: list[str], every_s: float) -> None:
    """Append a trade of each symbol at the present time, again and again."""
    chance = random.Random(7)
    prices = dict.fromkeys(symbols, 5000.0)
    with onetape.open(path, retention_days=None) as tape:
        for symbol in symbols:
            tick = tape.latest(symbol)
            prices[symbol] = tick.price if tick is not None and tick.price is not None else 5000.0
        while True:
            for symbol in symbols:
                prices[symbol] += chance.choice((-0.5, -0.25, -0.25, 0.0, 0.25, 0.25, 0.5))
                price = prices[symbol]
                tape.append(Tick(
                    symbol, now_ns(), price=price, size=float(chance.randint(1, 9)), bid=price - 0.25, ask=price + 0.25,
                    bid_size=float(chance.randint(5, 80)), ask_size=float(chance.randint(5, 80)),
                    side=chance.choice((-1, 1)),
                ))  # fmt: skip
            print(flush=True)
            time.sleep(every_s)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    what, where, told = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        if what == "serve":
            serve_tape(where, told)
        else:
            feed_tape(where, **told)
