"""Commands given with another ledger than the migration's own, as from another directory: refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.migrate.live_system import LIMITS, PLAN, LiveSystem

from onetape.embedded import EmbeddedServer
from onetape.errors import LedgerUnusable
from onetape.migrate.migration import Migration
from onetape.migrate.phases.phase import Phase
from onetape.migrate.steps.course import STRANGE


@pytest.fixture
def live(server: EmbeddedServer, tmp_path: Path) -> LiveSystem:
    system = LiveSystem(server, tmp_path)
    system.fill()
    return system


@pytest.fixture
def other(server: EmbeddedServer, tmp_path: Path) -> Migration:
    return Migration(server.url, plan=PLAN, ledger_path=tmp_path / "other")


def test_a_way_back_with_another_ledger_is_refused_before_anything_is_written(
    live: LiveSystem, other: Migration
) -> None:
    live.old.acl_setuser("legacy", enabled=True, nopass=True, keys=["*"], commands=["+@all"])
    live.to(Phase.READS_SWITCHED)
    live.migration.cutover(limits=LIMITS, fence=["legacy"], execute=True)
    live.new.delete("ind:S2:bands")  # by somebody who knows new names only
    for execute in (False, True):
        with pytest.raises(LedgerUnusable, match=r"knows nothing of the live migration 'live' .* cut_over, version 5"):
            other.rollback(execute=execute)
    assert not other.ledger_path.exists()
    assert live.phase is Phase.CUT_OVER
    live.migration.rollback(execute=True)
    assert not live.old.exists("indicators:S2:bands")
    assert "%R" not in str(live.old.acl_getuser("legacy"))


def test_no_command_goes_on_with_another_ledger_and_a_verify_only_looks(live: LiveSystem, other: Migration) -> None:
    live.to(Phase.DUAL_WRITING)
    for act in (other.backfill, other.start, lambda: other.repair(execute=True), lambda: other.rollback(execute=True)):
        with pytest.raises(LedgerUnusable, match="--ledger"):
            act()
    live.to(Phase.BACKFILLED)
    found = other.verify(pause_s=0)
    assert found.exit_code == 0
    assert "this ledger knows nothing" in found.note
    live.to(Phase.READS_SWITCHED)
    for act in (
        lambda: other.switch_reads(share=0.5, execute=True),
        lambda: other.cutover(limits=LIMITS, execute=True),
        lambda: other.cutover(limits=LIMITS, force=True, execute=True),
    ):
        with pytest.raises(LedgerUnusable, match="--ledger"):
            act()
    assert live.phase is Phase.READS_SWITCHED
    other.pause()  # what harms nobody can be done from everywhere
    assert live.state is not None and live.state.paused
    live.migration.resume()
    live.to(Phase.CUT_OVER)


def test_where_the_ledger_is_lost_a_forced_way_back_leads_out_and_a_new_start_is_told_of_the_time_before(
    live: LiveSystem, other: Migration
) -> None:
    live.to(Phase.CUT_OVER)
    live.ledger_path.unlink()
    live.new.set("ind:S1:rsi", "99", ex=1000)
    other.rollback(to=Phase.READS_SWITCHED, force=True, execute=True)
    assert live.old.get("indicators:S1:rsi") == b"99"
    assert live.phase is Phase.READS_SWITCHED
    other.rollback(to=Phase.PLANNED, execute=True)
    other.ledger_path.unlink()
    other.ledger_path.with_name("other.sides").unlink()
    live.old.delete("indicators:S2:bands")  # while old names alone are written
    assert STRANGE in other.start().warnings
    assert STRANGE in other.start(execute=True).warnings
    other.backfill()
    found = other.verify(pause_s=0)
    assert live.phase is Phase.BACKFILLED, "a reader of new names would be told what was deleted"
    assert "1 extra" in found.note
