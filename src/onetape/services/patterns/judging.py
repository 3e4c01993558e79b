"""Judging: what a tape's bars show from one bar on, against the detections that the tape holds already.

It keeps nothing: bars and detections are read from the tape, what is new is appended by identity, what stands no more
is taken back. So it may be done twice, by two processes, or again after a kill, and the tape says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from onetape.record import TS_MAX_NS, Tick, interval_ns
from onetape.services.patterns import bars as arrays
from onetape.services.patterns.bars import BarArrays
from onetape.services.patterns.detection import PREFIX, Detection, is_one
from onetape.services.patterns.detectors import LOOKBACK
from onetape.services.patterns.learned import Kind, Outcome
from onetape.services.patterns.outcomes import HORIZON_BARS, judge
from onetape.services.patterns.registry import Detector, detect

#: Bars of a span are looked for in spans this many times as long, where the market was closed; then everywhere.
_LONGER = (2, 16, 128)
#: How often one detection may come and go with the revisions of its bar, and still be written again.
_AGAIN_MAX = 8


class Judged(NamedTuple):
    """What judging did: detections that are new, detections taken back, outcomes, and the start of the newest bar."""

    fresh: list[Detection]
    gone: list[Detection]
    outcomes: list[Outcome]
    newest_ns: int


def judge_bars(
    tape: Any,
    symbol: str,
    interval: str,
    first_ns: int,
    last_ns: int,
    which: Sequence[Detector],
    confidence: Callable[[Kind], float],
    now_ns: int,
) -> Judged:
    """Judge the bars of a symbol of which those from first_ns to last_ns (their starts) are new or changed.

    Detections on those bars, and on the LOOKBACK bars behind them which they touch, are made anew; outcomes of the
    HORIZON_BARS before them too. `tape` is a Tape. Raises what its append() and bars() do.
    """
    bars = _around(tape, symbol, interval, first_ns, last_ns)
    if not len(bars):
        return Judged([], [], [], first_ns)
    begin = int(np.searchsorted(bars.ts_ns, first_ns))
    changed_end = int(np.searchsorted(bars.ts_ns, last_ns, side="right"))
    end = min(len(bars), changed_end + LOOKBACK)
    seen = detect(bars.cut(max(0, begin - LOOKBACK), end), which, min(begin, LOOKBACK))
    offset = max(0, begin - LOOKBACK)
    made = [
        Detection(
            symbol,
            interval,
            int(bars.ts_ns[found.place + offset]),
            found.detector.number,
            found.detector.name,
            found.direction,
            found.price,
            found.atr,
            confidence((found.detector.number, interval, found.direction)),
            now_ns,
        )
        for found in seen
    ]
    from_ns = int(bars.ts_ns[max(0, begin - HORIZON_BARS)]) if begin < len(bars) else first_ns
    from_ns = min(from_ns, first_ns)
    until_ns = int(bars.ts_ns[end - 1]) if end else last_ns
    held = _held(tape, symbol, interval, from_ns, max(until_ns, last_ns) + 1)
    span = (first_ns, max(until_ns, last_ns))
    numbers = {detector.number for detector in which}
    now = {detection.key: detection for detection in made}
    gone: list[Detection] = []
    for key, detection in held.items():
        if span[0] <= key[0] <= span[1] and key[1] in numbers:
            fresh_one = now.get(key)
            if fresh_one is None or fresh_one.direction != detection.direction:
                gone.append(detection)
    for detection in gone:
        tape.cancel(_as_read(detection))
        del held[detection.key]
    missing = [detection for detection in made if detection.key not in held]
    fresh = _append(tape, symbol, interval, missing)
    standing = [*held.values(), *missing]
    outcomes = [Outcome(d.ts_ns, d.number, d.direction, None) for d in gone if d.key not in now]
    return Judged(fresh, gone, outcomes + _outcomes(bars, standing), int(bars.ts_ns[-1]))


def _append(tape: Any, symbol: str, interval: str, missing: list[Detection]) -> list[Detection]:
    """Append detections by identity, and return those that this did: another process may do the same meanwhile.

    One whose identity is known but which does not stand was taken back earlier, and stands again under the next one.
    """
    fresh: list[Detection] = []
    for again in range(_AGAIN_MAX):
        if not missing:
            break
        records = [detection.to_tick() for detection in missing]
        done = tape.append(records, ids=[detection.identity(again) for detection in missing])
        held = _held(tape, symbol, interval, missing[0].ts_ns, missing[-1].ts_ns + 1)
        if done.stored:
            ours = (held.get(detection.key) for detection in missing)
            fresh += [d for d in ours if d is not None and d.seq is not None and done.first <= d.seq <= done.last]
        missing = [detection for detection in missing if detection.key not in held]
    return fresh


def _outcomes(bars: BarArrays, detections: Sequence[Detection]) -> list[Outcome]:
    if not detections:
        return []
    times = np.array([detection.ts_ns for detection in detections], dtype=np.int64)
    index = np.minimum(np.searchsorted(bars.ts_ns, times), len(bars) - 1)
    on_bar = bars.ts_ns[index] == times
    results = judge(
        bars,
        index,
        np.array([detection.direction for detection in detections], dtype=np.int64),
        np.array([detection.price for detection in detections]),
        np.array([detection.atr for detection in detections]),
    )
    return [
        Outcome(detection.ts_ns, detection.number, detection.direction, bool(result) if result >= 0 else None)
        for detection, result, there in zip(detections, results.tolist(), on_bar.tolist(), strict=True)
        if there
    ]


def _around(tape: Any, symbol: str, interval: str, first_ns: int, last_ns: int) -> BarArrays:
    """Return the complete bars from LOOKBACK before first_ns to LOOKBACK + HORIZON_BARS behind last_ns, maybe more."""
    length = interval_ns(interval)
    latest = tape.latest(symbol)
    newest_ns = TS_MAX_NS if latest is None else latest.ts_event_ns
    before, behind = LOOKBACK * length, (LOOKBACK + HORIZON_BARS) * length
    for longer in (*_LONGER, None):
        start = 0 if longer is None else max(0, first_ns - longer * before)
        end = TS_MAX_NS if longer is None else min(TS_MAX_NS, last_ns + longer * behind)
        bars = arrays.from_table(tape.bars(symbol, interval, start, end))
        enough_before = start == 0 or int(np.searchsorted(bars.ts_ns, first_ns)) >= LOOKBACK
        after = len(bars) - int(np.searchsorted(bars.ts_ns, last_ns, side="right"))
        if enough_before and (end >= newest_ns or after >= LOOKBACK + HORIZON_BARS):
            break
    return bars


def _held(tape: Any, symbol: str, interval: str, start_ns: int, end_ns: int) -> dict[tuple[int, int], Detection]:
    """Return the detections of a span that stand on the tape; of two of one key the older."""
    found: dict[tuple[int, int], Detection] = {}
    for detection in read(tape, symbol, start_ns, end_ns):
        if detection.interval == interval:
            found.setdefault(detection.key, detection)
    return found


_COLUMNS = ["ts_event_ns", "bid", "bid_size", "ask_size", "side", "flags", "trades", "source", "ts_recv_ns", "seq"]


def read(tape: Any, symbol: str, start_ns: int | None = None, end_ns: int | None = None) -> list[Detection]:
    """Return a symbol's detections with start_ns <= ts_ns < end_ns that stand on the tape, ascending."""
    table = tape.read(PREFIX + symbol, start_ns, end_ns, columns=_COLUMNS)
    rows: Iterable[dict[str, Any]] = table.to_pylist()
    ticks = (Tick(PREFIX + symbol, **row) for row in rows)
    return [Detection.from_tick(tick) for tick in ticks if is_one(tick)]


def _as_read(detection: Detection) -> Tick:
    return Tick(PREFIX + detection.symbol, detection.ts_ns, bid=detection.price, seq=detection.seq)
