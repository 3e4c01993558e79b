"""The reading client: which side answers in which phase, what is counted, and that nothing beside a read touches it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from tests.waiting import waited_for

from onetape.embedded import EmbeddedServer
from onetape.errors import CommandUnmapped, ConfigInvalid, EndpointError, StateMoved
from onetape.migrate.phases import state as states
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import Names
from onetape.migrate.plans.plan import Plan
from onetape.migrate.reader import Reader, ReaderRedis, view
from onetape.migrate.reader import core as cores
from onetape.migrate.wire.endpoint import Endpoint

PLAN = Plan.load()
NAMES = Names.of(PLAN)
OLD, NEW = "indicators:NSE:INFY:rsi", "ind:ta:NSE:INFY:rsi"


class Operator:
    """Moves the state, and knows the databases."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.url = server.url
        self.version = 0
        self.db = {db: redis.Redis(port=server.port, db=db) for db in (0, 1, 2, 5)}

    def move(self, phase: Phase, **fields: Any) -> None:
        with Endpoint.connect(self.url) as endpoint:
            self.version = states.change(endpoint, PLAN, self.version, phase=phase, **fields).version


@pytest.fixture
def operator(server: EmbeddedServer) -> Iterator[Operator]:
    found = Operator(server)
    yield found
    for client in found.db.values():
        client.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every read asks for the state, so that a test need not wait."""
    monkeypatch.setattr(view, "REFRESH_S", 0.0)


# Which side answers


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("db", "name"), [(5, OLD), (1, NEW)])
def test_each_phase_has_its_side_for_the_old_name_and_for_the_new_one(
    server: EmbeddedServer, operator: Operator, db: int, name: str
) -> None:
    operator.db[5].set(OLD, "old")
    operator.db[1].set(NEW, "new")
    with ReaderRedis(port=server.port, db=db) as reader:
        assert reader.get(name) == b"old"  # no migration was started
        for phase in Phase:
            operator.move(phase, read_share=1.0)
            expected = b"new" if phase.at_least(Phase.READS_SWITCHED) else b"old"
            assert reader.get(name) == expected, phase
            assert reader.status().phase is phase
        for phase in reversed(list(Phase)):  # and every step back
            operator.move(phase, read_share=1.0)
            expected = b"new" if phase.at_least(Phase.READS_SWITCHED) else b"old"
            assert reader.get(name) == expected, phase


@pytest.mark.usefixtures("at_once")
def test_a_key_that_is_not_there_yet_falls_back_and_is_counted(server: EmbeddedServer, operator: Operator) -> None:
    operator.db[5].set(OLD, "old")
    operator.move(Phase.READS_SWITCHED, read_share=1.0)
    with ReaderRedis(port=server.port, db=5) as reader:
        assert reader.get(OLD) == b"old"
        assert reader.get("indicators:NONE:rsi") is None
        operator.db[1].set(NEW, "new")
        assert reader.get(OLD) == b"new"
        stats = reader.status().stats
        assert (stats.reads, stats.new_reads, stats.old_fallbacks, stats.misses) == (3, 1, 1, 1)
        assert reader.fallback_rate() == 0.5
        assert stats.new_read_percentage == 50.0


@pytest.mark.usefixtures("at_once")
def test_after_the_cutover_what_the_new_side_lacks_is_missing(server: EmbeddedServer, operator: Operator) -> None:
    operator.db[5].set(OLD, "deleted by a writer of new names")
    operator.move(Phase.CUT_OVER, read_share=1.0)
    with ReaderRedis(port=server.port, db=5) as reader:
        assert reader.get(OLD) is None
        assert reader.hget(OLD, "field") is None
        assert reader.status().stats.old_fallbacks == 0


@pytest.mark.usefixtures("at_once")
def test_an_empty_answer_of_a_key_that_is_there_is_no_fallback(server: EmbeddedServer, operator: Operator) -> None:
    operator.db[2].hset("volume_state:7", mapping={"total": 1, "gone": 2})
    operator.db[1].hset("vol:state:7", mapping={"total": 1})
    operator.db[2].rpush("volume_averages:X", 1, 2, 3)
    operator.db[1].rpush("vol:baseline:X", 1)
    operator.db[2].set("volume:baseline:E", "not empty")
    operator.db[1].set("volume:baseline:E", "")
    operator.move(Phase.READS_SWITCHED, read_share=1.0)
    with ReaderRedis(port=server.port, db=2) as reader:
        assert reader.hget("volume_state:7", "gone") is None
        assert reader.hmget("volume_state:7", "gone", "away") == [None, None]
        assert reader.hexists("volume_state:7", "gone") is False
        assert reader.lrange("volume_averages:X", 1, 2) == []
        assert reader.get("volume:baseline:E") == b""
        assert reader.strlen("volume:baseline:E") == 0
        assert reader.status().stats.old_fallbacks == 0
        operator.db[1].delete("vol:state:7", "vol:baseline:X")
        assert reader.hget("volume_state:7", "gone") == b"2"
        assert reader.hmget("volume_state:7", "gone", "away") == [b"2", None]
        assert reader.lrange("volume_averages:X", 1, 2) == [b"2", b"3"]
        assert reader.lindex("volume_averages:X", 2) == b"3"
        assert reader.status().stats.old_fallbacks == 4
        assert reader.hget("volume_state:none", "a") is None
        assert reader.status().stats.misses == 1


@pytest.mark.usefixtures("at_once")
def test_a_new_key_of_another_type_does_not_break_a_read_while_the_old_one_is_the_truth(
    server: EmbeddedServer, operator: Operator
) -> None:
    operator.db[2].hset("volume_state:7", mapping={"total": 1})
    operator.db[1].set("vol:state:7", "somebody else's")
    operator.move(Phase.READS_SWITCHED, read_share=1.0)
    with ReaderRedis(port=server.port, db=2) as reader:
        assert reader.hgetall("volume_state:7") == {b"total": b"1"}
        assert (reader.status().stats.old_fallbacks, reader.status().stats.errors) == (1, 1)
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            reader.get("volume_state:7") if operator.db[1].delete("vol:state:7") else None


@pytest.mark.usefixtures("at_once")
def test_the_share_of_reads_is_followed_live(server: EmbeddedServer, operator: Operator) -> None:
    operator.db[5].set(OLD, "old")
    operator.db[1].set(NEW, "new")
    with ReaderRedis(port=server.port, db=5) as reader:
        for share in (0.0, 0.31, 1.0, 0.5):
            operator.move(Phase.READS_SWITCHED, read_share=share)
            reader.get(OLD)
            for drawn in (0.0, 0.3, 0.31, 0.99):
                reader._core.chance = lambda drawn=drawn: drawn
                assert reader.get(OLD) == (b"new" if drawn < share else b"old"), (share, drawn)


def test_a_change_takes_effect_within_a_quarter_of_a_second_also_for_a_client_that_idled(
    server: EmbeddedServer, operator: Operator
) -> None:
    operator.db[5].set(OLD, "old")
    operator.db[1].set(NEW, "new")
    operator.move(Phase.VERIFIED)
    with ReaderRedis(port=server.port, db=5) as reader:
        assert reader.get(OLD) == b"old"
        operator.move(Phase.CUT_OVER)
        moved = time.monotonic()
        waited_for(lambda: reader.get(OLD) == b"new", view.REFRESH_S + 5)
        operator.move(Phase.VERIFIED)
        time.sleep(view.REFRESH_S + 0.01)
        assert reader.get(OLD) == b"old"  # the very first read after the pause
        assert moved


def test_reads_that_race_with_changes_of_phase_find_one_side_or_the_other_and_never_nothing(
    server: EmbeddedServer, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "REFRESH_S", 0.002)
    operator.db[5].hset(OLD, mapping={"side": "old"})
    operator.db[1].hset(NEW, mapping={"side": "new"})
    operator.move(Phase.VERIFIED)
    wrong: list[Any] = []
    done = threading.Event()
    with ReaderRedis(port=server.port, db=5, decode_responses=True) as reader:

        def read() -> None:
            while not done.is_set():
                try:
                    got = [reader.hget(OLD, "side"), reader.hgetall(OLD).get("side"), *_piped(reader)]
                except (redis.RedisError, StateMoved) as error:
                    got = [error]
                wrong.extend(one for one in got if one not in ("old", "new"))

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(30):
            operator.move([Phase.READS_SWITCHED, Phase.CUT_OVER, Phase.READS_SWITCHED, Phase.VERIFIED][turn % 4],
                          read_share=(turn % 3) / 2)  # fmt: skip
            time.sleep(0.01)
        done.set()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert reader.status().stats.new_reads and reader.status().stats.old_reads


def _listed(client: redis.Redis) -> None:
    """Put a list where the state is, in one step: a reader that looks between two would find it gone."""
    with client.pipeline(transaction=True) as pipe:
        pipe.delete(NAMES.state).rpush(NAMES.state, 1).execute()


def _piped(reader: ReaderRedis) -> list[Any]:
    with reader.pipeline() as pipe:
        one, two = pipe.hget(OLD, "side").hget(OLD, "side").execute()
    assert one == two  # one side for the whole pipeline
    return [one, two]


# Commands of all kinds


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("phase", [Phase.DUAL_WRITING, Phase.READS_SWITCHED, Phase.CUT_OVER])
@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
def test_answers_have_the_shape_that_a_plain_client_gives(
    server: EmbeddedServer, operator: Operator, phase: Phase, decode: bool, protocol: int
) -> None:
    two, one = operator.db[2], operator.db[1]
    for client, prefix in ((two, "volume_state:"), (one, "vol:state:")):
        client.set(prefix + "s", "text")
        client.hset(prefix + "h", mapping={"a": 1, "b": 2})
        client.rpush(prefix + "l", 1, 2, 3)
        client.sadd(prefix + "t", "x", "y")
        client.zadd(prefix + "z", {"x": 1.5, "y": 2})
        client.xadd(prefix + "x", {"price": 1}, id="5-1")
        client.set(prefix + "e", "v", ex=1000)
    reads: list[Callable[[Any, str], Any]] = [
        lambda c, p: c.get(p + "s"),
        lambda c, p: c.mget(p + "s", p + "none", "unrelated"),
        lambda c, p: c.exists(p + "s", p + "h", p + "none"),
        lambda c, p: c.getrange(p + "s", 1, 2),
        lambda c, p: c.hgetall(p + "h"),
        lambda c, p: c.hmget(p + "h", ["a", "none"]),
        lambda c, p: sorted(c.hscan_iter(p + "h")),
        lambda c, p: c.lrange(p + "l", 0, -1),
        lambda c, p: c.smembers(p + "t"),
        lambda c, p: c.sinter(p + "t", p + "t"),
        lambda c, p: c.zrange(p + "z", 0, -1, withscores=True),
        lambda c, p: c.zscore(p + "z", "x"),
        lambda c, p: c.zunion([p + "z", p + "z"], withscores=True),
        lambda c, p: c.xrange(p + "x"),
        lambda c, p: c.xread({p + "x": "0"}),
        lambda c, p: c.xread({p + "x": "0"}, block=50),
        lambda c, p: c.xinfo_stream(p + "x")["length"],
        lambda c, p: c.type(p + "s"),
        lambda c, p: c.ttl(p + "e") > 900,
        lambda c, p: c.object("encoding", p + "s"),
        lambda c, p: c.memory_usage(p + "s") > 0,
        lambda c, p: c.sort(p + "l", desc=True),
        lambda c, p: c.execute_command("HGET", p + "h", "a"),
    ]
    operator.move(phase, read_share=1.0)
    plain = redis.Redis(port=server.port, db=2, decode_responses=decode, protocol=protocol)
    with plain, ReaderRedis(port=server.port, db=2, decode_responses=decode, protocol=protocol) as reader:
        for number, read in enumerate(reads):
            assert read(reader, "volume_state:") == read(plain, "volume_state:"), number
        assert (reader.status().stats.new_reads > 0) == phase.at_least(Phase.READS_SWITCHED)
        for transaction in (True, False):
            both = [client.pipeline(transaction) for client in (reader, plain)]
            for pipe in both:
                pipe.get("volume_state:s").hgetall("volume_state:h").get("unrelated").mget("volume_state:s", "u")
                pipe.set("unrelated:own", 1).lrange("volume_state:none", 0, -1)
            assert both[0].execute() == both[1].execute()
        pipe = reader.pipeline()
        pipe.get("volume_state:s").get("volume_state:h")
        assert isinstance(pipe.execute(raise_on_error=False)[1], redis.ResponseError)
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            reader.pipeline().get("volume_state:h").execute()
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            reader.get("volume_state:h")


@pytest.mark.usefixtures("at_once")
def test_binary_keys_and_values_come_through(server: EmbeddedServer, operator: Operator) -> None:
    key, value = b"indicators:\xff\x00\r\n:rsi", bytes(range(256))
    operator.db[1].set(b"ind:ta:\xff\x00\r\n:rsi", value)
    operator.move(Phase.CUT_OVER)
    with ReaderRedis(port=server.port, db=5) as reader:
        assert reader.get(key) == value
        assert reader.get(memoryview(key)) == value
        assert reader.mget(key, bytearray(key) and key) == [value, value]


@pytest.mark.usefixtures("at_once")
def test_several_keys_of_which_the_new_side_has_a_part_are_read_where_all_are(
    server: EmbeddedServer, operator: Operator
) -> None:
    operator.db[2].sadd("volume_state:a", 1)
    operator.db[2].sadd("volume_state:b", 2)
    operator.db[1].sadd("vol:state:a", 1)
    operator.move(Phase.READS_SWITCHED, read_share=1.0)
    with ReaderRedis(port=server.port, db=2) as reader:
        assert reader.sunion("volume_state:a", "volume_state:b") == {b"1", b"2"}
        assert reader.status().stats.old_fallbacks == 1
        operator.db[1].sadd("vol:state:b", 2)
        assert reader.sunion("volume_state:a", "volume_state:b") == {b"1", b"2"}
        assert reader.sunion("volume_state:a", "volume_state:none") == {b"1"}
        assert reader.status().stats.old_fallbacks == 1
        assert reader.sunion("volume_state:a", "own:key") == {b"1"}  # no one database on the new side
        operator.move(Phase.CUT_OVER)
        with pytest.raises(CommandUnmapped, match=r"SUNION.*several databases"):
            reader.sunion("volume_state:a", "own:key")


@pytest.mark.usefixtures("at_once")
def test_a_scan_stays_on_the_side_it_began_on(server: EmbeddedServer, operator: Operator) -> None:
    mapping = {f"field-{i}": "v" * 70 for i in range(3000)}
    operator.db[2].hset("volume_state:h", mapping=mapping)
    operator.db[1].hset("vol:state:h", mapping=dict(reversed(mapping.items())))
    operator.move(Phase.READS_SWITCHED, read_share=0.5)
    with ReaderRedis(port=server.port, db=2, decode_responses=True) as reader:
        for side in (0.1, 0.9):
            first = [side]
            reader._core.chance = lambda first=first, side=side: first.pop() if first else 1 - side
            assert {name for name, _ in reader.hscan_iter("volume_state:h", count=50)} == set(mapping)
        assert reader.status().stats.new_reads and reader.status().stats.old_reads


@pytest.mark.usefixtures("at_once")
def test_a_stream_that_is_waited_for_is_followed_across_the_switch(server: EmbeddedServer, operator: Operator) -> None:
    operator.db[0].xadd("ticks:X", {"n": 0}, id="1-0")
    operator.db[1].xadd("ticks:X", {"n": 0}, id="1-0")
    operator.move(Phase.VERIFIED)
    got: list[Any] = []
    with ReaderRedis(port=server.port, decode_responses=True) as reader:
        thread = threading.Thread(target=lambda: got.append(reader.xread({"ticks:X": "$"}, block=0)))
        thread.start()
        waited_for(lambda: any(c["cmd"] == "xread" for c in operator.db[0].client_list()))
        operator.move(Phase.CUT_OVER)
        time.sleep(0.7)
        operator.db[1].xadd("ticks:X", {"n": 1}, id="2-0")
        thread.join(60)
        assert got and got[0] == [["ticks:X", [("2-0", {"n": "1"})]]]
        started = time.monotonic()
        assert not reader.xread({"ticks:X": "2-0"}, block=700)
        assert time.monotonic() - started > 0.6


def test_keys_that_the_plan_leaves_alone_and_keyless_commands_are_a_plain_client(
    server: EmbeddedServer, operator: Operator
) -> None:
    operator.move(Phase.CUT_OVER)
    with ReaderRedis(port=server.port, db=5) as reader:
        assert reader.set("own", 1) and reader.get("own") == b"1" and reader.incr("own") == 2
        assert reader.keys() == [b"own"] and reader.dbsize() == 1
        assert reader.publish("indicators:X:rsi", "an alert") == 0
        with reader.lock("own-lock", timeout=60):
            assert reader.exists("own-lock")
        script = reader.register_script("return redis.call('GET', KEYS[1])")
        assert script(keys=["own"]) == b"2"
        assert reader.status().stats.reads == 0


def test_writes_of_keys_with_two_sides_are_refused_by_name_or_passed_and_counted(
    server: EmbeddedServer, operator: Operator
) -> None:
    with ReaderRedis(port=server.port, db=5) as reader:
        for write in (
            lambda: reader.set(OLD, 1),
            lambda: reader.delete("own", OLD),
            lambda: reader.eval("return 1", 1, OLD),
            lambda: reader.pipeline().set(OLD, 1),
            lambda: reader.pipeline().watch(OLD),
            lambda: reader.xreadgroup("g", "c", {OLD: ">"}),
            lambda: reader.execute("SET", OLD, 1),
        ):
            with pytest.raises(CommandUnmapped, match="indicators:NSE:INFY:rsi"):
                write()
        assert operator.db[5].dbsize() == 0
    with ReaderRedis(port=server.port, db=5, on_write="pass") as reader:
        reader.set(OLD, 1)
        assert operator.db[5].get(OLD) == b"1"
        assert reader.status().stats.passed == 1
    with pytest.raises(ConfigInvalid, match="on_write"):
        ReaderRedis(on_write="drop")  # type: ignore[arg-type]


def test_a_reader_empties_no_database_of_the_plan_whatever_it_lets_pass(
    server: EmbeddedServer, operator: Operator
) -> None:
    operator.db[5].set(OLD, "v")
    own = redis.Redis(port=server.port, db=9)
    for on_write in ("refuse", "pass"):
        with ReaderRedis(port=server.port, db=5, on_write=on_write) as reader:  # type: ignore[arg-type]
            for empty in (reader.flushdb, reader.flushall, lambda: reader.swapdb(5, 9), reader.pipeline().flushdb):
                with pytest.raises(CommandUnmapped, match="only reads"):
                    empty()
            with ReaderRedis(port=server.port, db=9, on_write=on_write) as other:  # type: ignore[arg-type]
                own.set("own", "v")
                assert other.flushdb()
                assert own.dbsize() == 0
    assert operator.db[5].get(OLD) == b"v"
    own.close()


@pytest.mark.usefixtures("at_once")
def test_a_reader_beside_a_client_keeps_off_its_connections(server: EmbeddedServer, operator: Operator) -> None:
    operator.db[5].set(OLD, "old")
    operator.db[1].set(NEW, "new")
    operator.move(Phase.CUT_OVER)
    with redis.Redis(port=server.port, db=5, decode_responses=True) as client, Reader(client, PLAN) as reader:
        assert reader.get(OLD) == "new" and client.get(OLD) == "old"
        assert reader.execute("GET", NEW, db=1) == "new"
        assert reader.execute("GET", "own", db=2) is None
    with Reader(server.url + "/5", "trading_system", name="charts") as reader:
        assert reader.get(OLD) == b"new"
        waited_for(lambda: operator.db[1].hlen(NAMES.clients) == 1)
        (told,) = operator.db[1].hvals(NAMES.clients)
        assert json.loads(told)["name"] == "charts"
        names = {client["name"] for client in operator.db[0].client_list()}
        assert f"onetape-reader-{reader.status().name}" in names


@pytest.mark.usefixtures("at_once")
def test_urls_single_connections_and_blocking_pools_work(server: EmbeddedServer, operator: Operator) -> None:
    operator.db[1].set(NEW, "new")
    operator.move(Phase.CUT_OVER)
    pool = redis.BlockingConnectionPool(port=server.port, db=5, max_connections=2, timeout=3)
    clients = [
        ReaderRedis.from_url(server.url + "/5", plan=PLAN),
        ReaderRedis(port=server.port, db=5, single_connection_client=True),
        ReaderRedis(connection_pool=pool, plan=PLAN),
        ReaderRedis(port=server.port, db=5).client(),
    ]
    for client in clients:
        assert client.get(OLD) == b"new"
        assert client.pipeline().get(OLD).execute() == [b"new"]
        client.close()
        assert client.get(OLD) == b"new"  # as redis-py: closed connections come back
        client.close()
    pool.disconnect()


# The state


def test_another_plan_of_the_same_name_is_refused_at_the_first_read(server: EmbeddedServer, operator: Operator) -> None:
    operator.move(Phase.READS_SWITCHED)
    with ReaderRedis(port=server.port, db=7, plan=PLAN.with_source("indicators", 7)) as reader:
        with pytest.raises(StateMoved, match="another plan"):
            reader.get(OLD)
        with pytest.raises(StateMoved, match="another plan"):
            reader.get(OLD)


@pytest.mark.usefixtures("at_once")
def test_a_state_that_is_gone_or_spoiled_keeps_the_phase_and_is_said(
    server: EmbeddedServer, operator: Operator
) -> None:
    operator.db[5].set(OLD, "old")
    operator.db[1].set(NEW, "new")
    operator.move(Phase.CUT_OVER)
    with ReaderRedis(port=server.port, db=5) as reader:
        assert reader.get(OLD) == b"new"
        for spoil, why, value in (
            (lambda: operator.db[1].set(NAMES.state, "{"), "cannot be read", b"new"),
            (lambda: _listed(operator.db[1]), "WRONGTYPE", b"new"),
            # The state was among the new keys: what mirrored them until then counts again.
            (lambda: operator.db[1].delete(NAMES.state), "gone", b"old"),
        ):
            spoil()
            waited_for(lambda why=why: reader.get(OLD) and why in reader.status().trouble)
            assert reader.get(OLD) == value
        operator.version = 0
        operator.move(Phase.VERIFIED)
        assert reader.get(OLD) == b"old" and reader.status().trouble == ""


def test_a_user_who_may_not_read_the_state_is_told_so(fresh_server: EmbeddedServer) -> None:
    with redis.Redis(port=fresh_server.port) as admin:
        admin.acl_setuser("reader", enabled=True, passwords=["+pw"], keys=["indicators:*", "ind:*"], commands=["+@all"])
    with (
        ReaderRedis(port=fresh_server.port, db=5, username="reader", password="pw") as reader,
        pytest.raises(EndpointError, match="state cannot be read"),
    ):
        reader.get(OLD)


@pytest.mark.usefixtures("at_once")
def test_new_first_without_a_state_is_for_those_who_ask_for_it(server: EmbeddedServer, operator: Operator) -> None:
    operator.db[5].set(OLD, "old")
    with ReaderRedis(port=server.port, db=5, without_state="new_first") as reader:
        assert reader.get(OLD) == b"old"
        operator.db[1].set(NEW, "new")
        assert reader.get(OLD) == b"new"
        operator.move(Phase.DUAL_WRITING)
        assert reader.get(OLD) == b"old"


# Heartbeats and shadow reads


def test_the_heartbeat_tells_version_and_fallbacks_and_goes_with_the_client(
    server: EmbeddedServer, operator: Operator
) -> None:
    operator.db[5].set(OLD, "old")
    operator.move(Phase.READS_SWITCHED, read_share=1.0)
    with ReaderRedis(port=server.port, db=5, name="charts") as reader:
        reader.get(OLD)

        def told() -> dict[str, Any]:
            values = operator.db[1].hvals(NAMES.clients)
            return json.loads(values[0]) if values else {}

        waited_for(lambda: told().get("old_fallbacks") == 1)
        beat = told()
        assert beat["kind"] == "reader" and beat["pid"] == os.getpid() and beat["version"] == 1
        assert beat["fallback_rate_60s"] == 1.0 and beat["phase"] == "reads_switched"
        server_s = operator.db[1].time()[0]
        assert abs(beat["at_ms"] / 1000 - server_s) < 5
        operator.move(Phase.CUT_OVER)  # it idles, and acknowledges all the same
        waited_for(lambda: told()["version"] == 2)
    assert operator.db[1].hlen(NAMES.clients) == 0


def test_a_shadow_read_finds_what_differs_and_records_it(server: EmbeddedServer, operator: Operator) -> None:
    operator.db[5].set(OLD, "1")
    operator.db[1].set(NEW, "2")
    operator.db[2].hset("volume_state:7", mapping={"a": 1, "b": 2})
    operator.db[1].hset("vol:state:7", mapping={"b": 2, "a": 1})  # equal, in another order
    operator.move(Phase.VERIFIED, shadow_share=1.0)
    with ReaderRedis(port=server.port, db=5) as reader:
        reader.get(OLD)
        reader.execute("HGETALL", "volume_state:7", db=2)
        waited_for(lambda: reader.status().stats.mismatches == 1)
        waited_for(lambda: reader.status().stats.shadow == 2)
        (found,) = reader.status().mismatches
        assert (found.db, found.key, found.new_key, found.command) == (5, OLD.encode(), NEW.encode(), "GET")
        assert found.old != found.new and len(found.old) == 32
        waited_for(lambda: operator.db[1].hlen(NAMES.diverged) == 1)
        ((field, told),) = operator.db[1].hgetall(NAMES.diverged).items()
        assert field == b"5:" + OLD.encode()
        assert "shadow read" in json.loads(told)["why"] and json.loads(told)["at_ms"] == found.at_ms


def test_a_difference_that_heals_is_none(
    server: EmbeddedServer, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onetape.migrate.reader import attendant

    monkeypatch.setattr(attendant, "AGAIN_S", 0.5)
    operator.db[5].set(OLD, "1")
    operator.move(Phase.VERIFIED, shadow_share=1.0)
    with ReaderRedis(port=server.port, db=5) as reader:
        reader.get(OLD)
        waited_for(lambda: reader.status().stats.shadow == 1)
        operator.db[1].set(NEW, "1")
        waited_for(lambda: reader.status().stats.healed == 1)
        assert reader.status().stats.mismatches == 0 and operator.db[1].hlen(NAMES.diverged) == 0


def test_a_writer_of_both_sides_is_no_mismatch(server: EmbeddedServer, operator: Operator) -> None:
    operator.move(Phase.VERIFIED, shadow_share=1.0)
    done = threading.Event()

    def write() -> None:
        number = 0
        with redis.Redis(port=server.port) as client:
            while not done.is_set():
                number += 1
                with client.pipeline() as pipe:
                    pipe.execute_command("SELECT", 5)
                    pipe.set(OLD, number)
                    pipe.execute_command("SELECT", 1)
                    pipe.set(NEW, number)
                    pipe.execute()

    thread = threading.Thread(target=write)
    with ReaderRedis(port=server.port, db=5) as reader:
        thread.start()
        waited_for(lambda: reader.get(OLD) is not None and reader.status().stats.shadow > 100)
        done.set()
        thread.join()
        stats = reader.status().stats
        assert (stats.mismatches, stats.healed) == (0, 0)


def test_the_shadow_share_is_followed_live(server: EmbeddedServer, operator: Operator) -> None:
    operator.db[5].set(OLD, "1")
    operator.db[1].set(NEW, "1")
    operator.move(Phase.VERIFIED)
    with ReaderRedis(port=server.port, db=5) as reader:
        reader.get(OLD)
        assert not reader._core.jobs
        operator.move(Phase.VERIFIED, shadow_share=1.0)
        waited_for(lambda: reader.get(OLD) and reader.status().stats.shadow > 0)
        operator.move(Phase.VERIFIED, shadow_share=0.0)
        waited_for(lambda: reader.get(OLD) and reader.status().version == 3)
        waited_for(lambda: not reader._core.jobs)
        before = reader.status().stats.shadow
        for _ in range(50):
            reader.get(OLD)
        assert not reader._core.jobs and reader.status().stats.shadow <= before + 1


def test_comparisons_have_a_bounded_queue_and_a_connection_of_their_own(
    server: EmbeddedServer, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "JOBS_MAX", 10)
    operator.db[5].set(OLD, "1")
    operator.move(Phase.VERIFIED, shadow_share=1.0)
    with ReaderRedis(port=server.port, db=5) as reader:
        reader.get(OLD)
        waited_for(lambda: reader.status().stats.shadow == 1)
        name = f"onetape-reader-{reader.status().name}"
        assert len([c for c in operator.db[0].client_list() if c["name"] == name]) >= 2
        held = threading.Event()
        own = reader._core.jobs
        monkeypatch.setattr(reader._core, "wake", held.set)  # nobody is told of new jobs until the next beat
        for _ in range(500):
            assert reader.get(OLD) == b"1"
        assert held.is_set() and len(own) <= 10
        assert reader.status().stats.dropped > 0


def test_a_server_that_stands_still_for_comparisons_only_costs_comparisons(
    fresh_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attendant talks to a server that is stopped, the caller to one that is not."""
    from onetape.migrate.reader import pools

    operator = Operator(fresh_server)
    operator.db[5].set(OLD, "1")
    operator.move(Phase.VERIFIED, shadow_share=1.0)
    monkeypatch.setattr(pools, "_ATTENDANT_TIMEOUT_S", 0.3)
    own = pools.for_attendant
    with EmbeddedServer() as other:
        monkeypatch.setattr(
            "onetape.migrate.reader.client.pools.for_attendant",
            lambda pool, db, name: own(pools.like(pool, host="127.0.0.1", port=other.port), db, name),
        )
        with ReaderRedis(port=fresh_server.port, db=5) as reader:
            waited_for(lambda: reader.get(OLD) and reader.status().stats.shadow)
            os.kill(other.pid, signal.SIGSTOP)
            try:
                before = reader.status().stats.failed
                longest = 0.0
                for _ in range(2000):
                    started = time.monotonic()
                    assert reader.get(OLD) == b"1"
                    longest = max(longest, time.monotonic() - started)
                assert longest < 5
                waited_for(lambda: reader.status().stats.failed > before)
                assert reader.status().stats.dropped > 0
            finally:
                os.kill(other.pid, signal.SIGCONT)


def test_a_server_that_dies_gives_the_error_of_redis_py_and_reads_go_on_when_it_is_back(
    fresh_server: EmbeddedServer,
) -> None:
    operator = Operator(fresh_server)
    operator.move(Phase.CUT_OVER)
    with ReaderRedis(port=fresh_server.port, db=5) as reader:
        assert reader.get(OLD) is None
        fresh_server.kill()
        with pytest.raises(redis.ConnectionError):
            reader.get(OLD)
        fresh_server.start()
        with redis.Redis(port=fresh_server.port, db=5) as client:
            client.set(OLD, "kept")
        waited_for(lambda: reader.get(OLD) == b"kept")  # the state went with the server, and so did the new side
        assert "gone" in reader.status().trouble


def test_a_forked_process_is_another_client(server: EmbeddedServer, operator: Operator) -> None:
    operator.db[1].set(NEW, "new")
    operator.move(Phase.CUT_OVER)
    with ReaderRedis(port=server.port, db=5) as reader:
        assert reader.get(OLD) == b"new"
        waited_for(lambda: operator.db[1].hlen(NAMES.clients) == 1)
        child = os.fork()
        if not child:
            code = 1
            try:
                if reader.get(OLD) == b"new":
                    time.sleep(5)
                    code = 0
            finally:
                os._exit(code)
        try:
            waited_for(lambda: operator.db[1].hlen(NAMES.clients) == 2)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_client_that_nobody_holds_any_more_ends_its_thread(server: EmbeddedServer, operator: Operator) -> None:
    reader = ReaderRedis(port=server.port, db=5)
    reader.get(OLD)
    thread = reader._stop._thread
    assert thread is not None and thread.is_alive()
    del reader
    waited_for(lambda: not thread.is_alive())


def test_a_process_that_ends_without_closing_takes_its_heartbeat_along(
    server: EmbeddedServer, operator: Operator
) -> None:
    script = f"""
import time
from onetape.migrate.reader import ReaderRedis
reader = ReaderRedis(port={server.port}, db=5)
reader.get("{OLD}")
while not reader.status().stats.reads or not reader._in(1).hlen({NAMES.clients!r}):
    time.sleep(0.01)
print(reader.status().name)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0 and ran.stdout.strip(), ran.stderr
    assert operator.db[1].hlen(NAMES.clients) == 0
