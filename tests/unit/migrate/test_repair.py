"""The repair: what differs is made equal towards the truth of the phase, what it replaces is kept, the rest named."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.migrate.live_system import LiveSystem
from tests.unit.migrate.test_rollback import Killed, Points

from onetape.embedded import EmbeddedServer
from onetape.errors import SourceVanished, StateMoved
from onetape.migrate.phases.history import History
from onetape.migrate.phases.phase import Phase


@pytest.fixture
def points() -> Points:
    return Points()


@pytest.fixture
def live(server: EmbeddedServer, tmp_path: Path, points: Points) -> LiveSystem:
    system = LiveSystem(server, tmp_path, at=points)
    system.fill()
    return system


def _damage(live: LiveSystem) -> None:
    live.new.set("ind:S1:rsi", "damaged", px=999_999)
    live.new.delete("ind:S2:bands")
    live.new.persist("ind:S3:list")
    live.new.expire("ind:S3:list", 77)
    live.new.sadd("ind:S4:set", "one more")


def test_before_the_cutover_new_keys_are_made_what_the_old_ones_are(live: LiveSystem) -> None:
    live.to(Phase.VERIFIED)
    _damage(live)
    live.old.delete("indicators:S5:zset")  # by a straggler: its copy is still what was copied
    old = live.dump(5)
    dry = live.migration.repair()
    assert (dry.executed, dry.facts["replaced"], dry.facts["copied"], dry.facts["removed"]) == (False, 3, 1, 1)
    assert live.new.get("ind:S1:rsi") == b"damaged"
    move = live.migration.repair(execute=True)
    assert (move.facts["replaced"], move.facts["copied"], move.facts["removed"]) == (3, 1, 1)
    assert live.dump(5) == old
    assert {key.replace(b"ind:", b"indicators:"): held for key, held in live.dump(1).items() if b"ind:" in key} == old
    assert live.migration.verify(pause_s=0).exit_code == 0
    assert live.migration.repair(execute=True).changed is False
    with History(live.ledger_path) as history:
        kept = {row.key: row for row in history.replaced()}
    assert set(kept) == {b"ind:S1:rsi", b"ind:S3:list", b"ind:S4:set", b"ind:S5:zset"}


def test_after_the_cutover_old_keys_are_made_what_the_new_ones_are(live: LiveSystem) -> None:
    live.to(Phase.CUT_OVER)
    _damage(live)
    new = live.dump(1)
    move = live.migration.repair(execute=True)
    assert (move.facts["replaced"], move.facts["removed"]) == (3, 1)
    assert live.dump(1) == new
    assert live.old.get("indicators:S1:rsi") == b"damaged"
    assert live.old.exists("indicators:S2:bands") == 0
    assert live.migration.verify(pause_s=0).exit_code == 0


def test_what_somebody_newer_wrote_before_is_left_unless_it_is_asked_for(live: LiveSystem) -> None:
    live.new.set("ind:S1:rsi", "newer")
    live.to(Phase.BACKFILLED)
    move = live.migration.repair(execute=True)
    assert move.facts["left"] == 1
    assert "newer" in move.warnings[0]
    assert live.new.get("ind:S1:rsi") == b"newer"
    assert live.migration.repair(replace_newer=True, execute=True).facts["replaced"] == 1
    assert live.new.get("ind:S1:rsi") == b"61.5"


def test_a_key_that_a_writer_takes_while_it_is_repaired_ends_equal(live: LiveSystem, points: Points) -> None:
    live.to(Phase.VERIFIED)
    live.new.set("ind:S1:rsi", "damaged")
    points.act["kept"] = lambda: live.write("S1:rsi", "70")
    live.migration.repair(execute=True)
    assert live.old.get("indicators:S1:rsi") == live.new.get("ind:S1:rsi") == b"70"


def test_a_change_of_phase_ends_a_repair(live: LiveSystem, points: Points) -> None:
    live.to(Phase.CUT_OVER)
    live.new.set("ind:S1:rsi", "truth")

    def turned() -> None:
        from tests.unit.migrate.live_system import PLAN

        from onetape.migrate.phases import state as states
        from onetape.migrate.wire.endpoint import Endpoint

        with Endpoint.connect(live.server.url) as endpoint:
            states.change(endpoint, PLAN, live.state.version, phase=Phase.READS_SWITCHED)  # type: ignore[union-attr]

    points.act["kept"] = turned
    with pytest.raises(StateMoved):
        live.migration.repair(execute=True)
    assert live.old.get("indicators:S1:rsi") == b"61.5"


@pytest.mark.parametrize("point", ["kept", "forced"])
def test_a_kill_in_the_middle_is_gone_on_from(live: LiveSystem, points: Points, point: str) -> None:
    live.to(Phase.VERIFIED)
    before = live.dump(1)
    _damage(live)
    points.kill = point
    with pytest.raises(Killed):
        live.migration.repair(execute=True)
    live.migration.repair(execute=True)
    assert live.migration.verify(pause_s=0).exit_code == 0
    assert set(live.dump(1)) == set(before)
    live.migration.rollback(to="planned", execute=True)
    live.migration.undo(execute=True)
    # What a repair replaced was somebody else's: it is there again.
    assert live.new.get("ind:S1:rsi") == b"damaged"


def test_a_value_too_big_to_be_kept_is_left_until_it_may_go(live: LiveSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onetape.migrate.steps.force.KEPT_BYTES_MAX", 1000)
    monkeypatch.setattr("onetape.migrate.verifying.side.BIG_BYTES", 2000)
    monkeypatch.setattr("onetape.migrate.steps.force.BIG_BYTES", 2000)
    live.to(Phase.VERIFIED)
    live.new.set("ind:S1:rsi", b"x" * 5000)
    assert "too much to keep" in live.migration.repair(execute=True).warnings[0]
    assert live.new.strlen("ind:S1:rsi") == 5000
    assert live.migration.repair(discard=True, execute=True).facts["replaced"] == 1
    assert live.new.get("ind:S1:rsi") == b"61.5"


def test_a_flushed_source_makes_a_repair_remove_nothing(live: LiveSystem) -> None:
    for number in range(150):
        live.old.set(f"indicators:F{number}:rsi", number)
    live.to(Phase.VERIFIED)
    new = live.dump(1)
    live.old.flushdb()  # database 5, by accident
    for execute in (False, True):
        with pytest.raises(SourceVanished, match="of database 5 are gone under their old names") as refused:
            live.migration.repair(execute=execute)
        assert refused.value.facts["keys"] >= 150
        assert "--allow-flush" in str(refused.value.hint)
    assert {key: held for key, held in live.dump(1).items() if b"ind:" in key} == {
        key: held for key, held in new.items() if b"ind:" in key
    }
    assert live.migration.repair(allow_flush=True, execute=True).facts["removed"] >= 150


def test_a_flushed_target_makes_a_way_back_from_the_cutover_remove_nothing(live: LiveSystem) -> None:
    for number in range(150):
        live.old.set(f"indicators:F{number}:rsi", number)
    live.to(Phase.CUT_OVER)
    old = live.dump(5)
    gone = live.new.keys("ind:*")
    live.new.delete(*gone)
    for execute in (False, True):
        with pytest.raises(SourceVanished, match="are gone under their new names"):
            live.migration.rollback(execute=execute)
    assert live.dump(5) == old
    assert live.migration.status().phase == Phase.CUT_OVER
    assert live.migration.rollback(allow_flush=True, execute=True).after == "reads_switched"
    assert not live.dump(5)
