"""The step: what is to be sent on one connection, for the generators of an exchange, which know no socket."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, Protocol

from onetape.migrate.phases.state import State


class Send(NamedTuple):
    """What a lane is to send, and how many replies come: raw ones, then `decoded` as the client decodes, then raw."""

    packed: bytes
    before: int
    decoded: int = 0
    after: int = 0


class Wire(Protocol):
    """What the steps need of a connection."""

    armed: bool
    raw: bytes | None
    noted: bool
    state: State | None
    greeted: bool
    frozen: bool
    resp3: bool
    watching: bool
    decodes: bool

    def pack(self, *args: Any) -> bytes:
        """Return a command packed."""


Steps = Generator[Send | float, list[Any], Any]
