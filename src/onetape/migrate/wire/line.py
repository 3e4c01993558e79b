"""The line: requests on their way on one connection, whose answers come in order and are fetched when needed."""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from onetape.migrate.wire.endpoint import Endpoint


class Ticket(msgspec.Struct):
    """A request that was sent: how many answers it gets, and the answers, once they were fetched."""

    replies: int
    got: list[Any] | None = None


class Line:
    """One endpoint with requests on their way. Before the endpoint is used directly, settle() must be called."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._out: deque[Ticket] = deque()

    def send(self, packed: bytes, replies: int) -> Ticket:
        """Send packed commands. Raises EndpointError."""
        self.endpoint.send(packed)
        ticket = Ticket(replies)
        self._out.append(ticket)
        return ticket

    def take(self, ticket: Ticket) -> list[Any]:
        """Return the answers to a request, waiting for them."""
        while ticket.got is None:
            oldest = self._out.popleft()
            oldest.got = self.endpoint.receive(oldest.replies)
        return ticket.got

    def settle(self) -> None:
        """Fetch all answers that are on their way, so that the endpoint can be used."""
        while self._out:
            oldest = self._out.popleft()
            oldest.got = self.endpoint.receive(oldest.replies)


__all__ = ["Line", "Ticket"]
