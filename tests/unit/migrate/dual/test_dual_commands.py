"""Every write command: afterwards both sides are equal, and the caller gets what a plain client gets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from redis.exceptions import ResponseError
from tests.unit.migrate.dual.rig import Rig, rigged

from onetape.embedded import EmbeddedServer, server_binaries
from onetape.migrate.dual.commands import COMMANDS
from onetape.migrate.phases.phase import Phase
from onetape.migrate.wire.endpoint import Endpoint

# What is there before => the command. `~`: its reply is not the same twice.
CASES = """
=> SET a:k v
SET a:k old EX 1000 => SET a:k v
SET a:k old EX 1000 => SET a:k v KEEPTTL
SET a:k old => SET a:k v NX
=> SET a:k v XX
SET a:k old => SET a:k v GET
HSET a:k f v => SET a:k v GET
HSET a:k f v => SET a:k v
=> SET a:k v EX 100
=> SET a:k v PX 100000
=> SET a:k v PXAT 4102444800000
=> SET a:k v NX EX 100
=> SET a:k v EX 0
=> SETEX a:k 100 v
=> PSETEX a:k 100000 v
=> PSETEX a:k 0 v
SET a:k v => SETNX a:k w
=> SETNX a:k w
=> MSET a:k 1 a:l 2 a:m 3
SET a:l 1 => MSET a:k 1 other 5 a:l 2
SET a:l 1 => MSETNX a:k 1 a:l 2
=> MSETNX a:k 1 a:l 2
=> MSETEX 2 a:k 1 a:l 2 EX 100
SET a:k v => MSETEX 2 a:k 1 a:l 2 NX
SET a:k v => APPEND a:k w
SET a:k 5 => INCR a:k
SET a:k x => INCR a:k
SET a:k 5 EX 1000 => INCRBY a:k 7
SET a:k 5 => DECR a:k
SET a:k 5 => DECRBY a:k 7
SET a:k 5.1 => INCRBYFLOAT a:k 0.3
SET a:k v => GETDEL a:k
LPUSH a:k v => GETDEL a:k
SET a:k v => GETSET a:k w
SET a:k v => GETEX a:k
SET a:k v => GETEX a:k EX 100
SET a:k v EX 100 => GETEX a:k PERSIST
SET a:k v => SETRANGE a:k 5 w
SET a:k v => SETBIT a:k 70 1
SET a:k v => BITFIELD a:k SET u8 0 200 INCRBY i5 100 1
SET a:l abc; SET a:m xyz => BITOP XOR a:k a:l a:m
SET a:k v => DELIFEQ a:k v
SET a:k v => DELIFEQ a:k w
SET a:k v => DELEX a:k IFEQ v
=> PFADD a:k x y z
PFADD a:k x; PFADD a:k y => PFCOUNT a:k
PFADD a:k x; PFADD a:l y => PFCOUNT a:k a:l
PFADD a:k x; PFADD a:l y => PFMERGE a:k a:l
=> HSET a:k f v g w
HSET a:k f v => HSET a:k g w
SET a:k v => HSET a:k g w
HSET a:k f v => HMSET a:k g w f x
HSET a:k f v => HSETNX a:k f w
HSET a:k f v g w => HDEL a:k f
HSET a:k f v => HDEL a:k f
HSET a:k f 1 => HINCRBY a:k f 5
HSET a:k f 1 => HINCRBYFLOAT a:k f 0.1
HSET a:k f v => HEXPIRE a:k 100 FIELDS 1 f
HSET a:k f v => HPEXPIRE a:k 100000 FIELDS 1 f
HSET a:k f v => HEXPIREAT a:k 4102444800 FIELDS 1 f
HSET a:k f v => HPEXPIREAT a:k 4102444800000 FIELDS 1 f
HSET a:k f v; HEXPIRE a:k 100 FIELDS 1 f => HPERSIST a:k FIELDS 1 f
HSET a:k f v g w => HGETDEL a:k FIELDS 1 f
HSET a:k f v g w => HGETEX a:k EX 100 FIELDS 1 f
=> HSETEX a:k EX 100 FIELDS 2 f v g w
=> LPUSH a:k 1 2
RPUSH a:k 1 => RPUSH a:k 2 3
=> LPUSHX a:k 1
RPUSH a:k 1 => RPUSHX a:k 2
RPUSH a:k 1 2 3 => LPOP a:k
RPUSH a:k 1 2 3 => RPOP a:k 2
RPUSH a:k 1 => RPOP a:k
RPUSH a:k 1 2 3 => LSET a:k 1 x
RPUSH a:k 1 2 3 => LSET a:k 7 x
RPUSH a:k 1 2 3 => LTRIM a:k 1 -1
RPUSH a:k 1 2 1 => LREM a:k 0 1
RPUSH a:k 1 2 => LINSERT a:k BEFORE 2 x
RPUSH a:k 1 2; RPUSH a:l 3 => LMOVE a:k a:l LEFT RIGHT
RPUSH a:k 1 2 => RPOPLPUSH a:k a:l
RPUSH a:k 1 2 => RPOPLPUSH a:k a:k
RPUSH a:l 1 2 => LMPOP 2 a:k a:l LEFT COUNT 2
RPUSH a:l 1 2 => BLPOP a:k a:l 1
RPUSH a:l 1 2 => BRPOP a:k a:l 1
=> BLPOP a:k 0.01
RPUSH a:l 1 2 => BLMPOP 1 2 a:k a:l RIGHT
RPUSH a:k 1 2 => BLMOVE a:k a:l LEFT LEFT 1
RPUSH a:k 1 2 => BRPOPLPUSH a:k a:l 1
=> SADD a:k 1 2 x
SADD a:k 1 2 x => SREM a:k 1
~ SADD a:k 1 2 3 4 5 6 7 8 => SPOP a:k
~ SADD a:k 1 2 3 4 5 6 7 8 => SPOP a:k 5
SADD a:k 1 => SPOP a:k 5
=> SPOP a:k
SET a:k v => SPOP a:k
SADD a:k 1 2; SADD a:l 3 => SMOVE a:k a:l 1
SADD a:k 1 2; SADD a:l 2 3 => SUNIONSTORE a:m a:k a:l
SADD a:k 1 2; SADD a:l 2 3 => SINTERSTORE a:m a:k a:l
SADD a:k 1 2; SADD a:l 2 3 => SDIFFSTORE a:k a:k a:l
=> ZADD a:k 1 x 2 y
ZADD a:k 1 x => ZADD a:k GT CH 0 x 5 y
ZADD a:k 1 x => ZADD a:k INCR 2.5 x
ZADD a:k 1 x => ZINCRBY a:k 1.1 x
ZADD a:k 1 x 2 y => ZREM a:k x
ZADD a:k 1 x 2 y 3 z => ZPOPMIN a:k
ZADD a:k 1 x 2 y 3 z => ZPOPMAX a:k 2
ZADD a:l 1 x 2 y => BZPOPMIN a:k a:l 1
ZADD a:l 1 x 2 y => BZPOPMAX a:k a:l 1
ZADD a:l 1 x 2 y => ZMPOP 2 a:k a:l MIN
ZADD a:l 1 x 2 y => BZMPOP 1 2 a:k a:l MAX COUNT 2
ZADD a:k 1 x 2 y 3 z => ZREMRANGEBYRANK a:k 0 1
ZADD a:k 1 x 2 y 3 z => ZREMRANGEBYSCORE a:k 2 3
ZADD a:k 0 x 0 y 0 z => ZREMRANGEBYLEX a:k [x [y
ZADD a:k 1 x 2 y; ZADD a:l 2 x => ZUNIONSTORE a:m 2 a:k a:l
ZADD a:k 1 x 2 y; ZADD a:l 2 x => ZINTERSTORE a:m 2 a:k a:l WEIGHTS 1 2
ZADD a:k 1 x 2 y; ZADD a:l 2 x => ZDIFFSTORE a:m 2 a:k a:l
ZADD a:k 1 x 2 y => ZRANGESTORE a:m a:k 0 0
=> GEOADD a:k 13.3 38.1 p
GEOADD a:k 13.3 38.1 p => GEOSEARCHSTORE a:m a:k FROMMEMBER p BYRADIUS 10 km
GEOADD a:k 13.3 38.1 p => GEORADIUS a:k 13 38 100 km STORE a:m
GEOADD a:k 13.3 38.1 p => GEORADIUSBYMEMBER a:k p 100 km STOREDIST a:m
GEOADD a:k 13.3 38.1 p => GEORADIUS a:k 13 38 100 km
~ => XADD a:k * f v
~ XADD a:k 1-1 f v => XADD a:k * f v g w
~ XADD a:k 1-1 f v; XADD a:k 2-1 f v => XADD a:k MAXLEN ~ 1 * f v
~ XADD a:k 1-1 f v; XADD a:k 2-1 f v => XADD a:k MAXLEN 1 * f v
XADD a:k 1-1 f v => XADD a:k 2-1 f v
XADD a:k 1-1 f v => XADD a:k 1-* f v
XADD a:k 5-1 f v => XADD a:k 2-1 f v
=> XADD a:k NOMKSTREAM * f v
SET a:k v => XADD a:k * f v
XADD a:k 1-1 f v; XADD a:k 2-1 f v => XTRIM a:k MAXLEN 1
XADD a:k 1-1 f v; XADD a:k 2-1 f v => XTRIM a:k MAXLEN ~ 1
XADD a:k 1-1 f v; XADD a:k 2-1 f v => XTRIM a:k MINID = 2
XADD a:k 1-1 f v; XADD a:k 2-1 f v => XDEL a:k 1-1 7-7
XADD a:k 1-1 f v => XSETID a:k 9-9
XADD a:k 1-1 f v => XGROUP CREATE a:k g $
=> XGROUP CREATE a:k g $ MKSTREAM
XADD a:k 1-1 f v; XGROUP CREATE a:k g 0 => XGROUP SETID a:k g $
XADD a:k 1-1 f v; XGROUP CREATE a:k g 0 => XGROUP DESTROY a:k g
XADD a:k 1-1 f v; XGROUP CREATE a:k g 0 => XGROUP CREATECONSUMER a:k g c
XADD a:k 1-1 f v; XGROUP CREATE a:k g 0; XGROUP CREATECONSUMER a:k g c => XGROUP DELCONSUMER a:k g c
XADD a:k 1-1 f v; XGROUP CREATE a:k g 0 => XREADGROUP GROUP g c COUNT 1 STREAMS a:k >
XADD a:k 1-1 f v; XGROUP CREATE a:k g 0 => XREADGROUP GROUP g c BLOCK 10 STREAMS a:k >
XADD a:k 1-1 f v; XGROUP CREATE a:k g $ => XREADGROUP GROUP g c BLOCK 10 STREAMS a:k >
XADD a:k 1-1 f v; XGROUP CREATE a:k g 0; XREADGROUP GROUP g c STREAMS a:k > => XACK a:k g 1-1
XADD a:k 1-1 f v; XGROUP CREATE a:k g 0; XREADGROUP GROUP g c STREAMS a:k > => XCLAIM a:k g d 0 1-1
XADD a:k 1-1 f v; XGROUP CREATE a:k g 0; XREADGROUP GROUP g c STREAMS a:k > => XAUTOCLAIM a:k g d 0 0
XADD a:k 1-1 f v; XGROUP CREATE a:k g 0; XREADGROUP GROUP g c STREAMS a:k > => XACKDEL a:k g IDS 1 1-1
XADD a:k 1-1 f v; XADD a:k 2-1 f v => XDELEX a:k IDS 1 1-1
SET a:k v => DEL a:k
SET a:k v; RPUSH a:l 1 => DEL a:k a:l a:m other
SET a:k v => UNLINK a:k a:l
SET a:k v => EXPIRE a:k 100
SADD a:k v => EXPIRE a:k 100 NX
=> EXPIRE a:k 100
SADD a:k v => EXPIRE a:k -5
SADD a:k v => PEXPIRE a:k 100000
SADD a:k v => EXPIRE a:k nonsense
SADD a:k v => EXPIREAT a:k 4102444800
SADD a:k v => PEXPIREAT a:k 4102444800000
SET a:k v EX 100 => PERSIST a:k
SET a:k v EX 100; SET a:l w => RENAME a:k a:l
=> RENAME a:k a:l
SET a:k v; SET a:l w => RENAMENX a:k a:l
SET a:k v => RENAMENX a:k a:l
SET a:k v EX 100 => COPY a:k a:l
SET a:k v; SET a:l w => COPY a:k a:l REPLACE
RPUSH a:k 3 1 2 => SORT a:k STORE a:l
RPUSH a:k 3 1 2 => SORT a:k
=> APPEND a:k
=> SET a:k
=> LSET a:k 0 x
"""
SERVERS = server_binaries()
LINES = [line for line in CASES.splitlines() if line]


def _parsed(line: str) -> tuple[bool, list[list[str]], list[str]]:
    before, _, command = line.removeprefix("~ ").rpartition("=> ")
    return line.startswith("~"), [one.split() for one in before.split(";") if one.strip()], command.split()


def _run(client: Any, args: list[str]) -> Any:
    try:
        return client.execute_command(*args)
    except ResponseError as error:
        return re.sub(r"pexpireat|expire", "", str(error)).replace("n:", "a:")


@pytest.fixture(params=sorted(SERVERS))
def any_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(SERVERS[request.param]) as server:
        yield server


@pytest.fixture(params=[Phase.DUAL_WRITING, Phase.CUT_OVER])
def rig(any_server: EmbeddedServer, request: pytest.FixtureRequest) -> Any:
    with rigged(any_server, request.param) as rig:
        yield rig


def _check(rig: Rig, line: str, known: bool) -> None:
    random, setup, command = _parsed(line)
    plain = redis.Redis(port=rig.server.port, db=9)
    dual = rig.dual()
    first = rig.new if b'"cut_over"' in rig.new.get(rig.names.state) else rig.old
    for one in setup:
        _run(plain, one)
        if known:
            _run(dual, one)
        else:
            _run(first, [part.replace("a:", "n:") for part in one] if first is rig.new else one)
    wanted, got = _run(plain, command), _run(dual, command)
    assert random or got == wanted, f"{line}: the reply"
    if str(got).startswith(("unknown command", "wrong number of arg")):
        return  # nothing was carried out, and so nothing was made equal
    slack_ms = 0 if rig.endpoint.has_expire_time else 5  # Redis 6.2 tells only what is left
    written = _written(command)
    assert [part for part in rig.differing(slack_ms) if known or part in written] == [], f"{line}: the sides"
    keys = {key.decode() for key in plain.keys("a:*")}
    if known:
        assert {key.decode() for key in rig.old.keys("a:*")} == keys, line
    if not random:
        for key in keys:
            one, other = rig.content(9, key), rig.content(5, key)
            loose = re.search("XREADGROUP|XAUTOCLAIM|HP?EXPIRE |HSETEX|HGETEX", line)  # they tell times
            assert loose or not (known or key[2:] in written) or one.equals(other, 2000), f"{line}: {key}"
    assert rig.diverged() == {}, line
    plain.close()


def _written(command: list[str]) -> set[str]:
    found = COMMANDS[command[0]]
    try:
        if found.choose is not None and found.choose(command) == "read":
            return set()
        return {command[at][2:] for at, writes in found.places(command) if writes}
    except (IndexError, ValueError, StopIteration):
        return set()


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_after_every_write_both_sides_are_equal_and_the_reply_is_a_plain_clients(rig: Rig, known: bool) -> None:
    failed = []
    for line in LINES:
        for db in (9, 5):
            redis.Redis(port=rig.server.port, db=db).flushdb()
        for key in (*rig.new.keys("n:*"), rig.names.diverged):
            rig.new.delete(key)
        try:
            _check(rig, line, known)
        except AssertionError as error:
            failed.append(" | ".join(str(error).splitlines()[:3]))
    assert not failed, "\n".join(failed)


def test_the_table_has_every_command_of_every_server() -> None:
    missing, wrong = [], []
    for name, binary in SERVERS.items():
        with EmbeddedServer(binary) as server, Endpoint.connect(server.url) as endpoint:
            for told in endpoint.call("COMMAND"):
                command = told[0].decode().upper()
                subcommands = [one[2] for one in (told[9] if len(told) > 9 else [])]
                flags = {_text(flag) for group in [told[2], *subcommands] for flag in group}
                if command not in COMMANDS:
                    missing.append(f"{name}: {command}")
                elif "write" in flags and COMMANDS[command].way in ("read", "plain"):
                    if command not in ("CLUSTER", "FUNCTION"):  # they change no keys
                        wrong.append(f"{name}: {command}")
                elif told[3] and not COMMANDS[command].keys and command not in _NO_DATA:
                    wrong.append(f"{name}: {command} has keys")
    assert missing == []
    assert wrong == []


_NO_DATA = {"SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE", "CLUSTERSCAN", "WATCH"}


def test_every_write_command_of_the_table_has_a_case() -> None:
    tried = {_parsed(line)[2][0] for line in LINES}
    writes = {name for name, command in COMMANDS.items() if command.writes and command.way not in ("refuse", "flush")}
    assert writes - tried - {"RESTORE", "VADD", "VREM", "VSETATTR"} == set()


def _text(flag: Any) -> str:
    return flag.decode() if isinstance(flag, bytes) else str(flag)
