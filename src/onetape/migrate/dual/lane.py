"""The lane: one connection of a dual-writing client, in the target database, with a WATCH on the state; and the pool of
them. Lanes are not taken from the client's own pool: whoever shares that could take the WATCH away with an EXEC.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import hiredis
from redis.connection import AbstractConnection, BlockingConnectionPool, ConnectionPool, HiredisRespSerializer
from redis.exceptions import ConnectionError, MaxConnectionsError, ResponseError, TimeoutError

from onetape.migrate.dual.step import Send, Steps
from onetape.migrate.phases.state import State

#: Types of replies that need no second look: all but errors, messages that the server pushes, and that bytes miss.
_USUAL = frozenset((bytes, str, int, list, type(None), float, dict, set, bool))


class Track:
    """What is known of one connection, and how its commands are packed: for sync and asyncio alike."""

    def __init__(self, connection: Any, packs: bool) -> None:
        self.connection = connection
        self.armed = False
        self.noted = False
        self.raw: bytes | None = None
        self.state: State | None = None
        self.greeted = False
        self.frozen = False
        self.resp3 = str(connection.get_protocol()) == "3"
        self.watching = False
        self.decodes = True
        self._packs = packs  # redis-py's way to hiredis takes longer than hiredis
        connection.register_connect_callback(self.connected)

    def connected(self, _connection: Any) -> None:
        """Take in that this is a new connection, of which the server knows nothing yet."""
        self.armed = self.greeted = self.noted = self.watching = False

    def pack(self, *args: Any) -> bytes:
        """Return a command packed."""
        if self._packs and " " not in (args[0] if type(args[0]) is str else " "):
            try:
                done: bytes = hiredis.pack_command(args)
                return done
            except TypeError:
                pass
        packed: list[bytes] = self.connection.pack_command(*args)
        return packed[0] if len(packed) == 1 else b"".join(packed)

    def usual(self, reply: Any) -> bool:
        """Return whether a reply that has arrived is one to hand on. Raises it where it is the connection's end."""
        if type(reply) in _USUAL or isinstance(reply, ResponseError):
            return True
        if isinstance(reply, Exception):
            raise reply
        return False


class Lane(Track):
    """One connection. For one thread at a time."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection, isinstance(getattr(connection, "_command_packer", None), HiredisRespSerializer))

    def ready(self) -> None:
        """Connect, and look that the connection is alive; a new one is not armed."""
        connection = self.connection
        if connection.should_reconnect():
            self.drop()
        if connection.is_connected:
            try:
                if not connection.can_read():
                    connection.check_health()
                    return
            except (ConnectionError, TimeoutError, OSError):
                pass
            self.drop()
        if type(connection).connect is not AbstractConnection.connect:  # behind sentinels
            connection.connect()
        else:  # whoever carries out the steps tries again; each of those times would be ten times again
            connection.connect_check_health(retry_socket_connect=False)

    def drop(self) -> None:
        """Close the connection."""
        self.armed = False
        self.connection.disconnect()

    def run(self, steps: Steps) -> Any:
        """Carry out steps and return what they return."""
        try:
            asked = next(steps)
            while True:
                try:
                    answer = []
                    if isinstance(asked, Send):
                        answer = self.exchange(asked)
                    else:
                        time.sleep(asked)
                except BaseException as error:  # noqa: BLE001  (handed on)
                    asked = steps.throw(error)  # for steps whose write was carried out before
                else:
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
            gets = None
            for at in range(last + send.after):
                decoded = decodes and before <= at < last
                if gets is not None:
                    reply = gets() if decoded else gets(False)
                    if type(reply) in _USUAL or self.usual(reply):
                        replies.append(reply)
                        continue
                    if isinstance(reply, hiredis.PushNotification):
                        connection._parser.handle_push_response(reply)
                try:
                    replies.append(read(disable_decoding=not decoded))
                except ResponseError as error:
                    replies.append(error)
                gets = reader_of(connection)
        except BaseException:
            self.drop()
            raise
        return replies


def reader_of(connection: Any) -> Callable[..., Any] | None:
    """Return how to read replies that have arrived, None where redis-py reads them in Python."""
    return getattr(getattr(getattr(connection, "_parser", None), "_reader", None), "gets", None)


class Lanes:
    """The lanes of a client, each for one thread at a time; `limit` bounds how many there are."""

    def __init__(self, pool: ConnectionPool, name: str, lost: Callable[[], None]) -> None:
        self._pool, self._name, self._lost = pool, name, lost
        self._free: list[Lane] = []
        self._all: list[Lane] = []
        self._pid = os.getpid()
        self.limit = int(pool.max_connections)
        self._blocking = isinstance(pool, BlockingConnectionPool)
        self._given = threading.Condition()
        self._waiting = 0

    def forked(self, name: str) -> None:
        """Begin anew in a process that was forked: the sockets are the parent's."""
        self._free, self._all, self._pid, self._name = [], [], os.getpid(), name
        self._given, self._waiting = threading.Condition(), 0

    def take(self, *, over: int = 0) -> Lane:
        """Return a lane. At the limit, and `over`, wait if the client's pool is one that blocks.

        Raises MaxConnectionsError, or ConnectionError where the wait was in vain, as such pools do.
        """
        if os.getpid() != self._pid:  # a fork: the sockets are the parent's
            self._free, self._all, self._pid = [], [], os.getpid()
            self._lost()
        try:
            return self._free.pop()
        except IndexError:
            pass
        if len(self._all) >= self.limit + over:
            if not self._blocking:
                raise MaxConnectionsError("Too many connections")
            return self._wait()
        lane = self._make()
        self._all.append(lane)
        return lane

    def _wait(self) -> Lane:
        taken: list[Lane] = []

        def take() -> bool:
            try:
                taken.append(self._free.pop())  # another thread may be quicker
            except IndexError:
                return False
            return True

        with self._given:
            self._waiting += 1  # before the look: whoever gives one back sees it, or has given it by then
            try:
                if not self._given.wait_for(take, getattr(self._pool, "timeout", None)):
                    raise ConnectionError("No connection available.")
                return taken[0]
            finally:
                self._waiting -= 1

    def _make(self) -> Lane:
        kwargs = dict(self._pool.connection_kwargs)
        kwargs["client_name"] = kwargs.get("client_name") or self._name
        connection = self._pool.connection_class(**kwargs)
        return Lane(connection)

    def give(self, lane: Lane) -> None:
        """Take a lane back; it is closed if the client was closed meanwhile."""
        if lane in self._all:
            self._free.append(lane)
            if self._waiting:
                with self._given:
                    self._given.notify()
        else:
            lane.drop()

    def close(self) -> None:
        """Close all lanes."""
        lanes, self._all, self._free = self._all, [], []
        for lane in lanes:
            lane.drop()


__all__ = ["Lane", "Lanes", "Track", "reader_of"]
