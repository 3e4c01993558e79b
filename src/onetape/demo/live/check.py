"""The check: what writers were told is done, and what the server holds under the new names, number by number."""

from __future__ import annotations

from typing import Any

import msgspec

from onetape.demo.live.writer import Tally
from onetape.migrate.plans.plan import Plan
from onetape.migrate.routes import Routes
from onetape.migrate.wire.endpoint import Endpoint
from onetape.tape import Tape

_LISTED = 10


class Found(msgspec.Struct):
    """What was compared. `wrong`: the first of what is not as acknowledged, in words."""

    counters: int = 0
    numbers: int = 0
    deletions: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = []


def check(endpoint: Endpoint, plan: Plan, tallies: list[Tally], *, new: bool) -> Found:
    """Compare every counter, list and stream of the writers with one side. The writers have stopped.

    Counters are equal; lists and streams hold each number from 1 on once, in order; what was deleted is not there.
    """
    side = _Side(endpoint, Routes(plan), new)
    found = Found()
    for tally in tallies:
        for key, count in tally.set_.items():
            value = side.ask(5, "GET", key)
            _counter(found, key, count, 0 if value is None else msgspec.json.decode(value)["n"])
        for key, count in tally.added.items():
            _counter(found, key, count, int(side.ask(2, "HGET", key, "n") or 0))
        for key, count in tally.counted.items():
            _counter(found, key, count, int(side.ask(5, "GET", key) or 0))
        for key, count in tally.pushed.items():
            _numbers(found, key, count, [int(item) for item in side.ask(0, "LRANGE", key, 0, -1)])
        for key, count in tally.streamed.items():
            entries = side.ask(0, "XRANGE", key, "-", "+")
            _numbers(found, key, count, [_number(fields) for _, fields in entries])
        for key in tally.kept:
            _counter(found, key, 1, side.ask(5, "EXISTS", key))
        for key in tally.deleted:
            found.deletions += 1
            if side.ask(5, "EXISTS", key):
                _wrong(found, f"{key} was deleted, and is there")
    return found


def check_tape(tape: Tape, tallies: list[Tally]) -> Found:
    """Check that the tape has the ticks of each stream from the first on, each once and in order, however far."""
    found = Found()
    for tally in tallies:
        for key in tally.streamed:
            table = tape.read(key.removeprefix("ticks:"), columns=["trades"])
            numbers = table.column("trades").to_pylist()
            found.numbers += len(numbers)
            if not numbers or numbers != list(range(1, len(numbers) + 1)):
                _wrong(found, f"{key}: the tape has {len(numbers):,} ticks, not 1 to {len(numbers):,} in order")
    return found


class _Side:
    def __init__(self, endpoint: Endpoint, routes: Routes, new: bool) -> None:
        self._endpoint, self._routes, self._new = endpoint, routes, new

    def ask(self, db: int, command: str, key: str, *rest: str | int) -> Any:
        route = self._routes.of(db, key.encode())
        assert route is not None
        self._endpoint.select(route.new_db if self._new else route.old_db)
        return self._endpoint.call(command, route.new_key if self._new else route.old_key, *rest)


def _counter(found: Found, key: str, wanted: int, held: int) -> None:
    found.counters += 1
    if held != wanted:
        found.lost += max(0, wanted - held)
        found.doubled += max(0, held - wanted)
        _wrong(found, f"{key} counts {held:,}, and {wanted:,} were acknowledged")


def _numbers(found: Found, key: str, wanted: int, held: list[int]) -> None:
    found.numbers += len(held)
    if held != list(range(1, wanted + 1)):
        once = set(held)
        found.lost += wanted - len(once & set(range(1, wanted + 1)))
        found.doubled += len(held) - len(once)
        _wrong(found, f"{key} holds {len(held):,} numbers, not 1 to {wanted:,} once each and in order")


def _wrong(found: Found, told: str) -> None:
    if len(found.wrong) < _LISTED:
        found.wrong.append(told)


def _number(fields: list[bytes]) -> int:
    pairs = dict(zip(fields[::2], fields[1::2], strict=True))
    for name in (b"trade_count", b"trades", b"n"):
        if name in pairs:
            return int(pairs[name])
    return -1


__all__ = ["Found", "check", "check_tape"]
