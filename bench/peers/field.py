"""The field: ours and the peers of one run, each started once, with the day's files that all of them are given."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from bench import day
from bench.measure import Setting

ROOT = Path(__file__).resolve().parents[2]
#: Name, module. Ours runs in this process's Python, the peers in their own virtual environment's.
PEERS = {
    "DuckDB": "bench.peers.duckdb",
    "ArcticDB": "bench.peers.arcticdb",
    "chDB": "bench.peers.chdb",
    "Parquet": "bench.peers.parquet",
}
OURS = "bench.peers.onetape"


class PeerFailed(RuntimeError):
    """A peer's process said that it could not do what it was asked, or ended."""


class Worker:
    """One process that answers, line by line."""

    def __init__(self, python: str, module: str, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self._name = module.rpartition(".")[2]
        folder.mkdir(parents=True, exist_ok=True)
        self._told = open(folder / "stderr", "w+", errors="replace")  # noqa: SIM115  (as long as the process)
        self._process = subprocess.Popen(
            [python, "-m", module, str(folder)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._told,
            text=True,
            bufsize=1,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self.close()
            raise PeerFailed(f"{self._name} did not start: {self._last_told()}")

    def ask(self, do: str, **arguments: Any) -> Any:
        """Return what the process answers. Raises PeerFailed."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            answer = json.loads(process.stdout.readline() or '{"error": "it ended"}')
        except (BrokenPipeError, ValueError):
            answer = {"error": "it ended"}
        if "error" in answer:
            raise PeerFailed(f"{self._name}, asked to {do}: {answer['error']}")
        return answer["ok"]

    def _last_told(self) -> str:
        self._told.seek(0)
        return (self._told.read().strip().splitlines() or ["it said nothing"])[-1]

    def close(self) -> None:
        """End the process: gently, then not."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(20)
        except (subprocess.TimeoutExpired, OSError):
            self._process.kill()
            self._process.wait()


class Field:
    """All of them. Everything is made when it is first asked for, and stays for the other topics of the run."""

    def __init__(self, setting: Setting) -> None:
        self._folder = setting.directory / "field"
        self._folder.mkdir(exist_ok=True)
        self._total = setting.scaled(10_000_000, 60_000)
        self._peers: dict[str, Worker] = {}
        self.missing: dict[str, str] = {}
        self._filled: dict[str, str] = {}
        self._ours_made: set[str] = set()
        #: How long the day's compaction took, once tape("compact") is there.
        self.compact_s = 0.0

    @property
    def total(self) -> int:
        """Return how many ticks the day has."""
        return self._total

    @cached_property
    def paths(self) -> dict[str, str]:
        """Return the day's files by order: "symbol" and "time"."""
        return {order: str(path) for order, path in day.write(self._folder, self._total).items()}

    @cached_property
    def fine_path(self) -> str:
        """Return the file of a tenth of the day, as dense, with times that use every nanosecond."""
        made = day.write(self._folder, self._total // 10, span_ns=day.DAY_NS // 10, grain_ns=1, name="fine")
        return str(made["symbol"])

    @cached_property
    def ours(self) -> Worker:
        """Return the process of ours."""
        return Worker(sys.executable, OURS, self._folder / "ours")

    @cached_property
    def python(self) -> str | None:
        """Return the Python of the peers' virtual environment, or None."""
        named = os.environ.get("ONETAPE_BENCH_PEERS")
        found = Path(named) if named else ROOT / ".venv-peers" / "bin" / "python"
        return str(found) if found.is_file() else None

    def peer(self, name: str) -> Worker | None:
        """Return a peer's process, or None where it cannot be had; `missing` says why."""
        if name not in self._peers and name not in self.missing:
            if self.python is None:
                self.missing[name] = "no virtual environment of the peers: make bench makes it"
            else:
                try:
                    self._peers[name] = Worker(self.python, PEERS[name], self._folder / name.lower())
                except (PeerFailed, OSError) as error:
                    self.missing[name] = str(error)
            if name in self.missing:
                print(f"without {name}: {self.missing[name]}", file=sys.stderr, flush=True)
        return self._peers.get(name)

    def named(self, *names: str) -> dict[str, Worker]:
        """Return those of the peers that can be had."""
        return {name: found for name in names if (found := self.peer(name)) is not None}

    def fill(self, name: str, order: str = "symbol", **how: Any) -> float:
        """Let a peer take the day, timed; it is settled afterwards, outside of the time."""
        found = self.peer(name)
        assert found is not None
        seconds = float(found.ask("fill", path=self.paths[order], order=order, **how))
        self._filled[name] = str(how)
        return seconds

    def settle(self, name: str) -> float:
        """Return what a peer's day takes on the disk, in its final form."""
        found = self.peer(name)
        assert found is not None
        return float(found.ask("settle"))

    def ready(self, name: str, **how: Any) -> Worker:
        """Return a peer's process with the day in it, in its final form."""
        found = self.peer(name)
        assert found is not None
        if self._filled.get(name) != str(how):
            self.fill(name, **how)
            self.settle(name)
        return found

    def tape(self, name: str) -> bool:
        """See to it that ours has a tape: "bulk", "fed" or "compact". Return False where it cannot be had yet."""
        if name not in self._ours_made:
            if name == "bulk":
                self.ours.ask("fill", path=self.paths["symbol"], order="symbol")
                self.ours.ask("settle")
            elif name == "fed":
                self.ours.ask("fed", path=self.paths["time"])
                self.ours.ask("settle", name="fed")
            elif not self.tape("fed") or (seconds := self.ours.ask("compact")) is None:
                return False
            else:
                self.compact_s = float(seconds)
            self._ours_made.add(name)
        return True

    def close(self) -> None:
        """End every process."""
        for one in [*self._peers.values(), *([self.__dict__.pop("ours")] if "ours" in self.__dict__ else [])]:
            one.close()
        self._peers.clear()


_fields: dict[Path, Field] = {}


def field(setting: Setting) -> Field:
    """Return the field of this run."""
    if setting.directory not in _fields:
        _fields[setting.directory] = made = Field(setting)
        atexit.register(made.close)
    return _fields[setting.directory]


def close(setting: Setting) -> None:
    """End the field of this run, if it has one."""
    if (found := _fields.pop(setting.directory, None)) is not None:
        found.close()
