"""The undo: exactly what the migration made is gone, exactly what it replaced is back, all else stays and is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.migrate.live_system import PLAN, LiveSystem
from tests.unit.migrate.test_rollback import Killed, Points

from onetape.embedded import EmbeddedServer
from onetape.errors import PhaseRefused
from onetape.migrate.migration import Migration
from onetape.migrate.phases.phase import ORDER, Phase


@pytest.fixture
def points() -> Points:
    return Points()


@pytest.fixture
def live(server: EmbeddedServer, tmp_path: Path, points: Points) -> LiveSystem:
    system = LiveSystem(server, tmp_path, at=points)
    system.fill()
    return system


def test_a_historical_backfill_is_taken_back(live: LiveSystem, tmp_path: Path) -> None:
    live.new.set("mine", "1")
    before, old = live.dump(1), live.dump(5)
    live.migration.backfill()
    dry = live.migration.undo()
    assert (dry.executed, dry.facts["removed"]) == (False, 27)
    assert len(live.dump(1)) == 28
    move = live.migration.undo(execute=True)
    assert (move.exit_code, move.facts["removed"]) == (0, 27)
    assert (live.dump(1), live.dump(5)) == (before, old)
    assert live.migration.undo(execute=True).changed is False
    assert [path.name.split("-")[0] for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == [
        "ledger.undone"
    ]
    assert live.migration.backfill().totals == {"copied": 27}


@pytest.mark.parametrize("phase", ORDER[1:-1])
def test_each_phase_is_taken_back_after_the_way_back(live: LiveSystem, phase: Phase) -> None:
    live.new.set("ind:BEFORE:rsi", "theirs")
    live.new.set("mine", "1")
    before, old = live.dump(1), live.dump(5)
    live.to(phase)
    with pytest.raises(PhaseRefused, match="rollback --to planned"):
        live.migration.undo(execute=True)
    live.write("S1:rsi", "61.5")
    live.old.persist("indicators:S1:rsi")
    live.write("DUAL:rsi", "made by a dual writer")
    live.write("S3:list", "changed by a dual writer")
    live.migration.rollback(to="planned", execute=True)
    live.old.set("indicators:DUAL:rsi", "moved on")  # by a writer that writes old names again
    move = live.migration.undo(execute=True)
    assert move.exit_code == 0
    assert live.dump(1) == before
    back = {b"indicators:BEFORE:rsi"} if phase is Phase.CUT_OVER else set()  # the new names were the truth
    assert set(live.dump(5)) == {*old, b"indicators:DUAL:rsi", *back}
    assert live.new.keys("onetape:*") == []
    live.to(Phase.CUT_OVER)


def test_what_was_written_since_stays_and_is_named(live: LiveSystem) -> None:
    live.migration.backfill()
    live.new.set("ind:S1:rsi", "newer")
    live.new.expire("ind:S5:zset", 1000)
    move = live.migration.undo(execute=True)
    assert (move.exit_code, move.facts["removed"], move.facts["kept"]) == (3, 25, 2)
    assert live.new.get("ind:S1:rsi") == b"newer"
    assert live.new.exists("ind:S5:zset")
    assert any("ind:S1:rsi" in warning for warning in move.warnings)


def test_what_was_there_and_equal_is_not_ours(live: LiveSystem) -> None:
    live.new.set("ind:S3:list", "another")
    live.new.set("sess:1", "1")  # equal to its old key
    before = live.dump(1)
    live.migration.backfill()
    live.migration.undo(execute=True)
    assert live.dump(1) == before
    live.to(Phase.BACKFILLED)
    live.migration.rollback(to="planned", execute=True)
    live.migration.undo(execute=True)
    assert live.dump(1) == before


@pytest.mark.parametrize("mirrored", [False, True])
def test_what_was_there_and_equal_is_not_ours_even_where_a_kill_left_it_in_doubt(
    live: LiveSystem, points: Points, mirrored: bool
) -> None:
    live.new.set("ind:S5:text", "equal")
    live.old.set("indicators:S5:text", "equal")
    before = live.dump(1)
    live.migration.start(mirrored=mirrored, execute=True)
    points.kill = "intended"
    with pytest.raises(Killed):
        live.migration.backfill()
    assert live.migration.backfill().exit_code == 0
    assert live.migration.verify(pause_s=0.1).exit_code == 0
    live.migration.rollback(to="planned", execute=True)
    live.migration.undo(execute=True)
    assert live.dump(1) == before


def test_what_a_repair_replaced_is_put_back(live: LiveSystem) -> None:
    live.new.set("ind:S1:rsi", b"theirs\x00", px=4_000_000)
    before = live.dump(1)
    live.migration.backfill()
    assert live.new.get("ind:S1:rsi") == b"theirs\x00"
    assert live.migration.repair(replace_newer=True, execute=True).facts["replaced"] == 1
    assert live.new.get("ind:S1:rsi") == b"61.5"
    dry = live.migration.undo()
    assert (dry.facts["put_back"], dry.facts["removed"]) == (1, 26)
    move = live.migration.undo(execute=True)
    assert (move.exit_code, move.facts["put_back"]) == (0, 1)
    assert live.dump(1) == before


@pytest.mark.parametrize("point", ["unlinked", "put_back", "undone", "forgotten"])
def test_a_kill_on_the_way_is_gone_on_from(live: LiveSystem, points: Points, point: str) -> None:
    live.new.set("ind:S1:rsi", "theirs")
    before = live.dump(1)
    live.to(Phase.DUAL_WRITING)
    live.migration.backfill()
    live.migration.repair(replace_newer=True, execute=True)
    live.migration.rollback(to="planned", execute=True)
    points.kill = point
    with pytest.raises(Killed):
        live.migration.undo(execute=True)
    assert live.migration.undo(execute=True).exit_code == 0
    assert live.dump(1) == before
    assert live.new.keys("onetape:*") == []


def test_a_plan_made_in_code_can_be_taken_back(live: LiveSystem, tmp_path: Path) -> None:
    from onetape.migrate.plans.plan import Plan

    plan = Plan.of_glob("session:*", 2, transform=lambda key: b"s/" + key)
    migration = Migration(live.server.url, plan=plan, ledger_path=tmp_path / "glob")
    migration.backfill()
    assert live.new.dbsize() == 20
    live.sessions.delete("session:3")
    assert migration.undo(execute=True).facts["removed"] == 20
    assert live.new.dbsize() == 0
    assert plan.hash != PLAN.hash
