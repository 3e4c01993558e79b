"""A process of a story: started with its orders, ended with a signal, and gone when the story is."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

import onetape
from onetape.errors import MigrationError

_STOP_TIMEOUT_S = 30.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Process:
    """A module of this package run with orders as JSON. Start it in the thread that lives as long as it should."""

    def __init__(self, module: str, orders: msgspec.Struct) -> None:
        source = Path(onetape.__file__).parent.parent  # an installed package, or a source tree that is not
        path = os.pathsep.join(filter(None, (str(source), os.environ.get("PYTHONPATH"))))
        self._name = module.rpartition(".")[2]
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, msgspec.json.encode(orders).decode()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    def check(self) -> None:
        """Raise MigrationError, with the last it said, if it has ended."""
        if self._process.poll() is not None:
            self._raise(self._process.communicate()[1])

    def stop(self) -> bytes:
        """Let it finish what it is at, end it, and return what it tells. Raises MigrationError."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            told, wrong = self._process.communicate(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise MigrationError(f"{self._name} did not stop", hint="run the demo again") from None
        if self._process.returncode != 0:
            self._raise(wrong)
        return told

    def kill(self) -> None:
        """End it at once. May be called twice."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _raise(self, wrong: bytes) -> None:
        why = wrong.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no reason given"]
        raise MigrationError(f"{self._name} ended with {self._process.returncode}: {why[0]}")


def until_told(parent: int) -> Callable[[], bool]:
    """Bind this process to the life of its parent; return what says whether it is to go on (until SIGTERM)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the demo: it stops us when it is ready
    if ctypes.CDLL(None, use_errno=True).prctl(_DIE_WITH_PARENT, signal.SIGKILL) != 0:
        raise MigrationError("prctl(PR_SET_PDEATHSIG) failed")
    stopping: list[int] = [] if os.getppid() == parent else [0]  # it died before the kernel knew
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    return lambda: not stopping


__all__ = ["Process", "until_told"]
