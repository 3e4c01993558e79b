"""Writers that race every batch, keys that end while they are copied, big keys in slices, a network that parts."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.fault.live_storm import Storm, dual, new_name, operating, storming, unequal
from tests.fault.test_live_kills import again, converged
from tests.fault.test_migrate_servers import _namespace
from tests.other_servers import wait_for
from tests.unit.migrate.live_system import LIMITS, PLAN, LiveSystem

from onetape.embedded import EmbeddedServer
from onetape.migrate.backfill.backfill import Digests
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import Names


@pytest.fixture
def live(server: EmbeddedServer, tmp_path: Path) -> Iterator[LiveSystem]:
    system = LiveSystem(server, tmp_path)
    system.fill()
    yield system
    for client in (system.old, system.sessions, system.new):
        client.close()


@pytest.mark.parametrize("digests", ["copy", "verify"])
def test_a_writer_of_old_names_alone_that_races_every_batch_loses_nothing(live: LiveSystem, digests: Digests) -> None:
    for i in range(3000):
        live.old.rpush(f"indicators:M{i}:many", "first")
    times = itertools.count(1)

    def race(point: str) -> None:
        if point in ("read", "intended", "acted", "recorded"):
            n = next(times)
            for i in range(n % 7, 3000, 211):
                live.old.rpush(f"indicators:M{i}:many", f"{point}{n}")

    live.to(Phase.DUAL_WRITING)
    live.migration._at = live.migration.helm.at = race
    with storming(live) as storm:
        report = live.migration.backfill(digests=digests)
        assert report.exit_code in (0, 1), report.errors
        live.migration._at = live.migration.helm.at = lambda point: None
        written = {i: live.old.lrange(f"indicators:M{i}:many", 0, -1) for i in range(3000)}
        if live.phase is Phase.DUAL_WRITING:
            again(live, "backfill")
        assert live.migration.verify(pause_s=0).verdict == "not proven" or digests == "copy"
        assert live.migration.repair(execute=True).exit_code == 0
    assert next(times) > 4
    converged(live, storm)
    assert {i: live.new.lrange(f"ind:M{i}:many", 0, -1) for i in range(3000)} == written
    assert live.phase is Phase.VERIFIED


@pytest.mark.parametrize("digests", ["copy", "verify"])
def test_keys_that_end_in_the_instant_of_their_copy_leave_nothing_behind(live: LiveSystem, digests: Digests) -> None:
    live.to(Phase.DUAL_WRITING)
    pipe = live.old.pipeline(transaction=False)
    for i in range(6000):
        pipe.set(f"indicators:E{i}:ending", i, px=1 + i % 600)
    pipe.execute()
    with storming(live) as storm:
        assert live.migration.backfill(digests=digests).exit_code == 0
        time.sleep(0.6)
    assert live.old.keys("indicators:E*:ending") == live.new.keys("ind:E*:ending") == []
    converged(live, storm)


@pytest.mark.parametrize("point", ["slicing:1", "slicing:9", "intended:1", "acted:1", "recorded:1", ""])
@pytest.mark.parametrize("server_of_session", ["valkey"], indirect=True)
def test_a_big_key_that_is_written_while_its_slices_go_loses_nothing(live: LiveSystem, point: str) -> None:
    members = {f"a member with quite a long name {i}": i for i in range(160_000)}
    live.old.zadd("indicators:BIG:zset", members)
    live.to(Phase.DUAL_WRITING)
    client = dual(live.server.port, name="big")
    with storming(live) as storm:
        with operating(live, "backfill", point) as operator:
            written = 0
            while operator.process.is_alive():
                client.zincrby("indicators:BIG:zset", 1_000_000, f"counter {written % 3}")
                written += 1
                time.sleep(0.02)
            assert (operator.join()[0] == "killed") == bool(point)
        if live.phase is Phase.DUAL_WRITING:
            again(live, "backfill")
    for side, name in ((live.old, "indicators:BIG:zset"), (live.new, "ind:BIG:zset")):
        counted = [side.zscore(name, f"counter {i}") or 0 for i in range(3)]
        assert side.zcard(name) == 160_000 + sum(score > 0 for score in counted)
        assert sum(counted) == written * 1_000_000
    client.close()
    left = [key for key in live.new.keys("onetape:*") if not key.startswith(Names.of(PLAN).state)]
    assert all(live.new.pttl(key) > 0 for key in left), left
    converged(live, storm)


def test_a_writer_that_is_parted_from_its_server_while_the_phase_changes_goes_on_in_the_new_one(
    tmp_path: Path,
) -> None:
    with _namespace() as (tag, address):
        outside = address.rpartition(".")[0] + ".1"
        with EmbeddedServer(options={"bind": f"127.0.0.1 {outside}", "protected-mode": "no"}) as server:
            live = LiveSystem(server, tmp_path)
            live.fill()
            live.to(Phase.READS_SWITCHED)
            parted = subprocess.Popen(
                ["ip", "netns", "exec", tag, sys.executable, "-m", "tests.fault.live_storm", outside,
                 str(server.port), "FAR"],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            try:
                with storming(live) as storm:
                    wait_for(lambda: live.old.hget("indicators:FAR:hash", "n"), "it writes")
                    link = ["ip", "link", "set", f"{tag}a"]
                    subprocess.run([*link, "down"], check=True)
                    before = live.old.hget("indicators:FAR:hash", "n")
                    storm.more(5)
                    assert live.migration.cutover(limits=LIMITS, execute=True, force=True).after == "cut_over"
                    storm.more(5)
                    time.sleep(1)
                    assert live.new.hget("ind:FAR:hash", "n") == live.old.hget("indicators:FAR:hash", "n") == before
                    subprocess.run([*link, "up"], check=True)
                    wait_for(lambda: live.old.hget("indicators:FAR:hash", "n") != before, "it goes on")
                    time.sleep(0.5)
                out, _ = parted.communicate("", timeout=120)
            finally:
                parted.kill()
                parted.wait()
            assert parted.returncode == 0
            told = json.loads(out.splitlines()[-1])
            far = Storm(lambda i: dual(server.port), 1)
            far.writers[0].name, far.writers[0].did = "FAR", told["did"]
            storm.writers += far.writers
            assert told["doubts"] > 0
            converged(live, storm)
            far.close()


@pytest.mark.parametrize("server_of_session", ["valkey"], indirect=True)
def test_writers_that_are_stopped_while_phases_change_write_nothing_in_a_phase_that_is_over(live: LiveSystem) -> None:
    live.to(Phase.DUAL_WRITING)
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.fault.live_storm", "127.0.0.1", str(live.server.port), "FAR"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: live.old.hget("indicators:FAR:hash", "n"), "it writes")
        for act in (
            lambda: live.to(Phase.READS_SWITCHED),
            lambda: live.migration.cutover(limits=LIMITS, force=True, execute=True),
            lambda: live.migration.rollback(to=Phase.PLANNED, execute=True),
            lambda: live.to(Phase.READS_SWITCHED),
            lambda: live.migration.cutover(limits=LIMITS, force=True, execute=True),
            lambda: live.migration.finish(quiet_for_s=0, execute=True),
        ):
            time.sleep(0.2)
            writer.send_signal(signal.SIGSTOP)
            time.sleep(0.05)
            held = {key for key in live.dump(5) if b"FAR" in key}
            assert held
            if live.phase.at_least(Phase.BACKFILLED):
                assert unequal(live) == []
            act()
            writer.send_signal(signal.SIGCONT)
            time.sleep(0.4)
        assert not [key for key in live.dump(5) if b"FAR:hash" in key]
        out, _ = writer.communicate("", timeout=120)
    finally:
        writer.kill()
        writer.wait()
    assert writer.returncode == 0
    storm = Storm(lambda i: dual(live.server.port), 1)
    storm.writers[0].name, storm.writers[0].did = "FAR", json.loads(out.splitlines()[-1])["did"]
    storm.expect(live.new, new_name)
    storm.close()
