"""Verify between servers: each damage on the other side is named, whatever the versions; and what a bridge promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from tests.other_servers import binary

from onetape.embedded import EmbeddedServer
from onetape.errors import EndpointError
from onetape.migrate import Migration
from onetape.migrate.keys import content
from onetape.migrate.plans.plan import Plan
from onetape.migrate.remote import OTHER_SERVER, Bridge, connect_both
from onetape.migrate.remote.cluster import key_of, slot_of
from onetape.migrate.wire.endpoint import pack

PLAN = Plan.parse(
    'name = "proof"\ntarget_db = 1\ntimezone = "UTC"\n'
    '[[rule]]\nstep = "all"\nsource_db = 0\npattern = "old:{name}"\ntarget = "new:{name}"\n'
)


def _fill(port: int) -> None:
    client = redis.Redis(port=port)
    for i in range(30):
        client.set(f"old:s{i}", f"{i}", px=3_600_000 if i % 2 else None)
        client.hset(f"old:h{i}", mapping={"a": i, "b": "x" * 90})
        client.rpush(f"old:l{i}", *range(i + 1))
        client.sadd(f"old:m{i}", *range(i + 1), "x")
        client.zadd(f"old:z{i}", {"a": i / 3, "b": 2})
        client.xadd(f"old:x{i}", {"a": i}, id="1-1")


#: What is damaged → the commands that do it, and what verify must say.
DAMAGES = {
    "another value": ([("SET", "new:s2", "9")], "other content in a string"),
    "an expiry that is longer": ([("PEXPIREAT", "new:s3", 4_000_000_000_000)], "expiry"),
    "an expiry that is gone": ([("PERSIST", "new:s5")], "expiry"),
    "an expiry where none was": ([("PEXPIREAT", "new:s2", 4_000_000_000_000)], "expiry"),
    "a field of a hash": ([("HSET", "new:h2", "a", "other")], "other content in a hash"),
    "a field more": ([("HSET", "new:h2", "c", "1")], "length 2 against 3"),
    "an element of a list": ([("LSET", "new:l4", 2, "other")], "other content in a list"),
    "the order of a list": ([("LMOVE", "new:l4", "new:l4", "LEFT", "RIGHT")], "other content in a list"),
    "a member of a set": ([("SREM", "new:m4", "x"), ("SADD", "new:m4", "y")], "other content in a set"),
    "a score": ([("ZADD", "new:z4", "7.5", "a")], "other content in a zset"),
    "an entry of a stream": ([("XADD", "new:x4", "2-1", "a", "1")], "length 1 against 2"),
    "a group of a stream": ([("XGROUP", "CREATE", "new:x4", "readers", "0")], "other content in a stream"),
    "another type": ([("DEL", "new:s2"), ("RPUSH", "new:s2", "2")], "type string against list"),
    "a key that is gone": ([("DEL", "new:z7")], "missing in the target"),
}


@pytest.mark.parametrize("names", [("redis", "redis"), ("redis6", "redis"), ("redis", "valkey")], ids="-to-".join)
def test_each_damage_is_named(tmp_path: Path, names: tuple[str, str]) -> None:
    with EmbeddedServer(binary(names[0])) as source, EmbeddedServer(binary(names[1])) as target:
        _fill(source.port)
        migration = Migration(source.url, target_url=target.url, plan=PLAN, ledger_path=tmp_path / "l")
        migration.backfill()
        assert migration.verify(rounds=1).verdict == "converged"
        there = redis.Redis(port=target.port, db=1)
        for told, (commands, why) in DAMAGES.items():
            key = next(part for part in commands[0] if part.startswith("new:"))
            before, left = there.dump(key), there.execute_command("PEXPIRETIME", key)
            for command in commands:
                there.execute_command(*command)
            result = migration.verify(rounds=1)
            assert result.verdict == "not proven", told
            assert len(result.differences) == 1 and why in result.differences[0], (told, result.differences)
            there.restore(key, max(0, left), before, replace=True, absttl=True)
        there.set("new:nobody's", "1")
        assert "has no source" in migration.verify(rounds=1).skips[0]
        there.delete("new:nobody's")
        assert migration.verify(rounds=1).verdict == "converged"


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    with (
        EmbeddedServer(binary("redis")) as source,
        EmbeddedServer(binary("valkey")) as target,
        connect_both(source.url, target.url, writable=True) as bridge,
    ):
        redis.Redis(port=source.port).set("a", "here")
        redis.Redis(port=target.port).set("a", "there")
        yield bridge


def test_a_bridge_reaches_either_server_by_the_number_of_the_database(bridge: Bridge) -> None:
    bridge.select(0)
    assert (bridge.call("GET", "a"), bridge.server) == (b"here", "redis")
    bridge.select(OTHER_SERVER)
    assert (bridge.call("GET", "a"), bridge.server) == (b"there", "valkey")
    commands = [("SELECT", 0), ("GET", "a"), ("SELECT", OTHER_SERVER), ("GET", "a"), ("SELECT", 3), ("GET", "a")]
    assert bridge.pipeline(commands) == [b"OK", b"here", b"OK", b"there", b"OK", None]
    bridge.send(b"".join(pack(*command) for command in commands))
    assert bridge.receive(3) == [b"OK", b"here", b"OK"]
    assert bridge.receive(3) == [b"there", b"OK", None]


def test_the_source_of_a_bridge_cannot_be_written(bridge: Bridge) -> None:
    bridge.select(0)
    for write in (lambda: bridge.call("SET", "b", 1), lambda: bridge.pipeline([("DEL", "a")])):
        with pytest.raises(EndpointError, match="may not write"):
            write()
    bridge.select(OTHER_SERVER)
    bridge.call("SET", "b", 1)


@pytest.mark.parametrize("side", [0, OTHER_SERVER])
def test_reading_both_servers_together_sees_a_change_on_either(
    bridge: Bridge, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [(0, b"a"), (OTHER_SERVER, b"a")]
    found = content.read_together(bridge, places)
    assert found is not None and found[0] is not None and not found[0].same(found[1])  # type: ignore[arg-type]
    port = int((bridge.target if side else bridge.source).address.rpartition(":")[2])
    writer = redis.Redis(port=port)
    read = content.read_content

    def racing(endpoint: Bridge, key: bytes) -> object:
        seen = read(endpoint, key)
        writer.incr("n")
        writer.set("a", f"changed {writer.get('n')!r}")
        return seen

    monkeypatch.setattr(content, "read_content", racing)
    assert content.read_together(bridge, places) is None


def test_keys_go_to_the_slots_that_a_cluster_gives_them() -> None:
    with EmbeddedServer(binary("redis"), {"cluster-enabled": "yes"}) as server:
        client = redis.Redis(port=server.port)
        names = [b"123456789", b"{ES}:rsi", b"x{ES}y{NQ}", b"{}empty", b"}{open", b"a{b", b"\xff\x00", b"", b"{{a}}"]
        for name in names:
            assert slot_of(name) == client.execute_command("CLUSTER", "KEYSLOT", name), name
    assert slot_of(b"{ES}:rsi") == slot_of(b"vol:{ES}")
    assert key_of(("XINFO", "STREAM", "s")) == b"s" and key_of(("GET", b"k")) == b"k"
    assert key_of(("MEMORY", "USAGE", "k")) == b"k" and key_of(("DBSIZE",)) is None
