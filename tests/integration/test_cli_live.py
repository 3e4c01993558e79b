"""onetape migrate on a live migration: dry runs, refusals, exit codes, JSON, and the question before the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis
import typer

from onetape.cli import main
from onetape.embedded import EmbeddedServer


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ONETAPE_TAPE", "ONETAPE_CONFIG", "ONETAPE_LEDGER", "ONETAPE_PLAN", "ONETAPE_TARGET_DB"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def old(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> redis.Redis:
    monkeypatch.setenv("ONETAPE_REDIS_URL", f"redis://localhost:{server.port}")
    client = redis.Redis(port=server.port, db=5, client_name="onetape-test")
    for i in range(5):
        client.set(f"indicators:S{i}:rsi", i)
    return client


def _run(*args: str) -> int:
    return main(["migrate", *args])


def _json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def _forward(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["start", "--execute"], ["backfill"], ["verify"], ["switch-reads", "--execute"]):
        assert _run(*args) == 0, capsys.readouterr()
    capsys.readouterr()


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(
    old: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("start") == 0
    out = capsys.readouterr().out
    assert "planned becomes dual_writing" in out
    assert "nothing was changed: --execute does it" in out
    assert _run("start", "--execute", "--json") == 0
    move = _json(capsys)
    assert (move["executed"], move["after"], move["version"], move["exit_code"]) == (True, "dual_writing", 1, 0)
    assert _run("start", "--execute") == 0
    assert "nothing to change" in capsys.readouterr().out


def test_a_command_out_of_its_turn_is_refused_with_the_way(
    old: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("cutover", "--execute") == 2
    assert "onetape migrate start begins one" in capsys.readouterr().err
    assert _run("start", "--execute") == 0
    assert _run("switch-reads", "--execute") == 2
    assert "the way there: onetape migrate verify" in capsys.readouterr().err
    assert _run("rollback", "--to", "nowhere") == 2
    assert "phases are planned" in capsys.readouterr().err


def test_a_gate_that_is_shut_names_its_reasons_and_ends_with_2(
    old: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    _forward(capsys)
    assert _run("cutover", "--postpone") == 0
    assert _run("cutover") == 2
    out = capsys.readouterr().out
    assert "it would be refused:" in out
    assert "postponed" in out and "durability" in out
    assert _run("cutover", "--execute") == 2
    assert "postponed" in capsys.readouterr().err
    assert _run("cutover", "--unpostpone") == 0
    assert _run("cutover", "--volatile-ok", "--execute") == 0
    assert "phase: cut_over" in capsys.readouterr().out


def test_shadow_reads_alone_move_no_read_to_the_new_names(old: redis.Redis, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["start", "--execute"], ["backfill"], ["verify"]):
        _run(*args)
    assert _run("switch-reads", "--shadow", "0.1", "--execute") == 0
    assert "0% of reads go to the new names first" in capsys.readouterr().out
    assert _run("switch-reads", "--share", "0.5", "--execute") == 0
    assert _run("status", "--json") == 0
    state = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (state["state"]["read_share"], state["state"]["shadow_share"]) == (0.5, 0.1)


def test_a_repair_is_a_dry_run_until_it_is_to(old: redis.Redis, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["start", "--execute"], ["backfill"], ["verify"]):
        _run(*args)
    old.set("indicators:S1:rsi", "straggler")
    capsys.readouterr()
    assert _run("verify", "--rounds", "1", "--repair", "--json") in (1, 3)
    told = _json(capsys)
    assert (told["repair"]["executed"], told["repair"]["facts"]["replaced"]) == (False, 1)
    assert _run("verify", "--repair", "--execute", "--json") == 0
    told = _json(capsys)
    assert (told["repair"]["executed"], told["verdict"]) == (True, "converged")


def test_the_throttle_is_set_shown_and_checked(old: redis.Redis, capsys: pytest.CaptureFixture[str]) -> None:
    _run("start", "--execute")
    assert _run("throttle", "keys_per_s=20000", "market_hours=09:15-15:30 Asia/Kolkata") == 0
    assert _run("throttle", "keys_per_s=-1") == 2
    assert _run("throttle", "nonsense=1") == 2
    assert _run("throttle", "keys_per_s") == 2
    capsys.readouterr()
    assert _run("throttle") == 0
    assert "keys_per_s = 20000, market_hours = 09:15-15:30 Asia/Kolkata" in capsys.readouterr().out
    assert _run("throttle", "keys_per_s=5", "--clear") == 0
    assert "throttle: keys_per_s = 5\n" in capsys.readouterr().out


def test_status_shows_the_state_and_every_change(old: redis.Redis, capsys: pytest.CaptureFixture[str]) -> None:
    _forward(capsys)
    assert _run("pause") == 0
    stranger = redis.Redis(port=old.connection_pool.connection_kwargs["port"], db=5, client_name="forgotten-script")
    stranger.get("x")
    capsys.readouterr()
    assert _run("status") == 0
    out, err = capsys.readouterr()
    for text in ("reads_switched", "paused", "100% new names first", "verified -> reads_switched", "start"):
        assert text in out, text
    assert "forgotten-script" in err
    stranger.close()


def test_the_end_asks_for_the_name_and_a_script_must_say_yes(
    old: redis.Redis, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _forward(capsys)
    assert _run("cutover", "--volatile-ok", "--execute") == 0
    assert _run("finish", "--execute") == 2
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(typer, "prompt", lambda *args, **options: "something else")
    assert _run("finish", "--execute") == 2
    assert old.dbsize() == 5
    monkeypatch.setattr(typer, "prompt", lambda *args, **options: "trading_system")
    assert _run("finish", "--execute") == 0
    assert old.dbsize() == 0
    assert "5 old keys were removed" in capsys.readouterr().out


def test_an_undo_ends_with_3_where_it_left_something(old: redis.Redis, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("backfill", "--no-tape") == 0
    redis.Redis(port=old.connection_pool.connection_kwargs["port"], db=1).set("ind:ta:S1:rsi", "newer")
    assert _run("undo") == 0
    assert _run("undo", "--execute", "--json") == 3
    out = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(out)["facts"]["removed"] == 4
