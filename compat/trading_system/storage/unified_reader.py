"""Old address of onetape.migrate.reader.MarketReader: reads the new structure first and falls back to the old one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onetape.migrate.reader import MarketReader

__all__ = ["UnifiedRedisReader"]


class UnifiedRedisReader:
    """Reads ticks, volume states, indicators and OHLC as text. None where there is nothing.

    Where a live migration was started its state says which side is asked: the old one until the reads are switched.
    Host and port are REDIS_HOST and REDIS_PORT, else what onetape is set to, else localhost:6379.
    """

    def __init__(self, redis_host: str | None = None, redis_port: int | None = None) -> None:
        from onetape.legacy import redis_url
        from onetape.migrate.reader import MarketReader

        self._reader: MarketReader = MarketReader(redis_url(redis_host, redis_port), name="UnifiedRedisReader")

    def read_tick(self, symbol: str) -> dict[str, str] | None:
        """Return the newest tick of a symbol: of its stream, or of the hash `tick:SYMBOL` where that one is newer."""
        return self._reader.tick(symbol)

    def read_volume_state(self, symbol: str, token: int | str | None = None) -> Any:
        """Return the volume state of a token; without one, or where it has none, of the symbol."""
        return self._reader.volume_state(symbol, token)

    def read_indicator(self, symbol: str, name: str) -> Any:
        """Return an indicator: a str for a string, a dict for a hash, a list for a list."""
        return self._reader.indicator(symbol, name)

    def read_ohlc(self, symbol: str) -> Any:
        """Return `ohlc_latest:SYMBOL`, else `ohlc:SYMBOL`."""
        return self._reader.ohlc(symbol)

    def get_read_stats(self) -> dict[str, Any]:
        """Return how often which side answered; new_read_percentage is of the reads that found something."""
        stats = self._reader.stats()
        return {
            "new_reads": stats.new_reads,
            "old_fallbacks": stats.old_fallbacks,
            "new_read_percentage": stats.new_read_percentage,
            "old_reads": stats.old_reads,
            "misses": stats.misses,
            "total_reads": stats.reads,
        }

    def close(self) -> None:
        """Close the connections."""
        self._reader.close()
