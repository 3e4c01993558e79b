"""The finish: old keys go where nothing is lost with them, others stay and are named; killed, it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from tests.unit.migrate.live_system import LiveSystem
from tests.unit.migrate.test_rollback import Killed, Points

from onetape.embedded import EmbeddedServer
from onetape.errors import GateRefused, PhaseRefused
from onetape.migrate.phases.history import History
from onetape.migrate.phases.phase import Phase


@pytest.fixture
def points() -> Points:
    return Points()


@pytest.fixture
def live(server: EmbeddedServer, tmp_path: Path, points: Points) -> LiveSystem:
    system = LiveSystem(server, tmp_path, at=points)
    system.fill()
    system.to(Phase.CUT_OVER)
    return system


def test_a_dry_run_counts_and_the_real_one_removes_and_again_nothing(live: LiveSystem) -> None:
    live.old.set("unmatched", 1)
    new = live.dump(1)
    dry = live.migration.finish()
    assert (dry.executed, dry.facts["removed"], dry.after) == (False, 27, "finished")
    assert live.old.dbsize() == 8
    move = live.migration.finish(execute=True)
    assert (move.after, move.facts["removed"], move.exit_code) == ("finished", 27, 0)
    assert live.old.keys() == [b"unmatched"]
    assert live.sessions.dbsize() == 0
    assert live.dump(1) == new
    assert live.migration.finish(execute=True).changed is False
    for command in (live.migration.rollback, live.migration.undo, live.migration.start, live.migration.repair):
        with pytest.raises(PhaseRefused):
            command(execute=True)
    with pytest.raises(PhaseRefused):
        live.migration.backfill()


def test_an_old_key_that_holds_something_of_its_own_stays(live: LiveSystem) -> None:
    live.old.set("indicators:S1:rsi", "straggler")
    live.old.set("indicators:ALONE:rsi", "straggler")
    move = live.migration.finish(execute=True)
    assert (move.exit_code, move.facts["kept"]) == (3, 2)
    assert live.old.get("indicators:S1:rsi") == b"straggler"
    assert live.old.get("indicators:ALONE:rsi") == b"straggler"
    assert {line.split(":", 1)[0] for line in move.warnings} == {"db 5 indicators"}
    again = live.migration.finish(execute=True, drop_differing=True)
    assert again.facts["removed"] == 2
    assert live.old.dbsize() == 0
    with History(live.ledger_path) as history:
        kept = {row.key: row.payload for row in history.replaced()}
    assert set(kept) == {b"indicators:S1:rsi", b"indicators:ALONE:rsi"}


def test_a_new_key_that_is_written_meanwhile_does_not_hold_its_old_one(live: LiveSystem, points: Points) -> None:
    points.act["state_changed"] = lambda: live.new.set("ind:S1:rsi", "only new is written now")
    move = live.migration.finish(execute=True)
    assert (move.exit_code, move.facts["removed"]) == (0, 27)
    assert live.new.get("ind:S1:rsi") == b"only new is written now"


def test_a_straggler_that_writes_while_it_is_removed_keeps_its_value(live: LiveSystem, points: Points) -> None:
    points.act["state_recorded"] = lambda: live.old.set("indicators:S1:rsi", "late")
    move = live.migration.finish(execute=True)
    assert move.facts["kept"] == 1
    assert live.old.get("indicators:S1:rsi") == b"late"


@pytest.mark.parametrize("point", ["sides_taken", "state_intended", "state_changed", "state_recorded", "unlinked"])
def test_a_kill_on_the_way_is_gone_on_from(live: LiveSystem, points: Points, point: str) -> None:
    new = live.dump(1)
    points.kill = point
    with pytest.raises(Killed):
        live.migration.finish(execute=True)
    move = live.migration.finish(execute=True)
    assert (live.phase, move.exit_code) == (Phase.FINISHED, 0)
    assert live.old.dbsize() + live.sessions.dbsize() == 0
    assert live.dump(1) == new


def test_it_is_refused_while_somebody_else_uses_the_old_databases(live: LiveSystem) -> None:
    reader = redis.Redis(port=live.server.port, db=5, client_name="old-reader")
    reader.get("indicators:S1:rsi")
    with pytest.raises(GateRefused, match="old-reader"):
        live.migration.finish(execute=True)
    assert live.phase is Phase.CUT_OVER
    assert live.migration.finish(execute=True, force=True).after == "finished"
    assert "old-reader" in live.migration.status().transitions[-1].reason
    reader.close()
