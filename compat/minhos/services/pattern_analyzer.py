"""Old address of onetape.services.patterns: `PatternAnalyzer`, with times in Unix seconds.

Patterns are detected on the bars of the one store that all services share, and are records in it. Nothing is kept here.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from minhos.core.market_data_adapter import MarketDataAdapter, get_market_data_adapter
from minhos.models.market import ns_to_seconds
from onetape import OnetapeError
from onetape.services.patterns import Detection, PatternService

__all__ = ["PatternAnalyzer", "get_pattern_analyzer"]

_log = logging.getLogger("minhos.pattern_analyzer")

_DIRECTIONS = {1: "bullish", -1: "bearish", 0: "neutral"}


class PatternAnalyzer:
    """Detects patterns on the store's 1-minute bars once started. What was detected can be asked for without start().

    A store that cannot be opened raises nothing: there are no patterns then, and the statistics say why.
    """

    def __init__(self) -> None:
        self.market_data_adapter: MarketDataAdapter | None = None
        self._service: PatternService | None = None
        self._trouble: str | None = None
        self._open()

    async def start(self) -> None:
        """Begin to detect, in the background. Starting again changes nothing."""
        service = self._open()
        if service is not None:
            await service.start()

    async def stop(self) -> None:
        """End it. What was detected and learned stays."""
        if self._service is not None:
            await self._service.stop()

    def get_recent_patterns(self, limit: int = 10) -> list[dict[str, Any]]:
        """Return the newest `limit` detections, ascending in time, as dicts.

        timestamp is the start of the bar, Unix seconds; direction is "bullish", "bearish" or "neutral"; confidence is
        0 to 1: how often such a pattern came true before.
        """
        service = self._open()
        return [] if service is None else [_as_dict(detection) for detection in reversed(service.recent(limit))]

    def get_pattern_statistics(self) -> dict[str, Any]:
        """Return what was learned: total_patterns judged, successful_patterns, success_rate, and by pattern the same.

        A pattern was successful if the price moved by one average true range its way within ten bars, and not that far
        against it before.
        """
        service = self._open()
        if service is None:
            return {**_rates(0, 0), "patterns": {}, "missing": [], "trouble": self._trouble}
        try:
            found = service.statistics()
        except OnetapeError as error:
            return {**_rates(0, 0), "patterns": {}, "missing": [], "trouble": str(error)}
        by_name: dict[str, tuple[int, int]] = {}
        for row in found["patterns"]:
            judged, won = by_name.get(row["name"], (0, 0))
            by_name[row["name"]] = judged + row["total"], won + row["successes"]
        return {
            **_rates(found["total"], found["successes"]),
            "patterns": {name: _rates(judged, won) for name, (judged, won) in by_name.items()},
            "missing": found["missing"],
            "trouble": service.status()["trouble"],
        }

    def _open(self) -> PatternService | None:
        if self._service is None:
            try:
                self.market_data_adapter = get_market_data_adapter()
                self._service = PatternService(self.market_data_adapter.store.tape)
                self._trouble = None
            except OnetapeError as error:
                self._trouble = str(error)
                _log.warning("no patterns: %s", error)
        return self._service


def _rates(judged: int, won: int) -> dict[str, Any]:
    return {
        "total_patterns": judged,
        "successful_patterns": won,
        "success_rate": won / judged if judged else 0.0,
    }


def _as_dict(detection: Detection) -> dict[str, Any]:
    return {
        "pattern_type": detection.name,
        "symbol": detection.symbol,
        "timestamp": ns_to_seconds(detection.ts_ns),
        "interval": detection.interval,
        "direction": _DIRECTIONS[detection.direction],
        "price": detection.price,
        "confidence": detection.confidence,
    }


_analyzer: PatternAnalyzer | None = None
_analyzer_pid = 0
_lock = threading.Lock()


def get_pattern_analyzer() -> PatternAnalyzer:
    """Return the analyzer of this process. A forked process gets its own."""
    global _analyzer, _analyzer_pid
    with _lock:
        if _analyzer is None or _analyzer_pid != os.getpid():
            _analyzer, _analyzer_pid = PatternAnalyzer(), os.getpid()
        return _analyzer
