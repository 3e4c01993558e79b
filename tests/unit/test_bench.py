"""The benchmark's own parts: the day everybody is given, the lines it prints, and peers that are missing or fail."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from bench import day
from bench.history import _same
from bench.measure import Setting, against
from bench.peers.field import OURS, Field, PeerFailed, Worker


def test_both_files_of_the_day_hold_the_same_ticks_in_their_order(tmp_path: Path) -> None:
    paths = day.write(tmp_path, 5000)

    by_symbol, by_time = day.load(paths["symbol"]), day.load(paths["time"])

    assert by_symbol.num_rows == by_time.num_rows == 5000
    times = by_time["ts_event_ns"].to_numpy()
    assert (np.diff(times) >= 0).all() and times[0] >= day.START_NS and times[-1] < day.START_NS + day.DAY_NS
    rows = list(map(tuple, map(dict.values, by_time.to_pylist())))
    assert sorted(rows, key=lambda row: row[:2]) == [tuple(row.values()) for row in by_symbol.to_pylist()]


def test_the_day_is_the_same_every_time_and_has_its_shares(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()

    first, again = day.write(tmp_path, 2000)["time"], day.write(tmp_path / "again", 2000)["time"]

    assert first.read_bytes() == again.read_bytes()
    counts = day.counts(10_000_000)
    assert sum(counts) == 10_000_000
    assert 1_200_000 < counts[0] < 1_300_000 and 120_000 < counts[25] < 135_000


def test_the_fastest_peer_has_the_target_on_its_line() -> None:
    peers = {"slow": [10.0, 11.0], "fast": [4.0, 5.0]}

    lines = against("a read", "ms", [2.0, 2.0], peers, ratio_at_least=2, more_is_better=False)

    assert [(line.peer, line.target, line.reached) for line in lines] == [("fast", ">= 2 x", True), ("slow", "", None)]
    assert lines[0].ratio == pytest.approx(2.25)


def test_without_a_peer_there_is_nothing_to_reach() -> None:
    (line,) = against("a read", "ms", [2.0], {}, ratio_at_least=2)

    assert (line.peer, line.target, line.reached, line.ratio) == ("", "", None, None)


def test_a_fast_wrong_answer_is_no_answer() -> None:
    answers = {"ours": {"rows": 3, "sum": 1.5}, "theirs": {"rows": 3, "sum": 1.25}}

    _same(answers, ("rows",))
    with pytest.raises(PeerFailed, match=r"differ in rows, sum.*theirs"):
        _same(answers, ("rows", "sum"))


def test_a_missing_peer_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONETAPE_BENCH_PEERS", str(tmp_path / "no python here"))

    found = Field(Setting(tmp_path, 1, True)).named("DuckDB", "chDB")

    assert found == {}
    assert "without DuckDB: no virtual environment of the peers" in capsys.readouterr().err


def test_a_peer_whose_library_is_missing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONETAPE_BENCH_PEERS", sys.executable)  # a Python without ArcticDB
    entered = Field(Setting(tmp_path, 1, True))

    assert entered.peer("ArcticDB") is None
    assert "arcticdb" in entered.missing["ArcticDB"]


def test_an_asked_process_that_fails_or_ends_is_named(tmp_path: Path) -> None:
    ours = Worker(sys.executable, OURS, tmp_path / "ours")
    try:
        with pytest.raises(PeerFailed, match="onetape, asked to settle: KeyError"):
            ours.ask("settle", name="nowhere")
        assert ours.ask("version") == "onetape"
    finally:
        ours.close()
    with pytest.raises(PeerFailed, match="onetape, asked to version"):
        ours.ask("version")
