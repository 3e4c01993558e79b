"""The lane: one connection of a dual-writing client, in the target database, with a WATCH on the state; and the pool of
them. Lanes are not taken from the client's own pool: whoever shares that could take the WATCH away with an EXEC.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from redis.connection import ConnectionPool
from redis.exceptions import ConnectionError, MaxConnectionsError, ResponseError, TimeoutError

from onetape.migrate.dual.exchange import Send, Steps
from onetape.migrate.state import State


class Lane:
    """One connection. For one thread at a time."""

    def __init__(self, connection: Any, resp3: bool) -> None:
        self.connection = connection
        self.armed = False
        self.noted = False
        self.raw: bytes | None = None
        self.state: State | None = None
        self.greeted = False
        self.frozen = False
        self.resp3 = resp3
        self.watching = False
        self.decodes = True
        connection.register_connect_callback(self._connected)

    def _connected(self, _connection: Any) -> None:
        self.armed = self.greeted = self.noted = self.watching = False

    def pack(self, *args: Any) -> bytes:
        """Return a command packed."""
        packed: list[bytes] = self.connection.pack_command(*args)
        return packed[0] if len(packed) == 1 else b"".join(packed)

    def ready(self) -> None:
        """Connect, and look that the connection is alive; a new one is not armed."""
        connection = self.connection
        if connection.should_reconnect():
            self.drop()
        connection.connect()
        try:
            if connection.can_read():
                raise ConnectionError("Connection has data")
        except (ConnectionError, TimeoutError, OSError):
            self.drop()
            connection.connect()
        connection.check_health()

    def drop(self) -> None:
        """Close the connection."""
        self.armed = False
        self.connection.disconnect()

    def run(self, steps: Steps) -> Any:
        """Carry out steps and return what they return."""
        try:
            asked = next(steps)
            while True:
                if isinstance(asked, Send):
                    answer = self.exchange(asked)
                else:
                    time.sleep(asked)
                    answer = []
                asked = steps.send(answer)
        except StopIteration as done:
            return done.value

    def exchange(self, send: Send) -> list[Any]:
        """Send packed commands and return their replies, errors in place."""
        connection = self.connection
        if not connection.is_connected:  # it would connect by itself, without being armed
            self.armed = False
            raise ConnectionError("the connection was lost")
        replies: list[Any] = []
        try:
            connection.send_packed_command([send.packed], check_health=False)
            read, decodes = connection.read_response, self.decodes
            before, last = send.before, send.before + send.decoded
            for at in range(last + send.after):
                try:
                    replies.append(read(disable_decoding=not (decodes and before <= at < last)))
                except ResponseError as error:
                    replies.append(error)
        except BaseException:
            self.drop()
            raise
        return replies


class Lanes:
    """The lanes of a client, each for one thread at a time; `limit` bounds how many there are."""

    def __init__(self, pool: ConnectionPool, name: str, lost: Callable[[], None]) -> None:
        self._pool, self._name, self._lost = pool, name, lost
        self._free: list[Lane] = []
        self._all: list[Lane] = []
        self._pid = os.getpid()
        self.limit = int(pool.max_connections)

    def take(self) -> Lane:
        """Return a lane that is connected. Raises what connecting raises, MaxConnectionsError."""
        if os.getpid() != self._pid:  # a fork: the sockets are the parent's
            self._free, self._all, self._pid = [], [], os.getpid()
            self._lost()
        try:
            return self._free.pop()
        except IndexError:
            pass
        if len(self._all) >= self.limit:
            raise MaxConnectionsError("Too many connections")
        lane = self._make()
        self._all.append(lane)
        return lane

    def _make(self) -> Lane:
        kwargs = dict(self._pool.connection_kwargs)
        kwargs["client_name"] = kwargs.get("client_name") or self._name
        connection = self._pool.connection_class(**kwargs)
        return Lane(connection, str(connection.get_protocol()) == "3")

    def give(self, lane: Lane) -> None:
        """Take a lane back."""
        self._free.append(lane)

    def close(self) -> None:
        """Close all lanes."""
        lanes, self._all, self._free = self._all, [], []
        for lane in lanes:
            lane.drop()


__all__ = ["Lane", "Lanes"]
