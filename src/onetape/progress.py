"""Progress: rate and time left of long work, from samples of how much is done.

Pure: the clock is passed in.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import msgspec


class Progress(msgspec.Struct, frozen=True):
    """Where long work is: `done` of `total` items, `rate_per_s` over the last seconds, and the time left.

    `total` 0 means that it is not known; then, and before the first rate, `left_s` is None. `reason`: what holds it
    back at the moment, None for nothing.
    """

    step: str
    done: int
    total: int
    elapsed_s: float
    rate_per_s: float
    left_s: float | None
    reason: str | None = None

    @property
    def fraction(self) -> float | None:
        """Return done / total, at most 1.0, or None when the total is not known."""
        return min(1.0, self.done / self.total) if self.total else None


class ProgressMeter:
    """Turns (done, total) samples into a Progress. The rate is that of the last `window_s` seconds.

    A rate over the whole time would hide that a server became slow; one over a moment would jump.
    """

    def __init__(self, step: str = "", *, window_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.step = step
        self._window_s = window_s
        self._clock = clock
        self._start_s = clock()
        self._samples: deque[tuple[float, int]] = deque([(self._start_s, 0)], maxlen=4096)

    def update(self, done: int, total: int = 0) -> Progress:
        """Take a sample and return where the work is."""
        now_s = self._clock()
        samples = self._samples
        samples.append((now_s, done))
        while len(samples) > 2 and now_s - samples[0][0] > self._window_s:
            samples.popleft()
        span_s, grown = now_s - samples[0][0], done - samples[0][1]
        rate = grown / span_s if span_s > 0 and grown > 0 else 0.0
        left_s = max(0, total - done) / rate if total and rate else None
        if total and done >= total:
            left_s = 0.0
        return Progress(self.step, done, total, now_s - self._start_s, rate, left_s)
