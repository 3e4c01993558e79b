"""A migration that is begun, taken back and begun again; with streams that ticks are merged into."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from onetape import tape as tapes
from onetape.embedded import EmbeddedServer
from onetape.migrate.dual import DualRedis
from onetape.migrate.migration import Migration
from onetape.migrate.steps.gate import Limits
from onetape.tape import Tape

LIMITS = Limits(quiet_for_s=0, volatile_ok=True)
DBS = (0, 2, 5)


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[Tape]:
    with tapes.open(tmp_path / "tape.db", retention_days=None) as opened:
        yield opened


@pytest.fixture
def migration(server: EmbeddedServer, tmp_path: Path, tape: Tape) -> Migration:
    return Migration(server.url, ledger_path=tmp_path / "ledger.db", tape=tape)


@pytest.fixture
def clients(server: EmbeddedServer) -> Iterator[dict[int, DualRedis]]:
    opened = {db: DualRedis(port=server.port, db=db, plan="trading_system") for db in DBS}
    yield opened
    for client in opened.values():
        client.close()


@pytest.fixture
def new(server: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port, db=1) as plain:
        yield plain


def cut_over(migration: Migration) -> None:
    migration.start(execute=True)
    assert migration.backfill().exit_code == 0
    assert migration.verify(pause_s=0.1).exit_code in (0, 3)
    migration.switch_reads(share=1.0, execute=True)
    migration.cutover(limits=LIMITS, execute=True)


def fill_ticks(clients: dict[int, DualRedis]) -> None:
    for n in range(5):
        clients[0].xadd("ticks:X", {"last_price": n + 1, "timestamp": 1_700_000_000_000 + n})
        clients[2].hset(f"realtime:Y:{n}", mapping={"last_price": n + 1, "timestamp": 1_700_000_000_000 + n})


def test_what_old_names_alone_were_told_meanwhile_is_carried_over_at_the_next_start(
    migration: Migration, clients: dict[int, DualRedis], new: redis.Redis
) -> None:
    migration.start(execute=True)
    for n in range(6):
        clients[5].set(f"indicators:X:live_{n}", n)
    migration.rollback(execute=True)
    clients[5].delete("indicators:X:live_0", "indicators:X:live_1")
    clients[5].set("indicators:X:live_2", "changed")
    new.set("ind:other:X:live_1", "somebody else's by now")
    new.set("ind:other:X:foreign", "somebody else's")
    move = migration.start(execute=True)
    assert "1 new keys that differed are equal again; what they held is in the ledger" in move.lines
    assert "1 new keys that are gone on the other side were removed" in move.lines
    assert new.get("ind:other:X:live_0") is None
    assert new.get("ind:other:X:live_2") == b"changed"
    assert new.get("ind:other:X:live_3") == b"3"
    assert new.get("ind:other:X:live_1") == b"somebody else's by now"
    assert new.get("ind:other:X:foreign") == b"somebody else's"


def test_new_keys_without_old_ones_stop_the_read_switch_after_a_way_back_until_somebody_decides(
    migration: Migration, clients: dict[int, DualRedis], new: redis.Redis
) -> None:
    new.set("ind:other:X:before", "here before both sides were written")
    migration.start(execute=True)
    clients[5].set("indicators:X:rsi", 1)
    migration.rollback(execute=True)
    new.set("ind:other:X:extra", "deleted under its old name, or somebody's own")
    migration.start(execute=True)
    assert migration.backfill().exit_code == 0
    found = migration.verify(pause_s=0.1)
    assert (migration.status().phase, found.exit_code) == ("backfilled", 3)
    assert found.note is not None and "extra" in found.note
    migration.repair(execute=True)
    assert new.exists("ind:other:X:extra")
    migration.repair(replace_newer=True, execute=True)
    assert not new.exists("ind:other:X:extra")
    assert new.get("ind:other:X:before") == b"here before both sides were written"


def test_streams_of_merged_ticks_do_not_hold_up_the_way_back_and_an_undo_takes_them_out(
    migration: Migration, clients: dict[int, DualRedis], new: redis.Redis
) -> None:
    fill_ticks(clients)
    cut_over(migration)
    assert new.xlen("ticks:historical:Y") == 5
    migration.rollback(to="planned", execute=True)
    assert migration.status().phase == "planned"
    migration.undo(execute=True)
    assert new.dbsize() == 0


def test_a_stream_that_somebody_writes_under_its_new_name_alone_is_not_lost_on_the_way_back(
    migration: Migration, clients: dict[int, DualRedis], new: redis.Redis
) -> None:
    from onetape.errors import GateRefused

    fill_ticks(clients)
    cut_over(migration)
    new.xadd("ticks:historical:Y", {"last_price": 9, "timestamp": 1_800_000_000_000})
    with pytest.raises(GateRefused, match="ticks:historical:Y"):
        migration.rollback(execute=True)
    assert migration.status().phase == "cut_over"


def test_ticks_written_after_the_backfill_are_on_the_tape_before_their_old_stream_goes(
    migration: Migration, clients: dict[int, DualRedis], tape: Tape, server: EmbeddedServer
) -> None:
    fill_ticks(clients)
    cut_over(migration)
    for n in range(5, 9):
        clients[0].xadd("ticks:X", {"last_price": n + 1, "timestamp": 1_700_000_000_000 + n})
        clients[2].hset(f"realtime:Y:{n}", mapping={"last_price": n + 1, "timestamp": 1_700_000_000_000 + n})
    move = migration.finish(quiet_for_s=0, execute=True)
    assert not move.facts.get("kept"), move.warnings
    for symbol in "XY":
        assert tape.read(symbol, columns=["price"]).column("price").to_pylist() == [float(n) for n in range(1, 10)]
    for db in DBS:
        with redis.Redis(port=server.port, db=db) as old:
            assert old.dbsize() == 0
    with redis.Redis(port=server.port, db=1) as plain:
        assert (plain.xlen("ticks:X"), plain.xlen("ticks:historical:Y")) == (9, 9)
