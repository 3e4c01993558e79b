"""The proof: every tick of the legacy system and every write of the live writers, looked for number by number.

It does not trust the migrator: it compares what the demo itself made with what the tape and the target database hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter

import msgspec
import numpy as np
from numpy.typing import NDArray

from onetape.demo.market import Instrument
from onetape.demo.writers import Tally
from onetape.migrate.plans.plan import Plan
from onetape.migrate.wire.endpoint import Endpoint
from onetape.record import Tick
from onetape.tape import Tape

#: What is compared, bit for bit; times come first.
_COLUMNS = ("ts_event_ns", "price", "size", "bid", "ask", "bid_size", "ask_size", "side")
_PAGE = 5000


class Proof(msgspec.Struct, frozen=True):
    """What was looked for and found, and in words what was not. It holds if nothing is `missing`."""

    legacy_ticks: int
    stream_writes: int
    hash_writes: int
    indicator_writes: int
    created: int
    live_ticks: int
    missing: list[str]


def prove(tape: Tape, target: Endpoint, instruments: Sequence[Instrument], tally: Tally, plan: Plan) -> Proof:
    """Look for everything. `target` has the target database selected."""
    missing = [why for one in instruments if (why := _lost_ticks(tape, one)) is not None]
    for key, count in tally.streams.items():
        missing += _lost_entries(tape, target, key, count)
    for key, count in tally.hashes.items():
        missing += _lost_state(tape, target, key, count)
    for key, count in tally.indicators.items():
        missing += _lost_indicator(target, plan, key, count)
    for key in tally.created:
        place = plan_target(plan, key)
        if place is None or not target.call("EXISTS", place):
            missing.append(f"{key}: created while the migration ran, and not in the target")
    live_symbols = {key.partition(":")[2] for key in (*tally.streams, *tally.hashes)}
    live = sum(len(_live(tape, symbol)) for symbol in live_symbols)
    return Proof(
        legacy_ticks=sum(len(one.ticks) for one in instruments),
        stream_writes=sum(tally.streams.values()),
        hash_writes=sum(tally.hashes.values()),
        indicator_writes=sum(tally.indicators.values()),
        created=len(tally.created),
        live_ticks=live,
        missing=missing,
    )


def plan_target(plan: Plan, key: str) -> bytes | None:
    """Return where the plan puts a key, whatever its database and type: the demo's names are unique in both."""
    for rule in plan.rules:
        target = rule.target_of(key.encode())
        if target is not None:
            return target
    return None


def _lost_ticks(tape: Tape, instrument: Instrument) -> str | None:
    """Return what is wrong with the instrument's legacy ticks on the tape: each must be there once, bit for bit."""
    table = tape.read(instrument.symbol, columns=[*_COLUMNS, "trades"])
    legacy = table.column("trades").is_null().to_numpy(zero_copy_only=False)
    held = [table.column(name).to_numpy(zero_copy_only=False).astype(float)[legacy] for name in _COLUMNS[1:]]
    held_times = table.column("ts_event_ns").to_numpy()[legacy]
    made = [_column(instrument.ticks, name) for name in _COLUMNS[1:]]
    made_times = np.fromiter((tick.ts_event_ns for tick in instrument.ticks), np.int64, len(instrument.ticks))
    if len(held_times) != len(made_times):
        return f"{instrument.symbol}: {len(made_times):,} ticks were made and {len(held_times):,} are on the tape"
    if _bits(held_times, held) != _bits(made_times, made):
        return f"{instrument.symbol}: a tick on the tape differs from the one that was made"
    return None


def _column(ticks: Iterable[Tick], name: str) -> NDArray[np.float64]:
    get = attrgetter(name)
    return np.array([np.nan if (value := get(tick)) is None else value for tick in ticks], np.float64)


def _bits(times: NDArray[np.int64], columns: list[NDArray[np.float64]]) -> bytes:
    """Return the rows' bytes in an order of their own, in which ticks of one time may come in any."""
    order = np.lexsort((*reversed(columns), times))
    return b"".join(column[order].tobytes() for column in (times, *columns))


def _live(tape: Tape, symbol: str) -> list[int]:
    """Return the counters of the live ticks of a symbol on the tape: no legacy tick has one."""
    return [int(count) for count in tape.read(symbol, columns=["trades"]).column("trades").to_pylist() if count]


def _lost_entries(tape: Tape, target: Endpoint, key: str, count: int) -> list[str]:
    wanted = list(range(1, count + 1))
    found: list[int] = []
    start = "-"
    while page := target.call("XRANGE", key, start, "+", "COUNT", _PAGE):
        for _entry_id, flat in page:
            if b"trade_count" in flat:
                found.append(int(flat[flat.index(b"trade_count") + 1]))
        start = f"({page[-1][0].decode()}"
    missing = []
    if found != wanted:
        missing.append(f"{key}: {count:,} entries were written and {len(found):,} are in the target")
    on_tape = sorted(_live(tape, key.partition(":")[2]))
    if on_tape != wanted:
        missing.append(f"{key}: {count:,} entries were written and {len(on_tape):,} are on the tape")
    return missing


def _lost_state(tape: Tape, target: Endpoint, key: str, count: int) -> list[str]:
    """A hash holds its last state only: that one must have arrived."""
    symbol = key.partition(":")[2]
    page = target.call("XREVRANGE", f"ticks:historical:{symbol}", "+", "-", "COUNT", 1)
    flat = page[0][1] if page else []
    held = int(flat[flat.index(b"trade_count") + 1]) if b"trade_count" in flat else 0
    missing = []
    if held != count:
        missing.append(f"{key}: its last write was number {count:,}, the target ends with {held:,}")
    if max(_live(tape, symbol), default=0) != count:
        missing.append(f"{key}: its last write was number {count:,}, and it is not on the tape")
    return missing


def _lost_indicator(target: Endpoint, plan: Plan, key: str, count: int) -> list[str]:
    place = plan_target(plan, key)
    value = None if place is None else target.call("GET", place)
    held = msgspec.json.decode(value)["n"] if value else 0
    if held != count:
        return [f"{key}: its last write was number {count:,}, the target holds {held:,}"]
    return []
