"""The digest of a DUMP: equal for a key and its copy, whatever the type, the encoding, and how it was filled."""

from __future__ import annotations

import random

import pytest

from onetape.embedded import EmbeddedServer
from onetape.migrate.keys.dump import digest
from onetape.migrate.wire.endpoint import Endpoint

SHUFFLED = random.Random(7).sample(range(5000), 5000)


def _fill(endpoint: Endpoint, shape: str) -> None:
    def members(n: int) -> list[str]:
        return [f"member-{i}" for i in SHUFFLED[:n]]

    def many(*command: object) -> None:
        for at in range(2, len(command), 1000):
            endpoint.call(*command[:2], *command[at : at + 1000])  # type: ignore[arg-type]

    match shape:
        case "empty string":
            endpoint.call("SET", "k", "")
        case "integer string":
            endpoint.call("SET", "k", 12345)
        case "binary string":
            endpoint.call("SET", "k", bytes(range(256)) * 40)
        case "small list":
            endpoint.call("RPUSH", "k", "a", "", b"\xff\x00")
        case "quicklist":
            many("RPUSH", "k", *(f"{i}" * 30 for i in range(3000)))
        case "intset":
            many("SADD", "k", *range(400))
        case "listpack set":
            endpoint.call("SADD", "k", "b", "a", "c")
        case "table set":
            many("SADD", "k", *members(5000), *(f"{'long' * 40}{i}" for i in range(50)), *range(100))
        case "table set, shrunk":
            many("SADD", "k", *members(5000))
            many("SREM", "k", *members(4000))
        case "listpack hash":
            endpoint.call("HSET", "k", "b", 1, "a", b"\x00")
        case "table hash":
            many("HSET", "k", *(part for i in SHUFFLED for part in (f"field-{i}", f"{'value' * 9}{i}")))
        case "listpack zset":
            endpoint.call("ZADD", "k", 2.5, "b", 1, "a")
        case "skiplist":
            many("ZADD", "k", *(part for i in SHUFFLED for part in (i / 7, f"m{i}")))
        case "stream":
            for i in range(500):
                endpoint.call("XADD", "k", f"{1000 + i}-{i}", "price", i / 4, "size", i)
            endpoint.call("XDEL", "k", "1003-3")
            endpoint.call("XGROUP", "CREATE", "k", "g", "1100-0")
            endpoint.call("XGROUP", "CREATE", "k", "h", "0")
            endpoint.call("XREADGROUP", "GROUP", "g", "one", "COUNT", 20, "STREAMS", "k", ">")
            endpoint.call("XREADGROUP", "GROUP", "h", "two", "COUNT", 30, "STREAMS", "k", ">")
            endpoint.call("XACK", "k", "h", "1001-1")
        case "empty stream":
            endpoint.call("XADD", "k", "5-1", "a", 1)
            endpoint.call("XDEL", "k", "5-1")


SHAPES = [
    "empty string", "integer string", "binary string", "small list", "quicklist", "intset", "listpack set",
    "table set", "table set, shrunk", "listpack hash", "table hash", "listpack zset", "skiplist", "stream",
    "empty stream",
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_copy_has_the_digest_of_its_source(server: EmbeddedServer, shape: str) -> None:
    with Endpoint.connect(server.url) as endpoint:
        _fill(endpoint, shape)
        before = digest(endpoint.call("DUMP", "k"))
        assert endpoint.call("COPY", "k", "k2", "DB", 1) == 1
        endpoint.select(1)
        assert digest(endpoint.call("DUMP", "k2")) == before


@pytest.mark.parametrize("shape", ["table set", "table hash"])
def test_the_order_of_filling_a_hash_table_does_not_matter(server: EmbeddedServer, shape: str) -> None:
    with Endpoint.connect(server.url) as endpoint:
        _fill(endpoint, shape)
        before = digest(endpoint.call("DUMP", "k"))
        add, read = ("SADD", "SMEMBERS") if shape == "table set" else ("HSET", "HGETALL")
        flat = endpoint.call(read, "k")
        step = 1 if shape == "table set" else 2
        for at in sorted(range(0, len(flat), step), key=lambda i: flat[i]):
            endpoint.call(add, "k2", *flat[at : at + step])
        assert digest(endpoint.call("DUMP", "k2")) == before


@pytest.mark.parametrize("shape", SHAPES)
def test_one_change_changes_the_digest(server: EmbeddedServer, shape: str) -> None:
    with Endpoint.connect(server.url) as endpoint:
        _fill(endpoint, shape)
        before = digest(endpoint.call("DUMP", "k"))
        kind = endpoint.call("TYPE", "k")
        change = {
            b"string": ("APPEND", "k", "x"),
            b"list": ("LSET", "k", 1 if shape == "quicklist" else 0, "other"),
            b"set": ("SADD", "k", "another"),
            b"hash": ("HSET", "k", "a", "other"),
            b"zset": ("ZADD", "k", 99.5, "a"),
            b"stream": ("XADD", "k", "9999999-0", "a", 1),
        }[kind]
        endpoint.call(*change)
        assert digest(endpoint.call("DUMP", "k")) != before


def test_field_expiries_are_part_of_the_digest_and_survive_a_copy(server: EmbeddedServer) -> None:
    with Endpoint.connect(server.url) as endpoint:
        if not (endpoint.server == "valkey" and endpoint.version >= (9,)) and endpoint.version < (7, 4):
            pytest.skip("this server has no field expiries")
        endpoint.call("HSET", "k", *(part for i in range(1000) for part in (f"f{i}", "x" * 70)))
        before = digest(endpoint.call("DUMP", "k"))
        endpoint.call("HPEXPIREAT", "k", 4_000_000_000_000, "FIELDS", 2, "f1", "f2")
        after = digest(endpoint.call("DUMP", "k"))
        assert after != before
        endpoint.call("COPY", "k", "k2")
        assert digest(endpoint.call("DUMP", "k2")) == after


def test_a_payload_that_is_cut_short_still_has_a_digest() -> None:
    for payload in (b"\x02\x05\x01a" + bytes(10), b"\x04\xff" + bytes(10), b"\x02" + bytes(10)):
        assert len(digest(payload)) == 16
