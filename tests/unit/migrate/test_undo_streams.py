"""Ticks that were merged into streams: what an undo takes out again, and what a finish removes of their hashes."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

import onetape
from onetape.embedded import EmbeddedServer
from onetape.migrate.migration import Migration
from onetape.migrate.plans.plan import Plan
from onetape.migrate.steps.gate import Limits

PLAN = Plan.load()
_MS = 1_742_000_000_000


class System:
    def __init__(self, server: EmbeddedServer, tmp_path: Path) -> None:
        self.old, self.market, self.new = (
            redis.Redis(port=server.port, db=db, client_name="onetape-test") for db in (0, 2, 1)
        )
        self.server, self.ledger = server, tmp_path / "ledger"
        self.hashes = self.market
        for i in range(5):
            tick = {"last_price": 100 + i, "timestamp": _MS + i * 1000}
            self.hashes.hset(f"realtime:RELIANCE:{_MS + i * 1000}", mapping=tick)

    def migration(self, tape: onetape.Tape | None = None) -> Migration:
        return Migration(self.server.url, plan=PLAN, ledger_path=self.ledger, tape=tape)


@pytest.fixture
def system(server: EmbeddedServer, tmp_path: Path) -> System:
    return System(server, tmp_path)


STREAM = "ticks:historical:RELIANCE"


def test_a_stream_of_merged_ticks_alone_is_removed(system: System) -> None:
    report = system.migration().backfill()
    assert report.exit_code == 0
    assert system.new.xlen(STREAM) == 5
    dry = system.migration().undo()
    assert (dry.facts["removed"], dry.facts["entries"]) == (1, 5)
    move = system.migration().undo(execute=True)
    assert (move.exit_code, move.facts["entries"]) == (0, 5)
    assert system.new.dbsize() == 0
    assert system.hashes.dbsize() == 5


def test_entries_of_others_in_it_stay(system: System) -> None:
    system.migration().backfill()
    system.new.xadd(STREAM, {"theirs": 1})
    move = system.migration().undo(execute=True)
    assert move.facts["entries"] == 5
    (entry,) = system.new.xrange(STREAM)
    assert entry[1] == {b"theirs": b"1"}


def test_ticks_that_are_nowhere_else_stay_unless_the_tape_has_them(system: System, tmp_path: Path) -> None:
    key = f"realtime:RELIANCE:{_MS}"
    system.migration().backfill()
    system.hashes.delete(key)
    move = system.migration().undo()
    assert move.facts["kept"] == 1
    assert "nowhere else" in move.warnings[0]
    system.hashes.hset(key, mapping={"last_price": 100, "timestamp": _MS})
    with onetape.open(tmp_path / "tape.db") as tape:
        system.migration(tape).backfill()
        system.hashes.delete(key)
        assert system.migration(tape).undo(execute=True).facts["removed"] == 1
        assert tape.stats().ticks == 5
    assert system.new.dbsize() == 0


def test_a_finish_merges_once_more_and_removes_the_hashes_that_are_in_their_stream(system: System) -> None:
    migration = system.migration()
    migration.start(execute=True)
    migration.backfill()
    assert migration.verify(pause_s=0).exit_code in (0, 3)
    migration.switch_reads(execute=True)
    migration.cutover(limits=Limits(volatile_ok=True), execute=True)
    system.hashes.hset(f"realtime:RELIANCE:{_MS + 9000}", mapping={"last_price": 9, "timestamp": _MS + 9000})
    system.hashes.set("realtime:BROKEN:no-time", "no tick at all")
    move = migration.finish(execute=True)
    assert (move.facts["removed"], move.facts["kept"]) == (6, 1)
    assert system.new.xlen(STREAM) == 6
    assert system.hashes.keys("realtime:*") == [b"realtime:BROKEN:no-time"]
