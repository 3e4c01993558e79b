"""Old address of onetape.legacy.redis_client: Redis clients of a process share one connection pool by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onetape.legacy import close_redis_clients, redis_client

if TYPE_CHECKING:
    import redis

__all__ = ["UnifiedRedisManager"]


class UnifiedRedisManager:
    """Hands out clients. Every method may be called on the class, from any thread."""

    @staticmethod
    def get_client(process_name: str, db: int = 1, **kwargs: Any) -> redis.Redis:
        """Return a redis-py client on the one pool of this process name and database.

        `kwargs` are redis-py's (other ones make another pool); host and port are REDIS_HOST and REDIS_PORT, else
        localhost:6379. Replies are text unless decode_responses=False is given: ask for that where values are binary.
        """
        return redis_client(process_name, db, **kwargs)

    @staticmethod
    def cleanup() -> None:
        """Close the connections of every pool."""
        close_redis_clients()
