"""Clocks that are an hour wrong, or set in the middle: nothing that counts goes by the clock of a client."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from tests import mirroring
from tests.fault.live_storm import settle, storming
from tests.unit.migrate.live_system import LIMITS, LiveSystem
from tests.waiting import waited_for

from onetape.embedded import EmbeddedServer
from onetape.migrate.phases import state as states
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import Names

HOUR_NS = 3_600_000_000_000


class Clock:
    """The wall clock of this process: `step` sets it, by ns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step_ns = 0
        real_ns, real = time.time_ns, time.time
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + self.step_ns)
        monkeypatch.setattr(time, "time", lambda: real() + self.step_ns / 1e9)

    def step(self, ns: int) -> None:
        self.step_ns += ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def live(server: EmbeddedServer, tmp_path: Path) -> Iterator[LiveSystem]:
    system = LiveSystem(server, tmp_path)
    system.fill()
    yield system
    for client in (system.old, system.sessions, system.new):
        client.close()


@pytest.mark.parametrize("step_ns", [HOUR_NS, -HOUR_NS], ids=["forward", "back"])
def test_a_clock_that_is_set_in_every_phase_changes_nothing(live: LiveSystem, clock: Clock, step_ns: int) -> None:
    points: list[str] = []

    def at(point: str) -> None:
        points.append(point)
        if point in ("intended", "state_intended", "sides_taken"):
            clock.step(step_ns if len(points) % 2 else -step_ns)

    live.migration._at = live.migration.helm.at = at
    for i in range(300):
        live.old.set(f"indicators:E{i}:expiring", i, px=60_000 + i)
    with storming(live) as storm:
        live.to(Phase.CUT_OVER)
        clock.step(step_ns)
        storm.more(2)
        live.migration.rollback(execute=True)
        live.to(Phase.CUT_OVER)
    assert {"intended", "state_intended", "sides_taken"} <= set(points)
    settle(live, storm)
    left = [live.old.pttl(f"indicators:E{i}:expiring") for i in range(0, 300, 50)]
    assert all(0 < one <= 60_300 for one in left), left


@pytest.mark.parametrize("step_ns", [HOUR_NS, -HOUR_NS], ids=["forward", "back"])
def test_the_gate_hears_clients_whose_clock_is_wrong(live: LiveSystem, clock: Clock, step_ns: int) -> None:
    live.to(Phase.READS_SWITCHED)
    with storming(live) as storm:
        time.sleep(1.2)
        clock.step(step_ns)
        storm.more(2)
        time.sleep(1.2)

        def heard() -> bool:
            now_ms = states.server_ms(live.migration.helm.connect())
            told = [facts["at_ms"] for facts in live.migration.helm.clients(live.migration.helm.connect()).values()]
            return len(told) == 2 and all(abs(now_ms - at_ms) < 5000 for at_ms in told)

        waited_for(heard, "both writers tell the server's time")
        move = live.migration.cutover(limits=LIMITS, execute=True)
        assert move.executed and not any("stands still" in line or "ended" in line for line in move.warnings)
    settle(live, storm)


def test_a_divergence_told_by_a_client_whose_clock_is_behind_is_one_after_the_verify(
    live: LiveSystem, clock: Clock
) -> None:
    live.to(Phase.READS_SWITCHED)
    clock.step(-HOUR_NS)
    with storming(live, on_unmapped="pass") as storm:
        client = storm.writers[0].client
        before_ms = states.server_ms(live.migration.helm.connect())
        client.execute_command("SORT", "indicators:S3:list", "STORE", "indicators:S3:sorted")
        client.eval("redis.call('SET', KEYS[1], 1)", 1, "indicators:S9:by_script")
        diverged = live.migration.helm.diverged(live.migration.helm.connect())
        assert diverged and all(facts["at_ms"] >= before_ms - 1000 for facts in diverged.values()), diverged


@pytest.mark.parametrize("step_ns", [HOUR_NS, -HOUR_NS], ids=["forward", "back"])
def test_a_lease_lasts_as_long_whatever_the_clock_says(live: LiveSystem, clock: Clock, step_ns: int) -> None:
    live.to(Phase.DUAL_WRITING)
    with live.migration.helm.lease("backfill") as lease:
        clock.step(step_ns)
        lease.check()
        time.sleep(0.2)
        lease.check()
        left = live.new.pttl(Names.of(live.migration.helm.plan).operator)
        assert 0 < left <= states.LEASE_MS


@pytest.mark.parametrize("step_ns", [HOUR_NS, -HOUR_NS], ids=["forward", "back"])
def test_a_mirror_whose_clock_is_set_goes_on(
    server: EmbeddedServer, tmp_path: Path, clock: Clock, step_ns: int
) -> None:
    old = redis.Redis(port=server.port, db=5)
    mirroring.begin(server.url)
    with mirroring.mirroring(server.url, tmp_path) as running:
        for i in range(200):
            old.incr(f"old:{i % 20}")
            if i % 50 == 0:
                clock.step(step_ns if i % 100 else -step_ns)
        running.swept()
        told = running.now.at_ms
        server_ms = int(old.time()[0]) * 1000
        assert abs(told - server_ms) < 5000 and (running.now.lag_ms is None or 0 <= running.now.lag_ms < 5000)
    assert mirroring.differences(server.url) == []


# The server's own clock


def _faked() -> Path:
    """The library that gives a program another clock."""
    told = os.environ.get("ONETAPE_FAKETIME")
    for place in [Path(told)] if told else Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"):
        return place
    pytest.skip("no libfaketime: apt-get install libfaketime, or set ONETAPE_FAKETIME")


@pytest.mark.parametrize("step", ["+1h", "-1h"])
def test_a_server_whose_clock_is_set_keeps_expiries_equal_and_the_operator_s_lease_safe(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "clock"
    wrong.write_text("+0")
    monkeypatch.setenv("LD_PRELOAD", str(_faked()))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(wrong))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    server = EmbeddedServer()
    server.start()
    for name in ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE", "FAKETIME_NO_CACHE", "FAKETIME_DONT_FAKE_MONOTONIC"):
        monkeypatch.delenv(name)
    try:
        live = LiveSystem(server, tmp_path)
        live.fill()
        for i in range(50):
            live.old.set(f"indicators:E{i}:expiring", i, ex=20_000)
        acts: list[Callable[[], object]] = [lambda: wrong.write_text(step)]
        live.migration._at = live.migration.helm.at = lambda point: acts and point == "intended" and acts.pop()()
        with storming(live) as storm:
            live.to(Phase.BACKFILLED)
            assert abs(live.old.time()[0] - time.time()) > 3000
            time.sleep(4)  # until the writers know the server's new time
            live.to(Phase.CUT_OVER)
            storm.more(2)
        assert live.old.exists("indicators:E1:expiring") == live.new.exists("ind:E1:expiring") == 1
        assert live.old.exists("indicators:S1:rsi") == live.new.exists("ind:S1:rsi") == (step == "-1h")
        settle(live, storm)
    finally:
        server.stop()
