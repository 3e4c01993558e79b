"""The connection: one TCP connection of a client to a DTC server, from the agreed encoding to the farewell.

It blocks, never longer than its time-outs, and belongs to one thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from onetape.sources.dialing import ASK_S, Unwanted, always, dial
from onetape.sources.dtc.encoding import Codec, Message, codec_of
from onetape.sources.dtc.layout import Malformed
from onetape.sources.dtc.messages import (
    BINARY,
    ENCODING_REQUEST,
    ENCODING_RESPONSE,
    HEARTBEAT,
    JSON,
    LOGOFF,
    LOGON_ERROR_NO_RECONNECT,
    LOGON_RECONNECT_NEW_ADDRESS,
    LOGON_REQUEST,
    LOGON_RESPONSE,
    LOGON_SUCCESS,
    VERSION,
)

#: What is read at once, bytes.
READ_BYTES = 1 << 16

#: What is sent must be taken within this, s.
SEND_S = 5.0


class Away(ConnectionError):
    """The server cannot be used for now; why, in words."""


class Unwelcome(Exception):
    """The server says not to come back."""


class Moved(Away):
    """The server says where else to go."""

    def __init__(self, address: str) -> None:
        super().__init__(f"the server says to connect to {address}")
        self.address = address


class Connection:
    """A socket, its codec, and the two heartbeats.

    `heartbeat_s` is how often each side says something; a server that is silent for twice as long counts as lost.
    `wanted`: connecting and logging on end with Unwanted as soon as it says no.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        connect_s: float = 10.0,
        heartbeat_s: int = 10,
        wanted: Callable[[], bool] = always,
    ) -> None:
        self._socket = dial(host, port, connect_s, wanted)
        self._connect_s = connect_s
        self._wanted = wanted
        self._ended: Exception | None = None
        self._heartbeat_s = heartbeat_s
        self._codec: Codec = codec_of(BINARY)
        self._heard = self._said = time.monotonic()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def unknown(self) -> int:
        """How many messages were left out, being of a type that is not known here."""
        return self._codec.unknown

    def agree(self, encoding: int) -> int:
        """Ask for an encoding and return the one the server chose, which is used from here on.

        The answer is taken in the binary encoding or, as some servers send it, in JSON.
        """
        self.send(ENCODING_REQUEST, {"ProtocolVersion": VERSION, "Encoding": encoding})
        deadline = time.monotonic() + self._connect_s
        raw = b""
        while not raw:
            raw = self._read(self._left(deadline))
        if raw[:1] == b"{":
            self._codec = codec_of(JSON)
        fields = self._one(raw) or self._await(ENCODING_RESPONSE, deadline)
        if fields[0] != ENCODING_RESPONSE:
            raise Malformed(f"a message of type {fields[0]} where the encoding was asked for")
        behind = self._codec.rest()
        self._codec = codec_of(fields[1]["Encoding"])
        self._codec.keep(behind)
        return self._codec.encoding

    def log_on(self, *, user: str = "", password: str = "", client: str = "onetape") -> dict[str, Any]:
        """Log on and return what the server says of itself. Raises Away, Moved or Unwelcome."""
        self.send(
            LOGON_REQUEST,
            {
                "ProtocolVersion": VERSION,
                "Username": user,
                "Password": password,
                "HeartbeatIntervalInSeconds": self._heartbeat_s,
                "ClientName": client,
            },
        )
        _, fields = self._await(LOGON_RESPONSE, time.monotonic() + self._connect_s)
        result, text = fields["Result"], fields["ResultText"] or "no reason given"
        if result == LOGON_RECONNECT_NEW_ADDRESS:
            raise Moved(fields["ReconnectAddress"])
        if result == LOGON_ERROR_NO_RECONNECT:
            raise Unwelcome(f"the server refused the log-on: {text}")
        if result != LOGON_SUCCESS:
            raise Away(f"the server refused the log-on: {text}")
        return fields

    def send(self, number: int, fields: dict[str, Any]) -> None:
        """Send one message. Raises OSError."""
        self._socket.settimeout(SEND_S)
        self._socket.sendall(self._codec.encode(number, fields))
        self._said = time.monotonic()

    def receive(self, wait_s: float) -> list[Message]:
        """Return what came within `wait_s`, as soon as something did; heartbeats are answered and included.

        Raises Away when the server is silent for too long or said farewell, EOFError when it hung up, Unwelcome when
        it says not to come back, Malformed for nonsense: each behind the messages that came before it.
        """
        if self._ended is not None:
            raise self._ended
        messages: list[Message] = []
        try:
            self._gather(b"", messages)
            if not messages:
                self._gather(self._read(wait_s), messages)
            self.keep_alive()
        except (OSError, EOFError, Malformed, Unwelcome) as error:
            if not messages:
                raise
            self._ended = error
        return messages

    def _gather(self, data: bytes, messages: list[Message]) -> None:
        for number, fields in self._codec.feed(data):
            if number == LOGOFF:
                text = f"the server logged off: {fields['Reason'] or 'no reason given'}"
                raise Unwelcome(text) if fields["DoNotReconnect"] else Away(text)
            messages.append((number, fields))

    def receive_raw(self, wait_s: float) -> bytes:
        """Return bytes as they come, those that were read too far first: of a stream that is compressed."""
        return self._codec.rest() or self._read(wait_s)

    def keep_alive(self) -> None:
        """Say something if it is time to, and raise Away if the server did not for too long."""
        now = time.monotonic()
        if now - self._heard > 2 * self._heartbeat_s:
            raise Away(f"the server was silent for {2 * self._heartbeat_s} s, twice the agreed interval")
        if now - self._said >= self._heartbeat_s:
            self.send(HEARTBEAT, {"CurrentDateTime": int(time.time())})

    def log_off(self, reason: str) -> None:
        """Say farewell, if the server still listens."""
        with contextlib.suppress(OSError):
            self.send(LOGOFF, {"Reason": reason})

    def close(self) -> None:
        """Hang up. May be called twice."""
        self._socket.close()

    def next(self, wait_s: float) -> Message | None:
        """Return one message, None if none came within `wait_s`. What is behind it may be of another form."""
        return self._one(b"") or self._one(self._read(wait_s))

    @property
    def silent_s(self) -> float:
        """For how long nothing came."""
        return time.monotonic() - self._heard

    def _one(self, data: bytes) -> Message | None:
        feed = self._codec.feed(data)
        try:
            return next(feed, None)
        finally:
            feed.close()

    def _await(self, number: int, deadline: float) -> Message:
        """The next message of this number. Raises Away at the deadline, and for a farewell."""
        while True:
            message = self.next(self._left(deadline))
            if message is None:
                continue
            if message[0] == LOGOFF:
                raise Away(f"the server logged off: {message[1]['Reason'] or 'no reason given'}")
            if message[0] == number:
                return message

    def _left(self, deadline: float) -> float:
        left = deadline - time.monotonic()
        if not self._wanted():
            raise Unwanted("given up: it is not wanted any more")
        if left <= 0:
            raise Away(f"the server did not answer within {self._connect_s:g} s")
        return min(left, ASK_S)

    def _read(self, wait_s: float) -> bytes:
        self._socket.settimeout(max(wait_s, 0.001))
        try:
            data = self._socket.recv(READ_BYTES)
        except TimeoutError:
            return b""
        if not data:
            raise EOFError("the server hung up")
        self._heard = time.monotonic()
        return data
