"""Pools: connections like those that a client has, in another database, or for the attendant's own use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from onetape.errors import ConfigInvalid
from onetape.migrate.reader.steps import Ask, Command

#: How long the attendant waits for the server, s: it delays nobody, but must not hang for ever.
_ATTENDANT_TIMEOUT_S = 2.0
#: What a pool adds to its connections' settings itself.
_OWN = ("maint_notifications_pool_handler", "orig_host_address", "orig_socket_timeout",
        "orig_socket_connect_timeout", "himport_registry", "connection_pool", "event_dispatcher")  # fmt: skip


def db_of(pool: Any) -> int:
    """Return the database that a pool's connections are in."""
    return int(pool.connection_kwargs.get("db") or 0)


def like(pool: Any, **changes: Any) -> Any:
    """Return a new pool of the same kind with some of its connections' settings changed, `db` among them.

    Raises ConfigInvalid for pools with a cache of their own: it would answer with what it remembers.
    """
    if getattr(pool, "cache", None) is not None:
        raise ConfigInvalid(
            "a client with a cache of its own cannot follow a migration", hint="make it without cache and cache_config"
        )
    settings = {name: value for name, value in pool.connection_kwargs.items() if name not in _OWN}
    settings |= {"connection_class": pool.connection_class, "max_connections": pool.max_connections, **changes}
    if hasattr(pool, "sentinel_manager"):
        how = {"is_master": pool.is_master, "check_connection": pool.check_connection}
        return type(pool)(pool.service_name, pool.sentinel_manager, **settings, **how)
    if isinstance(pool, redis.BlockingConnectionPool | redis.asyncio.BlockingConnectionPool):
        settings["timeout"] = pool.timeout
    return type(pool)(**settings)


def for_attendant(pool: Any, db: int, client_name: str) -> Any:
    """Return a pool of one connection that gives up soon, tries nothing twice and decodes nothing."""
    retry = AsyncRetry if isinstance(pool, redis.asyncio.ConnectionPool) else Retry
    return like(
        pool,
        db=db,
        client_name=client_name,
        max_connections=1,
        decode_responses=False,
        retry=retry(NoBackoff(), 0),
        socket_timeout=_ATTENDANT_TIMEOUT_S,
        socket_connect_timeout=_ATTENDANT_TIMEOUT_S,
    )


def queue(pipe: Any, home: int, commands: Sequence[Command]) -> list[bool]:
    """Queue commands with the SELECTs that they need; return for each reply whether it is one of a command."""
    db, wanted = home, []
    for place, args, options in commands:
        if place != db:
            pipe.pipeline_execute_command("SELECT", place)
            wanted.append(False)
            db = place
        pipe.pipeline_execute_command(*args, **options)
        wanted.append(True)
    if db != home:
        pipe.pipeline_execute_command("SELECT", home)
        wanted.append(False)
    return wanted


def of_commands(replies: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
    """Return the replies of the commands. Raises the error of a SELECT: what came after it was in another database."""
    for reply, is_command in zip(replies, wanted, strict=True):
        if not is_command and isinstance(reply, Exception):
            raise reply
    return [reply for reply, is_command in zip(replies, wanted, strict=True) if is_command]


def exchange(pool: Any, callbacks: Any, ask: Ask) -> list[Any]:
    """Send a packet through a pool and return its replies, errors in place."""
    with Pipeline(pool, callbacks, ask.transaction, None) as pipe:
        wanted = queue(pipe, db_of(pool), ask.commands)
        return of_commands(Pipeline.execute(pipe, raise_on_error=False), wanted)


async def aexchange(pool: Any, callbacks: Any, ask: Ask) -> list[Any]:
    """As exchange(), for asyncio."""
    async with redis.asyncio.client.Pipeline(pool, callbacks, ask.transaction, None) as pipe:
        wanted = queue(pipe, db_of(pool), ask.commands)
        return of_commands(await pipe.execute(raise_on_error=False), wanted)


__all__ = ["aexchange", "db_of", "exchange", "for_attendant", "like", "of_commands", "queue"]
