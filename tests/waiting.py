"""Waiting: until something is true, however slow the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 60.0
"""How long anything may take that must happen: far longer than it does, for it is only waited out where it fails."""


def waited_for(true: Callable[[], object], what: str = "it", seconds: float = SECONDS) -> None:
    """Return once `true()` is; fail, naming `what`, if it is not within `seconds`."""
    deadline_s = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline_s, f"{what} did not come true within {seconds:g} s"
        time.sleep(0.005)
