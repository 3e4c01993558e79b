"""Mixed keys on a server: every type in the sizes that market data has, expiries on a part, the same every time.

Of 20 keys: 7 strings (a third of them JSON of 200 bytes, half with an expiry), 6 hashes of 6 to 12 fields, 2 sorted
sets of 10, 2 sets of 8, 2 lists of 10, and 1 stream of 5 entries, one in four of those with a consumer group.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from onetape.migrate.wire.endpoint import Argument, Endpoint, pack

SOURCES = (0, 2, 5)
TARGET = 1
_NAMES = ("rsi", "macd", "delta", "volume_ratio", "ema_20", "atr", "spread")
_EXPIRY_MS = 6 * 3600 * 1000
_PAGE = 2000

Command = tuple[Argument, ...]


def fill(url: str, count: int) -> int:
    """Empty the server, write `count` keys to its source databases, and return how many there are."""
    made: dict[int, list[bytes]] = {db: [] for db in SOURCES}
    with Endpoint.connect(url) as endpoint:
        endpoint.call("FLUSHALL")
        for db, command in _commands(count):
            made[db].append(pack(*command))
            if len(made[db]) >= _PAGE:
                _send(endpoint, db, made[db])
        for db, left in made.items():
            _send(endpoint, db, left)
        return sum(_size(endpoint, db) for db in SOURCES)


def empty_target(url: str) -> None:
    """Remove what the last run copied."""
    with Endpoint.connect(url, db=TARGET) as endpoint:
        endpoint.call("FLUSHDB")


def copied(url: str) -> int:
    """Return how many keys the target has, without those of a live migration itself. The server stands for it."""
    with Endpoint.connect(url, db=TARGET) as endpoint:
        return int(endpoint.call("DBSIZE")) - len(endpoint.call("KEYS", "onetape:*"))


def target_size(url: str) -> int:
    """Return how many keys the target has, with those of a live migration itself, of which there are a few."""
    with Endpoint.connect(url) as endpoint:
        return _size(endpoint, TARGET)


def _size(endpoint: Endpoint, db: int) -> int:
    endpoint.select(db)
    return int(endpoint.call("DBSIZE"))


def _send(endpoint: Endpoint, db: int, packed: list[bytes]) -> None:
    endpoint.select(db)
    for reply in endpoint.exchange(b"".join(packed), len(packed)):
        if isinstance(reply, Exception):
            raise reply
    packed.clear()


def _commands(count: int) -> Iterator[tuple[int, Command]]:
    chance = random.Random(7)
    for index in range(count):
        group, place = divmod(index, 20)
        symbol = f"NFO:SYM{group:06d}"
        if place < 7:
            yield 5, _indicator(f"indicators:{symbol}:{_NAMES[place]}", place, chance)
        elif place < 11:
            yield 2, ("HSET", f"volume_state:{group * 4 + place}", *_fields(6, chance))
        elif place < 13:
            yield 2, ("HSET", f"volume_averages:{symbol}:{place}", *_fields(12, chance))
        elif place < 15:
            members = [part for level in range(10) for part in (chance.randint(1, 10**6), f"{level * 25}.25")]
            yield 2, ("ZADD", f"volume_profile:patterns:{symbol}:{place}", *members)
        elif place < 17:
            key = f"session:{symbol}:{place}"
            yield 0, ("SADD", key, *(f"client-{chance.randrange(10**6)}" for _ in range(8)))
            if place == 15:
                yield 0, ("PEXPIRE", key, _EXPIRY_MS)
        elif place < 19:
            entries = (f"{chance.random():.9f}" for _ in range(10))
            yield 0, ("RPUSH", f"system:log:{symbol}:{place}", *entries)
        else:
            yield from ((0, command) for command in _stream(f"ticks:{symbol}", group, chance))


def _indicator(key: str, place: int, chance: random.Random) -> Command:
    value = f"{chance.random() * 100:.6f}"
    if place % 3 == 0:
        value = f'{{"value": {value}, "history": [{", ".join([value] * 16)}]}}'
    if place % 2 == 0:
        return ("SET", key, value, "PX", _EXPIRY_MS + chance.randrange(10**6))
    return ("SET", key, value)


def _fields(number: int, chance: random.Random) -> list[Argument]:
    return [part for field in range(number) for part in (f"field_{field}", f"{chance.random() * 10**4:.4f}")]


def _stream(key: str, group: int, chance: random.Random) -> Iterator[Command]:
    for entry in range(5):
        price = f"{chance.randint(100, 30_000)}.25"
        values = ("price", price, "size", entry + 1, "bid", price, "ask", price)
        yield ("XADD", key, f"{1_767_600_000_000 + entry * 250}-0", *values)
    if group % 4 == 0:
        yield ("XGROUP", "CREATE", key, "readers", "0")
        yield ("XREADGROUP", "GROUP", "readers", "one", "COUNT", 2, "STREAMS", key, ">")
