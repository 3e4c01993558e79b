"""onetape serve: one process that starts everything in order, says where it is, goes on through faults, and drains."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sierra_files import header, trade
from tests.waiting import waited_for

import onetape
from onetape import Tick

T0 = 1_763_740_800_000_000_000


class Served:
    """A running `onetape serve`, and what it has said."""

    def __init__(self, place: Path, *flags: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "onetape", "serve", "--log", "json", "--port", "0", *flags],
            cwd=place, stderr=subprocess.PIPE, text=True, env={**os.environ, "ONETAPE_RETENTION_DAYS": "none"},
        )  # fmt: skip
        self.said: list[dict[str, Any]] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with contextlib.suppress(ValueError):
                self.said.append(json.loads(line))

    @property
    def url(self) -> str:
        """Return where the page is, once it says so."""
        found: list[str] = []

        def told() -> bool:
            assert self.process.poll() is None, self.said
            messages = [line["message"] for line in self.said if line["message"].startswith("the page is at ")]
            found.extend(message.removeprefix("the page is at ") for message in messages[-1:])
            return bool(found)

        waited_for(told)
        return found[-1]

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(*flags: str) -> Served:
        made.append(Served(tmp_path, *flags))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()


def config(place: Path, text: str) -> None:
    (place / "onetape.toml").write_text(text)


SCID = """
[services.state]
[[source]]
kind = "scid"
name = "es"
path = "ESZ6.scid"
symbol = "ESZ6"
"""


def records(first: int, count: int) -> list[bytes]:
    return [
        trade(T0 // 1000 + i * 1000, 6000 + i % 40 / 4, bid=5999.75, ask=6000.25) for i in range(first, first + count)
    ]


def stored(place: Path) -> int:
    with (
        contextlib.suppress(onetape.TapeMissing, onetape.TapeUnusable),
        onetape.open(place / "market_data.db", mode="r") as tape,
    ):
        return tape.stats().ticks
    return 0


def test_a_file_is_tailed_onto_the_tape_and_shown_and_the_end_is_clean(tmp_path: Path, serve: Any) -> None:
    config(tmp_path, SCID)
    file = tmp_path / "ESZ6.scid"
    file.write_bytes(header() + b"".join(records(0, 100)))
    served = serve()
    assert served.get("/healthz")[0] == 200
    waited_for(lambda: stored(tmp_path) == 100)
    with file.open("ab") as more:
        more.write(b"".join(records(100, 50)))
    waited_for(lambda: stored(tmp_path) == 150)
    (symbol,) = served.get("/api/v1/symbols")[1]["symbols"]
    assert symbol["symbol"] == "ESZ6"
    names = [task["name"] for task in served.get("/api/v1/status")[1]["tasks"]]
    assert names == ["source:es", "service:state", "web"]  # in the order of their start
    assert served.end() == 0


def test_killed_at_any_moment_it_goes_on_where_it_was(tmp_path: Path, serve: Any) -> None:
    config(tmp_path, SCID)
    file = tmp_path / "ESZ6.scid"
    file.write_bytes(header() + b"".join(records(0, 20_000)))
    for _ in range(3):
        served = serve()
        before = stored(tmp_path)
        waited_for(lambda served=served, before=before: stored(tmp_path) > before or stored(tmp_path) == 20_000)
        served.process.kill()
        served.process.wait()
    served = serve()
    assert served.get("/healthz")[0] == 200
    waited_for(lambda: stored(tmp_path) == 20_000)
    assert served.end() == 0
    with onetape.open(tmp_path / "market_data.db", mode="r") as tape:
        times = tape.read("ESZ6", columns=["ts_event_ns"])["ts_event_ns"].to_pylist()
    assert len(times) == len(set(times)) == 20_000


def test_the_tape_may_be_away_at_the_start_and_come_later(tmp_path: Path, serve: Any) -> None:
    config(tmp_path, 'tape = "later/market_data.db"\n' + SCID)
    (tmp_path / "ESZ6.scid").write_bytes(header() + b"".join(records(0, 10)))
    served = serve()
    waited_for(lambda: served.get("/readyz")[0] == 503)
    assert served.get("/healthz")[0] == 200
    (tmp_path / "later").mkdir()
    waited_for(lambda: stored(tmp_path / "later") == 10)
    waited_for(lambda: served.get("/readyz")[0] == 200)
    assert served.end(signal.SIGINT) == 0


def test_a_port_that_is_taken_is_said_and_everything_else_goes_on(tmp_path: Path, serve: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config(tmp_path, SCID)
        (tmp_path / "ESZ6.scid").write_bytes(header() + b"".join(records(0, 10)))
        served = serve("--port", str(taken.getsockname()[1]))
        waited_for(lambda: stored(tmp_path) == 10)
        waited_for(lambda: any("cannot be listened on" in line["message"] for line in served.said))
        assert served.end() == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[web]\nhost = '0.0.0.0'", "token"),
        ("[web]\nprot = 80", "web.prot: there is no such setting"),
        ("colour = 'red'", "colour: there is no such setting"),
        ("[services.weather]", r"\[services.weather\]: there is no such service"),
        ("[services.state]\ncolour = 1", r"\[services.state\]: .*colour"),
        ("[[source]]\nkind = 'fax'", r"\[\[source\]\] number 1: kind = 'fax'"),
        ("[[source]]\nkind = 'scid'\npath = 'a'\nsymbol = 'A'\ncolour = 1", r"number 1 \(scid\): .*colour"),
        (SCID + SCID.replace("[services.state]", ""), "number 2: a source named 'es' stands before it"),
        ("tape = [", "onetape.toml"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it_and_nothing_is_started(tmp_path: Path, text: str, told: str) -> None:
    config(tmp_path, text)
    for flags in ((), ("--check",)):
        done = subprocess.run(
            [sys.executable, "-m", "onetape", "serve", *flags],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1 and re.search(told, done.stderr), done.stderr


def test_a_system_that_is_ended_stores_what_its_sources_had_read(tmp_path: Path, serve: Any) -> None:
    config(tmp_path, SCID)
    (tmp_path / "ESZ6.scid").write_bytes(header() + b"".join(records(0, 50_000)))
    served = serve()
    waited_for(lambda: stored(tmp_path) > 0)
    assert served.end() == 0
    told = served.said
    with onetape.open(tmp_path / "market_data.db", mode="r") as tape:
        times = tape.read("ESZ6", columns=["ts_event_ns"])["ts_event_ns"].to_pylist()
    assert times == [T0 + i * 1_000_000 for i in range(len(times))], told


HANGING = """
import asyncio, sys, time
from onetape.cli import serve
from onetape.config import Settings
from onetape.daemon import log
from onetape.daemon.daemon import Daemon

class Hanging:
    name = "hanging"
    async def start(self): pass
    async def stop(self): await asyncio.to_thread(time.sleep, 3600)
    def status(self): return {"running": True}

log.set_up("json")
daemon = Daemon(Settings(tape=sys.argv[1], services={}, drain_s=float(sys.argv[2]), web={"enabled": False}))
if sys.argv[3] == "service":
    daemon.services["hanging"] = Hanging()
else:
    daemon.tape.close = lambda: time.sleep(3600)
run = daemon.run
daemon.run = lambda: run(on_ready=lambda daemon: print("ready", flush=True))
serve._run(daemon)
"""


@pytest.mark.parametrize(("drain_s", "signals"), [(1, 1), (3600, 2)])
@pytest.mark.parametrize("what", ["service", "tape"])
def test_what_hangs_keeps_the_process_no_longer_than_it_may(
    tmp_path: Path, what: str, drain_s: int, signals: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, str(tmp_path / "t.db"), str(drain_s), what],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        if signals == 2:
            assert process.stderr is not None
            assert any("draining" in line for line in iter(process.stderr.readline, ""))
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
    finally:
        process.kill()
        process.communicate()


def test_what_other_processes_append_is_served_too(tmp_path: Path, serve: Any) -> None:
    config(tmp_path, "[services.state]")
    served = serve()
    _ = served.url
    with onetape.open(tmp_path / "market_data.db") as tape:
        tape.append(Tick("NQZ6", T0, 21000.0, 1.0))
    waited_for(lambda: [row["symbol"] for row in served.get("/api/v1/symbols")[1]["symbols"]] == ["NQZ6"])
    assert served.end() == 0
