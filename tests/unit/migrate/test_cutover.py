"""The cutover and its gate: every reason by name, all or nothing, and forced only with a trace."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from tests.unit.migrate.live_system import LIMITS, PLAN, LiveSystem

from onetape.embedded import EmbeddedServer
from onetape.errors import GateRefused, PhaseRefused
from onetape.migrate.dual import DualRedis
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import Names
from onetape.migrate.steps.gate import Limits

NAMES = Names.of(PLAN)


@pytest.fixture
def live(server: EmbeddedServer, tmp_path: Path) -> LiveSystem:
    system = LiveSystem(server, tmp_path)
    system.fill()
    system.to(Phase.READS_SWITCHED)
    return system


def _reasons(live: LiveSystem, limits: Limits = LIMITS) -> list[str]:
    move = live.migration.cutover(limits=limits)
    assert not move.executed
    return list(move.facts["reasons"])


def test_a_dry_run_says_whether_the_gate_is_open_and_changes_nothing(live: LiveSystem) -> None:
    before = live.state
    move = live.migration.cutover(limits=LIMITS)
    assert "the gate is open" in move.lines
    assert (move.after, move.exit_code) == ("cut_over", 0)
    assert live.state == before
    assert live.migration.cutover(limits=LIMITS, execute=True).after == "cut_over"
    assert live.migration.cutover(execute=True).changed is False


def test_every_reason_is_named_at_once_and_a_refusal_changes_nothing(live: LiveSystem) -> None:
    live.migration.switch_reads(share=0.5, execute=True)
    live.migration.postpone()
    live.migration.pause()
    live.old.set("indicators:S1:rsi", "99")  # a straggler
    live.new.hset(NAMES.diverged, b"5:indicators:S1:rsi", json.dumps({"at_ms": 9_999_999_999_999, "why": "test"}))
    stranger = redis.Redis(port=live.server.port, db=5, client_name="old-script")
    stranger.set("indicators:S9:x", 1)
    with pytest.raises(GateRefused) as refused:
        live.migration.cutover(execute=True)
    stranger.close()
    reasons = "\n".join(refused.value.facts["reasons"])
    for word in (
        "postponed",
        "paused",
        "50%",
        "1 keys diverged after",
        "old-script",
        "pairs looked at now",
        "durability",
    ):
        assert word in reasons, word
    assert live.phase is Phase.READS_SWITCHED
    assert live.migration.status().transitions[-1].command == "switch-reads"


def test_a_key_that_diverged_and_is_equal_again_is_no_reason(live: LiveSystem) -> None:
    live.new.hset(NAMES.diverged, b"5:indicators:S1:rsi", b'{"at_ms": 9999999999999}')
    live.new.hset(NAMES.diverged, b"5:indicators:gone:rsi", b'{"at_ms": 9999999999999}')
    assert _reasons(live) == []
    live.migration.cutover(limits=LIMITS, execute=True)
    assert live.new.hlen(NAMES.diverged) == 0


def test_a_verify_that_is_old_or_proved_nothing_is_a_reason(live: LiveSystem) -> None:
    (reason,) = _reasons(live, Limits(volatile_ok=True, verified_within_s=0))
    assert "more than 0 s" in reason
    live.old.set("indicators:S1:rsi", "1")
    live.migration.verify(pause_s=0)
    live.write("S1:rsi", "2")
    (reason,) = _reasons(live)
    assert "did not prove" in reason


def test_clients_must_know_the_present_version_and_be_heard_of(
    live: LiveSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onetape.migrate.steps.gate._ACKNOWLEDGE_S", 0.1)
    state = live.state
    assert state is not None
    seconds, micros = live.new.time()
    now_ms = seconds * 1000 + micros // 1000
    asleep = redis.Redis(port=live.server.port, db=5, client_name="onetape-writer-b2")
    asleep.get("x")
    for id, version, at_ms, rate in (
        ("a1", state.version - 1, now_ms, 0.0),
        ("b2", state.version, now_ms - 60_000, 0.0),
        ("c3", state.version, now_ms - 90_000, 0.0),
        ("d4", state.version, now_ms, 0.2),
    ):
        beat = {"kind": "writer", "version": version, "at_ms": at_ms, "fallback_rate_60s": rate}
        live.new.hset(NAMES.clients, id, json.dumps(beat))
    move = live.migration.cutover(limits=LIMITS)
    reasons = move.facts["reasons"]
    assert len(reasons) == 3
    assert f"a1 goes by version {state.version - 1}" in reasons[0]
    assert "b2 is connected and has said nothing for 6" in reasons[1]
    assert "d4: 20.0%" in reasons[2]
    assert any("c3 ended without a word" in warning for warning in move.warnings)


def test_a_connection_that_only_reads_the_old_names_is_a_warning(live: LiveSystem) -> None:
    reader = redis.Redis(port=live.server.port, db=5, client_name="old-reader")
    reader.get("indicators:S1:rsi")
    move = live.migration.cutover(limits=LIMITS)
    assert move.facts["reasons"] == []
    assert any("old-reader" in warning for warning in move.warnings)
    reader.close()


def test_forcing_goes_on_and_leaves_a_trace(live: LiveSystem) -> None:
    live.migration.postpone()
    with pytest.raises(GateRefused):
        live.migration.cutover(limits=LIMITS, execute=True)
    move = live.migration.cutover(limits=LIMITS, force=True, execute=True)
    assert move.after == "cut_over"
    assert "postponed" in move.facts["overridden"][0]
    transition = live.migration.status().transitions[-1]
    assert transition.forced
    assert "postponed" in transition.reason
    assert "postponed" in live.state.reason  # type: ignore[union-attr]


def test_a_cutover_out_of_its_turn_is_refused(server: EmbeddedServer, tmp_path: Path) -> None:
    system = LiveSystem(server, tmp_path)
    system.to(Phase.DUAL_WRITING)
    with pytest.raises(PhaseRefused):
        system.migration.cutover(limits=LIMITS, execute=True)


def test_a_snapshot_is_saved_where_that_is_asked_for(server: EmbeddedServer, live: LiveSystem) -> None:
    assert any("durability" in reason for reason in _reasons(live, Limits()))
    assert live.migration.cutover(limits=Limits(save=True), execute=True).after == "cut_over"


def test_an_append_only_file_is_waited_for(tmp_path: Path) -> None:
    with EmbeddedServer(options={"appendonly": "yes", "appendfsync": "everysec"}) as server:
        system = LiveSystem(server, tmp_path)
        system.fill()
        system.to(Phase.READS_SWITCHED)
        move = system.migration.cutover(execute=True)
        assert move.after == "cut_over"
        assert not any("disk" in warning for warning in move.warnings)


class TestFence:
    @pytest.fixture(autouse=True)
    def _user(self, server: EmbeddedServer) -> Iterator[None]:
        admin = redis.Redis(port=server.port)
        admin.execute_command("ACL", "SETUSER", "script", "reset", "on", ">pw", "~*", "&*", "+@all")
        self.admin = admin
        self.script = redis.Redis(
            port=server.port,
            db=5,
            username="script",
            password="pw",
            client_name="onetape-test",
            single_connection_client=True,
        )
        yield
        self.script.close()
        admin.execute_command("ACL", "DELUSER", "script")

    def test_a_fenced_user_cannot_write_old_names_until_the_way_back(self, live: LiveSystem) -> None:
        before = self.admin.execute_command("ACL", "LIST")
        move = live.migration.cutover(limits=LIMITS, fence=["script"], execute=True)
        assert any("script can no longer write" in line for line in move.lines)
        with pytest.raises(redis.exceptions.NoPermissionError):
            self.script.set("indicators:S1:rsi", "1")
        assert self.script.get("indicators:S1:rsi") == b"61.5"
        self.script.execute_command("SELECT", 1)
        live.migration.rollback(execute=True)
        assert self.admin.execute_command("ACL", "LIST") == before
        self.script.set("indicators:S1:rsi", "1")

    def test_a_fence_that_outlives_the_migration_is_told_and_lifted(self, live: LiveSystem) -> None:
        before = self.admin.execute_command("ACL", "LIST")
        assert live.migration.unfence(execute=True).changed is False
        live.migration.cutover(limits=LIMITS, fence=["script"], execute=True)
        assert live.migration.status().fenced == ("script",)
        dry = live.migration.unfence()
        assert (dry.executed, dry.facts["users"]) == (False, ["script"])
        finished = live.migration.finish(force=True, execute=True)
        assert any("script stays fenced" in line for line in finished.lines)
        assert live.migration.status().fenced == ("script",)
        assert live.migration.unfence(execute=True).changed
        assert self.admin.execute_command("ACL", "LIST") == before
        assert live.migration.status().fenced == ()

    def test_a_fence_is_taken_down_where_the_gate_stays_shut(self, live: LiveSystem) -> None:
        live.migration.postpone()
        with pytest.raises(GateRefused):
            live.migration.cutover(limits=LIMITS, fence=["script"], execute=True)
        self.script.set("other", "1")

    def test_a_fence_that_cannot_be_is_named(self, live: LiveSystem) -> None:
        with pytest.raises(GateRefused, match="no user 'nobody'"):
            live.migration.cutover(limits=LIMITS, fence=["nobody"], execute=True)
        with pytest.raises(GateRefused, match="user of this command"):
            live.migration.cutover(limits=LIMITS, fence=["default"], execute=True)
        assert live.phase is Phase.READS_SWITCHED


def test_a_fence_is_not_put_up_where_the_gate_is_shut(live: LiveSystem) -> None:
    live.old.acl_setuser("legacy", enabled=True, nopass=True, keys=["*"], commands=["+@all"])
    passed: list[str] = []
    live.migration.helm.at = passed.append
    live.migration.postpone()
    with pytest.raises(GateRefused, match="postponed"):
        live.migration.cutover(limits=LIMITS, fence=["legacy"], execute=True)
    assert "fenced" not in passed, "its writers were stopped for a cutover that was not made"


def test_a_user_that_clients_of_onetape_go_by_cannot_be_fenced(live: LiveSystem) -> None:
    live.old.acl_setuser("app", enabled=True, nopass=True, keys=["*"], commands=["+@all"])
    with DualRedis(port=live.server.port, db=5, username="app", password="x", plan=PLAN) as client:
        client.set("indicators:S1:rsi", "5")
        reasons = _fenced(live, ["app"])
        assert any("'app' is the user of" in reason for reason in reasons)
        with pytest.raises(GateRefused, match="'app' is the user of"):
            live.migration.cutover(limits=LIMITS, fence=["app"], force=True, execute=True)
        client.set("indicators:S1:rsi", "6")
    assert live.new.get("ind:S1:rsi") == b"6"


def _fenced(live: LiveSystem, users: list[str]) -> list[str]:
    return list(live.migration.cutover(limits=LIMITS, fence=users).facts["reasons"])


def test_a_connection_that_writes_between_its_reads_is_found_out(live: LiveSystem) -> None:
    begun, done = threading.Event(), threading.Event()

    def at_work() -> None:
        with redis.Redis(port=live.server.port, db=5, client_name="old-script") as straggler:
            while not done.wait(0.02):
                straggler.set("indicators:S2:note", "same")
                done.wait(0.005)
                straggler.get("indicators:S1:rsi")
                begun.set()

    live.write("S2:note", "same")
    thread = threading.Thread(target=at_work)
    thread.start()
    try:
        assert begun.wait(60)
        (reason,) = _reasons(live)
    finally:
        done.set()
        thread.join()
    assert "old-script" in reason and "wrote" in reason
