"""kill -9 of every command of a live migration at every point, writers going on: given again, nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fault.live_storm import Storm, new_name, operating, settle, storming
from tests.unit.migrate.live_system import PLAN, LiveSystem

from onetape.embedded import EmbeddedServer
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import Names

STATE = ("state_intended", "state_changed", "state_recorded")
#: Command → (the phase before, the phase after, points).
COMMANDS: dict[str, tuple[Phase, Phase, tuple[str, ...]]] = {
    "start": (Phase.PLANNED, Phase.DUAL_WRITING, STATE),
    "backfill": (Phase.DUAL_WRITING, Phase.BACKFILLED, ("intended:1", "acted:1", "recorded:1", *STATE)),
    "verify": (Phase.BACKFILLED, Phase.VERIFIED, STATE),
    "switch-reads": (Phase.VERIFIED, Phase.READS_SWITCHED, STATE),
    "cutover": (Phase.READS_SWITCHED, Phase.CUT_OVER, (*STATE, "cut_over")),
    "rollback reads_switched": (
        Phase.CUT_OVER, Phase.READS_SWITCHED,
        ("kept:1", "forced:1", "forced:3", "reversed:1", "sides_taken", *STATE, "carried_over"),
    ),
    "rollback planned": (Phase.BACKFILLED, Phase.PLANNED, ("sides_taken", *STATE)),
    "finish": (Phase.CUT_OVER, Phase.FINISHED, ("sides_taken", *STATE, "unlinked:1", "unlinked:2")),
}  # fmt: skip
CASES = [(command, point) for command, (_, _, points) in COMMANDS.items() for point in points]
TURNS = [("valkey" if turn % 2 else "redis", *case) for turn, case in enumerate(CASES)]
#: Each case on one of the servers: what is killed is the client.
TAKE_TURNS = pytest.mark.parametrize(("server_of_session", "command", "point"), TURNS, indirect=["server_of_session"])


@pytest.fixture
def live(server: EmbeddedServer, tmp_path: Path) -> Iterator[LiveSystem]:
    system = LiveSystem(server, tmp_path)
    system.fill()
    yield system
    for client in (system.old, system.sessions, system.new):
        client.close()


def again(live: LiveSystem, command: str) -> None:
    """Give the command again, as an operator does who waited for the lease of the one that was killed to end."""
    live.new.delete(Names.of(PLAN).operator)
    with operating(live, command) as operator:
        name, code, told = operator.join()
    # An old key that was written in the moment of the finish stays, and is named: 3.
    assert name == "done" and code in ((0, 3) if command == "finish" else (0,)), (name, code, told)


def strangers(live: LiveSystem) -> None:
    """Write under new names alone, as others than our clients do: there is something to carry back."""
    for i in range(5):
        live.new.set(f"ind:S1:new{i}", i)
    live.new.set("ind:S1:rsi", "changed there")


def carried_back(live: LiveSystem) -> None:
    assert live.old.get("indicators:S1:rsi") == b"changed there"
    assert [live.old.get(f"indicators:S1:new{i}") for i in range(5)] == [b"%d" % i for i in range(5)]


def converged(live: LiveSystem, storm: Storm) -> None:
    """Fail unless a backfill and a verify find both sides equal, and they hold exactly what was written."""
    if live.phase is Phase.DUAL_WRITING:
        assert live.migration.backfill().exit_code == 0
    result = live.migration.verify(pause_s=0.05)
    assert result.exit_code == 0, result.differences
    settle(live, storm)


@TAKE_TURNS
def test_a_command_killed_at_any_point_is_given_again_and_writers_lose_nothing(
    live: LiveSystem, command: str, point: str
) -> None:
    before, after, _points = COMMANDS[command]
    live.to(before)
    with storming(live) as storm:
        if command == "rollback reads_switched":
            strangers(live)
        with operating(live, command, point) as operator:
            assert operator.join()[0] == "killed", "the point was not passed"
        storm.more(2)
        again(live, command)
        assert live.phase is after
        again(live, command)
        assert live.phase is after
    if after is Phase.FINISHED:
        storm.expect(live.new, new_name)
        assert live.migration.finish(quiet_for_s=0, drop_differing=True, execute=True).exit_code == 0
        assert live.dump(5) == live.dump(2) == {}
        storm.expect(live.new, new_name)
        return
    if command == "rollback reads_switched":
        carried_back(live)
    storm.expect(live.old)
    if after is not Phase.PLANNED:
        converged(live, storm)


def _differ(live: LiveSystem) -> None:
    """Make pairs differ in each way: by stragglers, in both directions, and by expiry alone."""
    live.old.set("indicators:S1:rsi", "by a straggler")
    live.old.rpush("indicators:S3:list", "by a straggler")
    live.new.delete("ind:S4:set")
    live.new.persist("ind:S6:stream")
    live.new.hset("ind:S2:bands", "upper", "3")
    live.new.expire("ind:S5:zset", 1000)


@pytest.mark.parametrize("point", ["kept:1", "kept:3", "forced:1", "forced:3", "forced:5"])
def test_a_repair_killed_at_any_point_is_given_again(live: LiveSystem, point: str) -> None:
    live.to(Phase.VERIFIED)
    with storming(live) as storm:
        _differ(live)
        with operating(live, "repair", point) as operator:
            assert operator.join()[0] == "killed", "the point was not passed"
        storm.more(2)
        again(live, "repair")
    assert live.old.get("indicators:S1:rsi") == b"by a straggler"
    assert live.old.lindex("indicators:S3:list", -1) == b"by a straggler"
    converged(live, storm)


@pytest.mark.parametrize("point", ["unlinked:1", "put_back", "undone", "forgotten"])
def test_an_undo_killed_at_any_point_is_given_again_and_old_writers_notice_nothing(
    live: LiveSystem, point: str
) -> None:
    live.new.set("ind:S1:rsi", "theirs")
    live.new.set("ind:FOREIGN:x", "theirs")
    live.to(Phase.BACKFILLED)
    with storming(live) as storm:
        live.migration.repair(replace_newer=True, execute=True)
        assert live.new.get("ind:S1:rsi") == b"61.5"
        live.migration.rollback(to=Phase.PLANNED, execute=True)
        live.new.set("ind:S5:zset:later", "theirs")
        with operating(live, "undo", point) as operator:
            assert operator.join()[0] == "killed", "the point was not passed"
        storm.more(2)
        live.new.delete(Names.of(PLAN).operator)
        with operating(live, "undo") as operator:
            name, code, told = operator.join()
        # A key that was written between the last look of the way back and the change stays, and is named: 3.
        assert name == "done" and code in (0, 3), (name, code, told)
        storm.more(2)
    storm.expect(live.old)
    left = set(live.dump(1))
    assert {b"ind:FOREIGN:x", b"ind:S5:zset:later", b"ind:S1:rsi"} <= left
    assert live.new.get("ind:S1:rsi") == b"theirs", "what was replaced is back"
    assert not {key for key in left if key.startswith((b"ind:S2", b"ind:S3", b"ind:S4", b"ind:S6", b"sess:"))}
