"""Every kind of key a server can hold has the same content after a plain COPY, real old dumps included."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from onetape.embedded import EmbeddedServer, server_binaries
from onetape.errors import EndpointError
from onetape.migrate.keys import content
from onetape.migrate.keys.stream_state import stream_state
from onetape.migrate.wire.endpoint import Endpoint


@pytest.fixture
def endpoint(server: EmbeddedServer) -> Iterator[Endpoint]:
    with Endpoint.connect(server.url) as endpoint:
        yield endpoint


def fill_every_type(endpoint: Endpoint) -> None:
    """Fill the selected database with small and big keys of every type, binary names and expiries."""
    call = endpoint.call
    call("SET", b"\xff\x00bin", b"\x80\x00value")
    call("SET", "empty", "")
    call("SET", "number", 12)
    call("SET", "long", b"x" * 9_000_000)
    call("SET", "expiring", "1", "PXAT", 4_000_000_000_123)
    call("RPUSH", "list:small", *range(10))
    call("RPUSH", "list:big", *range(20_000))
    call("SADD", "set:ints", *range(5))
    call("SADD", "set:text", "a", b"\xff", "")
    call("SADD", "set:big", *range(20_000), "x")
    call("ZADD", "zset:small", "-inf", "a", 0, "b", "-0.0", "c", 1.1, "d", 1.1, "dd", "+inf", "e")
    call("ZADD", "zset:big", *(part for i in range(12_000) for part in (i / 7, f"m{i}")))
    call("HSET", "hash:small", "f", "v", "", b"\xfe")
    call("HSET", "hash:big", *(part for i in range(12_000) for part in (f"f{i}", i)))
    call("XADD", "stream:plain", "5-1", "a", "1")
    for i in range(1, 40):
        call("XADD", "stream", f"{1000 + i}-0", "n", i)
    call("XDEL", "stream", "1007-0", "1039-0")
    call("XGROUP", "CREATE", "stream", "workers", "0")
    call("XGROUP", "CREATE", "stream", "at the end", "$")
    call("XREADGROUP", "GROUP", "workers", "ann", "COUNT", 9, "STREAMS", "stream", ">")
    call("XREADGROUP", "GROUP", "workers", "bob", "COUNT", 3, "STREAMS", "stream", ">")
    call("XACK", "stream", "workers", "1001-0")
    call("XDEL", "stream", "1003-0")  # pending, and gone
    call("XGROUP", "CREATECONSUMER", "stream", "workers", "idle one")
    call("XADD", "stream:emptied", "9-9", "a", "1")
    call("XDEL", "stream:emptied", "9-9")
    call("PFADD", "hll", *range(100))
    if endpoint.server == "valkey" and endpoint.version >= (9, 0):
        call("HSET", "hash:ttl", "a", 1, "b", 2)
        call("HPEXPIREAT", "hash:ttl", 4_000_000_000_123, "FIELDS", 1, "a")


def all_keys(endpoint: Endpoint) -> list[bytes]:
    cursor, keys = b"0", []
    while True:
        cursor, page = endpoint.call("SCAN", cursor, "COUNT", 1000)
        keys += page
        if cursor == b"0":
            return keys


def copied_content_is_equal(endpoint: Endpoint, db: int, other: int) -> int:
    endpoint.select(db)
    keys = all_keys(endpoint)
    for key in keys:
        endpoint.select(db)
        assert endpoint.call("COPY", key, key, "DB", other) == 1
        pair = content.read_together(endpoint, [(db, key), (other, key)])
        assert pair is not None
        assert pair[0] is not None
        assert pair[0] == pair[1], (key, content.differences(*pair))
        assert content.differences(*pair) == ""
        assert content.first_difference(endpoint, (db, key), (other, key)) == ""
    return len(keys)


def test_a_copy_of_every_type_has_equal_content(endpoint: Endpoint) -> None:
    fill_every_type(endpoint)
    assert copied_content_is_equal(endpoint, 0, 3) >= 17


def test_content_does_not_depend_on_encoding_or_on_insertion_order(endpoint: Endpoint) -> None:
    endpoint.call("SADD", "a", *range(600), "x")
    endpoint.call("SADD", "b", "x", *reversed(range(600)))
    endpoint.call("HSET", "ha", *(part for i in range(600) for part in (i, i)))
    endpoint.call("HSET", "hb", *(part for i in reversed(range(600)) for part in (i, i)))
    endpoint.call("SADD", "grown", *range(600), "text")
    endpoint.call("SREM", "grown", *range(3, 600), "text")
    endpoint.call("SADD", "small", 2, 1, 0)
    for one, other in (("a", "b"), ("ha", "hb"), ("grown", "small")):
        assert endpoint.call("DUMP", one) != endpoint.call("DUMP", other)
        assert content.read_content(endpoint, one.encode()) == content.read_content(endpoint, other.encode())


@pytest.mark.parametrize(
    "change",
    [
        ("APPEND", b"\xff\x00bin", "!"),
        ("LSET", "list:big", 19_999, "!"),
        ("SMOVE", "set:big", "elsewhere", "7"),
        ("ZADD", "zset:small", 1.1000000000000003, "d"),
        ("ZADD", "zset:small", 5e-324, "c"),
        ("HSET", "hash:big", "f7", "!"),
        ("XADD", "stream", "2000-0", "n", "1"),
        ("XACK", "stream", "workers", "1002-0"),
        ("XSETID", "stream", "3000-0"),
        ("XCLAIM", "stream", "workers", "bob", 0, "1002-0", "JUSTID"),
        ("XCLAIM", "stream", "workers", "ann", 0, "1002-0", "TIME", 77),
        ("XGROUP", "DESTROY", "stream", "at the end"),
        ("XGROUP", "DELCONSUMER", "stream", "workers", "idle one"),
        ("PEXPIREAT", "expiring", 4_000_000_000_124),
        ("PERSIST", "expiring"),
    ],
)
def test_every_change_is_seen_and_told(endpoint: Endpoint, change: tuple[str | int | bytes, ...]) -> None:
    fill_every_type(endpoint)
    key = change[1].encode() if isinstance(change[1], str) else change[1]
    if change[0] == "XGROUP":
        key = b"stream"
    assert isinstance(key, bytes)
    endpoint.call("COPY", key, key, "DB", 3)
    endpoint.call(*change)
    pair = content.read_together(endpoint, [(0, key), (3, key)])
    assert pair is not None
    assert pair[0] != pair[1]
    told = content.differences(*pair)
    assert told and "\n" not in told
    if "EXPIRE" not in change[0] and change[0] != "PERSIST":
        told = content.first_difference(endpoint, (0, key), (3, key))
        assert told and "\n" not in told


def test_a_missing_key_has_no_content(endpoint: Endpoint) -> None:
    assert content.read_content(endpoint, b"nothing") is None


def test_a_key_that_keeps_changing_is_not_guessed(endpoint: Endpoint, server: EmbeddedServer) -> None:
    endpoint.call("RPUSH", "busy", *range(10))
    with Endpoint.connect(server.url) as writer:
        original = content.read_content

        def disturbed(reader: Endpoint, key: bytes) -> content.Content | None:
            writer.call("RPUSH", "busy", 1)
            return original(reader, key)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(content, "read_content", disturbed)
            assert content.read_together(endpoint, [(0, b"busy"), (1, b"busy")]) is None


def test_a_stream_state_can_be_set_again(endpoint: Endpoint) -> None:
    fill_every_type(endpoint)
    state = stream_state(endpoint, b"stream", all_times=True)
    assert state is not None
    assert [group.name for group in state.groups] == [b"at the end", b"workers"]
    workers = state.groups[1]
    assert (workers.consumers, len(workers.pending)) == ([b"ann", b"bob", b"idle one"], 11)
    assert all(one.time_ms is not None for one in workers.pending)


def rdb_files() -> list[str]:
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("ONETAPE_SAMPLE_DATA", beside)) / "redis"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.rdb"))


@pytest.mark.parametrize("name", rdb_files() or ["none"])
@pytest.mark.parametrize("server_name", ["valkey", "redis"])
def test_keys_of_real_dumps_have_equal_content_after_a_copy(sample_data: Path, name: str, server_name: str) -> None:
    binary = server_binaries().get(server_name)
    if binary is None or name == "none":
        pytest.skip(f"no {server_name} server or no dumps on this machine")
    server = EmbeddedServer(binary, {"dbfilename": "dump.rdb", "databases": "32"})
    shutil.copyfile(sample_data / "redis" / name, server.directory / "dump.rdb")
    try:
        try:
            server.start()
        except EndpointError:
            pytest.skip(f"{server_name} does not load {name}")
        with Endpoint.connect(server.url) as endpoint:
            for line in endpoint.call("INFO", "keyspace").decode().splitlines():
                if line.startswith("db") and line[2 : line.index(":")] != "31":
                    copied_content_is_equal(endpoint, int(line[2 : line.index(":")]), 31)
                    endpoint.select(31)
                    endpoint.call("FLUSHDB")
    finally:
        server.stop()
