"""The reading client for asyncio: what ReaderRedis is, for redis.asyncio."""

from __future__ import annotations

import asyncio
import os
import weakref
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError, ResponseError

from onetape.migrate.plans.plan import Plan
from onetape.migrate.reader import attendant, pools, reads, steps
from onetape.migrate.reader.attendant import Wait
from onetape.migrate.reader.client import first_key
from onetape.migrate.reader.core import Core, OnWrite, Status, WithoutState
from onetape.migrate.reader.routed import Plain, Read, Split
from onetape.migrate.reader.steps import Ask, Steps
from onetape.migrate.report import key_text


class AsyncReaderRedis(redis.asyncio.Redis):
    """A redis.asyncio.Redis whose reads go to the side that the migration's state says: see ReaderRedis.

    Its heartbeats and comparisons are a task of the loop that reads first; aclose() ends it.
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
        self._others: dict[int, redis.asyncio.Redis] = {}
        self._attended_by = 0  # the process whose attendant is at work
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> AsyncReaderRedis:  # type: ignore[override]
        """Return a client for a URL; `kwargs` as for the constructor and redis.asyncio.Redis.from_url()."""
        own = {name: kwargs.pop(name) for name in ("plan", "on_write", "name", "without_state") if name in kwargs}
        single = kwargs.pop("single_connection_client", False)
        pool = redis.asyncio.ConnectionPool.from_url(url, **kwargs)
        client = cls(connection_pool=pool, single_connection_client=single, **own)
        client.auto_close_connection_pool = True
        return client

    def client(self) -> AsyncReaderRedis:
        """Return a client with one connection of its own, as redis-py does."""
        return AsyncReaderRedis(connection_pool=self.connection_pool, single_connection_client=True, **self._how)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Carry out a command: a read of a key with two sides where the state says, any other where it is."""
        item = self._item(args, options)
        if item is None:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        return await self._answer(item, options)

    async def execute(self, command: str, key: Any, *args: Any, db: int | None = None) -> Any:
        """Carry out a read of a key by its name in database `db` (the client's own by default).

        The reply is what redis-py makes of it. Raises CommandUnmapped for a command that is no read.
        """
        home = self._home if db is None else db
        given = (command, key, *args)
        item = self._core.router.of(home, given, {})
        if item is not None:
            return await self._answer(item, {})
        if reads.find(given) is None:
            raise steps.refused(command, key_text(reads.bytes_of(key)))
        return await self._in(home).execute_command(*given)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> AsyncReaderPipeline:
        """Return a pipeline whose reads go to one side as a whole."""
        return AsyncReaderPipeline(self, transaction, shard_hint)

    def status(self) -> Status:
        """Return how reads went so far, by which phase, and what differed."""
        return self._core.status()

    def fallback_rate(self, seconds: int = 60) -> float:
        """Return the share, 0 to 1, of the last seconds' reads (600 at the most) that the new side could not answer."""
        return self._core.tally.fallback_rate(seconds)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections, and take the heartbeat out of Redis."""
        task, self._task = self._task, None
        if task is not None and not task.get_loop().is_closed():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        others, self._others = self._others, {}
        for other in others.values():
            await other.aclose()
        await super().aclose(close_connection_pool)

    def _item(self, args: tuple[Any, ...], options: dict[str, Any]) -> Read | Split | None:
        return steps.item_of(self._core, self._home, args, options)

    async def _answer(self, item: Read | Split, options: dict[str, Any]) -> Any:
        core = self._core
        if isinstance(item, Split):
            reply = (await self._drive(steps.answer(core, [item])))[0]
        elif (side := steps.quick(core, item)) is not None and self._attended():
            sided = item.on(side)
            reply = (await self._exchange(Ask([(sided.db, sided.args, options)])))[0]
            if not steps.settled(core, item, side, reply):
                reply = (await self._drive(steps.rest(core, item.with_options(options), side, reply)))[0]
        elif steps.block_ms(item) is not None:
            reply = (await self._drive(steps.blocking(core, item.with_options(options))))[0]
        else:
            reply = (await self._drive(steps.answer(core, [item.with_options(options)])))[0]
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def _drive(self, asked: Steps) -> list[Any]:
        if not self._attended():
            self._attend()
        try:
            ask = next(asked)
            while True:
                ask = asked.send(await self._exchange(ask))
        except StopIteration as done:
            found: list[Any] = done.value
            return found

    async def _exchange(self, ask: Ask) -> list[Any]:
        db, args, options = ask.commands[0]
        if len(ask.commands) == 1 and not ask.transaction:
            try:
                if db == self._home:
                    return [await super().execute_command(*args, **options)]  # type: ignore[no-untyped-call]
                return [await self._in(db).execute_command(*args, **options)]  # type: ignore[no-untyped-call]
            except ResponseError as error:
                return [error]
        return await pools.aexchange(self._in(db).connection_pool, self.response_callbacks, ask)

    def _in(self, db: int) -> redis.asyncio.Redis:
        """Return a plain client in a database."""
        other = self._others.get(db)
        if other is None:
            shared = db == self._home
            pool = self.connection_pool if shared else pools.like(self.connection_pool, db=db)
            other = redis.asyncio.Redis(connection_pool=pool)
            other.auto_close_connection_pool = not shared
            other.response_callbacks = self.response_callbacks
            self._others[db] = other
        return other

    def _attended(self) -> bool:
        task = self._task
        if task is None or task.done() or self._attended_by != os.getpid():
            return False
        return task.get_loop() is asyncio.get_running_loop()

    def _attend(self) -> None:
        core = self._core
        if self._attended_by not in (0, os.getpid()):
            core.forked()
        pool = pools.for_attendant(self.connection_pool, core.names.db, f"onetape-reader-{core.id}")
        wake = asyncio.Event()
        core.wake = wake.set
        self._task = asyncio.get_running_loop().create_task(_attending(core, pool, wake), name="onetape-reader")
        weakref.finalize(self, _cancel, weakref.ref(self._task))
        self._attended_by = os.getpid()


def _cancel(task: weakref.ref[asyncio.Task[None]]) -> None:
    found = task()
    if found is not None and not found.get_loop().is_closed():
        found.get_loop().call_soon_threadsafe(found.cancel)


async def _attending(core: Core, pool: Any, wake: asyncio.Event) -> None:
    asked = attendant.attend(core)
    task = asyncio.current_task()
    assert task is not None
    try:
        step = next(asked)
        while not task.cancelling():  # not every await of the client's lets a cancellation through
            if isinstance(step, Wait):
                try:
                    async with asyncio.timeout(step.seconds):
                        await wake.wait()
                except TimeoutError:
                    pass
                wake.clear()
                step = next(asked)
            else:
                step = asked.send(await _tried(pool, step))
    finally:
        await _tried(pool, attendant.farewell(core))
        await pool.disconnect()


async def _tried(pool: Any, ask: Ask) -> list[Any] | Exception:
    try:
        return await pools.aexchange(pool, {}, ask)
    except (RedisError, OSError) as error:
        return error


class AsyncReader(AsyncReaderRedis):
    """An AsyncReaderRedis for a URL, or beside a client that is there already and stays as it is."""

    def __init__(
        self,
        source: str | redis.asyncio.Redis,
        plan: Plan | str | Path | None = None,
        *,
        on_write: OnWrite = "refuse",
        name: str = "",
        without_state: WithoutState = "old",
        **connection: Any,
    ) -> None:
        if isinstance(source, str):
            pool = redis.asyncio.ConnectionPool.from_url(source, **connection)
        else:
            pool = pools.like(source.connection_pool, **connection)
        super().__init__(connection_pool=pool, plan=plan, on_write=on_write, name=name, without_state=without_state)
        self.auto_close_connection_pool = True
        if not pool.connection_kwargs.get("client_name"):
            pool.connection_kwargs["client_name"] = f"onetape-reader-{self._core.id}"


class AsyncReaderPipeline(Pipeline):
    """A pipeline of an AsyncReaderRedis. What WATCH has to do with is refused for keys with two sides."""

    def __init__(self, client: AsyncReaderRedis, transaction: bool, shard_hint: Any) -> None:
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
        return super().execute_command(*args, **kwargs)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Carry out what is queued and return the replies in order, as redis-py does."""
        stack, items = self.command_stack, self._items
        if not items:
            return await super().execute(raise_on_error)
        if self.watching:
            raise steps.refused("a transaction under WATCH", key_text(first_key(next(iter(items.values())))))
        try:
            if self.scripts:
                await self.load_scripts()  # type: ignore[no-untyped-call]
            home = self._client._home
            queued = [items.get(at) or Plain(home, args, dict(options)) for at, (args, options) in enumerate(stack)]
            replies = await self._client._drive(steps.answer(self._client._core, queued, bool(self.is_transaction)))
            if raise_on_error:
                self.raise_first_error(stack, replies)
            return replies
        finally:
            await self.reset()

    async def reset(self) -> None:  # type: ignore[override]
        """Forget what is queued."""
        self._items = {}
        await super().reset()  # type: ignore[no-untyped-call]


__all__ = ["AsyncReader", "AsyncReaderPipeline", "AsyncReaderRedis"]
