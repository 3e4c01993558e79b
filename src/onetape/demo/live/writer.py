"""A live writer: writes under OLD names through the dual-writing client, from before the first phase to after the last.

Every write carries a counter, or is one, and what the server has acknowledged is kept count of. So a write that got
lost, and one that was done twice, both show: counters are added to, lists and streams hold the numbers from 1 on.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from onetape.demo.legacy_ticks import feed_of, fields
from onetape.demo.live.names import KEYS, symbol
from onetape.demo.process import until_told
from onetape.demo.simulator import Walk
from onetape.migrate.dual import DualRedis

#: About 200 beats a second, of one write each, a process.
BEAT_S = 0.005
_EXPIRY_S = 3_600


class Orders(msgspec.Struct, frozen=True):
    """`number`: which of the writers. `awaited`: through the client for asyncio."""

    url: str
    parent: int
    seed: int
    number: int
    awaited: bool


class Tally(msgspec.Struct):
    """What was acknowledged, by old name: the last counter, which is also how many there were.

    `longest_ms`: the longest wait for a write, in ms. `client`: what the client says of itself.
    """

    number: int
    set_: dict[str, int] = {}  # database 5: JSON with the counter
    added: dict[str, int] = {}  # database 2: a field of a hash, incremented
    pushed: dict[str, int] = {}  # database 0: a list of numbers
    streamed: dict[str, int] = {}  # database 0: a stream of ticks, each with its number
    counted: dict[str, int] = {}  # database 5: incremented in pipelines
    deleted: list[str] = []  # database 5
    kept: list[str] = []  # database 5, created on the way
    writes: int = 0
    seconds: float = 0.0
    longest_ms: float = 0.0
    client: dict[str, Any] = {}


class Desk:
    """What is written next, as (database, commands); the tally moves when it is acknowledged."""

    def __init__(self, orders: Orders) -> None:
        self._random = random.Random(orders.seed * 100 + orders.number)
        self._number = orders.number
        self._walks = {at: Walk(symbol(orders.number, at), orders.seed) for at in range(KEYS)}
        self.tally = Tally(orders.number)
        self._done: Callable[[], None] = lambda: None

    def next(self) -> tuple[int, list[tuple[Any, ...]]]:
        """Return the next write: one command, or several as one transaction."""
        tally, rnd, at = self.tally, self._random, self._random.randrange(KEYS)
        name = symbol(self._number, at)
        what = rnd.randrange(7)
        if what == 0:
            key = f"indicators:{name}:rsi"
            n = self._count(tally.set_, key)
            return 5, [("SET", key, msgspec.json.encode({"value": rnd.random(), "n": n}), "EX", _EXPIRY_S)]
        if what == 1:
            key = f"volume_state:{name}"
            self._count(tally.added, key)
            return 2, [("HINCRBY", key, "n", 1)]
        if what == 2:
            key = f"session:live:{name}"
            return 0, [("RPUSH", key, self._count(tally.pushed, key))]
        if what in (3, 4):
            key = f"ticks:{name}"
            n = self._count(tally.streamed, key)
            now_ns = time.time_ns() // 1_000_000 * 1_000_000
            return 0, [("XADD", key, "*", *fields(feed_of(name, False), self._walks[at].next(now_ns, trades=n)))]
        if what == 5:
            keys = [f"indicators:{name}:obv", f"indicators:{name}:volume_ratio"]
            counts = [tally.counted.get(key, 0) + 1 for key in keys]
            self._done = lambda: tally.counted.update(zip(keys, counts, strict=True))
            return 5, [("INCR", key) for key in keys]
        return 5, self._come_and_go(name)

    def _come_and_go(self, name: str) -> list[tuple[Any, ...]]:
        tally = self.tally
        if len(tally.kept) > KEYS:
            key = tally.kept[0]

            def gone() -> None:
                tally.deleted.append(tally.kept.pop(0))

            self._done = gone
            return [("DEL", key)]
        key = f"indicators:{name}:live_signal_{tally.writes}"
        self._done = lambda: tally.kept.append(key)
        return [("SET", key, tally.writes)]

    def _count(self, counters: dict[str, int], key: str) -> int:
        count = counters.get(key, 0) + 1

        def done() -> None:
            counters[key] = count

        self._done = done
        return count

    def acknowledged(self, waited_s: float) -> None:
        """Take the last write as done."""
        self._done()
        self.tally.writes += 1
        self.tally.longest_ms = max(self.tally.longest_ms, waited_s * 1000)


def _write(orders: Orders, desk: Desk, go_on: Callable[[], bool]) -> None:
    clients = {db: DualRedis.from_url(orders.url, db=db, plan="trading_system") for db in (0, 2, 5)}
    try:
        while go_on():
            started = time.monotonic()
            db, commands = desk.next()
            if len(commands) == 1:
                clients[db].execute_command(*commands[0])
            else:
                with clients[db].pipeline() as pipeline:
                    for command in commands:
                        pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
                    pipeline.execute()
            waited = time.monotonic() - started
            desk.acknowledged(waited)
            time.sleep(max(0.0, BEAT_S - waited))
        desk.tally.client = {str(db): msgspec.to_builtins(client.dual.status()) for db, client in clients.items()}
    finally:
        for client in clients.values():
            client.close()


async def _awrite(orders: Orders, desk: Desk, go_on: Callable[[], bool]) -> None:
    from onetape.migrate.dual import AsyncDualRedis

    clients = {db: AsyncDualRedis.from_url(orders.url, db=db, plan="trading_system") for db in (0, 2, 5)}
    try:
        while go_on():
            started = time.monotonic()
            db, commands = desk.next()
            if len(commands) == 1:
                await clients[db].execute_command(*commands[0])
            else:
                async with clients[db].pipeline() as pipeline:
                    for command in commands:
                        pipeline.execute_command(*command)
                    await pipeline.execute()
            waited = time.monotonic() - started
            desk.acknowledged(waited)
            await asyncio.sleep(max(0.0, BEAT_S - waited))
        desk.tally.client = {str(db): msgspec.to_builtins(client.dual.status()) for db, client in clients.items()}
    finally:
        for client in clients.values():
            await client.aclose()


def main(told: str) -> int:
    """Write until SIGTERM; then print what was acknowledged."""
    orders = msgspec.json.decode(told, type=Orders)
    go_on = until_told(orders.parent)
    desk, started = Desk(orders), time.monotonic()
    if orders.awaited:
        asyncio.run(_awrite(orders, desk, go_on))
    else:
        _write(orders, desk, go_on)
    desk.tally.seconds = time.monotonic() - started
    sys.stdout.write(msgspec.json.encode(desk.tally).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
