"""Schedules: when a continuous future rolls by what is on the tape, kept in memory while it would come out alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import TYPE_CHECKING, NamedTuple

import apsw
import numpy as np

from onetape.store import query, replay, rolls
from onetape.store.continuous import Definition, VolumeCrossover
from onetape.store.rolls import Schedule, Switch
from onetape.tape.contract_days import OpenInterests, Volumes

if TYPE_CHECKING:
    from onetape.tape import Tape

#: New records that are looked through; with more of them, working it out anew is no dearer.
_LOOKED_THROUGH = 100_000


class Kept(NamedTuple):
    """A schedule as worked out at position `head`. Only records before `decided_ns` had a say in it."""

    head: int
    symbols: list[str]
    told: Mapping[int, Switch]
    decided_ns: int
    schedule: Schedule


def kept_or_new(
    tape: Tape, kept: Kept | None, definition: Definition, symbols: list[str], told: Mapping[int, Switch]
) -> Kept:
    """Return `kept` brought up to date, or a schedule worked out anew if a record since then may change it.

    A record of a contract changes it if its time is before what is decided (it is late, or a cancel), or after the
    day that was the last (that day is over now).
    """
    if kept is not None and kept.symbols == symbols and kept.told == told:
        with tape._reading() as connection:
            head = _unchanged(connection, kept, lambda name: tape._catalog.symbol_id(connection, name))
        if head is not None:
            return kept._replace(head=head)
    with tape._reading() as connection:
        head = query.head(connection)
    schedule = _worked_out(tape, definition, symbols, told)
    decided = 0
    if schedule.until_ns:
        decided = rolls.day_start_ns(definition, rolls.trading_day(definition, schedule.until_ns - 1))
    return Kept(head, symbols, told, decided, schedule)


def _unchanged(connection: apsw.Connection, kept: Kept, symbol_id: Callable[[str], int | None]) -> int | None:
    """Return the position up to which the schedule stands, the last one; None if it may not."""
    ids = [found for found in map(symbol_id, kept.symbols) if found is not None]
    position = kept.head
    if query.head(connection) - position > _LOOKED_THROUGH:
        return None
    while (step := replay.step(connection, position, all_left=True)) is not None:
        for columns in step.found.values():
            times = columns["ts_event_ns"][np.isin(columns["symbol"], ids)]
            if ((times < kept.decided_ns) | (times >= kept.schedule.until_ns)).any():
                return None
        position = step.position
    return position


def _worked_out(tape: Tape, definition: Definition, symbols: list[str], told: Mapping[int, Switch]) -> Schedule:
    found = [info for info in tape.symbols() if info.symbol in symbols]
    firsts = [info.ts_first_ns for info in found if info.ts_first_ns is not None]
    lasts = [info.ts_last_ns for info in found if info.ts_last_ns is not None]
    for symbol in symbols:  # bars stay when retention removes their ticks
        older = tape.bar_list(symbol, "1d", None, min(firsts, default=None))
        firsts += [bar.ts_start_ns for bar in older[:1]]
        lasts += [bar.ts_start_ns for bar in older[-1:]]
    if not firsts:
        return Schedule(0, (), 0)
    first, last = rolls.trading_day(definition, min(firsts)), rolls.trading_day(definition, max(lasts))
    days = (Volumes if isinstance(definition.roll, VolumeCrossover) else OpenInterests)(tape, definition, symbols)
    return rolls.crossovers(definition, first, date.fromordinal(last.toordinal() - 1), days, told)
