"""The course of a live migration: each command in its turn, a dry run first, and again without effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis

from onetape.embedded import EmbeddedServer
from onetape.errors import ConfigInvalid, PhaseRefused, StateLost, StateMoved
from onetape.migrate.migration import Migration
from onetape.migrate.phases import state as states
from onetape.migrate.phases.history import History
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import Names, State
from onetape.migrate.plans.plan import Plan
from onetape.migrate.wire.endpoint import Endpoint

PLAN = Plan.load()


@pytest.fixture
def migration(server: EmbeddedServer, tmp_path: Path) -> Migration:
    old = redis.Redis(port=server.port, db=5)
    for i in range(20):
        old.set(f"indicators:S{i}:rsi", i)
    return Migration(server.url, plan=PLAN, ledger_path=tmp_path / "ledger")


def _state(server: EmbeddedServer) -> State | None:
    with Endpoint.connect(server.url) as endpoint:
        return states.load(endpoint, PLAN)


def test_a_start_changes_nothing_until_it_is_to_and_nothing_again(
    migration: Migration, server: EmbeddedServer, tmp_path: Path
) -> None:
    move = migration.start()
    assert (move.executed, move.changed, move.before, move.after) == (False, True, "planned", "dual_writing")
    assert _state(server) is None
    assert not list(tmp_path.iterdir())
    move = migration.start(execute=True)
    assert (move.executed, move.changed, move.version) == (True, True, 1)
    again = migration.start(execute=True)
    assert (again.changed, again.version) == (False, 1)
    assert "nothing to change" in again.lines[0]
    assert _state(server).phase is Phase.DUAL_WRITING  # type: ignore[union-attr]


def test_the_way_forward_moves_the_phase_at_the_end_of_each_work(migration: Migration, server: EmbeddedServer) -> None:
    migration.start(execute=True)
    assert migration.backfill(limit=3).exit_code == 0
    assert migration.status().phase == "dual_writing"  # not the whole of it
    assert migration.backfill().totals["copied"] == 17
    assert migration.status().phase == "backfilled"
    assert migration.verify(pause_s=0).exit_code == 0
    assert migration.status().phase == "verified"
    move = migration.switch_reads(share=0.25, shadow=0.1, execute=True)
    assert (move.before, move.after) == ("verified", "reads_switched")
    state = _state(server)
    assert state is not None
    assert (state.read_share, state.shadow_share) == (0.25, 0.1)
    move = migration.switch_reads(execute=True)
    assert (move.before, move.after) == ("reads_switched", "reads_switched")
    assert migration.switch_reads(execute=True).changed is False
    told = [(t.command, t.before, t.after, t.outcome) for t in migration.status().transitions]
    assert told == [
        ("start", "planned", "dual_writing", "done"),
        ("backfill", "dual_writing", "backfilled", "done"),
        ("verify", "backfilled", "verified", "done"),
        ("switch-reads", "verified", "reads_switched", "done"),
        ("switch-reads", "reads_switched", "reads_switched", "done"),
    ]


def test_a_command_out_of_its_turn_is_refused_and_says_the_way(migration: Migration, server: EmbeddedServer) -> None:
    with pytest.raises(PhaseRefused, match="onetape migrate start"):
        migration.switch_reads(execute=True)
    migration.start(execute=True)
    with pytest.raises(PhaseRefused, match="onetape migrate verify"):
        migration.switch_reads(execute=True)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigInvalid):
            migration.switch_reads(share=share)


def test_settings_take_effect_at_once_and_outlive_a_change_of_phase(
    migration: Migration, server: EmbeddedServer
) -> None:
    with pytest.raises(PhaseRefused):
        migration.pause()
    migration.start(execute=True)
    assert migration.pause().version == 2
    assert migration.pause().changed is False
    migration.throttle({"keys_per_s": 1000})
    migration.throttle({"market_hours": "09:15-15:30 Asia/Kolkata"})
    migration.throttle({"keys_per_s": None})
    migration.postpone()
    migration.resume()
    state = _state(server)
    assert state is not None
    assert (state.paused, state.postponed, state.version) == (False, True, 7)
    assert state.throttle == {"market_hours": "09:15-15:30 Asia/Kolkata"}
    migration.backfill()
    assert _state(server).throttle == state.throttle  # type: ignore[union-attr]
    assert _state(server).postponed  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["flushdb", "swapdb"])
def test_a_state_that_the_server_forgot_is_named_and_written_back_with_a_greater_version(
    migration: Migration, server: EmbeddedServer, how: str
) -> None:
    migration.start(execute=True)
    migration.backfill()
    migration.verify(pause_s=0)
    known = _state(server)
    assert known is not None
    target = redis.Redis(port=server.port, db=PLAN.target_db)
    if how == "flushdb":
        target.flushdb()
    else:
        target.swapdb(1, 2)
    for command in (
        lambda: migration.switch_reads(execute=True),
        migration.backfill,
        lambda: migration.verify(pause_s=0),
        migration.pause,
    ):
        with pytest.raises(StateLost, match="verified, version 3") as lost:
            command()
        assert "start --execute" in lost.value.hint
        assert ("swapped" in lost.value.message) is (how == "swapdb")
    assert "forgotten" in (migration.status().trouble or "")
    assert migration.start().after == "dual_writing"
    assert _state(server) is None
    migration.start(execute=True)
    found = _state(server)
    assert found is not None
    assert found.phase is Phase.DUAL_WRITING
    assert found.version > known.version
    assert migration.backfill().totals == {"copied": 20}
    assert migration.verify(pause_s=0).exit_code == 0
    assert migration.status().phase == "verified"


def test_a_state_from_an_older_snapshot_is_not_taken_for_the_present_one(
    migration: Migration, server: EmbeddedServer
) -> None:
    migration.start(execute=True)
    names, target = Names.of(PLAN), redis.Redis(port=server.port, db=PLAN.target_db)
    snapshot = target.get(names.state)
    migration.backfill()
    target.set(names.state, snapshot)
    with pytest.raises(StateLost, match="older"):
        migration.verify(pause_s=0)
    assert migration.start(execute=True).after == "dual_writing"
    assert _state(server).version > 1000  # type: ignore[union-attr]


def test_what_a_killed_command_began_is_ended_by_the_next_one(
    migration: Migration, server: EmbeddedServer, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def at(point: str) -> None:
        if point == points[0]:
            raise Killed

    dying = Migration(server.url, plan=PLAN, ledger_path=tmp_path / "ledger", at=at)
    points = [""]
    for points[0], changed in (("state_intended", False), ("state_changed", True)):
        with pytest.raises(Killed):
            dying.start(execute=True)
        assert (_state(server) is not None) is changed
    migration.backfill()
    outcomes = [(t.command, t.outcome) for t in migration.status().transitions]
    assert [command for command, _ in outcomes] == ["start", "start", "backfill"]
    assert outcomes[1:] == [("start", "done"), ("backfill", "done")]
    with History(tmp_path / "ledger") as history:
        assert history.live == (Phase.BACKFILLED, 2)


def test_of_two_operators_one_is_told_that_the_state_moved(
    migration: Migration, server: EmbeddedServer, tmp_path: Path
) -> None:
    def at(point: str) -> None:
        if point == "state_intended":
            other.start(execute=True)

    other = Migration(server.url, plan=PLAN, ledger_path=tmp_path / "other")
    mine: Any = Migration(server.url, plan=PLAN, ledger_path=tmp_path / "ledger", at=at)
    mine.helm.lease = other.helm.lease = lambda command: _Free()  # as if the first one's had run out
    with pytest.raises(StateMoved):
        mine.start(execute=True)
    (told,) = mine.status().transitions
    assert told.outcome.startswith("not done")


class _Free:
    def __enter__(self) -> _Free:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass


def test_a_user_who_may_not_see_the_state_can_still_do_a_historical_backfill(
    migration: Migration, server: EmbeddedServer, tmp_path: Path
) -> None:
    admin = redis.Redis(port=server.port)
    admin.execute_command(
        "ACL",
        "SETUSER",
        "copier",
        "on",
        ">secret",
        "+@all",
        "resetkeys",
        "~indicators:*",
        "~ind:*",
        "~onetape:merging:*",
    )
    try:
        url = f"redis://copier:secret@127.0.0.1:{server.port}"
        report = Migration(url, plan=PLAN.only(["indicators"]), ledger_path=tmp_path / "l").backfill()
        assert report.totals == {"copied": 20}
    finally:
        admin.acl_deluser("copier")
