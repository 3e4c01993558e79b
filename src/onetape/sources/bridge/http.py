"""HTTP to a bridge: answers bounded in bytes and time, and one kind of error for whatever keeps it from answering."""

from __future__ import annotations

import http.client
import io
import socket
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from onetape.sources.dialing import ASK_S, Unwanted, always, dial

Body = bytes  # (a method has that name)


class BridgeAway(ConnectionError):
    """The bridge did not answer as it should; why. `status` is its HTTP status where it gave one."""

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status


class BridgeHttp:
    """A client of one bridge. An answer is at most `bytes_max` long and takes at most `answer_s`, all in all.

    `wanted`: what waits ends as soon as it says no.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        bytes_max: int = 16 << 20,
        answer_s: float = 30.0,
        wanted: Callable[[], bool] = always,
    ) -> None:
        self._host, self._port, self._wanted = host, port, wanted
        self._bytes_max, self._answer_s = bytes_max, answer_s
        self._shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._kept: socket.socket | None = None

    def __enter__(self) -> BridgeHttp:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End it. May be called twice."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def bytes(self, path: str, query: Mapping[str, Any] | None = None) -> bytes:
        """Return the body of a 200. Raises BridgeAway."""
        deadline = time.monotonic() + self._answer_s
        target = f"{path}?{urlencode(query)}" if query else path
        was_kept = self._kept is not None
        try:
            try:
                return self._asked(path, target, deadline)
            except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
                if not was_kept:
                    raise
            return self._asked(path, target, deadline)  # it had closed the connection that was kept
        except BridgeAway:
            raise
        except TimeoutError as error:
            raise BridgeAway(f"{path}: no whole answer within {self._answer_s:g} s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BridgeAway(f"{path}: {str(error) or type(error).__name__}") from error

    def json(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """Return the body, decoded. Raises BridgeAway."""
        body = self.bytes(path, query)
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise BridgeAway(f"{path}: no JSON: {body[:40]!r}") from error

    def _asked(self, path: str, target: str, deadline: float) -> Body:
        wire, self._kept = self._kept, None
        if wire is None:
            wire = dial(self._host, self._port, max(0.0, deadline - time.monotonic()), self._wanted)
        try:
            wire.settimeout(ASK_S * 10)
            head = f"GET {target} HTTP/1.1\r\nHost: {self._shown}\r\nAccept-Encoding: identity\r\n\r\n"
            wire.sendall(head.encode("ascii"))
            makes: Any = _Makes(wire, deadline, self._wanted)
            response = http.client.HTTPResponse(makes, method="GET")
            response.begin()
            if response.status != 200:
                raise BridgeAway(f"{path}: the bridge answered {response.status}", response.status)
            body = response.read(self._bytes_max + 1)
            if len(body) > self._bytes_max:
                raise BridgeAway(f"{path}: an answer of more than {self._bytes_max} bytes")
            if response.length:
                raise BridgeAway(f"{path}: the answer was cut off {response.length} bytes before its end")
            if response.isclosed() and not response.will_close:
                self._kept, wire = wire, None
            return body
        finally:
            if wire is not None:
                wire.close()


class _Makes:
    """What HTTPResponse takes for a socket: it asks for a file of it."""

    def __init__(self, wire: socket.socket, deadline: float, wanted: Callable[[], bool]) -> None:
        self._reading = _Reading(wire, deadline, wanted)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._reading, 1 << 16)


class _Reading(io.RawIOBase):
    """Bytes of a socket up to a deadline, however slowly they come."""

    def __init__(self, wire: socket.socket, deadline: float, wanted: Callable[[], bool]) -> None:
        self._wire, self._deadline, self._wanted = wire, deadline, wanted

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if not self._wanted():
                raise Unwanted("given up: it is not wanted any more")
            self._wire.settimeout(min(left, ASK_S))
            try:
                return self._wire.recv_into(buffer)
            except TimeoutError:
                continue


def quoted(symbol: str) -> str:
    """Return a symbol as one part of a path."""
    return quote(symbol, safe="")
