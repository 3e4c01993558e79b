"""The fault point: where a fault test may end this process, as if it had been killed."""

from __future__ import annotations

import os
from collections.abc import Callable


def fault_point() -> Callable[[str], None]:
    """Return what `Options.at` is by default: nothing, or, for fault tests, a kill at
    ONETAPE_KILL_AT=point[:n].
    """
    wanted = os.environ.get("ONETAPE_KILL_AT", "")
    if not wanted:
        return lambda point: None
    name, _, number = wanted.partition(":")
    left = [int(number or 1)]

    def at(point: str) -> None:
        if point == name:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), 9)

    return at
