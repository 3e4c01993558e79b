"""The pace of a replay: which time of the past is played now, and when a time to come is due, without drift."""

from __future__ import annotations

import math

from onetape.errors import ConfigInvalid


def checked_speed(speed: float) -> float:
    """Return a speed: a factor above 0, or 0 for as fast as possible. Raises ConfigInvalid."""
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not 0 <= speed <= 1e9:
        raise ConfigInvalid(f"speed = {speed!r}", hint="a factor above 0, or 0 for as fast as possible")
    return float(speed)


class Pace:
    """A line through (now, position): every due time is reckoned from its anchor, so that waits never add up."""

    def __init__(self, speed: float) -> None:
        self.speed = checked_speed(speed)
        self.paused = False
        self._anchor: tuple[int, int] | None = None

    @property
    def anchored(self) -> bool:
        """Whether it runs from a known place."""
        return self._anchor is not None

    def anchor(self, now_ns: int, position_ns: int) -> None:
        """Let `position_ns` be what is played at `now_ns`."""
        self._anchor = now_ns, position_ns

    def lift(self) -> None:
        """Forget the place: the next record begins anew."""
        self._anchor = None

    def position_ns(self, now_ns: int) -> int | None:
        """Return the time that is played now; None before the first."""
        if self._anchor is None:
            return None
        at_ns, position_ns = self._anchor
        return position_ns if self.paused or not self.speed else position_ns + int((now_ns - at_ns) * self.speed)

    def wait_s(self, now_ns: int, due_ns: int) -> float:
        """Return how long until `due_ns` is due: 0 for now, infinite while paused."""
        if self.paused:
            return math.inf
        if not self.speed or self._anchor is None:
            return 0.0
        at_ns, position_ns = self._anchor
        return max(0, at_ns + int((due_ns - position_ns) / self.speed) - now_ns) / 1e9
