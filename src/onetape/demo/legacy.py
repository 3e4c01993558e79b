"""The legacy system: databases 0, 2 and 5 as a trading system leaves them, with every kind of key and value."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from onetape.demo import families
from onetape.demo.filler import Filler
from onetape.demo.legacy_ticks import fill_ticks
from onetape.demo.market import Instrument
from onetape.migrate.wire.endpoint import Endpoint, parse_info

SOURCE_DBS = (0, 2, 5)
TARGET_DB = 1
#: Keys of no rule: the plan must list them and the migration must leave them alone.
UNMATCHED = {
    0: (b"lock:order_router", b"cache:symbol_master", b"debug:last_error"),
    2: (b"temp:recalc:2025-11-21", b"volume_debug"),
    5: (b"greeks_cache:NIFTY", b"strategy:params:\xfe\xed"),
}


class Survey(msgspec.Struct, frozen=True):
    """What a server holds of the legacy system, as it says itself."""

    keys: dict[int, int]
    expiring: int
    streams: int
    entries: int
    groups: int
    pending: int
    types: dict[str, int]


def fill(url: str, instruments: list[Instrument], seed: int, live_hashes: Collection[str] = ()) -> dict[str, int]:
    """Fill the three databases, which must be empty; return how many ticks went to streams and to hashes.

    `live_hashes`: symbols whose `tick:{symbol}` a live writer will write.
    """
    with Filler(url) as filler:
        fill_ticks(filler, instruments, live_hashes)
        families.fill(filler, instruments, seed)
        for db, keys in UNMATCHED.items():
            filler.select(db)
            for key in keys:
                filler.add("SET", key, "not a part of any family")
        return dict(filler.counts)


def survey(url: str) -> Survey:
    """Count what is in the three databases: keys, types, streams with their groups and pending entries."""
    types: dict[str, int] = {}
    streams = entries = groups = pending = 0
    with Endpoint.connect(url, writable=False) as endpoint:
        keyspace = parse_info(endpoint.call("INFO", "keyspace"))
        for db in SOURCE_DBS:
            endpoint.select(db)
            for keys in _pages(endpoint):
                kinds = [kind.decode() for kind in endpoint.pipeline([("TYPE", key) for key in keys])]
                for kind in kinds:
                    types[kind] = types.get(kind, 0) + 1
                found = [key for key, kind in zip(keys, kinds, strict=True) if kind == "stream"]
                streams += len(found)
                entries += sum(endpoint.pipeline([("XLEN", key) for key in found]))
                for reply in endpoint.pipeline([("XINFO", "GROUPS", key) for key in found]):
                    groups += len(reply)
                    pending += sum(group[group.index(b"pending") + 1] for group in reply)
    lines = {db: keyspace.get(f"db{db}", "keys=0,expires=0") for db in SOURCE_DBS}
    facts = {db: dict(part.split("=") for part in line.split(",")) for db, line in lines.items()}
    return Survey(
        keys={db: int(fact["keys"]) for db, fact in facts.items()},
        expiring=sum(int(fact["expires"]) for fact in facts.values()),
        streams=streams,
        entries=entries,
        groups=groups,
        pending=pending,
        types=types,
    )


def _pages(endpoint: Endpoint) -> Iterator[list[bytes]]:
    cursor: bytes = b"0"
    seen: set[bytes] = set()
    while True:
        cursor, keys = endpoint.call("SCAN", cursor, "COUNT", 1000)
        fresh = [key for key in dict.fromkeys(keys) if key not in seen]
        seen.update(fresh)
        if fresh:
            yield fresh
        if cursor == b"0":
            return
