"""What the predecessors' addresses stand on: a tape at an old path, records into an asyncio queue, Redis clients.

These are ordinary parts with today's names; the old names are in compat/, which holds no storage or Redis calls.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import apsw

from onetape import config
from onetape.errors import ConfigInvalid, TapeUnusable
from onetape.live.subscription import Subscription
from onetape.record import Tick
from onetape.steady import SteadyTape
from onetape.store import layout

if TYPE_CHECKING:
    import redis

Item = TypeVar("Item")

#: Connections a pool opens at the most: a process with more threads than this waits for one to be free.
_CONNECTIONS_MAX = 50
_POOL_WAIT_S = 20


def open_at_old_path(path: str | os.PathLike[str], **options: Any) -> SteadyTape:
    """Return the tape at `path`, in a folder that is created; one that goes on in memory while the file is away.

    A path that can never be a tape raises TapeUnusable: a directory, below a file. So does a file of MinhOS, which is
    not touched, not even by SQLite: the error says what to do about it.
    """
    path = Path(path)
    if path.is_dir():
        raise TapeUnusable(f"{path} is a directory", hint="give the path of a file, such as market_data.db")
    if path.is_file() and _is_minhos(path):
        raise TapeUnusable(
            f"{path} is a database of MinhOS (it has the table market_data), not a tape",
            hint="it was not touched: move it aside, or set db_path to a new file; then: onetape import FILE",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (NotADirectoryError, FileExistsError) as error:
        raise TapeUnusable(
            f"cannot make the folder {path.parent}: {error.strerror}", hint="create it, or give another path"
        ) from error
    except OSError:
        pass  # full, read-only, not mounted yet: the tape is away, and says so in its status
    return SteadyTape(path, **options).start()


def _is_minhos(path: Path) -> bool:
    # What is in a log must be read with it; without one, SQLite is told that it need not even make one.
    how = "mode=ro" if layout.wal_path(path).exists() else "immutable=1"
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    try:
        connection = apsw.Connection(f"{path.absolute().as_uri()}?{how}", flags=flags)
        try:
            query = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'market_data'"
            return bool(connection.execute(query).get)
        finally:
            connection.close()
    except apsw.Error:
        return False  # whatever it is, opening it as a tape says so


class NewestQueue(asyncio.Queue[Item], Generic[Item]):
    """An asyncio queue whose writer never waits: when it is full, the oldest item goes and `dropped` grows."""

    dropped = 0

    def put_nowait(self, item: Item) -> None:
        """Put an item, at the price of the oldest where there is no room."""
        while self.full():
            self.get_nowait()
            self.task_done()
            self.dropped += 1
        super().put_nowait(item)

    async def put(self, item: Item) -> None:
        """As put_nowait(); it never waits."""
        self.put_nowait(item)


class _Sink(Generic[Item]):
    """One queue, the loop it belongs to, and what waits to be put into it."""

    def __init__(self, convert: Callable[[Tick], Item], maxsize: int, after_seq: int) -> None:
        self.queue: NewestQueue[Item] = NewestQueue(maxsize)
        self.loop = asyncio.get_running_loop()
        self._convert = convert
        self._after_seq = after_seq
        self._waiting: deque[Item] = deque()
        self._dropped = 0
        self._lock = threading.Lock()

    def take(self, tick: Tick) -> bool:
        """Take a tick, in the subscription's thread; False if the loop is closed, so that nobody can ever read it."""
        if tick.seq is not None and tick.seq <= self._after_seq:  # without one it is held in memory, and new
            return True
        item = self._convert(tick)
        with self._lock:
            scheduled = bool(self._waiting)
            if len(self._waiting) >= self.queue.maxsize:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(item)
        if scheduled:
            return True
        try:
            self.loop.call_soon_threadsafe(self._move)
        except RuntimeError:
            return False
        return True

    def _move(self) -> None:
        with self._lock:
            items, self._waiting = self._waiting, deque()
            self.queue.dropped += self._dropped
            self._dropped = 0
        for item in items:
            self.queue.put_nowait(item)


class QueueFeed(Generic[Item]):
    """Feeds the ticks that any process appends into queues of event loops, each tick converted for each queue.

    One reading of the tape serves them all. A queue holds the newest `maxsize` items, as many may be on their way to
    it, and what was dropped is counted in `queue.dropped`: nothing that a loop does or leaves undone can slow a
    writer of the tape or another queue.
    """

    def __init__(self, tape: SteadyTape, convert: Callable[[Tick], Item], hidden: str | None = None) -> None:
        """hidden: ticks of symbols that begin with it are not fed; they are a service's own records."""
        self._tape = tape
        self._convert = convert
        self._hidden = hidden
        self._sinks: list[_Sink[Item]] = []
        self._subscription: Subscription | None = None
        self._lock = threading.Lock()

    def open(self, maxsize: int = 1000) -> NewestQueue[Item]:
        """Return a queue of the running event loop that gets every tick appended from now on, in order of position."""
        with self._lock:
            if self._subscription is None or not self._subscription.active:
                # "block": a queue of the subscription's own would only be one more place that drops.
                self._subscription = self._tape.subscribe(self._take, when_slow="block")
            sink = _Sink(self._convert, maxsize, self._tape.head or 0)
            self._sinks = [*self._sinks, sink]
        return sink.queue

    def close(self, queue: asyncio.Queue[Item] | None = None) -> None:
        """Feed this queue no more (None: none of them); what is in it stays. One that is not known is no error."""
        self._keep(lambda sink: queue is not None and sink.queue is not queue)

    @property
    def queues(self) -> int:
        """Return how many queues are fed."""
        return sum(not sink.loop.is_closed() for sink in self._sinks)

    def _take(self, record: object) -> None:
        if isinstance(record, Tick) and not (self._hidden and record.symbol.startswith(self._hidden)):
            gone = [sink for sink in self._sinks if not sink.take(record)]
            if gone:
                self._keep(lambda sink: sink not in gone)

    def _keep(self, wanted: Callable[[_Sink[Item]], bool]) -> None:
        with self._lock:
            self._sinks = [sink for sink in self._sinks if wanted(sink)]
            idle = None if self._sinks else self._subscription
            if idle is not None:
                self._subscription = None
        if idle is not None:
            idle.close()


_pools: dict[tuple[Any, ...], redis.ConnectionPool] = {}
_pools_lock = threading.Lock()


def redis_address(host: str | None = None, port: int | str | None = None) -> tuple[str, int]:
    """Return host and port: those given, else REDIS_HOST and REDIS_PORT, else localhost:6379."""
    chosen = port if port is not None else os.environ.get("REDIS_PORT") or 6379
    try:
        number = int(chosen)
    except ValueError:
        number = 0
    if not 0 < number < 65536:
        raise ConfigInvalid(f"Redis port {chosen!r}", hint="REDIS_PORT is a number from 1 to 65535")
    return host or os.environ.get("REDIS_HOST") or "localhost", number


def redis_url(host: str | None = None, port: int | str | None = None) -> str:
    """Return a Redis URL: of the host and port given, else REDIS_HOST and REDIS_PORT, else what onetape is set to."""
    if host or port is not None or os.environ.get("REDIS_HOST") or os.environ.get("REDIS_PORT"):
        name, number = redis_address(host, port)
        return f"redis://{f'[{name}]' if ':' in name else name}:{number}"
    return config.load().redis_url


def redis_client(process_name: str, db: int = 1, **options: Any) -> redis.Redis:
    """Return a client on the one connection pool of this process name, database and options.

    `options` are redis-py's, among them `host` and `port`; see redis_address() for where they come from otherwise.
    Replies are text unless decode_responses=False is given: ask for that where values are binary. A pool opens at most
    50 connections (max_connections); a call that finds all of them busy waits up to 20 s (timeout).
    """
    import redis  # 0.1 s that only a caller with Redis should pay

    host, port = redis_address(options.pop("host", None), options.pop("port", None))
    settings: dict[str, Any] = {
        "decode_responses": True,
        "max_connections": _CONNECTIONS_MAX,
        "timeout": _POOL_WAIT_S,
        **options,
    }
    key = (process_name, db, host, port, *sorted((name, repr(value)) for name, value in settings.items()))
    with _pools_lock:
        pool = _pools.get(key)
        if pool is None:
            where = {"host": host, "port": port, "db": db}
            pool = redis.BlockingConnectionPool(**where, **settings)  # type: ignore[no-untyped-call]
            _pools[key] = pool
    return redis.Redis(connection_pool=pool)


def close_redis_clients() -> None:
    """Close the connections of every pool made here. Clients in other hands connect again when they are used."""
    with _pools_lock:
        pools = list(_pools.values())
        _pools.clear()
    for pool in pools:
        pool.disconnect()
