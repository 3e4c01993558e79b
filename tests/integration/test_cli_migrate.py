"""onetape migrate: what it shows and its exit codes, on real servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis

import onetape
from onetape.cli import main
from onetape.embedded import EmbeddedServer


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ONETAPE_TAPE", "ONETAPE_CONFIG", "ONETAPE_LEDGER", "ONETAPE_PLAN", "ONETAPE_TARGET_DB"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def old(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> EmbeddedServer:
    """A small legacy system: indicators with and without expiry, a session, a tick stream, a key without a rule."""
    monkeypatch.setenv("ONETAPE_REDIS_URL", f"redis://localhost:{server.port}")
    indicators, system, market = (redis.Redis(port=server.port, db=db) for db in (5, 0, 2))
    for i in range(20):
        indicators.set(f"indicators:S{i}:rsi", i, ex=3600 if i % 2 else None)
    indicators.set("indicators:NFO:NIFTY:delta", "0.5")
    system.set("session:1", "s")
    system.set(b"junk\xff", "?")
    for i in range(50):
        entry = {"last_price": 100 + i, "volume": 10 * i, "timestamp": 1742000000000 + i * 1000}
        market.xadd("ticks:RELIANCE", entry, id=f"{1742000000000 + i * 1000}-0")
    return server


def _target(server: EmbeddedServer, db: int = 1) -> Any:
    return redis.Redis(port=server.port, db=db)


def _out(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_a_plan_shows_keys_unmatched_ones_and_its_hash_and_changes_nothing(
    old: EmbeddedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate", "plan"]) == 0
    text = capsys.readouterr().out
    assert r"database 0, keys that no rule matches: 1 (junk\xff)" in text
    assert "nothing was changed" in text
    assert main(["migrate", "plan", "--json"]) == 0
    plan = _out(capsys)
    assert plan["steps"]["indicators"] == 21
    assert plan["hash"] in text
    assert _target(old).dbsize() == 0
    assert list(tmp_path.iterdir()) == []


def test_the_whole_way_from_dry_run_to_verified(
    old: EmbeddedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate", "backfill", "--dry-run", "--json"]) == 0
    dry = _out(capsys)
    assert dry["dry_run"] is True
    assert _target(old).dbsize() == 0
    assert not (tmp_path / "market_data.db").exists()

    assert main(["migrate", "backfill", "--json"]) == 0
    report = _out(capsys)
    assert report["totals"] == dry["totals"]
    assert report["ticks"] == {"landed": 50, "known": 0} == dry["ticks"]
    assert json.loads(Path(report["path"]).read_text())["totals"] == report["totals"]
    assert _target(old).get("ind:greeks:NFO:NIFTY:delta") == b"0.5"
    with onetape.open("market_data.db", mode="r") as tape:
        assert tape.stats().ticks == 50

    assert main(["migrate", "verify"]) == 0
    assert "verdict: converged" in capsys.readouterr().out

    assert main(["migrate", "backfill", "--json"]) == 0
    again = _out(capsys)
    assert set(again["totals"]) == {"unchanged"}
    assert again["ticks"] == {"landed": 0, "known": 50}

    assert main(["migrate", "status", "--json"]) == 0
    status = _out(capsys)
    assert (status["phase"], status["verdict"]) == ("verified", "converged")
    assert [run["command"] for run in status["runs"]] == ["backfill", "verify", "backfill"]
    assert main(["migrate", "status"]) == 0
    assert "verified" in capsys.readouterr().out

    for name in ("indicators:S1:rsi", "ind:ta:S1:rsi"):
        assert main(["migrate", "why", name]) == 0
        assert "copied: db 5 indicators:S1:rsi -> ind:ta:S1:rsi (indicators), expires 20" in capsys.readouterr().out


def test_a_report_ends_with_the_code_of_its_verdict_also_for_another_server(
    old: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    onetape.open("market_data.db").close()
    assert main(["migrate", "report", "--ledger", "none"]) == 2
    assert main(["migrate", "backfill"]) == 0
    assert main(["migrate", "report"]) == 1
    assert "verdict: not proven" in capsys.readouterr().out
    assert main(["migrate", "verify"]) == 0
    assert main(["migrate", "report"]) == 0
    with EmbeddedServer() as other:
        away = ["--target", other.url, "--ledger", "away", "--tape", "away.db"]
        onetape.open("away.db").close()
        assert main(["migrate", "backfill", *away]) == 0
        assert main(["migrate", "verify", *away]) == 0
        _target(old).flushdb()  # that the other server is looked at shows where this one has nothing
        capsys.readouterr()
        assert main(["migrate", "report", *away, "--json"]) == 0
        assert _out(capsys)["target"]["address"].endswith(str(other.port))


def test_limit_and_step_bound_what_is_done(old: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "backfill", "--limit", "3", "--step", "indicators", "--no-tape", "--json"]) == 0
    assert _out(capsys)["totals"] == {"copied": 3}
    assert _target(old).dbsize() == 3
    assert not Path("market_data.db").exists()


def test_the_target_database_can_be_chosen(old: EmbeddedServer) -> None:
    assert main(["migrate", "backfill", "--target-db", "9", "--no-tape"]) == 0
    assert _target(old).dbsize() == 0
    assert _target(old, 9).get("ind:ta:S0:rsi") == b"0"


def test_verify_is_not_proven_where_a_key_differs(old: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "backfill"]) == 0
    _target(old).delete("ind:ta:S1:rsi")
    capsys.readouterr()
    assert main(["migrate", "verify"]) == 1
    out = capsys.readouterr()
    assert "verdict: not proven" in out.out
    assert "indicators:S1:rsi" in out.err


def test_verify_tells_skips_from_a_clean_result(old: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    _target(old).set("ind:ta:S1:rsi", "newer")
    assert main(["migrate", "backfill"]) == 0
    capsys.readouterr()
    assert main(["migrate", "verify", "--json"]) == 3
    assert _out(capsys)["verdict"] == "converged with listed skips"


def test_what_is_refused_has_exit_code_2_and_wrote_nothing(
    old: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("twice.toml").write_text(
        'name = "t"\ntarget_db = 1\ntimezone = "UTC"\n'
        '[[rule]]\nstep = "a"\nsource_db = 0\npattern = "session:{x}"\ntarget = "one"\n'
        '[[rule]]\nstep = "a"\nsource_db = 5\npattern = "indicators:{x}:rsi"\ntarget = "one"\n'
    )
    Path("broken.toml").write_text("name = ")
    Path("not-a-ledger").write_text("x" * 5000)
    for args, told in [
        (["plan", "--plan", "twice.toml"], "one"),
        (["plan", "--plan", "broken.toml"], "broken.toml: not TOML"),
        (["plan", "--plan", "missing.toml"], "missing.toml"),
        (["backfill", "--step", "nope"], "no step 'nope'"),
        (["backfill", "--ledger", "not-a-ledger"], "not-a-ledger"),
        (["backfill", "--redis", "http://localhost"], "redis_url"),
        (["verify"], "--no-tape"),
        (["status", "--ledger", "none"], "no ledger none"),
    ]:
        Path("market_data.db").unlink(missing_ok=True)
        assert main(["migrate", *args]) == 2, args
        out = capsys.readouterr()
        assert told in out.err
        assert out.err.count("\n") == 1
    assert _target(old).dbsize() == 0


def test_an_allkeys_policy_is_refused_before_anything_is_written(
    fresh_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    client = redis.Redis(port=fresh_server.port)
    client.set("session:1", "s")
    client.config_set("maxmemory", "100mb")
    client.config_set("maxmemory-policy", "allkeys-lru")
    url = ["--redis", f"redis://localhost:{fresh_server.port}"]
    assert main(["migrate", "plan", *url]) == 2
    assert "allkeys-lru" in capsys.readouterr().err
    assert main(["migrate", "backfill", "--no-tape", *url]) == 2
    assert "allkeys-lru" in capsys.readouterr().err
    assert _target(fresh_server).dbsize() == 0


def test_a_server_that_cannot_be_reached_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("plan", "backfill", "verify"):
        more = [] if command == "plan" else ["--no-tape"]
        assert main(["migrate", command, "--redis", "redis://localhost:1", *more]) == 1
        err = capsys.readouterr().err
        assert "localhost:1" in err
        assert err.count("\n") == 1


def test_why_takes_bytes_and_says_when_a_key_is_unknown(
    old: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    _target(old, 0).set(b"session:\xff", "binary")
    assert main(["migrate", "backfill", "--no-tape"]) == 0
    capsys.readouterr()
    assert main(["migrate", "why", r"session:\xff"]) == 0
    assert r"session:\xff" in capsys.readouterr().out
    assert main(["migrate", "why", "nobody"]) == 2
    assert "knows no key 'nobody'" in capsys.readouterr().err
