"""Old address of trading_system.storage.redis_manager, which is an old address itself: see onetape.legacy."""

from __future__ import annotations

from trading_system.storage.redis_manager import UnifiedRedisManager

__all__ = ["UnifiedRedisManager"]
