"""Dialing: a TCP connection that is given up at its deadline, or as soon as nobody wants it any more."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable

#: How often it is asked whether it is still wanted, s.
ASK_S = 0.1


class Unwanted(ConnectionError):
    """It was given up: whoever wanted the connection closes."""


def always() -> bool:
    """Say that it is wanted."""
    return True


def dial(host: str, port: int, within_s: float, wanted: Callable[[], bool] = always) -> socket.socket:
    """Return a connected socket that blocks, from the first of the host's addresses that answers.

    Raises OSError: TimeoutError after `within_s` all in all, Unwanted where `wanted()` says no.
    """
    deadline = time.monotonic() + within_s
    failed: OSError | None = None
    for family, kind, protocol, _name, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        made = socket.socket(family, kind, protocol)
        try:
            made.setblocking(False)
            code = made.connect_ex(address)
            if code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
                code = _finished(made, deadline, wanted)
            if code:
                raise OSError(code, f"{os.strerror(code)}: {host}:{port}")
            made.setblocking(True)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        except OSError as error:
            made.close()
            if isinstance(error, Unwanted | TimeoutError):
                raise
            failed = error
    raise failed or OSError(f"{host}:{port}: no address")


def _finished(made: socket.socket, deadline: float, wanted: Callable[[], bool]) -> int:
    poll = select.poll()
    poll.register(made, select.POLLOUT)
    while not poll.poll(ASK_S * 1000):
        if not wanted():
            raise Unwanted("given up: it is not wanted any more")
        if time.monotonic() > deadline:
            raise TimeoutError("no connection in time")
    return made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
