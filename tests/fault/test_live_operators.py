"""Two operators at once, at every command: one stood still while another took over, or both begin together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fault.live_storm import new_name, operating, storming
from tests.fault.test_live_kills import COMMANDS, carried_back, converged, strangers
from tests.unit.migrate.live_system import PLAN, LiveSystem

from onetape.embedded import EmbeddedServer
from onetape.migrate.migration import Migration
from onetape.migrate.phases import state as states
from onetape.migrate.phases.history import History
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import Names
from onetape.migrate.wire.endpoint import Endpoint

REFUSED = ("OperatorBusy", "StateMoved", "LedgerBusy", "PhaseRefused")
#: Command → where it stands still while another operator gives the same command and is through with it.
STOPS = {
    "start": ("state_intended", "state_changed"),
    "backfill": ("intended:1", "acted:1", "state_intended"),
    "verify": ("state_intended",),
    "switch-reads": ("state_intended", "state_changed"),
    "cutover": ("state_intended", "state_changed"),
    "rollback reads_switched": ("kept:1", "forced:2", "sides_taken", "state_intended", "state_changed"),
    "rollback planned": ("sides_taken", "state_intended"),
    "finish": ("sides_taken", "state_changed", "unlinked:1"),
}
CASES = [(command, point) for command, points in STOPS.items() for point in points]
TURNS = [("valkey" if turn % 2 else "redis", *case) for turn, case in enumerate(CASES)]


@pytest.fixture
def live(server: EmbeddedServer, tmp_path: Path) -> Iterator[LiveSystem]:
    system = LiveSystem(server, tmp_path)
    system.fill()
    yield system
    for client in (system.old, system.sessions, system.new):
        client.close()


def lease_over(live: LiveSystem) -> None:
    """Wait until the lease of an operator who stands still has ended by itself."""
    until_s = time.monotonic() + 60
    while live.new.exists(Names.of(PLAN).operator):
        assert time.monotonic() < until_s
        time.sleep(0.02)


@pytest.mark.parametrize(("server_of_session", "command", "point"), TURNS, indirect=["server_of_session"])
def test_an_operator_who_stood_still_while_another_was_through_with_it_does_no_harm(
    live: LiveSystem, tmp_path: Path, command: str, point: str
) -> None:
    before, after, _points = COMMANDS[command]
    live.to(before)
    with storming(live) as storm:
        if command == "rollback reads_switched":
            strangers(live)
        with operating(live, command, point, "stop") as first:
            assert first.stopped(), first.result
            storm.more(2)
            with operating(live, command) as second:
                # The first one's lease holds, unless there is nothing left to do; a verify needs none.
                name, _code, told = second.join()
                assert name in ("OperatorBusy", "LedgerBusy") or command == "verify" or point == "state_changed", told
            lease_over(live)
            for _ in range(2):  # a second one may find that there is nothing left to do
                with operating(live, command) as second:
                    name, code, told = second.join()
                # The one that stands still holds the ledger too; then the first one must be ended.
                assert name == "LedgerBusy" or (name == "done" and code in (0, 3)), (name, told)
            if name == "done":
                assert live.phase is after
            first.go_on()
            result, _code, told = first.join()
            assert result == "done" or result in REFUSED, (result, told)
        if name == "LedgerBusy":
            with operating(live, command) as second:
                assert second.join()[:2] == ("done", 0)
        assert live.phase is after
        storm.more(2)
    if after is Phase.FINISHED:
        storm.expect(live.new, new_name)
        return
    if command == "rollback reads_switched":
        carried_back(live)
    storm.expect(live.old)
    if after is not Phase.PLANNED:
        converged(live, storm)


@pytest.mark.parametrize(
    ("before", "command", "point", "others"),
    [
        (Phase.CUT_OVER, "rollback reads_switched", "sides_taken", ["rollback verified", "switch-reads", "cutover"]),
        (Phase.CUT_OVER, "rollback reads_switched", "reversed:1", ["rollback verified", "switch-reads", "cutover"]),
        (Phase.CUT_OVER, "finish", "sides_taken", ["rollback verified", "switch-reads", "cutover"]),
        (Phase.BACKFILLED, "rollback planned", "sides_taken", ["rollback planned", "start", "backfill"]),
        (Phase.READS_SWITCHED, "cutover", "state_intended", ["rollback verified", "switch-reads"]),
    ],
)
@pytest.mark.parametrize("server_of_session", ["valkey"], indirect=True)
@pytest.mark.parametrize("own_ledger", [False, True], ids=["one-ledger", "two-ledgers"])
def test_an_operator_who_stood_still_while_another_went_back_and_forth_changes_nothing(
    live: LiveSystem, tmp_path: Path, before: Phase, command: str, point: str, others: list[str], own_ledger: bool
) -> None:
    live.to(before)
    ledger = str(live.ledger_path)
    if own_ledger:  # the other operator works on another machine, with what the first one's ledger was
        ledger = str(tmp_path / "other")
        Path(ledger).write_bytes(live.ledger_path.read_bytes())
        for suffix in ("-wal", "-shm"):
            beside = live.ledger_path.with_name(live.ledger_path.name + suffix)
            if beside.exists():
                Path(ledger + suffix).write_bytes(beside.read_bytes())
    with storming(live) as storm:
        with operating(live, command, point, "stop") as first:
            assert first.stopped(), first.result
            lease_over(live)
            for other in others:
                with operating(live, other, ledger=ledger) as second:
                    name, code, told = second.join()
                assert (name, code) == ("done", 0), (other, name, told)
            now = live.state
            assert now is not None and now.phase is before
            first.go_on()
            result, _code, told = first.join()
            assert result in REFUSED, (result, told)
            assert live.state == now
        storm.more(2)
    result_now = live.migration.verify(pause_s=0.05)
    assert result_now.exit_code == 0, result_now.differences
    storm.expect(live.old)
    storm.expect(live.new, new_name)


@pytest.mark.parametrize("own_ledger", [False, True], ids=["one-ledger", "two-ledgers"])
@pytest.mark.parametrize("command", COMMANDS)
def test_two_operators_who_begin_together_end_as_one(
    live: LiveSystem, tmp_path: Path, command: str, own_ledger: bool
) -> None:
    before, after, _points = COMMANDS[command]
    live.to(before)
    version = 0 if live.state is None else live.state.version
    ledger = str(tmp_path / "other") if own_ledger else ""
    if own_ledger and live.ledger_path.exists():
        Path(ledger).write_bytes(live.ledger_path.read_bytes())
    with storming(live) as storm:
        if command == "rollback reads_switched":
            strangers(live)
        with operating(live, command) as one, operating(live, command, ledger=ledger) as other:
            results = [one.join(), other.join()]
        names = [result[0] for result in results]
        told_apart = ("LedgerUnusable",) if own_ledger and command == "start" else ()  # the other one's ledger knows it
        assert "done" in names and all(name == "done" or name in REFUSED + told_apart for name in names), results
        assert live.phase is after
        assert live.state is not None and live.state.version == version + 1, "the phase changed once"
        storm.more(2)
    if not live.migration.helm.knows():
        live.migration = Migration(live.server.url, plan=PLAN, ledger_path=ledger)
    if after is Phase.FINISHED:
        storm.expect(live.new, new_name)
        return
    if command == "rollback reads_switched":
        carried_back(live)
    storm.expect(live.old)
    if after is not Phase.PLANNED:
        converged(live, storm)


def test_a_verify_of_an_earlier_time_proves_nothing_of_the_present_one(live: LiveSystem) -> None:
    live.to(Phase.BACKFILLED)
    back_and_forth = [Phase.PLANNED, Phase.DUAL_WRITING, Phase.BACKFILLED]

    def meanwhile(_done: int, _total: int) -> None:
        while back_and_forth:
            with Endpoint.connect(live.server.url) as endpoint:
                now = live.state
                assert now is not None
                states.change(endpoint, PLAN, now.version, phase=back_and_forth.pop(0))

    result = live.migration.verify(pause_s=0, on_progress=meanwhile)
    assert not back_and_forth and result.verdict == "converged"
    assert live.phase is Phase.BACKFILLED and "verify again" in str(result.note)
    with History(live.ledger_path, mode="r") as history:
        assert history.value("verified") is None
    live.migration.verify(pause_s=0)
    assert live.phase is Phase.VERIFIED
