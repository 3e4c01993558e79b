"""The dual-writing client: phases, reads, refusals, pipelines, transactions, big keys, heartbeats."""

from __future__ import annotations

import threading
import time

import msgspec
import pytest
import redis
from redis.exceptions import NoPermissionError, ResponseError, WatchError
from tests.unit.migrate.dual.rig import PLAN, rigged
from tests.waiting import waited_for

from onetape.embedded import EmbeddedServer
from onetape.errors import CommandUnmapped, PhaseRefused, StateMoved
from onetape.migrate.dual import look
from onetape.migrate.phases.phase import ORDER, Phase
from onetape.migrate.plans.plan import Plan


def test_each_phase_writes_the_sides_it_says(server: EmbeddedServer) -> None:
    with rigged(server, None) as rig:
        dual = rig.dual()
        for phase in (None, *ORDER):
            if phase is not None:
                rig.go(phase)
            name = str(phase)
            assert dual.set("a:k", name)
            old, new = rig.old.get("a:k"), rig.new.get("n:k")
            assert (old == name.encode()) == (phase is not Phase.FINISHED)
            assert (new == name.encode()) == (phase not in (None, Phase.PLANNED))
            assert dual.get("a:k") == name.encode()
        assert dual.dual.status().again == len(ORDER)


def test_going_back_writes_the_old_side_alone_again(server: EmbeddedServer) -> None:
    with rigged(server, Phase.CUT_OVER) as rig:
        dual = rig.dual()
        dual.incr("a:k")
        rig.go(Phase.PLANNED)
        dual.incr("a:k")
        assert (rig.old.get("a:k"), rig.new.get("n:k")) == (b"2", b"1")
        rig.go(Phase.DUAL_WRITING)
        dual.incr("a:k")
        assert (rig.old.get("a:k"), rig.new.get("n:k")) == (b"3", b"3")


def test_a_client_of_the_new_names_reads_and_writes_the_same_keys(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual(db=1)
        dual.hset("n:k", "f", "v")
        assert rig.old.hgetall("a:k") == rig.new.hgetall("n:k") == {b"f": b"v"}
        rig.old.hset("a:k", "f", "w")  # the old side counts
        assert dual.hget("n:k", "f") == b"w"
        dual.rpush("n:l", 1, 2)
        assert dual.blpop(["n:none", "n:l"], timeout=1) == (b"n:l", b"1")
        assert rig.differing() == ["k"]


def test_names_of_keys_in_replies_are_those_that_the_caller_used(server: EmbeddedServer) -> None:
    for phase in (Phase.DUAL_WRITING, Phase.CUT_OVER):
        for kwargs in ({}, {"protocol": 2}, {"decode_responses": True}):
            redis.Redis(port=server.port).flushall()
            with rigged(server, phase) as rig:
                dual = rig.dual(**kwargs)
                text = str if kwargs.get("decode_responses") else str.encode
                dual.rpush("a:l", "x", "y", "z")
                assert dual.blpop("a:l", timeout=1) == (text("a:l"), text("x"))
                assert next(iter(dual.lmpop(2, "a:none", "a:l", direction="LEFT"))) == text("a:l")
                dual.zadd("a:z", {"m": 1, "n": 2})
                assert dual.bzpopmin("a:z", timeout=1)[0] == text("a:z")
                dual.xadd("a:s", {"f": "v"}, id="1-1")
                dual.xgroup_create("a:s", "g", id="0")
                plain = redis.Redis(port=server.port, db=9, **kwargs)
                plain.xadd("a:s", {"f": "v"}, id="1-1")
                plain.xgroup_create("a:s", "g", id="0")
                assert dual.xread({"a:s": 0}) == plain.xread({"a:s": 0})
                assert dual.xreadgroup("g", "c", {"a:s": ">"}) == plain.xreadgroup("g", "c", {"a:s": ">"})
                plain.flushdb()
                plain.close()
                assert rig.differing(2) == []


def test_a_state_that_vanished_leaves_the_client_in_the_last_phase(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        dual.hset("a:k", "f", "v")
        rig.new.flushdb()
        dual.hset("a:k", "g", "w")
        assert rig.differing() == []
        status = dual.dual.status()
        assert (status.phase, status.state_lost) == (Phase.DUAL_WRITING, 1)
        rig.endpoint.call("SWAPDB", 1, 8)
        dual.hset("a:k", "h", "x")
        assert rig.differing() == []


def test_the_state_of_another_plan_is_refused_before_anything_is_written(server: EmbeddedServer) -> None:
    other = msgspec.structs.replace(PLAN, timezone="Asia/Kolkata")
    with rigged(server) as rig:
        dual = rig.dual(plan=other)
        with pytest.raises(StateMoved, match="another plan"):
            dual.set("a:k", "v")
        assert rig.old.get("a:k") is None


def test_a_client_that_asks_for_a_state_is_refused_where_there_is_none(server: EmbeddedServer) -> None:
    with rigged(server, None) as rig, pytest.raises(PhaseRefused, match="no live migration"):
        rig.dual(require_state=True).set("a:k", "v")


# Reads


def test_switched_reads_ask_the_new_names_and_fall_back(server: EmbeddedServer) -> None:
    with rigged(server, Phase.READS_SWITCHED) as rig:
        rig.go(Phase.READS_SWITCHED, read_share=1.0)
        dual = rig.dual()
        rig.old.set("a:k", "old")
        assert dual.get("a:k") == b"old"
        rig.new.set("n:k", "new")
        assert dual.get("a:k") == b"new"
        assert dual.mget("a:k", "other", "a:none") == [b"new", None, None]
        rig.go(Phase.READS_SWITCHED, read_share=0.0)
        assert dual.get("a:k") == b"old"
        rig.go(Phase.CUT_OVER)
        assert dual.get("a:k") == b"new"


def test_a_blocking_read_wakes_and_follows_a_change_of_phase(server: EmbeddedServer) -> None:
    with rigged(server, Phase.CUT_OVER) as rig:
        dual = rig.dual()
        dual.xadd("a:s", {"n": 0}, id="1-1")
        got: list[object] = []
        reader = threading.Thread(target=lambda: got.append(dual.xread({"a:s": "$"}, block=60_000)))
        reader.start()
        waited_for(lambda: any(client["cmd"] == "xread" for client in rig.old.client_list()), "it is read")
        rig.go(Phase.FINISHED)
        rig.old.delete("a:s")
        time.sleep(1.2)
        rig.new.xadd("n:s", {"n": 1}, id="2-1")
        reader.join(90)
        assert "2-1" in str(got) and "a:s" in str(got)


def test_dump_is_not_decoded(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual(decode_responses=True)
        dual.set("a:k", b"\xff\x00")
        dumped = dual.dump("a:k")
        assert isinstance(dumped, bytes)
        assert dual.restore("a:copy", 0, dumped) and dual.restore("a:other", 5000, dumped)
        assert rig.differing() == []


# Refusals


def test_what_cannot_be_written_to_both_sides_is_refused_and_nothing_is_sent(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        dual.set("a:k", "v")
        rig.old.set("free", "1")
        for args in [
            ("EVAL", "return redis.call('SET', KEYS[1], 'x')", 1, "a:k"),
            ("MOVE", "a:k", 3),
            ("FLUSHDB",),
            ("FLUSHALL",),
            ("SWAPDB", 5, 6),
            ("RENAME", "a:k", "free"),
            ("COPY", "a:k", "a:l", "DB", 3),
            ("SUNIONSTORE", "a:k", "free"),
            ("NEW.COMMAND", "x", "a:k"),
        ]:
            with pytest.raises(CommandUnmapped):
                dual.execute_command(*args)
            with pytest.raises(CommandUnmapped):
                dual.pipeline().execute_command(*args).execute()
        assert (rig.old.get("a:k"), rig.old.get("free"), rig.diverged()) == (b"v", b"1", {})


def test_what_is_passed_is_done_once_and_copied_and_recorded(server: EmbeddedServer) -> None:
    for phase in (Phase.DUAL_WRITING, Phase.CUT_OVER):
        with rigged(server, None) as rig:
            rig.old.flushall()
            rig.go(phase)
            dual = rig.dual(on_unmapped="pass")
            dual.set("a:k", "1")
            assert dual.eval("return redis.call('INCR', KEYS[1])", 1, "a:k") == 2
            assert rig.old.get("a:k") == rig.new.get("n:k") == b"2"
            assert list(rig.diverged()) == [b"5:a:k"]
            assert dual.dual.status().passed == 1
            told = msgspec.json.decode(rig.diverged()[b"5:a:k"])
            assert "EVAL" in told["why"] and abs(told["at_ms"] - time.time() * 1000) < 60_000


def test_locks_and_scripts_of_keys_that_are_not_the_plans_work(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        with dual.lock("free", timeout=60):
            assert rig.old.get("free") is not None
        assert rig.old.get("free") is None
        script = dual.register_script("return ARGV[1]")
        assert script(args=["x"]) == b"x"
        assert dual.execute_command("SCRIPT EXISTS", script.sha) == [True]
        assert dual.publish("a:k", "x") == 0


def test_an_error_of_the_server_is_the_callers_and_leaves_both_sides_equal(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        dual.set("a:k", "v")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            dual.lpush("a:k", 1)
        with pytest.raises(ResponseError, match="wrong number"):
            dual.execute_command("HSET", "a:k")
        assert rig.differing() == [] and rig.diverged() == {}


def test_a_user_without_the_rights_for_the_other_side_writes_neither(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        rig.endpoint.call("ACL", "SETUSER", "half", "on", ">pw", "+@all", "%RW~a:*", "%RW~onetape:*")
        try:
            dual = rig.dual(username="half", password="pw")
            with pytest.raises(NoPermissionError):
                dual.set("a:k", "v")
            assert rig.old.get("a:k") is None
        finally:
            rig.endpoint.call("ACL", "DELUSER", "half")


def test_a_database_that_the_server_lacks_is_told_before_a_write(server: EmbeddedServer) -> None:
    plan = Plan.parse('name = "far"\ntarget_db = 99\n[[rule]]\nstep = "s"\nsource_db = 5\npattern = "a:{x}"\n')
    with rigged(server, None) as rig:
        with pytest.raises(ResponseError, match="out of range"):
            rig.dual(plan=plan).set("a:k", "v")
        assert rig.old.get("a:k") is None


# What differs is repaired and told


def test_a_pair_that_somebody_else_changed_is_made_equal_and_recorded(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        dual.hset("a:k", "n", 1)
        rig.new.hset("n:k", "n", 5)  # a straggler
        assert dual.hincrby("a:k", "n", 1) == 2
        assert rig.differing() == []
        assert list(rig.diverged()) == [b"5:a:k"]
        status = dual.dual.status()
        assert (status.healed, status.divergences) == (1, 1)
        rig.new.delete("n:k")
        rig.new.set("n:k", "x")
        dual.hset("a:k", "n", 3)
        assert rig.differing() == []


def test_entries_have_the_ids_of_one_side_on_both_however_a_stream_is_trimmed(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        for at in range(300):  # many in a millisecond
            dual.xadd("a:s", {"at": at})
            dual.xadd("a:exact", {"at": at}, maxlen=50, approximate=False)
            dual.xadd("a:about", {"at": at}, maxlen=50)
            if at == 150:  # behind their clients: an id of its own is found out by the replies, and made equal
                rig.new.xadd("n:s", {"at": "stray"}, id="9999999999999-1")
        assert rig.old.xlen("a:s") == 300 and rig.old.xlen("a:exact") == 50
        assert rig.differing() == [] and list(rig.diverged()) == [b"5:a:s"]


# Types


def test_rules_that_ask_for_a_type_are_chosen_by_the_keys_type(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        dual.xadd("t:s", {"f": "v"})
        dual.set("t:w", "v")
        dual.sadd("t:free", "m")  # of no rule
        assert rig.new.exists("streams:s", "texts:w") == 2
        assert sorted(rig.new.keys("*:free")) == []
        assert dual.expire("t:w", 100) and dual.expire("t:s", 100) and dual.expire("t:free", 100)
        assert rig.new.ttl("streams:s") > 0 and rig.new.ttl("texts:w") > 0 and rig.new.exists("streams:free") == 0
        assert dual.delete("t:s", "t:w", "t:free", "t:none", "a:none") == 3
        assert rig.new.exists("streams:s", "texts:w") == 0


def test_ticks_that_are_merged_stay_old_and_joined_streams_keep_what_was_merged(server: EmbeddedServer) -> None:
    plan = Plan.load()
    with rigged(server, Phase.DUAL_WRITING, plan) as rig:
        dual = rig.dual(db=0)
        plain = redis.Redis(port=server.port, db=0)
        dual.hset("tick:X", "price", 1)
        assert plain.exists("tick:X") and rig.new.keys("ticks*") == []
        assert dual.dual.status().merged == 1
        rig.new.xadd("ticks:historical:X", {"merged": 1}, id="1-1")
        made = dual.xadd("ticks:historical:X", {"own": 1}, id="5-*", maxlen=1, approximate=False)
        assert [one[0] for one in rig.new.xrange("ticks:historical:X")] == [b"1-1", made]
        dual.expire("ticks:historical:X", 100)
        assert rig.new.ttl("ticks:historical:X") == -1 and len(rig.diverged()) == 1
        rig.new.xadd("ticks:historical:X", {"merged": 2}, id="9-1")
        dual.xadd("ticks:historical:X", {"own": 2}, id="6-1")  # too late for the new side: left to the merge
        assert rig.new.xlen("ticks:historical:X") == 3 and plain.xlen("ticks:historical:X") == 2
        rig.go(Phase.FINISHED)
        with pytest.raises(CommandUnmapped, match="finished"):
            dual.hset("tick:X", "price", 2)
        plain.close()


# Big keys


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "BIG_BYTES", 2000)


@pytest.mark.usefixtures("small_limit")
def test_a_big_key_that_the_other_side_lacks_is_left_to_the_backfill(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        rig.old.sadd("a:k", *range(1000))
        dual = rig.dual()
        assert dual.sadd("a:k", "new") == 1
        assert rig.old.scard("a:k") == 1001 and not rig.new.exists("n:k") and rig.diverged() == {}
        rig.endpoint.select(5)
        rig.endpoint.call("COPY", "a:k", "n:k", "DB", 1)  # the backfill
        assert dual.srem("a:k", "new") == 1
        assert rig.differing() == [] and dual.dual.status().left == 1
        rig.go(Phase.BACKFILLED)
        rig.new.delete("n:k")
        dual.sadd("a:k", "more")
        assert list(rig.diverged()) == [b"5:a:k"]


@pytest.mark.usefixtures("small_limit")
def test_a_big_key_that_both_sides_have_is_written_on_both_without_a_copy(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        for args in [("RPUSH", *range(1000)), ("HSET", *range(1000)), ("ZADD", *range(1000))]:
            rig.old.execute_command(args[0], f"a:{args[0]}", *args[1:])
            rig.new.execute_command(args[0], f"n:{args[0]}", *args[1:])
        for at in range(1, 600):
            rig.old.xadd("a:x", {"f": "v" * 10}, id=f"{at}-1")
            rig.new.xadd("n:x", {"f": "v" * 10}, id=f"{at}-1")
        dual = rig.dual()
        dual.rpush("a:RPUSH", "x")
        dual.hset("a:HSET", "f", "v")
        dual.zincrby("a:ZADD", 1, "1")
        dual.xadd("a:x", {"f": "w"})
        dual.expire("a:x", 1000)
        assert rig.differing() == [] and dual.dual.status().copies == 0 and rig.diverged() == {}
        rig.new.rpush("n:RPUSH", "only here")
        dual.dual.exchange.forget()
        dual.rpush("a:RPUSH", "y")
        assert list(rig.diverged()) == [b"5:a:RPUSH"]


@pytest.mark.usefixtures("small_limit")
def test_a_big_key_that_appears_between_the_look_and_the_write_is_looked_at_again(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        rig.old.sadd("a:k", *range(1000))
        dual = rig.dual()
        dual.get("a:none")
        exchange = dual.dual.exchange
        real, done = exchange._look_at, []

        def look_at(*args: object) -> object:
            found = yield from real(*args)  # type: ignore[arg-type]
            if not done:
                done.append(rig.old.copy("a:k", "n:k", destination_db=1))
            return found

        exchange._look_at = look_at  # type: ignore[method-assign, assignment]
        dual.sadd("a:k", "new")
        assert done == [True] and rig.differing() == []


# Pipelines and transactions


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITING, Phase.CUT_OVER])
@pytest.mark.parametrize("transaction", [True, False])
def test_a_pipeline_replies_as_a_plain_one_and_leaves_both_sides_equal(
    server: EmbeddedServer, phase: Phase, transaction: bool
) -> None:
    with rigged(server, phase) as rig:
        plain = redis.Redis(port=server.port, db=9)
        dual = rig.dual()
        found = []
        for client in (plain, dual, plain, dual):
            pipe = client.pipeline(transaction=transaction)
            pipe.set("a:k", 1).incr("a:k").set("free", "x").get("free").lpush("a:k", "wrong").hset("a:h", "f", 1)
            pipe.hincrby("a:h", "f", 2).delete("a:k", "free", "a:none").xadd("a:s", {"f": 1}, id="*").xlen("a:s")
            pipe.xtrim("a:s", maxlen=0).sadd("a:set", 1, 2).sunionstore("a:all", ["a:set", "a:none"]).expire("a:h", 99)
            pipe.rpush("a:l", 1, 2).blpop("a:l", 1).mget("a:k", "free", "a:h2")
            found.append(pipe.execute(raise_on_error=False))
            found[-1] = [str(one) if isinstance(one, Exception) else one for one in found[-1]]
            found[-1][8] = type(found[-1][8])
        assert found[0] == found[1] and found[2] == found[3]
        assert rig.differing() == [] and rig.diverged() == {}
        with pytest.raises(ResponseError, match=r"Command # 2 \(LPUSH a:h"):
            dual.pipeline().set("a:k", "done").lpush("a:h", 1).execute()
        assert rig.old.get("a:k") == rig.new.get("n:k") == b"done"
        plain.close()


def test_a_pipeline_of_a_thousand_writes_is_one_transaction(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        pipe = dual.pipeline()
        for at in range(1000):
            pipe.hset(f"a:{at}", "f", at)
        assert pipe.execute() == [1] * 1000
        assert rig.differing() == [] and len(rig.new.keys("n:*")) == 1000


def test_watch_sees_both_names_and_a_change_of_phase(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        dual.set("a:k", 1)
        for disturb in [
            lambda: rig.old.set("a:k", 5),
            lambda: rig.new.set("n:k", 5),
            lambda: rig.old.set("free", 1),
            lambda: rig.new.set("texts:w", 5),
            lambda: rig.go(Phase.BACKFILLED),
        ]:
            with dual.pipeline() as pipe:
                pipe.watch("a:k", "free", "t:w")
                assert pipe.get("a:k") is not None
                pipe.multi()
                pipe.set("a:k", 7)
                disturb()
                with pytest.raises(WatchError):
                    pipe.execute()
        assert rig.old.get("a:k") == b"5"
        with dual.pipeline() as pipe:
            pipe.watch("a:k")
            pipe.multi()
            assert pipe.set("a:k", 8).execute() == [True]
        with dual.pipeline() as pipe:
            pipe.watch("a:k")
            rig.old.set("a:k", 9)
            pipe.unwatch()
            assert pipe.set("a:k", 10) == pipe and pipe.execute() == [True]
        assert rig.differing() == []


def test_transaction_counts_without_losing_any(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()

        def count(times: int) -> None:
            def once(pipe: redis.client.Pipeline) -> None:
                now = int(pipe.get("a:n") or 0)  # type: ignore[arg-type]
                pipe.multi()
                pipe.set("a:n", now + 1)

            for _ in range(times):
                dual.transaction(once, "a:n")

        threads = [threading.Thread(target=count, args=(30,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        rig.go(Phase.BACKFILLED)
        rig.go(Phase.CUT_OVER)
        for thread in threads:
            thread.join()
        assert rig.old.get("a:n") == rig.new.get("n:n") == b"120"


# Connections


def test_threads_share_a_client(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        threads = [
            threading.Thread(target=lambda: [dual.incr("a:n") and dual.rpush("a:l", 1) for _ in range(200)])
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert rig.old.get("a:n") == b"1200" and rig.old.llen("a:l") == 1200
        assert rig.differing() == [] and rig.diverged() == {}


def test_constructors_of_a_plain_client_work(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        by_url = rig.dual().from_url(f"{server.url}/5", plan=PLAN, decode_responses=True)
        pool = redis.ConnectionPool(port=server.port, db=5)
        by_pool = type(by_url)(connection_pool=pool, plan=PLAN)
        owner = type(by_url).from_pool(
            redis.BlockingConnectionPool(port=server.port, db=5, max_connections=1), plan=PLAN
        )
        single = by_pool.client()
        for client in (by_url, by_pool, owner, single):
            assert client.set("a:k", "v") and client.get("a:k") in ("v", b"v") and client.set("free", 1)
        assert rig.differing() == []
        names = {one["name"] for one in by_url.client_list()}
        assert f"onetape-writer-{by_url.dual.id}" in names
        for client in (single, by_url, by_pool, owner):
            client.close()
        pool.disconnect()


def test_a_connection_that_the_server_closed_is_made_anew_and_armed_anew(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        dual.set("a:k", 1)
        rig.go(Phase.PLANNED)
        rig.endpoint.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        dual.set("a:k", 2)
        assert (rig.old.get("a:k"), rig.new.get("n:k")) == (b"2", b"1")


def test_a_heartbeat_tells_the_version_and_goes_with_the_client(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual(name="feed")
        dual.set("a:k", 1)

        def told() -> dict[str, object]:
            return msgspec.json.decode(rig.new.hget(rig.names.clients, dual.dual.id) or b"{}")

        deadline = time.monotonic() + 60
        while told().get("version") != rig.version and time.monotonic() < deadline:
            time.sleep(0.05)
        rig.go(Phase.BACKFILLED)  # it idles, and takes it in all the same
        while told().get("version") != rig.version and time.monotonic() < deadline:
            time.sleep(0.05)
        facts = told()
        assert facts["version"] == rig.version and facts["phase"] == "backfilled"
        assert (facts["name"], facts["kind"], facts["writes"]) == ("feed", "writer", 1)
        dual.close()
        assert told() == {}
