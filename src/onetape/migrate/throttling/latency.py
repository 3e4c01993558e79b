"""The latency: how long a server takes to answer somebody who is not us, measured all the time by a small program."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from onetape.errors import EndpointError
from onetape.migrate.wire.endpoint import Endpoint, is_lost

#: A round trip every two milliseconds: five hundred a second, so that half a second tells a p99.
INTERVAL_S = 0.002
#: How far back `p99_ms` looks.
WINDOW_S = 0.5
#: Fewer round trips than this tell no p99.
SAMPLES_MIN = 60

_TRY_AGAIN_S = 1.0


class Latency:
    """The round trips of the last half second. Close it, or its program goes on until this process ends."""

    def __init__(self, connect: Callable[[], Endpoint], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._connect = connect
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._recent: deque[tuple[float, float]] = deque()
        self._next_try_s = 0.0
        self._part = b""
        self._thread: _Thread | None = None

    def poll(self) -> list[float]:
        """Take in what was measured since the last call, in ms; the program is started where it does not run."""
        now_s = self._clock()
        if self._process is None and self._thread is None:
            if now_s >= self._next_try_s:
                self._next_try_s = now_s + _TRY_AGAIN_S
                self._start()
            return []
        found = self._told() if self._thread is None else self._thread.taken()
        if found is None:
            self.close()
            return []
        self._recent.extend((now_s, ms) for ms in found)
        while self._recent and now_s - self._recent[0][0] > WINDOW_S:
            self._recent.popleft()
        return found

    def p99_ms(self) -> float | None:
        """Return what 99 in 100 of the last round trips were under, None where too few are known.

        Of half a second, two or three of them decide: it is taken to be what it is at least, by one standard error,
        so that a single spike, of which every machine has some, is not taken for a p99.
        """
        number = len(self._recent)
        if number < SAMPLES_MIN:
            return None
        return sorted(ms for _, ms in self._recent)[int(number * 0.99 - math.sqrt(number * 0.01))]

    def forget(self) -> None:
        """Begin the window anew: what was measured belongs to another rate."""
        self._recent.clear()

    def close(self) -> None:
        """End the program. May be called twice; poll() starts it again."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.close()
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def _start(self) -> None:
        try:
            endpoint = self._connect()
        except EndpointError as error:
            if not is_lost(error):
                raise
            return
        if endpoint.is_tls:  # what a descriptor means is known in this process alone
            self._thread = _Thread(endpoint)
            return
        with endpoint:
            descriptor = endpoint.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("probe.py")), str(descriptor),
                 str(INTERVAL_S)],
                pass_fds=(descriptor,), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._part = b""

    def _told(self) -> list[float] | None:
        """Return what the program measured since, None if it ended."""
        raw = self._read()
        if raw is None:
            return None
        raw = self._part + raw
        whole = len(raw) // 4 * 4
        self._part = raw[whole:]
        return [int.from_bytes(raw[at : at + 4], "little") / 1000 for at in range(0, whole, 4)]

    def _read(self) -> bytes | None:
        assert self._process is not None and self._process.stdout is not None
        try:
            raw = os.read(self._process.stdout.fileno(), 65536)
        except BlockingIOError:
            return b""
        return raw or None


class _Thread:
    """The same in this process, for TLS: what it tells includes waiting for Python's lock, so it is more."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._found: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="onetape-latency", daemon=True)
        self._thread.start()

    def taken(self) -> list[float] | None:
        """Return what was measured since, None if the server is gone."""
        found, self._found = self._found, []
        return found if found or self._thread.is_alive() else None

    def close(self) -> None:
        """End it."""
        self._done.set()
        self._thread.join(self._endpoint.timeout_s)
        self._endpoint.close()

    def _run(self) -> None:
        while not self._done.wait(INTERVAL_S):
            sent_s = time.perf_counter()
            try:
                self._endpoint.call("PING")
            except EndpointError:
                return
            self._found.append((time.perf_counter() - sent_s) * 1000)


def p99(values: list[float]) -> float:
    """Return what 99 in 100 of the values are under or at."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
