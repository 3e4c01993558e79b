"""onetape import of other formats than CSV: folders, detection, what it says, and its exit codes."""

from __future__ import annotations

import json
import sqlite3
import zipfile
from pathlib import Path

import pytest

import onetape
from onetape.cli import main

ROWS = "".join(f"{34_200_000 + i},{491_800 + i},100,P,0,0\n" for i in range(40))


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ONETAPE_TAPE", "ONETAPE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ONETAPE_RETENTION_DAYS", "none")


def _lean(day: str, rows: str = ROWS) -> Path:
    path = Path("data/equity/usa/tick/aig", f"{day}_trade.zip")
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{day}_aig_Trade_Tick.csv", rows)
    return path


def _ticks() -> int:
    with onetape.open("market_data.db", mode="r") as tape:
        return tape.stats().ticks


def test_a_folder_is_imported_file_by_file_and_again_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    _lean("20131007")
    _lean("20131008", ROWS.replace("491", "492"))
    Path("data/README.md").write_text("not market data")
    assert main(["import", "data"]) == 0
    out = capsys.readouterr().out
    assert out.count("(lean): 40 ticks stored") == 2
    assert "times in America/New_York" in out
    assert main(["import", "data"]) == 0
    assert capsys.readouterr().out.count("nothing to do") == 2
    assert _ticks() == 80


def test_a_session_that_comes_twice_is_refused_and_does_not_stop_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    for day in ("20131007", "20131008"):
        _lean(day)
    _lean("20131009", ROWS.replace("491", "493"))
    assert main(["import", "data", "--dry-run"]) == 1
    assert "--repeats once" in capsys.readouterr().err
    assert not Path("market_data.db").exists()
    assert main(["import", "data"]) == 1
    assert _ticks() == 80
    capsys.readouterr()
    assert main(["import", "data", "--repeats", "once"]) == 0
    assert "left out, it repeats the session of 2013-10-07" in capsys.readouterr().out


def test_a_file_in_no_folder_of_lean_is_told_where_it_would_lie(capsys: pytest.CaptureFixture[str]) -> None:
    lone = _lean("20131007").rename("lone.zip")
    assert main(["import", str(lone)]) == 2
    assert "--as equity/usa" in capsys.readouterr().err
    assert main(["import", str(lone), "--as", "equity/usa/tick/aig/20131007_trade.zip"]) == 0
    assert _ticks() == 40


def test_the_predecessors_database_is_found_by_what_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect("old.sqlite") as old:
        old.execute("CREATE TABLE market_data(id INTEGER PRIMARY KEY, symbol, timestamp, close)")
        old.execute("INSERT INTO market_data VALUES (1, 'NQ', 1700000000, 5), (2, 'NQ', 'noon', 6)")
    assert main(["import", "old.sqlite"]) == 2
    assert "row 2, timestamp: 'noon'" in capsys.readouterr().err
    assert main(["import", "old.sqlite", "--on-invalid", "quarantine"]) == 0
    out = capsys.readouterr()
    assert "(minhos): 1 tick stored" in out.out
    assert "row 2, timestamp: 'noon': neither Unix seconds nor ISO 8601" in out.err


def test_json_says_what_became_of_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    path = _lean("20131007")
    assert main(["import", str(path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["format"], result["rows"], result["stored"], result["symbols"]) == ("lean", 40, 40, ["AIG"])


def test_options_and_formats_that_do_not_fit_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(_lean("20131007"))
    for more, message in (
        (["--format", "nothing"], "format 'nothing' is not known"),
        (["--delimiter", ";"], "--delimiter is for CSV, this is lean"),
        (["--allow-cut"], "--allow-cut: nothing in the format lean for it"),
        (["--format", "csv", "--repeats", "once"], "is taken for CSV"),
    ):
        assert main(["import", path, *more]) == 2
        assert message in capsys.readouterr().err
    Path("empty").mkdir()
    assert main(["import", "empty"]) == 2
    assert "a folder without files of any format" in capsys.readouterr().err


def test_the_formats_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--list-formats"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in ("csv", "lean", "dbn", "minhos"))
