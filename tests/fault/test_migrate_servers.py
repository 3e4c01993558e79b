"""Servers that fail in the middle: a master killed, a connection cut, a restart, a target emptied or swapped, a network
that parts. After each the migration goes on or is run again, and verify converges."""

from __future__ import annotations

import itertools
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from tests.other_servers import Proxy, ask, binary, cluster_of, promoted, service, wait_for

from onetape.embedded import EmbeddedServer
from onetape.errors import EndpointError
from onetape.migrate import Migration
from onetape.migrate.plans.plan import Plan
from onetape.migrate.remote import connect_target
from onetape.migrate.wire.endpoint import Endpoint, connect_again

KEYS = 6000
_HEAD = 'name = "faults"\ntarget_db = {db}\ntimezone = "UTC"\n'
_RULES = """
[[rule]]
step = "strings"
source_db = 5
pattern = "indicators:{symbol}:{name}"
target = "ind:{{{symbol}}}:{name}"
[[rule]]
step = "hashes"
source_db = 5
pattern = "volume:{symbol}"
target = "vol:{symbol}"
"""


def _plan(db: int) -> Plan:
    return Plan.parse(_HEAD.format(db=db) + _RULES)


def _fill(server: EmbeddedServer) -> None:
    _fill_at("127.0.0.1", server.port)


def _fill_at(host: str, port: int) -> None:
    pipeline = redis.Redis(host=host, port=port, db=5).pipeline(transaction=False)
    for i in range(KEYS):
        if i % 4:
            pipeline.set(f"indicators:S{i}:rsi", f"value {i}", pxat=4_000_000_000_123 if i % 3 == 0 else None)
        else:
            pipeline.hset(f"volume:S{i}", mapping={"total": i, "text": "x" * 40})
    pipeline.execute()


class At:
    """Does something once, when the migrator passes a point for the n-th time."""

    def __init__(self, point: str, number: int, act: Callable[[], object]) -> None:
        self._point, self._left, self._act = point, number, act
        self.done = False

    def __call__(self, point: str) -> None:
        if point == self._point and not self.done:
            self._left -= 1
            if self._left == 0:
                self.done = True
                self._act()


def _converges(migration: Migration, number: int = KEYS) -> None:
    report = migration.backfill()
    assert report.exit_code == 0 and sum(report.totals.values()) == number, (report.totals, report.errors)
    result = migration.verify(pause_s=0.1)
    assert result.verdict == "converged" and result.checked == number, result.differences
    assert set(migration.backfill().totals) == {"unchanged"}


def _run(migration: Migration) -> None:
    """One run that a fault may end; whatever it says, the next one must converge."""
    try:
        migration.backfill()
    except EndpointError as error:
        assert error.hint


@pytest.fixture
def source() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(binary("redis")) as server:
        _fill(server)
        yield server


# Sentinel


def test_a_run_goes_on_with_the_new_master_of_a_service(tmp_path: Path, source: EmbeddedServer) -> None:
    with service() as (sentinel, master, replica):
        at = At("acted", 15, master.kill)
        url = sentinel.service_url()
        migration = Migration(source.url, target_url=url, plan=_plan(1), ledger_path=tmp_path / "l", at=at)
        report = migration.backfill()
        assert at.done and report.exit_code == 0 and sum(report.totals.values()) == KEYS, report.errors
        assert ask(replica, "ROLE")[0] == b"master"
        _converges(Migration(source.url, target_url=url, plan=_plan(1), ledger_path=tmp_path / "l"))


def test_a_service_is_migrated_within_itself_through_a_failover(tmp_path: Path) -> None:
    with service() as (sentinel, master, replica):
        _fill(master)
        wait_for(lambda: redis.Redis(port=replica.port, db=5).dbsize() == KEYS, "the replica has all keys")
        at = At("acted", 8, master.kill)
        url = sentinel.service_url()
        _run(Migration(url, plan=_plan(1), ledger_path=tmp_path / "l", at=at))
        assert at.done
        _converges(Migration(url, plan=_plan(1), ledger_path=tmp_path / "l"))


def test_a_master_that_steps_down_alive_is_not_written_to(tmp_path: Path, source: EmbeddedServer) -> None:
    with service() as (sentinel, _master, replica):
        at = At("acted", 10, lambda: ask(sentinel, "SENTINEL", "FAILOVER", "prices"))
        url = sentinel.service_url()
        _run(Migration(source.url, target_url=url, plan=_plan(1), ledger_path=tmp_path / "l", at=at))
        wait_for(lambda: promoted(sentinel, replica), "the replica is promoted")
        assert at.done
        _converges(Migration(source.url, target_url=url, plan=_plan(1), ledger_path=tmp_path / "l"))
        assert redis.Redis(port=replica.port, db=1).dbsize() == KEYS


def test_a_demoted_master_counts_as_a_lost_connection(tmp_path: Path) -> None:
    with service() as (sentinel, master, replica), Endpoint.connect(sentinel.service_url()) as endpoint:
        ask(master, "REPLICAOF", "127.0.0.1", replica.port)
        with pytest.raises(EndpointError, match="no master any more") as caught:
            endpoint.call("SET", "a", "1")
        assert caught.value.facts["code"] == "CUT"


def test_no_sentinel_is_named_with_its_reason() -> None:
    with pytest.raises(EndpointError, match="no sentinel tells the master of 'prices'"):
        Endpoint.connect("sentinel://127.0.0.1:1,127.0.0.1:2/prices", timeout_s=0.5)
    with service() as (sentinel, _master, _replica):
        with pytest.raises(EndpointError, match="knows no service 'other'"):
            Endpoint.connect(f"sentinel://127.0.0.1:{sentinel.port}/other")
        with Endpoint.connect(f"sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/prices") as endpoint:
            assert endpoint.call("PING") == b"PONG", "one sentinel that is away does not matter"


# Cluster


def test_a_cluster_takes_over_all_keys_and_again_changes_nothing(tmp_path: Path, source: EmbeddedServer) -> None:
    with cluster_of(3) as (url, nodes):
        migration = Migration(source.url, target_url=url, plan=_plan(0), ledger_path=tmp_path / "l")
        assert migration.backfill(dry_run=True).totals == {"copied": KEYS}
        _converges(migration)
        assert all(redis.Redis(port=node.port).dbsize() > KEYS // 6 for node in nodes)
        old = redis.Redis(port=source.port, db=5)
        old.set("indicators:S1:rsi", "moved on")
        old.set("indicators:S2:rsi", "old side")
        with connect_target(url) as target:
            target.call("SET", "ind:{S2}:rsi", "newer side")
            target.call("DEL", "ind:{S3}:rsi")
        assert migration.backfill().totals == {"copied": 2, "unchanged": KEYS - 3, "newer_target_kept": 1}
        with connect_target(url) as target:
            values = target.pipeline([("GET", f"ind:{{S{i}}}:rsi") for i in (1, 2, 3)])
            assert values == [b"moved on", b"newer side", b"value 3"]


def test_slots_that_move_are_followed(tmp_path: Path, source: EmbeddedServer) -> None:
    with cluster_of(2) as (url, nodes):
        ids = [ask(node, "CLUSTER", "MYID") for node in nodes]

        def move() -> None:  # a thousand slots change hands: those with keys would be migrated, these are empty yet
            for slot in range(3000):
                keys = ask(nodes[0], "CLUSTER", "COUNTKEYSINSLOT", slot)
                if keys == 0:
                    for node in (nodes[1], nodes[0]):
                        ask(node, "CLUSTER", "SETSLOT", slot, "NODE", ids[1])
                if slot % 3 == 0 and time.monotonic() > deadline:
                    return

        deadline = time.monotonic() + 4
        at = At("acted", 6, move)
        migration = Migration(source.url, target_url=url, plan=_plan(0), ledger_path=tmp_path / "l", at=at)
        report = migration.backfill()
        assert at.done and report.exit_code == 0, report.errors
        _converges(Migration(source.url, target_url=url, plan=_plan(0), ledger_path=tmp_path / "l"))


def test_a_run_goes_on_when_a_master_of_the_cluster_is_killed(tmp_path: Path, source: EmbeddedServer) -> None:
    with cluster_of(3, 1) as (url, nodes):
        at = At("acted", 20, nodes[0].kill)
        migration = Migration(source.url, target_url=url, plan=_plan(0), ledger_path=tmp_path / "l", at=at)
        report = migration.backfill()
        assert at.done and report.exit_code == 0 and sum(report.totals.values()) == KEYS, report.errors
        _converges(Migration(source.url, target_url=url, plan=_plan(0), ledger_path=tmp_path / "l"))


def test_ticks_are_merged_into_streams_of_a_cluster(tmp_path: Path) -> None:
    with EmbeddedServer(binary("redis")) as source, cluster_of(3) as (url, _nodes):
        old = redis.Redis(port=source.port, db=2)
        for i in (5, 1, 9):
            old.hset(f"realtime:NFO:A:{1_700_000_000 + i}", mapping={"last_price": i, "volume": 1})
        migration = Migration(source.url, target_url=url, plan=Plan.load().with_target(0), ledger_path=tmp_path / "l")
        assert migration.backfill().exit_code == 0
        old.hset("realtime:NFO:A:1700000003", mapping={"last_price": 3, "volume": 1})  # late: the stream is made anew
        assert migration.backfill().exit_code == 0
        assert migration.verify(pause_s=0.1).verdict == "converged"
        with connect_target(url) as target:
            entries = target.call("XRANGE", "ticks:historical:NFO:A", "-", "+")
        assert [int(one[1][one[1].index(b"last_price") + 1]) for one in entries] == [1, 3, 5, 9]


# Connections and restarts


@pytest.mark.parametrize("after", [50_000, 211_111, 400_001])
def test_a_target_cut_in_the_middle_of_its_pipelines_loses_nothing(
    tmp_path: Path, source: EmbeddedServer, after: int
) -> None:
    with EmbeddedServer(binary("valkey")) as target, Proxy(target.port) as proxy:
        proxy.cut_after = after
        threading.Timer(1.0, lambda: setattr(proxy, "cut_after", None)).start()
        arguments = {"target_url": proxy.url, "plan": _plan(1), "ledger_path": tmp_path / "l"}
        _run(Migration(source.url, **arguments, checks=False))
        proxy.cut_after = None
        assert proxy.cuts
        _converges(Migration(source.url, **arguments))


@pytest.mark.parametrize("saved", ["yes", "no"])
def test_a_target_killed_and_started_again_ends_up_complete(tmp_path: Path, source: EmbeddedServer, saved: str) -> None:
    with EmbeddedServer(binary("redis"), {"appendonly": saved, "appendfsync": "always"}) as target:
        again = threading.Thread(target=target.start)
        at = At("acted", 20, lambda: (target.kill(), again.start()))
        # The server ends with the thread that started it, so the last start is made by this one.
        arguments = {"target_url": target.url, "plan": _plan(1), "ledger_path": tmp_path / "l"}
        _run(Migration(source.url, **arguments, at=at))
        assert at.done
        again.join()
        target.kill()
        target.start()
        kept = redis.Redis(port=target.port, db=1).dbsize()
        assert kept > 0 if saved == "yes" else kept == 0
        _converges(Migration(source.url, **arguments))


def test_a_source_killed_and_started_again_is_read_to_its_end(tmp_path: Path) -> None:
    with EmbeddedServer(binary("redis"), {"appendonly": "yes"}) as source, EmbeddedServer(binary("redis")) as target:
        _fill(source)
        wait_for(lambda: ask(source, "CONFIG", "SET", "appendfsync", "always"), "it writes through")
        ask(source, "SET", "settle", "1")

        def restart() -> None:
            source.kill()
            source.start()

        at = At("acted", 20, restart)
        arguments = {"target_url": target.url, "plan": _plan(1), "ledger_path": tmp_path / "l"}
        _run(Migration(source.url, **arguments, at=at))
        assert at.done
        _converges(Migration(source.url, **arguments))


# A target that is emptied or swapped


@pytest.mark.parametrize("remote", [False, True], ids=["same-server", "other-server"])
def test_a_target_emptied_in_the_middle_is_noticed_and_filled_again(
    tmp_path: Path, source: EmbeddedServer, remote: bool
) -> None:
    with EmbeddedServer(binary("redis")) as other:
        holder = other if remote else source
        arguments = {"target_url": other.url if remote else None, "plan": _plan(1), "ledger_path": tmp_path / "l"}
        at = At("acted", 10, lambda: redis.Redis(port=holder.port, db=1).flushdb())
        assert Migration(source.url, **arguments, at=at).backfill().exit_code == 0 and at.done
        assert redis.Redis(port=holder.port, db=1).dbsize() < KEYS
        migration = Migration(source.url, **arguments)
        assert migration.verify(rounds=1).verdict == "not proven", "what is gone must not pass as copied"
        again = migration.backfill(dry_run=True)
        assert again.totals["copied"] == KEYS - redis.Redis(port=holder.port, db=1).dbsize()
        _converges(migration)


@pytest.mark.parametrize("remote", [False, True], ids=["same-server", "other-server"])
def test_a_target_swapped_in_the_middle_is_not_taken_for_ours(
    tmp_path: Path, source: EmbeddedServer, remote: bool
) -> None:
    with EmbeddedServer(binary("redis")) as other:
        holder = other if remote else source
        arguments = {"target_url": other.url if remote else None, "plan": _plan(1), "ledger_path": tmp_path / "l"}
        foreign = redis.Redis(port=holder.port, db=9)
        for i in range(1, 40, 4):
            foreign.set(f"ind:{{S{i}}}:rsi", "somebody else's")
        at = At("acted", 10, lambda: redis.Redis(port=holder.port).swapdb(1, 9))
        assert Migration(source.url, **arguments, at=at).backfill().exit_code == 0 and at.done
        migration = Migration(source.url, **arguments)
        report = migration.backfill()
        assert report.totals["newer_target_kept"] == 10
        now = redis.Redis(port=holder.port, db=1)
        assert [now.get(f"ind:{{S{i}}}:rsi") for i in range(1, 40, 4)] == [b"somebody else's"] * 10
        assert now.dbsize() == KEYS
        result = migration.verify(pause_s=0.1)
        assert result.verdict == "converged with listed skips" and len(result.skips) == 10


# A network that parts


_NUMBERS = itertools.count()


@contextmanager
def _namespace() -> Iterator[tuple[str, str]]:
    """A network namespace and the address under which a server in it can be reached."""
    if os.geteuid() != 0 or subprocess.run(["ip", "netns", "list"], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces need root and ip")
    number = next(_NUMBERS)  # the kernel takes its time to remove the last one
    tag = f"ot{os.getpid() % 100000}{number}"
    net = f"10.{77 + os.getpid() % 100}.{(os.getpid() // 100 + number) % 250}"

    def ip(*args: str) -> None:
        done = subprocess.run(["ip", *args], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"ip {' '.join(args[:3])}: {done.stderr.strip()}")

    ip("netns", "add", tag)
    try:
        ip("link", "add", f"{tag}a", "type", "veth", "peer", "name", f"{tag}b", "netns", tag)
        ip("addr", "add", f"{net}.1/24", "dev", f"{tag}a")
        ip("link", "set", f"{tag}a", "up")
        ip("-n", tag, "addr", "add", f"{net}.2/24", "dev", f"{tag}b")
        ip("-n", tag, "link", "set", f"{tag}b", "up")
        ip("-n", tag, "link", "set", "lo", "up")
        yield tag, f"{net}.2"
    finally:
        subprocess.run(["ip", "netns", "del", tag], check=False, capture_output=True)


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_network_that_parts_and_heals_costs_nothing(tmp_path: Path, side: str) -> None:
    with _namespace() as (tag, address):
        inside = subprocess.Popen(
            ["ip", "netns", "exec", tag, str(binary("redis")), "--port", "7777", "--bind", address, "--save", "",
             "--protected-mode", "no", "--dir", str(tmp_path)],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            with EmbeddedServer(binary("redis")) as outside:
                far = f"redis://{address}:7777"
                wait_for(lambda: connect_again(far, attempts=1).close() is None, "it is up")
                _fill_at(*(address, 7777) if side == "source" else ("127.0.0.1", outside.port))
                near = outside.url
                arguments = {
                    "target_url": near if side == "source" else far,
                    "plan": _plan(1),
                    "ledger_path": tmp_path / "l",
                    "timeout_s": 0.5,
                }

                def part() -> None:
                    subprocess.run(["ip", "link", "set", f"{tag}a", "down"], check=True)
                    threading.Timer(1.0, heal).start()

                def heal() -> None:
                    subprocess.run(["ip", "link", "set", f"{tag}a", "up"], check=True)

                at = At("acted", 12, part)
                url = far if side == "source" else near
                _run(Migration(url, **arguments, at=at))
                assert at.done
                wait_for(lambda: connect_again(far, attempts=1, timeout_s=0.5).close() is None, "the network is back")
                _converges(Migration(url, **arguments))
        finally:
            inside.kill()
            inside.wait()
