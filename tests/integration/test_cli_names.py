"""The commands `onetape alias` and `onetape continuous`, and the others where a name is not a symbol's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import onetape
from onetape.cli.app import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONETAPE_TAPE", str(tmp_path / "t.db"))
    return tmp_path


def _ns(text: str) -> int:
    return onetape.to_ns(text)


def test_an_alias_is_taken_by_every_command_that_takes_a_symbol(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with onetape.open(here / "t.db", retention_days=None) as tape:
        tape.append(onetape.Tick("NIFTY 50", _ns("2026-01-05T03:45:00"), price=26012.5, size=1.0))
    assert main(["alias", "add", "256265", "NIFTY 50"]) == 0
    for command in (["latest", "256265"], ["history", "256265"], ["bars", "256265"]):
        assert main(command) == 0, command
        assert "26012.5" in capsys.readouterr().out
    assert main(["tail", "256265", "--from-seq", "0", "--count", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["symbol"] == "NIFTY 50"
    assert main(["latest", "256266"]) == 2
    assert main(["alias", "list", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["name"] == "256265" and "no symbol '256266'" in shown.err


def test_what_a_name_means_is_not_changed_unasked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with onetape.open(here / "t.db", retention_days=None) as tape:
        tape.append([onetape.Tick(name, 10**18, price=1.0) for name in ("A", "B")])
    assert main(["alias", "add", "A", "B"]) == 2
    assert "--rename" in (told := capsys.readouterr().err) or "rename" in told
    assert main(["alias", "add", "1", "A"]) == 0
    assert main(["alias", "add", "1", "B"]) == 2
    assert main(["alias", "add", "1", "B", "--replace"]) == 0
    assert main(["alias", "remove", "1"]) == 0
    assert "--execute removes it" in capsys.readouterr().out
    with onetape.open(here / "t.db", mode="r") as tape:
        assert tape.symbol_of("1") == "B"
    assert main(["alias", "remove", "1", "--execute"]) == 0
    assert main(["alias", "remove", "1", "--execute"]) == 2
    assert main(["alias", "add", "A", "B", "--rename", "A.old"]) == 0
    with onetape.open(here / "t.db", mode="r") as tape:
        assert [info.symbol for info in tape.symbols()] == ["A.old", "B"] and tape.symbol_of("A") == "B"


def test_a_continuous_future_is_shown_with_its_contracts_and_its_roll(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with onetape.open(here / "t.db", retention_days=None) as tape:
        for day, a, b in ((10, 9, 1), (11, 4, 7), (12, 1, 9)):
            at = _ns(f"2025-12-{day}T15:00:00")
            tape.append(onetape.Tick("ESZ5", at, price=6850.0, size=float(a)))
            tape.append(onetape.Tick("ESH6", at + 1, price=6905.5, size=float(b)))
    define = ["continuous", "define", "ES.c", "ESZ5=2025-12-19", "ESH6=2026-03-20", "--roll"]
    assert main([*define, "volume"]) == 0
    assert main([*define, "5bd"]) == 2
    assert main([*define, "sometime", "--replace"]) == 2
    assert main(["continuous", "define", "X", "ESZ5", "--roll", "volume"]) == 2
    assert main(["continuous", "define", "X", "E=2025-12-19", "--roll", "volume", "--gap", "E=much"]) == 2
    capsys.readouterr()
    assert main(["continuous", "show", "ES.c", "--json"]) == 0
    roll = json.loads(capsys.readouterr().out)
    assert (roll["kind"], roll["old"], roll["new"], roll["gap"]) == ("roll", "ESZ5", "ESH6", 55.5)
    assert roll["time"] == "2025-12-12T00:00:00.000Z"
    assert main(["history", "ES.c"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["symbol", "ESZ5", "ESZ5", "ESH6"]
    assert main(["tail", "ES.c", "--from-seq", "0", "--idle", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "3", "roll", "6"]
    assert main(["tail", "ES.c", "--from-seq", "0", "--idle", "0", "--json"]) == 0
    assert [json.loads(line)["kind"] for line in capsys.readouterr().out.splitlines()][2] == "roll"
    assert main(["bars", "ES.c", "--interval", "1d", "--json"]) == 0
    assert [json.loads(line)["symbol"] for line in capsys.readouterr().out.splitlines()] == ["ESZ5", "ESZ5", "ESH6"]
    assert main(["latest", "ES.c"]) == 0
    assert "ESH6" in capsys.readouterr().out
    assert main(["continuous", "remove", "ES.c"]) == 0
    assert main(["continuous", "show", "ES.c"]) == 0
    assert main(["continuous", "remove", "ES.c", "--execute"]) == 0
    assert main(["continuous", "show", "ES.c"]) == 2
    assert main(["continuous", "list"]) == 0
