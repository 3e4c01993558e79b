"""Conserve: for each symbol and day, do the old keys, the new keys and the tape hold the same ticks and bars?

Every side is read once, old first: what is written meanwhile can only be more on the sides read later. Of each symbol
and day only sums are kept. Where they differ, those symbols and days are read again, tick by tick, to say which side
lacks what, and whether old simply does not have it any more.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from datetime import date

from onetape import clock
from onetape.migrate.plans.plan import Plan
from onetape.migrate.proving import exact
from onetape.migrate.proving.bar_values import BarKey
from onetape.migrate.proving.close_look import compare
from onetape.migrate.proving.conservation import NEW, OLD, TAPE, Balance, BarRow, Conservation, Finding, Row, SideSums
from onetape.migrate.proving.day_sums import Key, Sums
from onetape.migrate.proving.holdings import Findings, Holdings, OnProgress
from onetape.migrate.wire.endpoint import Endpoint
from onetape.tape import Tape

#: Ticks of one side that are read again, 32 bytes each.
CLOSELY_TICKS = 2_000_000
_DAY_NS = 86_400 * 10**9


def conserve(
    endpoint: Endpoint,
    plan: Plan,
    tape: Tape | None = None,
    *,
    target: Endpoint | None = None,
    until_ns: int | None = None,
    gap_minutes: int = 15,
    closely_ticks: int = CLOSELY_TICKS,
    listed_max: int = 200,
    on_progress: OnProgress | None = None,
) -> Conservation:
    """Hold old keys, new keys and tape against each other; only reads.

    `endpoint` may be one that cannot write; `target`: that of the other server, where the target is on one. `tape`
    None: two sides. `until_ns`: leave out ticks at or after this time, for writers that are at work. `gap_minutes`:
    from how many minutes without a tick on a gap is listed. `closely_ticks`: how many ticks may be read again to say
    which ones differ; symbols and days beyond are told by their sums alone. `listed_max`: findings listed of a kind.
    Days are those of the plan's time zone, as those of its daily bars are.
    Raises EndpointError, TapeError.
    """
    started = time.monotonic()
    findings = Findings(listed_max)
    held = Holdings(endpoint, plan, tape, target, until_ns, findings, on_progress)
    held.read_all()
    rows = _Rows(held, tape, plan.timezone).of_all(closely_ticks)
    for finding in _gaps(held, plan.timezone, gap_minutes):
        findings.note(finding)
    return Conservation(
        zone=plan.timezone,
        rows=tuple(rows),
        bars=tuple(_bar_rows(held)),
        findings=tuple(findings.listed),
        totals=held.totals(),
        read_twice=held.read_twice,
        doubled=held.doubled,
        ohlc_checked=held.ohlc.checked,
        ohlc_unchecked=held.ohlc.unchecked,
        unlisted=dict(findings.unlisted),
        until_ms=None if until_ns is None else until_ns // 1_000_000,
        seconds=round(time.monotonic() - started, 3),
    )


class _Rows:
    """Makes the rows of ticks."""

    def __init__(self, held: Holdings, tape: Tape | None, zone: str) -> None:
        self._zone = zone
        self._held, self._sides, self._of, self._tape = held, held.sides, held.of, tape

    def of_all(self, closely_ticks: int) -> list[Row]:
        """Return a row for each symbol and day of any side, the differing ones looked at closely."""
        keys = sorted(set().union(*self._held.sums.values()))
        differing = [key for key in keys if not self._same(key)]
        closely: list[Key] = []
        for key in differing:
            closely_ticks -= max(self._of(side, key).ticks for side in self._sides)
            if closely_ticks < 0:
                break
            closely.append(key)
        looks = self._held.look_closely(closely) if closely else {}
        judged = {key: compare(looks, key, self._pruned(key)) for key in closely}
        rows = []
        for key in keys:
            balance, told = judged.get(key) or (Balance.EQUAL, ())
            if key not in judged and not self._same(key):
                balance, told = self._by_sums(key)
            elif key in judged and balance is Balance.EQUAL and not self._same_to_the_ns(key):
                balance, told = Balance.DIFFERS, ("times on the tape differ from those of old below the millisecond",)
            rows.append(
                Row(
                    symbol=key[0],
                    day=date.fromordinal(key[1]).isoformat(),
                    balance=balance,
                    old=_side_sums(self._of(OLD, key)),
                    new=_side_sums(self._of(NEW, key)),
                    tape=None if self._tape is None else _side_sums(self._of(TAPE, key)),
                    told=told + self._lost_minutes(key) if balance is Balance.LOST else told,
                )
            )
        return rows

    def _same(self, key: Key) -> bool:
        old = self._of(OLD, key)
        return all(self._of(side, key).same(old) for side in self._sides[1:]) and self._same_to_the_ns(key)

    def _same_to_the_ns(self, key: Key) -> bool:
        """Return whether tape and old agree below the ms; new cannot, where an entry has no time but its id."""
        old, tape = self._of(OLD, key), self._of(TAPE, key) if self._tape is not None else None
        return tape is None or not tape.same(old) or tape.check_ns == old.check_ns

    def _pruned(self, key: Key) -> list[tuple[int, int]]:
        """Return the spans of a symbol and day that the tape's retention has cleared."""
        sums = [self._of(side, key) for side in (OLD, NEW) if self._of(side, key).ticks]
        if self._tape is None or not sums or self._tape.symbol_of(key[0]) is None:
            return []
        first = min(one.first_ms for one in sums) * 1_000_000
        last = (max(one.last_ms for one in sums) + 1) * 1_000_000
        spans = self._tape.coverage(key[0], first, last)
        return [(span.start_ns, span.end_ns) for span in spans if span.state == "pruned"]

    def _by_sums(self, key: Key) -> tuple[Balance, tuple[str, ...]]:
        old, told = self._of(OLD, key), []
        for side in self._sides[1:]:
            here = self._of(side, key)
            if here.ticks != old.ticks:
                told.append(f"{side} has {here.ticks:,} ticks, old {old.ticks:,}")
            elif not here.same(old):
                told.append(f"{side} has as many ticks as old, but not the same")
        return Balance.DIFFERS, (*told, "not looked at tick by tick: there is too much that differs")

    def _lost_minutes(self, key: Key) -> tuple[str, ...]:
        """Return in words the spans of the day in which old has ticks and another side has none at all."""
        told = []
        old = self._of(OLD, key).minutes
        for side in self._sides[1:]:
            lost = old & ~self._of(side, key).minutes
            spans = [f"{_clock(start)} to {_clock(end)}" for start, end in _runs(lost)]
            if spans:
                rest = f" and {len(spans) - 3:,} spans more" if len(spans) > 3 else ""
                told.append(f"{side} has nothing of {', '.join(spans[:3])}{rest}, {self._zone}")
        return tuple(told)


def _gaps(held: Holdings, zone: str, gap_minutes: int) -> Iterator[Finding]:
    """Yield the spans without ticks, longest first: those that old has too are gaps of the data."""
    found: list[tuple[int, Key, int, int]] = []
    for key, sums in held.sums[OLD].items():
        empty = ~sums.minutes & ((1 << sums.minutes.bit_length()) - 1)
        if empty:
            begun = (sums.minutes & -sums.minutes).bit_length() - 1
            found += [
                (end - start, key, start, end)
                for start, end in _runs(empty >> begun << begun)
                if end - start >= gap_minutes
            ]
    found.sort(key=lambda gap: (-gap[0], gap[1], gap[2]))
    for minutes, key, start, end in found:
        mask = ((1 << (end - start)) - 1) << start
        others = [side for side in held.sides[1:] if held.of(side, key).minutes & mask]
        told = f"{_clock(start)} to {_clock(end)} {zone}, {minutes:,} minutes without a tick in old"
        told += f"; {' and '.join(others)} have some" if others else " and so on every side: a gap of the data"
        yield Finding("gap", key[0], date.fromordinal(key[1]).isoformat(), OLD, told)


def _bar_rows(held: Holdings) -> list[BarRow]:
    """Return a row for each symbol, interval and day of which any side has bars kept as bars."""
    return [_bar_row(held, key) for key in sorted(set().union(*(one.hashes for one in held.bars.values())))]


def _bar_row(held: Holdings, key: BarKey) -> BarRow:
    hashes = {side: bars.hashes.get(key) or Counter() for side, bars in held.bars.items()}
    told, balance = [], Balance.EQUAL
    old = hashes[OLD]
    for side in held.sides[1:]:
        here = hashes[side]
        lacking, more = (old - here).total(), (here - old).total()
        if lacking:
            told.append(f"{side} lacks {lacking:,} of {old.total():,} bars as old has them")
            balance = Balance.LOST
        elif any(number > old[one] > 0 for one, number in here.items()):
            told.append(f"{side} has a bar more often than old")
            balance = balance if balance is Balance.LOST else Balance.DOUBLED
        elif more:
            told.append(f"{side} has {more:,} bars that old no longer has")
            balance = Balance.MORE if balance is Balance.EQUAL else balance
    symbol, interval, day = key
    return BarRow(
        symbol=symbol,
        interval=interval,
        day=clock.to_text(day * _DAY_NS)[:10],
        balance=balance,
        old=held.bars[OLD].sums(key),
        new=held.bars[NEW].sums(key),
        tape=held.bars[TAPE].sums(key) if TAPE in held.sides else None,
        told=tuple(told),
    )


def _side_sums(sums: Sums) -> SideSums:
    if not sums.ticks:
        return SideSums()
    return SideSums(
        ticks=sums.ticks,
        trades=sums.trades,
        volume=exact.number(sums.volume),
        first_ms=sums.first_ms,
        last_ms=sums.last_ms,
        first_price=None if sums.opened is None else sums.opened[1:],
        last_price=None if sums.closed is None else sums.closed[1:],
        high=sums.high if sums.trades else None,
        low=sums.low if sums.trades else None,
        check=f"{sums.check:016x}",
    )


def _runs(bits: int) -> Iterator[tuple[int, int]]:
    """Yield first and one past the last of each run of bits that are set."""
    at = 0
    while bits:
        skipped = (bits & -bits).bit_length() - 1
        bits >>= skipped
        length = (~bits & (bits + 1)).bit_length() - 1
        yield at + skipped, at + skipped + length
        bits >>= length
        at += skipped + length


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


__all__ = ["CLOSELY_TICKS", "conserve"]
