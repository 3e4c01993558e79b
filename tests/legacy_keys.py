"""A small legacy system for tests: every family, every type, odd keys. And a look at keys that trusts nobody."""

from __future__ import annotations

from typing import Any

import redis

#: A time far enough away that nothing expires while a test runs.
EXPIRES_MS = 4_000_000_000_123


def fill(client: dict[int, redis.Redis], indicators: int = 500) -> None:
    """Write the documented layout into databases 0, 2 and 5."""
    zero, two, five = client[0], client[2], client[5]
    for i in range(indicators):
        name = ("rsi", "delta", "volume_ratio", "unheard_of")[i % 4]
        five.set(f"indicators:NFO:SYM{i}:{name}", f"{i}.5", pxat=EXPIRES_MS if i % 3 == 0 else None)
    five.set(b"indicators:\xff\xfe:rsi", bytes(range(256)))
    five.set("indicators:EMPTY:rsi", "")
    for i in range(40):
        two.hset(f"volume_state:{i}", mapping={"total": i, "raw": bytes([i])})
        two.rpush(f"volume_averages:NFO:S{i}", *range(i + 1))
        two.zadd(f"volume_profile:patterns:NFO:S{i}:5", {"a": i / 3, "b": 2})
        two.set(f"volume:baseline:S{i}", i, px=90_000_000)
        two.hset(
            f"ohlc_latest:NFO:S{i}",
            mapping={"open": i + 1, "high": i + 2, "low": i, "close": i + 1, "timestamp": 1_700_000_000 + i},
        )
        zero.set(f"session:{i}", f"s{i}")
        zero.sadd(f"system:{i}", *range(i + 1), "x")
    zero.sadd("health:many", *(f"member-{i}" for i in range(3000)))
    for s in range(5):
        key = f"ticks:NFO:S{s}"
        for i in range(60):
            fields = {"last_price": 100 + i / 4, "volume": i + 1}
            zero.xadd(key, fields, id=f"{1_700_000_000_000 + i * 1000}-{s}")
        zero.xgroup_create(key, "readers", id="0")
        zero.xreadgroup("readers", "one", {key: ">"}, count=10)
        for i in range(20):
            mapping = {"last_price": 50 + i / 4, "volume": 3}
            two.hset(f"realtime:NFO:H{s}:{1_700_000_000 + i}", mapping=mapping)


def clients(port: int) -> dict[int, redis.Redis]:
    """Return a client for each database, replies as bytes."""
    return {db: redis.Redis(port=port, db=db) for db in (0, 1, 2, 5)}


def content(client: redis.Redis, key: bytes | str) -> Any:
    """Return what a key holds, and its absolute expiry in ms."""
    kind = client.type(key)
    read = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda k: client.lrange(k, 0, -1),
        b"set": client.smembers,
        b"zset": lambda k: client.zrange(k, 0, -1, withscores=True),
        b"stream": lambda k: (client.xrange(k), _groups(client, k)),
        b"none": lambda k: None,
    }[kind]
    return kind, read(key), client.execute_command("PEXPIRETIME", key)


def _groups(client: redis.Redis, key: bytes | str) -> Any:
    return [
        (group["name"], group["last-delivered-id"], client.xpending(key, group["name"]))
        for group in client.xinfo_groups(key)
    ]


def new_name(db: int, key: bytes) -> bytes | None:
    """Return where the phase-3 document says that a key goes, None for ticks that are merged."""
    head, _, rest = key.partition(b":")
    if db == 5:
        symbol, _, name = rest.rpartition(b":")
        if name == b"delta":
            return b"ind:greeks:" + rest
        if name.startswith(b"volume_"):
            return b"ind:volume:" + symbol + b":" + name.removeprefix(b"volume_")
        return (b"ind:ta:" if name in (b"rsi", b"ema") else b"ind:other:") + rest
    if head in (b"realtime", b"tick"):
        return None
    names = {
        b"volume_state": b"vol:state:",
        b"volume_averages": b"vol:baseline:",
        b"session": b"sys:session:",
        b"system": b"sys:system:",
        b"health": b"sys:health:",
    }
    if head == b"volume_profile":
        return b"vol:profile:" + rest.removeprefix(b"patterns:")
    return names[head] + rest if head in names else key


def differences(client: dict[int, redis.Redis]) -> list[str]:
    """Return every source key whose place in database 1 does not hold the same, and every missing merged tick."""
    found = []
    merged: dict[bytes, int] = {}
    for db in (0, 2, 5):
        for key in client[db].scan_iter(count=1000):
            target = new_name(db, key)
            if target is None:
                symbol = key.split(b":", 1)[1].rpartition(b":")[0]
                merged[symbol] = merged.get(symbol, 0) + 1
            elif content(client[db], key) != content(client[1], target):
                found.append(f"{db} {key!r}: {content(client[db], key)} != {content(client[1], target)}")
    for symbol, number in merged.items():
        length = client[1].xlen(b"ticks:historical:" + symbol)
        if length != number:
            found.append(f"ticks:historical:{symbol!r} has {length} entries, not {number}")
    return found
