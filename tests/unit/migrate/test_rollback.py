"""The way back from each phase: nothing written meanwhile is lost, expiries are exact, a kill anywhere is no harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.migrate.live_system import LIMITS, LiveSystem

from onetape.embedded import EmbeddedServer
from onetape.errors import GateRefused, PhaseRefused
from onetape.migrate.phases.history import History
from onetape.migrate.phases.phase import ORDER, Phase
from onetape.migrate.steps.force import Done
from onetape.migrate.steps.mend import NEVER_THERE, UNPLACED, Mended
from onetape.migrate.steps.reverse import refuse_loss


class Killed(BaseException):
    """Stands for the end of the process at a point."""


class Points:
    """Ends a command at a point, and does something on the way there."""

    def __init__(self) -> None:
        self.kill = ""
        self.act: dict[str, object] = {}
        self.passed: list[str] = []

    def __call__(self, point: str) -> None:
        self.passed.append(point)
        act = self.act.pop(point, None)
        if callable(act):
            act()
        if point == self.kill:
            self.kill = ""
            raise Killed


@pytest.fixture
def points() -> Points:
    return Points()


@pytest.fixture
def live(server: EmbeddedServer, tmp_path: Path, points: Points) -> LiveSystem:
    system = LiveSystem(server, tmp_path, at=points)
    system.fill()
    return system


@pytest.mark.parametrize("phase", ORDER[1:-1])
def test_each_phase_leads_one_step_back_and_forward_again(live: LiveSystem, phase: Phase) -> None:
    live.to(phase)
    old = live.dump(5)
    dry = live.migration.rollback()
    assert (dry.executed, dry.before, dry.after) == (False, str(phase), str(ORDER[phase.place - 1]))
    assert live.phase is phase
    move = live.migration.rollback(execute=True)
    assert (move.executed, move.after) == (True, str(ORDER[phase.place - 1]))
    assert live.phase is ORDER[phase.place - 1]
    assert live.dump(5) == old
    live.to(phase)
    assert live.phase is phase


@pytest.mark.parametrize("phase", ORDER[1:-1])
def test_each_phase_leads_back_to_the_start_at_once(live: LiveSystem, phase: Phase) -> None:
    live.to(phase)
    old = live.dump(5)
    move = live.migration.rollback(to="planned", execute=True)
    assert move.after == "planned"
    state = live.state
    assert state is not None
    assert (state.phase, state.read_share) == (Phase.PLANNED, 0.0)
    assert live.dump(5) == old
    with pytest.raises(PhaseRefused, match="nothing to roll back"):
        live.migration.rollback(execute=True)


def test_what_was_written_under_new_names_alone_comes_back(live: LiveSystem) -> None:
    live.to(Phase.CUT_OVER)
    live.new.set("ind:S1:rsi", "99", px=1_234_567)  # by a program that knows the new names only
    live.new.set("ind:NEW:rsi", b"\x00\xfe", ex=500)
    live.new.delete("ind:S3:list")
    live.new.set("unrelated", 1)
    expires = live.new.execute_command("PEXPIRETIME", "ind:S1:rsi")
    dry = live.migration.rollback()
    assert dry.facts["mend"]["replaced"] == dry.facts["mend"]["copied"] == dry.facts["mend"]["removed"] == 1
    assert live.old.get("indicators:S1:rsi") == b"61.5"
    move = live.migration.rollback(execute=True)
    assert (move.after, move.exit_code) == ("reads_switched", 0)
    assert live.old.get("indicators:S1:rsi") == b"99"
    assert live.old.execute_command("PEXPIRETIME", "indicators:S1:rsi") == expires
    assert live.old.get("indicators:NEW:rsi") == b"\x00\xfe"
    assert live.old.exists("indicators:S3:list") == 0
    assert live.migration.verify(pause_s=0).exit_code == 0
    with History(live.ledger_path) as history:
        kept = {row.key: row for row in history.replaced()}
    assert set(kept) == {b"indicators:S1:rsi", b"indicators:S3:list"}  # what was replaced can be had back
    live.old.restore("again", 0, kept[b"indicators:S3:list"].payload)
    assert live.old.lrange("again", 0, -1) == [b"%d" % i for i in range(10)]


def test_what_is_written_in_the_moment_of_the_change_is_not_lost(live: LiveSystem, points: Points) -> None:
    live.to(Phase.CUT_OVER)

    def meanwhile() -> None:
        live.new.set("ind:S1:rsi", "late")
        live.new.set("ind:LATE:rsi", "made")
        live.new.delete("ind:S2:bands")
        live.old.set("indicators:S5:zset", "straggler")
        live.new.set("ind:S4:set", "new side")
        live.old.set("indicators:S4:set", "old side")
        live.write("S3:list", "both")

    points.act["sides_taken"] = meanwhile
    move = live.migration.rollback(execute=True)
    assert live.old.get("indicators:S1:rsi") == b"late"
    assert live.old.get("indicators:LATE:rsi") == b"made"
    assert live.old.exists("indicators:S2:bands") == 0
    assert live.old.get("indicators:S3:list") == b"both"
    assert live.old.get("indicators:S5:zset") == b"straggler"
    assert live.old.get("indicators:S4:set") == b"old side"
    assert any("S4:set" in warning and "both sides" in warning for warning in move.warnings)
    with History(live.ledger_path) as history:
        (aside,) = history.replaced(db=1, key=b"ind:S4:set")
    live.old.restore("again", 0, aside.payload)
    assert live.old.get("again") == b"new side"


def test_an_old_key_without_a_new_one_stays_where_nothing_says_that_it_was_deleted(live: LiveSystem) -> None:
    live.to(Phase.CUT_OVER)
    live.old.set("indicators:STRAGGLER:rsi", "1")
    move = live.migration.rollback(execute=True)
    assert live.old.get("indicators:STRAGGLER:rsi") == b"1"
    assert any("STRAGGLER" in warning for warning in move.warnings)


POINTS = (
    "kept",
    "forced",
    "reversed",
    "sides_taken",
    "state_intended",
    "state_changed",
    "state_recorded",
    "carried_over",
)


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_on_the_way_back_is_no_harm(live: LiveSystem, points: Points, point: str) -> None:
    live.to(Phase.CUT_OVER)
    live.new.set("ind:S1:rsi", "99")
    live.new.set("ind:NEW:rsi", "new")
    points.act["sides_taken"] = lambda: live.new.set("ind:S2:bands", "late")
    points.kill = point
    with pytest.raises(Killed):
        live.migration.rollback(execute=True)
    assert not points.kill
    live.migration.rollback(to="reads_switched", execute=True)
    assert live.phase is Phase.READS_SWITCHED
    assert live.old.get("indicators:S1:rsi") == b"99"
    assert live.old.get("indicators:NEW:rsi") == b"new"
    assert live.old.get("indicators:S2:bands") == b"late"
    assert live.migration.verify(pause_s=0).exit_code == 0
    assert live.migration.rollback(to="reads_switched", execute=True).changed is False
    assert [t for t in live.migration.status().transitions if t.ended_ns is None] == []


def test_a_way_back_that_was_not_finished_shuts_the_gate(live: LiveSystem, points: Points) -> None:
    live.to(Phase.CUT_OVER)
    points.kill = "state_changed"
    with pytest.raises(Killed):
        live.migration.rollback(execute=True)
    with pytest.raises(GateRefused, match="rollback was not finished"):
        live.to(Phase.CUT_OVER)
    dry = live.migration.rollback()
    assert "not finished" in dry.lines[0]
    assert live.migration.rollback(execute=True).after == "reads_switched"
    live.to(Phase.CUT_OVER)


def test_after_the_cutover_a_forgotten_state_goes_back_to_the_old_names(live: LiveSystem) -> None:
    live.to(Phase.CUT_OVER)
    old = live.dump(5)
    live.new.flushdb()
    version = 0
    move = live.migration.rollback(execute=True)
    assert move.after == "dual_writing"
    assert move.version > version
    assert live.dump(5) == old
    live.migration.backfill()
    assert live.migration.verify(pause_s=0).exit_code == 0
    assert live.phase is Phase.VERIFIED


@pytest.mark.parametrize("point", ["sides_taken", "state_intended", "state_changed"])
def test_what_was_put_down_before_the_server_lost_the_new_side_removes_no_old_key(
    live: LiveSystem, points: Points, point: str
) -> None:
    live.to(Phase.CUT_OVER)
    old = live.dump(5)
    points.kill = point
    with pytest.raises(Killed):
        live.migration.rollback(execute=True)
    live.new.flushdb()
    live.migration.rollback(execute=True)  # the state is written anew
    move = live.migration.rollback(execute=True)
    assert (move.before, move.after) == ("dual_writing", "planned")
    assert live.dump(5) == old


def test_an_old_value_too_big_to_be_kept_stops_the_way_back_before_the_new_one_is_given_up(
    live: LiveSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.old.set("indicators:BIG:x", b"a" * 3_000_000)
    live.to(Phase.CUT_OVER)
    live.new.set("ind:BIG:x", b"b" * 3_000_000)
    monkeypatch.setattr("onetape.migrate.steps.force.KEPT_BYTES_MAX", 1000)
    with pytest.raises(GateRefused, match="--discard lets it go"):
        live.migration.rollback(execute=True)
    assert live.phase is Phase.CUT_OVER
    live.migration.rollback(execute=True, discard=True)
    assert live.old.get("indicators:BIG:x") == b"b" * 3_000_000


def test_a_loss_is_refused_however_many_harmless_keys_are_named_before_it() -> None:
    found = Mended()
    for number in range(300):
        found.add(str(number), Done("left", NEVER_THERE))
    found.add("the last one", Done("left", UNPLACED))
    with pytest.raises(GateRefused, match="1 keys cannot be carried back to their old names: the last one"):
        refuse_loss(found, force=False)
    assert "the last one" in refuse_loss(found, force=True)


def test_a_way_back_that_left_differences_takes_a_verify_before_the_next_cutover(
    live: LiveSystem, points: Points
) -> None:
    def both_written() -> None:
        live.old.set("indicators:S1:rsi", "old")
        live.new.set("ind:S1:rsi", "new")

    live.to(Phase.CUT_OVER)
    live.migration.rollback(execute=True)
    live.to(Phase.CUT_OVER)  # nothing was left: what was verified before still holds
    points.act["sides_taken"] = both_written
    live.migration.rollback(execute=True)
    live.old.delete("indicators:S1:rsi")
    live.new.delete("ind:S1:rsi")
    (reason,) = live.migration.cutover(limits=LIMITS).facts["reasons"]
    assert "no verify since" in reason
    live.migration.verify(pause_s=0)
    live.to(Phase.CUT_OVER)


def test_after_a_way_back_no_verify_takes_our_own_older_writes_for_somebody_newer(live: LiveSystem) -> None:
    live.new.set("ind:THEIRS:rsi", "there before")
    live.old.set("indicators:THEIRS:rsi", "another")
    live.to(Phase.BACKFILLED)
    live.migration.verify(pause_s=0.1)
    live.write("S1:rsi", "written to both sides after the digests were taken")
    live.migration.rollback(to="planned", execute=True)
    live.old.set("indicators:S1:rsi", "newer, under its old name alone")
    assert live.migration.backfill().exit_code == 0
    found = live.migration.verify(pause_s=0.1)
    assert (found.verdict, len(found.differences), len(found.skips)) == ("not proven", 1, 1)
    assert "migrate start carries it over" in found.differences[0]
    assert "ind:THEIRS:rsi" in found.skips[0]
    live.migration.start(execute=True)
    assert live.new.get("ind:S1:rsi") == b"newer, under its old name alone"
    assert live.new.get("ind:THEIRS:rsi") == b"there before"
    assert live.migration.verify(pause_s=0.1).exit_code == 3
