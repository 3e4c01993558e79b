"""onetape top: what a trader sees of a tape that others write to."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import onetape
from onetape import Tick


def run(place: Path, *args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onetape", "top", *args], cwd=place, capture_output=True, text=True, timeout=timeout
    )


def test_one_look_shows_each_symbol_with_its_change_and_rate(tmp_path: Path) -> None:
    stop = threading.Event()
    with onetape.open(tmp_path / "market_data.db") as tape:
        now = onetape.now_ns()
        tape.append(
            [Tick("ESZ6", now - 2, 6000.0, 1.0), Tick("NQZ6", now - 1, 21000.0, 1.0, bid=20999.75, ask=21000.0)]
        )

        def write() -> None:
            while not stop.wait(0.005):
                now = onetape.now_ns()
                tape.append(Tick("ESZ6", now - 2_000_000, 6006.0, 1.0, ts_recv_ns=now))

        writer = threading.Thread(target=write)
        writer.start()
        done = run(tmp_path, "--once", "--json")
        table = run(tmp_path, "--once")
        stop.set()
        writer.join()
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    es, nq = told["symbols"]
    assert (es["symbol"], es["price"], es["change"]) == ("ESZ6", 6006.0, 6.0)
    assert es["rate"] > 1 and es["lag_ms"] == 2.0 and nq["rate"] == 0 and nq["bid"] == 20999.75
    head, *rows = table.stdout.splitlines()
    assert head.split() == ["symbol", "last", "change", "%", "bid", "ask", "ticks/s", "lag", "age"]
    assert [row.split()[0] for row in rows] == ["ESZ6", "NQZ6"]


def test_symbols_can_be_chosen_ordered_and_bounded(tmp_path: Path) -> None:
    with onetape.open(tmp_path / "market_data.db") as tape:
        now = onetape.now_ns()
        tape.append([Tick(name, now - at * 10**9, 1.0) for at, name in enumerate(("C", "A", "B"))])
    found = [
        json.loads(run(tmp_path, "--once", "--json", *more).stdout) for more in ((), ("A", "B"), ("--sort", "age"))
    ]
    assert [[row["symbol"] for row in one["symbols"]] for one in found] == [
        ["A", "B", "C"],
        ["A", "B"],
        ["C", "A", "B"],
    ]
    assert len(run(tmp_path, "--once", "--rows", "1").stdout.splitlines()) == 2


def test_wrong_input_is_one_line(tmp_path: Path) -> None:
    for args, told in ((("--sort", "colour"), "--sort colour"), ((), "no tape at")):
        done = run(tmp_path, "--once", *args)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1 and told in done.stderr


def test_a_server_that_does_not_answer_is_said_below_the_symbols(tmp_path: Path) -> None:
    with onetape.open(tmp_path / "market_data.db") as tape:
        tape.append(Tick("A", onetape.now_ns(), 1.0))
    done = run(tmp_path, "--once", "--url", "http://127.0.0.1:1")
    assert done.returncode == 0 and "http://127.0.0.1:1" in done.stdout.splitlines()[-1]
