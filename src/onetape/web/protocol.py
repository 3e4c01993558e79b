"""The protocol: a WebSocket connection that takes messages made ready once for many, and never waits for a slow one.

uvicorn's own class does the handshake and reads. A server's frames are not masked, so the bytes of a message are the
same for all clients: they are made once and written to each connection's transport.
"""

from __future__ import annotations

import logging
import socket
import struct
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

#: uvicorn tells of each connection with its query, which may hold the token. The guard's log tells without.
_quiet = logging.getLogger("onetape.web.socket")
_quiet.setLevel(logging.WARNING)

#: What the kernel keeps for a client that does not read, bytes; beyond it the client counts as behind.
_KERNEL_BYTES = 131_072
#: After a message that is refused, what still comes is read and thrown away for so long, s: a connection that is
#: closed with data unread is reset, and the reason would be lost with it.
_LINGER_S = 5.0
#: And no longer than until nothing came for so long, s.
_QUIET_S = 0.25


def framed(message: bytes) -> bytes:
    """Return a text message as a server's WebSocket frame (RFC 6455, 5.2): whole, not masked, not compressed."""
    size = len(message)
    if size < 126:
        return struct.pack("!BB", 0x81, size) + message
    if size < 65_536:
        return struct.pack("!BBH", 0x81, 126, size) + message
    return struct.pack("!BBQ", 0x81, 127, size) + message


class Protocol(WebSocketsSansIOProtocol):
    """One connection. Its scope has itself under extensions, "onetape"."""

    _draining = False
    _drained = 0

    def connection_made(self, transport: Any) -> None:
        """Bound what the kernel keeps for the other side."""
        self.logger = self.conn.logger = _quiet
        self.conn.debug = False
        super().connection_made(transport)
        plain = transport.get_extra_info("socket")
        if plain is not None and plain.family in (socket.AF_INET, socket.AF_INET6):
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES)

    def handle_connect(self, event: Any) -> None:
        """Hand the application this connection."""
        super().handle_connect(event)
        scope: Any = getattr(self, "scope", None)
        if scope is not None:  # its task runs later than this
            scope["extensions"]["onetape"] = self

    @property
    def waiting_bytes(self) -> int:
        """How much was written and not taken by the kernel."""
        return 0 if self.transport.is_closing() else int(self.transport.get_write_buffer_size())

    def write_framed(self, frame: bytes) -> None:
        """Write what framed() made, between messages."""
        if self.handshake_complete and not self.close_sent and not self.transport.is_closing():
            self.transport.write(frame)

    def abort(self) -> None:
        """Cut the connection, and forget what was not taken."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read, or throw away what comes behind a refused message."""
        if self._draining:
            self._drained += 1
        else:
            super().data_received(data)

    def handle_parser_exception(self) -> None:
        """Say why a message was refused, and let the other side hear it."""
        sent = self.conn.close_sent
        if sent is None:
            super().handle_parser_exception()
            return
        self._draining = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": sent.code, "reason": sent.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self._linger(-1, self.loop.time() + _LINGER_S)

    def _linger(self, drained: int, until: float) -> None:
        if self._drained == drained or self.loop.time() >= until:
            self.transport.close()
        else:
            self.close_timer = self.loop.call_later(_QUIET_S, self._linger, self._drained, until)
