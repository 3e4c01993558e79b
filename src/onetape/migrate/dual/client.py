"""The client: a drop-in redis.Redis that writes old and new names in one transaction."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.connection import ConnectionPool
from redis.exceptions import RedisError, ResponseError

from onetape.errors import OnetapeError
from onetape.migrate.dual import forks
from onetape.migrate.dual.exchange import Exchange
from onetape.migrate.dual.heartbeat import Beat, Heartbeat
from onetape.migrate.dual.lane import Lane, Lanes
from onetape.migrate.dual.mapping import Mapped, Mapper, OnUnmapped
from onetape.migrate.dual.pipeline import DualPipeline
from onetape.migrate.dual.status import DualStatus, status_of
from onetape.migrate.dual.step import Steps
from onetape.migrate.plans.plan import DOCUMENTED, Plan
from onetape.migrate.routes import Routes


class Dual:
    """What makes a client a dual-writing one: `client.dual`."""

    def __init__(
        self, pool: ConnectionPool, plan: Plan, *, on_unmapped: OnUnmapped, name: str, require_state: bool
    ) -> None:
        routes = Routes(plan)
        encode = pool.get_encoder().encode
        self.id = secrets.token_hex(6)
        self.name = name
        db = int(pool.connection_kwargs.get("db") or 0)
        self.mapper = Mapper(routes, db, encoding(encode), on_unmapped)
        self.exchange = Exchange(plan, self.mapper, routes, client=name or self.id, require_state=require_state)
        self.lanes = Lanes(pool, f"onetape-writer-{self.id}", self.exchange.forget)
        beat = Beat(self.exchange, self.id, name)
        self.heartbeat = Heartbeat(self, beat)
        self.exchange.beat = beat.piggyback
        forks.add(self)

    def forked(self) -> None:
        """Be another client in a process that was forked: with connections, a name and a heartbeat of its own."""
        self.id = secrets.token_hex(6)
        self.exchange.forked(self.name or self.id)
        self.lanes.forked(f"onetape-writer-{self.id}")
        self.heartbeat.forked(self.id)

    def status(self) -> DualStatus:
        """Return the phase that was seen last, and what was done so far."""
        return status_of(self.exchange, self.id, self.name)

    def run(self, mapped: Mapped, *, decode: bool = True) -> Any:
        """Carry out a mapped command and return its reply. Raises as redis-py does."""
        return self.steps(lambda lane: self.exchange.ask(lane, mapped, decode=decode))

    def steps(self, make: Callable[[Lane], Steps]) -> Any:
        """Carry out steps on a lane of their own, with redis-py's own retries."""
        self.heartbeat.wake()
        lane = self.lanes.take()
        try:
            return lane.connection.retry.call_with_retry(lambda: self._once(lane, make), lambda _: self.lost(lane))
        except (RedisError, OnetapeError):
            raise
        except BaseException:  # interrupted in the middle, or a reply that cannot be decoded: it may have been done
            self.exchange.forget()
            raise
        finally:
            self.lanes.give(lane)

    def once(self, make: Callable[[Lane], Steps]) -> Any:
        """Carry out steps that nobody waits for: without trying again."""
        lane = self.lanes.take(over=1)
        try:
            return self._once(lane, make)
        except BaseException:
            lane.drop()
            raise
        finally:
            self.lanes.give(lane)

    def _once(self, lane: Lane, make: Callable[[Lane], Steps]) -> Any:
        lane.ready()
        return lane.run(make(lane))

    def lost(self, lane: Lane) -> None:
        """A connection was lost: what was on its way may have been done or not."""
        lane.drop()
        self.exchange.counts.lost += 1
        self.exchange.forget()

    def close(self) -> None:
        """Say goodbye: the heartbeat is taken back, and the lanes are closed."""
        self.heartbeat.close()
        self.lanes.close()


class DualRedis(redis.Redis):
    """A redis.Redis whose writes go to the old and the new name of a key, as the phase of a migration says.

    Further arguments: `plan` (a Plan, a file, or the name of a shipped one), `on_unmapped` ("refuse": a command that
    cannot be written to both sides raises CommandUnmapped; "pass": it is done on the side that counts, its keys are
    copied, and that is recorded as a divergence; FLUSHDB and the like are always refused), `name` (for whoever looks
    at the heartbeats), `require_state` (raise PhaseRefused where no migration was started).

    Keys may be given under their old names, or under the new ones by a client of the target database. Keys that are
    not the plan's take redis-py's own way, untouched. Replies are those of the side that counts: the old one until the
    cutover. A write is one packet and one transaction, so it is on both sides or on none; where the phase changed
    meanwhile it is not carried out, and sent again by the new one. All writers of the plan's keys must be such clients,
    or be followed by `onetape migrate mirror`: what another writes on one side alone is found by `migrate verify`.

    A pipeline with keys of the plan is one transaction, also with transaction=False. Commands that block (BLPOP) ask
    again every 1 to 50 ms. A lost connection is tried again as often as `retry` says: as with any redis.Redis, a write
    whose reply was lost can then be done twice; Retry(NoBackoff(), 0) raises instead.
    """

    dual: Dual

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
        self.dual = Dual(self.connection_pool, **self._dual_settings)
        if own_pool:
            self._name_pool()

    def _name_pool(self) -> None:
        kwargs = self.connection_pool.connection_kwargs
        if not kwargs.get("client_name"):
            kwargs["client_name"] = f"onetape-writer-{self.dual.id}"

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> DualRedis:
        """Return a client of an URL; see redis.Redis.from_url for the URL, and the class for the arguments."""
        own = {name: kwargs.pop(name) for name in _OWN if name in kwargs}
        single = kwargs.pop("single_connection_client", False)
        pool = ConnectionPool.from_url(url, **kwargs)
        client = cls(connection_pool=pool, single_connection_client=single, **own)
        client.auto_close_connection_pool = True
        client._name_pool()
        return client

    @classmethod
    def from_pool(cls, connection_pool: ConnectionPool, **kwargs: Any) -> DualRedis:
        """Return a client that owns this pool."""
        client = cls(connection_pool=connection_pool, **kwargs)
        client.auto_close_connection_pool = True
        return client

    def client(self) -> DualRedis:
        """Return a client of the same pool with one connection of its own for what is not the plan's."""
        return type(self)(connection_pool=self.connection_pool, single_connection_client=True, **self._dual_settings)

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Carry out a command; see the class."""
        mapped = self.dual.mapper.map(args)
        if mapped is None:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        try:
            reply = self.dual.run(mapped, decode=NEVER_DECODE not in options)
        except ResponseError:
            if EMPTY_RESPONSE in options:
                return options[EMPTY_RESPONSE]
            raise
        return called_back(self.response_callbacks, args[0], reply, options)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> DualPipeline:
        """Return a pipeline; with keys of the plan in it, it is one transaction, whatever `transaction` says."""
        return DualPipeline(self, self.connection_pool, self.response_callbacks, transaction, shard_hint)

    def lock(self, name: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a lock. Raises CommandUnmapped for a key of the plan: it is released by a script."""
        self.dual.mapper.map(("EVALSHA", "", 1, name))
        return super().lock(name, *args, **kwargs)

    def close(self) -> None:
        """Close the client; its heartbeat is taken back."""
        if hasattr(self, "dual"):
            self.dual.close()
        super().close()


def called_back(callbacks: Any, name: Any, reply: Any, options: dict[str, Any]) -> Any:
    """Return a reply as redis-py's callback of the command makes it."""
    callback = callbacks.get(name)
    if callback is None:
        return reply
    if options:
        for own in (EMPTY_RESPONSE, NEVER_DECODE, "keys"):
            options.pop(own, None)
    return callback(reply, **options)


def encoding(encode: Callable[[Any], Any]) -> Callable[[Any], bytes]:
    """Return a function that turns a key into the bytes that redis-py would send."""

    def as_bytes(key: Any) -> bytes:
        return key if type(key) is bytes else bytes(encode(key))

    return as_bytes


_OWN = ("plan", "on_unmapped", "name", "require_state")

__all__ = ["Dual", "DualRedis"]
