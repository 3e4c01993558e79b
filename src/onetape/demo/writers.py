"""The live writers: one process that goes on writing to the OLD names while the migration runs, and keeps count.

Every write carries a counter: `trade_count` of a tick, `n` of an indicator. What a writer says it wrote can so be
looked for in the target and on the tape, number by number. The process cannot outlive the one that started it.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from onetape.demo.legacy_ticks import feed_of, fields
from onetape.demo.process import Process, until_told
from onetape.demo.simulator import Walk
from onetape.errors import MigrationError
from onetape.migrate.wire.endpoint import Argument, Endpoint

#: A beat every 25 ms with eight to ten writes: 320 to 400 writes a second.
BEAT_S = 0.025
_STREAMS_A_BEAT, _HASHES_A_BEAT, _INDICATORS_A_BEAT = 4, 2, 2
_EXPIRY_S = 3_600
_NEW_STREAMS = 4
_T = TypeVar("_T")


class Orders(msgspec.Struct, frozen=True):
    """What the writers are to write: (symbol, database) of streams, symbols of hashes and of indicators."""

    url: str
    parent: int
    seed: int
    streams: list[tuple[str, int]]
    hashes: list[str]
    indicators: list[str]


class Tally(msgspec.Struct):
    """What the writers wrote: by key the last counter, which is also how many there were."""

    streams: dict[str, int] = {}
    hashes: dict[str, int] = {}
    indicators: dict[str, int] = {}
    created: list[str] = []
    deleted: int = 0
    writes: int = 0
    seconds: float = 0.0


class Writers:
    """The writers' process. Start it in the thread that lives as long as it should; the kernel ends it with that."""

    def __init__(self, orders: Orders) -> None:
        self._process = Process("onetape.demo.writers", orders)
        self.pid = self._process.pid
        self.kill = self._process.kill

    def stop(self) -> Tally:
        """Let the writers finish what they are at, end them, and return what they wrote. Raises MigrationError."""
        return msgspec.json.decode(self._process.stop(), type=Tally)


class Desk:
    """All writers as one loop: what is written in a beat, and what was written so far."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._random = random.Random(orders.seed)
        self._walks: dict[str, Walk] = {}
        self._streams = list(orders.streams)
        self._again: list[str] = []  # deleted, to be written again in the next beat
        self._locks: list[str] = []
        self._new: list[str] = []  # instruments that are listed while the writers are at work
        self.tally = Tally()

    def beat(self, number: int) -> list[tuple[Argument, ...]]:
        """Return the commands of one beat."""
        commands: list[tuple[Argument, ...]] = []
        for symbol, db in _turn(self._streams, number, _STREAMS_A_BEAT):
            commands += self._stream(symbol, db)
        commands.append(("SELECT", 0))
        for symbol in _turn(self._orders.hashes, number, _HASHES_A_BEAT):
            key = f"tick:{symbol}"
            count = self._count(self.tally.hashes, key)
            commands.append(("HSET", key, *self._tick(symbol, count)))
        commands.append(("SELECT", 5))
        for key in self._again:
            commands.append(self._indicator(key))
        self._again.clear()
        for symbol in _turn(self._orders.indicators, number, _INDICATORS_A_BEAT):
            commands.append(self._indicator(f"indicators:{symbol}:rsi"))
        commands += self._housekeeping(number)
        return commands

    def last(self) -> list[tuple[Argument, ...]]:
        """Return the commands that leave nothing half done."""
        commands: list[tuple[Argument, ...]] = [("SELECT", 5)]
        commands += [self._indicator(key) for key in self._again]
        commands += [("DEL", lock) for lock in self._locks]
        self._again.clear()
        return commands

    def _stream(self, symbol: str, db: int) -> list[tuple[Argument, ...]]:
        key = f"ticks:{symbol}"
        count = self._count(self.tally.streams, key)
        if count == 1 and symbol in self._new:  # created by its first entry, not when it was put on the list
            self.tally.created.append(key)
        return [("SELECT", db), ("XADD", key, "*", *self._tick(symbol, count))]

    def _tick(self, symbol: str, count: int) -> list[str | int | float]:
        walk = self._walks.setdefault(symbol, Walk(symbol, self._orders.seed + 1))
        now_ns = time.time_ns() // 1_000_000 * 1_000_000
        return fields(feed_of(symbol, False), walk.next(now_ns, trades=count))

    def _indicator(self, key: str) -> tuple[Argument, ...]:
        count = self._count(self.tally.indicators, key)
        value = msgspec.json.encode({"value": round(self._random.uniform(0, 100), 2), "n": count})
        return ("SET", key, value, "EX", _EXPIRY_S)

    def _housekeeping(self, number: int) -> list[tuple[Argument, ...]]:
        """New keys, deleted ones that come back, and locks that come and go."""
        commands: list[tuple[Argument, ...]] = [("DEL", lock) for lock in self._locks]
        self.tally.deleted += len(self._locks)
        self._locks.clear()
        symbol = self._random.choice(self._orders.indicators)
        if number % 4 == 0:
            self._locks.append(f"lock:signal:{symbol}")
            commands.append(("SET", self._locks[0], number, "PX", 60_000))
        if number % 40 == 20 and len(self._new) < _NEW_STREAMS:
            self._new.append(f"NFO:LIVE{len(self._new) + 1:02d}NOVFUT")
            self._streams.append((self._new[-1], 0))
        if number % 10 == 3:
            key = f"indicators:{symbol}:live_signal_{number}"
            self.tally.created.append(key)
            commands.append(self._indicator(key))
        if number % 10 == 7:
            key = f"indicators:{symbol}:rsi_14"
            self.tally.deleted += 1
            self._again.append(key)
            commands.append(("DEL", key))
        return commands

    def _count(self, counters: dict[str, int], key: str) -> int:
        counters[key] = counters.get(key, 0) + 1
        return counters[key]


def _turn(of: Sequence[_T], number: int, count: int) -> list[_T]:
    """Return the next `count` of a list that takes turns."""
    return [of[(number * count + at) % len(of)] for at in range(min(count, len(of)))]


def main(told: str) -> int:
    """Write until SIGTERM; then print what was written."""
    orders = msgspec.json.decode(told, type=Orders)
    goes_on = until_told(orders.parent)
    desk, started = Desk(orders), time.monotonic()
    with Endpoint.connect(orders.url) as endpoint:
        number, due_s = 0, started
        while goes_on():
            _send(endpoint, desk, desk.beat(number))
            number += 1
            now_s = time.monotonic()
            due_s = max(due_s + BEAT_S, now_s)  # beats that a busy server swallowed are not made up for
            time.sleep(due_s - now_s)
        _send(endpoint, desk, desk.last())
    desk.tally.seconds = time.monotonic() - started
    sys.stdout.write(msgspec.json.encode(desk.tally).decode() + "\n")
    return 0


def _send(endpoint: Endpoint, desk: Desk, commands: list[tuple[Argument, ...]]) -> None:
    for command, reply in zip(commands, endpoint.pipeline(commands), strict=True):
        if isinstance(reply, Exception):
            raise MigrationError(f"a writer's {command[0]!s} failed: {reply}")
    desk.tally.writes += sum(command[0] != "SELECT" for command in commands)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
