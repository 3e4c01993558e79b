"""The mirror against real servers: what writers that cannot be changed do to one side comes to be on the other."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis
from tests import mirroring as m

from onetape.embedded import EmbeddedServer
from onetape.errors import LedgerBusy, OperatorBusy, PhaseRefused, SourceVanished
from onetape.migrate.ledger.entry import Outcome
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.migration import Migration
from onetape.migrate.mirror import Mirror, Options
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import load
from onetape.migrate.wire.endpoint import Endpoint

DIVERGED = b"onetape:migration:mirrored:diverged"


def at(server: EmbeddedServer, db: int) -> redis.Redis:
    return redis.Redis(port=server.port, db=db)


def test_every_type_follows_its_writers_with_content_and_expiry(server: EmbeddedServer, tmp_path: Path) -> None:
    old, new = at(server, 5), at(server, 1)
    m.begin(server.url)
    with m.mirroring(server.url, tmp_path, sweep_every_s=100) as running:
        old.set(b"old:\xff\x00", b"\x00\xfe", pxat=4_000_000_000_123)
        old.hset("old:h", mapping={"a": 1})
        old.rpush("old:l", 1, 2)
        old.sadd("old:s", *range(600))
        old.zadd("old:z", {"a": 1.5})
        old.xadd("old:x", {"a": 1}, id="5-1")
        old.xgroup_create("old:x", "g", id="0")
        old.set("else:where", 1)
        running.until(lambda: len(new.keys("new:*")) == 6)
        running.until(lambda: running.now.queue == 0)
        assert new.get(b"new:\xff\x00") == b"\x00\xfe"
        assert new.pexpiretime(b"new:\xff\x00") == 4_000_000_000_123
        old.hincrby("old:h", "a", 4)
        old.persist(b"old:\xff\x00")
        old.rename("old:l", "old:moved")
        old.delete("old:s")
        running.until(lambda: new.hget("new:h", "a") == b"5" and new.pttl(b"new:\xff\x00") == -1)
        running.until(lambda: new.exists("new:moved") and not new.exists("new:l", "new:s"))
        assert running.now.sweeps == 1  # all of that was hinted
        assert m.differences(server.url) == []
        assert new.exists("else:where") == 0


def test_what_was_there_before_comes_over_with_the_first_sweep(server: EmbeddedServer, tmp_path: Path) -> None:
    old = at(server, 5)
    old.mset({f"old:{i}": i for i in range(2000)})
    at(server, 0).xadd("ticks:A", {"last_price": 5}, id="1700000000000-0")
    at(server, 0).hset("tick:A", mapping={"last_price": 6, "timestamp": 1_700_000_001})
    m.begin(server.url)
    status = m.once(server.url, tmp_path)
    assert (status.copied, status.merged, status.kept, status.failed) == (2001, 1, 0, 0)
    assert m.differences(server.url) == []


def test_the_mirror_says_that_there_are_writers_it_follows(server: EmbeddedServer, tmp_path: Path) -> None:
    m.begin(server.url)
    m.once(server.url, tmp_path)
    with Endpoint.connect(server.url) as endpoint:
        state = load(endpoint, m.PLAN)
    assert state is not None and state.mirrored


def test_a_newer_write_of_the_new_name_is_kept_and_listed_until_both_are_equal(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    old, new = at(server, 5), at(server, 1)
    old.mset({"old:a": 1, "old:b": 1})
    m.begin(server.url)
    with m.mirroring(server.url, tmp_path) as running:
        new.set("new:a", "newer")
        new.set("new:b", "newer")
        old.set("old:a", 2)
        old.delete("old:b")
        running.until(lambda: running.now.kept == 2)
        running.swept()
        assert new.mget("new:a", "new:b") == [b"newer", b"newer"]
        told = new.hgetall(DIVERGED)
        assert set(told) == {b"5:old:a", b"5:old:b"} and b"somebody else" in told[b"5:old:a"]
        new.set("new:a", 2)
        running.until(lambda: running.now.kept == 1)
        assert new.hkeys(DIVERGED) == [b"5:old:b"]
        old.set("old:a", 3)  # and is followed again
        running.until(lambda: new.get("new:a") == b"3")


def test_a_target_that_was_there_before_and_differs_is_nobodys_to_replace(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    at(server, 5).set("old:a", "old")
    at(server, 1).set("new:a", "whose?")
    m.begin(server.url)
    assert m.once(server.url, tmp_path).kept == 1
    assert at(server, 1).get("new:a") == b"whose?"


def test_what_a_dual_writer_makes_equal_stays_ours_to_follow(server: EmbeddedServer, tmp_path: Path) -> None:
    old, new = at(server, 5), at(server, 1)
    m.begin(server.url)
    with m.mirroring(server.url, tmp_path) as running:
        for i in range(20):
            with old.pipeline() as both:  # as a dual writer does
                both.set("old:a", i)
                both.execute_command("COPY", "old:a", "new:a", "DB", 1, "REPLACE")
                both.execute()
            running.until(lambda: running.now.queue == 0)
            time.sleep(0.02)
        seen = running.now.copied
        old.set("old:a", "alone")
        running.until(lambda: new.get("new:a") == b"alone")
        assert seen == 0


def test_after_the_cutover_the_old_names_follow_the_new_ones(server: EmbeddedServer, tmp_path: Path) -> None:
    old, new = at(server, 5), at(server, 1)
    old.mset({"old:a": 1, "old:gone": 1})
    m.begin(server.url)
    with m.mirroring(server.url, tmp_path) as running:
        m.begin(server.url, phase=Phase.CUT_OVER)
        running.until(lambda: running.now.back)
        running.swept()
        new.set("new:a", 2)
        new.set("new:made", 1, pxat=4_000_000_000_123)
        new.delete("new:gone")
        running.until(lambda: old.get("old:a") == b"2" and old.get("old:made") == b"1")
        running.until(lambda: not old.exists("old:gone"))
        assert old.pexpiretime("old:made") == 4_000_000_000_123
        old.set("old:a", "a writer that was forgotten")  # the new names are the truth now
        running.swept()
        assert new.get("new:a") == b"2"


@pytest.mark.parametrize("how", ["flush", "swap"])
def test_a_flushed_source_stops_the_mirror_and_deletes_nothing(
    server: EmbeddedServer, tmp_path: Path, how: str
) -> None:
    old, new = at(server, 5), at(server, 1)
    old.mset({f"old:{i}": i for i in range(300)})
    m.begin(server.url)
    with pytest.raises(AssertionError) as stopped, m.mirroring(server.url, tmp_path) as running:
        old.flushdb() if how == "flush" else old.swapdb(5, 9)
        running.until(lambda: False)
    assert isinstance(running.error, SourceVanished), stopped.value
    assert running.error.facts["keys"] == 300
    assert len(new.keys("new:*")) == 300
    with pytest.raises(SourceVanished):
        m.once(server.url, tmp_path)
    assert len(new.keys("new:*")) == 300
    assert m.once(server.url, tmp_path, allow_flush=True).deleted == 300


def test_deletions_while_no_mirror_ran_are_carried_over(server: EmbeddedServer, tmp_path: Path) -> None:
    old, new = at(server, 5), at(server, 1)
    old.mset({f"old:{i}": i for i in range(50)})
    m.begin(server.url)
    m.once(server.url, tmp_path)
    old.delete(*(f"old:{i}" for i in range(20)))
    new.set("new:3", "newer")
    status = m.once(server.url, tmp_path)
    assert (status.deleted, status.kept) == (19, 1)
    assert new.get("new:3") == b"newer" and len(new.keys("new:*")) == 31


def test_a_backfill_after_a_mirror_knows_its_work(server: EmbeddedServer, tmp_path: Path) -> None:
    old = at(server, 5)
    old.mset({f"old:{i}": i for i in range(50)})
    m.begin(server.url)
    m.once(server.url, tmp_path)
    with Ledger.open(tmp_path / "ledger", mode="r") as ledger:
        found = ledger.find(5, [b"old:1", b"old:2"])
        assert ledger.counts()["values"] == {"copied": 50}
        assert [entry.outcome for entry in ledger.why(b"new:7")] == [Outcome.COPIED]
    assert found[b"old:1"].target == b"new:1" and found[b"old:1"].read == found[b"old:1"].written
    m.once(server.url, tmp_path)
    with Ledger.open(tmp_path / "ledger", mode="r") as ledger:
        assert len(list(ledger.entries())) == 50  # what did not change is not told again


def test_a_mirror_knows_what_a_backfill_copied(server: EmbeddedServer, tmp_path: Path) -> None:
    from onetape.migrate import Migration

    old, new = at(server, 5), at(server, 1)
    old.mset({f"old:{i}": i for i in range(50)})
    Migration(server.url, plan=m.PLAN, ledger_path=tmp_path / "ledger").backfill()
    old.mset({"old:1": "later", "old:new": 1})
    old.delete("old:2")
    m.begin(server.url)
    status = m.once(server.url, tmp_path)
    assert (status.kept, status.copied, status.deleted) == (0, 2, 1)
    assert new.get("new:1") == b"later" and not new.exists("new:2")


@pytest.mark.parametrize("kind", ["string", "stream"])
def test_what_a_backfill_copied_anew_since_the_mirror_saw_it_is_ours_to_follow(
    server: EmbeddedServer, tmp_path: Path, kind: str
) -> None:
    old, new = at(server, 5), at(server, 1)

    def write(value: int) -> None:
        if kind == "string":
            old.set("old:a", value)
        else:
            old.xadd("old:a", {"value": value}, id=f"{value}-1")

    migration = Migration(server.url, plan=m.PLAN, ledger_path=tmp_path / "ledger")
    migration.start(mirrored=True, execute=True)
    write(1)
    m.once(server.url, tmp_path)
    old.delete("old:a")  # and the new one goes too, before the mirror could put that down: it expired, or a kill came
    new.delete("new:a")
    write(2)
    migration.backfill()
    write(3)
    if kind == "stream":
        old.xdel("old:a", "2-1")  # so that nothing is to be added, but all to be replaced
    status = m.once(server.url, tmp_path)
    assert (status.kept, status.failed) == (0, 0)
    assert m.differences(server.url) == []
    assert new.exists("new:a")


def test_a_big_set_follows_in_slices_and_a_long_stream_by_what_was_added(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    old, new, zero = at(server, 5), at(server, 1), at(server, 0)
    with old.pipeline(transaction=False) as pipe:
        for start in range(0, 60_000, 2000):
            pipe.sadd("old:many", *(f"member-{i}" for i in range(start, start + 2000)))
            pipe.xadd("old:long", {"a": "x" * 200}, id=f"1-{start + 1}")
        pipe.execute()
    with zero.pipeline(transaction=False) as pipe:
        for i in range(20_000):
            pipe.execute_command("SELECT", 5)
            pipe.xadd("old:long", {"price": i, "note": "x" * 30}, id=f"2-{i}")
        pipe.execute()
    m.begin(server.url)
    with m.mirroring(server.url, tmp_path) as running:
        assert m.differences(server.url) == []
        before = new.info("commandstats")["cmdstat_copy"]["calls"]
        old.xadd("old:long", {"price": 1}, id="3-1")
        running.until(lambda: new.xlen("new:long") == old.xlen("old:long"))
        old.xtrim("old:long", minid="2-500", approximate=False)
        old.xadd("old:long", {"price": 1}, id="3-2")
        running.until(
            lambda: new.xlen("new:long") == old.xlen("old:long") and new.xrevrange("new:long", count=1)[0][0] == b"3-2"
        )
        old.sadd("old:many", "another")
        running.until(lambda: new.sismember("new:many", "another"))
        running.until(lambda: running.now.queue == 0)
        assert new.info("commandstats")["cmdstat_copy"]["calls"] == before
        assert m.differences(server.url) == []
        assert not new.keys("onetape:slice:*")


def test_a_stream_that_ticks_are_merged_into_gets_its_own_entries_too(server: EmbeddedServer, tmp_path: Path) -> None:
    zero, new = at(server, 0), at(server, 1)
    zero.xadd("ticks:A", {"last_price": 5}, id="1700000000000-0")
    m.begin(server.url)
    with m.mirroring(server.url, tmp_path) as running:
        for i in range(1, 6):
            zero.hset("tick:A", mapping={"last_price": i, "timestamp": 1_700_000_000 + 10 * i})
            running.until(lambda i=i: new.xlen("ticks:A") == 2 * i)
            zero.xadd("ticks:A", {"last_price": 50 + i}, id=f"{1_700_000_005_000 + 10_000 * i}-0")
            running.until(lambda i=i: new.xlen("ticks:A") == 2 * i + 1)
        running.swept()
        assert running.now.kept == running.now.failed == 0
    prices = [fields[b"last_price"] for _, fields in new.xrange("ticks:A")]
    assert prices == [b"5", b"1", b"51", b"2", b"52", b"3", b"53", b"4", b"54", b"5", b"55"]
    assert m.differences(server.url) == []


def test_the_setting_for_notifications_is_put_back(server: EmbeddedServer, tmp_path: Path) -> None:
    client = at(server, 0)
    client.config_set("notify-keyspace-events", "Kx")
    try:
        m.begin(server.url)
        with m.mirroring(server.url, tmp_path):
            assert set("EA") <= set(client.config_get("notify-keyspace-events")["notify-keyspace-events"])
        assert set(client.config_get("notify-keyspace-events")["notify-keyspace-events"]) == set("Kx")
        assert not at(server, 1).keys("onetape:*:mirror") and not client.keys("onetape:*")
    finally:
        client.config_set("notify-keyspace-events", "")


def test_without_the_right_to_change_the_setting_the_sweep_does_it(server: EmbeddedServer, tmp_path: Path) -> None:
    client = at(server, 0)
    client.execute_command("ACL", "SETUSER", "meek", "on", ">pw", "~*", "&*", "+@all", "-config")
    try:
        m.begin(server.url)
        url = f"redis://meek:pw@127.0.0.1:{server.port}"
        with m.mirroring(url, tmp_path) as running:
            assert not running.now.hints and "notify-keyspace-events" in running.now.note
            assert running.now.lag_ms is None
            at(server, 5).set("old:a", 1)
            running.until(lambda: at(server, 1).get("new:a") == b"1")
    finally:
        client.execute_command("ACL", "DELUSER", "meek")


def test_a_second_mirror_is_refused(server: EmbeddedServer, tmp_path: Path) -> None:
    m.begin(server.url)
    with m.mirroring(server.url, tmp_path) as running:
        running.until(lambda: at(server, 1).exists("onetape:migration:mirrored:mirror"))
        with pytest.raises(LedgerBusy):
            m.once(server.url, tmp_path)
        (tmp_path / "other").mkdir()
        with pytest.raises(OperatorBusy, match="another mirror"):
            m.once(server.url, tmp_path / "other")


def test_a_mirror_needs_a_live_migration(server: EmbeddedServer, tmp_path: Path) -> None:
    with pytest.raises(PhaseRefused):
        m.once(server.url, tmp_path)
    m.begin(server.url, phase=Phase.PLANNED)
    with pytest.raises(PhaseRefused, match="planned"):
        m.once(server.url, tmp_path)


def test_a_paused_migration_is_not_mirrored_until_it_is_resumed(server: EmbeddedServer, tmp_path: Path) -> None:
    from onetape.migrate.phases.state import change

    m.begin(server.url)
    with m.mirroring(server.url, tmp_path) as running, Endpoint.connect(server.url) as endpoint:
        state = load(endpoint, m.PLAN)
        assert state is not None
        state = change(endpoint, m.PLAN, state.version, paused=True)
        running.until(lambda: running.now.paused)
        at(server, 5).set("old:a", 1)
        time.sleep(0.5)
        assert not at(server, 1).exists("new:a")
        change(endpoint, m.PLAN, state.version, paused=False)
        running.until(lambda: at(server, 1).get("new:a") == b"1")


def test_ticks_that_are_mirrored_land_on_the_tape(server: EmbeddedServer, tmp_path: Path) -> None:
    import onetape

    zero = at(server, 0)
    m.begin(server.url)
    with onetape.open(tmp_path / "tape.db") as tape:
        zero.xadd("ticks:A", {"last_price": 5}, id="1700000000000-0")
        zero.hset("tick:B", mapping={"last_price": 6, "timestamp": 1_700_000_001})
        for _ in range(2):
            Mirror(server.url, m.PLAN, tmp_path / "memory", tape=tape, options=Options(once=True)).run()
        zero.xadd("ticks:A", {"last_price": 7}, id="1700000009000-0")
        Mirror(server.url, m.PLAN, tmp_path / "memory", tape=tape, options=Options(once=True)).run()
        assert [tick.price for tick in tape.recent("A", 9)] == [5.0, 7.0]
        assert [tick.price for tick in tape.recent("B", 9)] == [6.0]


def test_a_key_that_cannot_be_copied_is_told_until_it_can(fresh_server: EmbeddedServer, tmp_path: Path) -> None:
    old, new = at(fresh_server, 5), at(fresh_server, 1)
    old.execute_command("ACL", "SETUSER", "half", "on", ">pw", "%RW~onetape:*", "%R~*", "%RW~new:a*", "&*", "+@all")
    m.begin(fresh_server.url)
    old.mset({"old:a": 1, "old:b": 2})
    with m.mirroring(f"redis://half:pw@127.0.0.1:{fresh_server.port}", tmp_path) as running:
        running.swept()
        assert running.now.failed == 1 and "old:b" in running.now.last_error
        assert new.get("new:a") == b"1" and not new.exists("new:b")
        old.execute_command("ACL", "SETUSER", "half", "~*")
        running.until(lambda: new.get("new:b") == b"2")
        running.swept()
        assert running.now.failed == 0 and running.now.last_error == ""
