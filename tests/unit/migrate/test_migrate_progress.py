"""Rate and time left, with a clock that the test winds."""

from __future__ import annotations

import pytest

from onetape.progress import ProgressMeter


class _Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_rate_and_time_left_follow_the_last_seconds() -> None:
    clock = _Clock()
    meter = ProgressMeter("copy", window_s=10, clock=clock)
    for second in range(1, 31):
        clock.now_s = 100 + second
        told = meter.update(second * 100 if second <= 15 else 1500 + (second - 15) * 10, 2000)
    assert told.step == "copy" and told.done == 1650
    assert told.rate_per_s == pytest.approx(10)  # slow now, however fast it was before
    assert told.left_s == pytest.approx(35)
    assert told.elapsed_s == pytest.approx(30)
    assert told.fraction == pytest.approx(0.825)


def test_without_a_total_there_is_no_time_left() -> None:
    clock = _Clock()
    meter = ProgressMeter(clock=clock)
    clock.now_s += 2
    told = meter.update(10)
    assert told.rate_per_s == 5 and told.left_s is None and told.fraction is None


def test_before_anything_is_done_nothing_is_promised() -> None:
    clock = _Clock()
    meter = ProgressMeter(clock=clock)
    assert meter.update(0, 100).left_s is None
    clock.now_s += 5
    assert meter.update(0, 100).left_s is None
    assert meter.update(0, 100).rate_per_s == 0


def test_done_means_no_time_left_even_past_the_total() -> None:
    clock = _Clock()
    meter = ProgressMeter(clock=clock)
    clock.now_s += 1
    told = meter.update(120, 100)
    assert told.left_s == 0.0 and told.fraction == 1.0
