"""The table of read commands, held against what the servers themselves say."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from onetape.embedded import EmbeddedServer
from onetape.migrate.reader import reads

#: Arguments that make each command valid on one key, where the key alone is not enough. K stands for the key.
ARGUMENTS: dict[str, list[list[Any]]] = {
    "GETRANGE": [["K", 0, -1]],
    "SUBSTR": [["K", 0, -1]],
    "GETBIT": [["K", 1]],
    "BITPOS": [["K", 0], ["K", 1]],
    "BITFIELD_RO": [["K", "GET", "u8", 0]],
    "LCS": [["K", "K"], ["K", "K", "LEN"]],
    "HGET": [["K", "f"]],
    "HMGET": [["K", "f", "g"]],
    "HEXISTS": [["K", "f"]],
    "HSTRLEN": [["K", "f"]],
    "HSCAN": [["K", 0]],
    "HRANDFIELD": [["K"], ["K", 2, "WITHVALUES"]],
    **{name: [["K", "FIELDS", 2, "f", "g"]] for name in ("HTTL", "HPTTL", "HEXPIRETIME", "HPEXPIRETIME")},
    "LRANGE": [["K", 0, -1]],
    "LINDEX": [["K", 0]],
    "LPOS": [["K", "v"], ["K", "v", "COUNT", 0]],
    "SISMEMBER": [["K", "v"]],
    "SMISMEMBER": [["K", "v", "w"]],
    "SSCAN": [["K", 0]],
    "SRANDMEMBER": [["K"], ["K", 3]],
    "ZCOUNT": [["K", "-inf", "+inf"]],
    "ZLEXCOUNT": [["K", "-", "+"]],
    "ZSCORE": [["K", "v"]],
    "ZMSCORE": [["K", "v", "w"]],
    "ZRANK": [["K", "v"]],
    "ZREVRANK": [["K", "v"]],
    "ZSCAN": [["K", 0]],
    "ZRANDMEMBER": [["K"], ["K", 2]],
    "ZRANGE": [["K", 0, -1, "WITHSCORES"]],
    "ZREVRANGE": [["K", 0, -1]],
    "ZRANGEBYSCORE": [["K", "-inf", "+inf"]],
    "ZREVRANGEBYSCORE": [["K", "+inf", "-inf"]],
    "ZRANGEBYLEX": [["K", "-", "+"]],
    "ZREVRANGEBYLEX": [["K", "+", "-"]],
    "GEODIST": [["K", "a", "b"]],
    "GEOHASH": [["K", "a"]],
    "GEOPOS": [["K", "a"]],
    "GEOSEARCH": [["K", "FROMLONLAT", 1, 1, "BYRADIUS", 1, "km"]],
    "GEORADIUS_RO": [["K", 1, 1, 1, "km"]],
    "GEORADIUSBYMEMBER_RO": [],
    "XRANGE": [["K", "-", "+"]],
    "XREVRANGE": [["K", "+", "-"]],
    "XREAD": [["STREAMS", "K", "0"]],
    "XPENDING": [["K", "group"]],
    **{name: [[1, "K"]] for name in ("SINTERCARD", "ZINTER", "ZUNION", "ZDIFF", "ZINTERCARD")},
    "EVAL_RO": [["return redis.call('GET', KEYS[1])", 1, "K"]],
    "EVALSHA_RO": [],
    "FCALL_RO": [],
    "XINFO STREAM": [["K"]],
    "XINFO GROUPS": [["K"]],
    "XINFO CONSUMERS": [["K", "group"]],
}


def flagged(client: redis.Redis) -> list[str]:
    found = []
    for row in redis.Redis.execute_command(client, "COMMAND").values():
        names = [row["name"], *[sub[0].decode().replace("|", " ") for sub in row.get("subcommands", [])]]
        flags = [row["flags"], *[sub[2] for sub in row.get("subcommands", [])]]
        for name, flag in zip(names, flags, strict=True):
            if b"readonly" in flag or "readonly" in flag:
                found.append(name.upper())
    return found


def test_every_command_that_a_server_flags_as_reading_is_known(server: EmbeddedServer) -> None:
    with redis.Redis(port=server.port) as client:
        unknown = [name for name in flagged(client) if name not in reads.READS and name not in reads.KEYLESS]
    assert unknown == []


def test_a_missing_key_never_looks_like_one_that_is_there(server: EmbeddedServer) -> None:
    with redis.Redis(port=server.port) as client:
        known = set(flagged(client))
        for name in sorted(set(reads.READS) & known):
            for given in ARGUMENTS.get(name, [["K"]]):
                args = (*name.split(), *["missing" if arg == "K" else arg for arg in given])
                found = reads.find(args)
                assert found is not None and [args[place] for place in found.places] == ["missing"] * given.count("K")
                try:
                    reply = client.execute_command(*args)
                except redis.ResponseError as error:
                    assert "no such key" in str(error) or "NOGROUP" in str(error), (args, error)
                    reply = error
                assert reads.bare(reply), (args, reply)
                if name in reads.SURE:
                    assert reads.missing(name, reply), (args, reply)


def test_what_tells_for_sure_tells_a_key_that_is_there(server: EmbeddedServer) -> None:
    with redis.Redis(port=server.port) as client:
        client.set("string", "")
        client.hset("hash", "", "")
        client.rpush("list", "")
        client.sadd("set", "")
        client.zadd("zset", {"": 0})
        client.set("short", "x", px=1_000_000)
        homes = {"H": "hash", "L": "list", "S": "set", "Z": "zset"}
        for name in sorted(reads.SURE):
            key = "string" if name == "GET" else homes.get(name[0] if name[1] != "E" else "", "string")
            for one in (key, "short") if "T" in name and name not in ("GET", "LLEN") and key == "string" else (key,):
                try:
                    reply = client.execute_command(name, one)
                except redis.ResponseError as error:
                    assert "unknown command" in str(error)
                    continue
                assert not reads.missing(name, reply), (name, one, reply)


@pytest.mark.parametrize(
    ("args", "places"),
    [
        (("XREAD", "COUNT", 1, "streams", "a", "b", "0", "0"), [4, 5]),
        (("OBJECT", b"encoding", "a"), [2]),
        (("OBJECT ENCODING", "a"), [1]),
        (("MEMORY USAGE", "a", "SAMPLES", 1), [1]),
        (("ZUNION", 2, "a", "b", "WITHSCORES"), [2, 3]),
        (("sort", "a", "LIMIT", 0, 1), [1]),
    ],
)
def test_keys_are_found_where_they_stand(args: tuple[Any, ...], places: list[int]) -> None:
    found = reads.find(args)
    assert found is not None and list(found.places) == places


@pytest.mark.parametrize(
    "args",
    [("SET", "a", "b"), ("SORT", "a", "STORE", "b"), ("GEORADIUS", "a", 1, 1, 1, "km", "STORE", "b"), ("XREAD",),
     ("ZUNION", 5, "a"), ("ZUNION", "x", "a"), ("OBJECT", "HELP"), ("GET",)],
)  # fmt: skip
def test_what_is_no_read_of_keys_is_none(args: tuple[Any, ...]) -> None:
    assert reads.find(args) is None
