"""The demo with a page: what it plays is what was recorded, and it ends without a trace."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.conftest import ROOT

import onetape
from onetape import Tick
from onetape.demo.web.exchange import SYMBOL
from onetape.demo.web.film import COMING_NS, PAST_MIN_NS, cut, films

NOW_NS = 1_800_000_000 * 10**9
_S = 10**9


def _recording(count: int, every_ns: int) -> list[Tick]:
    return [Tick("X", 10**18 + at * every_ns, float(at + 1), 1.0) for at in range(count)]


def test_a_film_keeps_every_tick_and_every_interval_of_a_long_recording() -> None:
    ticks = _recording(5_000, 2 * _S)
    film = cut("X", "somewhere", ticks, NOW_NS)
    assert film.past[-1].ts_event_ns < NOW_NS <= film.coming[0].ts_event_ns
    both = film.past + film.coming
    assert {after.ts_event_ns - one.ts_event_ns for one, after in pairwise(both)} == {2 * _S}
    assert [tick.price for tick in both] == [tick.price for tick in ticks[: len(both)]]
    assert len(film.coming) == COMING_NS // (2 * _S)


def test_a_short_recording_is_repeated_into_the_past_and_the_future() -> None:
    ticks = _recording(400, _S)
    film = cut("X", "somewhere", ticks, NOW_NS)
    assert film.turns > 2
    both = film.past + film.coming
    assert both == sorted(both, key=lambda tick: tick.ts_event_ns)
    assert both[0].ts_event_ns <= NOW_NS - PAST_MIN_NS + _S
    assert both[-1].ts_event_ns >= NOW_NS + COMING_NS - 2 * _S
    prices = [tick.price for tick in both]
    turned = prices.index(400.0)
    assert prices[turned + 1 : turned + 401] == [float(at + 1) for at in range(400)]


def test_without_recordings_all_is_simulated_and_says_so() -> None:
    made = films(None, NOW_NS, 1)
    assert made
    assert all(one.origin is None and one.past and one.coming for one in made)


@pytest.mark.usefixtures("sample_data")
def test_recorded_instruments_are_not_mixed_with_simulated_ones(sample_data: Path) -> None:
    made = films(sample_data, NOW_NS, 1)
    assert len(made) >= 5
    assert all(one.origin for one in made)
    for one in made:
        assert max(tick.ts_event_ns for tick in one.past) < NOW_NS <= min(tick.ts_event_ns for tick in one.coming)


@contextmanager
def _shown(*arguments: str, samples: Path, cwd: Path) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run the demo; yield it and what it printed up to where it says how it ends."""
    command = [sys.executable, "-m", "onetape", "demo", "--web", *arguments]
    environment = {**os.environ, "ONETAPE_SAMPLE_DATA": str(samples), "TMPDIR": str(cwd), "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while not (lines and "Ctrl-C ends it" in lines[-1]):
            line = process.stdout.readline()
            assert line, "".join(lines)
            lines.append(line)
        yield process, lines
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _ask(address: str, what: str) -> Any:
    answer = httpx2.get(f"{address}{what}", timeout=60)
    answer.raise_for_status()
    return answer.json()


def _until(ask: Any, enough: Any) -> Any:
    deadline = time.monotonic() + 90
    while not enough(found := ask()):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def test_the_demo_shows_a_living_system_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with _shown("--port", str(port), samples=tmp_path / "none", cwd=tmp_path) as (process, lines):
            told = "".join(lines)
            assert "SIMULATED" in told
            assert f"Port {port} is taken" in told
            address = next(line.split()[1] for line in lines if line.strip().startswith("Open"))
            assert "<html" in httpx2.get(address, timeout=60).text
            first = _ask(address, "/api/v1/status")["sources"]
            assert {one["kind"] for one in first.values()} == {"replay", "dtc"}
            stored = {name: one["stored"] for name, one in first.items()}
            _until(
                lambda: _ask(address, "/api/v1/status")["sources"],
                lambda now: all(now[name]["stored"] > before for name, before in stored.items()),
            )
            book = _ask(address, f"/api/v1/depth?symbol={SYMBOL}")
            assert len(book["bids"]) >= 5
            assert len(book["asks"]) >= 5
            assert book["bids"][0][0] < book["asks"][0][0]
            bars = _ask(address, f"/api/v1/candles?symbol={SYMBOL}&limit=500")["bars"]
            assert len(bars) > 60, "its past comes from the history port"
            assert len(_ask(address, "/api/v1/state")["positions"]) >= 2
            assert list(tmp_path.glob("onetape-demo-*"))
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=90)
            assert process.returncode == 0, rest
            assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == [], "its data is removed"


def test_what_is_kept_is_a_tape_that_the_next_run_replaces(tmp_path: Path) -> None:
    (tmp_path / "onetape.toml").write_text('tape = "mine.db"\n[web]\nport = 1\n')  # not the demo's business
    for _run in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "onetape", "demo", "--web", "--keep", "kept", "--port", "0", "--for", "2", "--json"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "ONETAPE_SAMPLE_DATA": str(tmp_path / "none")},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        measured = json.loads(done.stdout)
        assert measured["clean"]
        assert not measured["real"]
    with onetape.open(tmp_path / "kept" / "market_data.db", mode="r") as tape:
        names = {info.symbol for info in tape.symbols()}
        assert {*measured["instruments"], SYMBOL} <= names
        told = [gap for gap in tape.gaps(measured["instruments"][0]) if "demo" in gap.by]
        assert [gap.state for gap in told] == ["missing"]
    assert not (tmp_path / "mine.db").exists()
