"""Made bars: the tape's own, of trades (or of quotes), for any interval and any sessions.

Bars of whole minutes are joined from the kept minutes, which outlive the ticks; all others are folded from ticks. So is
everything as of an earlier position: first into minutes, where the kept ones would be joined, so that the bytes are
the same. A bar belongs to a span by its start. What a bar is depends on the trades of its session alone, never on the
span that is asked for.

revision counts, for bars of whole minutes, what changed their minutes (store/bars.py); for the others, the records of
the bar that arrived after a later one of its session or the next, and those that were taken back. Bars that are
counted from the open of the session have it from all records before their end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import apsw
import numpy as np

from onetape.errors import ConfigInvalid
from onetape.record import MINUTE_NS, TS_MAX_NS, Bar
from onetape.store import aggregate, cancels, chunks, query
from onetape.store.aggregate import Series
from onetape.store.block import Array, Columns, take
from onetape.store.interval import Interval
from onetape.store.layout import DAY_NS, KIND_TICK
from onetape.store.sessions import UTC_DAYS, Sessions, Windows, day_of, overlapping

PRICES = ("trade", "bid", "ask", "mid")
#: The columns that a price is of; a record without one of them has none.
PRICED_BY = {"trade": ("price",), "bid": ("bid",), "ask": ("ask",), "mid": ("bid", "ask")}
#: A market that is closed for longer has no next session: what comes after is not late for the one before.
_PAUSE_DAYS = 15
_FLOATS = ("open", "high", "low", "close", "volume", "vwap")


class Rule(NamedTuple):
    """Which bars: of which interval, in which sessions, of which price."""

    interval: Interval
    sessions: Sessions = UTC_DAYS
    price: str = "trade"

    @property
    def dated(self) -> bool:
        """Return whether a session was asked for, so that bars carry their trading day."""
        return self.sessions is not UTC_DAYS


def keeps(interval: int) -> bool:
    """Return whether bars of this length (ns) are joined from kept minutes and divide a UTC day."""
    return interval % MINUTE_NS == 0 and DAY_NS % interval == 0


def check(rule: Rule) -> None:
    """Raise ConfigInvalid for a rule that has no bars."""
    if rule.price not in PRICES:
        raise ConfigInvalid(f"price = {rule.price!r}", hint=f"it is one of {', '.join(PRICES)}")
    if rule.price != "trade" and rule.interval.kind in ("volume", "value"):
        raise ConfigInvalid(
            f"{rule.interval.text} bars of price {rule.price!r}: quotes have no volume", hint="leave price out"
        )


def bars(
    connection: apsw.Connection,
    symbol_ids: Sequence[int],
    rule: Rule,
    start_ns: int,
    end_ns: int,
    as_of: int | None = None,
) -> Columns:
    """Return the bars of symbols with start_ns <= start < end_ns, by symbol id, ascending.

    Columns: symbol, ts_start_ns, open, high, low, close, volume, vwap, trades, bid_volume, ask_volume (NaN: absent),
    complete, revision, day (of the session, from 1970-01-01), number (-1: a bar of time), ts_end_ns (of the last trade;
    of a bar of time: when it is over).
    """
    check(rule)
    ids = sorted(symbol_ids)
    if as_of is None and rule.price == "trade" and _of_minutes(rule.interval):
        reach = rule.interval.ns or 0
        found, newest = query.minute_rows(connection, ids, start_ns, min(end_ns + reach + 4 * DAY_NS, 2**63 - 1))
        if not len(found):
            return _empty()
        windows = windows_of(rule, int(found["ts_event_ns"].min()), int(found["ts_event_ns"].max()) + 1)
        if _aligned(windows):
            made = _joined(found, windows, rule.interval)
            last = np.array([newest[symbol_id] for symbol_id in ids])
            made["complete"] = last[np.searchsorted(ids, made["symbol"])] >= made["ts_end_ns"]
            return _within(made, start_ns, end_ns)
    parts = [_folded(connection, symbol_id, rule, start_ns, end_ns, as_of) for symbol_id in ids]
    if len(parts) < 2:
        return parts[0] if parts else _empty()
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_minutes(interval: Interval) -> bool:
    return interval.ns is not None and interval.ns % MINUTE_NS == 0


def _aligned(windows: Windows) -> bool:
    ends = windows.closes[windows.closes <= TS_MAX_NS]
    return not (windows.opens % MINUTE_NS).any() and not (ends % MINUTE_NS).any()


def windows_of(rule: Rule, start_ns: int, end_ns: int) -> Windows:
    """Return the whole sessions that a span reaches into, those of whole bars of several days."""
    found = overlapping(rule.sessions, start_ns, end_ns)
    if rule.interval.kind != "days" or rule.interval.size == 1 or not len(found.days):
        return found
    return rule.sessions.windows(*aggregate.whole_blocks(int(found.days[0]), int(found.days[-1]), rule.interval))


def _empty() -> Columns:
    floats = ("open", "high", "low", "close", "volume", "vwap", "bid_volume", "ask_volume")
    whole = ("symbol", "ts_start_ns", "trades", "revision", "day", "number", "ts_end_ns")
    return {
        **{name: np.zeros(0) for name in floats},
        **{name: np.zeros(0, dtype="<i8") for name in whole},
        "complete": np.zeros(0, dtype=bool),
    }


def _within(made: Columns, start_ns: int, end_ns: int) -> Columns:
    starts = made["ts_start_ns"]
    mask = (starts >= start_ns) & (starts < end_ns) & (made["trades"] > 0)
    return made if mask.all() else take(made, mask)


def _joined(minutes: Array, windows: Windows, interval: Interval) -> Columns:
    """Return the bars that MINUTES (by symbol, ascending) make up, without `complete`."""
    at = aggregate.cells(minutes["ts_event_ns"], windows, interval)
    if not at.inside.all():
        minutes, at = minutes[at.inside], aggregate.Cells(*(column[at.inside] for column in at))
    begin = aggregate.edges(minutes["symbol"], at.starts)
    if not len(begin):
        return _empty()
    made = aggregate.join(minutes, begin)
    revision = minutes["revision"]
    made["revision"] = revision if len(begin) == len(minutes) else np.add.reduceat(revision, begin)
    made["symbol"] = minutes["symbol"][begin].astype("<i8")
    made["ts_start_ns"], made["ts_end_ns"], made["day"] = at.starts[begin], at.over[begin], at.days[begin]
    return _finished(made)


def _finished(made: Columns) -> Columns:
    made["vwap"] = aggregate.vwap(made)
    del made["notional"]
    made.setdefault("number", np.full(len(made["open"]), -1))
    return made


class Raw(NamedTuple):
    """All records of a span that a rule's bars are made of, those that were taken back as well: which stand."""

    found: Series
    stands: Array

    @property
    def in_order(self) -> bool:
        """Return whether all of it arrived in the order of its times."""
        return bool((self.found.seq[1:] > self.found.seq[:-1]).all())


def _raw(connection: apsw.Connection, symbol_id: int, price: str, start_ns: int, end_ns: int, as_of: int | None) -> Raw:
    tail = query.tail(connection)
    beside = cancels.of_symbol(tail.get(KIND_TICK), symbol_id, start_ns, end_ns)
    wanted = (*PRICED_BY[price], *(("size", "side") if price == "trade" else ()))
    columns = chunks.read(connection, KIND_TICK, symbol_id, start_ns, end_ns, wanted, as_of, beside)
    if columns is None:
        columns = {"ts_event_ns": np.zeros(0, dtype="<i8"), "seq": np.zeros(0, dtype="<i8")}
    found = aggregate.series(columns, price)
    taken_back = cancels.targets(connection, symbol_id, start_ns, end_ns, tail, as_of)
    stands = ~np.isin(found.seq, taken_back) if len(taken_back) else np.ones(len(found.seq), dtype=bool)
    return Raw(found, stands)


def _folded(
    connection: apsw.Connection, symbol_id: int, rule: Rule, start_ns: int, end_ns: int, as_of: int | None
) -> Columns:
    """Return one symbol's bars, folded from its ticks."""
    first, last = _data_span(connection, symbol_id)
    if last < first:
        return _empty()
    opening = windows_of(rule, first, first + 1).opens  # a bar begins before its first trade
    start, end = max(start_ns, min([first, *opening[:1].tolist()])), min(end_ns, last + 1)
    windows = windows_of(rule, start, end)
    if not len(windows.opens):
        return _empty()
    windows, ends = _with_next(rule, windows)
    # Bars of time that begin before the span are not asked for; bars that are counted begin at the open.
    read_from = int(windows.opens[0]) if rule.interval.counted else start
    raw = _raw(connection, symbol_id, rule.price, read_from, int(ends[-1]), as_of)
    if not raw.stands.any():
        return _empty()
    made = (_counted if rule.interval.counted else _timed)(raw, rule, windows, ends)
    made["symbol"] = np.full(len(made["open"]), symbol_id)
    made = _within(made, max(start_ns, _pruned_before(connection, symbol_id)), end_ns)
    _complete(connection, symbol_id, rule, made, raw, as_of)
    return made


def _with_next(rule: Rule, windows: Windows) -> tuple[Windows, Array]:
    """Return spans with those of the next session, and for each when the session after its own is over."""
    last = int(windows.days[-1])
    following = rule.sessions.windows(last + 1, last + _PAUSE_DAYS)
    more = following.days == following.days[0] if len(following.days) else np.zeros(0, dtype=bool)
    whole = Windows(*(np.concatenate((a, b[more])) for a, b in zip(windows, following, strict=True)))
    begin = aggregate.edges(whole.days)
    closes = whole.closes[np.append(begin[1:], len(whole.days)) - 1]
    ends = np.append(closes[1:], closes[-1])
    return whole, np.repeat(ends, np.diff(np.append(begin, len(whole.days))))


def _timed(raw: Raw, rule: Rule, windows: Windows, ends: Array) -> Columns:
    minutely = rule.price == "trade" and _of_minutes(rule.interval) and _aligned(windows)
    step = Interval("time", MINUTE_NS, "1min") if minutely else rule.interval
    found = raw.found.where(raw.stands)
    at = aggregate.timed(found.ts, windows, step)
    if at.inside is not None:
        found = found.where(at.inside)
    if not len(at.begin):
        return _empty()
    revision = _changes(raw, at.starts, windows, step, ends)
    if minutely:
        minutes = aggregate.to_minutes(found, at.begin, revision)
        return _joined(minutes, windows, rule.interval)
    made = aggregate.fold(found, at.begin)
    made["revision"] = revision
    made["ts_start_ns"], made["ts_end_ns"], made["day"] = at.starts, at.over, at.days
    return _finished(made)


def _changes(raw: Raw, starts: Array, windows: Windows, interval: Interval, ends: Array) -> Array:
    """Return for bars of time how many of their records came late or were taken back."""
    if raw.in_order and raw.stands.all():
        return np.zeros(len(starts), dtype="<i8")
    ts = raw.found.ts
    at = aggregate.cells(ts, windows, interval)
    places = np.flatnonzero(at.inside)
    changed = (~raw.stands[places]).astype("<i8")
    after, until = np.searchsorted(ts, at.over[places]), np.searchsorted(ts, ends[windows.of(ts[places])])
    changed += aggregate.late(raw.found.seq, places, after, until)
    begin = aggregate.edges(at.starts[places])
    return np.add.reduceat(changed, begin)[np.searchsorted(at.starts[places][begin], starts)]


def _counted(raw: Raw, rule: Rule, windows: Windows, ends: Array) -> Columns:
    ts = raw.found.ts
    span = windows.of(ts)
    inside = span >= 0
    place = np.arange(len(ts))
    changed = (~raw.stands).astype("<i8")
    if not raw.in_order:
        until = np.searchsorted(ts, ends[span[inside]])
        changed[inside] += aggregate.late(raw.found.seq, place[inside], place[inside] + 1, until)
    changes = np.cumsum(changed)
    stands = inside & raw.stands
    found, days, place = raw.found.where(stands), windows.days[span[stands]], place[stands]
    if not len(days):
        return _empty()
    begin, numbers, over, revisions = [], [], [], []
    opened = aggregate.edges(days)
    for start, end in zip(opened.tolist(), [*opened[1:].tolist(), len(days)], strict=True):
        mine, closed = aggregate.counted(found.where(np.arange(start, end)), rule.interval)
        begin.append(mine + start)
        numbers.append(np.arange(len(mine)))
        close = int(windows.closes[windows.days == days[start]][-1])
        # A bar is over when trades closed it: the time that says so is none. The last one is over at the close.
        over.append(np.append(np.zeros(len(mine) - 1, dtype="<i8"), 0 if closed else close))
        first = int(np.searchsorted(ts, int(windows.opens[windows.days == days[start]][0])))
        last = int(np.searchsorted(ts, close))
        before = changes[first - 1] if first else 0
        revisions.append(changes[np.append(place[mine[1:] + start], last) - 1] - before)
    whole = np.concatenate(begin)
    made = aggregate.fold(found, whole)
    made["revision"], made["number"] = np.concatenate(revisions), np.concatenate(numbers)
    made["ts_start_ns"], made["day"] = found.ts[whole], days[whole]
    made["ts_end_ns"] = found.ts[np.append(whole[1:], len(found.ts)) - 1]
    made["over"] = np.concatenate(over)
    return _finished(made)


def _complete(
    connection: apsw.Connection, symbol_id: int, rule: Rule, made: Columns, raw: Raw, as_of: int | None
) -> None:
    """Say which bars are complete: those that something later is there of."""
    over = made.pop("over", made["ts_end_ns"])
    if not len(over):
        made["complete"] = np.zeros(0, dtype=bool)
        return
    newest = int(raw.found.ts[-1])
    if as_of is None and rule.price == "trade":
        newest = max(newest, query.minute_rows(connection, [symbol_id], 0, 0)[1][symbol_id])
    elif newest < int(over[-1]):
        newest = max(newest, _later(connection, symbol_id, rule.price, int(over[-1]), as_of))
    made["complete"] = over <= newest


def _later(connection: apsw.Connection, symbol_id: int, price: str, from_ns: int, as_of: int | None) -> int:
    """Return the time of a record from `from_ns` on, or -1: looked for in ever longer steps."""
    last, step = _data_span(connection, symbol_id)[1], DAY_NS
    while from_ns <= last:
        raw = _raw(connection, symbol_id, price, from_ns, min(from_ns + step, TS_MAX_NS + 1), as_of)
        if len(raw.found.ts):
            return int(raw.found.ts[-1])
        from_ns, step = from_ns + step, step * 4
    return -1


def newest(connection: apsw.Connection, symbol_id: int, price: str, as_of: int) -> int:
    """Return the time of the newest record with a price when the tape's last position was `as_of`, or -1."""
    count = 64
    while as_of:
        columns = query.newest(connection, symbol_id, count, PRICED_BY[price], as_of)
        if columns is None:
            break
        found = aggregate.series(columns, price)
        if len(found.ts):
            return int(found.ts[-1])
        if len(columns["seq"]) < count:
            break
        count *= 16
    return -1


def _data_span(connection: apsw.Connection, symbol_id: int) -> tuple[int, int]:
    """Return the least and the greatest time of a symbol's records; (0, -1) if there are none."""
    rows: list[Any] = connection.execute("SELECT ts_min, ts_max FROM symbol WHERE id = ?", (symbol_id,)).fetchall()
    spans = [pair for pair in rows if pair[0] is not None]
    fresh = query.tail(connection).get(KIND_TICK)
    if fresh is not None:
        mine = fresh["ts_event_ns"][fresh["symbol"] == symbol_id]
        if len(mine):
            spans.append((int(mine.min()), int(mine.max())))
    return (min(a for a, _ in spans), max(b for _, b in spans)) if spans else (0, -1)


def _pruned_before(connection: apsw.Connection, symbol_id: int) -> int:
    """Return the time before which retention has removed ticks: bars that began before it are not whole."""
    return int(connection.execute("SELECT pruned_before_ns FROM symbol WHERE id = ?", (symbol_id,)).get or 0)


def to_bars(made: Columns, names: dict[int, str], rule: Rule) -> list[Bar]:
    """Return made bars as records, under the symbols' names by id."""

    def column(name: str) -> list[float | None]:
        values = made[name]
        listed: list[float | None] = values.tolist()
        return [None if value != value else value for value in listed] if np.isnan(values).any() else listed

    count = len(made["open"])
    nothing = [None] * count
    return list(
        map(
            Bar,
            [names[symbol_id] for symbol_id in made["symbol"].tolist()],
            [rule.interval.text] * count,
            made["ts_start_ns"].tolist(),
            *(made[name].tolist() for name in _FLOATS[:4]),
            column("volume"),
            column("vwap"),
            made["trades"].tolist(),
            column("bid_volume"),
            column("ask_volume"),
            made["complete"].tolist(),
            made["revision"].tolist(),
            nothing,
            nothing,
            [day_of(day) for day in made["day"].tolist()] if rule.dated else nothing,
            made["number"].tolist() if rule.interval.counted else nothing,
            made["ts_end_ns"].tolist() if rule.interval.counted else nothing,
        )
    )
