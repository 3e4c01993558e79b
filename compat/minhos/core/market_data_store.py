"""Old address of onetape.Tape: `MarketDataStore`, one tape behind the names and units of MinhOS.

Times are Unix seconds, records are `MarketData`. What any process on the machine adds to the same file is in every
answer and reaches every subscriber.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf, nextafter
from pathlib import Path
from typing import Any

from minhos.models.market import MarketData, ns_to_seconds, seconds_to_ns
from onetape import ConfigInvalid, InvalidRecord, OnetapeError, SymbolInfo, Tick
from onetape.legacy import QueueFeed, open_at_old_path
from onetape.record import OWN_SYMBOLS
from onetape.steady import SteadyTape

__all__ = ["MarketDataConfig", "MarketDataStore", "get_market_data_store"]

_log = logging.getLogger("minhos.market_data_store")
#: More than any tape can hold: "all of them".
_ALL = 2**62
#: Detections of patterns are records of the tape too, under such symbols; they are no market's.


@dataclass
class MarketDataConfig:
    """How a store works. `db_path` is relative to the working directory, as the project's folder was.

    max_memory_records: newest records of a symbol that are answered from memory.
    retention_days: records older than this, and in the store for longer than this, are removed; bars stay.
    cleanup_interval: seconds between two looks of the background clean-up. The tape also cleans up as it is written.
    enable_compression, enable_wal_mode: accepted, and without effect: a tape packs its records in columns and is
    always in WAL mode.
    """

    db_path: Path | str = Path("data/market_data.db")
    max_memory_records: int = 1000
    retention_days: float = 30
    cleanup_interval: float = 3600
    enable_compression: bool = True
    enable_wal_mode: bool = True


class MarketDataStore:
    """The one place for market data. Methods may be called from any thread; records are durable once added.

    While the file is missing, locked, read-only, full or damaged, records are kept in a bounded ring in memory, and
    answered from there; they are written when it is back. `tape.status` says so, and get_stats() in `fallback`.
    Raises TapeUnusable, naming the file and what to do, for a file that is not a tape: one that MinhOS wrote
    itself is not touched. The tape is the attribute `tape`.
    """

    def __init__(self, config: MarketDataConfig | None = None) -> None:
        self.config = config or MarketDataConfig()
        if self.config.cleanup_interval <= 0:
            raise ConfigInvalid(f"cleanup_interval = {self.config.cleanup_interval}", hint="give seconds")
        self.tape: SteadyTape = open_at_old_path(
            self.config.db_path,
            recent_per_symbol=self.config.max_memory_records,
            retention_days=self.config.retention_days,
        )
        self._feed = QueueFeed(self.tape, MarketData.from_tick, hidden=OWN_SYMBOLS)
        self._cleanup: asyncio.Task[None] | None = None
        # One thread, so that records are stored in the order in which add() was called.
        self._worker = ThreadPoolExecutor(1, "minhos-store")

    async def add(self, data: MarketData) -> None:
        """Store a record and tell every subscriber. Durable on return; the event loop is not blocked.

        Raises InvalidRecord, naming field and value: then nothing was stored, in memory or on disk.
        """
        await asyncio.get_running_loop().run_in_executor(self._worker, self.add_now, data)

    def add_now(self, data: MarketData) -> None:
        """As add(), for callers without an event loop."""
        if not isinstance(data, MarketData):
            raise InvalidRecord(0, "data", data, "it is not a MarketData; see MarketData.from_dict")
        self.tape.append(data.to_tick())

    def get_latest(self, symbol: str | None = None) -> dict[str, MarketData | None]:
        """Return {symbol: its record with the greatest time}; {symbol: None} for one that is not known.

        Without a symbol, all that have a record.
        """
        if symbol is not None:
            tick = self.tape.latest(symbol)
            return {symbol: None if tick is None else MarketData.from_tick(tick)}
        found = self.tape.latest().items()
        return {name: MarketData.from_tick(tick) for name, tick in found if not name.startswith(OWN_SYMBOLS)}

    def get_history(self, symbol: str, limit: int | None = 1000) -> list[MarketData]:
        """Return a symbol's newest `limit` records (None: all), ascending in time; from memory where it reaches."""
        if limit is not None and limit <= 0:
            return []
        return [MarketData.from_tick(tick) for tick in self.tape.recent(symbol, limit or _ALL)]

    def get_timerange_data(self, symbol: str, start_time: float, end_time: float) -> list[MarketData]:
        """Return a symbol's records with start_time <= timestamp <= end_time, in seconds, ascending in time."""
        # A tick of another source can lie between two floats: everything whose timestamp reads as a bound is in.
        start_ns = seconds_to_ns(nextafter(float(start_time), -inf))
        end_ns = seconds_to_ns(nextafter(float(end_time), inf)) + 1
        rows = self.tape.read(symbol, start_ns, end_ns).to_pylist()
        found = [MarketData.from_tick(Tick(**row)) for row in rows]
        return [data for data in found if start_time <= data.timestamp <= end_time]

    def get_range(self, symbol: str) -> tuple[float, float] | None:
        """Return the times of a symbol's first and last record in seconds, or None."""
        for info in self._known():
            if info.symbol == symbol and info.ts_first_ns is not None and info.ts_last_ns is not None:
                return ns_to_seconds(info.ts_first_ns), ns_to_seconds(info.ts_last_ns)
        return None

    def get_symbols(self) -> list[str]:
        """Return the symbols that have records, sorted."""
        return sorted(info.symbol for info in self._known())

    def _known(self) -> list[SymbolInfo]:
        return [info for info in self.tape.symbols() if info.ticks and not info.symbol.startswith(OWN_SYMBOLS)]

    async def subscribe(self) -> asyncio.Queue[MarketData]:
        """Return a queue that gets every record added from now on, by any process, in the order of their storing.

        It holds the newest 1,000: where its reader is slower, the oldest go and `queue.dropped` counts them. No
        writer and no other subscriber ever waits for it. It belongs to the running event loop.
        """
        return self._feed.open(maxsize=1000)

    def unsubscribe(self, queue: asyncio.Queue[MarketData]) -> None:
        """End a subscription; a queue that is not known is no error."""
        self._feed.close(queue)

    def get_stats(self) -> dict[str, Any]:
        """Return counts: symbols and memory_records (answered from memory), subscribers, total_records and
        total_symbols (on disk), db_size_mb (2**20 bytes, with the log); while the file is away also `fallback`.
        """
        known, status = self._known(), self.tape.status
        tape = self.tape.tape
        stats = None if tape is None else tape.stats()
        told = {
            "symbols": len(known),
            "memory_records": sum(min(info.ticks, self.config.max_memory_records) for info in known),
            "subscribers": self._feed.queues,
            "total_records": sum(info.ticks for info in known),
            "total_symbols": len(known),
            "db_size_mb": 0.0 if stats is None else round((stats.file_bytes + stats.wal_bytes) / 2**20, 2),
        }
        if not status.on_tape:
            told["fallback"] = {"reason": status.reason, "held": status.held, "dropped": status.dropped}
        return told

    async def start_cleanup_task(self) -> None:
        """Start the background clean-up on the running event loop; where it runs already, nothing happens."""
        if self._cleanup is None or self._cleanup.done():
            self._cleanup = asyncio.get_running_loop().create_task(self._clean_up())

    async def stop_cleanup_task(self) -> None:
        """End the background clean-up. The store stays open."""
        task, self._cleanup = self._cleanup, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])

    async def _clean_up(self) -> None:
        while True:
            await asyncio.sleep(self.config.cleanup_interval)
            try:
                removed = await asyncio.to_thread(self.tape.prune)
                _log.info("removed %d records older than %g days", removed, self.config.retention_days)
            except OnetapeError as error:
                _log.error("the clean-up failed and is tried again in its next turn: %s", error)

    def close(self) -> None:
        """End the subscriptions and close the file."""
        self._feed.close()
        self._worker.shutdown()
        self.tape.close()


_store: MarketDataStore | None = None
_store_pid = 0
_lock = threading.Lock()


def get_market_data_store(config_path: Path | str | None = None) -> MarketDataStore:
    """Return the store of this process, opened at `config_path` (the path of the database) when it is first asked for.

    Asking again for another path raises ConfigInvalid. A forked process gets a store of its own.
    """
    global _store, _store_pid
    with _lock:
        if _store is None or _store_pid != os.getpid():
            config = MarketDataConfig() if config_path is None else MarketDataConfig(config_path)
            _store, _store_pid = MarketDataStore(config), os.getpid()
        elif config_path is not None and Path(config_path).absolute() != _store.tape.path:
            raise ConfigInvalid(
                f"this process already has its store at {_store.tape.path}, not at {config_path}",
                hint="give the path with the first call, or make a MarketDataStore of its own",
            )
        return _store
