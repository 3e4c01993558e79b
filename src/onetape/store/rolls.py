"""Rolls: when a continuous future goes from one contract to the next, and what that does to its prices.

A crossover is decided at the end of a trading day by what that day's records say, and takes effect at the start of
the next: nothing later is looked at, so history rolls where a live reader rolled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import apsw
import msgspec

from onetape.clock import now_ns
from onetape.record import TS_MAX_NS
from onetape.store.continuous import DaysBefore, Definition, OnDates, OpenInterestCrossover

_DAY = timedelta(days=1)
_S = 1_000_000_000


class Roll(msgspec.Struct, frozen=True):
    """From `ts_ns` on, the continuous future `symbol` is the contract `new` and no longer `old`.

    `gap` is new_price - old_price: the closes of the last minute before it in which both were traded, which began at
    priced_ns; None where there is none in the five days before. `why` says what decided it.
    """

    symbol: str
    ts_ns: int
    old: str
    new: str
    why: str
    gap: float | None = None
    old_price: float | None = None
    new_price: float | None = None
    priced_ns: int | None = None
    seq: int | None = None  # it has no position of its own on the tape

    @property
    def ts_event_ns(self) -> int:
        """Return its time as other records call theirs."""
        return self.ts_ns

    @property
    def ratio(self) -> float | None:
        """Return new_price / old_price, or None where they are unknown or not positive."""
        if self.old_price is None or self.new_price is None or self.old_price <= 0 or self.new_price <= 0:
            return None
        return self.new_price / self.old_price


class Switch(NamedTuple):
    """A roll before it is priced: contracts by their place in the chain."""

    ts_ns: int
    old: int
    new: int
    why: str


class Schedule(NamedTuple):
    """The contract it begins with, the rolls in order of time, and the time up to which they are decided."""

    first: int
    switches: tuple[Switch, ...]
    until_ns: int

    def front(self, ts_ns: int) -> int:
        """Return the place of the contract that is the front at a time."""
        found = self.first
        for switch in self.switches:
            if switch.ts_ns > ts_ns:
                break
            found = switch.new
        return found


class Segment(NamedTuple):
    """A span of time start_ns <= ts < end_ns in which one contract is the front."""

    contract: int
    start_ns: int
    end_ns: int


#: What a contract's day came to: volume, or open interest at its end; None where nothing tells.
Told = Callable[[int, date], float | None]


def day_start_ns(definition: Definition, day: date) -> int:
    """Return when the trading day of a date begins, ns UTC."""
    clock = time.fromisoformat(definition.day_start)
    begins = day - _DAY if clock.hour >= 12 else day
    local = datetime.combine(begins, clock, ZoneInfo(definition.timezone))
    return int(local.astimezone(UTC).timestamp()) * _S


def trading_day(definition: Definition, ts_ns: int) -> date:
    """Return the date of the trading day that a time falls into."""
    day = datetime.fromtimestamp(ts_ns // _S, ZoneInfo(definition.timezone)).date()
    while ts_ns >= day_start_ns(definition, day + _DAY):
        day += _DAY
    while ts_ns < day_start_ns(definition, day):
        day -= _DAY
    return day


def dates(definition: Definition) -> list[date]:
    """Return the trading dates on which a rule of dates rolls, one for each contract but the last."""
    rule, chain = definition.roll, definition.contracts
    if isinstance(rule, OnDates):
        return list(rule.dates)
    assert isinstance(rule, DaysBefore)
    if not rule.business:
        return [contract.expiry - rule.days * _DAY for contract in chain[:-1]]
    closed = frozenset(definition.holidays)
    found = []
    for contract in chain[:-1]:
        day, left = contract.expiry, rule.days
        while left:
            day -= _DAY
            left -= day.weekday() < 5 and day not in closed
        found.append(day)
    return found


def fixed(definition: Definition) -> Schedule:
    """Return the schedule of a rule of dates: it needs no data."""
    rule = definition.roll
    told = "date given"
    if isinstance(rule, DaysBefore):
        told = f"{rule.days} {'business ' if rule.business else ''}days before expiry"
    switches = tuple(
        Switch(day_start_ns(definition, day), index, index + 1, told) for index, day in enumerate(dates(definition))
    )
    return Schedule(0, switches, TS_MAX_NS + 1)


def crossovers(
    definition: Definition,
    first: date,
    last: date,
    told: Told,
    recorded: Mapping[int, Switch],
) -> Schedule:
    """Return the schedule that trading days `first` to `last`, all of them over, decide; each is looked at once.

    The front gives way to the nearest later contract that exceeds it, and never comes back: so a contract nobody
    trades is passed over. One that has expired gives way to the next. `recorded`: rolls that have been told to
    somebody, by the contract they leave: they stand, whatever the days say now.
    """
    chain = definition.contracts
    front = next((i for i, contract in enumerate(chain) if contract.expiry >= first), len(chain) - 1)
    begin, day = front, first
    switches: list[Switch] = []
    while front < len(chain) - 1:
        switch = recorded.get(front)
        if switch is None:
            if day > last:
                break
            switch = _decide(definition, front, day, told)
            day += _DAY
        else:
            day = max(day, trading_day(definition, switch.ts_ns))
        if switch is not None:
            switches.append(switch)
            front = switch.new
    return Schedule(begin, tuple(switches), day_start_ns(definition, max(last, first - _DAY) + 2 * _DAY))


def _decide(definition: Definition, front: int, day: date, told: Told) -> Switch | None:
    chain = definition.contracts
    later = [i for i in range(front + 1, len(chain)) if chain[i].expiry > day]
    if not later:
        return None
    at = day_start_ns(definition, day + _DAY)
    what = "open interest" if isinstance(definition.roll, OpenInterestCrossover) else "volume"
    mine = told(front, day)
    for index in later if mine is not None else ():
        theirs = told(index, day)
        if theirs is not None and mine is not None and theirs > mine:
            return Switch(at, front, index, f"{what} {theirs:,.15g} > {mine:,.15g} on {day}")
    if day >= chain[front].expiry:
        return Switch(at, front, later[0], f"expired on {chain[front].expiry}")
    return None


def segments(schedule: Schedule, start_ns: int, end_ns: int) -> Iterator[Segment]:
    """Return the parts of start_ns <= ts < end_ns by front, ascending."""
    contract, begin = schedule.first, start_ns
    for switch in schedule.switches:
        at = min(max(switch.ts_ns, start_ns), end_ns)
        if at > begin:
            yield Segment(contract, begin, at)
        contract, begin = switch.new, max(begin, at)
    if begin < end_ns:
        yield Segment(contract, begin, end_ns)


def told_rolls(connection: apsw.Connection, name: str, version: int, symbols: Sequence[str]) -> dict[int, Switch]:
    """Return the rolls that followers were told of, by the contract they leave; `symbols` is the chain."""
    place = {symbol: index for index, symbol in enumerate(symbols)}
    rows: list[Any] = connection.execute(
        "SELECT old, new, ts_ns, why FROM roll WHERE name = ? AND version = ?", (name, version)
    ).fetchall()
    return {place[old]: Switch(ts, place[old], place[new], why) for old, new, ts, why in rows if {old, new} <= {*place}}


def tell(connection: apsw.Connection, name: str, version: int, symbols: Sequence[str], switch: Switch) -> Switch:
    """Keep a roll, inside the caller's transaction; return the one kept: the first that anybody was told of."""
    connection.execute(
        "INSERT INTO roll VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (name, version, symbols[switch.old], symbols[switch.new], switch.ts_ns, switch.why, now_ns()),
    )
    return told_rolls(connection, name, version, symbols)[switch.old]
