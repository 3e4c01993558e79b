"""onetape import: what it says, what it stores, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT

import onetape
from onetape.cli import main

GOOD = "time,symbol,price,size,venue\n1742000000123,ESZ6,6000.25,2,X\n1742000000124,ESZ6,6000.5,1,X\n"


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ONETAPE_TAPE", "ONETAPE_CONFIG", "ONETAPE_RETENTION_DAYS"):
        monkeypatch.delenv(name, raising=False)
    Path("good.csv").write_text(GOOD)


def _ticks() -> int:
    with onetape.open("market_data.db", mode="r") as tape:
        return tape.stats().ticks


def test_an_import_says_what_it_took_for_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "good.csv"]) == 0
    out = capsys.readouterr()
    assert "good.csv: 2 ticks stored" in out.out
    assert "price=price" in out.out
    assert "not used: venue" in out.out
    assert "ONETAPE_RETENTION_DAYS=none" in out.err  # the ticks are of 2025: they will not stay
    assert main(["import", "good.csv"]) == 0
    assert "nothing to do, what it holds (2 ticks) is on the tape already" in capsys.readouterr().out
    assert _ticks() == 2


def test_a_dry_run_leaves_no_tape_behind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "good.csv", "--dry-run"]) == 0
    assert "2 ticks can be stored" in capsys.readouterr().out
    assert not Path("market_data.db").exists()


def test_one_wrong_file_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.csv").write_text("time,symbol,price\n1742000000123,A,x\n")
    assert main(["import", "bad.csv", "missing.csv", "good.csv"]) == 1
    out = capsys.readouterr()
    errors = out.err.splitlines()
    assert "bad.csv, line 2, column 'price': 'x'" in errors[0]
    assert "missing.csv: no such file" in errors[1]
    assert _ticks() == 2
    assert main(["import", "bad.csv"]) == 2


def test_quarantined_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.csv").write_text("time,symbol,price\n1742000000123,A,x\n1742000000124,A,1\n")
    assert main(["import", "bad.csv", "--on-invalid", "quarantine"]) == 0
    out = capsys.readouterr()
    assert "1 tick stored" in out.out
    assert "rows in quarantine: 1" in out.err
    assert "line 2, column 'price': 'x': not a number" in out.err


def test_a_session_volume_is_pointed_out(capsys: pytest.CaptureFixture[str]) -> None:
    Path("v.csv").write_text("time,symbol,price,volume\n1742000000123,A,1,5\n")
    assert main(["import", "v.csv"]) == 0
    assert "--map size=volume" in capsys.readouterr().err


def test_json_is_one_object_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "good.csv", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["stored"], result["known"]) == (2, 2, 0)
    assert result["symbols"] == ["ESZ6"]
    assert (result["ts_first_ns"], result["time_format"]) == (1742000000123000000, "ms")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--map", "last=price"], "did you mean price=last"),
        (["--map", "price=cost"], "there is no column 'cost'"),
        (["--time-format", "x"], "--time-format x"),
        (["--timezone", "Nowhere"], "--timezone Nowhere"),
        (["--interval", "1min"], "--interval is for bars"),
        (["--kind", "bars", "--interval", "1x"], "--interval"),
        (["--delimiter", "::"], "--delimiter"),
        (["--header", "a,b"], "--header names 2 columns, line 1 has 5"),
        (["--kind", "trades"], "trades"),
    ],
)
def test_a_wrong_option_is_named(capsys: pytest.CaptureFixture[str], args: list[str], told: str) -> None:
    assert main(["import", "good.csv", *args]) == 2
    out = capsys.readouterr()
    assert told in out.err
    assert out.err.count("\n") == 1


def test_two_imports_at_once_store_the_file_once(tmp_path: Path) -> None:
    rows = "".join(f"{1742000000000 + i},{i}\n" for i in range(30_000))
    Path("big.csv").write_text("time,price\n" + rows)
    command = [sys.executable, "-m", "onetape", "import", "big.csv", "--symbol", "A", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) for _ in range(2)]
    results = [json.loads(process.communicate(timeout=60)[0]) for process in both]
    assert sorted(result["stored"] for result in results) == [0, 30_000]
    assert _ticks() == 30_000
