"""Settings: what decides, and how a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from onetape import config
from onetape.errors import ConfigInvalid


@pytest.fixture(autouse=True)
def _clean_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "REDIS_HOST",
        "REDIS_PORT",
        "ONETAPE_CONFIG",
        *(f"ONETAPE_{n.upper()}" for n in config.Settings.model_fields),
    ):
        monkeypatch.delenv(name, raising=False)


def test_defaults_are_the_documented_ones() -> None:
    found = config.load()
    assert found.tape == Path("market_data.db")
    assert (found.redis_url, found.durability, found.retention_days) == ("redis://localhost:6379", "process", 30)
    assert (found.ledger, found.target_db, found.plan) == (None, None, "trading_system")


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("onetape.toml").write_text('plan = "file.toml"\n')
    assert config.load().plan == "file.toml"
    monkeypatch.setenv("ONETAPE_PLAN", "environment.toml")
    assert config.load().plan == "environment.toml"
    assert config.load(plan=None).plan == "environment.toml"
    assert config.load(plan="flag.toml").plan == "flag.toml"


def test_paths_in_the_file_are_relative_to_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "my.toml").write_text('tape = "ticks.db"\nledger = "/var/ledger"\n')
    monkeypatch.setenv("ONETAPE_CONFIG", str(tmp_path / "etc" / "my.toml"))
    assert config.load().tape == tmp_path / "etc" / "ticks.db"
    assert config.load().ledger == Path("/var/ledger")


def test_redis_host_and_port_count_where_no_url_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_HOST", "old-host")
    assert config.load().redis_url == "redis://old-host:6379"
    monkeypatch.setenv("REDIS_PORT", "7000")
    assert config.load().redis_url == "redis://old-host:7000"
    monkeypatch.setenv("REDIS_HOST", "::1")
    assert config.load().redis_url == "redis://[::1]:7000"
    monkeypatch.setenv("ONETAPE_REDIS_URL", "unix:///run/redis.sock")
    assert config.load().redis_url == "unix:///run/redis.sock"


@pytest.mark.parametrize("word", ["none", "forever", "None"])
def test_retention_can_be_switched_off(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONETAPE_RETENTION_DAYS", word)
    assert config.load().retention_days is None


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONETAPE_TAPE", "")
    assert config.load().tape == Path("market_data.db")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ONETAPE_RETENTION_DAYS", "0", "ONETAPE_RETENTION_DAYS = '0'"),
        ("ONETAPE_RETENTION_DAYS", "nan", "ONETAPE_RETENTION_DAYS"),
        ("ONETAPE_DURABILITY", "maybe", "ONETAPE_DURABILITY = 'maybe'"),
        ("ONETAPE_TARGET_DB", "-1", "ONETAPE_TARGET_DB = '-1'"),
        ("ONETAPE_RECENT_PER_SYMBOL", "many", "ONETAPE_RECENT_PER_SYMBOL"),
        ("ONETAPE_REDIS_URL", "http://x", "ONETAPE_REDIS_URL"),
        ("REDIS_PORT", "six", "REDIS_HOST and REDIS_PORT"),
        ("ONETAPE_CONFIG", "/no/such.toml", "ONETAPE_CONFIG"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigInvalid, match=told) as caught:
        config.load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tap = 1\n", "onetape.toml: tap: there is no such setting .*tape"),
        ("tape = 1\n", "onetape.toml: tape = 1"),
        ("tape =\n", "onetape.toml: Invalid value"),
        ('durability = "x"\n', "onetape.toml: durability = 'x'"),
    ],
)
def test_a_wrong_file_is_told_with_the_setting(text: str, told: str) -> None:
    Path("onetape.toml").write_text(text)
    with pytest.raises(ConfigInvalid, match=told):
        config.load()


def test_a_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONETAPE_REDIS_URL", "redis://user:s3cret@host:port")
    with pytest.raises(ConfigInvalid) as caught:
        config.load()
    assert "s3cret" not in str(caught.value)
