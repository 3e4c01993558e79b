"""The lane of an asyncio client, and the pool of them; see lane.py."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection, BlockingConnectionPool, ConnectionPool
from redis.exceptions import ConnectionError, MaxConnectionsError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from onetape.migrate.dual.lane import Track, reader_of
from onetape.migrate.dual.step import Send, Steps


class AsyncLane(Track):
    """One connection. For one task at a time."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection, type(connection).pack_command.__module__ == "redis.asyncio.connection")

    async def ready(self) -> None:
        """Connect, and look that the connection is alive; a new one is not armed."""
        connection = self.connection
        if connection.should_reconnect():
            await self.drop()
        if connection.is_connected:
            try:
                if not await connection.can_read():
                    await connection.check_health()
                    return
            except (ConnectionError, RedisTimeoutError, OSError):
                pass
            await self.drop()
        if type(connection).connect is not AbstractConnection.connect:  # behind sentinels
            await connection.connect()
        else:  # whoever carries out the steps tries again; each of those times would be ten times again
            await connection.connect_check_health(retry_socket_connect=False)

    async def drop(self) -> None:
        """Close the connection."""
        self.armed = False
        await self.connection.disconnect(nowait=True)

    async def run(self, steps: Steps) -> Any:
        """Carry out steps and return what they return."""
        try:
            asked = next(steps)
            while True:
                try:
                    answer = []
                    if isinstance(asked, Send):
                        answer = await self.exchange(asked)
                    else:
                        await asyncio.sleep(asked)
                except BaseException as error:  # noqa: BLE001  (handed on)
                    asked = steps.throw(error)  # for steps whose write was carried out before
                else:
                    asked = steps.send(answer)
        except StopIteration as done:
            return done.value

    async def exchange(self, send: Send) -> list[Any]:
        """Send packed commands and return their replies, errors in place. Cancelled, it closes the connection."""
        connection = self.connection
        if not connection.is_connected:  # it would connect by itself, without being armed
            self.armed = False
            raise ConnectionError("the connection was lost")
        replies: list[Any] = []
        try:
            await self._send(send.packed)
            read, decodes = connection.read_response, self.decodes
            before, last = send.before, send.before + send.decoded
            gets = None
            for at in range(last + send.after):
                decoded = decodes and before <= at < last
                if gets is not None:
                    reply = gets() if decoded else gets(False)
                    if self.usual(reply):
                        replies.append(reply)
                        continue
                    if isinstance(reply, hiredis.PushNotification):
                        await connection._parser.handle_push_response(reply)
                try:
                    replies.append(await read(disable_decoding=not decoded))
                except ResponseError as error:
                    replies.append(error)
                gets = reader_of(connection)
        except BaseException:
            await self.drop()
            raise
        return replies

    async def _send(self, packed: bytes) -> None:
        """Send without a task of its own: redis-py's wait_for() makes one, and can lose a cancellation."""
        connection = self.connection
        writer = connection._writer
        writer.write(packed)
        try:
            async with asyncio.timeout(connection.socket_timeout):
                await writer.drain()
        except TimeoutError:  # of asyncio
            raise RedisTimeoutError("Timeout writing to socket") from None
        except OSError as error:
            raise ConnectionError(f"Error while writing to socket. {error}") from error


class AsyncLanes:
    """The lanes of a client of one event loop, each for one task at a time; `limit` bounds how many there are."""

    def __init__(self, pool: ConnectionPool, name: str, lost: Callable[[], None]) -> None:
        self._pool, self._name, self._lost = pool, name, lost
        self._free: list[AsyncLane] = []
        self._all: list[AsyncLane] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self.limit = int(pool.max_connections)
        self._waiters: deque[asyncio.Future[None]] = deque()

    def forked(self, name: str) -> None:
        """Begin anew in a process that was forked: the sockets are the parent's."""
        self._free, self._all, self._loop, self._name = [], [], None, name
        self._waiters.clear()

    async def wait(self) -> AsyncLane:
        """Return a lane; at the limit, wait for one if the client's pool is one that blocks.

        Raises MaxConnectionsError, or ConnectionError where the wait was in vain, as such pools do.
        """
        try:
            return self.take()
        except MaxConnectionsError:
            if not isinstance(self._pool, BlockingConnectionPool):
                raise
        try:
            async with asyncio.timeout(self._pool.timeout):
                while True:
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.append(waiter)
                    try:
                        await waiter
                    except BaseException:
                        self._waiters = deque(other for other in self._waiters if other is not waiter)
                        if waiter.done() and not waiter.cancelled():  # it was our turn: another's now
                            self._wake()
                        raise
                    try:
                        return self.take()
                    except MaxConnectionsError:
                        continue
        except TimeoutError:  # of asyncio
            raise ConnectionError("No connection available.") from None

    def _wake(self) -> None:
        while self._waiters and self._free:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def take(self, *, over: int = 0) -> AsyncLane:
        """Return a lane, up to the limit and `over`. Raises MaxConnectionsError."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # connections belong to the loop they were made in
            if self._loop is not None:
                self._lost()
            self._free, self._all, self._loop = [], [], loop
            self._waiters.clear()
        if self._free:
            return self._free.pop()
        if len(self._all) >= self.limit + over:
            raise MaxConnectionsError("Too many connections")
        kwargs = dict(self._pool.connection_kwargs)
        kwargs["client_name"] = kwargs.get("client_name") or self._name
        lane = AsyncLane(self._pool.connection_class(**kwargs))
        self._all.append(lane)
        return lane

    def give(self, lane: AsyncLane) -> None:
        """Take a lane back, unless it is another loop's or the client was closed meanwhile."""
        if lane in self._all:
            self._free.append(lane)
            self._wake()

    async def close(self) -> None:
        """Close all lanes."""
        lanes, self._all, self._free = self._all, [], []
        for lane in lanes:
            await lane.drop()


__all__ = ["AsyncLane", "AsyncLanes"]
