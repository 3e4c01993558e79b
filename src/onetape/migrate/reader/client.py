"""The reading client: redis-py's, whose reads of keys that a plan moves follow the migration from old to new."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import redis
from redis.client import Pipeline
from redis.exceptions import RedisError, ResponseError

from onetape.errors import ConfigInvalid
from onetape.migrate.plans.plan import Plan
from onetape.migrate.reader import attendant, pools, reads, steps
from onetape.migrate.reader.attendant import Wait
from onetape.migrate.reader.core import Core, OnWrite, Status, WithoutState
from onetape.migrate.reader.routed import Plain, Read, Split
from onetape.migrate.reader.steps import Ask, Steps
from onetape.migrate.report import key_text


class ReaderRedis(redis.Redis):
    """A redis.Redis whose reads go to the side that the migration's state says.

    Keys are given by their old or their new name, in the database (`db`) that the name belongs to. Until the reads are
    switched the old side answers; then `read_share` of the reads go to the new side first and fall back to the old one
    for a key that is not there yet; from the cutover on the new side answers alone, and what it lacks is missing. No
    read goes by a state seen more than 0.25 s before. Keys that the plan leaves alone, and commands that name no key
    (SCAN, KEYS, PUBLISH), go where a plain client sends them.

    Writes of keys that have two sides are refused with CommandUnmapped; with on_write="pass" they are sent as they
    are and counted: on the old side only, they make the sides differ. A scan (HSCAN) stays on the side it began on. An
    XREAD that blocks waits in slices of 0.5 s. Pipelines go to one side as a whole, and when some of their keys are
    missing there, those are asked for afterwards, outside of the transaction.

    Reads are compared with the other side in the background (`shadow_share` of them): status() tells of mismatches, and
    the hash of divergences in Redis, which the cutover asks. A heartbeat in Redis tells who reads, how, and by which
    version. Connections are named onetape-reader-ID, so the user needs CLIENT SETNAME; with a client_name or a
    connection_pool of your own they are not.

    plan: a Plan, a file, or a shipped plan's name (the documented one by default). name: for the heartbeat.
    without_state: what holds where no migration was started, "old", or "new_first" with fallback. Raises StateMoved at
    the first read where the migration goes by another plan, and all that redis-py raises.
    """

    def __init__(
        self,
        *args: Any,
        plan: Plan | str | Path | None = None,
        on_write: OnWrite = "refuse",
        name: str = "",
        without_state: WithoutState = "old",
        **kwargs: Any,
    ) -> None:
        if kwargs.get("cache") is not None or kwargs.get("cache_config") is not None:
            raise ConfigInvalid(
                "a client with a cache of its own cannot follow a migration",
                hint="make it without cache and cache_config",
            )
        self._core = Core(
            plan,
            name=name,
            on_write=on_write,
            without_state=without_state,
            encoding=kwargs.get("encoding", "utf-8"),
            errors=kwargs.get("encoding_errors", "strict"),
        )
        if kwargs.get("connection_pool") is None and not kwargs.get("client_name"):
            kwargs["client_name"] = f"onetape-reader-{self._core.id}"
        super().__init__(*args, **kwargs)
        self._how: dict[str, Any] = {
            "plan": self._core.plan, "on_write": on_write, "name": name, "without_state": without_state,
        }  # fmt: skip
        self._home = pools.db_of(self.connection_pool)
        self._others: dict[int, redis.Redis] = {}
        self._lock = threading.Lock()
        self._attended_by = 0  # the process whose attendant is at work
        self._stop = _Stop()
        weakref.finalize(self, self._stop.set)

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> ReaderRedis:
        """Return a client for a URL; `kwargs` as for the constructor and redis.Redis.from_url()."""
        own = {name: kwargs.pop(name) for name in ("plan", "on_write", "name", "without_state") if name in kwargs}
        single = kwargs.pop("single_connection_client", False)
        pool = redis.ConnectionPool.from_url(url, **kwargs)
        client = cls(connection_pool=pool, single_connection_client=single, **own)
        client.auto_close_connection_pool = True
        return client

    def client(self) -> ReaderRedis:
        """Return a client with one connection of its own, as redis-py does."""
        return ReaderRedis(connection_pool=self.connection_pool, single_connection_client=True, **self._how)

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Carry out a command: a read of a key with two sides where the state says, any other where it is."""
        item = self._item(args, options)
        if item is None:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        return self._answer(item, options)

    def execute(self, command: str, key: Any, *args: Any, db: int | None = None) -> Any:
        """Carry out a read of a key by its name in database `db` (the client's own by default).

        The reply is what redis-py makes of it.
        Raises CommandUnmapped for a command that is no read.
        """
        home = self._home if db is None else db
        given = (command, key, *args)
        item = self._core.router.of(home, given, {})
        if item is not None:
            return self._answer(item, {})
        if reads.find(given) is None:
            raise steps.refused(command, key_text(reads.bytes_of(key)))
        return self._in(home).execute_command(*given)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> ReaderPipeline:
        """Return a pipeline whose reads go to one side as a whole."""
        return ReaderPipeline(self, transaction, shard_hint)

    def status(self) -> Status:
        """Return how reads went so far, by which phase, and what differed."""
        return self._core.status()

    def fallback_rate(self, seconds: int = 60) -> float:
        """Return the share, 0 to 1, of the last seconds' reads (600 at the most) that the new side could not answer."""
        return self._core.tally.fallback_rate(seconds)

    def close(self) -> None:
        """Close the connections, and take the heartbeat out of Redis."""
        stop = getattr(self, "_stop", None)
        if stop is not None:
            stop.set()
            stop.join()
            self._attended_by = 0
            self._stop = _Stop()
            weakref.finalize(self, self._stop.set)
            with self._lock:
                others, self._others = self._others, {}
            for other in others.values():
                other.close()
        super().close()

    def _item(self, args: tuple[Any, ...], options: dict[str, Any]) -> Read | Split | None:
        return steps.item_of(self._core, self._home, args, options)

    def _answer(self, item: Read | Split, options: dict[str, Any]) -> Any:
        core = self._core
        if isinstance(item, Split):
            reply = self._drive(steps.answer(core, [item]))[0]
        elif (side := steps.quick(core, item)) is not None and self._attended_by == os.getpid():
            sided = item.on(side)
            reply = self._exchange(Ask([(sided.db, sided.args, options)]))[0]
            if not steps.settled(core, item, side, reply):
                reply = self._drive(steps.rest(core, item.with_options(options), side, reply))[0]
        elif steps.block_ms(item) is not None:
            reply = self._drive(steps.blocking(core, item.with_options(options)))[0]
        else:
            reply = self._drive(steps.answer(core, [item.with_options(options)]))[0]
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _drive(self, asked: Steps) -> list[Any]:
        if self._attended_by != os.getpid():
            self._attend()
        try:
            ask = next(asked)
            while True:
                ask = asked.send(self._exchange(ask))
        except StopIteration as done:
            found: list[Any] = done.value
            return found

    def _exchange(self, ask: Ask) -> list[Any]:
        db, args, options = ask.commands[0]
        if len(ask.commands) == 1 and not ask.transaction:
            try:
                if db == self._home:
                    return [super().execute_command(*args, **options)]  # type: ignore[no-untyped-call]
                return [self._in(db).execute_command(*args, **options)]  # type: ignore[no-untyped-call]
            except ResponseError as error:
                return [error]
        return pools.exchange(self._in(db).connection_pool, self.response_callbacks, ask)

    def _in(self, db: int) -> redis.Redis:
        """Return a plain client in a database."""
        other = self._others.get(db)
        if other is None:
            with self._lock:
                other = self._others.get(db)
                if other is None:
                    shared = db == self._home
                    pool = self.connection_pool if shared else pools.like(self.connection_pool, db=db)
                    other = redis.Redis(connection_pool=pool)
                    other.auto_close_connection_pool = not shared
                    other.response_callbacks = self.response_callbacks
                    self._others[db] = other
        return other

    def _attend(self) -> None:
        with self._lock:
            if self._attended_by == os.getpid():
                return
            core = self._core
            if self._attended_by:  # a fork: the other process's attendant has its own jobs and name
                core.forked()
                self._stop = _Stop()
                weakref.finalize(self, self._stop.set)
            pool = pools.for_attendant(self.connection_pool, core.names.db, f"onetape-reader-{core.id}")
            self._stop.start(core, pool)
            self._attended_by = os.getpid()


_running: weakref.WeakSet[_Stop] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Take the heartbeats out of Redis where a process ends without closing its clients."""
    stops = list(_running)
    for stop in stops:
        stop.set()
    for stop in stops:
        stop.join(2.0)


class _Stop:
    """The attendant's thread, and the way to end it. It knows the core but not the client, so a client can go."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, core: Core, pool: Any) -> None:
        core.wake = self._wake.set
        _running.add(self)
        self._thread = threading.Thread(target=self._run, args=(core, pool), name="onetape-reader", daemon=True)
        self._thread.start()

    def set(self) -> None:
        self._over.set()
        self._wake.set()

    def join(self, timeout_s: float = 5.0) -> None:
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self, core: Core, pool: Any) -> None:
        asked = attendant.attend(core)
        try:
            step = next(asked)
            while not self._over.is_set():
                if isinstance(step, Wait):
                    self._wake.wait(step.seconds)
                    self._wake.clear()
                    step = next(asked)
                else:
                    step = asked.send(_tried(pool, step))
            _tried(pool, attendant.farewell(core))
        finally:
            pool.disconnect()


def _tried(pool: Any, ask: Ask) -> list[Any] | Exception:
    try:
        return pools.exchange(pool, {}, ask)
    except (RedisError, OSError) as error:
        return error


class Reader(ReaderRedis):
    """A ReaderRedis for a URL, or beside a client that is there already and stays as it is."""

    def __init__(
        self,
        source: str | redis.Redis,
        plan: Plan | str | Path | None = None,
        *,
        on_write: OnWrite = "refuse",
        name: str = "",
        without_state: WithoutState = "old",
        **connection: Any,
    ) -> None:
        if isinstance(source, str):
            pool = redis.ConnectionPool.from_url(source, **connection)
        else:
            pool = pools.like(source.connection_pool, **connection)
        super().__init__(connection_pool=pool, plan=plan, on_write=on_write, name=name, without_state=without_state)
        self.auto_close_connection_pool = True
        if not pool.connection_kwargs.get("client_name"):
            pool.connection_kwargs["client_name"] = f"onetape-reader-{self._core.id}"


class ReaderPipeline(Pipeline):
    """A pipeline of a ReaderRedis. WATCH and what is read at once after it are refused for keys with two sides."""

    def __init__(self, client: ReaderRedis, transaction: bool, shard_hint: Any) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, shard_hint)
        self._client = client
        self._items: dict[int, Read | Split] = {}

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Queue a command, or carry it out where keys are watched."""
        item = self._client._item(args, kwargs)
        if item is not None:
            if self.watching and not self.explicit_transaction:
                raise steps.refused(f"{reads.name_of(args)} after WATCH", key_text(first_key(item)))
            self._items[len(self.command_stack)] = item.with_options(kwargs) if isinstance(item, Read) else item
        return super().execute_command(*args, **kwargs)  # type: ignore[no-untyped-call]

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Carry out what is queued and return the replies in order, as redis-py does."""
        stack, items = self.command_stack, self._items
        if not items:
            return super().execute(raise_on_error)
        if self.watching:
            raise steps.refused("a transaction under WATCH", key_text(first_key(next(iter(items.values())))))
        try:
            if self.scripts:
                self.load_scripts()  # type: ignore[no-untyped-call]
            home = self._client._home
            queued = [items.get(at) or Plain(home, args, options) for at, (args, options) in enumerate(stack)]
            replies = self._client._drive(steps.answer(self._client._core, queued, bool(self.transaction)))
            if raise_on_error:
                self.raise_first_error(stack, replies)  # type: ignore[no-untyped-call]
            return replies
        finally:
            self.reset()

    def reset(self) -> None:  # type: ignore[override]
        """Forget what is queued."""
        self._items = {}
        super().reset()


def first_key(item: Read | Split) -> bytes:
    """Return a key that the read names and the plan moves."""
    if isinstance(item, Read):
        return item.given[0]
    return next(part.given[0] for part in item.parts if isinstance(part, Read))


__all__ = ["Reader", "ReaderPipeline", "ReaderRedis", "first_key"]
