"""A transaction whose reply nobody gets, or whose last bytes never arrive: commands and writers find out, and go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fault.live_storm import Interceptor, Operator, Storm, dual, new_name, operating, settle, storming
from tests.fault.test_live_kills import COMMANDS, again, carried_back, converged, strangers
from tests.other_servers import Proxy
from tests.unit.migrate.live_system import LiveSystem

from onetape.embedded import EmbeddedServer
from onetape.migrate.phases.phase import Phase

HOWS = ("lost", "torn", "kill")
COUNTS = {"backfill": (1, 2), "rollback reads_switched": (1, 2, 5, 8), "finish": (1, 2, 3)}
CASES = [(command, how, nth) for command in COMMANDS for how in HOWS for nth in COUNTS.get(command, (1,))]
TURNS = [("valkey" if turn % 2 else "redis", *case) for turn, case in enumerate(CASES)]


@pytest.fixture
def live(server: EmbeddedServer, tmp_path: Path) -> Iterator[LiveSystem]:
    system = LiveSystem(server, tmp_path)
    system.fill()
    yield system
    for client in (system.old, system.sessions, system.new):
        client.close()


@pytest.mark.parametrize(("server_of_session", "command", "how", "nth"), TURNS, indirect=["server_of_session"])
def test_a_transaction_of_a_command_with_an_unknown_end_is_settled(
    live: LiveSystem, command: str, how: str, nth: int
) -> None:
    before, after, _points = COMMANDS[command]
    live.to(before)
    victims: list[Operator] = []
    with storming(live) as storm:
        if command == "rollback reads_switched":
            strangers(live)
        kill = lambda: [victim.process.kill() for victim in victims]  # noqa: E731
        with (
            Interceptor(live.server.port, nth, how, kill) as proxy,
            operating(live, command, url=proxy.url) as operator,
        ):
            victims.append(operator)
            result, _code, told = operator.join()
            assert proxy.struck, "it made fewer transactions"
            assert result in (("killed", "done") if how == "kill" else ("done", "EndpointError")), (result, told)
        storm.more(2)
        again(live, command)
        assert live.phase is after
    if after is Phase.FINISHED:
        storm.expect(live.new, new_name)
        return
    if command == "rollback reads_switched":
        carried_back(live)
    storm.expect(live.old)
    if after is not Phase.PLANNED:
        converged(live, storm)


@pytest.mark.parametrize("how", ["lost", "torn"])
@pytest.mark.parametrize("phase", [Phase.DUAL_WRITING, Phase.CUT_OVER])
def test_a_write_with_an_unknown_end_is_on_both_sides_or_on_none(live: LiveSystem, how: str, phase: Phase) -> None:
    """Thirty connections in turn are cut in their fifth transaction; each write carries a counter."""
    live.to(phase)
    for _ in range(15):
        with Interceptor(live.server.port, 5, how) as proxy:
            client = dual(proxy.port, name="cut")
            storm = Storm(lambda i, client=client: client, 1)
            writer = storm.writers[0]
            writer.did = dict.fromkeys(writer.did, 0)
            live.old.delete(*live.old.keys("indicators:W0:*"), *live.old.keys("indicators:SHARED:*"), "x")
            live.new.delete(*live.new.keys("ind:W0:*"), *live.new.keys("ind:SHARED:*"), "x")
            with storm:
                storm.more(2)
            assert proxy.struck and writer.doubts
            client.close()
        settle_two_sides(live, storm)


def settle_two_sides(live: LiveSystem, storm: Storm) -> None:
    if live.phase is Phase.DUAL_WRITING:
        live.migration.backfill()
    settle(live, storm)


@pytest.mark.parametrize("after", [3_000, 7_777, 20_011])
def test_writers_and_a_backfill_whose_connections_are_cut_again_and_again(live: LiveSystem, after: int) -> None:
    live.to(Phase.DUAL_WRITING)
    for i in range(3000):
        live.old.set(f"indicators:M{i}:many", i)
    with Proxy(live.server.port) as proxy:
        storm = Storm(lambda i: dual(proxy.port, name=f"W{i}"), 2)
        with storm:
            proxy.cut_after = after
            with operating(live, "backfill", url=proxy.url) as operator:
                storm.more(10)
                result, _code, told = operator.join()
            proxy.cut_after = None
            assert result in ("done", "EndpointError"), (result, told)
            storm.more(2)
        storm.close()
        assert proxy.cuts > 5 and sum(writer.doubts for writer in storm.writers) > 3
    if live.phase is Phase.DUAL_WRITING:
        again(live, "backfill")
    converged(live, storm)
