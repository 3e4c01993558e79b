"""The command line that looks at a tape: as people see it and as programs read it; errors are one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import ROOT

import onetape
from onetape.cli import main
from onetape.cli.chart import candle_chart
from onetape.cli.times import parse_span, parse_time
from onetape.store import table

START_NS = onetape.to_ns("2025-03-14T13:30:00Z")
S = 1_000_000_000


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ONETAPE_TAPE", "ONETAPE_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[onetape.Tape]:
    """A tape with 100 ticks of one symbol, two more symbols, and a bar somebody gave."""
    with onetape.open(tmp_path / "market_data.db", retention_days=None) as opened:
        opened.append(
            [onetape.Tick("ESZ6", START_NS + i * S, price=6000 + i / 4, size=1 + i % 3, side=1) for i in range(100)]
        )
        with pytest.MonkeyPatch.context() as patch:  # what another program, or an earlier release, let through
            patch.setattr(table, "text_problem", lambda what, text: None)
            opened.append(onetape.Tick("NFO:NIFTY", START_NS, bid=1 / 3, ask=0.5, source="x\x1b[2J"))
        opened.append(onetape.Tick("東京", START_NS, price=7))
        opened.append(onetape.Bar("ES", "1d", onetape.to_ns("2025-03-14"), 1, 2, 0.5, 1.5, source="vendor"))
        yield opened


def _run(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **more}
    return subprocess.run(
        [sys.executable, "-m", "onetape", *args], capture_output=True, text=True, timeout=60, env=environment
    )


def _json(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


# latest, history, bars, symbols, stats


def test_latest_shows_each_symbol_to_the_last_digit(tape: onetape.Tape, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latest"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["symbol", "time", "price"]
    assert [line.split()[0] for line in lines[1:]] == ["ESZ6", "NFO:NIFTY", "東京"]
    assert "0.3333333333333333" in lines[2]
    assert "2025-03-14T13:31:39.000Z" in lines[1]


def test_latest_as_json_is_one_object_a_line_with_the_time_twice(
    tape: onetape.Tape, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["latest", "ESZ6", "--json"]) == 0
    (row,) = _json(capsys.readouterr().out)
    assert row == {
        "kind": "tick",
        "time": "2025-03-14T13:31:39.000Z",
        "symbol": "ESZ6",
        "ts_event_ns": START_NS + 99 * S,
        "price": 6024.75,
        "size": 1.0,
        "side": 1,
        "seq": 100,
    }


def test_what_a_source_wrote_cannot_act_on_the_terminal(tape: onetape.Tape, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["latest"], ["history", "NFO:NIFTY"], ["tail", "--from-seq", "0", "--idle", "0"]):
        assert main(command) == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert r"x\x1b[2J" in out


def test_history_shows_the_newest_twenty_ascending(tape: onetape.Tape, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "ESZ6", "--json"]) == 0
    rows = _json(capsys.readouterr().out)
    assert [row["seq"] for row in rows] == list(range(81, 101))


def test_history_takes_a_span_a_limit_and_columns(tape: onetape.Tape, capsys: pytest.CaptureFixture[str]) -> None:
    span = ["--start", "2025-03-14T13:30:10", "--end", str(START_NS + 20 * S)]
    assert main(["history", "ESZ6", *span, "--limit", "3", "--columns", "ts_event_ns,price", "--json"]) == 0
    out = capsys.readouterr()
    assert [list(row) for row in _json(out.out)] == [["time", "ts_event_ns", "price"]] * 3
    assert _json(out.out)[-1]["ts_event_ns"] == START_NS + 19 * S
    assert "newest 3 of 10 ticks" in out.err
    assert main(["history", "ESZ6", *span, "--limit", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 11


def test_bars_are_shown_with_their_sums(tape: onetape.Tape, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bars", "ESZ6", "--json"]) == 0
    rows = _json(capsys.readouterr().out)
    assert [row["time"] for row in rows] == ["2025-03-14T13:30:00.000Z", "2025-03-14T13:31:00.000Z"]
    assert (rows[0]["open"], rows[0]["close"], rows[0]["volume"]) == (6000.0, 6014.75, 120.0)
    assert main(["bars", "ES", "--interval", "1d"]) == 0
    assert "vendor" in capsys.readouterr().out


def test_symbols_and_stats_count_what_is_there(tape: onetape.Tape, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["symbols", "--json"]) == 0
    assert {row["symbol"]: (row["ticks"], row["bars"]) for row in _json(capsys.readouterr().out)} == {
        "ES": (0, 1),
        "ESZ6": (100, 0),
        "NFO:NIFTY": (1, 0),
        "東京": (1, 0),
    }
    assert main(["stats", "--json"]) == 0
    (stats,) = _json(capsys.readouterr().out)
    assert (stats["ticks"], stats["symbols"], stats["head"]) == (102, 4, 103)
    assert main(["symbols"]) == 0
    assert main(["stats"]) == 0
    assert "102" in capsys.readouterr().out


def test_an_empty_tape_says_that_it_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onetape.open(tmp_path / "market_data.db").close()
    for command in ("latest", "symbols"):
        assert main([command]) == 0
        out = capsys.readouterr()
        assert (out.out, out.err) == ("", "the tape is empty\n")


# tail


def test_tail_shows_every_record_from_a_position(tape: onetape.Tape, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tail", "--from-seq", "98", "--count", "5", "--json"]) == 0
    rows = _json(capsys.readouterr().out)
    assert [row["seq"] for row in rows] == [99, 100, 101, 102, 103]
    assert rows[-1]["kind"] == "bar"
    assert main(["tail", "ESZ6", "--from-time", "2025-03-14T13:31:38Z", "--idle", "0.1"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["99", "100"]


def _tail(*args: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        [sys.executable, "-m", "onetape", "tail", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_tail_sees_what_another_process_appends_at_once_and_ends_on_ctrl_c(tape: onetape.Tape) -> None:
    process = _tail("--from-seq", "102")
    assert process.stdout is not None
    assert "ES" in process.stdout.readline()
    tape.append(onetape.Tick("LIVE", START_NS, price=42))
    assert "LIVE  price 42" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")


def test_tail_ends_quietly_when_its_reader_goes_away(tape: onetape.Tape) -> None:
    process = _tail("--from-seq", "102")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_a_closed_pipe_is_silent(tape: onetape.Tape) -> None:
    tape.append([onetape.Tick("BIG", START_NS + i, price=i) for i in range(20_000)])
    command = f"{sys.executable} -m onetape history BIG --limit 0 --json | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


# Errors


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["latest", "ESZ7"], 2, "no symbol 'ESZ7' on .*there is ESZ6"),
        (["history", "ESZ6", "--columns", "prize"], 2, "no tick has 'prize'"),
        (["history", "ESZ6", "--start", "yesterday-ish"], 2, "--start = 'yesterday-ish' is not a time"),
        (["history", "ESZ6", "--start", "now", "--end", "-1d"], 2, "--start now is not before --end -1d"),
        (["bars", "ESZ6", "--interval", "7x"], 2, "'7x' is not an interval"),
        (["bars", "ESZ6", "--chart", "--json"], 2, "not JSON"),
        (["tail", "--from-seq", "1", "--from-time", "now"], 2, "both given"),
        (["latest", "--tape", "/"], 2, "is a directory"),
        (["latest", "--tape", "none.db"], 2, "no tape at"),
        (["latest", "--tape", "text.db"], 2, "text.db"),
        (["lates"], 2, r"No such command 'lates'.*onetape --help"),
        (["latest", "--yaml"], 2, r"No such option.*onetape latest --help"),
        (["history"], 2, "Missing argument"),
        (["history", "ESZ6", "--limit", "many"], 2, "Invalid value for '--limit'"),
    ],
)
def test_an_error_is_one_line_with_a_hint_and_an_exit_code(
    tape: onetape.Tape, capsys: pytest.CaptureFixture[str], args: list[str], code: int, told: str
) -> None:
    import re

    Path("text.db").write_text("this is no tape " * 100)
    assert main(args) == code
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith("onetape: error: ")
    assert out.err.count("\n") == 1
    assert re.search(told, out.err)
    assert re.search(r"\(.+\)\n$|such as", out.err), "no hint"


def test_a_traceback_only_with_debug(tape: onetape.Tape) -> None:
    plain = _run("latest", "ESZ7")
    assert (plain.returncode, plain.stdout) == (2, "")
    assert "Traceback" not in plain.stderr
    for args in (["--debug", "latest", "ESZ7"], ["latest", "ESZ7", "--debug"]):
        assert "Traceback" in _run(*args).stderr


def test_looking_at_a_tape_never_makes_one(tmp_path: Path) -> None:
    assert _run("latest", "--tape", str(tmp_path / "typo.db")).returncode == 2
    assert not (tmp_path / "typo.db").exists()


def test_version_help_and_no_arguments() -> None:
    assert _run("--version").stdout == f"onetape {onetape.__version__}\n"
    helped = _run("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "converged, but with listed skips" in helped.stdout
    assert "migrate" in _run().stdout + _run().stderr


def test_a_terminal_without_the_letters_is_no_error(tape: onetape.Tape) -> None:
    done = _run("latest", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u6771\u4eac" in done.stdout


def test_the_environment_names_the_tape(tape: onetape.Tape, tmp_path: Path) -> None:
    Path("elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "onetape", "symbols"],
        cwd="elsewhere",
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "ONETAPE_TAPE": str(tape.path)},
    )
    assert "ESZ6" in done.stdout


# Times


def test_times_may_be_relative() -> None:
    now = START_NS
    assert parse_time("now", "t", now) == now
    assert parse_time("today", "t", now) == onetape.to_ns("2025-03-14")
    assert parse_time("-15m", "t", now) == now - 900 * S
    assert parse_time("-2h30m", "t", now) == now - 9000 * S
    assert parse_time("-1.5d", "t", now) == now - 129_600 * S
    assert parse_time("+10s", "t", now) == now + 10 * S
    assert parse_time("1742000000000000000", "t", now) == 1742000000000000000
    assert parse_span("-1h", None, now) == (now - 3600 * S, None)
    for wrong in ("-15", "-15x", "15m", ""):
        with pytest.raises(onetape.ConfigInvalid):
            parse_time(wrong, "t", now)


# Candles


def _bars(*prices: tuple[float, float, float, float]) -> list[onetape.Bar]:
    return [onetape.Bar("X", "1min", START_NS + i * 60 * S, *price) for i, price in enumerate(prices)]


def test_a_candle_shows_body_and_wick_at_half_a_row() -> None:
    # 8 half rows from 8 down to 1: wick 8 and 7, body 6 to 3, wick 2 and 1
    lines = candle_chart(_bars((3, 8, 1, 6)), 30, 4).plain.splitlines()
    assert [line[0] for line in lines[1:5]] == ["│", "┃", "┃", "│"]
    lines = candle_chart(_bars((4, 8, 1, 7)), 30, 4).plain.splitlines()
    assert [line[0] for line in lines[1:5]] == ["╽", "┃", "╿", "│"]


def test_a_chart_fits_its_width_and_shows_the_newest_bars() -> None:
    many = _bars(*((100 + i, 101.5 + i, 99.25 + i, 101 + i) for i in range(500)))
    for width in (30, 60, 100):
        lines = candle_chart(many, width, 10, title="X").plain.splitlines()
        assert len(lines) == 13
        assert max(map(len, lines[1:])) <= width
        assert any("◂ 600.00" in line for line in lines)
        assert lines[-1].strip()


def test_rising_and_falling_differ_in_colour_and_without_it() -> None:
    bars = _bars((1, 9, 1, 9), (9, 9, 1, 1))
    coloured = candle_chart(bars, 40, 8)
    assert {str(span.style) for span in coloured.spans} >= {"green", "red"}
    plain = candle_chart(bars, 40, 8, colour=False)
    assert "┃ ║" in plain.plain
    assert all(not str(span.style) for span in plain.spans)
    ascii_chart = candle_chart(bars, 40, 8, ascii_only=True, colour=False).plain
    assert "O #" in ascii_chart
    assert ascii_chart.isascii()


def test_one_price_and_no_bars_can_be_drawn() -> None:
    assert "◂ 5" in candle_chart(_bars((5, 5, 5, 5)), 40, 5).plain
    assert "◂ 0" in candle_chart(_bars((0, 0, 0, 0)), 40, 5).plain
    assert "-37.63" in candle_chart(_bars((-10.0, -10.0, -40.32, -37.63)), 40, 5).plain
    assert candle_chart([], 40, 5).plain == "no bars"


def test_the_command_draws_and_falls_back_to_ascii(tape: onetape.Tape) -> None:
    drawn = _run("bars", "ESZ6", "--chart", "--width", "50", "--height", "6", PYTHONIOENCODING="utf-8")
    assert drawn.returncode == 0
    assert "◂ 6024.75" in drawn.stdout
    assert "\x1b" not in drawn.stdout
    fallen_back = _run("bars", "ESZ6", "--chart", "--width", "50", PYTHONIOENCODING="ascii")
    assert fallen_back.stdout.isascii()
    assert "> 6024.75" in fallen_back.stdout
