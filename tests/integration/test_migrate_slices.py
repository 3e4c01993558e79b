"""Big keys: copied in slices, the same in all that a key is, and put in place only if nothing changed meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from onetape.embedded import EmbeddedServer
from onetape.migrate import Endpoint, Migration, Plan
from onetape.migrate.copying.slice_decide import Big
from onetape.migrate.copying.slices import TEMPORARY, Slicer
from onetape.migrate.keys.content import read_together
from onetape.migrate.ledger.entry import Outcome
from onetape.migrate.ledger.ledger import Ledger

_OUTCOMES = tuple(Outcome)
ELEMENTS = 60_000


class Bench:
    """A ledger, a server and slicers made for them, with all that they were told."""

    def __init__(self, server: EmbeddedServer, directory: Path) -> None:
        self.url = server.url
        self.plan = Plan.load()
        self.path = directory / "ledger.db"
        self.source, self.target = (redis.Redis(port=server.port, db=db) for db in (0, 1))
        self.told: list[tuple[str, str | None]] = []
        self.points: list[str] = []

    def copy(self, key: str, *, at: Callable[[str], None] | None = None, size: int | None = None, **how: float) -> str:
        """Copy one key in a run of its own; return its outcome."""

        def told(batch: object, outcomes: list[int | None], errors: list[str | None]) -> None:
            self.told += [(_OUTCOMES[code or 0].value, why) for code, why in zip(outcomes, errors, strict=True)]

        def passed(point: str) -> None:
            self.points.append(point)
            if at is not None:
                at(point)

        with Ledger.open(self.path) as ledger:
            ledger.bind(self.plan, address="here", run_id="this")
            ledger.begin_run("backfill")
            slicer = Slicer(lambda: Endpoint.connect(self.url), ledger, 1, told, at=passed, **how)  # type: ignore[arg-type]
            try:
                used = self.source.memory_usage(key) or 0
                slicer.put(Big(0, 0, key.encode(), b"new:" + key.encode(), used if size is None else size))
            finally:
                slicer.close()
                ledger.end_run()
        assert not self.target.keys(TEMPORARY + b"*")
        return self.told[-1][0]

    def same(self, key: str) -> bool:
        """Return whether both sides hold the same, expiry and all."""
        with Endpoint.connect(self.url) as endpoint:
            pair = read_together(endpoint, [(0, key.encode()), (1, b"new:" + key.encode())])
        assert pair is not None and pair[0] is not None
        return pair[0] == pair[1]

    @property
    def slices(self) -> int:
        """How many slices were sent."""
        return self.points.count("slicing")


@pytest.fixture
def bench(server: EmbeddedServer, tmp_path: Path) -> Iterator[Bench]:
    yield Bench(server, tmp_path)


def _fill(client: redis.Redis, kind: str, number: int = ELEMENTS) -> str:
    pipe = client.pipeline(transaction=False)
    for i in range(number):
        if kind == "set":
            pipe.sadd(kind, b"member \xff\x00 %d" % i)
        elif kind == "hash":
            pipe.hset(kind, f"field{i}", b"value \xfe %d" % i)
        elif kind == "zset":
            pipe.zadd(kind, {f"m{i}": i * 1.1 if i % 3 else -i / 7})
        elif kind == "list":
            pipe.rpush(kind, b"value \x00 number %d of a long list" % i)
        elif kind == "stream":
            pipe.xadd(
                kind,
                {"last_price": i * 0.05, "volume": i, b"\xff": b"\x00"},
                id=f"{1_700_000_000_000 + i // 3}-{i % 3}",
            )
        if i % 5000 == 0:
            pipe.execute()
    pipe.execute()
    if kind == "string":
        client.set(kind, bytes(range(256)) * 100_000)
    return kind


@pytest.mark.parametrize("kind", ["string", "list", "set", "zset", "hash", "stream"])
def test_a_big_key_of_every_type_arrives_in_slices_with_its_expiry(bench: Bench, kind: str) -> None:
    _fill(bench.source, kind)
    bench.source.pexpireat(kind, 4_000_000_000_123)
    assert bench.copy(kind, size=2**30) == "copied"
    assert bench.slices > 10
    assert bench.same(kind)
    assert bench.target.pexpiretime(f"new:{kind}") == 4_000_000_000_123
    assert bench.target.type(f"new:{kind}") == kind.encode()


def test_a_key_without_an_expiry_gets_none(bench: Bench) -> None:
    bench.copy(_fill(bench.source, "set"), size=2**30)
    assert bench.target.ttl("new:set") == -1


def test_extreme_scores_keep_their_bits(bench: Bench) -> None:
    bench.source.zadd("zset", {"inf": float("inf"), "-inf": float("-inf"), "tiny": 5e-324, "0": -0.0, "third": 1 / 3})
    assert bench.copy("zset", size=2**30) == "copied"
    assert bench.slices == 1
    assert bench.same("zset")


def test_fields_keep_their_own_expiries(bench: Bench) -> None:
    _fill(bench.source, "hash", 5000)
    try:
        for i in range(0, 5000, 50):
            bench.source.execute_command("HPEXPIREAT", "hash", 4_000_000_000_000 + i, "FIELDS", 1, f"field{i}")
    except redis.ResponseError:
        pytest.skip("fields do not expire on this server")
    assert bench.copy("hash", size=2**30) == "copied"
    assert bench.same("hash")
    told = bench.target.execute_command("HPEXPIRETIME", "new:hash", "FIELDS", 2, "field50", "field51")
    assert told == [4_000_000_000_050, -1]


def test_a_stream_keeps_groups_consumers_deliveries_and_counters(bench: Bench) -> None:
    client = bench.source
    _fill(client, "stream", 9000)
    client.xgroup_create("stream", "g", 0)
    client.xgroup_create("stream", "idle", "1700000000100-0")
    client.xgroup_createconsumer("stream", "idle", "nobody yet")
    client.xreadgroup("g", "one", {"stream": ">"}, count=2500)  # more than one reply tells the times of
    client.xreadgroup("g", "two", {"stream": ">"}, count=30)
    client.xreadgroup("g", "one", {"stream": "0"}, count=30)
    client.xack("stream", "g", "1700000000001-0")
    client.xdel("stream", "1700000000003-1", "1700000000010-0")  # pending, but deleted
    client.xtrim("stream", minid="1700000000002-0", approximate=False)
    client.xdel("stream", "1700000002999-2")  # the newest
    assert bench.copy("stream", size=2**30) == "copied"
    assert bench.same("stream")
    for command in ("GROUPS", "STREAM"):
        here, there = (db.execute_command("XINFO", command, key) for db, key in
                       ((client, "stream"), (bench.target, "new:stream")))  # fmt: skip
        if command == "GROUPS":
            assert here == there
        else:
            assert {k: v for k, v in here.items() if "radix" not in str(k)} == {
                k: v for k, v in there.items() if "radix" not in str(k)
            }
    ages = [
        [entry["time_since_delivered"] for entry in db.xpending_range(key, "g", "-", "+", 3000)]
        for db, key in ((client, "stream"), (bench.target, "new:stream"))
    ]
    assert all(abs(one - other) < 5000 for one, other in zip(*ages, strict=True))


def test_a_stream_without_entries_arrives_with_its_groups(bench: Bench) -> None:
    bench.source.xgroup_create("stream", "g", 0, mkstream=True)
    assert bench.copy("stream", size=2**30) == "copied"
    assert bench.same("stream")
    bench.source.xadd("stream", {"a": 1}, id="5-5")
    bench.source.delete("stream")
    bench.source.xadd("other", {"a": 1}, id="5-5")
    bench.source.xdel("other", "5-5")
    assert bench.copy("other", size=2**30) == "copied"
    assert bench.same("other")


def test_a_second_run_finds_it_unchanged_and_a_third_follows_the_source(bench: Bench) -> None:
    _fill(bench.source, "set")
    assert bench.copy("set") == "copied"
    assert bench.copy("set") == "unchanged"
    bench.source.sadd("set", "one more")
    assert bench.copy("set") == "copied"
    assert bench.same("set")


def test_a_target_that_somebody_wrote_since_is_kept(bench: Bench) -> None:
    _fill(bench.source, "set")
    bench.copy("set")
    bench.target.sadd("new:set", "newer")
    bench.source.sadd("set", "one more")
    assert bench.copy("set") == "newer_target_kept"
    assert bench.target.sismember("new:set", "newer") and not bench.target.sismember("new:set", "one more")


def test_a_target_of_somebody_else_is_kept_at_the_first_copy(bench: Bench) -> None:
    _fill(bench.source, "set")
    bench.target.set("new:set", "theirs")
    assert bench.copy("set") == "newer_target_kept"
    assert bench.target.get("new:set") == b"theirs"


def test_a_target_written_while_the_slices_go_is_kept(bench: Bench) -> None:
    _fill(bench.source, "set")

    def write(point: str) -> None:
        if point == "slicing":
            bench.target.set("new:set", "theirs")

    assert bench.copy("set", at=write) == "newer_target_kept"
    assert bench.target.get("new:set") == b"theirs"


def test_a_target_written_between_intent_and_act_is_kept(bench: Bench) -> None:
    _fill(bench.source, "set")

    def write(point: str) -> None:
        if point == "intended":
            bench.target.set("new:set", "theirs")

    assert bench.copy("set", at=write) == "newer_target_kept"


def test_a_write_to_the_source_meanwhile_means_beginning_again(bench: Bench) -> None:
    _fill(bench.source, "set")
    times = itertools.count()

    def write(point: str) -> None:
        if point == "slicing" and next(times) == 1:
            bench.source.sadd("set", "meanwhile")
            bench.source.srem("set", b"member \xff\x00 7")

    assert bench.copy("set", at=write) == "copied"
    assert bench.same("set")
    assert bench.target.sismember("new:set", "meanwhile")


def test_a_source_that_never_holds_still_is_copied_as_a_snapshot_where_the_pause_is_allowed(bench: Bench) -> None:
    _fill(bench.source, "set")
    times = itertools.count()

    def write(point: str) -> None:
        if point == "slicing":
            bench.source.sadd("set", f"busy {next(times)}")

    assert bench.copy("set", at=write, pause_ms_max=1000.0) == "copied"
    written = bench.target.smembers("new:set")
    assert len(written) >= ELEMENTS and written <= bench.source.smembers("set")
    assert bench.copy("set") in ("copied", "unchanged")  # it is known to be ours
    assert bench.same("set")


def test_a_source_that_never_holds_still_is_named_where_the_pause_is_too_long(bench: Bench) -> None:
    _fill(bench.source, "set")
    times = itertools.count()

    def write(point: str) -> None:
        if point == "slicing":
            bench.source.sadd("set", f"busy {next(times)}")

    assert bench.copy("set", at=write, pause_ms_max=1.0) == "changed_while_copying"
    assert "would stop the server" in str(bench.told[-1][1])
    assert not bench.target.exists("new:set")


def test_a_source_that_goes_or_becomes_another_type_meanwhile_is_told_as_it_is(bench: Bench) -> None:
    _fill(bench.source, "set")
    times = itertools.count()

    def turn(point: str) -> None:
        if point == "slicing" and next(times) == 3:
            bench.source.delete("set")
            bench.source.rpush("set", "now", "a", "list")

    assert bench.copy("set", at=turn) == "copied"
    assert bench.target.lrange("new:set", 0, -1) == [b"now", b"a", b"list"]
    _fill(bench.source, "hash")

    def remove(point: str) -> None:
        if point == "slicing":
            bench.source.delete("hash")

    assert bench.copy("hash", at=remove) == "expired"
    assert not bench.target.exists("new:hash")


def test_a_source_that_expires_at_the_end_of_its_slices_counts_as_expired(bench: Bench) -> None:
    _fill(bench.source, "set")

    def expire(point: str) -> None:
        if point == "intended":
            bench.source.pexpire("set", 1)

    assert bench.copy("set", at=expire) == "expired"
    assert not bench.target.exists("new:set")


@pytest.mark.parametrize("at", [1, 5, 20])
def test_a_flush_of_the_target_in_the_middle_never_leaves_a_part(bench: Bench, at: int) -> None:
    _fill(bench.source, "set")
    times = itertools.count()

    def flush(point: str) -> None:
        if point == "slicing" and next(times) == at:
            bench.target.flushdb()

    assert bench.copy("set", at=flush) == "copied"
    assert bench.same("set")


def test_a_flush_between_the_last_slice_and_the_act_never_leaves_a_part(bench: Bench) -> None:
    _fill(bench.source, "set")
    flushed: list[bool] = []

    def flush(point: str) -> None:
        if point == "intended" and not flushed:
            flushed.append(bench.target.flushdb())

    assert bench.copy("set", at=flush) == "copied"
    assert bench.same("set")


def test_a_swap_of_databases_in_the_middle_never_leaves_a_part(bench: Bench) -> None:
    _fill(bench.source, "set")
    swapped: list[bool] = []

    def swap(point: str) -> None:
        if point == "slicing" and bench.slices == 6 and not swapped:
            swapped.append(bench.target.execute_command("SWAPDB", 1, 7))

    outcome = bench.copy("set", at=swap)
    assert outcome == "copied" and bench.same("set")
    other = redis.Redis(
        connection_pool=redis.ConnectionPool(**{**bench.target.connection_pool.connection_kwargs, "db": 7})
    )
    assert all(other.pttl(key) > 0 for key in other.keys(b"onetape:slice:*"))  # goes by itself
    other.flushdb()


def test_a_temporary_key_has_an_expiry_at_every_moment(bench: Bench) -> None:
    _fill(bench.source, "hash")
    seen: list[int] = []

    def look(point: str) -> None:
        seen.extend(bench.target.pttl(key) for key in bench.target.keys(TEMPORARY + b"*"))

    bench.copy("hash", at=look)
    assert len(seen) > 10 and min(seen) > 500_000


def test_a_key_that_was_sliced_and_shrank_is_still_ours(server: EmbeddedServer, tmp_path: Path) -> None:
    client = redis.Redis(port=server.port, db=2)
    pipe = client.pipeline(transaction=False)
    for i in range(120_000):
        pipe.sadd("volume_averages:NFO:BIG", f"some member with a name {i}")
    pipe.execute()
    options = {"ledger_path": tmp_path / "ledger.db", "checks": False}
    assert Migration(server.url, **options).backfill().totals == {"copied": 1}  # type: ignore[arg-type]
    client.delete("volume_averages:NFO:BIG")
    client.sadd("volume_averages:NFO:BIG", "small by now")
    assert Migration(server.url, **options).backfill(dry_run=True).exit_code == 0  # type: ignore[arg-type]
    report = Migration(server.url, **options).backfill()  # type: ignore[arg-type]
    assert report.totals == {"copied": 1}
    target = redis.Redis(port=server.port, db=1)
    assert [target.smembers(key) for key in target.scan_iter()] == [{b"small by now"}]


def test_a_small_key_that_grew_big_is_still_ours(server: EmbeddedServer, tmp_path: Path) -> None:
    client = redis.Redis(port=server.port, db=2)
    client.sadd("volume_averages:NFO:BIG", "small")
    options = {"ledger_path": tmp_path / "ledger.db", "checks": False}
    Migration(server.url, **options).backfill()  # type: ignore[arg-type]
    pipe = client.pipeline(transaction=False)
    for i in range(120_000):
        pipe.sadd("volume_averages:NFO:BIG", f"some member with a name {i}")
    pipe.execute()
    dry = Migration(server.url, **options).backfill(dry_run=True)  # type: ignore[arg-type]
    assert dry.totals == {"copied": 1}
    assert Migration(server.url, **options).backfill().totals == {"copied": 1}  # type: ignore[arg-type]
    assert Migration(server.url, **options).backfill().totals == {"unchanged": 1}  # type: ignore[arg-type]
    target = redis.Redis(port=server.port, db=1)
    assert [target.scard(key) for key in target.scan_iter()] == [120_001]
    assert Migration(server.url, **options).verify(pause_s=0.1).verdict == "converged"  # type: ignore[arg-type]
