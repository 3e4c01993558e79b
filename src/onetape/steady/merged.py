"""Merged reads: what is on the tape and what is held in memory, as one answer. Pure functions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from onetape import tape as tapes
from onetape.clock import Time, to_ns
from onetape.facts import SymbolInfo
from onetape.record import Bar, Tick

if TYPE_CHECKING:
    import pyarrow as pa


def latest(found: Iterable[Tick | None], held: Iterable[Tick]) -> dict[str, Tick]:
    """Return of each symbol the tick of the greatest event time; of equal ones the one that came last."""
    newest = {tick.symbol: tick for tick in found if tick is not None}
    for tick in held:
        known = newest.get(tick.symbol)
        if known is None or tick.ts_event_ns >= known.ts_event_ns:
            newest[tick.symbol] = tick
    return newest


def recent(found: Sequence[Tick], held: Iterable[Tick], count: int) -> list[Tick]:
    """Return the newest `count` ticks, ascending; at one time those of the tape first."""
    return sorted([*found, *held], key=lambda tick: tick.ts_event_ns)[-count:] if count > 0 else []


def symbols(found: Sequence[SymbolInfo], held: Iterable[Tick]) -> list[SymbolInfo]:
    """Return the symbols with their counts and times, by name."""
    known = {info.symbol: info for info in found}
    for tick in held:
        info = known.get(tick.symbol) or SymbolInfo(tick.symbol, 0, 0, None, None)
        first = tick.ts_event_ns if info.ts_first_ns is None else min(info.ts_first_ns, tick.ts_event_ns)
        last = tick.ts_event_ns if info.ts_last_ns is None else max(info.ts_last_ns, tick.ts_event_ns)
        known[tick.symbol] = SymbolInfo(tick.symbol, info.ticks + 1, info.bars, first, last)
    return [known[name] for name in sorted(known)]


def table(
    found: pa.Table | None,
    held: Iterable[Tick],
    symbol: str,
    start: Time | None,
    end: Time | None,
    columns: Sequence[str] | None,
) -> pa.Table:
    """Return rows of the tape (None: it cannot be read) and held ticks of the span, by event time."""
    import pyarrow as pa

    ticks = _within(held, start, end)
    if found is None or ticks:
        with _Scratch(ticks) as made:
            more = made.read(symbol, start, end, columns=columns)
        if found is None:
            return more
        if "seq" in more.column_names:
            at = more.column_names.index("seq")
            more = more.set_column(at, "seq", pa.nulls(more.num_rows, more.schema.field(at).type))
        joined = pa.concat_tables([found, more.cast(found.schema)])
        return joined.sort_by("ts_event_ns") if "ts_event_ns" in joined.column_names else joined
    return found


def bars(
    found: Sequence[Bar], held: Iterable[Tick], interval: str, start: Time | None, end: Time | None, **how: Any
) -> list[Bar]:
    """Return the tape's bars and those of held ticks, ascending; a bar that both have a part of is joined.

    `how` is as in Tape.bar_list(). As of an earlier position, and of a vendor's bars (source), nothing is held.
    """
    if how.get("as_of") is not None or how.get("source") is not None:
        return list(found)
    ticks = _within(held, None, None)
    if not ticks:
        return list(found)
    with _Scratch(ticks) as made:
        more = made.bar_list(ticks[0].symbol, interval, start, end, **how)
    by_start = {bar.ts_start_ns: bar for bar in found}
    for bar in more:
        known = by_start.get(bar.ts_start_ns)
        by_start[bar.ts_start_ns] = bar if known is None else _joined(known, bar)
    return [by_start[at] for at in sorted(by_start)]


def _joined(one: Bar, two: Bar) -> Bar:
    """Return the bar of the trades of two, the second's later."""

    def total(first: Any, second: Any) -> Any:
        return second if first is None else first if second is None else first + second

    volume = total(one.volume, two.volume)
    vwap = two.vwap if one.vwap is None else one.vwap
    if one.vwap is not None and two.vwap is not None and volume:
        vwap = (one.vwap * (one.volume or 0.0) + two.vwap * (two.volume or 0.0)) / volume
    return msgspec.structs.replace(
        one,
        high=max(one.high, two.high),
        low=min(one.low, two.low),
        close=two.close,
        volume=volume,
        vwap=vwap,
        trades=total(one.trades, two.trades),
        bid_volume=total(one.bid_volume, two.bid_volume),
        ask_volume=total(one.ask_volume, two.ask_volume),
        complete=two.complete,
        seq=None,
    )


def _within(held: Iterable[Tick], start: Time | None, end: Time | None) -> list[Tick]:
    start_ns = None if start is None else to_ns(start, "start")
    end_ns = None if end is None else to_ns(end, "end")
    return [
        tick
        for tick in held
        if (start_ns is None or tick.ts_event_ns >= start_ns) and (end_ns is None or tick.ts_event_ns < end_ns)
    ]


class _Scratch:
    """A tape of some ticks in a temporary folder, while the `with` lasts: the same code folds and reads them."""

    def __init__(self, ticks: Sequence[Tick]) -> None:
        self._ticks = ticks

    def __enter__(self) -> tapes.Tape:
        shared = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(prefix="onetape-", dir=shared if shared.is_dir() else None)
        self._tape = tapes.open(Path(self._folder.name) / "held.db", retention_days=None)
        if self._ticks:
            self._tape.append(list(self._ticks), on_invalid="quarantine")
        return self._tape

    def __exit__(self, *_exc: object) -> None:
        self._tape.close()
        self._folder.cleanup()
