"""The pipeline of a dual-writing client: with keys of the plan in it, one transaction on both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.client import Pipeline
from redis.connection import ConnectionPool
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError, WatchError

from onetape.errors import CommandUnmapped
from onetape.migrate.dual.commands import word
from onetape.migrate.dual.exchange import Exchange
from onetape.migrate.dual.lane import Lane
from onetape.migrate.dual.mapping import Mapped, Mapper, Part
from onetape.migrate.dual.step import Send, Steps, Wire

if TYPE_CHECKING:
    from onetape.migrate.dual.client import DualRedis

Queued = tuple[Any, dict[str, Any]]


class DualPipeline(Pipeline):
    """A redis-py pipeline. WATCH takes both names of a key, and WatchError is also raised where the phase changed."""

    def __init__(
        self, owner: DualRedis, connection_pool: ConnectionPool, callbacks: Any, transaction: bool, shard_hint: Any
    ) -> None:
        self._owner = owner
        self._lane: Lane | None = None
        super().__init__(connection_pool, callbacks, transaction, shard_hint)

    @property
    def exchange(self) -> Exchange:
        """What the client knows."""
        return self._owner.dual.exchange

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Carry out a command at once: WATCH, or what is asked after it and before multi()."""
        dual = self._owner.dual
        name = word(args[0])
        if name == "WATCH" and dual.mapper.ours:
            return self._watch(args[1:])
        if self._lane is None:
            return super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]
        if name == "UNWATCH":
            self._release()
            self.watching = False
            return True
        return self._owner.execute_command(*args, **options)

    def _watch(self, keys: tuple[Any, ...]) -> bool:
        dual = self._owner.dual
        dual.heartbeat.wake()
        if self._lane is None:
            self._lane = dual.lanes.take()
        lane = self._lane
        try:
            if not self.watching:
                lane.ready()
                lane.watching = True
            lane.run(watch(dual.exchange, lane, keys))
        except BaseException:
            self._drop()
            raise
        self.watching = True
        return True

    def load_scripts(self) -> None:
        """Load the scripts that were queued and are not on the server."""
        scripts = list(self.scripts)
        found = self._owner.execute_command("SCRIPT EXISTS", *[script.sha for script in scripts])
        for script, there in zip(scripts, found, strict=True):
            if not there:
                script.sha = self._owner.execute_command("SCRIPT LOAD", script.script)

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Carry out what was queued; see redis-py. Raises WatchError, and what the server says of a single command."""
        stack = self.command_stack
        try:
            mapped = map_all(self._owner.dual.mapper, stack)
        except BaseException:
            self.reset()
            raise
        if self._lane is None and not any(mapped):
            return super().execute(raise_on_error)
        try:
            if self.scripts:
                self.load_scripts()
            parts = parts_of(stack, mapped, self._owner.dual.mapper)
            replies = self._run(parts)
            return answers(self, stack, mapped, replies, raise_on_error)
        finally:
            self.reset()

    def _run(self, parts: list[Part]) -> list[Any]:
        dual = self._owner.dual
        lane = self._lane
        if lane is None:
            found: list[Any] = dual.steps(lambda lane: dual.exchange.write(lane, parts))
            return found
        try:
            done: list[Any] = lane.run(dual.exchange.write(lane, parts, watched=True))
            lane.watching = False
            return done
        except (ConnectionError, TimeoutError) as error:
            dual.lost(lane)
            raise WatchError(f"A {type(error).__name__} occurred while watching one or more keys") from error

    def reset(self) -> None:  # type: ignore[override]
        """Forget what was queued and watched."""
        self._release()
        if getattr(self, "connection_pool", None) is not None:
            super().reset()

    def _release(self) -> None:
        lane = getattr(self, "_lane", None)
        if lane is None:
            return
        self._lane = None
        if lane.watching:  # the next one to take the lane arms it anew, which unwatches
            lane.armed = lane.watching = False
        self._owner.dual.lanes.give(lane)

    def _drop(self) -> None:
        if self._lane is not None:
            self._lane.drop()
        self._release()
        self.watching = False


def watch(exchange: Exchange, lane: Wire, keys: tuple[Any, ...]) -> Steps:
    """Watch keys under both of their names, beside the state."""
    mapper = exchange.mapper
    if not lane.armed:
        yield from exchange.arm(lane)
    home = exchange.names.db
    packed, count = b"", 0
    for db, key in mapper.ends(keys):
        packed += lane.pack("SELECT", db) + lane.pack("WATCH", key)
        count += 2
    replies = yield Send(packed + lane.pack("SELECT", home), count + 1)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def map_all(mapper: Mapper, stack: list[Queued]) -> list[Mapped | None]:
    """Return each queued command mapped. Raises CommandUnmapped before anything is sent."""
    return [mapper.map(args) for args, _ in stack]


def parts_of(stack: list[Queued], mapped: list[Mapped | None], mapper: Mapper) -> list[Part]:
    """Return all parts of a pipeline in order."""
    parts: list[Part] = []
    for (args, _), one in zip(stack, mapped, strict=True):
        if one is not None:
            parts += one.parts
        elif word(args[0]) in ("SELECT", "MULTI", "EXEC", "DISCARD", "WATCH", "UNWATCH"):
            raise CommandUnmapped(
                f"{word(args[0])} in a pipeline with keys of the plan", hint="nothing was sent; leave it out"
            )
        else:
            parts.append(Part(None, args, mapper.db, "raw"))
    return parts


def answers(
    pipeline: Any, stack: list[Queued], mapped: list[Mapped | None], replies: list[Any], raise_on_error: bool
) -> list[Any]:
    """Return the reply to each queued command as redis-py would, or raise the first error."""
    exchange: Exchange = pipeline.exchange
    found: list[Any] = []
    at = 0
    for one in mapped:
        taken = 1 if one is None else len(one.parts)
        own, at = replies[at : at + taken], at + taken
        try:
            found.append(own[0] if one is None else exchange.joined(one, own))
        except RedisError as error:
            found.append(error)
    if raise_on_error:
        for number, (reply, (args, _)) in enumerate(zip(found, stack, strict=True), 1):
            if isinstance(reply, ResponseError):
                pipeline.annotate_exception(reply, number, args)
                raise reply
    done = []
    for reply, (args, options) in zip(found, stack, strict=True):
        options.pop("keys", None)
        called = pipeline.response_callbacks
        if not isinstance(reply, Exception) and args[0] in called:
            reply = called[args[0]](reply, **options)
        done.append(reply)
    return done


__all__ = ["DualPipeline", "answers", "map_all", "parts_of", "watch"]
