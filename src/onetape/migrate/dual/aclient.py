"""The asyncio client: a drop-in redis.asyncio.Redis that writes old and new names in one transaction."""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import ConnectionPool
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError, WatchError

from onetape.errors import OnetapeError
from onetape.migrate.dual import forks
from onetape.migrate.dual.alane import AsyncLane, AsyncLanes
from onetape.migrate.dual.client import called_back, encoding
from onetape.migrate.dual.commands import word
from onetape.migrate.dual.exchange import Exchange
from onetape.migrate.dual.heartbeat import EVERY_S, Beat
from onetape.migrate.dual.mapping import Mapped, Mapper, OnUnmapped, Part
from onetape.migrate.dual.pipeline import answers, map_all, parts_of, watch
from onetape.migrate.dual.status import DualStatus, status_of
from onetape.migrate.dual.step import Steps, Wire
from onetape.migrate.plans.plan import DOCUMENTED, Plan
from onetape.migrate.routes import Routes

_log = logging.getLogger(__name__)


class AsyncDual:
    """What makes an asyncio client a dual-writing one: `client.dual`."""

    def __init__(
        self, pool: ConnectionPool, plan: Plan, *, on_unmapped: OnUnmapped, name: str, require_state: bool
    ) -> None:
        routes = Routes(plan)
        self.id = secrets.token_hex(6)
        self.name = name
        db = int(pool.connection_kwargs.get("db") or 0)
        encode = pool.get_encoder().encode  # type: ignore[no-untyped-call]
        self.mapper = Mapper(routes, db, encoding(encode), on_unmapped)
        self.exchange = Exchange(plan, self.mapper, routes, client=name or self.id, require_state=require_state)
        self.lanes = AsyncLanes(pool, f"onetape-writer-{self.id}", self.exchange.forget)
        self.beat = Beat(self.exchange, self.id, name)
        self.exchange.beat = self.beat.piggyback
        forks.add(self)
        self.beats: asyncio.Task[None] | None = None

    def forked(self) -> None:
        """Be another client in a process that was forked: with connections, a name and a heartbeat of its own."""
        self.id = secrets.token_hex(6)
        self.exchange.forked(self.name or self.id)
        self.lanes.forked(f"onetape-writer-{self.id}")
        self.beat.forked(self.id)
        self.beats = None

    def status(self) -> DualStatus:
        """Return the phase that was seen last, and what was done so far."""
        return status_of(self.exchange, self.id, self.name)

    async def run(self, mapped: Mapped, *, decode: bool = True) -> Any:
        """Carry out a mapped command and return its reply. Raises as redis-py does."""
        return await self.steps(lambda lane: self.exchange.ask(lane, mapped, decode=decode))

    async def steps(self, make: Callable[[Wire], Steps]) -> Any:
        """Carry out steps on a lane of their own, with redis-py's own retries."""
        lane = await self.lanes.wait()
        try:
            self.wake()
            return await lane.connection.retry.call_with_retry(
                lambda: self._once(lane, make), lambda _: self.lost(lane)
            )
        except (RedisError, OnetapeError):
            raise
        except BaseException:  # cancelled in the middle, or a reply that cannot be decoded: it may have been done
            self.exchange.forget()
            raise
        finally:
            self.lanes.give(lane)

    async def once(self, make: Callable[[Wire], Steps]) -> Any:
        """Carry out steps that nobody waits for: without trying again."""
        lane = self.lanes.take(over=1)
        try:
            return await self._once(lane, make)
        except BaseException:
            await lane.drop()
            raise
        finally:
            self.lanes.give(lane)

    async def _once(self, lane: AsyncLane, make: Callable[[Wire], Steps]) -> Any:
        await lane.ready()
        return await lane.run(make(lane))

    async def lost(self, lane: AsyncLane) -> None:
        """A connection was lost: what was on its way may have been done or not."""
        await lane.drop()
        self.exchange.counts.lost += 1
        self.exchange.forget()

    def wake(self) -> None:
        """Start the heartbeat of the running event loop, if it has none."""
        task = self.beats
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            self.beats = asyncio.create_task(_beat_on(weakref.ref(self), self.beat), name="onetape-dual")

    async def close(self) -> None:
        """Say goodbye: the heartbeat is taken back, and the lanes are closed."""
        task, self.beats = self.beats, None
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()  # redis-py can lose it while it connects; the task ends by itself then
            await asyncio.wait([task], timeout=EVERY_S)
        if self.beat.told:
            try:
                await self.once(self.beat.goodbye)
            except (RedisError, OnetapeError, OSError) as error:
                _log.info("the heartbeat of %s stays until it is old: %s", self.id, error)
        await self.lanes.close()


async def _beat_on(of: weakref.ref[AsyncDual], beat: Beat) -> None:
    while True:
        await asyncio.sleep(EVERY_S / 2)
        dual = of()
        if dual is None or dual.beats is not asyncio.current_task():
            return
        if beat.pulse_due():
            try:
                await dual.once(beat.pulse)
            except (RedisError, OnetapeError, OSError) as error:  # a write will meet it too, and tell its caller
                _log.warning("no heartbeat of %s: %s", dual.id, error)
        del dual


class AsyncDualRedis(redis.asyncio.Redis):
    """A redis.asyncio.Redis whose writes go to the old and the new name of a key; see DualRedis for all that it does.

    For one event loop at a time. A task that is cancelled while its write is on the way closes that connection: the
    write was done on both sides, or on none.
    """

    dual: AsyncDual

    def __init__(
        self,
        *args: Any,
        plan: Plan | Path | str = DOCUMENTED,
        on_unmapped: OnUnmapped = "refuse",
        name: str = "",
        require_state: bool = False,
        **kwargs: Any,
    ) -> None:
        own_pool = kwargs.get("connection_pool") is None
        self._dual_settings: dict[str, Any] = {
            "plan": plan if isinstance(plan, Plan) else Plan.load(plan),
            "on_unmapped": on_unmapped,
            "name": name,
            "require_state": require_state,
        }
        super().__init__(*args, **kwargs)
        self.dual = AsyncDual(self.connection_pool, **self._dual_settings)
        if own_pool:
            self._name_pool()

    def _name_pool(self) -> None:
        kwargs = self.connection_pool.connection_kwargs
        if not kwargs.get("client_name"):
            kwargs["client_name"] = f"onetape-writer-{self.dual.id}"

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> AsyncDualRedis:  # type: ignore[override]
        """Return a client of an URL; see redis.asyncio.Redis.from_url for the URL, and the class for the arguments."""
        own = {name: kwargs.pop(name) for name in ("plan", "on_unmapped", "name", "require_state") if name in kwargs}
        single = kwargs.pop("single_connection_client", False)
        kwargs.pop("auto_close_connection_pool", None)
        pool = ConnectionPool.from_url(url, **kwargs)
        client = cls(connection_pool=pool, single_connection_client=single, **own)
        client.auto_close_connection_pool = True
        client._name_pool()
        return client

    @classmethod
    def from_pool(cls, connection_pool: ConnectionPool, **kwargs: Any) -> AsyncDualRedis:
        """Return a client that owns this pool."""
        client = cls(connection_pool=connection_pool, **kwargs)
        client.auto_close_connection_pool = True
        return client

    def client(self) -> AsyncDualRedis:
        """Return a client of the same pool with one connection of its own for what is not the plan's."""
        return type(self)(connection_pool=self.connection_pool, single_connection_client=True, **self._dual_settings)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Carry out a command; see the class."""
        mapped = self.dual.mapper.map(args)
        if mapped is None:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        try:
            reply = await self.dual.run(mapped, decode=NEVER_DECODE not in options)
        except ResponseError:
            if EMPTY_RESPONSE in options:
                return options[EMPTY_RESPONSE]
            raise
        answer = called_back(self.response_callbacks, args[0], reply, options)
        return await answer if inspect.isawaitable(answer) else answer

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> AsyncDualPipeline:
        """Return a pipeline; with keys of the plan in it, it is one transaction, whatever `transaction` says."""
        return AsyncDualPipeline(self, self.connection_pool, self.response_callbacks, transaction, shard_hint)

    def lock(self, name: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a lock. Raises CommandUnmapped for a key of the plan: it is released by a script."""
        self.dual.mapper.map(("EVALSHA", "", 1, name))
        return super().lock(name, *args, **kwargs)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the client; its heartbeat is taken back."""
        await self.dual.close()
        await super().aclose(close_connection_pool)


class AsyncDualPipeline(Pipeline):
    """A redis-py pipeline. WATCH takes both names of a key, and WatchError is also raised where the phase changed."""

    def __init__(
        self, owner: AsyncDualRedis, connection_pool: ConnectionPool, callbacks: Any, transaction: bool, hint: Any
    ) -> None:
        self._owner = owner
        self._lane: AsyncLane | None = None
        super().__init__(connection_pool, callbacks, transaction, hint)

    @property
    def exchange(self) -> Exchange:
        """What the client knows."""
        return self._owner.dual.exchange

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Carry out a command at once: WATCH, or what is asked after it and before multi()."""
        name = word(args[0])
        if name == "WATCH" and self._owner.dual.mapper.ours:
            return await self._watch(args[1:])
        if self._lane is None:
            return await super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]
        if name == "UNWATCH":
            self._release()
            self.watching = False
            return True
        return await self._owner.execute_command(*args, **options)

    async def _watch(self, keys: tuple[Any, ...]) -> bool:
        dual = self._owner.dual
        if self._lane is None:
            self._lane = await dual.lanes.wait()
            dual.wake()
        lane = self._lane
        try:
            if not self.watching:
                await lane.ready()
                lane.watching = True
            await lane.run(watch(dual.exchange, lane, keys))
        except BaseException:
            await lane.drop()
            self._release()
            self.watching = False
            raise
        self.watching = True
        return True

    async def load_scripts(self) -> None:
        """Load the scripts that were queued and are not on the server."""
        scripts = list(self.scripts)
        found = await self._owner.execute_command("SCRIPT EXISTS", *[script.sha for script in scripts])
        for script, there in zip(scripts, found, strict=True):
            if not there:
                script.sha = await self._owner.execute_command("SCRIPT LOAD", script.script)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Carry out what was queued; see redis-py. Raises WatchError, and what the server says of a single command."""
        stack: list[Any] = self.command_stack
        try:
            mapped = map_all(self._owner.dual.mapper, stack)
        except BaseException:
            await self.reset()
            raise
        if self._lane is None and not any(mapped):
            return await super().execute(raise_on_error)
        try:
            if self.scripts:
                await self.load_scripts()
            parts = parts_of(stack, mapped, self._owner.dual.mapper)
            replies = await self._run(parts)
            done = answers(self, stack, mapped, replies, raise_on_error)
            return [await one if inspect.isawaitable(one) else one for one in done]
        finally:
            await self.reset()

    async def _run(self, parts: list[Part]) -> list[Any]:
        dual = self._owner.dual
        lane = self._lane
        if lane is None:
            found: list[Any] = await dual.steps(lambda lane: dual.exchange.write(lane, parts))
            return found
        try:
            done: list[Any] = await lane.run(dual.exchange.write(lane, parts, watched=True))
            lane.watching = False
            return done
        except (ConnectionError, TimeoutError) as error:
            await dual.lost(lane)
            raise WatchError(f"A {type(error).__name__} occurred while watching one or more keys") from error

    async def reset(self) -> None:  # type: ignore[override]
        """Forget what was queued and watched."""
        self._release()
        await super().reset()  # type: ignore[no-untyped-call]

    def _release(self) -> None:
        lane, self._lane = self._lane, None
        if lane is None:
            return
        if lane.watching:  # the next one to take the lane arms it anew, which unwatches
            lane.armed = lane.watching = False
        self._owner.dual.lanes.give(lane)


__all__ = ["AsyncDual", "AsyncDualPipeline", "AsyncDualRedis"]
