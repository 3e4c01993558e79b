"""Servers of other kinds for tests: a cluster, a service behind a sentinel, a proxy that cuts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from onetape import embedded
from onetape.embedded import EmbeddedServer, free_port, server_binaries
from onetape.migrate.remote import Cluster
from onetape.migrate.wire.endpoint import Endpoint

BINARIES = server_binaries()


def binary(name: str) -> Path:
    """Return a server program by its name, or skip the test."""
    if name not in BINARIES:
        pytest.skip(f"no {name} server on this machine")
    return BINARIES[name]


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Wait until a condition holds; fail the test where it does not in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(Exception):
            if condition():
                return
        time.sleep(0.03)
    pytest.fail(f"not in {seconds:g} s: {what}")


def ask(server: EmbeddedServer, *args: str | int | bytes) -> object:
    """Return what a server answers to one command."""
    with Endpoint.connect(server.url) as endpoint:
        return endpoint.call(*args)


@contextmanager
def cluster_of(masters: int, replicas: int = 0, *, name: str = "redis") -> Iterator[tuple[str, list[EmbeddedServer]]]:
    """A cluster: its URL, and its nodes, the masters first; the replicas are the first masters'."""
    with ExitStack() as stack:
        nodes = [stack.enter_context(_node(binary(name))) for _ in range(masters + replicas)]
        for at, node in enumerate(nodes[:masters]):
            first, last = at * 16384 // masters, (at + 1) * 16384 // masters - 1
            ask(node, "CLUSTER", "ADDSLOTSRANGE", first, last)
            ask(node, "CLUSTER", "SET-CONFIG-EPOCH", at + 1)
        for node in nodes[1:]:
            ask(nodes[0], "CLUSTER", "MEET", "127.0.0.1", node.port, node.options["cluster-port"])
        known = b"cluster_known_nodes:%d" % len(nodes)
        for node in nodes:
            wait_for(lambda node=node: known in ask(node, "CLUSTER", "INFO"), "all nodes know each other")
        for at, node in enumerate(nodes[masters:]):
            ask(node, "CLUSTER", "REPLICATE", ask(nodes[at], "CLUSTER", "MYID"))
        for node in nodes:
            wait_for(lambda node=node: b"cluster_state:ok" in ask(node, "CLUSTER", "INFO"), "the cluster is whole")
        for node in nodes[masters:]:
            wait_for(lambda node=node: b"master_link_status:up" in ask(node, "INFO"), "the replica follows")
        url = "cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes[:2])
        wait_for(lambda: len(Cluster.connect(url).masters()) == masters, "all slots have an owner")
        yield url, nodes


def _node(program: Path) -> EmbeddedServer:
    options = {
        "cluster-enabled": "yes",
        "cluster-node-timeout": "1000",
        "cluster-port": str(free_port()),
        "cluster-announce-ip": "127.0.0.1",
        "repl-diskless-sync-delay": "0",
    }
    return EmbeddedServer(program, options)


class Sentinel(EmbeddedServer):
    """One sentinel of Debian's server, which alone decides."""

    def __init__(self, master: EmbeddedServer, service: str) -> None:
        super().__init__(binary("redis"))
        self._lines = [
            f"sentinel monitor {service} 127.0.0.1 {master.port} 1",
            f"sentinel down-after-milliseconds {service} 400",
            f"sentinel failover-timeout {service} 2000",
        ]
        self._service = service

    def _launch(self) -> None:
        conf = self.directory / "sentinel.conf"
        conf.write_text("\n".join([f"port {self.port}", "bind 127.0.0.1", f"dir {self.directory}", *self._lines]))
        with open(self.directory / "server.log", "ab") as log:
            launch = [sys.executable, "-I", "-S", "-c", embedded._LAUNCH, str(os.getpid())]
            self._process = subprocess.Popen(
                [*launch, str(self.binary), str(conf), "--sentinel"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def service_url(self) -> str:
        return f"sentinel://127.0.0.1:{self.port}/{self._service}"


@contextmanager
def service() -> Iterator[tuple[Sentinel, EmbeddedServer, EmbeddedServer]]:
    """A master, its replica and a sentinel that knows both."""
    with ExitStack() as stack:
        master = stack.enter_context(EmbeddedServer(binary("redis"), {"repl-diskless-sync-delay": "0"}))
        follow = {"replicaof": f"127.0.0.1 {master.port}"}
        replica = stack.enter_context(_Replica(binary("redis"), follow))
        sentinel = stack.enter_context(Sentinel(master, "prices"))
        wait_for(lambda: b"master_link_status:up" in ask(replica, "INFO"), "the replica follows")
        # Until the sentinel has asked the replica itself, it would not promote it.
        wait_for(lambda: _fit(sentinel), "the sentinel knows the replica and its link")
        yield sentinel, master, replica


class _Replica(EmbeddedServer):
    def start(self) -> EmbeddedServer:
        place = self.options.pop("replicaof").split()
        super().start()
        ask(self, "REPLICAOF", *place)
        return self


def _fit(sentinel: Sentinel) -> bool:
    """Return whether the sentinel knows one replica, and knows that it follows."""
    (told,) = ask(sentinel, "SENTINEL", "REPLICAS", sentinel.service_url().rpartition("/")[2])
    facts = dict(zip(told[::2], told[1::2], strict=True))
    return facts[b"master-link-status"] == b"ok" and facts[b"flags"] == b"slave"


def promoted(sentinel: Sentinel, replica: EmbeddedServer) -> bool:
    """Return whether a failover is over: the sentinel names the replica, and the replica is a master.

    Between the two it still names the old master, which takes writes and then loses them by becoming a replica.
    """
    named = ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", sentinel.service_url().rpartition("/")[2])
    return int(named[1]) == replica.port and ask(replica, "ROLE")[0] == b"master"


class Proxy:
    """Passes connections on to a port; cut() ends those that there are, `cut_after` ends one after so many bytes."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cut_after: int | None = None
        self.cuts = 0
        self._passed = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            with self._lock:
                self._open |= {client, server}
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                with self._lock:
                    self._passed += len(data)
                    cut = self.cut_after is not None and self._passed >= self.cut_after
                    if cut:
                        self._passed, self.cuts = 0, self.cuts + 1
                if cut:  # in the middle of what was being said
                    other.sendall(data[: len(data) // 2])
                    break
                other.sendall(data)
        for sock in (one, other):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listener.close()
        with self._lock:
            for sock in self._open:
                with suppress(OSError):
                    sock.close()
