"""The commands coverage, gaps and heal, as a person and as a program meet them."""

import json

import pytest

import onetape
from onetape import Tick
from onetape.cli import main
from onetape.cli.coverage_days import days
from onetape.store.partition import Span

S = 10**9
HOUR, DAY = 3600 * S, 86400 * S
MIDNIGHT = onetape.to_ns("2026-03-02")
T = MIDNIGHT + 14 * HOUR


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONETAPE_RETENTION_DAYS", "none")
    with onetape.open("market_data.db", retention_days=None) as tape:
        for start, end in ((0, 600), (1800, 3600)):
            tape.append([Tick("ES", T + n * S, price=1.0) for n in range(start, end)])
            tape.cover("ES", T + start * S, T + end * S, source="feed")
    with onetape.open("other.db", retention_days=None) as tape:
        tape.append([Tick("ES", T + n * S, price=1.0) for n in range(3600)])
    return tmp_path


def test_a_day_is_one_line_and_a_column_shows_the_worst_of_its_time():
    spans = [
        Span("ES", MIDNIGHT + 6 * HOUR, MIDNIGHT + 9 * HOUR, "covered"),
        Span("ES", MIDNIGHT + 9 * HOUR, MIDNIGHT + 9 * HOUR + 5, "missing"),
        Span("ES", MIDNIGHT + 9 * HOUR + 5, MIDNIGHT + 18 * HOUR, "quiet"),
        Span("ES", MIDNIGHT + 18 * HOUR, MIDNIGHT + DAY + 6 * HOUR, "closed"),
        Span("ES", MIDNIGHT + DAY + 6 * HOUR, MIDNIGHT + 9 * DAY + HOUR, "unknown"),
    ]
    assert list(days(spans, 24, ascii_only=True)) == [
        "           00  04  08  12  16  20",
        "2026-03-02       ###x........------",
        "2026-03-03 ------??????????????????",
        "           (7 days of which nothing is known)",
        "2026-03-11 ?",
    ]


def test_coverage_draws_lists_and_tells_programs(place, capsys):
    assert main(["coverage", "ES", "--width", "48"]) == 0
    text = capsys.readouterr().out
    assert "2026-03-02" in text and "missing   33.3%" in text
    assert main(["coverage", "ES", "--spans"]) == 0
    assert "20 min 00 s  missing" in capsys.readouterr().out
    assert main(["coverage", "ES", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["state"], row["by"]) for row in rows] == [
        ("covered", ["feed"]),
        ("missing", []),
        ("covered", ["feed"]),
    ]
    assert rows[1]["start_ns"] == T + 600 * S and rows[1]["start"] == "2026-03-02T14:10:00.000Z"
    assert main(["coverage", "NONE"]) == 0
    assert "nothing is known of NONE" in capsys.readouterr().err


def test_gaps_are_listed_and_told_by_the_exit_code_where_that_is_asked_for(place, capsys):
    assert main(["gaps", "--check"]) == 1
    assert "20 min 00 s  missing" in capsys.readouterr().out
    assert main(["gaps", "--min", "1201", "--check"]) == 0
    assert capsys.readouterr() == ("", "no gaps\n")
    assert main(["gaps", "ES", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["end"] == "2026-03-02T14:30:00.000Z"
    assert main(["gaps", "--session", "America/New_York 10:00-16:00", "--check"]) == 0, "closed is no gap"
    assert main(["gaps", "--session", "NOWHERE"]) == 2


def test_heal_is_a_dry_run_until_told_and_then_done_once(place, capsys):
    before = onetape.open("market_data.db", mode="r").stats().head
    assert main(["heal", "--from-tape", "other.db"]) == 0
    told = capsys.readouterr()
    assert "would be asked 1 time," in told.out and "--execute" in told.err
    with onetape.open("market_data.db", mode="r") as tape:
        assert tape.stats().head == before
    assert main(["heal", "--from-tape", "other.db", "--execute", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["stored"], done["failures"]) == (1200, [])
    assert main(["heal", "--from-tape", "other.db", "--execute"]) == 0
    assert "nothing to heal" in capsys.readouterr().err
    with onetape.open("market_data.db", mode="r") as tape:
        assert tape.read("ES").num_rows == 3600 and tape.gaps() == []


def test_heal_from_csv_reads_columns_as_it_is_told(place, capsys):
    rows = "".join(f"{(T // S) + n};7.5\n" for n in range(0, 3600, 2))
    (place / "late.csv").write_text("when;last\n" + rows)
    options = ["--from-csv", "late.csv", "--symbol", "ES", "--map", "ts_event_ns=when,price=last"]
    assert main(["heal", *options, "--execute"]) == 0
    assert "600 ticks stored" in capsys.readouterr().out
    assert main(["heal", "--from-csv", "late.csv", "--map", "ts_event_ns=when,price=none"]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["heal"],
        ["heal", "--from-tape", "other.db", "--from-csv", "x.csv"],
        ["heal", "--from-tape", "none.db"],
        ["heal", "--from-csv", "none.csv"],
        ["heal", "--from-tape", "market_data.db", "--execute"],
        ["gaps", "--start", "2026-03-03", "--end", "2026-03-02"],
        ["coverage", "--session", "Mars/Base 09:00-10:00", "ES"],
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(place, capsys, arguments):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("onetape: error: ") and error.count("\n") == 1
