"""The command line that answers SQL and shows history of several symbols, of an earlier state, beside quotes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import ROOT

import onetape
from onetape.cli import main

pytest.importorskip("duckdb")

T0 = onetape.to_ns("2025-03-14T13:30:00Z")
S = 1_000_000_000


@pytest.fixture
def tape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[onetape.Tape]:
    monkeypatch.chdir(tmp_path)
    for name in ("ONETAPE_TAPE", "ONETAPE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    with onetape.open(tmp_path / "market_data.db", retention_days=None) as opened:
        opened.append(onetape.Tick("ES", T0 - 30 * S, bid=5999.75, ask=6000))
        opened.append([onetape.Tick("ES", T0 + i * S, price=6000 + i / 4, size=1) for i in range(60)])
        opened.append(onetape.Tick("NQ", T0 + 5 * S, price=21000.5, source='a "b", c'))
        yield opened


def _shown(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> tuple[str, str]:
    assert main([*args]) == code
    told = capsys.readouterr()
    return told.out, told.err


def test_an_answer_is_a_table_for_people(tape: onetape.Tape, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = _shown(capsys, "sql", "SELECT symbol, ts_event_ns, time, price FROM ticks WHERE symbol = 'NQ'")
    assert out.splitlines() == [
        "symbol  ts_event_ns               time                        price",
        "NQ      2025-03-14T13:30:05.000Z  2025-03-14T13:30:05.000Z  21000.5",
    ]
    assert err == ""
    out, err = _shown(capsys, "sql", "FROM ticks ORDER BY seq")
    assert len(out.splitlines()) == 51 and "--limit 0 shows all" in err
    assert len(_shown(capsys, "sql", "FROM ticks", "--limit", "0")[0].splitlines()) == 63
    assert _shown(capsys, "sql", "FROM ticks WHERE price < 0") == ("", "no rows\n")


def test_programs_get_json_lines_or_csv_with_every_digit(
    tape: onetape.Tape, capsys: pytest.CaptureFixture[str]
) -> None:
    query = "SELECT symbol, ts_event_ns, time, price, source, bid FROM ticks WHERE source IS NOT NULL"
    row = json.loads(_shown(capsys, "sql", query, "--json")[0])
    expected = {"symbol": "NQ", "ts_event_ns": T0 + 5 * S, "time": "2025-03-14T13:30:05.000Z", "price": 21000.5}
    assert row == {**expected, "source": 'a "b", c', "bid": None}
    lines = list(csv.reader(io.StringIO(_shown(capsys, "sql", query, "--csv")[0])))
    assert lines == [list(row), ["NQ", str(T0 + 5 * S), expected["time"], "21000.5", 'a "b", c', ""]]
    assert len(_shown(capsys, "sql", "FROM ticks", "--json")[0].splitlines()) == 62
    assert len(_shown(capsys, "sql", "FROM ticks", "--json", "--limit", "7")[0].splitlines()) == 7


def test_an_error_is_one_line_with_its_place_and_exit_code_2(
    tape: onetape.Tape, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("SELECT *\nFRM ticks\n"))
    out, err = _shown(capsys, "sql", "-", code=2)
    assert out == "" and err.startswith("onetape: error: line 2, column 5: syntax error") and err.count("\n") == 1
    assert "DROP is not answered" in _shown(capsys, "sql", "DROP TABLE ticks", code=2)[1]
    assert "give one" in _shown(capsys, "sql", "SELECT 1", "--json", "--csv", code=2)[1]
    assert "not yet" in _shown(capsys, "sql", "FROM ticks", "--as-of", "99", code=2)[1]


def test_sql_and_history_show_an_earlier_state(tape: onetape.Tape, capsys: pytest.CaptureFixture[str]) -> None:
    query = "SELECT count(*) AS n FROM ticks"
    assert json.loads(_shown(capsys, "sql", query, "--json", "--as-of", "61")[0]) == {"n": 61}
    lines = _shown(capsys, "history", "ES", "--json", "--as-of", "3", "--limit", "0")[0].splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [1, 2, 3]


def test_history_of_several_symbols_is_in_order_and_says_whose(
    tape: onetape.Tape, capsys: pytest.CaptureFixture[str]
) -> None:
    start = "2025-03-14T13:30:04Z"
    out, _ = _shown(capsys, "history", "ES", "NQ", "--start", start, "--end", "2025-03-14T13:30:06Z")
    assert [line.split()[0] for line in out.splitlines()] == ["symbol", "ES", "ES", "NQ"]
    lines = _shown(capsys, "history", "ES", "NQ", "--json", "--limit", "2")[0].splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [60, 61]
    assert "no symbol 'NOPE'" in _shown(capsys, "history", "ES", "NOPE", code=2)[1]


def test_history_shows_trades_beside_their_quotes(tape: onetape.Tape, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["history", "ES", "--quotes", "--json", "--limit", "0"]
    rows = [json.loads(line) for line in _shown(capsys, *args, "--max-age", "31")[0].splitlines()]
    assert [row.get("bid") for row in rows] == [5999.75] * 2 + [None] * 58
    assert rows[1]["quote_age_ns"] == 31 * S and rows[0]["kind"] == "trade"
    assert "5999.75" in _shown(capsys, *args[:3])[0]
    assert "of one symbol" in _shown(capsys, "history", "ES", "NQ", "--quotes", code=2)[1]
    assert "--quotes" in _shown(capsys, "history", "ES", "--max-age", "1", code=2)[1]


def test_ctrl_c_ends_a_long_query_at_once(tape: onetape.Tape, tmp_path: Path) -> None:
    query = "SELECT count(*) FROM range(1000000) a(x), range(1000000) b(y), ticks WHERE (x * y) % 7 = 3"
    spill = tmp_path / "spill"
    spill.mkdir()
    running = subprocess.Popen(
        [sys.executable, "-m", "onetape", "sql", query, "--tape", str(tape.path)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(spill)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not any(spill.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=120)[1] == ""
        assert running.returncode == 130
        assert not any(spill.iterdir())
    finally:
        running.kill()
