"""Sierra Chart's .scid files: imported to a sealed tape beside NumPy reading the same bytes, and followed."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np

import onetape
from bench import feed
from bench.measure import Line, Setting, alone, beside, percentile, rate, take_turns
from onetape.importing.formats import Options, import_file
from onetape.importing.scid_file import EPOCH_US, Header
from onetape.sources.scid import ScidTail

_HEADER = b"SCID" + np.array([56, 40, 1, 0], "<u4").tobytes() + bytes(36)
_RATE, _NOTICE_MS = 3_000_000, 50


def _records(count: int) -> np.ndarray:
    """Return trades of a busy future over four days, quotes beside them, some in the same millisecond."""
    random = np.random.default_rng(7)
    made = Header().records(bytes(40 * count)).copy()
    ms = np.sort(random.integers(0, 4 * 86_400_000, count))
    rows = np.arange(count)
    same = rows - np.maximum.accumulate(np.where(np.r_[True, np.diff(ms) > 0], rows, 0))
    bought = random.integers(0, 2, count)
    price, size = 6000 + 0.25 * np.cumsum(random.integers(-1, 2, count)), random.geometric(0.4, count)
    made["time"] = EPOCH_US + feed.START_NS // 1000 + ms * 1000 + same
    made["close"], made["low"], made["high"] = price, price - 0.25 * bought, price + 0.25 * (1 - bought)
    made["trades"], made["volume"] = 1, size
    made["bid_volume"], made["ask_volume"] = size * (1 - bought), size * bought
    return made


def measure(setting: Setting) -> list[Line]:
    """Return the lines of importing, in records a second, and of noticing a flush, in ms."""
    count = setting.scaled(3_000_000, 20_000)
    made = _records(count)
    file = setting.directory / "bench.scid"
    file.write_bytes(_HEADER + made.tobytes())

    def ours() -> float:
        with setting.scratch() as folder, onetape.open(folder / "tape.db") as tape:

            def act() -> None:
                import_file(tape, file, "scid", Options(symbol="ES", tick_size="0.25"))
                tape.seal()

            return rate(count, act)

    figures = take_turns(
        {"ours": ours, "bare": lambda: rate(count, lambda: np.fromfile(file, made.dtype, offset=56))}, setting.runs
    )
    line = beside(
        "import of a .scid, sealed", "records/s", figures["ours"], "np.fromfile of it (limit)", figures["bare"]
    )
    line.target, line.reached = f">= {_RATE:,}", line.ours >= _RATE
    notices = [_notices(setting) for _ in range(setting.runs)]
    return [
        line,
        alone("tail of a .scid: flush to delivery, p50", "ms", [percentile(found, 0.5) for found in notices]),
        alone(
            "tail of a .scid: flush to delivery, p99",
            "ms",
            [percentile(found, 0.99) for found in notices],
            below=_NOTICE_MS,
        ),
    ]


def _notices(setting: Setting) -> list[float]:
    """Return how long after each write of 20 records the tail gave them, ms."""
    flushes = setting.scaled(200, 10)
    made = _records(20 * flushes).tobytes()
    arrived: list[float] = []
    with setting.scratch() as folder:
        path = Path(folder) / "tail.scid"
        path.write_bytes(_HEADER)
        tail = ScidTail(path, "ES")
        ready = threading.Event()
        counted = threading.Semaphore(0)

        def follow() -> None:
            for delivery in tail:
                if delivery.count:
                    arrived.append(time.perf_counter())
                    counted.release()
                ready.set()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        ready.wait(10)
        written = []
        try:
            with path.open("ab", buffering=0) as file:
                for at in range(flushes):
                    time.sleep(0.013)
                    written.append(time.perf_counter())
                    file.write(made[at * 800 : (at + 1) * 800])
                    counted.acquire(timeout=10)
        finally:
            tail.close()
            thread.join(10)
    return [(there - then) * 1000 for there, then in zip(arrived, written, strict=True)]
