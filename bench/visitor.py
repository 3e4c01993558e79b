"""The visitor: another client of the server, with 1,000 GETs a second, that would feel a migration.

`python -m bench.visitor PORT` says "ready", and prints the latencies in ms as JSON when its input ends. It asks at
its steady pace whether or not the last answer is there, as many users of one server do, so that a slow moment of the
server is felt by every request that falls into it.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections import deque

import hiredis

from bench.child import bind_to_parent

_GAP_NS = 1_000_000
_KEY = "indicators:NFO:SYM000001:rsi"


def main(port: int) -> None:
    """Ask until the input ends."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(hiredis.pack_command(("SELECT", 5)))
        connection.recv(64)
        print("ready", flush=True)
        print(json.dumps(_ask(connection, hiredis.pack_command(("GET", _KEY)))))


def _ask(connection: socket.socket, request: bytes) -> list[float]:
    clock = time.perf_counter_ns
    reader = hiredis.Reader()
    asked: deque[int] = deque()
    found: list[float] = []
    due = clock()
    ending = False
    while not ending or asked:
        wait = max(0, due - clock()) if not ending else _GAP_NS
        ready, _, _ = select.select([connection] if ending else [connection, sys.stdin], [], [], wait / 1e9)
        if connection in ready:
            reader.feed(connection.recv(65536))
            now = clock()
            while reader.gets() is not False:
                found.append((now - asked.popleft()) / 1e6)
        ending = ending or sys.stdin in ready
        if not ending and clock() >= due:
            due += _GAP_NS
            asked.append(clock())
            connection.sendall(request)
    return found


if __name__ == "__main__":
    bind_to_parent()
    main(int(sys.argv[1]))
