"""Old address of onetape.migrate.landing.latest_ticks: a tick written to the old and the new structure at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onetape.migrate.landing.latest_ticks import LatestTicks

__all__ = ["TransitionalManager"]


class TransitionalManager:
    """Stores ticks in the hash `tick:SYMBOL` and in the stream of its symbol, in one transaction.

    Where a live migration was started its state says which of the two are written: old while planned, both until
    finish, then new. Host and port are as for UnifiedRedisReader.
    """

    def __init__(self, redis_host: str | None = None, redis_port: int | None = None) -> None:
        from onetape.legacy import redis_url
        from onetape.migrate.landing.latest_ticks import LatestTicks

        self._ticks: LatestTicks = LatestTicks(redis_url(redis_host, redis_port))

    def store_tick(self, symbol: str, data: Mapping[str, Any]) -> bool:
        """Store a tick and return True; what cannot be stored raises InvalidRecord or EndpointError."""
        self._ticks.store(symbol, data)
        return True

    def read_tick(self, symbol: str, use_new_structure: bool = True) -> dict[str, str] | None:
        """Return the newest tick of both structures, or, with use_new_structure=False, that of the old one."""
        return self._ticks.newest(symbol, new=use_new_structure)

    def verify_consistency(self, symbol: str) -> bool:
        """Return whether both structures have the same newest tick of a symbol, or none."""
        return self._ticks.consistent(symbol)

    def enable_dual_write_mode(self) -> str:
        """Write both from now on, as far as a migration's state lets one; return "old", "both" or "new"."""
        return self._ticks.write_both(True)

    def disable_dual_write(self) -> str:
        """Write the new structure alone from now on; return "new".

        Raises PhaseRefused while a live migration needs both: onetape migrate finish ends that.
        """
        return self._ticks.write_both(False)

    def get_stats(self) -> dict[str, Any]:
        """Return what was written so far, and what is written now: `mode` is "old", "both" or "new"."""
        stats = self._ticks.stats
        mode = self._ticks.mode()
        return {
            "mode": mode,
            "dual_write_enabled": mode == "both",
            "ticks_stored": stats.stored,
            "old_writes": stats.old_writes,
            "new_writes": stats.new_writes,
            "late_ticks": stats.late,
            "already_stored": stats.known,
            "rescued_ticks": stats.rescued,
            "left_to_backfill": stats.left,
            "retries": stats.retries,
        }

    def close(self) -> None:
        """Close the connection."""
        self._ticks.close()
