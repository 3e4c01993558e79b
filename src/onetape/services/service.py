"""The service: what the daemon starts, stops and asks how it is."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Service(Protocol):
    """A long-running user of the tape. Its own methods are plain and may be called from any thread."""

    name: str

    async def start(self) -> None:
        """Begin; returns when it is ready. Raises an OnetapeError where it cannot be."""

    async def stop(self) -> None:
        """End; returns when nothing of it runs any more. May be called twice."""

    def status(self) -> dict[str, Any]:
        """Return how it is, as plain data; `trouble` says what is wrong, where something is."""
