"""Blind copies: what a migration's author would write without a migrator, and the fastest that a server allows.

None of them keeps a ledger, looks whether a key was written meanwhile, or spares a newer one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

import redis

from bench import keys
from onetape.migrate.wire.endpoint import Endpoint, pack

_PIPELINE = 1000

#: First word of a key → its new beginning: what a blind copy's author would write, cheaper than rules.
_RENAMED = {
    b"volume_state": b"vol:state",
    b"volume_averages": b"vol:baseline",
    b"volume_profile": b"vol:profile",
    b"indicators": b"ind:other",
    b"session": b"sys:session",
    b"system": b"sys:system",
    b"ticks": b"ticks:historical",
}


def new_name(key: bytes) -> bytes:
    """Return a key's new name."""
    family, _, rest = key.partition(b":")
    return _RENAMED[family] + b":" + rest


def copies(port: int) -> int:
    """Copy all keys through redis-py: SCAN, and pipelines of 1,000 COPY ... DB 1 REPLACE. Returns how many."""
    moved = 0
    for db in keys.SOURCES:
        client = redis.Redis(port=port, db=db)
        for page in _pages(client):
            pipeline = client.pipeline(transaction=False)
            for key in page:
                pipeline.copy(key, new_name(key), destination_db=keys.TARGET, replace=True)
            moved += sum(pipeline.execute())
        client.close()
    return moved


def raw_copies(port: int) -> int:
    """Copy all keys by commands packed beforehand, a page of SCAN ahead: the most that the server does."""
    moved = 0
    with Endpoint.connect(f"redis://127.0.0.1:{port}") as scan, Endpoint.connect(f"redis://127.0.0.1:{port}") as copy:
        for db in keys.SOURCES:
            scan.select(db)
            copy.select(db)
            cursor, sent = b"0", 0
            scan.send(pack("SCAN", cursor, "COUNT", _PIPELINE))
            while True:
                ((cursor, page),) = scan.receive(1)
                if cursor != b"0":
                    scan.send(pack("SCAN", cursor, "COUNT", _PIPELINE))
                packed = b"".join(chain.from_iterable(map(_raw_copy, page)))
                moved += copy.receive(sent).count(1)
                copy.send(packed)
                sent = len(page)
                if cursor == b"0":
                    break
            moved += copy.receive(sent).count(1)
    return moved


def _raw_copy(key: bytes) -> tuple[bytes, ...]:
    name = new_name(key)
    return (b"*5\r\n$4\r\nCOPY\r\n$%d\r\n" % len(key), key, b"\r\n$%d\r\n" % len(name), name, _TO_TARGET)


_TO_TARGET = b"\r\n$2\r\nDB\r\n$1\r\n%d\r\n" % keys.TARGET


def one_by_one(port: int, count: int) -> int:
    """Copy `count` keys as the predecessor did: TYPE, DUMP, PTTL, RESTORE, each a round trip."""
    target = redis.Redis(port=port, db=keys.TARGET)
    moved = 0
    for client, key in islice(_all_keys(port), count):
        client.type(key)
        payload, left_ms = client.dump(key), client.pttl(key)
        target.restore(new_name(key), max(0, left_ms), payload, replace=True)
        moved += 1
    return moved


def to_another_server(port: int, other: int) -> int:
    """Copy all keys to another server through redis-py: pipelines of 1,000 DUMP and PTTL, then of 1,000 RESTORE."""
    moved = 0
    target = redis.Redis(port=other, db=keys.TARGET)
    for db in keys.SOURCES:
        client = redis.Redis(port=port, db=db)
        for page in _pages(client):
            reading, writing = client.pipeline(transaction=False), target.pipeline(transaction=False)
            for key in page:
                reading.dump(key)
                reading.pttl(key)
            read = reading.execute()
            for key, payload, left_ms in zip(page, read[::2], read[1::2], strict=True):
                writing.restore(new_name(key), max(0, left_ms), payload, replace=True)
            moved += len(writing.execute())
        client.close()
    return moved


def _pages(client: redis.Redis) -> Iterator[list[bytes]]:
    found = client.scan_iter(count=_PIPELINE)
    while page := list(islice(found, _PIPELINE)):
        yield page


def _all_keys(port: int) -> Iterator[tuple[redis.Redis, bytes]]:
    """Yield keys of all source databases in turn, so that the first of them are a fair sample."""
    clients = [redis.Redis(port=port, db=db) for db in keys.SOURCES]
    scans = [client.scan_iter(count=_PIPELINE) for client in clients]
    while True:
        found = [(client, key) for client, scan in zip(clients, scans, strict=True) for key in islice(scan, 10)]
        if not found:
            return
        yield from found
