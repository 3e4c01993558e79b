"""Servers that die, forget, fill up, fail over or part from their writers, while a live migration is under way."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.sentinel import Sentinel as Sentinels
from tests.fault.live_storm import Storm, dual, new_name, operating, settle, storming
from tests.fault.test_live_kills import again, converged
from tests.other_servers import promoted, service, wait_for
from tests.unit.migrate.live_system import LIMITS, PLAN, LiveSystem

from onetape.embedded import EmbeddedServer
from onetape.errors import StateLost
from onetape.migrate.dual import DualRedis
from onetape.migrate.migration import Migration
from onetape.migrate.phases.phase import ORDER, Phase
from onetape.migrate.phases.state import Names
from onetape.migrate.reader import ReaderRedis

KEPT = {"appendonly": "yes", "appendfsync": "always"}
LIVE = ORDER[1:-1]


def _system(server: EmbeddedServer, place: Path, **options: Any) -> LiveSystem:
    system = LiveSystem(server, place, **options)
    system.fill()
    return system


def restart(server: EmbeddedServer) -> None:
    server.kill()
    time.sleep(0.1)
    server.start()
    wait_for(lambda: not redis.Redis(port=server.port).info("persistence")["loading"], "it has its data")


# Killed and started again


@pytest.mark.parametrize("phase", LIVE)
def test_a_server_with_a_log_that_is_killed_loses_nothing_of_writers_who_look(tmp_path: Path, phase: Phase) -> None:
    with EmbeddedServer(options=KEPT) as server:
        live = _system(server, tmp_path)
        live.to(phase)
        with storming(live) as storm:
            for _ in range(2):
                restart(server)
                storm.more(3)
            assert sum(writer.doubts for writer in storm.writers) >= 2
            assert live.phase is phase
        converged(live, storm)


@pytest.mark.parametrize("command", ["backfill", "rollback reads_switched", "finish"])
@pytest.mark.parametrize("kept", [True, False], ids=["log", "no-log"])
def test_a_server_killed_in_the_middle_of_a_command_is_found_out(tmp_path: Path, command: str, kept: bool) -> None:
    """With its log the command is given again. Without, all data is gone with the state, and that is said."""
    before = Phase.DUAL_WRITING if command == "backfill" else Phase.CUT_OVER
    with EmbeddedServer(options=KEPT if kept else {}) as server:
        live = _system(server, tmp_path)
        for i in range(400):
            live.old.set(f"indicators:M{i}:many", i)
        live.to(before)
        if command == "rollback reads_switched":
            for i in range(5):
                live.new.set(f"ind:S1:new{i}", i)
        points = {"backfill": "intended", "finish": "unlinked"}
        point = f"{points.get(command, 'forced')}:1"
        with storming(live) as storm, operating(live, command, point, "stop") as operator:
            assert operator.stopped(), operator.result
            restart(server)
            operator.go_on()
            name, _code, told = operator.join()
            assert name in ("done", "EndpointError", "StateLost", "OperatorBusy", "StateMoved", "PhaseRefused"), told
            if kept:
                again(live, command)
                storm.more(2)
            else:
                with pytest.raises(StateLost, match="forgotten"):
                    live.migration.status(server=True) and live.migration.backfill()
        if not kept:
            assert live.old.get("indicators:S1:rsi") is None
            return
        if command == "finish":
            storm.expect(live.new, new_name)
        else:
            converged(live, storm)


def test_a_server_without_a_log_that_is_killed_is_migrated_anew_with_writers_going_on(tmp_path: Path) -> None:
    with EmbeddedServer() as server:
        live = _system(server, tmp_path)
        live.to(Phase.VERIFIED)
        storm = Storm(lambda i: dual(server.port, name=f"W{i}"), 2)
        with storm:
            server.kill()
            for writer in storm.writers:  # their users know that it keeps nothing: they count anew
                writer.stop.set()
            server.start()
        storm.close()
        with storming(live) as storm:
            assert live.state is None
            with pytest.raises(StateLost):
                live.migration.verify(pause_s=0)
            assert live.migration.start(execute=True).after == "dual_writing"
            storm.more()
            live.to(Phase.CUT_OVER)
            storm.more()
        settle(live, storm)


# A database that is emptied, or swapped for another


@pytest.mark.parametrize("phase", LIVE[:-1])
@pytest.mark.parametrize("how", ["flush", "swap"])
def test_a_new_side_that_is_gone_is_named_and_made_again_from_the_old_one(
    server: EmbeddedServer, tmp_path: Path, phase: Phase, how: str
) -> None:
    live = _system(server, tmp_path)
    live.to(phase)
    with storming(live) as storm:
        if how == "flush":
            live.new.flushdb()
        else:
            live.new.swapdb(1, 9)
        storm.more()
        for call in (live.migration.backfill, live.migration.verify, lambda: live.migration.switch_reads(execute=True)):
            with pytest.raises(StateLost, match="forgotten"):
                call()
        assert live.migration.start(execute=True).after == "dual_writing"
        storm.more()
        assert live.migration.backfill().exit_code == 0
        assert live.migration.verify(pause_s=0.05).exit_code == 0
        live.to(Phase.CUT_OVER)
        storm.more()
    settle(live, storm)


@pytest.mark.parametrize("how", ["flush", "swap", "state"])
def test_a_new_side_that_is_gone_after_the_cutover_is_made_again_from_what_mirrored_it(
    server: EmbeddedServer, tmp_path: Path, how: str
) -> None:
    """Writers that go on must not carry the loss over to the old side, which is all that is left."""
    live = _system(server, tmp_path)
    live.to(Phase.CUT_OVER)
    reader = ReaderRedis(port=server.port, db=5, plan=PLAN)
    with storming(live) as storm:
        storm.more(5)
        assert reader.get("indicators:S1:rsi") == b"61.5"
        if how == "flush":
            live.new.flushdb()
        elif how == "swap":
            live.new.swapdb(1, 9)
        else:
            live.new.delete(Names.of(PLAN).state)
        storm.more(5)
        with pytest.raises(StateLost):
            live.migration.verify(pause_s=0)
        time.sleep(0.3)
        assert reader.get("indicators:S1:rsi") == b"61.5"
        assert live.migration.rollback(execute=True).after == "dual_writing"
        storm.more()
        assert live.migration.backfill().exit_code in (0, 3)
        live.migration.repair(execute=True)
        live.to(Phase.CUT_OVER) if live.phase is not Phase.DUAL_WRITING else None
        storm.more()
    reader.close()
    assert live.old.get("indicators:S1:rsi") == live.new.get("ind:S1:rsi") == b"61.5"
    converged(live, storm)


def test_an_old_side_that_is_emptied_is_not_taken_for_a_wish_to_lose_the_new_one(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    live = _system(server, tmp_path)
    live.to(Phase.BACKFILLED)
    new = live.dump(1)
    with storming(live):
        live.old.flushdb()
    assert live.migration.backfill().exit_code in (0, 3)
    result = live.migration.verify(pause_s=0)
    assert result.exit_code == 3 and result.counts["indicators"]["source_gone"] == 7
    assert live.phase is Phase.BACKFILLED, "readers of the new names would see what readers of the old ones do not"
    assert {key: live.dump(1).get(key) for key in new} == new
    move = live.migration.repair()
    assert not move.executed
    assert {key: live.dump(1).get(key) for key in new} == new


# A server that is full


@pytest.mark.parametrize("phase", LIVE)
def test_a_server_at_its_limit_refuses_both_sides_and_commands_change_nothing_until_there_is_room(
    fresh_server: EmbeddedServer, tmp_path: Path, phase: Phase
) -> None:
    live = _system(fresh_server, tmp_path)
    live.to(phase)
    with storming(live) as storm:
        live.old.config_set("maxmemory", "1mb")
        wait_for(lambda: all(writer.refused for writer in storm.writers), "writers are refused")
        state, errors = live.state, 0
        for command in ("backfill", "verify", "switch-reads", "cutover", "rollback", "finish"):
            with operating(live, command) as operator:
                name, _code, _told = operator.join()
            errors += name != "done"
            assert live.state == state, (command, name)
        assert errors
        live.old.config_set("maxmemory", 0)
        storm.more()
    converged(live, storm)


# A failover


def test_writers_behind_a_sentinel_go_on_with_the_new_master_in_every_phase(tmp_path: Path) -> None:
    with service() as (sentinel, master, replica):
        live = _system(master, tmp_path)
        url = sentinel.service_url()
        live.migration = Migration(url, plan=PLAN, ledger_path=live.ledger_path)
        live.to(Phase.READS_SWITCHED)
        sentinels = Sentinels([("127.0.0.1", sentinel.port)], socket_timeout=2.0)

        def client(i: int) -> DualRedis:
            return sentinels.master_for(  # type: ignore[no-any-return]
                "prices", redis_class=_dual_of(i), db=5, socket_timeout=2.0, client_name=f"onetape-W{i}"
            )

        storm = Storm(client, 2)
        with storm:
            storm.more(5)
            wait_for(_caught_up(master), "the replica has all")
            for writer in storm.writers:  # what a master had not passed on when it died is lost by any writer
                writer.client.dual.lanes  # noqa: B018
            live.old.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
            wait_for(_caught_up(master), "the replica has all that was taken")
            master.kill()
            wait_for(lambda: promoted(sentinel, replica), "the replica is promoted")
            storm.more(5)
            server = live.server
            live = LiveSystem(replica, tmp_path)
            live.migration = Migration(url, plan=PLAN, ledger_path=live.ledger_path)
            assert server is not replica and live.phase is Phase.READS_SWITCHED
            assert live.migration.cutover(limits=LIMITS, execute=True).after == "cut_over"
            storm.more(5)
            live.migration.rollback(execute=True)
            storm.more(2)
        storm.close()
        settle(live, storm)


def _dual_of(i: int) -> Callable[..., DualRedis]:
    class Of(DualRedis):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, plan=PLAN, name=f"W{i}", **kwargs)

    return Of


def _caught_up(master: EmbeddedServer) -> Callable[[], bool]:
    """Return whether the replica has all that the master had taken by now; writers may go on meanwhile."""
    client = redis.Redis(port=master.port)
    taken = client.info("replication")["master_repl_offset"]
    return lambda: bool(client.info("replication")["slave0"]["offset"] >= taken)
