"""The state in Redis: versions that fence, one operator at a time, and a record that clients can watch."""

from __future__ import annotations

import time

import pytest
from tests.waiting import waited_for

from onetape.embedded import EmbeddedServer
from onetape.errors import OperatorBusy, StateMoved
from onetape.migrate.phases import state as states
from onetape.migrate.phases.phase import Phase
from onetape.migrate.plans.plan import Plan
from onetape.migrate.wire.endpoint import Endpoint

PLAN = Plan.load()


def test_each_change_is_one_version_and_a_change_of_an_old_version_is_refused(server: EmbeddedServer) -> None:
    with Endpoint.connect(server.url) as endpoint:
        assert states.load(endpoint, PLAN) is None
        first = states.change(endpoint, PLAN, 0, phase=Phase.DUAL_WRITING)
        second = states.change(endpoint, PLAN, 1, paused=True)
        assert (first.version, second.version, second.phase) == (1, 2, Phase.DUAL_WRITING)
        with pytest.raises(StateMoved, match="version 2"):
            states.change(endpoint, PLAN, 1, phase=Phase.CUT_OVER)
        assert states.load(endpoint, PLAN) == second


def test_a_watch_on_the_state_stops_what_was_begun_under_the_phase_before(server: EmbeddedServer) -> None:
    with Endpoint.connect(server.url) as writer, Endpoint.connect(server.url) as endpoint:
        names = states.Names.of(PLAN)
        states.change(endpoint, PLAN, 0, phase=Phase.DUAL_WRITING)
        writer.select(names.db)
        writer.call("WATCH", names.state)
        states.change(endpoint, PLAN, 1, phase=Phase.BACKFILLED)
        assert writer.pipeline([("MULTI",), ("SET", "a", "b"), ("EXEC",)])[-1] is None
        assert endpoint.call("EXISTS", "a") == 0


def test_another_plan_of_the_same_name_is_refused(server: EmbeddedServer) -> None:
    with Endpoint.connect(server.url) as endpoint:
        states.change(endpoint, PLAN, 0, phase=Phase.DUAL_WRITING)
        other = Plan.load().with_source("indicators", 7)
        with pytest.raises(StateMoved, match="another plan"):
            states.load(endpoint, other)
        with pytest.raises(StateMoved, match="another plan"):
            states.change(endpoint, other, 1, paused=True)


def test_a_second_operator_is_told_who_is_at_work(server: EmbeddedServer) -> None:
    with (
        states.Lease(server.url, PLAN, "backfill"),
        pytest.raises(OperatorBusy, match="backfill"),
        states.Lease(server.url, PLAN, "cutover"),
    ):
        pass
    with states.Lease(server.url, PLAN, "cutover"):
        pass


def test_a_lease_is_renewed_while_at_work_and_notices_when_it_was_taken(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "LEASE_MS", 3000)
    names = states.Names.of(PLAN)
    with Endpoint.connect(server.url, db=names.db) as endpoint, states.Lease(server.url, PLAN, "backfill") as lease:
        time.sleep(4.0)
        assert endpoint.call("EXISTS", names.operator) == 1
        lease.check()
        endpoint.call("SET", names.operator, '{"token": "other", "command": "cutover"}')
        waited_for(lambda: lease.lost, "the lease is lost")
        with pytest.raises(OperatorBusy):
            lease.check()
    with Endpoint.connect(server.url, db=names.db) as endpoint:
        assert b"other" in endpoint.call("GET", names.operator)  # what is not ours is not taken away
