"""Off the loop: what would block an event loop, done in a thread. asyncio is large: it is loaded when first used."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(act: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Return what `act` returns, called in a thread while the event loop goes on."""
    import asyncio

    return await asyncio.to_thread(act, *args, **named)
