"""Old address of onetape.services.charts: `MultiChartCollector`, with records in `MarketData`."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from minhos.core.market_data_adapter import MarketDataAdapter, get_market_data_adapter
from minhos.models.market import ns_to_seconds
from onetape import Bar, OnetapeError
from onetape.record import OWN_SYMBOLS
from onetape.services.charts import ChartConfig, ChartData, ChartService

__all__ = ["ChartConfig", "MultiChartCollector", "get_multi_chart_collector"]


class MultiChartCollector:
    """Charts read from the store when they are asked for. Without charts, each symbol of the store is one of 1 minute.

    Such a chart's id is its symbol. `service` is the ChartService behind it.
    """

    def __init__(self, charts: Sequence[ChartConfig] | None = None, adapter: MarketDataAdapter | None = None) -> None:
        self.market_data_adapter = adapter or get_market_data_adapter()
        self.service = ChartService(self.market_data_adapter.store.tape, charts or ())
        self._all = charts is None

    async def start(self) -> None:
        """Nothing runs by itself: a chart is read when it is asked for."""

    async def stop(self) -> None:
        """Nothing runs by itself."""

    def get_chart_data(self, chart_id: str) -> dict[str, Any] | None:
        """Return chart_id, symbol, interval, current (latest record as a dict, or None), bars, late, missing, trouble.

        bars as get_historical_data() has them; missing: [[start, end]] in seconds. None for a chart that is not known.
        """
        data = self._data(chart_id, None)
        if data is None:
            return None
        try:
            latest = self.market_data_adapter.get_market_data(data.symbol)
        except OnetapeError:  # `trouble` has the reason
            latest = None
        return {
            "chart_id": chart_id,
            "symbol": data.symbol,
            "interval": data.interval,
            "current": None if latest is None else latest.to_dict(),
            "bars": [_plain(bar) for bar in data.bars],
            "late": data.late,
            "missing": [[ns_to_seconds(start), ns_to_seconds(end)] for start, end in data.missing],
            "trouble": data.trouble,
        }

    def get_historical_data(self, chart_id: str, limit: int = 100) -> list[dict[str, Any]]:
        """Return a chart's newest `limit` bars, ascending: timestamp (seconds, the start), open, high, low, close,
        volume, complete. At most 5,000; [] for a chart that is not known.
        """
        data = self._data(chart_id, min(limit, 5000)) if limit > 0 else None
        return [] if data is None else [_plain(bar) for bar in data.bars]

    def get_current_analysis(self) -> dict[str, Any]:
        """Return charts (regime, late, missing …), spreads, alignment, doubt; see ChartService.current_analysis."""
        self._find()
        return self.service.current_analysis()

    def _data(self, chart_id: str, limit: int | None) -> ChartData | None:
        if chart_id not in self.service.charts:
            self._find()
        return self.service.chart_data(chart_id, limit) if chart_id in self.service.charts else None

    def _find(self) -> None:
        if not self._all:
            return
        try:
            symbols = self.market_data_adapter.get_symbols()
        except OnetapeError:  # the store is away: the charts that are known say so
            return
        for symbol in symbols:
            if not symbol.startswith(OWN_SYMBOLS):
                self.service.add(ChartConfig(symbol, symbol))


def _plain(bar: Bar) -> dict[str, Any]:
    return {
        "timestamp": ns_to_seconds(bar.ts_start_ns),
        "open": bar.open,
        "high": bar.high,
        "low": bar.low,
        "close": bar.close,
        "volume": bar.volume,
        "complete": bar.complete,
    }


_collector: MultiChartCollector | None = None
_collector_pid = 0
_lock = threading.Lock()


def get_multi_chart_collector() -> MultiChartCollector:
    """Return the collector of this process, on the adapter of this process. A forked process gets its own."""
    global _collector, _collector_pid
    with _lock:
        if _collector is None or _collector_pid != os.getpid():
            _collector, _collector_pid = MultiChartCollector(), os.getpid()
        return _collector
