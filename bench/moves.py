"""Moves: one run of a way to move or check the keys, see mover.py, and what it gave."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bench import keys
from onetape.embedded import EmbeddedServer


class Run(msgspec.Struct):
    """What one run gave. `peak_mib`: the highest resident memory of its process."""

    seconds: float
    keys: int
    peak_mib: float

    @property
    def per_s(self) -> float:
        """Keys a second."""
        return self.keys / self.seconds


def run(way: str, server: EmbeddedServer, folder: Path, number: float = 0, other: EmbeddedServer | None = None) -> Run:
    """Do it to its end."""
    done = subprocess.run(_command(way, server, folder, number, other), stdout=subprocess.PIPE, text=True, check=True)
    return msgspec.json.decode(done.stdout, type=Run)


@contextmanager
def begun(way: str, server: EmbeddedServer, folder: Path, number: float = 0) -> Iterator[subprocess.Popen[str]]:
    """Have it done while the body runs; what is left then is not done."""
    with subprocess.Popen(_command(way, server, folder, number, None), stdout=subprocess.DEVNULL, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def live(server: EmbeddedServer, folder: Path) -> None:
    """Empty the target and begin a live migration, whose ledger is in the folder."""
    keys.empty_target(server.url)
    run("start", server, folder)


@contextmanager
def visitor(server: EmbeddedServer) -> Iterator[list[float]]:
    """Have the visitor ask while the body runs; the list given is filled with its latencies, ms, afterwards."""
    found: list[float] = []
    command = [sys.executable, "-m", "bench.visitor", str(server.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise RuntimeError("the visitor did not start")
        yield found
        found += json.loads(child.communicate("\n", timeout=60)[0])


def _command(way: str, server: EmbeddedServer, folder: Path, number: float, other: EmbeddedServer | None) -> list[str]:
    command = [sys.executable, "-m", "bench.mover", way, str(server.port), str(folder), "--number", str(number)]
    return command if other is None else [*command, "--other", str(other.port)]
