"""Reading: a connection that speaks HTTP, and how long it may take to say what it wants.

Who opens connections and says nothing, or a byte a minute, would keep them for ever; a process has only so many files,
and the tape needs some of them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: From when a request may begin to its end, headers and body, s: the largest has 64 KiB.
REQUEST_S = 15.0


class Reading(HttpToolsProtocol):
    """uvicorn's own, with a time limit on each request, the first as well as later ones."""

    request_s = REQUEST_S
    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._limit = self.loop.call_later(self.request_s, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._done()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A request begins: it has so long from now."""
        super().on_message_begin()
        if self._limit is None:
            self._limit = self.loop.call_later(self.request_s, self._too_late)

    def on_message_complete(self) -> None:
        """All of the request is there."""
        self._done()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """It is a WebSocket's from now on."""
        self._done()
        super().handle_websocket_upgrade()

    def _done(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _too_late(self) -> None:
        self._limit = None
        if not self.transport.is_closing():
            self.transport.abort() if self.transport.get_write_buffer_size() else self.transport.close()


__all__ = ["REQUEST_S", "Reading"]
