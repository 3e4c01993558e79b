"""Any sequence of commands, alone and in pipelines: replies of a plain client, and both sides equal after each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.migrate.dual.rig import rigged

from onetape.embedded import EmbeddedServer, server_binaries
from onetape.migrate.phases.phase import Phase

KEYS = st.sampled_from(["a:1", "a:2", "a:3", "free"])
OURS = st.sampled_from(["a:1", "a:2", "a:3"])
TEXT = st.sampled_from(["1", "2", "x", ""])


def _one(*parts: Any) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(*[part if isinstance(part, st.SearchStrategy) else st.just(part) for part in parts])


COMMANDS = st.one_of(
    _one("SET", KEYS, TEXT),
    _one("SET", KEYS, TEXT, "NX"),
    _one("SET", KEYS, TEXT, "EX", 100),
    _one("INCR", KEYS),
    _one("APPEND", KEYS, TEXT),
    _one("GETDEL", KEYS),
    _one("MSET", KEYS, TEXT, KEYS, TEXT),
    _one("MSETNX", OURS, TEXT, OURS, TEXT),
    _one("HSET", KEYS, TEXT, TEXT),
    _one("HINCRBY", KEYS, TEXT, 1),
    _one("HDEL", KEYS, TEXT),
    _one("HGETALL", KEYS),
    _one("RPUSH", KEYS, TEXT, TEXT),
    _one("LPOP", KEYS),
    _one("LMOVE", OURS, OURS, "LEFT", "RIGHT"),
    _one("LTRIM", KEYS, 0, 2),
    _one("SADD", KEYS, TEXT, TEXT),
    _one("SREM", KEYS, TEXT),
    _one("SMOVE", OURS, OURS, TEXT),
    _one("SUNIONSTORE", OURS, OURS, OURS),
    _one("ZADD", KEYS, 1, TEXT),
    _one("ZINCRBY", KEYS, 1, TEXT),
    _one("ZPOPMIN", KEYS),
    _one("ZUNIONSTORE", OURS, 2, OURS, OURS),
    _one("XADD", KEYS, "*", "f", TEXT),
    _one("XADD", KEYS, "MAXLEN", "~", 2, "*", "f", TEXT),
    _one("XTRIM", KEYS, "MAXLEN", 1),
    _one("XADD", KEYS, "9-*", "f", TEXT),
    _one("DEL", KEYS, KEYS),
    _one("EXPIRE", KEYS, 100),
    _one("PERSIST", KEYS),
    _one("RENAME", OURS, OURS),
    _one("COPY", OURS, OURS, "REPLACE"),
    _one("GET", KEYS),
    _one("MGET", KEYS, KEYS),
    _one("TYPE", KEYS),
    _one("PFADD", KEYS, TEXT),
    _one("PFCOUNT", KEYS),
    _one("SPOP", KEYS, 9),
    _one("BLPOP", OURS, OURS, "0.001"),
    _one("LMPOP", 2, OURS, OURS, "LEFT"),
    _one("EXISTS", KEYS, KEYS),
)
STEPS = st.lists(st.one_of(COMMANDS, st.lists(COMMANDS, max_size=5), st.just("phase"), st.just("forget")), max_size=25)


@pytest.fixture(scope="module", params=["valkey", "redis"])
def own_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    binaries = server_binaries()
    if request.param not in binaries:
        pytest.skip(f"no {request.param} server on this machine")
    with EmbeddedServer(binaries[request.param]) as server:
        yield server


def _told(reply: Any, command: Any) -> Any:
    if isinstance(reply, Exception):
        return str(reply).replace("n:", "a:").replace("pexpireat", "expire")
    if command[0] == "XADD" and "*" in command:
        return type(reply)
    return sorted(map(str, reply)) if command[0] == "SPOP" and reply else reply


@settings(max_examples=40)
@given(steps=STEPS)
def test_any_commands_reply_as_a_plain_client_and_leave_both_sides_equal(
    own_server: EmbeddedServer, steps: list[Any]
) -> None:
    redis.Redis(port=own_server.port).flushall()
    with rigged(own_server, Phase.DUAL_WRITING) as rig:
        plain, dual = redis.Redis(port=own_server.port, db=9), rig.dual()
        for step in steps:
            if step == "phase":
                rig.go(Phase.CUT_OVER if rig.version % 2 else Phase.DUAL_WRITING)
            elif step == "forget":
                dual.dual.exchange.forget()
            else:
                many = isinstance(step, list)
                replies = []
                for client in (plain, dual):
                    pipe = client.pipeline()
                    for command in step if many else [step]:
                        pipe.execute_command(*command)
                    if many:
                        replies.append(pipe.execute(raise_on_error=False))
                        continue
                    try:
                        replies.append([client.execute_command(*step)])
                    except redis.ResponseError as error:
                        replies.append([error])
                commands = step if many else [step]
                told = [[_told(r, c) for r, c in zip(each, commands, strict=True)] for each in replies]
                assert told[0] == told[1], step
            assert rig.differing() == [], step
        assert rig.diverged() == {}
        plain.close()
